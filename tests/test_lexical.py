"""BM25 streamed is MTEB's BM25."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from reasonembed_mteb.retrieval.lexical import LexicalSearch, language_options

MINI = Path(__file__).resolve().parents[1] / "tasks" / "mini"


@pytest.fixture(scope="module")
def data() -> Any:
    from datasets import Dataset

    rows = [json.loads(line) for line in (MINI / "documents-biology.jsonl").read_text().splitlines()]
    rows.append({"id": "empty", "content": ""})
    return Dataset.from_dict({"id": [row["id"] for row in rows], "text": [row["content"] for row in rows]})


def test_scores_are_those_of_mteb(data: Any) -> None:
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_implementations.bm25 import BM25Search

    lines = (MINI / "examples-biology.jsonl").read_text().splitlines()
    # Words in other forms than in the corpus, words that it lacks, and none at all.
    queries = [json.loads(line)["query"] for line in lines] + ["giants walked", "xyzzy", ""]
    metadata = TaskMetadata(
        name="x",
        description="d",
        dataset={"path": "a/b", "revision": "1"},
        type="Retrieval",
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )
    shared = {"task_metadata": metadata, "hf_split": "s", "hf_subset": "default", "encode_kwargs": {}}
    theirs = BM25Search()
    theirs.index(data, **shared)
    asked = Dataset.from_dict({"id": [str(n) for n in range(len(queries))], "text": queries})
    expected = theirs.search(asked, top_k=10, **shared)
    ours = LexicalSearch(data["text"][:], pa.array(data["id"][:]), "eng-Latn")
    positions = {name: position for position, name in enumerate(data["id"][:])}
    found = ours.search(queries, 10)
    assert sum(map(len, found)) > 40
    for number, query in enumerate(queries):
        hits = {name: score for name, score in expected[str(number)].items() if score > 0}
        assert found[number] == pytest.approx(hits)
        for name, score in hits.items():
            assert ours.score(query, positions[name]) == pytest.approx(score)
    assert ours.score("xyzzy", 0) == 0.0
    assert found[-1] == found[-2] == {}


def test_other_languages_take_their_own_words() -> None:
    english, german = language_options("eng-Latn"), language_options("deu-Latn")
    assert (english["stopwords"], german["stopwords"]) == ("en", "de")
    assert german["stemmer"].stemWord("laufen") == "lauf"
    assert english["stemmer"].stemWord("running") == "run"
    # Nothing is known of this one.
    assert language_options("xxx-Latn") == {"stopwords": None, "stemmer": None}


def test_equal_scores_at_the_cut_go_by_id() -> None:
    # Many equal documents: which of them a partition puts first depends on the processor.
    names = [f"d{number:03}" for number in range(300)]
    texts = ["a heron by the river" if number % 2 else "another stone" for number in range(300)]
    (found,) = LexicalSearch(texts, pa.array(names)).search(["heron"], 5)
    assert list(found) == ["d299", "d297", "d295", "d293", "d291"]
    assert len(set(found.values())) == 1
