"""Rules for negatives, on scores alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training.negatives import MiningRules, choose_negatives

SCORES = np.array([[0.9, 0.8, -np.inf, 0.7, 0.6], [0.5, 0.5, 0.4, 0.3, np.nan]], dtype=np.float32)
WORST = np.array([0.85, 0.45], dtype=np.float32)


def chosen(**rules: Any) -> list[list[int]]:
    made = MiningRules(**rules)
    found = choose_negatives(made, SCORES, WORST, made.last_rank(1))
    return [columns.tolist() for columns in found.columns]


def test_ranks_count_what_is_left() -> None:
    assert chosen(negatives=2) == [[0, 1], [0, 1]]
    # What a margin removes takes no rank, and equal scores keep their order.
    assert chosen(negatives=2, absolute_margin=0.0) == [[1, 3], [2, 3]]
    assert chosen(negatives=2, range_min=1, absolute_margin=0.0) == [[3, 4], [3]]
    assert chosen(negatives=5, range_max=5) == [[0, 1, 3, 4], [0, 1, 2, 3]]
    assert chosen(negatives=1, range_min=9) == [[], []]


def test_limits() -> None:
    assert chosen(negatives=4, relative_margin=0.1) == [[3, 4], [2, 3]]
    assert chosen(negatives=4, min_score=0.45, max_score=0.75) == [[3, 4], [0, 1]]
    rules = MiningRules(negatives=4, absolute_margin=0.0, min_score=0.35)
    found = choose_negatives(rules, SCORES, WORST, 10)
    assert found.removed == {"no score": 1, "absolute_margin": 3, "min_score": 1}
    unknown = np.array([np.nan, 0.45], dtype=np.float32)
    assert [len(one) for one in choose_negatives(rules, SCORES, unknown, 10).columns] == [0, 1]


def test_draws_hang_on_the_seed_alone() -> None:
    scores = np.linspace(1, 0, 40, dtype=np.float32).reshape(1, -1).repeat(30, axis=0)
    worst = np.ones(30, dtype=np.float32)

    def drawn(seed: int) -> list[list[int]]:
        rules = MiningRules(negatives=4, range_min=5, range_max=25, sampling="random", seed=seed)
        return [one.tolist() for one in choose_negatives(rules, scores, worst, 25).columns]

    first = drawn(1)
    assert first == drawn(1) != drawn(2)
    assert all(len(set(one)) == 4 and one == sorted(one) for one in first)
    # Every rank of the window is drawn sooner or later, and none outside.
    assert {column for one in first for column in one} == set(range(5, 25))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"negatives": 0}, "at least 1 negative"),
        ({"range_min": -1}, "a first rank of 0 or more"),
        ({"negatives": 3, "range_min": 5, "range_max": 7}, "ranks 5 to 7 hold 2 candidates, too few for 3"),
        ({"range_max": 3, "range_min": 5}, "hold 0 candidates"),
        ({"sampling": "tops"}, "did you mean 'top'"),
        ({"relative_margin": float("nan")}, "finite"),
        ({"min_score": 0.5, "max_score": 0.2}, "nothing lies between"),
    ],
)
def test_rules_that_do_not_fit(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ReasonEmbedError, match=message):
        MiningRules(**rules)
