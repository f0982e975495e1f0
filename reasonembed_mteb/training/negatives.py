"""The rules by which candidates become negatives, on score matrices alone.

They are those of `sentence_transformers.util.mine_hard_negatives`, name by name and in the same order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

SAMPLING = ("top", "random")


@dataclass(frozen=True)
class MiningRules:
    """Which candidates become negatives.

    Attributes:
        negatives: How many a query, at most.
        range_min: So many of the best that are left are passed over.
        range_max: Candidates end with this rank; None for ten times the negatives where something is removed
            by score, else for just enough.
        absolute_margin: A negative scores at least so much less than the query's worst positive.
        relative_margin: The same, as a share of that positive's score.
        min_score: Lowest score of a negative.
        max_score: Highest score of a negative.
        sampling: ``top`` takes the best, ``random`` draws.
        seed: Of the draws.
    """

    negatives: int = 7
    range_min: int = 0
    range_max: int | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    min_score: float | None = None
    max_score: float | None = None
    sampling: str = "top"
    seed: int = 42

    def __post_init__(self) -> None:
        """Check what does not fit together.

        Raises:
            ReasonEmbedError: If a value cannot be used.
        """
        if self.sampling not in SAMPLING:
            raise unknown_name("sampling", self.sampling, SAMPLING)
        if self.negatives < 1 or self.range_min < 0:
            msg = (
                f"{self.negatives} negatives from rank {self.range_min} on: give at least 1 negative, "
                "and a first rank of 0 or more"
            )
            raise ReasonEmbedError(msg)
        if self.range_max is not None and self.range_max - self.range_min < self.negatives:
            msg = (
                f"ranks {self.range_min} to {self.range_max} hold {max(self.range_max - self.range_min, 0)} "
                f"candidates, too few for {self.negatives} negatives: raise range_max, or ask for fewer"
            )
            raise ReasonEmbedError(msg)
        numbers = (self.absolute_margin, self.relative_margin, self.min_score, self.max_score)
        if not all(one is None or np.isfinite(one) for one in numbers):
            msg = "margins and scores must be finite numbers; leave out what is not to count"
            raise ReasonEmbedError(msg)
        if None not in (self.min_score, self.max_score) and numbers[2] > numbers[3]:  # type: ignore[operator]
            msg = f"min_score {self.min_score} is above max_score {self.max_score}: nothing lies between"
            raise ReasonEmbedError(msg)

    @property
    def removes(self) -> bool:
        """Whether anything is removed by its score."""
        limits = (self.absolute_margin, self.relative_margin, self.min_score, self.max_score)
        return any(one is not None for one in limits)

    def last_rank(self, most_positives: int, *, reranked: bool = False) -> int:
        """Return the rank that candidates end with.

        Args:
            most_positives: Positives of the query that has most.
            reranked: Whether another model's scores decide what is removed.
        """
        if self.range_max is not None:
            return self.range_max
        upper = (self.absolute_margin, self.relative_margin, self.max_score)
        some = any(one is not None for one in upper) or (reranked and self.min_score is not None)
        return self.range_min + self.negatives * (10 if some else 1) + most_positives


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and what became of the rest.

    Attributes:
        columns: For each query the columns of its negatives, best first.
        removed: Candidates removed, by reason.
    """

    columns: list[NDArray[np.int64]]
    removed: dict[str, int]


def choose_negatives(rules: MiningRules, scores: Floats, worst_positive: Floats, last_rank: int) -> Chosen:
    """Choose each query's negatives among its candidates.

    Args:
        rules: How many, from which ranks, and how far below a positive.
        scores: ``(Q, C)``, by any model; minus infinity where a candidate does not count (a positive, for
            one), NaN where it has no score, which removes it. Equal scores keep the order of the columns.
        worst_positive: ``(Q,)``, the lowest score of each query's positives by the same model; NaN removes
            every candidate where there is a margin.
        last_rank: See `MiningRules.last_rank`.
    """
    left = np.where(np.isnan(scores), -np.inf, scores).astype(scores.dtype)
    removed = {"no score": int(np.isnan(scores).sum())}
    for name, out in _limits(rules, worst_positive):
        gone = out(left) & (left > -np.inf)
        removed[name] = int(gone.sum())
        left[gone] = -np.inf
    order = np.argsort(-left, axis=1, kind="stable")[:, rules.range_min : last_rank]
    window = np.take_along_axis(left, order, axis=1)
    counts = (window > -np.inf).sum(axis=1)
    draw = random.Random(rules.seed)
    columns = [_drawn(rules, order[row], count, draw) for row, count in enumerate(counts.tolist())]
    return Chosen(columns, {name: count for name, count in removed.items() if count})


def _drawn(
    rules: MiningRules, ranked: NDArray[np.int64], count: int, draw: random.Random
) -> NDArray[np.int64]:
    """Return the columns of one query's negatives among ``count`` candidates, best first."""
    if rules.sampling == "top":
        return ranked[: min(count, rules.negatives)]
    # As the library draws: also where there are too few, of which the places without one are left out.
    places = draw.sample(range(max(count, rules.negatives)), k=rules.negatives)
    return ranked[sorted(place for place in places if place < count)]


def _limits(rules: MiningRules, worst_positive: Floats) -> list[tuple[str, Any]]:
    """Return what removes candidates: a name, and a function from scores to what goes."""
    worst = worst_positive[:, None]
    absolute, relative = rules.absolute_margin, rules.relative_margin
    low, high = rules.min_score, rules.max_score
    limits: list[tuple[str, Any]] = []
    # Written so that a positive without a score removes everything.
    if absolute is not None:
        limits.append(("absolute_margin", lambda left: ~(left + absolute <= worst)))
    if relative is not None:
        limits.append(("relative_margin", lambda left: ~(left <= worst - np.abs(worst) * relative)))
    if high is not None:
        limits.append(("max_score", lambda left: left > high))
    if low is not None:
        limits.append(("min_score", lambda left: left < low))
    return limits
