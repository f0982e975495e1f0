"""Training data: every shape, every kind of broken row, counts, and what is kept on disk."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from training_data import make_rows, write_folder, write_rows

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.training.data import (
    ReadOptions,
    describe_counts,
    from_datasets,
    load_training_data,
    read_file,
    subset_name,
)
from reasonembed_mteb.training.rows import BadRowError, parse_row

GOOD = {"query": "q", "pos": ["p"], "neg": ["n"], "reasoning_query": "r"}


def load(source: Path, tmp_path: Path, **options: Any) -> Any:
    needs = options.pop("needs_negatives", lambda _: True)
    return load_training_data(
        [source], cache=tmp_path / "cache", options=ReadOptions(**options), needs_negatives=needs
    )


def parsed(**fields: Any) -> Any:
    return parse_row({**GOOD, **fields}, Counter())


def test_a_folder_has_a_subset_a_file(tmp_path: Path) -> None:
    data = load(write_folder(tmp_path / "rows", biology=5, pony=3), tmp_path)
    assert {name: len(rows) for name, rows in data.subsets.items()} == {"biology": 5, "pony": 3}
    first = data.subsets["biology"][0]
    raw = make_rows(5)[0]
    assert (first["subset"], first["row"]) == ("biology", 0)
    assert first["query"] == raw["query"]
    assert first["reasoning"] == raw["reasoning_query"]
    assert first["instruction"] == raw["prompt"]
    assert (first["positives"], first["negatives"]) == (raw["pos"], raw["neg"])
    assert data.subsets["biology"]["row"][:] == [0, 1, 2, 3, 4]
    assert data.has_reasoning


@pytest.mark.parametrize(
    ("name", "subset"),
    [
        ("biology-formatted.jsonl", "biology"),
        ("theoremqa_questions-formatted.jsonl.gz", "theoremqa_questions"),
        ("msmarco.parquet", "msmarco"),
        ("a.b.jsonl", "a.b"),
    ],
)
def test_files_name_their_subset(name: str, subset: str) -> None:
    assert subset_name(Path(name)) == subset


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"query": "q", "pos": ["p"]', "not JSON"),
        ("[1, 2]", "must be an object, not a list"),
        ('"text"', "must be an object, not text"),
        ('{"pos": ["p"], "neg": ["n"]}', "no query"),
        ('{"query": "q", "neg": ["n"]}', "no positives"),
        ('{"query": 7, "pos": ["p"]}', "query must be text, not a number: 7"),
        ('{"query": "q", "pos": {"a": 1}}', "pos must be a list of texts, not an object"),
        ('{"query": "q", "pos": ["p", 3]}', r"pos\[1\] must be text, not a number: 3"),
        ('{"query": "q", "pos": ["p"], "neg": [null]}', r"neg\[0\] must be text, not null"),
        (
            '{"query": "q", "pos": ["p"], "neg": ["n"], "reasoning_query": ["r"]}',
            "reasoning_query must be text",
        ),
        ('{"query": "q", "pos": ["p"], "prompt": true}', "prompt must be text or null, not true or false"),
        ('{"query": "\\ud83d", "pos": ["p"], "neg": ["n"]}', "lone surrogate"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_broken_line_is_named(line: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "biology.jsonl"
    good = json.dumps(GOOD)
    file.write_text(f"{good}\n{good}\n{line}\n{good}\n", encoding="utf-8")
    with pytest.raises(DataError, match=why) as caught:
        load(file, tmp_path)
    assert f"{file}, line 3: " in str(caught.value)
    assert "\n" not in str(caught.value)
    # Nothing half-read is left to be taken for whole.
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    data = load(file, tmp_path, invalid="drop")
    assert data.counts["biology"]["rows dropped: broken"] == 1
    assert data.counts["biology"]["rows read"] == 4
    assert data.rows == 3


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b'\n{"query": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON \(not UTF-8\)"):
        load(file, tmp_path)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    row = {**GOOD, "query": "one\u2028two\x85three"}
    file.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n\n" + json.dumps(GOOD)).encode())
    data = load(file, tmp_path)
    assert data.subsets["a"]["query"][:] == ["one\u2028two\x85three", "q"]
    assert data.counts["a"]["lines dropped: empty"] == 1


def test_a_file_is_read_as_a_stream(tmp_path: Path) -> None:
    # A broken line far down costs nothing before it is reached.
    file = tmp_path / "a.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(20_000):
            stream.write(json.dumps(GOOD) + "\n")
        stream.write("{broken\n")
    reader = read_file(file, ReadOptions(), Counter())
    first = list(itertools.islice(reader, 20_000))
    assert first[-1][0] == f"{file}, line 20000"
    with pytest.raises(DataError, match="line 20001: not JSON"):
        next(reader)


def test_what_has_nothing_to_learn_from_is_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        GOOD,
        {**GOOD, "query": "  "},
        {**GOOD, "pos": ["", " "]},
        {**GOOD, "pos": []},
        {**GOOD, "neg": []},
        {**GOOD, "neg": ["p", "n", ""]},
        {**GOOD, "neg": ["p"]},
        {**GOOD, "reasoning_query": ""},
        {key: value for key, value in GOOD.items() if key != "reasoning_query"},
    ]
    data = load(write_rows(tmp_path / "a.jsonl", rows), tmp_path)
    assert {name: number for name, number in data.counts["a"].items() if number} == {
        "rows read": 9,
        "rows kept": 4,
        "rows dropped: empty query": 1,
        "rows dropped: no positive": 2,
        "rows dropped: no negative": 2,
        "positives removed: empty": 2,
        "negatives removed: equal to a positive": 2,
        "negatives removed: empty": 1,
        "rows without reasoning query": 2,
    }
    assert data.subsets["a"]["row"][:] == [0, 1, 2, 3]
    assert "rows dropped: no negative: 2" in describe_counts(data.counts)


def test_rows_without_negatives_stay_where_none_are_needed(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{**GOOD, "neg": []}])
    assert load(file, tmp_path, needs_negatives=lambda _: False).rows == 1
    with pytest.raises(DataError, match=r"no row can be trained on: .*no negative: 1"):
        load(file, tmp_path)


def test_rows_without_reasoning_can_be_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [GOOD, {**GOOD, "reasoning_query": None}])
    assert load(file, tmp_path).rows == 2
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: no reasoning_query"):
        load(file, tmp_path, missing_reasoning="error")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"query": ["Find it.", "q"], "pos": [["", "p"]], "neg": [["Title", "n"]]},
            ("q", "Find it.", ["Title\nn"]),
        ),
        ({"pos": None, "positive": "p", "neg": None, "negative": "n"}, ("q", None, ["n"])),
        ({"neg": None, "negative_1": "a", "negative_10": "b", "negative_x": 5}, ("q", None, ["a", "b"])),
        (
            {
                "pos": None,
                "neg": None,
                "positive_passages": [{"docid": "1", "text": "p", "title": ""}],
                "negative_passages": [{"text": "n", "title": "T"}],
            },
            ("q", None, ["T\nn"]),
        ),
        ({"query": None, "anchor": "q", "instruction": "Do."}, ("q", "Do.", ["n"])),
        (
            {"query": "", "anchor": "q", "pos": [], "positive": "p", "neg": [], "negative": "n"},
            ("q", None, ["n"]),
        ),
    ],
    ids=["reasonir", "triplet", "columns", "passages", "anchor", "empty"],
)
def test_other_shapes_are_understood(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    row = parsed(**fields)
    assert (row.query, row.instruction, row.negatives) == expected
    assert row.positives == ["p"]


def test_a_row_names_the_fields_it_has() -> None:
    with pytest.raises(BadRowError, match="the row has Text, Label"):
        parse_row({"Text": "q", "Label": 1}, Counter())


def test_parquet_and_gzip_hold_the_same_rows(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = make_rows(4)
    plain = load(write_rows(tmp_path / "a.jsonl", rows), tmp_path)
    zipped = tmp_path / "gz" / "a.jsonl.gz"
    zipped.parent.mkdir()
    zipped.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "pq").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "pq" / "a.parquet")
    for other in (zipped, tmp_path / "pq"):
        assert load(other, tmp_path).subsets["a"][:] == plain.subsets["a"][:]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl.gz", b"no gzip"), ("a.parquet", b"no parquet")])
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load(tmp_path / name, tmp_path)


def test_a_cut_off_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in make_rows(50)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl\.gz"):
        load(tmp_path / "a.jsonl.gz", tmp_path)


@pytest.mark.parametrize("what", ["nothing", "folder", "suffix"])
def test_a_source_without_rows_is_refused(what: str, tmp_path: Path) -> None:
    sources = {"nothing": tmp_path / "nowhere", "folder": tmp_path / "empty", "suffix": tmp_path / "a.csv"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("query\n")
    with pytest.raises(DataError, match=str(sources[what])):
        load(sources[what], tmp_path)


def test_data_sets_are_taken_as_they_are(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    one = Dataset.from_list([{**row, "subset": "xy"[i % 2]} for i, row in enumerate(make_rows(6))])
    data = from_datasets(one, cache=tmp_path)
    assert {name: len(rows) for name, rows in data.subsets.items()} == {"x": 3, "y": 3}
    both = from_datasets(DatasetDict({"x": one.select([0, 2, 4])}), cache=tmp_path)
    assert both.subsets["x"][:] == data.subsets["x"][:]
    broken = Dataset.from_list([GOOD, {**GOOD, "query": None}])
    with pytest.raises(DataError, match="all, row 2: no query"):
        from_datasets(broken, cache=tmp_path)


def test_a_saved_data_set_is_a_source(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(make_rows(3)).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved", tmp_path).counts["saved"]["rows kept"] == 3


def test_checked_rows_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "rows", biology=4)
    before = load(folder, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("reasonembed_mteb.training.data.parse_row", lambda *_: pytest.fail("read again"))
        again = load(folder, tmp_path)
    assert again.key == before.key
    assert again.counts == before.counts
    assert again.subsets["biology"][:] == before.subsets["biology"][:]
    # Another file, or another way of reading, is other data.
    write_rows(folder / "biology-formatted.jsonl", make_rows(4, seed=9))
    changed = load(folder, tmp_path)
    assert changed.key != before.key
    assert changed.subsets["biology"]["query"][:] != before.subsets["biology"]["query"][:]
    assert load(folder, tmp_path, invalid="drop").key != changed.key


def test_a_cut_off_cache_is_written_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "rows", biology=4)
    load(folder, tmp_path)
    (counts,) = (tmp_path / "cache").rglob("counts.json")
    counts.unlink()
    (counts.parent / "rows.arrow").write_bytes(b"half")
    assert load(folder, tmp_path).rows == 4


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"train_group_size": 16, "batch_size": 8}, (16, 8)),
        # A column with gaps comes from pandas as floats; 0 and null ask for nothing.
        ({"train_group_size": 16.0, "batch_size": None}, (16, None)),
        ({"batch_size": 0}, (None, None)),
    ],
)
def test_rows_say_their_shape(fields: dict[str, Any], shape: tuple[Any, ...]) -> None:
    row = parsed(**fields)
    assert (row.group, row.queries) == shape


@pytest.mark.parametrize("value", ["16", -1, 2.5, True, [16], 4096, float("inf")])
def test_a_shape_that_is_none_is_named(value: object) -> None:
    with pytest.raises(BadRowError, match="train_group_size must be a whole number from 1 to 1,024, not"):
        parsed(train_group_size=value)


def test_grades_stay_with_their_texts() -> None:
    given = {"pos": ["p", " ", "q"], "neg": ["n", "q", "", "m"]}
    row = parsed(**given, pos_scores=[5, 4, 3.5], neg_scores=[1, 3, 2, 0])
    assert (row.positives, row.positive_grades) == (["p", "q"], [5, 3.5])
    assert (row.negatives, row.negative_grades) == (["n", "m"], [1, 0])
    # One side alone tells nothing about the other.
    assert parsed(**given, pos_scores=[5, 4, 3]).positive_grades is None
    assert parsed(pos_scores=[5], neg=[]).positive_grades == [5]
    assert parsed(pos_scores=[], neg_scores=[]).positive_grades is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"pos_scores": [5, 4]}, "pos_scores has 2 numbers for 1 texts"),
        ({"neg_scores": "1"}, "neg_scores must be a list of numbers, not text"),
        ({"neg_scores": [float("nan")]}, "neg_scores must be a list of numbers"),
        ({"neg_scores": [None]}, "neg_scores must be a list of numbers"),
    ],
)
def test_wrong_grades_are_named(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRowError, match=why):
        parsed(**fields)


def test_a_row_may_ask_for_no_negatives(tmp_path: Path) -> None:
    rows = [{**GOOD, "neg": [], "train_group_size": 1}, {**GOOD, "neg": [], "train_group_size": 2}]
    file = write_rows(tmp_path / "a.jsonl", rows)
    data = load(file, tmp_path, needs_negatives=lambda _: None)
    assert data.counts["a"]["rows kept"] == data.counts["a"]["rows dropped: no negative"] == 1
    assert data.subsets["a"][0]["group"] == 1


def test_a_missing_value_of_pandas_is_none(tmp_path: Path) -> None:
    # pandas writes NaN where a reasoning query is missing.
    line = '{"query": "q", "pos": ["p"], "neg": ["n"], "reasoning_query": NaN}\n'
    (tmp_path / "a.jsonl").write_text(f"\ufeff{line}", encoding="utf-8")
    assert load(tmp_path / "a.jsonl", tmp_path).counts["a"]["rows without reasoning query"] == 1
