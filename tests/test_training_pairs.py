"""Pairs from every source: rows, BEIR folders, BRIGHT's layout, saved data sets."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from datasets import Dataset, DatasetDict

from reasonembed_mteb.errors import DataError, UnknownNameError
from reasonembed_mteb.training.pairs import read_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reasonembed_mteb.training.pairs import Pairs

ROWS: list[dict[str, Any]] = [
    {"query": "a?", "pos": ["one", "two"], "reasoning_query": "a? since", "source": {"page": 1}},
    {"anchor": "b?", "positive": "three", "negative_1": "one", "prompt": "Find"},
    {"question": "a?", "positive_passages": [{"title": "The", "text": "two"}], "neg": ["five", "three"]},
]


def write(file: Path, rows: Sequence[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def good(pairs: Pairs) -> list[list[str]]:
    return [pairs.corpus[places]["text"] for places in pairs.positives]


def out(pairs: Pairs) -> list[list[str]]:
    return [pairs.corpus[places]["text"] if places else [] for places in pairs.excluded]


def test_rows_in_any_shape_with_everything_they_say(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path / "p.jsonl", ROWS), instruction="Retrieve")
    assert pairs.corpus["text"][:] == ["one", "two", "three", "The\ntwo"]
    assert good(pairs) == [["one", "two"], ["three"], ["The\ntwo"]]
    # The second row's own negative is the first row's positive; the third's is the second's.
    assert out(pairs) == [[], ["one"], ["three"]]
    assert [row["prompt"] for row in pairs.rows] == ["Retrieve", "Find", "Retrieve"]
    assert [row["neg"] for row in pairs.rows] == [[], ["one"], ["five", "three"]]
    assert pairs.rows[0] | {"prompt": ""} == ROWS[0] | {"prompt": "", "neg": []}
    assert not pairs.named


def test_what_is_said_of_texts_is_kept_for_those_that_are_kept(tmp_path: Path) -> None:
    row = {
        "query": "a?",
        "pos": ["one", " ", "two"],
        "neg": ["two", "", "three"],
        "pos_scores": [5, 4, 3],
        "pos_ids": ["d1", "d2", "d3"],
        "neg_scores": [0.5, 0.4, 0.3],
        "neg_labels": [1, 2, 3],
        "pos_note": [1, 2],
        "pos_count": 3,
    }
    pairs = read_pairs(write(tmp_path / "p.jsonl", [row]))
    (kept,) = pairs.rows
    assert kept == {
        "query": "a?",
        "pos": ["one", "two"],
        "neg": ["three"],
        "pos_scores": [5, 3],
        "pos_ids": ["d1", "d3"],
        "neg_scores": [0.3],
        "neg_labels": [3],
        "pos_note": [1, 2],
        "pos_count": 3,
    }
    # As a file it can be read again.
    again = read_pairs(write(tmp_path / "again.jsonl", pairs.rows))
    assert again.rows == pairs.rows


@pytest.mark.parametrize("packed", [False, True])
def test_rows_with_a_corpus(tmp_path: Path, packed: bool) -> None:
    rows = [{"query": "a?", "pos": ["x  y", "new"], "excluded_ids": ["d2", "gone"], "neg": ["w"]}]
    documents = [
        {"_id": "d1", "title": "x", "text": "y"},
        {"_id": "d2", "text": "z"},
        {"_id": "d3", "text": "x y"},
        {"_id": "positive-0", "text": "w"},
    ]
    file = write(tmp_path / "corpus.jsonl", documents)
    if packed:
        file = tmp_path / "corpus.jsonl.gz"
        file.write_bytes(gzip.compress((tmp_path / "corpus.jsonl").read_bytes()))
    pairs = read_pairs(write(tmp_path / "p.jsonl", rows), corpus=file)
    # Equal texts once, space apart; what is missing is added under an id that nobody has.
    assert pairs.corpus["text"][:] == ["x y", "z", "w", "new"]
    assert pairs.corpus["id"][:] == ["d1", "d2", "positive-0", "positive+-0"]
    assert good(pairs) == [["x y", "new"]]
    assert out(pairs) == [["z", "w"]]
    assert pairs.named


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    write(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": f"text {n // 2}"} for n in range(8)])
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}"} for n in range(3)])
    (folder / "qrels").mkdir()
    labels = "query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td1\t3\nq0\td6\t2\nq1\td2\t0\nq2\td4\t1\n"
    (folder / "qrels" / "train.tsv").write_text(labels, encoding="utf-8")
    (folder / "excluded.tsv").write_text("query-id\tcorpus-id\nq0\td3\n", encoding="utf-8")
    return folder


def test_a_beir_folder_with_its_labels(beir: Path) -> None:
    pairs = read_pairs(beir, instruction="Find")
    first, second = pairs.rows
    # d0 and d1 are one text, with the higher label of the two; q1 has no positive.
    assert first == {
        "query_id": "q0",
        "query": "query 0",
        "pos": ["text 0", "text 3"],
        "pos_ids": ["d0", "d6"],
        "pos_labels": [3, 2],
        "neg": [],
        "prompt": "Find",
    }
    assert second["query_id"] == "q2"
    assert out(pairs) == [["text 1"], []]
    assert sum(pairs.counts.values()) == 1
    assert pairs.named
    with pytest.raises(
        DataError, match="no labels of the split 'test'; it has train: choose one with --split"
    ):
        read_pairs(beir, split="test")
    with pytest.raises(DataError, match="has a corpus of its own"):
        read_pairs(beir, corpus=beir)


def test_a_beir_folder_as_the_corpus_of_rows(beir: Path, tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path / "p.jsonl", [{"query": "q", "pos": ["text 2"]}]), corpus=beir)
    assert pairs.corpus["id"][:] == ["d0", "d2", "d4", "d6"]


def test_brights_layout(tmp_path: Path) -> None:
    folder = tmp_path / "bright"
    for name, ids in (("biology", "ab"), ("economics", "cd")):
        documents = [{"id": one, "content": f"text {one}"} for one in ids]
        write(folder / "documents" / f"{name}.jsonl", documents)
        row = {"id": "0", "query": "why?", "gold_ids": [ids[0]], "excluded_ids": [ids[1]]}
        write(folder / "examples" / f"{name}.jsonl", [row])
    pairs = read_pairs(folder, subset="economics")
    assert good(pairs) == [["text c"]]
    assert out(pairs) == [["text d"]]
    assert pairs.rows[0]["prompt"].startswith("Given")
    with pytest.raises(DataError, match="choose one with --subset"):
        read_pairs(folder)
    rows = write(tmp_path / "p.jsonl", [{"query": "q", "pos": ["text a"]}])
    assert len(read_pairs(rows, corpus=folder, subset="biology").corpus) == 2


def test_a_saved_data_set_and_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    data = Dataset.from_list([{"query": "a?", "positive": "one"}, {"query": "b?", "positive": "two"}])
    data.save_to_disk(str(tmp_path / "saved"))
    assert good(read_pairs(tmp_path / "saved")) == [["one"], ["two"]]
    DatasetDict({"test": data}).save_to_disk(str(tmp_path / "split"))
    assert good(read_pairs(tmp_path / "split", split="test")) == [["one"], ["two"]]
    with pytest.raises(DataError, match="has no split 'train'; it has test: choose one with --split"):
        read_pairs(tmp_path / "split")
    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or data)
    assert good(read_pairs("org/pairs", subset="small", split="dev")) == [["one"], ["two"]]
    assert asked == [(("org/pairs", "small"), {"split": "dev"})]
    for name in ("xlangai/BRIGHT", "mteb/BRIGHT"):
        with pytest.raises(DataError, match="several subsets; choose one with --subset: biology"):
            read_pairs(name)
    with pytest.raises(UnknownNameError, match="did you mean 'biology'"):
        read_pairs("xlangai/BRIGHT", subset="biologie")


def test_a_task_of_a_table() -> None:
    from reasonembed_mteb.retrieval.rows import load_rows

    row = next(row for row in load_rows() if row.kind == "mini")
    pairs = read_pairs(row.name)
    assert pairs.source["name"] == row.name
    assert pairs.source["revision"]
    assert all(one["prompt"] == row.instruction for one in pairs.rows)
    assert good(pairs) == [one["pos"] for one in pairs.rows]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"query": "a?"}], "p.jsonl, line 1: no positives"),
        ([{"query": "a?", "pos": ["x"]}, ["no"]], "line 2: a row must be an object"),
        ([{"query": "a?", "pos": ["x"], "excluded_ids": "d12"}], "line 1: excluded_ids must be a list"),
        ([{"query": "a?", "pos": ["x"], "excluded_ids": 5}], "line 1: excluded_ids must be a list of ids"),
        ([{"query": "a?", "pos": ["x"], "excluded_ids": [["d1"]]}], "excluded_ids must be a list of ids"),
        ([{"query": " ", "pos": ["x"]}], "no pair of a query and a positive was read"),
    ],
)
def test_rows_that_cannot_be_used(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(write(tmp_path / "p.jsonl", rows))
    with pytest.raises(DataError, match="is no corpus"):
        read_pairs(write(tmp_path / "q.jsonl", ROWS), corpus=tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="there is no"):
        read_pairs(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="/dev/null is neither a file nor a folder: write the rows to a file"):
        read_pairs("/dev/null")
