"""Mining beside the library's own function: the same negatives on the same settings."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import make_encoder
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.retrieval import nearest
from reasonembed_mteb.retrieval.lexical import LexicalModel
from reasonembed_mteb.training import mining
from reasonembed_mteb.training.mining import mine_pairs
from reasonembed_mteb.training.negatives import MiningRules
from reasonembed_mteb.training.pairs import read_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.training.pairs import Pairs

WORDS = ("sky", "blue", "light", "wave", "short", "long", "passage", "biology", "answer", "query")


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=12)) + f" {number}" for number in range(count)]


# Some queries stand there twice, with another positive.
QUERIES = [*texts(20, 1), *texts(20, 1)[:5]]
POSITIVES = texts(25, 2)
CORPUS = texts(60, 3)


def write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    from reasonembed_mteb.files import json_line

    file.write_text("".join(map(json_line, rows)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return one model for all, since its vectors do not change."""
    return make_encoder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    rows = [{"query": q, "pos": [p]} for q, p in zip(QUERIES, POSITIVES, strict=True)]
    documents = [{"_id": f"d{number}", "text": text} for number, text in enumerate(CORPUS)]
    files = write(tmp_path / "pairs.jsonl", rows), write(tmp_path / "corpus.jsonl", documents)
    return read_pairs(files[0], corpus=files[1])


def wrapped(model: SentenceTransformer) -> Any:
    from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder

    return ProtocolEncoder(model)


class Overlap:
    """Scores pairs by shared words, and their order."""

    identity = {"name": "test/overlap"}  # noqa: RUF012

    def score(self, pairs: Sequence[tuple[str, str]]) -> Any:
        """Count."""
        shared = [len(set(q.split()) & set(d.split())) + len(d) / 97 + hash_of(q + d) for q, d in pairs]
        return np.array(shared, dtype=np.float32)

    def predict(self, pairs: list[tuple[str, str]], **_: Any) -> Any:
        """Do it as the library's cross-encoders do."""
        return torch.from_numpy(self.score(pairs))


def hash_of(text: str) -> float:
    """Return a number below .01, so that no scores are equal."""
    return sum(map(ord, text)) % 9973 / 1e6


def mined_by_library(
    model: SentenceTransformer, rules: dict[str, Any], reranker: Any
) -> dict[str, list[str]]:
    data = Dataset.from_dict({"query": QUERIES, "positive": POSITIVES})
    own = {"num_negatives": rules.pop("negatives"), "sampling_strategy": rules.pop("sampling", "top")}
    random.seed(rules.pop("seed", 42))
    found = mine_hard_negatives(
        data,
        model,
        corpus=CORPUS,
        cross_encoder=reranker,
        output_format="labeled-list",
        verbose=False,
        **own,
        **rules,
    )
    # The first of the texts is the positive.
    return {row["query"]: row["positive"][1:] for row in found}


# Cosines of the random model lie between .9 and 1.
BY_VECTORS: list[dict[str, Any]] = [
    {"negatives": 3},
    {"negatives": 1, "range_min": 4},
    {"negatives": 5, "range_min": 2, "range_max": 9},
    {"negatives": 3, "absolute_margin": 0.0},
    {"negatives": 3, "absolute_margin": 0.002, "range_max": 25},
    {"negatives": 4, "relative_margin": 0.001, "range_min": 1},
    {"negatives": 4, "relative_margin": 0.001, "max_score": 0.99, "min_score": 0.95},
    {"negatives": 2, "min_score": 0.97, "range_max": 80},
    {"negatives": 3, "sampling": "random", "range_max": 20, "seed": 7},
    {"negatives": 6, "sampling": "random", "relative_margin": 0.001, "range_min": 1, "range_max": 30},
]
BY_RERANKER: list[dict[str, Any]] = [
    {"negatives": 3, "absolute_margin": 0.5},
    {"negatives": 2, "min_score": 6.0},
    {"negatives": 5, "relative_margin": 0.1, "range_min": 1, "range_max": 30},
    {"negatives": 3, "sampling": "random", "max_score": 7.5, "range_max": 20},
]


def mined_by_us(
    pairs: Pairs, model: Any, rules: MiningRules, store: Path, **other: Any
) -> dict[str, list[str]]:
    mined = mine_pairs(pairs, model, rules, store=store, **other)
    names = pairs.corpus["text"][:]
    rows = zip(QUERIES, mined.negatives, strict=True)
    return {query: [names[place] for place in places] for query, places in rows if len(places)}


