"""Rows on the disk: whole or not at all, made again only when their causes change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.synthesis.shards import Shards, read_rows, shard_count

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    {"id": 1, "tokens": [3, 2]},
    {"id": 2, "dropped": "why"},
    {"id": 3, "text": "a\u2028b", "tokens": [1, 1]},
]


def made(folder: Path, fingerprint: str = "f") -> Shards:
    shards = Shards(folder, fingerprint)
    shards.begin()
    shards.write(0, ROWS[:2])
    shards.write(1, ROWS[2:])
    shards.finish(2, more="x")
    return shards


def test_a_finished_folder_counts_its_rows(tmp_path: Path) -> None:
    note = made(tmp_path / "s").note
    assert note is not None
    assert (note["rows"], note["kept"], note["dropped"], note["tokens"]) == (3, 2, {"why": 1}, [4, 3])
    assert list(made(tmp_path / "s").rows()) == [ROWS[0], ROWS[2]]
    assert list(made(tmp_path / "s").rows(dropped=True)) == ROWS


def test_another_cause_makes_it_unfinished(tmp_path: Path) -> None:
    made(tmp_path / "s")
    other = Shards(tmp_path / "s", "other")
    assert other.note is None
    with pytest.raises(DataError, match="is not finished"):
        list(other.rows())
    other.begin()
    assert not other.has(0)


def test_what_is_whole_stays_when_a_run_goes_on(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "s", "f")
    shards.begin()
    shards.write(1, ROWS)
    (tmp_path / "s" / ".00000.jsonl.77.part").write_text("half", encoding="utf-8")
    again = Shards(tmp_path / "s", "f")
    again.begin()
    assert again.note is None
    assert (again.has(0), again.has(1)) == (False, True)
    assert not list((tmp_path / "s").glob("*.part"))
    assert not list((tmp_path / "s").glob(".*.part"))


@pytest.mark.parametrize("harm", ["cut", "gone", "note"])
def test_a_harmed_folder_is_unfinished(harm: str, tmp_path: Path) -> None:
    shards = made(tmp_path / "s")
    if harm == "cut":
        shards.file(1).write_bytes(shards.file(1).read_bytes()[:-3])
    elif harm == "gone":
        shards.file(0).unlink()
    else:
        (tmp_path / "s" / "done.json").write_text('{"finger', encoding="utf-8")
    assert shards.note is None


def test_the_bytes_depend_on_nothing_else(tmp_path: Path) -> None:
    folders = [made(tmp_path / name).folder for name in ("a", "b")]
    contents = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]


def test_files_with_failed_requests_are_forgotten(tmp_path: Path) -> None:
    shards = made(tmp_path / "s")
    shards.forget(frozenset({"timeout"}))
    assert shards.note is not None
    shards.forget(frozenset({"why"}))
    assert shards.note is None
    assert (shards.has(0), shards.has(1)) == (False, True)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"a": 1}) + '\n{"b', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl:2 is not JSON"):
        list(read_rows(file))


def test_counts() -> None:
    assert [shard_count(rows, 4) for rows in (0, 1, 4, 5)] == [0, 1, 1, 2]
