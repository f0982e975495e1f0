"""Rewrite, retrieve, fuse, rerank, iterate: stages in one file, scored by one protocol."""
