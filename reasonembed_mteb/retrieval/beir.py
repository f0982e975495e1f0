"""BEIR folders on disk: corpus.jsonl, queries.jsonl, qrels/<split>.tsv and, beyond BEIR, excluded.tsv.

``excluded.tsv`` names pairs of query and document that do not count. A folder without one follows BEIR's own
rule: a document with the id of the query does not count for it.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import shutil
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.files import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

CORPUS, QUERIES, LABELS, EXCLUDED = "corpus.jsonl", "queries.jsonl", "qrels", "excluded.tsv"
# Column names of BEIR's own files.
LABEL_HEAD = ("query-id", "corpus-id", "score")
_ROWS = 10_000

Labels = dict[str, dict[str, int]]
Exclusions = dict[str, list[str]]


def folder_files(folder: Path, split: str = "test") -> list[Path]:
    """Return the files of one split, all of which exist.

    Args:
        folder: A BEIR folder.
        split: Stem of the labels' file.

    Raises:
        DataError: If the folder or one of its files is missing; ``excluded.tsv`` may be.
    """
    if not folder.is_dir():
        msg = f"no folder {folder}; give a BEIR folder ({CORPUS}, {QUERIES}, {LABELS}/{split}.tsv)"
        raise DataError(msg)
    files = [folder / CORPUS, folder / QUERIES, folder / LABELS / f"{split}.tsv"]
    for file in files:
        if not file.is_file():
            beside = sorted(other.name for other in file.parent.glob(f"*{file.suffix}"))
            found = f" (there: {', '.join(beside)})" if beside else ""
            msg = f"{folder} has no {file.relative_to(folder).as_posix()}{found}; a BEIR folder needs it"
            raise DataError(msg)
    return [*files, folder / EXCLUDED] if (folder / EXCLUDED).is_file() else files


def folder_revision(folder: Path, split: str = "test") -> str:
    """Return a hash of the files that decide a score on a BEIR folder.

    Args:
        folder: A BEIR folder.
        split: Stem of the labels' file.

    Raises:
        DataError: If a file is missing.
    """
    return content_hash(folder_files(folder, split))


def read_folder(folder: Path, split: str = "test") -> dict[str, Any]:
    """Read and check a BEIR folder.

    Args:
        folder: A BEIR folder.
        split: Stem of the labels' file.

    Returns:
        What `reasonembed_mteb.retrieval.labels.load_split` returns.

    Raises:
        DataError: If a file is missing or wrong; the message names file and line.
    """
    folder_files(folder, split)
    corpus = _read_records(folder / CORPUS, folder.name)
    queries = _read_records(folder / QUERIES, folder.name)
    known, asked = set(corpus["id"][:]), set(queries["id"][:])
    labels = _read_labels(folder / LABELS / f"{split}.tsv", asked, known)
    excluded: Exclusions = {}
    if (folder / EXCLUDED).is_file():
        excluded = _read_exclusions(folder / EXCLUDED, asked, known)
        _drop_excluded_gold(labels, excluded, folder)
    else:
        # Their labels stay, as in BEIR, where such a document remains in the ideal ranking.
        excluded = {query: [query] for query in queries["id"][:] if query in known}
    return {
        "corpus": corpus,
        "queries": queries.select_columns(["id", "text"]),
        "relevant_docs": labels,
        "top_ranked": None,
        "excluded_ids": excluded,
    }


def _drop_excluded_gold(labels: Labels, excluded: Exclusions, folder: Path) -> None:
    both = [(q, d) for q, documents in excluded.items() for d in documents if d in labels.get(q, {})]
    for query, document in both:
        del labels[query][document]
    if both:
        logger.warning(
            "%s: %d documents are both relevant and excluded; they count as excluded", folder, len(both)
        )


def _read_records(file: Path, name: str) -> Dataset:
    """Read a JSON Lines file into Arrow by chunks: id, text and, where there is any, title."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset

    lines: dict[str, int] = {}
    rows = _checked_rows(file, lines)
    chunks: list[pa.Table] = []
    while chunk := list(islice(rows, _ROWS)):
        columns = zip(*chunk, strict=True)
        chunks.append(pa.table(dict(zip(("id", "text", "title"), map(list, columns), strict=True))))
    if not chunks:
        msg = f"{file} is empty; a BEIR folder has one JSON object a line in it"
        raise DataError(msg)
    table = pa.concat_tables(chunks)
    if not pc.any(pc.not_equal(table["title"], "")).as_py():
        table = table.drop_columns(["title"])
    # Without a name of our own datasets would hash the whole table for one.
    return Dataset(table, fingerprint=f"{name}-{file.stem}-{id(table)}")


