"""Scores of several models over the same queries as one array, and bootstrap intervals of their means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reasonembed_mteb.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Scores = Mapping[str, float]
    from collections.abc import Iterator, Mapping, Sequence

    Floats = NDArray[np.float64]


def pool(scores_by_subset: Mapping[str, Scores], *, macro: bool = False) -> dict[str, float]:
    """Join the queries of several subsets, whose ids may repeat.

    Args:
        scores_by_subset: Scores by subset and query id.
        macro: Weigh each query so that the plain mean of the result is the macro mean over subsets;
            tests and intervals are then those of the macro mean.

    Returns:
        Scores by ``subset/query id``.
    """
    total = sum(map(len, scores_by_subset.values()))
    weights = {
        name: total / (len(scores_by_subset) * len(scores)) if macro and scores else 1.0
        for name, scores in scores_by_subset.items()
    }
    return {
        f"{name}/{query}": weights[name] * score
        for name, scores in scores_by_subset.items()
        for query, score in scores.items()
    }


def score_matrix(scores_by_model: Mapping[str, Scores]) -> NDArray[np.float64]:
    """Return scores as an array.

    Args:
        scores_by_model: Scores by model and query id.

    Returns:
        ``(M, Q)``, every row in the order of the first model's queries.

    Raises:
        DataError: If the models were scored over different queries, or a score is not finite.
    """
    if not scores_by_model:
        msg = "no models to compare; give the scores of at least one"
        raise DataError(msg)
    first, queries = next((name, list(scores)) for name, scores in scores_by_model.items())
    for name, scores in scores_by_model.items():
        if scores.keys() != set(queries):
            missing, more = len(set(queries) - scores.keys()), len(scores.keys() - set(queries))
            msg = (
                f"{name} and {first} were scored over different queries ({missing} are missing from "
                f"{name}, {more} from {first}); compare them over those that both have"
            )
            raise DataError(msg)
    if not queries:
        msg = f"{first} has no scores by query; give at least one query"
        raise DataError(msg)
    matrix = np.array(
        [[scores[query] for query in queries] for scores in scores_by_model.values()], dtype=float
    )
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        msg = f"{list(scores_by_model)[row]} scores {matrix[row, column]} on query {queries[column]!r}"
        raise DataError(f"{msg}; score the run again")
    return matrix


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
        values: ``(Q,)``, one a query.
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
        means = resampled_means(matrix, resamples=resamples, seed=seed)
        ends = np.percentile(means, [tail, 100 - tail], axis=0)
    return {
        name: Interval(float(row.mean()), float(low), float(high))
        for name, row, low, high in zip(scores_by_model, matrix, *ends, strict=True)
    }


def resampled_means(matrix: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the means of several rows over the same random samples of queries.

    Args:
        matrix: ``(M, Q)``, one row a model or run.
        resamples: Random samples of the queries.
        seed: Of the samples.

    Returns:
        ``(R, M)``.
    """
    queries = matrix.shape[1]
    drawn = [times @ matrix.T for times in _drawn(queries, resamples, seed)]
    means: Floats = np.concatenate(drawn) / queries
    return means


def _drawn(queries: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks ``(B, Q)``: how many times each query is in each sample; scipy's draws."""
    draw = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        places = draw.integers(0, queries, (size, queries)) + queries * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * queries).reshape(size, queries).astype(float)
