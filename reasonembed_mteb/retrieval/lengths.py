"""Holding any MTEB model to a length: min(the given, its own), never raised."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# More than any model reads.
_NO_LIMIT = 1 << 30
# MTEB's wrappers keep what they wrap under one of these names.
_WRAPPED = ("model", "wrapped_models", "_model")


def sized_models(model: object) -> list[Any]:
    """Return the sentence-transformers models inside an MTEB model.

    Args:
        model: An MTEB model, of any kind and wrapped however often.

    Returns:
        Every object that has a ``max_seq_length``; empty for models without one (BM25, an API).
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        # A class-level lookup: asking the instance would run a property that may fail.
        if hasattr(type(current), "max_seq_length"):
            found.append(current)
            continue
        for name in _WRAPPED:
            inner = getattr(current, name, None)
            if inner is not None:
                waiting.extend(inner if isinstance(inner, (list, tuple)) else [inner])
    return found


def current_length(model: object) -> int | None:
    """Return the length in tokens at which a model truncates, or None where it is not known."""
    lengths = [length for sized in sized_models(model) if (length := _own_length(sized)) is not None]
    return min(lengths) if lengths else None


def _own_length(sized: Any) -> int | None:  # noqa: ANN401 - any sentence-transformers model
    length = sized.max_seq_length
    # Tokenizers without a limit report a very large or infinite number.
    if length is None or not math.isfinite(length) or length > _NO_LIMIT:
        return None
    return int(length)


def _takes_a_length(sized: Any) -> bool:  # noqa: ANN401 - any sentence-transformers model
    """Return whether a model's length can be set: static embeddings and bags of words have none."""
    try:
        sized.max_seq_length = sized.max_seq_length
    except AttributeError:
        return False
    return True


def protocol_length(task: object) -> int:
    """Return the length in tokens that a task's protocol holds models to, for `capped_length`.

    Args:
        task: An MTEB task; one that is none of ours sets no length.
    """
    row = getattr(task, "row", None)
    return _NO_LIMIT if row is None else int(row.max_tokens)


@contextmanager
def capped_length(model: object, limit: int) -> Iterator[int | None]:
    """Truncate inputs at ``limit`` tokens while the context lasts, unless the model does so earlier.

    Args:
        model: An MTEB model.
        limit: The protocol's length in tokens.

    Yields:
        The length in force, or None for a model that has none.
    """
    sized = [one for one in sized_models(model) if _takes_a_length(one)]
    before = [(one, one.max_seq_length) for one in sized]
    try:
        for one in sized:
            own = _own_length(one)
            if own is None or own > limit:
                one.max_seq_length = limit
        yield current_length(model)
    finally:
        for one, length in before:
            one.max_seq_length = length
