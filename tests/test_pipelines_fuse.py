"""Fusion against fractions and plain sums, ties by the first ranking, grids of weights."""

from __future__ import annotations

import itertools
import random
import statistics
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest

from reasonembed_mteb.evaluation.stages import Ranked
from reasonembed_mteb.pipelines.config import FuseStage, grid_size
from reasonembed_mteb.pipelines.fuse import fuse, fused_query, normalised, weight_grid
from reasonembed_mteb.pipelines.pool import Pool, State
from reasonembed_mteb.pipelines.retrieve import search


def ranked(**scores: float) -> Ranked:
    best = sorted(scores.items(), key=lambda hit: -hit[1])
    return Ranked([name for name, _ in best], np.array([score for _, score in best]))


def drawn(seed: int, lists: int = 3) -> list[Ranked]:
    draw = random.Random(seed)
    names = [f"d{number}" for number in range(12)]
    return [
        ranked(**{name: draw.gauss(0, 5) for name in draw.sample(names, draw.randint(1, 12))})
        for _ in range(lists)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_reciprocal_ranks_against_fractions(seed: int) -> None:
    lists, weights = drawn(seed), (Fraction(1), Fraction(1, 2), Fraction(2))
    sums: dict[str, Fraction] = {}
    for found, weight in zip(lists, weights, strict=True):
        for rank, name in enumerate(found.documents, 1):
            sums[name] = sums.get(name, Fraction(0)) + weight / (60 + rank)
    first = list(dict.fromkeys(name for found in lists for name in found.documents))
    wanted = sorted(first, key=lambda name: (-sums[name], first.index(name)))
    made = fused_query(lists, "rrf", [float(weight) for weight in weights], 60)
    assert made.documents == wanted
    assert made.scores == pytest.approx([float(sums[name]) for name in wanted], abs=1e-15)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("method", ["min-max", "z"])
def test_weighted_scores_against_plain_sums(seed: int, method: str) -> None:
    lists, weights = drawn(seed), (0.5, 0.2, 0.3)
    sums: dict[str, float] = {}
    for name in {name for found in lists for name in found.documents}:
        sums[name] = 0.0
        for found, weight in zip(lists, weights, strict=True):
            values = found.scores.tolist()
            if method == "min-max":
                span = max(values) - min(values)
                own = [(value - min(values)) / span if span else 1.0 for value in values]
            else:
                deviation = statistics.pstdev(values)
                own = [
                    (value - statistics.fmean(values)) / deviation if deviation else 0.0 for value in values
                ]
            place = found.documents.index(name) if name in found.documents else None
            sums[name] += weight * (min(own) if place is None else own[place])
    made = fused_query(lists, method, weights, 60)
    assert dict(zip(made.documents, made.scores, strict=True)) == pytest.approx(sums, abs=1e-12)
    assert sorted(made.scores, reverse=True) == made.scores.tolist()


def test_equal_sums_stand_in_the_order_of_the_first_ranking() -> None:
    one, two = ranked(z=3.0, a=2.0), ranked(a=3.0, z=2.0)
    assert fused_query([one, two], "rrf", [1, 1], 60).documents == ["z", "a"]
    assert fused_query([two, one], "rrf", [1, 1], 60).documents == ["a", "z"]
    # Each has the same three ranks, whose sum hangs on their order in floating point.
    ranks = list(itertools.permutations(["a", "b", "c"]))
    lists = [Ranked(list(order), np.array([3.0, 2.0, 1.0])) for order in ranks]
    scores = fused_query(lists, "rrf", [1.0] * 6, 60).scores
    assert len(set(scores.tolist())) == 1


def test_weight_one_leaves_the_ranking() -> None:
    first, second = drawn(3, 2)
    for method in ("rrf", "min-max", "z"):
        kept = list(fused_query([first, second], method, [1.0, 0.0], 60).documents)
        assert [name for name in kept if name in first.documents] == first.documents


def test_lists_of_equal_scores() -> None:
    assert normalised(np.array([2.0, 2.0]), "min-max").tolist() == [1.0, 1.0]
    assert normalised(np.array([2.0, 2.0]), "z").tolist() == [0.0, 0.0]
    assert normalised(np.empty(0), "z").tolist() == []
    # What only one of them found stands above nothing.
    empty = Ranked([], np.empty(0))
    assert fused_query([empty, ranked(a=1.0)], "min-max", [1, 1], 60).documents == ["a"]


def test_grids_hold_every_weight_once() -> None:
    found = list(weight_grid(3, 0.25))
    assert len(found) == len(set(found)) == 15
    assert all(sum(weights) == pytest.approx(1) for weights in found)
    assert set(weight_grid(1, 0.5)) == {(1.0,)}
    assert {(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)} == set(weight_grid(2, 0.5))
    for count, step in ((1, 0.5), (2, 0.01), (3, 0.25), (4, 0.3)):
        assert grid_size(count, step) == len(list(weight_grid(count, step)))


class Listed:
    """A search model that finds the same documents for every query."""

    mteb_model_meta = None

    def __init__(self, documents: list[str]) -> None:
        self._documents = documents

    def index(self, corpus: Any, **_: Any) -> None:
        """Nothing is needed of it."""

    def search(self, queries: Any, *, top_k: int, **_: Any) -> dict[str, dict[str, float]]:
        """Return places as scores."""
        best = {name: -float(place) for place, name in enumerate(self._documents[:top_k])}
        return {query: dict(best) for query in queries["id"]}


def test_a_querys_own_document_is_not_found_where_it_does_not_count() -> None:
    documents = [f"d{n}" for n in range(1200)]
    # Its own is the first one, and the last one that MTEB's evaluation sees.
    queries = {"id": ["d0", "d999", "q"], "text": ["a", "b", "c"]}
    texts = {query: [text] for query, text in zip(queries["id"], queries["text"], strict=True)}

    def found(top_k: int, *, ignores: bool = True) -> dict[str, list[str]]:
        pool = Pool(queries, None, cast("Any", None), {}, 8, ignores_own_id=ignores)
        return {
            query: one.documents for query, one in search(Listed(documents), pool, texts, top_k, 60).items()
        }

    assert found(3) == {"d0": ["d1", "d2", "d3"], "d999": ["d0", "d1", "d2"], "q": ["d0", "d1", "d2"]}
    assert found(3, ignores=False)["d0"] == ["d0", "d1", "d2"]
    # What MTEB has left of its thousand.
    assert found(1000) == {"d0": documents[1:1000], "d999": documents[:999], "q": documents[:1000]}


def test_a_grid_is_chosen_by_the_measure_that_is_reported() -> None:
    # The first ranking has the gold document second, behind the one that is the query itself.
    one, two = ranked(q=3.0, gold=2.0, x=1.0), ranked(x=3.0, gold=2.0, q=1.0)
    queries = {"id": ["q"], "text": ["why?"]}
    state = State(rankings={"one": {"q": one}, "two": {"q": two}})
    stage = FuseStage(kind="fuse", name="fuse", method="min-max", grid=0.5)
    for ignores, first in ((True, "q"), (False, "x")):
        pool = Pool(
            queries, None, cast("Any", None), {}, 8, labels={"q": {"gold": 1}}, ignores_own_id=ignores
        )
        output, note = fuse(stage, pool, state)
        best = {
            name: pool.scores({"q": fused_query([one, two], "min-max", name, 60)})
            for name in weight_grid(2, 0.5)
        }
        chosen = tuple(note.chosen["weights"])
        assert best[chosen]["ndcg_at_10"] == max(own["ndcg_at_10"] for own in best.values())
        assert output.rankings["fuse"]["q"].documents[0] == first
