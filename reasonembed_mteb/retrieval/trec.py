"""Runs: TREC's files, BRIGHT's JSON, and the predictions that MTEB saves; plain or gzipped.

TREC's columns are parted by tabs or by white space. Where a row has as many tabs as its format asks for, ids
are taken as they stand; else the document id is what lies between the columns before and behind it, so that
it may hold spaces.
"""

from __future__ import annotations

import gzip
import json
import math
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import write_whole
from reasonembed_mteb.retrieval.text_lines import numbered_lines, open_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# The key that MTEB puts next to the subsets in its predictions.
_PREDICTIONS = "mteb_model_meta"
_RUN_COLUMNS = "query id, Q0, document id, rank, score, tag"

Run = dict[str, dict[str, float]]


def _bad(file: Path, number: int, line: str) -> DataError:
    shown = line if len(line) <= 80 else f"{line[:77]}..."
    return DataError(f"{file}, line {number}: expected {_RUN_COLUMNS}; found {shown!r}")


def _not_empty(file: Path, found: dict[str, Any]) -> dict[str, Any]:
    if not found:
        msg = f"{file} holds no rows; give a file that does"
        raise DataError(msg)
    return found


def _run_row(line: str) -> tuple[str, str, str]:
    cells = line.split("\t")
    if len(cells) == 6:
        return cells[0], cells[2], cells[4]
    query, _, rest = line.split(None, 2)
    document, rank, score, _ = rest.rsplit(None, 3)
    # Where the tag holds a space or is missing, the columns have shifted and this is no number.
    int(rank)
    return query, document, score


def read_run(file: Path, subset: str | None = None, split: str | None = None) -> Run:
    """Read a run: TREC's six columns, JSON ``{query id: {document id: score}}``, or MTEB's predictions.

    Args:
        file: Plain or gzipped; JSON is told by its first character, predictions by their depth
            (subset, split, query, document).
        subset: Which subset of predictions; not needed where there is one.
        split: Which split of predictions; not needed where there is one.

    Returns:
        Scores by query and document id, in the order of the file. TREC's ranks are not used.

    Raises:
        DataError: If it cannot be read, a query has a document twice, a score is NaN, or there is no
            row; the message names file and line (for JSON, file, query and document). If predictions hold
            several subsets or splits and none is chosen; the message names them.
    """
    with open_text(file) as stream:
        first = next((line for line in stream if not line.isspace()), "")
    if first.lstrip()[:1] == "{":
        return _json_run(file, subset, split)
    run: Run = {}
    for number, line in numbered_lines(file):
        if line.isspace():
            continue
        try:
            query, document, value = _run_row(line)
            score = float(value)
        except ValueError:
            raise _bad(file, number, line) from None
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


def _json_run(file: Path, subset: str | None, split: str | None) -> Run:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            msg = f"{file}: {twice!r} comes twice in one JSON object; keep one of the two"
            raise DataError(msg)
        return found

    with open_text(file) as stream:
        text = stream.read()
    try:
        content = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        msg = f"{file}, line {error.lineno}: not JSON ({error.msg}); write it again"
        raise DataError(msg) from error
    if _PREDICTIONS in content or _are_predictions(content):
        content = _chosen_predictions(file, content, subset, split)
    return _not_empty(file, {query: _json_scores(file, query, found) for query, found in content.items()})


def _are_predictions(content: dict[str, Any]) -> bool:
    """Tell MTEB's subset -> split -> query -> document -> score from query -> document -> score."""
    splits = next((found for found in content.values() if isinstance(found, dict) and found), {})
    return isinstance(next(iter(splits.values()), None), dict)


def _chosen_predictions(
    file: Path, content: dict[str, Any], subset: str | None, split: str | None
) -> dict[str, Any]:
    found: Any = {name: held for name, held in content.items() if name != _PREDICTIONS}
    for kind, given in (("subset", subset), ("split", split)):
        if not isinstance(found, dict) or not found:
            msg = f"{file} holds no predictions of a retrieval task; give what --prediction-folder saved"
            raise DataError(msg)
        if given is None and len(found) == 1:
            given = next(iter(found))
        if given not in found:
            asked = f"has no {kind} {given!r}" if given is not None else f"has {len(found)} {kind}s"
            msg = f"{file} {asked}; choose one with --{kind}: {', '.join(found)}"
            raise DataError(msg)
        found = found[given]
    if not isinstance(found, dict):
        msg = f"{file}: subset {subset!r}, split {split!r} holds no object of queries; write it again"
        raise DataError(msg)
    return dict(found)


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
