"""Several rankings as one: reciprocal ranks, or weighted scores normalised per query; grids of weights."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from reasonembed_mteb.evaluation.stages import Ranked, StageNote, StageOutput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.evaluation.stages import Ranking
    from reasonembed_mteb.pipelines.config import FuseStage
    from reasonembed_mteb.pipelines.pool import Pool, State

# What a grid is chosen by.
CRITERION = "ndcg_at_10"


def normalised(scores: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    """Return one query's scores of one ranking on a common scale.

    Args:
        scores: ``(D,)``.
        method: ``min-max`` (0 to 1; where all are equal, all 1), or ``z`` (mean 0 and standard deviation 1;
            where all are equal, all 0).
    """
    if not len(scores):
        return scores
    low, high = scores.min(), scores.max()
    if low == high:
        return np.ones_like(scores) if method == "min-max" else np.zeros_like(scores)
    if method == "min-max":
        return np.asarray((scores - low) / (high - low))
    return np.asarray((scores - scores.mean()) / scores.std())


def fused_query(lists: Sequence[Ranked], method: str, weights: Sequence[float], rrf_k: int) -> Ranked:
    """Fuse one query's rankings.

    A document that a ranking does not have gets nothing from it by reciprocal ranks, and the lowest
    normalised score of that ranking else. Equal scores stand in the order of the first ranking that has them.

    Args:
        lists: In the order of the weights.
        method: ``rrf``, ``min-max`` or ``z``.
        weights: One a ranking.
        rrf_k: Constant of the reciprocal ranks.
    """
    parts: list[dict[str, float]] = []
    for found, weight in zip(lists, weights, strict=True):
        if method == "rrf":
            values = weight / (rrf_k + np.arange(1, len(found.documents) + 1))
        else:
            values = weight * normalised(found.scores, method)
        parts.append(dict(zip(found.documents, values.tolist(), strict=True)))
    lowest = [0.0 if method == "rrf" else min(part.values(), default=0.0) for part in parts]
    documents = list(dict.fromkeys(document for found in lists for document in found.documents))
    # Correctly rounded, so that equal parts give equal sums in any order.
    sums = [
        math.fsum(part.get(document, low) for part, low in zip(parts, lowest, strict=True))
        for document in documents
    ]
    return in_order(documents, np.array(sums, dtype=np.float64))


def in_order(documents: Sequence[str], scores: NDArray[np.float64]) -> Ranked:
    """Sort documents by score; equal scores keep the order given.

    Args:
        documents: In the order before.
        scores: ``(D,)``, without NaN.
    """
    order = np.argsort(-scores, kind="stable")
    return Ranked([documents[place] for place in order.tolist()], scores[order])


def fuse_rankings(
    rankings: Sequence[Ranking], queries: Sequence[str], method: str, weights: Sequence[float], rrf_k: int
) -> Ranking:
    """Fuse rankings query by query; see `fused_query`.

    Args:
        rankings: In the order of the weights.
        queries: Ids.
        method: ``rrf``, ``min-max`` or ``z``.
        weights: One a ranking.
        rrf_k: Constant of the reciprocal ranks.
    """
    nothing = Ranked([], np.empty(0))
    return {
        query: fused_query([one.get(query, nothing) for one in rankings], method, weights, rrf_k)
        for query in queries
    }


def weight_grid(count: int, step: float) -> Iterator[tuple[float, ...]]:
    """Yield weights that sum to 1, on a grid.

    Args:
        count: How many weights.
        step: Between two values of one weight; 1 / step is rounded to a whole number.
    """
    parts = round(1 / step)
    for cuts in itertools.combinations(range(parts + count - 1), count - 1):
        edges = (-1, *cuts, parts + count - 1)
        yield tuple((right - left - 1) / parts for left, right in itertools.pairwise(edges))


def fuse(stage: FuseStage, pool: Pool, state: State) -> tuple[StageOutput, StageNote]:
    """Run the stage.

    Args:
        stage: Its table.
        pool: Its labels choose among a grid's weights.
        state: The rankings.
    """
    rankings, queries = list(state.rankings.values()), list(pool.texts)
    weights = tuple(stage.weights or [1.0] * len(rankings))
    chosen: dict[str, list[float]] = {}
    if stage.grid is not None:
        # The first of several that are equally good, from the last ranking's side.
        candidates = weight_grid(len(rankings), stage.grid)
        weights = max(
            candidates,
            key=lambda one: pool.scores(fuse_rankings(rankings, queries, stage.method, one, stage.rrf_k))[
                CRITERION
            ],
        )
        chosen = {"weights": list(weights)}
    made = fuse_rankings(rankings, queries, stage.method, weights, stage.rrf_k)
    return StageOutput(rankings={stage.name: made}), StageNote(chosen=chosen)
