"""Measures over nuggets, aspects and pairs, against ndeval and a plain reference."""

from __future__ import annotations

import itertools
import math
import random
from importlib.util import find_spec

import pytest

from reasonembed_mteb.retrieval.measures import (
    Judged,
    alpha_ndcg,
    coverage,
    margin_score,
    preference_accuracy,
    query_measures,
)


def draw_case(draw: random.Random) -> tuple[list[str], dict[str, list[str]]]:
    documents = [f"d{number}" for number in range(draw.randint(2, 30))]
    share = draw.choice([0.05, 0.2, 0.5])
    nuggets = {
        f"n{number}": [d for d in documents if draw.random() < share] for number in range(draw.randint(1, 6))
    }
    return draw.sample(documents, draw.randint(1, len(documents))), nuggets


@pytest.mark.skipif(find_spec("pyndeval") is None, reason="needs pyndeval (the dev extra)")
def test_alpha_ndcg_is_ndevals() -> None:
    import pyndeval
    from pyndeval import ScoredDoc, SubtopicQrel

    draw = random.Random(0)
    compared = 0
    for _ in range(500):
        ranked, nuggets = draw_case(draw)
        qrels = [SubtopicQrel("q", name, d, 1) for name, supporting in nuggets.items() for d in supporting]
        if not qrels:
            continue
        cuts = (5, 10, 20)
        evaluator = pyndeval.RelevanceEvaluator(qrels, measures=[f"alpha-nDCG@{k}" for k in cuts])
        found = evaluator.evaluate([ScoredDoc("q", d, float(-i)) for i, d in enumerate(ranked)])["q"]
        for cut in cuts:
            assert alpha_ndcg(ranked, nuggets, cut) == pytest.approx(found[f"alpha-nDCG@{cut}"], abs=1e-9)
            compared += 1
    assert compared > 1000


def plain_dcg(ranked: list[str], aspects: dict[str, str], weights: dict[str, float], cut: int) -> float:
    """Follow the definition of BRIGHT-Pro, where a document has one aspect, rank by rank."""
    seen: dict[str, int] = {}
    total = 0.0
    for rank, document in enumerate(ranked[:cut]):
        aspect = aspects.get(document)
        if aspect is not None:
            total += weights[aspect] * 0.5 ** seen.get(aspect, 0) / math.log2(rank + 2)
            seen[aspect] = seen.get(aspect, 0) + 1
    return total


def test_weighted_alpha_ndcg_is_the_definitions() -> None:
    """With one aspect a document the best of all rankings is the greedy one: try them all."""
    draw = random.Random(1)
    for _ in range(60):
        weights = {"a": 3 / 6, "b": 2 / 6, "c": 1 / 6}
        aspects = {f"d{number}": draw.choice("abc") for number in range(draw.randint(1, 5))}
        ranked = [*aspects, "other", "another"]
        draw.shuffle(ranked)
        cut = draw.choice([1, 3, 25])
        best = max(plain_dcg(list(order), aspects, weights, cut) for order in itertools.permutations(aspects))
        nuggets = {name: [d for d, own in aspects.items() if own == name] for name in weights}
        expected = plain_dcg(ranked, aspects, weights, cut) / best
        assert alpha_ndcg(ranked, nuggets, cut, weights=weights) == pytest.approx(expected, abs=1e-12)


def test_coverage_counts_nuggets_by_weight() -> None:
    nuggets = {"a": ["d1", "d2"], "b": ["d3"], "c": []}
    assert coverage(["d9", "d1"], nuggets, 1) == 0
    assert coverage(["d9", "d1", "d2", "d3"], nuggets, 3) == pytest.approx(1 / 3)
    assert coverage(["d9", "d3"], nuggets, 2, weights={"a": 1, "b": 3, "c": 2}) == pytest.approx(0.5)


def test_nuggets_of_no_document_score_nothing() -> None:
    assert alpha_ndcg(["d1"], {"a": []}, 10) == 0
    assert coverage(["d1"], {"a": []}, 10) == 0
    assert coverage(["d1"], {}, 10) == 0


def test_pairs_are_compared_by_rank() -> None:
    ranked = ["good", "x", "bad", "fine"]
    assert preference_accuracy(ranked, ["good", "fine"], ["bad"]) == 0.5
    # What is not ranked stands after the last; two such are a pair lost.
    assert preference_accuracy(ranked, ["gone"], ["away"]) == 0
    assert preference_accuracy(ranked, ["good"], ["away"]) == 1
    assert margin_score(ranked, ["good", "fine"], ["bad"]) == pytest.approx((1 + 1 / 4) / 2 - 1 / 3)
    assert margin_score(ranked, ["gone"], ["good"]) == pytest.approx(1 / 5 - 1)


def test_a_query_has_the_measures_that_it_is_judged_for() -> None:
    names = ("alpha_ndcg_at_10", "coverage_at_2", "recall_at_50", "ppa", "mrs")
    labels = {"d1": 2, "d2": 0}
    assert query_measures(names, ["d1"], {}, Judged()) == {}
    assert query_measures(names, ["d1"], labels, Judged()) == {"recall_at_50": 1}
    found = query_measures(names, ["d2", "d1"], labels, Judged({"n": ["d1"]}, worse=["d2"]))
    assert found == {
        "alpha_ndcg_at_10": pytest.approx(1 / math.log2(3)),
        "coverage_at_2": 1,
        "recall_at_50": 1,
        "ppa": 0,
        "mrs": -0.5,
    }
    # CoQuIR looks at the first 200 alone.
    deep = [f"x{number}" for number in range(200)] + ["d1", "d2"]
    assert query_measures(["ppa"], deep, labels, Judged(worse=["d2"])) == {"ppa": 0}
