"""Turning texts into vectors, fast and once."""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from reasonembed_mteb.encoding.fast import FastSentenceTransformer, accelerate, encode_stream
    from reasonembed_mteb.encoding.output import EncodingStats, TextsError

__all__ = ["EncodingStats", "FastSentenceTransformer", "TextsError", "accelerate", "encode_stream"]


def __getattr__(name: str) -> object:
    """Import a public name on first use, with torch and sentence-transformers."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from reasonembed_mteb.encoding import fast

    return getattr(fast, name)
