"""TREC's files: labels (qrels), exclusions and runs, plain or gzipped; and BRIGHT's JSON runs.

Columns are parted by tabs or by white space. Where a row has as many tabs as its format asks for, ids are
taken as they stand; else the document id is what lies between the columns before and behind it, so that it
may hold spaces.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_GZIP = b"\x1f\x8b"
# BEIR's files begin with a line of column names.
_HEADER = "query-id\t"
_LABEL_COLUMNS = "query id, iteration, document id, label"
_RUN_COLUMNS = "query id, Q0, document id, rank, score, tag"

Labels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


def _text(file: Path) -> str:
    """Return a file's text, unpacked if it is gzipped whatever its name."""
    try:
        content = file.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        msg = f"{file} is a damaged gzip file ({error}); fetch or write it again"
        raise DataError(msg) from error
    except OSError as error:
        msg = f"cannot read {file}: {error.strerror or error}; give an existing file"
        raise DataError(msg) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        msg = f"{file}, line {line}: not UTF-8 text; give a TREC file or JSON, plain or gzipped"
        raise DataError(msg) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines that are not blank; ids may hold what `splitlines` would split at."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line and not line.isspace():
            yield number, line.removesuffix("\r")


def _bad(file: Path, number: int, line: str, columns: str) -> DataError:
    shown = line if len(line) <= 80 else f"{line[:77]}..."
    return DataError(f"{file}, line {number}: expected {columns}; found {shown!r}")


def _label_row(line: str) -> tuple[str, str, str]:
    cells = line.split("\t")
    if len(cells) == 4:
        return cells[0], cells[2], cells[3]
    if len(cells) == 3:
        # BEIR's columns.
        return cells[0], cells[1], cells[2]
    query, _, rest = line.split(None, 2)
    document, label = rest.rsplit(None, 1)
    return query, document, label


def read_qrels(file: Path) -> Labels:
    """Read relevance labels: TREC qrels, or BEIR's three columns by tabs.

    Args:
        file: Lines of query id, iteration (not used), document id and label.

    Returns:
        Labels by query and document id. Negative ones are kept; trec_eval takes them for not relevant.

    Raises:
        DataError: If a line cannot be read, a pair has two different labels, or there is none; the
            message names file and line.
    """
    labels: Labels = {}
    for number, line in _lines(_text(file)):
        if number == 1 and line.startswith(_HEADER):
            continue
        try:
            query, document, value = _label_row(line)
            label = int(value)
        except ValueError:
            raise _bad(file, number, line, _LABEL_COLUMNS) from None
        if labels.setdefault(query, {}).setdefault(document, label) != label:
            first = labels[query][document]
            msg = (
                f"{file}, line {number}: query {query!r}, document {document!r} is labelled {label} here "
                f"and {first} above; keep one of the two"
            )
            raise DataError(msg)
    return _not_empty(file, labels)


def _not_empty(file: Path, found: dict[str, Any]) -> dict[str, Any]:
    if not found:
        msg = f"{file} holds no rows; give a file that does"
        raise DataError(msg)
    return found


def read_exclusions(file: Path) -> dict[str, frozenset[str]]:
    """Read the documents that do not count for a query.

    Args:
        file: Lines of query id and document id; may be empty.

    Returns:
        Excluded document ids by query id.

    Raises:
        DataError: If a line cannot be read; the message names file and line.
    """
    excluded: dict[str, set[str]] = {}
    for number, line in _lines(_text(file)):
        if number == 1 and line.startswith(_HEADER):
            continue
        cells = line.split("\t")
        try:
            query, document = cells if len(cells) == 2 else line.strip().split(None, 1)
        except ValueError:
            raise _bad(file, number, line, "query id, document id") from None
        excluded.setdefault(query, set()).add(document)
    return {query: frozenset(documents) for query, documents in excluded.items()}


