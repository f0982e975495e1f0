"""Files of labels and exclusions: BEIR's tables and TREC's columns, as many programs write them."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval.qrels import LABEL_HEAD, read_exclusions, read_qrels, write_table

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
    assert not [query for query in gold if gold[query].keys() & set(excluded[query])]


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
        ("q1 0 d1 relevant\n", "line 1: label 'relevant' must be a whole number"),
        ("q1\td1\t0.5\n", "line 1: label '0.5' must be a whole number"),
        ("query-id\tcorpus-id\tscore\nq1\td1\tNaN\n", "line 2: label 'NaN' must be a whole number"),
        ("query-id\tcorpus-id\tscore\nq1\td1\t\n", "line 2: an id or label is empty"),
        ("query-id\tcorpus-id\tscore\nq1\td1\n", "line 2 has 2 columns instead of 3"),
        ("query-id\tcorpus-id\tscore\nq1\td\t1\t1\n", "line 2 has 4 columns instead of 3"),
        ('query-id\tcorpus-id\tscore\nq1\t"d\t1"\t1\n', "line 2: a quoted id holds a tab or a line break"),
        ('query-id\tcorpus-id\tscore\nq1\t"d\n1"\t1\n', "line 2: a quoted id holds a tab or a line break"),
        ('q1\t"d\t1"\t1\n', "line 1: a quoted id holds a tab or a line break"),
        ("q1\t0\td\t1\t1\n", "line 1: expected query id"),
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
    assert read_exclusions(file) == {"q1": ["a document", "another  one"], "q2": ["c"]}
    assert read_exclusions(given(tmp_path, "")) == {}
    with pytest.raises(DataError, match="line 2: expected query id, document id; found 'q2'"):
        read_exclusions(given(tmp_path, "q1 a\nq2\n"))


GOLD = {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": 2}}


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n",
        "q1\td1\t1\nq1\td2\t0\nq2\td1\t2\n",
        "\ufeffquery-id\tcorpus-id\tscore\r\nq1\td1\t1\r\nq1\td2\t0\r\nq2\td1\t2\r\n\t\t\r\n",
        "query-id\tcorpus-id\tscore\rq1\td1\t1\rq1\td2\t0\rq2\td1\t2\r",
        "score\tcorpus-id\tquery-id\n1\td1\tq1\n0.0\td2\tq1\n2\td1\tq2\n",
        "query_id\tdoc_id\trelevance\titeration\nq1\td1\t1\t0\nq1\td2\t0\t0\nq2\td1\t2\tQ0\n",
        "\tquery-id\tcorpus-id\tscore\tnote\n0\tq1\td1\t1.0\t\n1\tq1\td2\t0.0\tx\n2\tq2\td1\t2.0\t\n",
        '"query-id"\t"corpus-id"\t"score"\n"q1"\t"d1"\t"1"\n"q1"\t"d2"\t"0"\n"q2"\t"d1"\t2\n',
        "Query\tDocument\tGain\nq1\td1\t1\n\nq1\td1\t1\nq1\td2\t0\n \nq2\td1\t2\n",
        "q1 0 d1 1\nq1 0 d2 0\nq2 Q0 d1 2\n",
        "q1\t0\td1\t1\nq1\t0\td2\t0\nq2\t0\td1\t2",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_labels_as_people_have_them(tmp_path: Path, content: str, packed: bool) -> None:
    raw = content.encode()
    assert read_qrels(given(tmp_path, gzip.compress(raw, mtime=0) if packed else raw)) == GOLD
    # A spreadsheet's "Unicode text".
    assert read_qrels(given(tmp_path, content.removeprefix("\ufeff").encode("utf-16"))) == GOLD


IDS = [
    '5" pipe',
    '"x',
    'x"',
    '"x"',
    '""',
    '"',
    '"a""b"',
    'a "b" c',
    " lead",
    "trail ",
    "ä/é 1",
    "\u2028",
    "'",
    ",",
]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_ids_in_the_csv_dialect_are_read_exactly(tmp_path: Path, quoting: int) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([LABEL_HEAD, *((query, name, 1) for query in IDS for name in IDS)])
    file = given(tmp_path, text.getvalue())
    expected = {query: dict.fromkeys(IDS, 1) for query in IDS}
    assert read_qrels(file) == expected
    assert read_qrels(file, set(IDS), set(IDS)) == expected


def test_bare_ids_are_read_exactly(tmp_path: Path) -> None:
    rows = ["\t".join(LABEL_HEAD), *(f"{query}\t{name}\t1" for query in IDS for name in IDS)]
    # One id whose marks no csv writer would leave so shows how the whole file is written.
    assert read_qrels(given(tmp_path, "\n".join(rows))) == {query: dict.fromkeys(IDS, 1) for query in IDS}


def test_known_ids_tell_quoted_from_bare(tmp_path: Path) -> None:
    file = given(tmp_path, 'query-id\tcorpus-id\tscore\nq\t"x"\t1\n')
    assert read_qrels(file) == {"q": {"x": 1}}
    assert read_qrels(file, {"q"}, {"x", "y"}) == {"q": {"x": 1}}
    assert read_qrels(file, {"q"}, {'"x"', "y"}) == {"q": {'"x"': 1}}
    assert read_exclusions(given(tmp_path, 'q\t"x"\n'), {"q"}, {'"x"'}) == {"q": ['"x"']}


def test_spaced_columns_part_at_spaces_only(tmp_path: Path) -> None:
    file = given(tmp_path, 'q 0 "x  y 1\nq 0 \u2028z 2\n q  0  "w" 0 \n')
    assert read_qrels(file) == {"q": {'"x  y': 1, "\u2028z": 2, '"w"': 0}}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_written_is_read_back(tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    letters = list('"""ab 1,;\'\\\u00e9\u4e2d\u2028\x85\x0b')
    ids = sorted({"".join(draw.choice(letters, draw.integers(1, 6))) for _ in range(60)})
    labels = {q: {d: int(draw.integers(-1, 4)) for d in draw.choice(ids, 5)} for q in ids}
    write_table(tmp_path / "t.tsv", LABEL_HEAD, ((q, d, v) for q in labels for d, v in labels[q].items()))
    assert read_qrels(tmp_path / "t.tsv") == labels
    assert read_qrels(tmp_path / "t.tsv", set(ids), set(ids)) == labels


def test_repeated_labels_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_qrels(given(tmp_path, "q 0 d 1\nq 0 d 1\n"))
    assert "1 labels are there twice; each counts once" in caplog.text


def test_whole_numbers_as_floats_are_the_known_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # As pandas writes a column of numbers with gaps; "3.0" is an id of its own here.
    file = given(tmp_path, "query-id\tcorpus-id\tscore\n1.0\t12.0\t1.0\n1.0\t3.0\t2\n2\t9.0\t1\n")
    known = ({"1", "2"}, {"12", "3", "3.0", "7"})
    assert read_qrels(file, *known) == {"1": {"12": 1, "3.0": 2}, "2": {"9.0": 1}}
    assert "2 lines write whole numbers as floats" in caplog.text
    assert read_qrels(file) == {"1.0": {"12.0": 1, "3.0": 2}, "2": {"9.0": 1}}
    pairs = given(tmp_path, "query-id\tcorpus-id\n1.0\t12.0\n", "excluded.tsv")
    assert read_exclusions(pairs, *known) == {"1": ["12"]}
