"""Inputs: every row in one slice and one block, whatever the cuts, and bad rows named."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonembed_mteb.distributed import inputs
from reasonembed_mteb.distributed.inputs import blocks, check_ids, find_slices, read_slice, scan_slice
from reasonembed_mteb.errors import DataError
from reasonembed_mteb.store.places import StoreError

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    {"_id": f"d{n}", "title": "Té" if n % 3 == 0 else "", "text": f"text {n} " + "é" * (n % 7)}
    for n in range(40)
]
EXPECTED = [(row["_id"], f"{row['title']} {row['text']}".strip()) for row in ROWS]


def write_lines(file: Path, rows: list[dict[str, Any]], *, crlf: bool = False) -> Path:
    end = "\r\n" if crlf else "\n"
    content = end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def read_all(source: Path | str, **sizes: int) -> list[tuple[str, str]]:
    return [(one.id, one.text) for part in find_slices(str(source), **sizes) for one in read_slice(part)]


@pytest.mark.parametrize("size", [1, 7, 64, 101, 5000])
def test_lines_are_in_one_slice_each(tmp_path: Path, size: int) -> None:
    file = write_lines(tmp_path / "a.jsonl", ROWS, crlf=size == 7)
    parts = find_slices(str(file), slice_bytes=size)
    assert len(parts) == -(-file.stat().st_size // size)
    assert read_all(file, slice_bytes=size) == EXPECTED


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(row).encode() for row in ROWS) + b"\n\n")
    assert read_all(file, slice_bytes=50) == EXPECTED


def test_parquet_is_cut_at_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=8)
    found = find_slices(str(tmp_path), slice_rows=16)
    assert [(one.start, one.stop) for one in found] == [(0, 2), (2, 4), (4, 5)]
    assert read_all(tmp_path, slice_rows=16) == EXPECTED


def test_other_names_of_columns_and_numbers_for_ids(tmp_path: Path) -> None:
    table = pa.table({"docno": [1, 2], "contents": ["a", "b"], "more": [0.5, 0.5]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet") == [("1", "a"), ("2", "b")]


def test_a_folder_of_files_a_pattern_and_gzip(tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.jsonl", ROWS[:10])
    write_lines(tmp_path / "in" / "b.jsonl.gz", ROWS[10:30])
    write_lines(tmp_path / "in" / "deep" / "c.jsonl", ROWS[30:])
    (tmp_path / "in" / "notes.txt").write_text("no data")
    assert read_all(tmp_path / "in") == EXPECTED
    assert read_all(tmp_path / "in" / "*.jsonl") == EXPECTED[:10]


def test_what_is_hidden_is_left_out_and_a_hidden_folder_may_be_meant(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "data"
    (folder / ".old").mkdir(parents=True)
    (folder / "part.jsonl").mkdir()
    write_lines(folder / "part.jsonl" / "0.jsonl", ROWS[:5])
    for name in (".a.jsonl", ".old/a.jsonl", "part.jsonl/.0.jsonl"):
        write_lines(folder / name, ROWS[5:])
    named = folder / "part.jsonl" / "0.jsonl"
    # A folder may be named as other tools name a file of many parts.
    for source in (folder, f"{folder}/", folder / "*.jsonl", folder / "part.jsonl", named):
        assert [one.url for one in find_slices(str(source))] == [str(named)]


def test_of_a_beir_folder_the_corpus_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl", ROWS)
    write_lines(tmp_path / "corpus.jsonl.gz", ROWS)
    write_lines(tmp_path / "queries.jsonl", [{"_id": "q", "text": "?"}])
    (tmp_path / "excluded.tsv").write_text("query-id\tcorpus-id\nq\td1\n")
    assert read_all(tmp_path) == EXPECTED
    assert inputs.read_queries(str(tmp_path)) == ({"q": "?"}, {"q": ["d1"]})


def test_blocks_hold_every_document_once_under_the_budget() -> None:
    documents = [inputs.InputText(f"d{n}", "x" * (4 * n)) for n in range(50)]
    found = list(blocks(documents, 100, ""))
    assert [one for block in found for one in block.documents] == documents
    for block in found:
        assert len(block.documents) == 1 or sum(1 + len(one.text) // 4 for one in block.documents) <= 100
    # Longer than the budget: alone.
    assert [len(block.documents) for block in blocks([inputs.InputText("d", "x" * 4000)] * 2, 100, "")] == [
        1,
        1,
    ]


def test_a_blocks_key_says_what_is_in_it_and_how_it_is_encoded() -> None:
    def key(pairs: list[tuple[str, str]], salt: str = "") -> str:
        (block,) = blocks([inputs.InputText(*pair) for pair in pairs], 1000, salt)
        return block.key

    keys = [
        key([("a", "b")]),
        key([("ab", "")]),
        key([("a", "b")], "s"),
        key([("a", "c")]),
        key([("a", "b")] * 2),
    ]
    assert len(set(keys)) == 5
    assert key([("a", "b")]) == keys[0]


def scans_of(source: Path, **sizes: int) -> tuple[list[inputs.Slice], list[inputs.Scan]]:
    parts = find_slices(str(source), **sizes)
    return parts, [scan_slice(place, one, 50, "") for place, one in enumerate(parts)]


def test_a_scan_finds_what_reading_finds(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", ROWS)
    parts, scans = scans_of(file, slice_bytes=500)
    found = [block for one in parts for block in blocks(read_slice(one), 50, "")]
    assert [key for one in scans for key in one.keys] == [block.key for block in found]
    assert [rows for one in scans for rows in one.rows] == [len(block.documents) for block in found]
    assert sum(len(np.unique(one.ids)) for one in scans) == len(ROWS)
    check_ids(parts, scans)


def test_an_id_that_comes_twice_is_named_with_both_rows(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ROWS)
    write_lines(tmp_path / "b.jsonl", [{"_id": "x", "text": "y"}, {"_id": "d17", "text": "other"}])
    said = r"'d17' comes twice, in .*a\.jsonl, line 18 and in .*b\.jsonl, line 2;"
    with pytest.raises(DataError, match=said):
        check_ids(*scans_of(tmp_path, slice_bytes=300))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"text": "no id"}', "line 12: '_id' is missing"),
        ('{"_id": "d", "title": ""}', "line 12: the document 'd' has no text"),
        ('{"_id": "d", "text": null}', "line 12: the document 'd' has no text"),
        ('{"_id": "d", "text": ["a"]}', "line 12: 'text' is list, not text"),
        ('{"_id": true, "text": "a"}', "line 12: '_id' is True"),
        ("[1]", "line 12 holds list"),
        ("{broken", "line 12 is not JSON"),
        ("[" * 100_000, "line 12 is not JSON"),
        ("ÿ", "line 12 is not JSON"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_row_is_named(tmp_path: Path, row: str, said: str, packed: bool) -> None:
    lines = [json.dumps(one) for one in ROWS[:11]] + [row] + [json.dumps(one) for one in ROWS[11:]]
    file = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    content = "\n".join(lines).encode()
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError) as error:
        scans_of(file, slice_bytes=100)
    assert said in str(error.value)
    assert str(file) in str(error.value)


def test_an_empty_text_is_a_text(tmp_path: Path) -> None:
    assert read_all(write_lines(tmp_path / "a.jsonl", [{"_id": "d", "text": ""}])) == [("d", "")]


def test_bad_rows_of_parquet_are_named(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": ["a", "b", "c"], "text": ["x", None, "z"]}), tmp_path / "a.parquet", row_group_size=1
    )
    with pytest.raises(DataError, match=r"a\.parquet, row 2: the document 'b' has no text"):
        read_all(tmp_path, slice_rows=1)
    pq.write_table(pa.table({"name": ["a"], "text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 1: '_id' is missing \(keys: text\)"):
        read_all(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"as Parquet"):
        read_all(tmp_path)


def test_damage_within_a_file_is_named(tmp_path: Path) -> None:
    rows = [{"id": f"d{n}", "text": f"text {n * n}"} for n in range(500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    # The end, which is read first, is as it was.
    (tmp_path / "a.parquet").write_bytes(whole[:4] + bytes(60) + whole[64:])
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet as Parquet"):
        read_all(tmp_path)
    (tmp_path / "a.parquet").unlink()
    packed = gzip.compress("".join(json.dumps(one) + "\n" for one in rows).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:200] + b"\xff" * 200 + packed[400:])
    with pytest.raises(DataError, match="damaged gzip"):
        read_all(tmp_path)


def test_inputs_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="holds no texts: give Parquet"):
        find_slices(str(tmp_path))
    with pytest.raises(StoreError, match="cannot read"):
        find_slices(str(tmp_path / "missing.jsonl"))
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(DataError, match="damaged gzip"):
        read_all(tmp_path)


def test_queries_that_cannot_be_asked_are_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "q.jsonl", [{"_id": "q", "text": "a"}, {"_id": "q", "text": "b"}])
    with pytest.raises(DataError, match="query id 'q' comes twice"):
        inputs.read_queries(str(file))
    file.write_text("\n")
    with pytest.raises(DataError, match="holds no query"):
        inputs.read_queries(str(file))
