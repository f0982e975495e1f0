"""Encoding and exact search over many machines, by Ray."""
