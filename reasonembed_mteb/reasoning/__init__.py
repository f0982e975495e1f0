"""Reason, then embed; latent tokens for embedding, generation and compression."""
