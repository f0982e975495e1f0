"""Exclusion-aware search against an independent brute-force scorer in fp64, and against MTEB's own path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import pytrec_eval
import torch
from datasets import Dataset
from mteb.models import ModelMeta, SearchEncoderWrapper
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.retrieval import topk
from reasonembed_mteb.retrieval.search import excluding_search
from reasonembed_mteb.retrieval.topk import RunningTopK, Similarity, id_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Run = dict[str, dict[str, float]]


class Instant(AbsEncoder):
    """An encoder whose vectors are known: texts are row numbers of two matrices."""

    def __init__(
        self, queries: NDArray[np.float32], documents: NDArray[np.float32], similarity: str = "dot"
    ) -> None:
        """Keep the vectors."""
        self.vectors = {"query": queries, "document": documents}
        function = ScoringFunction.from_str(similarity)
        overwrites = {"name": "test/instant", "revision": "1", "similarity_fn_name": function}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=overwrites)

    def encode(self, inputs: Any, *, prompt_type: Any, **_: Any) -> Any:
        """Return the rows that the texts name."""
        rows = [int(text) for batch in inputs for text in batch["text"]]
        return self.vectors[prompt_type.value][rows]


def texts(ids: list[str]) -> Dataset:
    """Make a data set whose texts are row numbers."""
    return Dataset.from_dict({"id": ids, "text": [str(i) for i in range(len(ids))]})


KWARGS: dict[str, Any] = {
    "task_metadata": None,
    "hf_split": "test",
    "hf_subset": "default",
    "encode_kwargs": {"show_progress_bar": False},
    "num_proc": None,
}


def search(model: Any, case: Case, k: int, *, chunk_size: int = 7, **kwargs: Any) -> Run:
    """Run our search over a case."""
    wrapped = excluding_search(model, case.excluded, chunk_size=chunk_size)
    wrapped.index(texts(case.documents), **KWARGS)
    found: Run = wrapped.search(texts(case.queries), top_k=k, **KWARGS, **kwargs)
    return found


class Case:
    """Vectors, ids and exclusions."""

    def __init__(
        self,
        documents: int,
        *,
        queries: int = 3,
        dim: int = 4,
        excluded: Mapping[str, list[str]] | None = None,
        levels: int = 2,
        seed: int = 0,
    ) -> None:
        """Draw small integers, so that fp32 is exact and ties are many."""
        draw = np.random.default_rng(seed)
        self.query_vectors = draw.integers(0, levels, (queries, dim)).astype(np.float32)
        self.document_vectors = draw.integers(0, levels, (documents, dim)).astype(np.float32)
        # Ids of different lengths, with spaces, in no order.
        names = [f"d {i}" if i % 3 else f"doc{i}" for i in range(documents)]
        self.documents = [names[i] for i in draw.permutation(documents)]
        self.queries = [f"q{i}" for i in range(queries)]
        self.excluded = dict(excluded or {})

    def model(self) -> Instant:
        """Return the encoder."""
        return Instant(self.query_vectors, self.document_vectors)

    def brute_force(self, k: int) -> Run:
        """Score every pair in fp64, one by one, with the definition's own words."""
        found: Run = {}
        for query, vector in zip(self.queries, self.query_vectors.astype(np.float64), strict=True):
            scored = []
            for document, other in zip(self.documents, self.document_vectors.astype(np.float64), strict=True):
                if document not in self.excluded.get(query, ()):
                    scored.append((float(sum(a * b for a, b in zip(vector, other, strict=True))), document))
            found[query] = {document: score for score, document in sorted(scored, reverse=True)[:k]}
        return found