@pytest.mark.parametrize(
    ("rules", "reranker"),
    [*((rules, None) for rules in BY_VECTORS), *((rules, Overlap()) for rules in BY_RERANKER)],
)
def test_the_negatives_are_the_librarys(
    rules: dict[str, Any],
    reranker: Overlap | None,
    pairs: Pairs,
    model: Any,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Several blocks and chunks.
    monkeypatch.setattr(nearest, "_QUERIES", 8)
    monkeypatch.setattr(mining, "CHUNK_SIZE", 32)
    ours = mined_by_us(pairs, wrapped(model), MiningRules(**rules), store, reranker=reranker)
    assert ours == mined_by_library(model, dict(rules), reranker)
    assert ours


def test_vectors_are_taken_from_the_store(
    pairs: Pairs, model: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = mined_by_us(pairs, wrapped(model), MiningRules(), store)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "encode", None)
        assert mined_by_us(pairs, wrapped(model), MiningRules(), store) == first


def test_what_is_excluded_leaves_before_the_cut(pairs: Pairs, model: Any, store: Path) -> None:
    encoder, rules = wrapped(model), MiningRules(negatives=2, range_max=2)
    plain = mine_pairs(pairs, encoder, rules, store=store)
    more = mine_pairs(pairs, encoder, MiningRules(negatives=4), store=store)
    for excluded, places in zip(pairs.excluded, plain.negatives, strict=True):
        excluded += places.tolist()
    left = mine_pairs(pairs, encoder, rules, store=store)
    # The window is filled up with what comes next, also for rows that share a query.
    assert all(len(places) == 2 for places in left.negatives)
    assert [list(places) for places in left.negatives] == [list(places[2:]) for places in more.negatives]


def test_each_instruction_has_its_own_vectors(pairs: Pairs, model: Any, store: Path) -> None:
    from reasonembed_mteb.models.instructions import PromptRule
    from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder

    encoder = ProtocolEncoder(model, prompt_rule=PromptRule(template="{instruction}: "))
    plain = mine_pairs(pairs, encoder, MiningRules(), store=store)
    for number, row in enumerate(pairs.rows):
        row["prompt"] = "Given a biology post" if number % 2 else "Why"
    asked = mine_pairs(pairs, encoder, MiningRules(), store=store)
    alone = []
    for number, row in enumerate(pairs.rows):
        row["prompt"] = "Given a biology post"
        if number % 2:
            alone.append(number)
    same = mine_pairs(pairs, encoder, MiningRules(), store=store)
    scores = [[one.tolist() for one in found.positive_scores] for found in (plain, asked, same)]
    assert all(scores[1][number] == scores[2][number] for number in alone)
    assert not any(scores[1][number] == scores[2][number] for number in range(0, 20, 2))
    assert not any(scores[0][number] == scores[2][number] for number in range(20))


def test_pairs_without_a_score_are_no_negatives(pairs: Pairs, model: Any, store: Path) -> None:
    class Refusing(Overlap):
        def score(self, pairs: Sequence[tuple[str, str]]) -> Any:
            """Refuse some documents."""
            scores = super().score(pairs)
            scores[[" 1" in document for _, document in pairs]] = np.nan
            return scores

    rules = MiningRules(negatives=70, range_max=80, min_score=0.0)
    mined = mine_pairs(pairs, wrapped(model), rules, store=store, reranker=Refusing())
    texts_of = pairs.corpus["text"][:]
    found = {texts_of[place] for places in mined.negatives for place in places}
    assert found
    assert not [text for text in found if " 1" in text]
    assert mined.counts["candidates removed: no score"] > 0


def test_what_cannot_be_mined_is_refused(pairs: Pairs, model: Any, store: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="the reranker would remove nothing"):
        mine_pairs(pairs, wrapped(model), MiningRules(), store=store, reranker=Overlap())
    import mteb

    with pytest.raises(ReasonEmbedError, match="gives no dense vector a text"):
        mine_pairs(pairs, mteb.get_model("mteb/baseline-bm25s"), MiningRules(), store=store)


def test_bm25_finds_what_brute_force_finds(tmp_path: Path) -> None:
    bm25s = pytest.importorskip("bm25s")
    draw = random.Random(5)
    words = [f"word{number}" for number in range(40)]
    texts = [" ".join(draw.choices(words, k=12)) for _ in range(120)]
    rows = [{"query": " ".join(text.split()[:4]), "pos": [text]} for text in texts[:20]]
    for name, lines in (
        ("pairs", rows),
        ("corpus", [{"_id": f"d{i}", "text": t} for i, t in enumerate(texts)]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = read_pairs(str(tmp_path / "pairs.jsonl"), corpus=str(tmp_path / "corpus.jsonl"))
    rules = MiningRules(negatives=5, relative_margin=0.1)
    found = mine_pairs(pairs, LexicalModel(), rules)
    index = bm25s.BM25(k1=1.5, b=0.75, delta=0.5, method="lucene")
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    for place, row in enumerate(rows):
        scores = index.get_scores(row["query"].split())
        candidates = np.argsort(-scores, kind="stable")[:52]
        kept = [c for c in candidates if c != place and 0 < scores[c] <= scores[place] * 0.9][:5]
        assert sorted(scores[found.negatives[place]]) == pytest.approx(sorted(scores[kept]))
        assert found.positive_scores[place] == pytest.approx([scores[place]])
    assert sum(map(len, found.negatives)) > 60
    out = int(found.negatives[0][0])
    rows[0]["excluded_ids"] = [f"d{out}"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    again = read_pairs(str(tmp_path / "pairs.jsonl"), corpus=str(tmp_path / "corpus.jsonl"))
    left = mine_pairs(again, LexicalModel(), rules).negatives
    assert out not in left[0]
    assert [one.tolist() for one in left[1:]] == [one.tolist() for one in found.negatives[1:]]
