"""Scores of several models over the same queries, as one array; subsets joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from reasonembed_mteb.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Scores = Mapping[str, float]


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
