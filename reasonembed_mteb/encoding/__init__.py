"""Turning texts into vectors, fast and once."""
