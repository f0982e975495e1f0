r"""Files of labels and of exclusions: BEIR's tab-separated tables and TREC's columns, one reader for both.

Ids may hold anything but tabs and line breaks. Writers differ in what they do with a quotation mark: the csv
dialect (Python, pandas, Excel, BEIR) quotes the id and doubles the marks, others write it bare. A whole file
is one or the other: it is bare if one cell with marks is not quoted whole, or if the ids that are known match
better that way. pandas writes the whole numbers of a column with gaps as ``12.0``: such a cell is the known
id ``12`` where no known id is called ``12.0``.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval.text_lines import numbered_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

# BEIR's own column names come first; the others are those of ir_datasets, trec_eval, MS MARCO and MTEB.
LABEL_HEAD = ("query-id", "corpus-id", "score")
_NAMES = (
    ("query-id", "query", "qid", "q-id", "queryid", "topic", "topic-id"),
    ("corpus-id", "doc-id", "docid", "docno", "did", "document-id", "document", "doc", "pid", "passage-id"),
    ("score", "relevance", "label", "rel", "grade", "judgment", "judgement"),
)
_LABEL_COLUMNS = "query id, iteration, document id, label"
_PAIR_COLUMNS = "query id, document id"
# Columns by spaces; a document's id may hold spaces too, and whatever else Unicode calls a space.
_SPACED_LABEL = re.compile(r"[ \t]*([^ \t]+)[ \t]+[^ \t]+[ \t]+(.+?)[ \t]+([^ \t]+)[ \t]*")
_SPACED_PAIR = re.compile(r"[ \t]*([^ \t]+)[ \t]+(.+?)[ \t]*")

_FLOAT = re.compile(r"-?[0-9]+\.0")

Labels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class _Row:
    """Query, document and, in files of labels, label: cells as they are in the file."""

    line: int
    cells: tuple[str, ...]


def read_qrels(
    file: Path, queries: Collection[str] | None = None, documents: Collection[str] | None = None
) -> Labels:
    """Read relevance labels: a table as in BEIR, or TREC's columns.

    Args:
        file: A table by tabs, with a header (query-id, corpus-id, score in any order, other usual names and
            further columns too) or without one; or TREC's query id, iteration, document id and label.
        queries: Ids of the queries that are known; they and ``documents`` tell how marks are written.
        documents: Ids of the documents that are known.

    Returns:
        Labels by query and document id. Negative ones are kept.

    Raises:
        DataError: If a line cannot be read, a label is not a whole number, a pair has two different labels,
            or there is none; the message names file and line.
    """
    rows = _with_known_ids(file, _read_rows(file, 3), queries, documents)
    labels: Labels = {}
    repeated = 0
    for row in rows:
        query, document, cell = row.cells
        _check_named(file, row)
        label = _label(file, row.line, cell)
        before = labels.setdefault(query, {}).get(document)
        if before is not None and before != label:
            msg = (
                f"{file}, line {row.line}: query {query!r}, document {document!r} is labelled {label} here "
                f"and {before} above; keep one of the two"
            )
            raise DataError(msg)
        repeated += before is not None
        labels[query][document] = label
    if repeated:
        logger.warning("%s: %d labels are there twice; each counts once", file, repeated)
    if not labels:
        msg = f"{file} holds no rows; give a file with labels"
        raise DataError(msg)
    return labels


def read_exclusions(
    file: Path, queries: Collection[str] | None = None, documents: Collection[str] | None = None
) -> dict[str, list[str]]:
    """Read the documents that do not count for a query.

    Args:
        file: Lines of query id and document id, by tabs (with a header or without) or by a space; may be
            empty.
        queries: See `read_qrels`.
        documents: See `read_qrels`.

    Returns:
        Excluded document ids by query id, each once, in the order of the file.

    Raises:
        DataError: If a line cannot be read; the message names file and line.
    """
    excluded: dict[str, dict[str, None]] = {}
    for row in _with_known_ids(file, _read_rows(file, 2), queries, documents):
        _check_named(file, row)
        excluded.setdefault(row.cells[0], {})[row.cells[1]] = None
    return {query: list(names) for query, names in excluded.items()}


def write_table(file: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a tab-separated table in the csv dialect, which BEIR's own reader takes.

    Args:
        file: A new file; its folder is made.
        head: Column names.
        rows: The rows; ids must have passed `check_id`.
    """
    file.parent.mkdir(exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(chain([head], rows))
        stream.flush()
        os.fsync(stream.fileno())


def check_id(name: str, where: str) -> None:
    """Refuse an id that a tab-separated file cannot hold.

    Args:
        name: Id of a query or document.
        where: Where it was found, for the message.

    Raises:
        DataError: If it is empty, or has a tab or a line break in it.
    """
    if not name or any(character in name for character in "\t\r\n"):
        msg = f"{where}: id {name!r} is empty or holds a tab or line break; the tsv files cannot hold it"
        raise DataError(msg)


def _read_rows(file: Path, width: int) -> list[_Row]:
    """Read query, document and (width 3) label of each row, wherever the header puts them."""
    rows: list[_Row] = []
    head: list[str] | None = None
    places: list[int] | None = None
    tabbed = False
    for index, (number, line) in enumerate(numbered_lines(file)):
        cells = line.split("\t") if tabbed or "\t" in line else line.split()
        if "\t" in line and not any(cells):
            # What spreadsheets leave of a row that was emptied.
            continue
        if index == 0 and (places := _places(cells, width)) is not None:
            # Below a header by tabs a row without one is wrong, not TREC's.
            head, tabbed = cells, "\t" in line
        elif index or not _is_unknown_header(cells, width):
            rows.append(_Row(number, _picked(file, number, line, cells, width, head, places)))
    return rows


def _plain(cell: str) -> str:
    """Return a column name in lower case, with hyphens and without quotation marks."""
    return cell.strip().strip('"').strip().lower().replace("_", "-").replace(" ", "-")


def _places(cells: Sequence[str], width: int) -> list[int] | None:
    """Return where a header has the columns, or None if the row is no header."""
    given = [_plain(cell) for cell in cells]
    found = [next((given.index(n) for n in names if n in given), None) for names in _NAMES[:width]]
    return [place for place in found if place is not None] if None not in found else None


def _is_unknown_header(cells: Sequence[str], width: int) -> bool:
    """Tell BEIR's first line, which its readers skip whatever it says, from a row."""
    return len(cells) == width == 3 and not _is_number(cells[2]) and _plain(cells[2]).isalpha()


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True


def _picked(
    file: Path,
    number: int,
    line: str,
    cells: list[str],
    width: int,
    head: list[str] | None,
    places: list[int] | None,
) -> tuple[str, ...]:
    if head is None or places is None:
        if "\t" in line:
            _check_unbroken(file, number, cells, width)
        return _without_header(file, number, line, cells, width)
    while len(cells) > len(head) and not cells[-1]:
        cells.pop()
    if len(cells) > len(head) or len(cells) <= max(places):
        _check_unbroken(file, number, cells, len(cells) + 1)
        msg = (
            f"{file}, line {number} has {len(cells)} columns instead of {len(head)} "
            f"({'<tab>'.join(LABEL_HEAD[:width])}); separate them by tabs"
        )
        raise DataError(msg)
    return tuple(cells[place] for place in places)


def _without_header(file: Path, number: int, line: str, cells: list[str], width: int) -> tuple[str, ...]:
    tabs = "\t" in line
    if tabs and len(cells) == width:
        return tuple(cells)
    if tabs and width == 3 and len(cells) == 4:
        return cells[0], cells[2], cells[3]
    found = (_SPACED_LABEL if width == 3 else _SPACED_PAIR).fullmatch(line)
    if found is None or (width == 3 and "\t" in found[2]):
        columns = _LABEL_COLUMNS if width == 3 else _PAIR_COLUMNS
        shown = line if len(line) <= 80 else f"{line[:77]}..."
        msg = f"{file}, line {number}: expected {columns}; found {shown!r}"
        raise DataError(msg)
    return found.groups()


def _check_unbroken(file: Path, number: int, cells: Sequence[str], width: int) -> None:
    """Refuse a quoted id that a tab or a line break has torn apart."""
    if len(cells) != width and any(cell.startswith('"') and cell.count('"') % 2 for cell in cells):
        msg = f"{file}, line {number}: a quoted id holds a tab or a line break, which no id may: rename it"
        raise DataError(msg)


def _check_named(file: Path, row: _Row) -> None:
    if not all(row.cells):
        msg = f"{file}, line {row.line}: an id or label is empty; fill it in or remove the line"
        raise DataError(msg)


def _label(file: Path, number: int, cell: str) -> int:
    """Read a label; other programs write whole numbers as ``1.0`` or in quotation marks."""
    plain = cell.strip().strip('"')
    value = float(plain) if _is_number(plain) else math.nan
    if not value.is_integer():
        msg = f"{file}, line {number}: label {cell!r} must be a whole number"
        raise DataError(msg)
    return int(value)


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _content(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _is_quoted(cell) else cell


def may_hide_ids(line: str) -> bool:
    """Return whether a line of a file may write an id otherwise than it is, so that known ids matter.

    Args:
        line: Of a file of labels or of exclusions.
    """
    # A label may be a float without a doubt: it ends the line.
    return '"' in line or bool(re.search(r"[0-9]\.0[ \t]+[^ \t]", line))


def _with_known_ids(
    file: Path, rows: list[_Row], queries: Collection[str] | None, documents: Collection[str] | None
) -> list[_Row]:
    """Read ids as they are known: without the marks of the csv dialect, and whole numbers as such."""
    rows = _unquoted(rows, queries, documents)
    known = (queries or (), documents or ())
    changed = 0
    for i, row in enumerate(rows):
        ids = tuple(_whole(cell, names) for cell, names in zip(row.cells[:2], known, strict=True))
        if ids != row.cells[:2]:
            rows[i] = _Row(row.line, (*ids, *row.cells[2:]))
            changed += 1
    if changed:
        logger.warning("%s: %d lines write whole numbers as floats (12.0 is read as 12)", file, changed)
    return rows


def _whole(cell: str, known: Collection[str]) -> str:
    whole = cell[:-2]
    return whole if _FLOAT.fullmatch(cell) and cell not in known and whole in known else cell


def _unquoted(
    rows: list[_Row], queries: Collection[str] | None, documents: Collection[str] | None
) -> list[_Row]:
    """Take off the quotation marks that the csv dialect puts around ids, if the file is written in it."""
    marked = [row for row in rows if '"' in row.cells[0] or '"' in row.cells[1]]
    cells = [cell for row in marked for cell in row.cells[:2] if '"' in cell]
    if not all(map(_is_quoted, cells)) or _matches_bare(marked, queries, documents):
        return rows
    return [_Row(row.line, (*map(_content, row.cells[:2]), *row.cells[2:])) for row in rows]


def _matches_bare(
    marked: Iterable[_Row], queries: Collection[str] | None, documents: Collection[str] | None
) -> bool:
    """Tell whether cells in quotation marks are ids with those marks in them."""
    bare = quoted = 0
    for row in marked:
        for cell, known in zip(row.cells, (queries, documents), strict=False):
            if known is not None and '"' in cell:
                bare += cell in known
                quoted += _content(cell) in known
    return bare > quoted