CASES = {
    "plain": Case(40),
    "all tied": Case(40, levels=1),
    "fewer documents than k": Case(5),
    "one document": Case(1),
    "empty exclusions": Case(30, excluded={"q0": []}),
    "unknown exclusions": Case(30, excluded={"q0": ["nowhere"], "other query": ["doc0"]}),
    "one query excludes all": Case(
        20, excluded={"q1": [f"d {i}" for i in range(20)] + [f"doc{i}" for i in range(20)]}
    ),
    "real values": Case(60, levels=50, dim=8),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_equals_brute_force(name: str, chunk_size: int, k: int) -> None:
    case = CASES[name]
    found = search(case.model(), case, k, chunk_size=chunk_size)
    expected = case.brute_force(k)
    assert found == expected
    for query, scores in expected.items():
        assert list(found[query]) == list(scores)


def test_the_best_twelve_thousand_are_excluded() -> None:
    draw = np.random.default_rng(1)
    case = Case(13_000, queries=2, dim=8, levels=1000)
    case.document_vectors = draw.standard_normal((13_000, 8)).astype(np.float32)
    order = np.argsort(-(case.document_vectors.astype(np.float64) @ case.query_vectors[0].astype(np.float64)))
    case.excluded = {"q0": [case.documents[i] for i in order[:12_000]]}
    found = search(case.model(), case, 100, chunk_size=1024)
    assert list(found["q0"]) == [case.documents[i] for i in order[12_000:12_100]]
    assert len(found["q1"]) == 100


def test_gold_tied_with_an_excluded_document() -> None:
    case = Case(4, queries=1, levels=1, excluded={"q0": ["d 2"]})
    case.documents = ["doc0", "d 1", "d 2", "doc3"]
    # pytrec_eval's order among equals is by id, descending: doc3, doc0, (d 2,) d 1.
    assert list(search(case.model(), case, 3)["q0"]) == ["doc3", "doc0", "d 1"]


def test_ties_are_broken_as_pytrec_eval_breaks_them() -> None:
    case = Case(30, levels=1, queries=1)
    full, cut = search(case.model(), case, 30), search(case.model(), case, 5)
    for gold in case.documents:
        evaluator = pytrec_eval.RelevanceEvaluator({"q0": {gold: 1}}, {"ndcg_cut.5"})
        assert evaluator.evaluate(full)["q0"]["ndcg_cut_5"] == evaluator.evaluate(cut)["q0"]["ndcg_cut_5"]


def test_arrow_orders_ids_as_python_does() -> None:
    ids = ["a", "B", "aa", "é", "z 1", "", "𝄞", "￿", "a\n"]
    order = [ids[i] for i in torch.argsort(id_ranks(pa.array(ids, pa.large_string())))]
    assert order == sorted(ids, reverse=True)


def test_the_result_does_not_depend_on_the_order_of_chunks() -> None:
    case = Case(50, levels=2)
    ids = pa.array(case.documents, pa.large_string())
    scores = torch.from_numpy(case.query_vectors @ case.document_vectors.T)
    forward, backward = (RunningTopK(3, 10, id_ranks(ids)) for _ in range(2))
    for start in range(0, 50, 10):
        forward.add(scores[:, start : start + 10].clone(), start)
        backward.add(scores[:, 40 - start : 50 - start].clone(), 40 - start)
    assert forward.results(case.queries, ids) == backward.results(case.queries, ids)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_metrics_equal_mtebs_candidate_lists(similarity: str) -> None:
    draw = np.random.default_rng(3)
    case = Case(400, queries=20)
    case.query_vectors = draw.standard_normal((20, 16)).astype(np.float32)
    case.document_vectors = draw.standard_normal((400, 16)).astype(np.float32)
    case.excluded = {
        q: [case.documents[i] for i in draw.choice(400, 150, replace=False)] for q in case.queries[:15]
    }
    gold = {
        q: dict.fromkeys(draw.choice(sorted(set(case.documents) - set(case.excluded.get(q, ()))), 5), 1)
        for q in case.queries
    }
    model = Instant(case.query_vectors, case.document_vectors, similarity)
    theirs = SearchEncoderWrapper(model)
    theirs.index(texts(case.documents), **KWARGS)
    left = {q: [d for d in case.documents if d not in set(case.excluded.get(q, ()))] for q in case.queries}
    import mteb

    kwargs = KWARGS | {"task_metadata": mteb.get_task("NFCorpus").metadata}
    expected = theirs.search(texts(case.queries), top_k=100, top_ranked=left, **kwargs)
    found = search(model, case, 100, chunk_size=64)
    evaluator = pytrec_eval.RelevanceEvaluator(gold, {"ndcg_cut.10", "recall.100", "map", "recip_rank"})
    for query, metrics in evaluator.evaluate(found).items():
        assert metrics == pytest.approx(evaluator.evaluate(expected)[query], abs=1e-5)


class FirstHundred:
    """A search model that returns its best documents in a fixed order, as an index would."""

    def __init__(self, scores: dict[str, float]) -> None:
        """Keep one ranking for every query."""
        self.scores = dict(sorted(scores.items(), key=lambda item: -item[1]))
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "test/index", "revision": "1"})
        self.seen: dict[str, Any] = {}

    def index(self, corpus: Any, **_: Any) -> None:
        """Do nothing."""

    def search(self, queries: Any, *, top_k: int, top_ranked: Any = None, **_: Any) -> Run:
        """Return the best of all, or of the candidates."""
        self.seen = {"top_k": top_k, "top_ranked": top_ranked}
        return {
            q: dict([i for i in self.scores.items() if top_ranked is None or i[0] in top_ranked[q]][:top_k])
            for q in queries["id"]
        }