def _checked_rows(file: Path, lines: dict[str, int]) -> Iterator[tuple[str, str, str]]:
    """Yield id, text and title of each line; ``lines`` takes the line of each id."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            record = _parse(line, where)
            name = _field(record, "_id", where)
            check_id(name, where)
            if name in lines:
                msg = f"{where}: _id {name!r} is also on line {lines[name]}; ids must be unique"
                raise DataError(msg)
            lines[name] = number
            yield name, _field(record, "text", where), _field(record, "title", where, default="")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        msg = f"{where} is not JSON in UTF-8 ({error}); one object a line is expected"
        raise DataError(msg) from error
    if not isinstance(record, dict):
        msg = f"{where} holds {type(record).__name__}, not an object with _id and text"
        raise DataError(msg)
    return record


def _field(record: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = record.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        found = "is missing" if key not in record else f"is {value!r}, not text"
        msg = f"{where}: {key!r} {found}; every line needs _id and text as strings"
        raise DataError(msg)
    return value


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


def _read_tsv(file: Path, width: int) -> Iterator[tuple[str, list[str]]]:
    """Yield where it is and the cells of each row after the header."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            # BEIR's own reader and dialect: an id with a quotation mark is quoted.
            rows = csv.reader(stream, delimiter="\t", strict=True)
            for row in rows:
                where = f"{file}, line {rows.line_num}"
                if not row:
                    continue
                if len(row) != width:
                    head = "<tab>".join(LABEL_HEAD[:width])
                    msg = f"{where} has {len(row)} columns instead of {width} ({head}); separate them by tabs"
                    raise DataError(msg)
                yield where, row
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"{file} cannot be read as tab-separated UTF-8 ({error}); write it again"
        raise DataError(msg) from error


def _rows_below_header(file: Path, width: int, queries: set[str]) -> Iterator[tuple[str, list[str]]]:
    rows = _read_tsv(file, width)
    first = next(rows, None)
    head = "<tab>".join(LABEL_HEAD[:width])
    if first is None:
        msg = f"{file} is empty; its first line must be the header {head}"
        raise DataError(msg)
    where, cells = first
    if cells[0] in queries or (width > 2 and _is_integer(cells[2])):
        msg = (
            f"{where} is data where the header {head} belongs; BEIR's readers skip that line: add the header"
        )
        raise DataError(msg)
    yield from rows


def _is_integer(cell: str) -> bool:
    try:
        int(cell)
    except ValueError:
        return False
    return True


def _check_pair(cells: Sequence[str], where: str, queries: set[str], documents: set[str]) -> None:
    for name, held, file in ((cells[0], queries, QUERIES), (cells[1], documents, CORPUS)):
        if name not in held:
            msg = f"{where}: {name!r} is not in {file}; correct the line or remove it"
            raise DataError(msg)


def _read_labels(file: Path, queries: set[str], documents: set[str]) -> Labels:
    labels: Labels = {}
    for where, cells in _rows_below_header(file, 3, queries):
        _check_pair(cells, where, queries, documents)
        query, document, score = cells
        if not _is_integer(score) or int(score) < 0:
            msg = f"{where}: label {score!r} must be a whole number of 0 or more"
            raise DataError(msg)
        if document in labels.setdefault(query, {}):
            msg = f"{where}: {query!r} and {document!r} are labelled twice; keep one of the lines"
            raise DataError(msg)
        labels[query][document] = int(score)
    if not labels:
        msg = f"{file} has no label below its header; nothing could be scored"
        raise DataError(msg)
    return labels


