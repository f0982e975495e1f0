"""Data in BRIGHT's and R2MED's layouts, whole and damaged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval import layouts as data
from reasonembed_mteb.retrieval import rows as tables
from reasonembed_mteb.retrieval import sources

if TYPE_CHECKING:
    from pathlib import Path

ROW = tables.find("ReasonEmbedBrightBiology")
DOCUMENTS = {"d 1": "one", "d2": "two", "d3": "", "d4": "four"}


def example(**changes: Any) -> dict[str, Any]:
    """Make one row of ``examples`` with every column that BRIGHT has."""
    row: dict[str, Any] = {
        "id": "q1",
        "query": "why?",
        "reasoning": "because",
        "excluded_ids": ["N/A"],
        "gold_ids": ["d2"],
        "gold_ids_long": ["p1"],
        "gold_answer": "so",
    }
    return row | changes


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows as one parquet file."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.fixture
def bright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a local copy with one subset and one query."""
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(tmp_path))
    rows = [{"id": key, "content": text} for key, text in DOCUMENTS.items()]
    write(tmp_path, "documents/biology-00000-of-00001.parquet", rows)
    write(tmp_path, "examples/biology-00000-of-00001.parquet", [example()])
    return tmp_path


def set_examples(folder: Path, *examples: dict[str, Any]) -> None:
    """Replace the queries of the local copy."""
    write(folder, "examples/biology-00000-of-00001.parquet", list(examples))


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


def test_a_missing_subset_names_the_file(bright: Path) -> None:
    with pytest.raises(DataError, match=r"no documents/pony-\*\.parquet"):
        data.load_split(tables.find("ReasonEmbedBrightPony"))
    with pytest.raises(DataError, match=r"no gpt4_reason/biology-\*\.parquet"):
        data.load_split(tables.find("ReasonEmbedBrightBiologyGpt4Reason"))


def test_a_truncated_file_is_named(bright: Path) -> None:
    file = bright / "documents/biology-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"biology-00000-of-00001\.parquet is not a whole parquet file"):
        data.load_split(ROW)


def test_a_damaged_page_is_named(bright: Path) -> None:
    noise = [{"id": f"d{i}", "content": str(hash((i, "x"))) * 40} for i in range(2000)]
    file = write(bright, "documents/biology-00000-of-00001.parquet", noise)
    content = bytearray(file.read_bytes())
    content[4:4000] = b"\x00" * 3996
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"biology-00000-of-00001\.parquet cannot be read"):
        data.load_split(ROW)


def test_a_missing_column_is_named(bright: Path) -> None:
    row = example()
    del row["excluded_ids"]
    set_examples(bright, row)
    with pytest.raises(DataError, match="has no column excluded_ids"):
        data.load_split(ROW)


def test_a_missing_folder_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="REASONEMBED_BRIGHT_PATH"):
        data.load_split(ROW)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_r2med_from_its_parent_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setenv("REASONEMBED_R2MED_PATH", str(tmp_path))
    content: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"id": "p1", "text": "t"}, {"id": "p2", "text": "u"}],
        "query": [{"id": "q1", "text": "case"}],
        "qrels": [{"q_id": "q1", "p_id": "p2", "score": 1}],
    }
    for config, rows in content.items():
        if suffix == "parquet":
            write(tmp_path, f"PMC-Treatment/{config}/{config}-00000-of-00001.parquet", rows)
        else:
            file = tmp_path / "PMC-Treatment" / f"{config}.jsonl"
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = data.load_split(tables.find("ReasonEmbedR2MEDPMCTreatment"))
    assert split["relevant_docs"] == {"q1": {"p2": 1}}
    assert split["corpus"][1] == {"id": "p2", "text": "u"}


def test_a_local_copy_is_known_by_its_content(bright: Path) -> None:
    before = sources.data_revision(ROW)
    assert before.startswith("xxh3:")
    set_examples(bright, example(query="another"))
    assert sources.data_revision(ROW) != before


def test_a_downloaded_copy_keeps_its_commit(bright: Path) -> None:
    commit = "c26703e6600d97c579ee2985f16cf307db13ed85"
    for config in ("documents", "examples"):
        note = bright / f".cache/huggingface/download/{config}/biology-00000-of-00001.parquet.metadata"
        note.parent.mkdir(parents=True)
        note.write_text(f"{commit}\netag\n1.0\n")
    assert sources.data_revision(ROW) == commit
