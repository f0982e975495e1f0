"""Runs: TREC's files, BRIGHT's JSON and MTEB's predictions; what is refused and where."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval.trec import read_run, write_run

if TYPE_CHECKING:
    from pathlib import Path


def given(folder: Path, content: str | bytes, name: str = "file.txt") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


RUN = {"q1": {"a document": 2.5, "b": 1.0}, "q2": {"c\u0085d": -0.25}}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["space", "tab", "json"])
def test_runs_of_every_kind(tmp_path: Path, packed: bool, kind: str) -> None:
    separator = "\t" if kind == "tab" else " "
    lines = [
        separator.join([query, "Q0", document, "1", str(score), "tag"])
        for query, found in RUN.items()
        for document, score in found.items()
    ]
    text = json.dumps(RUN, indent=2) if kind == "json" else "\n".join(lines)
    content = gzip.compress(text.encode()) if packed else text.encode()
    # Neither kind nor packing is told by the name.
    assert read_run(given(tmp_path, content, "run")) == RUN


def test_document_ids_of_tabbed_rows_are_taken_as_they_stand(tmp_path: Path) -> None:
    assert read_run(given(tmp_path, "q 1\tQ0\t d  1 \t1\t2e-1\tmy tag\n")) == {"q 1": {" d  1 ": 0.2}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("q Q0 d 1 1.0 t\nq Q0 d 2 0.5 t\n", "line 2: query 'q', document 'd' comes a second time"),
        ("q Q0 d 1 nan t\n", "line 1: the score of query 'q', document 'd' is NaN"),
        ("q Q0 d 1 high t\n", "line 1: expected query id, Q0, document id, rank, score, tag"),
        ("q Q0 d 1 1.0 t\nq Q0 d\n", "line 2: expected"),
        # A tag of two words shifts the columns: the score would be taken for the rank.
        ("q Q0 d 1 0.5 my tag\n", "line 1: expected"),
        ("q Q0 d 1 0.5 2 tags\n", "line 1: expected"),
        ("q Q0 d 1 7\n", "line 1: expected"),
        ("q Q0 a b 1 7\n", "line 1: expected"),
        ("", "holds no rows"),
        ("{}", "holds no rows"),
        ('{"q": {"d": 1.0,\n "d": 2.0}}', "'d' comes twice"),
        ('{"q": {"d": 1.0}, "q": {"e": 2.0}}', "'q' comes twice"),
        ('{"q": {"d": NaN}}', "the score of query 'q', document 'd' is NaN"),
        ('{"q": {"d": "1"}}', "query 'q', document 'd' has '1' for a score"),
        ('{"q": {"d": true}}', "has 'True' for a score"),
        ('{"q": [1, 2]}', "query 'q' holds no object of scores"),
        ('{"q":\n {"d": 1.0}', "line 2: not JSON"),
        (
            gzip.compress(b"".join(b"q Q0 d%d 1 1.0 t\n" % i for i in range(99)), mtime=0)[:-12],
            "damaged gzip",
        ),
        (b"\x1f\x8bnot", "damaged gzip"),
        ("q Q0 d 1 1.0 t\nq Q0 \udcff 1 1.0 t\n".encode("utf-8", "surrogateescape"), "line 2: not UTF-8"),
    ],
)
def test_bad_runs_name_file_and_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    file = given(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_run(file)
    assert str(caught.value).startswith(str(file))
    assert words in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.run: No such file"):
        read_run(tmp_path / "none.run")


@pytest.mark.parametrize("name", ["out/a.run", "a.run.gz"])
def test_written_runs_read_back_the_same(tmp_path: Path, name: str) -> None:
    run = {"q 1": {"b": 1.0, " a  document": 0.1 + 0.2, "c": 1.0}, "q2": {"d": 1e-30}}
    file = tmp_path / name
    write_run(file, run, "our tag")
    assert read_run(file) == run
    content = file.read_bytes()
    assert content.startswith(b"\x1f\x8b") == name.endswith(".gz")
    if name.endswith(".gz"):
        # No time of writing: the same run gives the same bytes.
        assert content[4:8] == bytes(4)


def test_written_runs_are_ranked_with_ties_by_document_id_descending(tmp_path: Path) -> None:
    file = tmp_path / "a.run"
    write_run(file, {"q": {"a": 1.0, "c": 0.5, "b": 1.0}}, "t")
    assert [line.split("\t")[2:4] for line in file.read_text().splitlines()] == [
        ["b", "1"],
        ["a", "2"],
        ["c", "3"],
    ]


@pytest.mark.parametrize(
    ("run", "tag"),
    [
        ({"q": {"a\tb": 1.0}}, "t"),
        ({"": {"a": 1.0}}, "t"),
        ({"q": {"a": 1.0}}, "t\n"),
        ({"q": {"a": float("nan")}}, "t"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(
    tmp_path: Path, run: dict[str, dict[str, float]], tag: str
) -> None:
    with pytest.raises(DataError):
        write_run(tmp_path / "a.run", run, tag)
    assert not list(tmp_path.iterdir())


META = {"model_name": "m", "revision": "1"}


@pytest.mark.parametrize("meta", [{"mteb_model_meta": META}, {}])
def test_the_predictions_that_mteb_saves_are_a_run(tmp_path: Path, meta: dict[str, object]) -> None:
    one = given(tmp_path, json.dumps(meta | {"default": {"test": RUN}}))
    assert read_run(one) == RUN
    packed = given(tmp_path, gzip.compress(one.read_bytes(), mtime=0), "packed")
    assert read_run(packed, "default", "test") == RUN
    several = {"biology": {"standard": RUN, "long": {"q": {"d": 1.0}}}, "pony": {"standard": {}}}
    file = given(tmp_path, json.dumps(meta | several), "several")
    assert read_run(file, "biology", "long") == {"q": {"d": 1.0}}
    for subset, split, words in (
        (None, None, "has 2 subsets; choose one with --subset: biology, pony"),
        ("biology", None, "has 2 splits; choose one with --split: standard, long"),
        ("aops", None, "has no subset 'aops'; choose one with --subset: biology, pony"),
        ("biology", "test", "has no split 'test'; choose one with --split: standard, long"),
        ("pony", None, "holds no rows"),
    ):
        with pytest.raises(DataError, match=words):
            read_run(file, subset, split)


def test_predictions_of_no_retrieval_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no predictions of a retrieval task"):
        read_run(given(tmp_path, json.dumps({"mteb_model_meta": META, "default": [0, 1]})))
