"""Where the data of a table lie: local copies and downloads, whole and damaged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from bright_data import example, set_examples, write

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval import layouts as data
from reasonembed_mteb.retrieval import rows as tables
from reasonembed_mteb.retrieval import sources

if TYPE_CHECKING:
    from pathlib import Path


ROW = tables.find("ReasonEmbedBrightBiology")


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


@pytest.mark.parametrize(
    ("error", "said"), [(OSError("No way there.\nMore."), "No way there"), (OSError(), "OSError")]
)
def test_what_the_hub_says_is_one_clause(monkeypatch: pytest.MonkeyPatch, error: OSError, said: str) -> None:
    def refused(source: sources.Source) -> None:
        raise error

    monkeypatch.delenv("REASONEMBED_BRIGHT_PATH", raising=False)
    monkeypatch.setattr(sources, "_from_hub", refused)
    with pytest.raises(DataError, match=rf"at \w+: {said}; go online and run `reasonembed download"):
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
