"""Scores over the same queries, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.reporting.bootstrap import pool, score_matrix


def test_queries_must_be_the_same_and_scores_finite() -> None:
    one = {"q1": 1.0, "q2": 0.5}
    with pytest.raises(
        DataError, match=r"b and a were scored over different queries \(1 are missing from b, 0"
    ):
        score_matrix({"a": one, "b": {"q1": 1.0}})
    with pytest.raises(DataError, match="b scores nan on query 'q2'"):
        score_matrix({"a": one, "b": {"q1": 1.0, "q2": float("nan")}})
    with pytest.raises(DataError, match="no models"):
        score_matrix({})
    with pytest.raises(DataError, match="at least one query"):
        score_matrix({"a": {}})


def test_pooling_keeps_queries_of_one_id_apart_and_can_weigh_subsets_alike() -> None:
    subsets = {"a": {"0": 1.0, "1": 0.0, "2": 0.5}, "b": {"0": 0.2}}
    micro = pool(subsets)
    assert micro == {"a/0": 1.0, "a/1": 0.0, "a/2": 0.5, "b/0": 0.2}
    macro = pool(subsets, macro=True)
    assert macro.keys() == micro.keys()
    assert np.mean(list(macro.values())) == pytest.approx((0.5 + 0.2) / 2)
