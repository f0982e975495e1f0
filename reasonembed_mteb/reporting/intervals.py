"""Bootstrap intervals of a mean over queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reasonembed_mteb.reporting.pairing import score_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 9_999
# Rows of counts at a time, so that they stay in the processor's cache.
_BLOCK = 1024


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval of a mean over queries.

    Attributes:
        mean: The mean.
        low: Lower end; NaN where there are fewer than two queries.
        high: Upper end; NaN likewise.
    """

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float] | Floats, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of a mean, by scipy.

    Args:
        values: One a query.
        level: Share of the bootstrap means inside.
        resamples: Random samples of the queries.
        seed: Of the samples.
    """
    from scipy.stats import bootstrap  # type: ignore[import-untyped]

    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return Interval(float(sample.mean()) if len(sample) else math.nan, math.nan, math.nan)
    found = bootstrap(
        (sample,),
        np.mean,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 4_000_000 // len(sample)),
        confidence_level=level,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return Interval(float(sample.mean()), float(found.low), float(found.high))


def bootstrap_intervals(
    scores_by_model: Mapping[str, Mapping[str, float]],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return `bootstrap_interval` of many models at the cost of one: all share the same samples.

    Args:
        scores_by_model: Scores by model and query id, over the same queries.
        level: Share of the bootstrap means inside.
        resamples: Random samples of the queries.
        seed: Of the samples.

    Raises:
        DataError: If the models were scored over different queries, or a score is not finite.
    """
    matrix = score_matrix(scores_by_model)
    queries = matrix.shape[1]
    if queries < 2:
        ends = np.full((2, len(matrix)), math.nan)
    else:
        tail = 100 * (1 - level) / 2
        means = np.concatenate([times @ matrix.T for times in _drawn(queries, resamples, seed)]) / queries
        ends = np.percentile(means, [tail, 100 - tail], axis=0)
    return {
        name: Interval(float(row.mean()), float(low), float(high))
        for name, row, low, high in zip(scores_by_model, matrix, *ends, strict=True)
    }


def _drawn(queries: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks ``(B, Q)``: how many times each query is in each sample; scipy's draws."""
    draw = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        places = draw.integers(0, queries, (size, queries)) + queries * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * queries).reshape(size, queries).astype(float)