def _run_row(line: str) -> tuple[str, str, str]:
    cells = line.split("\t")
    if len(cells) == 6:
        return cells[0], cells[2], cells[4]
    query, _, rest = line.split(None, 2)
    document, rank, score, _ = rest.rsplit(None, 3)
    # Where the tag holds a space or is missing, the columns have shifted and this is no number.
    int(rank)
    return query, document, score


def read_run(file: Path) -> Run:
    """Read a run: TREC's six columns, or JSON ``{query id: {document id: score}}`` as BRIGHT writes it.

    Args:
        file: Plain or gzipped; JSON is told by its first character.

    Returns:
        Scores by query and document id, in the order of the file. TREC's ranks are not used.

    Raises:
        DataError: If it cannot be read, a query has a document twice, a score is NaN, or there is no
            row; the message names file and line (for JSON, file, query and document).
    """
    text = _text(file)
    if text.lstrip()[:1] == "{":
        return _json_run(file, text)
    run: Run = {}
    for number, line in _lines(text):
        try:
            query, document, value = _run_row(line)
            score = float(value)
        except ValueError:
            raise _bad(file, number, line, _RUN_COLUMNS) from None
        found = run.setdefault(query, {})
        if document in found or score != score:
            raise DataError(f"{file}, line {number}: {_complaint(query, document, score)}")
        found[document] = score
    return _not_empty(file, run)


def _complaint(query: str, document: str, score: float) -> str:
    where = f"query {query!r}, document {document!r}"
    if math.isnan(score):
        return f"the score of {where} is NaN; a run with NaN has no ranking: make it again"
    return f"{where} comes a second time; keep one row of each document"


def _json_run(file: Path, text: str) -> Run:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            msg = f"{file}: {twice!r} comes twice in one JSON object; keep one of the two"
            raise DataError(msg)
        return found

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        msg = f"{file}, line {error.lineno}: not JSON ({error.msg}); write it again"
        raise DataError(msg) from error
    return _not_empty(file, {query: _json_scores(file, query, found) for query, found in content.items()})


def _json_scores(file: Path, query: str, found: Any) -> dict[str, float]:  # noqa: ANN401 - any JSON
    if not isinstance(found, dict):
        msg = f"{file}: query {query!r} holds no object of scores; expected {{query: {{document: score}}}}"
        raise DataError(msg)
    for document, score in found.items():
        if isinstance(score, bool) or not isinstance(score, int | float):
            msg = (
                f"{file}: query {query!r}, document {document!r} has {str(score)[:40]!r} for a score; "
                "expected {query: {document: score}}"
            )
            raise DataError(msg)
        if score != score:
            raise DataError(f"{file}: {_complaint(query, document, score)}")
    return {document: float(score) for document, score in found.items()}


def write_run(file: Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Write a TREC run, best document first, ties by document id descending; gzipped if named ``.gz``.

    Columns are parted by tabs, which every reader of TREC files takes, so that ids may hold spaces.

    Args:
        file: Where to.
        run: Scores by query and document id.
        tag: Names the run in its last column.

    Raises:
        DataError: If an id or the tag is empty or holds a tab or a line break, or a score is NaN.
        ReasonEmbedError: If the file cannot be written.
    """
    _check_name(file, tag)
    rows = []
    for query, found in run.items():
        _check_name(file, query)
        for document, score in found.items():
            _check_name(file, document)
            if math.isnan(score):
                raise DataError(f"{file}: {_complaint(query, document, score)}")
        ranked = sorted(found.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)
        for rank, (document, score) in enumerate(ranked, start=1):
            rows.append(f"{query}\tQ0\t{document}\t{rank}\t{float(score)!r}\t{tag}\n")
    content = "".join(rows).encode("utf-8")
    # Without a time of writing, so that the same run gives the same bytes.
    write_whole(file, gzip.compress(content, mtime=0) if file.suffix == ".gz" else content)


def _check_name(file: Path, name: str) -> None:
    if not name or any(character in name for character in "\t\n\r"):
        msg = f"cannot write {file}: {name!r} is empty or holds a tab or line break; rename it"
        raise DataError(msg)