def _read_exclusions(file: Path, queries: set[str], documents: set[str]) -> Exclusions:
    excluded: dict[str, dict[str, None]] = {}
    for where, cells in _rows_below_header(file, 2, queries):
        _check_pair(cells, where, queries, documents)
        excluded.setdefault(cells[0], {})[cells[1]] = None
    return {query: list(names) for query, names in excluded.items()}


_ROWS_WRITTEN = 10_000
_NAMED = 5


def write_folder(data: Mapping[str, Any], folder: Path, name: str) -> None:
    """Write one split as a BEIR folder, whole or not at all.

    Args:
        data: What `reasonembed_mteb.retrieval.beir.read_folder` returns; ``corpus`` and ``queries``
            are read in batches.
        folder: A new or empty folder.
        name: What the data are called, for messages.

    Raises:
        DataError: If the folder is not empty, or the data do not fit the format: ids that repeat or hold a
            tab, labels below 0 or for documents outside the corpus.
        ReasonEmbedError: If it cannot be written, a full disk for one.
    """
    with _whole_folder(folder) as part:
        documents = _write_records(part / CORPUS, data["corpus"], f"{name}, corpus")
        queries = _write_records(part / QUERIES, data["queries"], f"{name}, queries")
        labels, excluded = data["relevant_docs"], data.get("excluded_ids") or {}
        _check_writable(labels, queries, documents, name)
        rows = ((q, d, score) for q, gold in labels.items() if q in queries for d, score in gold.items())
        _write_tsv(part / LABELS / "test.tsv", LABEL_HEAD, rows)
        pairs = ((q, d) for q, names in excluded.items() if q in queries for d in names if d in documents)
        _write_tsv(part / EXCLUDED, LABEL_HEAD[:2], pairs)


def _check_writable(
    labels: Mapping[str, Mapping[str, int]], queries: set[str], documents: set[str], name: str
) -> None:
    pairs = [(d, score) for q, gold in labels.items() if q in queries for d, score in gold.items()]
    missing = sorted({document for document, _ in pairs if document not in documents})
    if missing:
        msg = (
            f"{name}: {len(missing)} relevant documents are not in the corpus "
            f"({', '.join(missing[:_NAMED])}); a BEIR folder cannot hold them, and without them the scores "
            "would change"
        )
        raise DataError(msg)
    if any(score < 0 for _, score in pairs):
        msg = f"{name} has labels below 0, which BEIR does not know; it cannot be exported"
        raise DataError(msg)


@contextlib.contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes the name once the block has ended without an error."""
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} exists and is not an empty folder; give a new one"
        raise DataError(msg)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rmdir()
        part.replace(folder)
    except OSError as error:
        msg = f"cannot write {folder}: {error.strerror or error}; free space or choose another folder"
        raise ReasonEmbedError(msg) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(lines)
        stream.flush()
        os.fsync(stream.fileno())


def _write_records(file: Path, rows: Dataset, where: str) -> set[str]:
    """Write id, text and title of each row; return the ids."""
    written: set[str] = set()

    def lines() -> Iterator[str]:
        for batch in rows.iter(batch_size=_ROWS_WRITTEN):
            titles = batch.get("title") or [""] * len(batch["id"])
            for name, text, title in zip(batch["id"], batch["text"], titles, strict=True):
                check_id(name, where)
                if name in written:
                    msg = f"{where}: id {name!r} occurs twice; it cannot be exported"
                    raise DataError(msg)
                written.add(name)
                record = {"_id": name, "title": title or "", "text": text}
                yield json.dumps(record, ensure_ascii=False) + "\n"

    _write_lines(file, lines())
    if not written:
        msg = f"{where}: there is nothing to export"
        raise DataError(msg)
    return written


def _write_tsv(file: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    file.parent.mkdir(exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(chain([head], rows))
        stream.flush()
        os.fsync(stream.fileno())