def test_other_search_models_fetch_enough_more() -> None:
    model = FirstHundred({f"d{i}": -float(i) for i in range(100)})
    case = Case(1, queries=2, excluded={"q0": [f"d{i}" for i in range(30)]})
    found = search(model, case, 10)
    assert list(found["q0"]) == [f"d{i}" for i in range(30, 40)]
    assert list(found["q1"]) == [f"d{i}" for i in range(10)]
    assert model.seen["top_k"] == 40


def test_reranking_drops_candidates_before_scoring() -> None:
    model = FirstHundred({f"d{i}": -float(i) for i in range(100)})
    case = Case(1, queries=2, excluded={"q0": ["d1", "d2"]})
    candidates = {"q0": ["d1", "d2", "d3"], "q1": ["d1", "d2", "d3"]}
    found = search(model, case, 10, top_ranked=candidates)
    assert model.seen["top_ranked"] == {"q0": ["d3"], "q1": ["d1", "d2", "d3"]}
    assert found == {"q0": {"d3": -3.0}, "q1": {"d1": -1.0, "d2": -2.0, "d3": -3.0}}


def test_dense_reranking_drops_candidates() -> None:
    import mteb

    case = Case(10, excluded={"q0": ["d 1"]})
    candidates = {query: ["d 1", "d 2", "doc3"] for query in case.queries}
    wrapped = excluding_search(case.model(), case.excluded)
    kwargs = KWARGS | {"task_metadata": mteb.get_task("NFCorpus").metadata}
    wrapped.index(texts(case.documents), **kwargs)
    found = wrapped.search(texts(case.queries), top_k=10, top_ranked=candidates, **kwargs)
    assert {query: set(scores) for query, scores in found.items()} == {
        "q0": {"d 2", "doc3"},
        "q1": {"d 1", "d 2", "doc3"},
        "q2": {"d 1", "d 2", "doc3"},
    }


def test_hybrids_exclude_before_they_fuse() -> None:
    from mteb.models.hybrid_wrappers import HybridSearch

    one = FirstHundred({"a": 3.0, "b": 2.0, "c": 1.0})
    two = FirstHundred({"c": 3.0, "a": 2.0, "b": 1.0})
    case = Case(1, queries=2, excluded={"q0": ["a"]})
    hybrid = HybridSearch([one, two], fusion_strategy="rrf", rrf_k=60)
    found = search(hybrid, case, 3)
    # Without `a`, both b and c are first once and second once.
    assert found["q0"] == pytest.approx({"b": (1 / 61 + 1 / 62) / 2, "c": (1 / 61 + 1 / 62) / 2})
    assert set(found["q1"]) == {"a", "b", "c"}
    assert hybrid.wrapped_models == [one, two]


def test_nan_names_the_documents() -> None:
    case = Case(10)
    case.document_vectors[4] = np.nan
    with pytest.raises(ReasonEmbedError, match=f"1 documents as NaN or infinite.*{case.documents[4]}"):
        search(case.model(), case, 3)


def test_no_document_left_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    search(CASES["one query excludes all"].model(), CASES["one query excludes all"], 3)
    assert "1 queries have no document left" in caplog.text


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot search with str"):
        excluding_search("model", {})  # type: ignore[arg-type]


def test_a_document_without_length_scores_zero_as_in_mteb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "plain_function", lambda _: "cosine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    queries, documents = np.array([[3.0, 4.0]], "float32"), np.array([[0, 0], [6, 8]], "float32")
    assert Similarity(None, queries).scores(documents).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(("columns", "k"), [(50, 7), (1000, 5), (5000, 60), (3001, 11)])
@pytest.mark.parametrize("kind", ["drawn", "ties", "excluded", "one value"])
def test_the_best_columns_are_those_of_a_whole_sort(columns: int, k: int, kind: str) -> None:
    draw = np.random.default_rng(columns + k)
    scores = draw.normal(size=(40, columns)).astype(np.float32)
    if kind == "ties":
        scores = np.round(scores, 1)
    elif kind == "excluded":
        scores[draw.random(scores.shape) < 0.5] = -np.inf
        scores[3, 2:] = -np.inf
    elif kind == "one value":
        scores[::2] = 0.25
    ranks = draw.permutation(columns)
    found = topk.best(torch.from_numpy(scores), torch.from_numpy(ranks), k).numpy()
    for row, chosen in zip(scores, found, strict=True):
        expected = np.lexsort((ranks, -row.astype(np.float64)))[:k]
        assert sorted(chosen.tolist()) == sorted(expected.tolist())
