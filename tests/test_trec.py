"""TREC's files and BRIGHT's JSON runs: what is read, what is refused and where."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval.trec import read_exclusions, read_qrels, read_run, write_run

LABELS = Path(__file__).parents[2] / "shared/data/bright_labels"
# PROTOCOL of BRIGHT: queries and labels of each subset.
COUNTS = {
    "biology": (103, 372),
    "earth-science": (116, 585),
    "economics": (103, 800),
    "psychology": (101, 692),
    "robotics": (101, 520),
    "stackoverflow": (117, 478),
    "sustainable-living": (108, 576),
    "leetcode": (142, 262),
    "pony": (112, 2219),
    "aops": (111, 524),
    "theoremqa-questions": (194, 439),
    "theoremqa-theorems": (76, 151),
}


def given(folder: Path, content: str | bytes, name: str = "file.txt") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.skipif(not LABELS.is_dir(), reason="the real labels are not beside this checkout")
def test_real_labels_have_the_published_counts() -> None:
    found = {}
    for name in COUNTS:
        labels = read_qrels(LABELS / f"qrels.bright-{name}.txt")
        found[name] = (len(labels), sum(map(len, labels.values())))
        assert {label for row in labels.values() for label in row.values()} == {1}
    assert found == COUNTS
    excluded = read_exclusions(LABELS / "exclude.bright-leetcode.txt")
    sizes = [len(documents) for documents in excluded.values()]
    assert (len(sizes), sum(sizes), min(sizes), max(sizes)) == (142, 33_485, 9, 1_119)
    gold = read_qrels(LABELS / "qrels.bright-leetcode.txt")
    assert not [query for query in gold if gold[query].keys() & excluded[query]]


@pytest.mark.parametrize("separator", [" ", "\t", "  "])
def test_labels_with_spaces_in_ids(tmp_path: Path, separator: str) -> None:
    rows = [("q1", "0", "a document.txt", "1"), ("q1", "0", "b", "0"), ("q2", "0", "c d e", "2")]
    file = given(tmp_path, "\n".join(separator.join(row) for row in rows) + "\n")
    assert read_qrels(file) == {"q1": {"a document.txt": 1, "b": 0}, "q2": {"c d e": 2}}


def test_labels_in_the_shape_of_beir(tmp_path: Path) -> None:
    file = given(tmp_path, "query-id\tcorpus-id\tscore\nq 1\td 1\t1\r\n")
    assert read_qrels(file) == {"q 1": {"d 1": 1}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("q1 0 d1 1\nq1 0 d2\n", "line 2: expected query id, iteration, document id, label; found 'q1 0 d2'"),
        ("q1 0 d1 relevant\n", "line 1: expected"),
        ("\n\nq1\n", "line 3: expected"),
        ("q1 0 d1 1\nq1 0 d1 0\n", "line 2: query 'q1', document 'd1' is labelled 0 here and 1 above"),
        ("\n", "holds no rows"),
        (b"q1 0 d1 1\nq1 0 \xff 1\n", "line 2: not UTF-8"),
    ],
)
def test_bad_labels_name_file_and_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    file = given(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_qrels(file)
    assert str(caught.value).startswith(str(file))
    assert words in str(caught.value)


def test_repeated_equal_labels_are_one_and_negative_ones_are_kept(tmp_path: Path) -> None:
    assert read_qrels(given(tmp_path, "q 0 d 1\nq 0 d 1\nq 0 e -2\n")) == {"q": {"d": 1, "e": -2}}


def test_exclusions(tmp_path: Path) -> None:
    file = given(tmp_path, "q1 a document\nq1\tanother  one\nq2 c \n\nq1 a document\n")
    assert read_exclusions(file) == {"q1": {"a document", "another  one"}, "q2": {"c"}}
    assert read_exclusions(given(tmp_path, "")) == {}
    with pytest.raises(DataError, match="line 2: expected query id, document id; found 'q2'"):
        read_exclusions(given(tmp_path, "q1 a\nq2\n"))


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
        (gzip.compress(b"q Q0 d 1 1.0 t\n" * 99, mtime=0)[:-12], "damaged gzip"),
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
