"""Bootstrap intervals are scipy's and as wide as they say; queries must be the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.reporting.bootstrap import bootstrap_interval, bootstrap_intervals, pool, score_matrix


def by_query(values: object) -> dict[str, float]:
    return {f"q{place}": float(value) for place, value in enumerate(np.asarray(values))}


def test_one_interval_is_scipys() -> None:
    values = np.random.default_rng(1).random(80)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=9_999, method="percentile", rng=0
    ).confidence_interval
    found = bootstrap_interval(list(values))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert found.mean == pytest.approx(values.mean())


def test_many_intervals_are_the_single_ones() -> None:
    draw = np.random.default_rng(2)
    scores = {name: by_query(draw.random(60)) for name in "abc"}
    found = bootstrap_intervals(scores, level=0.9, seed=3)
    for name, values in scores.items():
        alone = bootstrap_interval(list(values.values()), level=0.9, seed=3)
        assert (found[name].mean, found[name].low, found[name].high) == pytest.approx(
            (alone.mean, alone.low, alone.high), abs=1e-12
        )


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draw = np.random.default_rng(9)
    scores = {f"sample {i}": by_query(draw.random(60)) for i in range(400)}
    found = bootstrap_intervals(scores, resamples=1_999)
    assert 0.91 <= np.mean([one.low <= 0.5 <= one.high for one in found.values()]) <= 0.98


def test_a_single_query_has_no_interval() -> None:
    for found in (bootstrap_interval([0.5]), bootstrap_intervals({"a": {"q": 0.5}})["a"]):
        assert found.mean == 0.5
        assert np.isnan([found.low, found.high]).all()
    assert np.isnan(bootstrap_interval([]).mean)


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
