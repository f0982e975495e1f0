"""Batches by token budget: every batch costs about the same, whatever the lengths of its texts."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that go through the model together: their positions in the input, and their tokens."""

    positions: NDArray[np.int64]
    ids: list[NDArray[np.int32]]
    types: list[NDArray[np.int32]] | None
    extra: dict[str, Any]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return np.fromiter(map(len, self.ids), dtype=np.int64, count=len(self.ids))

    def part(self, chosen: NDArray[np.int64]) -> Batch:
        """Return some of the texts.

        Args:
            chosen: Which.
        """
        types = None if self.types is None else [self.types[i] for i in chosen]
        return Batch(self.positions[chosen], [self.ids[i] for i in chosen], types, self.extra)

    def joined(self, other: Batch) -> Batch:
        """Return both batches' texts.

        Args:
            other: The other batch, of the same call.
        """
        types = None if self.types is None or other.types is None else self.types + other.types
        positions = np.concatenate([self.positions, other.positions])
        return Batch(positions, self.ids + other.ids, types, other.extra)


class Budget:
    """The tokens that one batch may hold; halved when memory runs out."""

    def __init__(self, tokens: int) -> None:
        """Start with a budget.

        Args:
            tokens: Tokens of a batch, at least 1: real ones if texts are packed, cells if padded.
        """
        self.tokens = tokens

    def halve(self, spent: int) -> None:
        """Halve the budget after a batch that did not fit, and say so.

        Args:
            spent: What that batch cost; the new budget is below it even if it was formed earlier.
        """
        self.tokens = max(1, min(self.tokens, spent) // 2)
        logger.warning("out of memory: going on with %d tokens a batch", self.tokens)


def batch_cost(lengths: NDArray[np.int64], *, padded: bool) -> int:
    """Return what a batch costs.

    Args:
        lengths: Tokens of each of its texts.
        padded: Whether every row is as long as the longest.

    Returns:
        Cells of the padded batch, or the sum of the lengths.
    """
    return int(lengths.max() * len(lengths) if padded else lengths.sum())


def token_batches(lengths: NDArray[np.int64], budget: int, *, padded: bool) -> Iterator[NDArray[np.int64]]:
    """Group texts by length under a budget, longest first.

    Args:
        lengths: Tokens of each text.
        budget: What a batch may cost (see `batch_cost`); a longer text has a batch of its own.
        padded: Whether rows are padded to the longest of the batch.

    Yields:
        Indices into ``lengths``; together each index once.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        if padded:
            stop = start + budget // max(1, int(lengths[order[start]]))
        else:
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + budget, side="right"))
        stop = min(max(stop, start + 1), len(order))
        yield order[start:stop]
        start = stop


def prefetched(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """Run an iterator in a thread of its own, a few items ahead.

    Args:
        items: What makes the items; its errors reach the caller.
        depth: How many items are made ahead.

    Yields:
        The items, in order.
    """
    end: Any = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
