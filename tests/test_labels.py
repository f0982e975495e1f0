"""Labels and exclusions of tasks in BRIGHT's and R2MED's layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from bright_data import DOCUMENTS, example, set_examples, write

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval import layouts as data
from reasonembed_mteb.retrieval import rows as tables

if TYPE_CHECKING:
    from pathlib import Path

ROW = tables.find("ReasonEmbedBrightBiology")


def test_shape_is_mtebs(bright: Path) -> None:
    split = data.load_split(ROW)
    assert split["corpus"].column_names == ["id", "text"]
    assert split["corpus"]["id"][:] == list(DOCUMENTS)
    assert split["corpus"]["text"][2] == ""
    assert split["queries"][0] == {"id": "q1", "text": "why?"}
    assert split["relevant_docs"] == {"q1": {"d2": 1}}
    assert split["top_ranked"] is None
    assert split["excluded_ids"] == {}


@pytest.mark.parametrize(
    ("spelt", "expected"), [(["N/A"], {}), ([], {}), (["d 1", "d 1", "d4"], {"q1": ["d 1", "d4"]})]
)
def test_exclusions_in_every_spelling(bright: Path, spelt: list[str], expected: dict[str, list[str]]) -> None:
    # A second query keeps the column's type where the first one's list is empty.
    set_examples(bright, example(excluded_ids=spelt), example(id="q2", excluded_ids=["N/A"]))
    assert data.load_split(ROW)["excluded_ids"] == expected


def test_unknown_exclusions_are_counted(bright: Path, caplog: pytest.LogCaptureFixture) -> None:
    set_examples(bright, example(excluded_ids=["d4", "nowhere", "nor here"]))
    assert data.load_split(ROW)["excluded_ids"] == {"q1": ["d4"]}
    assert "2 excluded document ids are not in the corpus" in caplog.text


def test_duplicate_gold_counts_once(bright: Path) -> None:
    set_examples(bright, example(gold_ids=["d2", "d2", "d4"]))
    assert data.load_split(ROW)["relevant_docs"] == {"q1": {"d2": 1, "d4": 1}}


def test_excluded_gold_does_not_enter_recall(bright: Path, caplog: pytest.LogCaptureFixture) -> None:
    set_examples(bright, example(gold_ids=["d2", "d4"], excluded_ids=["d4"]))
    assert data.load_split(ROW)["relevant_docs"] == {"q1": {"d2": 1}}
    assert "1 documents are both relevant and excluded" in caplog.text


def test_little_missing_gold_is_warned_and_kept(bright: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = [{"id": f"d{i}", "content": "x"} for i in range(40)]
    write(bright, "documents/biology-00000-of-00001.parquet", documents)
    set_examples(bright, example(gold_ids=[f"d{i}" for i in range(38)] + ["lost one"]))
    split = data.load_split(ROW)
    assert split["relevant_docs"]["q1"]["lost one"] == 1
    assert "1 relevant documents are not in the corpus and cannot be found: lost one" in caplog.text


def test_much_missing_gold_is_an_error(bright: Path) -> None:
    set_examples(bright, example(gold_ids=["d2", "lost one"]))
    with pytest.raises(DataError, match=r"1 of 2 relevant documents .*\(lost one\).*5% or more"):
        data.load_split(ROW)


def test_the_last_of_repeated_ids_wins(bright: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"id": i, "content": c} for i, c in [("d2", "old"), ("d1", "a"), ("d2", "new")]]
    write(bright, "documents/biology-00000-of-00001.parquet", rows)
    corpus = data.load_split(ROW)["corpus"]
    assert corpus[:] == {"id": ["d2", "d1"], "text": ["new", "a"]}
    assert "1 documents repeat the id of another; the last one counts" in caplog.text


def test_empty_queries_are_named(bright: Path, caplog: pytest.LogCaptureFixture) -> None:
    set_examples(bright, example(), example(id="q9", query=" "))
    assert len(data.load_split(ROW)["queries"]) == 2
    assert "1 queries are empty: q9" in caplog.text
