"""Data sets of the hub: which names are, what is fetched, which folder is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from training_data import make_rows, write_rows

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.training.data import SUFFIXES, load_training_data, source_files, subset_name
from reasonembed_mteb.training.hub import fetch_folder, hub_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("org/name", ("org/name", "")),
        ("org/name/a folder", ("org/name", "a folder")),
        ("hf://datasets/org/name/x", ("org/name", "x")),
        # What pathlib makes of it.
        ("hf:/datasets/org/name", ("org/name", "")),
        ("./org/name", None),
        ("/org/name", None),
        ("~/org/name", None),
        ("rows/biology.jsonl", None),
        ("name", None),
        ("here/name", None),
    ],
)
def test_names_of_the_hub(
    source: str, named: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub_name(source, SUFFIXES) == named


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the hub: `org/name` lies in the folder."""
    import huggingface_hub

    def download(name: str, *, repo_type: str, allow_patterns: Sequence[str]) -> str:
        assert (name, repo_type) == ("org/name", "dataset")
        assert all(pattern.endswith(SUFFIXES) for pattern in allow_patterns)
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_the_only_folder_is_read(hub: Path, tmp_path: Path) -> None:
    write_rows(hub / "rows-0928" / "biology-formatted.jsonl", make_rows(3))
    data = load_training_data(["org/name"], cache=tmp_path / "cache")
    assert {name: len(rows) for name, rows in data.subsets.items()} == {"biology": 3}
    assert load_training_data(["org/name/rows-0928"], cache=tmp_path / "cache").key == data.key


def test_several_folders_are_named(hub: Path) -> None:
    for name in ("a", "b"):
        write_rows(hub / name / "x.jsonl", make_rows(1))
    with pytest.raises(DataError, match="2 folders; name one: org/name/a, org/name/b"):
        fetch_folder("org/name", "", SUFFIXES)


def test_a_data_set_of_other_files_is_refused(hub: Path) -> None:
    hub.mkdir()
    (hub / "rows.csv").write_text("query\n")
    with pytest.raises(DataError, match=r"org/name holds no \.jsonl, \.jsonl\.gz, \.parquet file"):
        fetch_folder("org/name", "", SUFFIXES)


def test_what_cannot_be_fetched_says_how(tmp_path: Path) -> None:
    # The tests run offline.
    with pytest.raises(DataError, match="hf download nobody/nothing --repo-type dataset") as caught:
        load_training_data(["nobody/nothing"], cache=tmp_path)
    assert "\n" not in str(caught.value)


def test_converted_files_are_subsets_by_their_folder(tmp_path: Path) -> None:
    names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"]
    for name in names:
        (tmp_path / "math").mkdir(exist_ok=True)
        (tmp_path / "math" / name).write_bytes(b"")
    found = source_files(tmp_path / "math")
    assert [file.name for file in found] == names[:2]
    assert {subset_name(file) for file in found} == {"math"}
