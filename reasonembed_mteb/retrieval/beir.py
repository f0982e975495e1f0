"""BEIR folders on disk: corpus.jsonl, queries.jsonl, qrels/<split>.tsv and, beyond BEIR, excluded.tsv.

``excluded.tsv`` names pairs of query and document that do not count. A folder without one follows BEIR's own
rule: a document with the id of the query does not count for it. Every file may be gzipped (``.gz``).
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import content_hash, replacing_folder
from reasonembed_mteb.retrieval import qrels
from reasonembed_mteb.retrieval.labels import (
    apply_rules,
    check_relevant_documents,
    own_ids,
    warn_of_empty_queries,
)
from reasonembed_mteb.retrieval.text_lines import numbered_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa
    from datasets import Dataset

    from reasonembed_mteb.retrieval.labels import Exclusions, Labels

logger = logging.getLogger(__name__)

CORPUS, QUERIES, LABELS, EXCLUDED = "corpus.jsonl", "queries.jsonl", "qrels", "excluded.tsv"
_LABEL_SUFFIXES = (".tsv", ".txt", ".trec", ".qrels")
# BEIR's own keys come first; the others are those of ir_datasets and Pyserini.
_ID_KEYS = ("_id", "id", "doc_id", "query_id", "docid", "docno", "qid")
_TEXT_KEYS = ("text", "contents", "content", "query")
_TITLE_KEYS = ("title",)
_ROWS = 10_000


def find_file(file: Path) -> Path | None:
    """Return a file of a BEIR folder, plain or gzipped, or None if it is not there.

    Args:
        file: Its plain name.
    """
    packed = file.with_name(f"{file.name}.gz")
    return next((found for found in (file, packed) if found.is_file()), None)


def label_files(folder: Path) -> dict[str, Path]:
    """Return the files of labels of a BEIR folder by split.

    Args:
        folder: A BEIR folder.
    """
    found: dict[str, Path] = {}
    for file in sorted((folder / LABELS).glob("*")):
        plain = file.with_suffix("") if file.suffix == ".gz" else file
        if plain.suffix in _LABEL_SUFFIXES and file.is_file():
            found.setdefault(plain.stem, file)
    return found


def folder_files(folder: Path, split: str = "test") -> list[Path]:
    """Return the files of one split, all of which exist.

    Args:
        folder: A BEIR folder.
        split: Stem of the labels' file.

    Returns:
        Corpus, queries and labels, and ``excluded.tsv`` where there is one.

    Raises:
        DataError: If the folder or one of its files is missing; ``excluded.tsv`` may be.
    """
    if not folder.is_dir():
        msg = f"no folder {folder}; give a BEIR folder ({CORPUS}, {QUERIES}, {LABELS}/{split}.tsv)"
        raise DataError(msg)
    splits = label_files(folder)
    files = [find_file(folder / CORPUS), find_file(folder / QUERIES), splits.get(split)]
    found = [file for file in files if file is not None]
    if len(found) < len(files):
        missing = (CORPUS, QUERIES, f"{LABELS}/{split}.tsv")[files.index(None)]
        others = ", ".join(file.name for file in splits.values())
        hint = f" (there: {others}; --beir-split {next(iter(splits))} takes one)" if splits else ""
        hint = hint if missing.startswith(LABELS) else ""
        msg = f"{folder} has no {missing}{hint}; a BEIR folder needs it, plain or as .gz"
        raise DataError(msg)
    excluded = find_file(folder / EXCLUDED)
    return found if excluded is None else [*found, excluded]


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
        What `reasonembed_mteb.retrieval.layouts.load_split` returns.

    Raises:
        DataError: If a file is missing or wrong; the message names file and line.
    """
    corpus_file, queries_file, labels_file, *_ = folder_files(folder, split)
    corpus, queries = (_as_dataset(file, folder.name) for file in (corpus_file, queries_file))
    warn_of_empty_queries(queries, str(queries_file))
    documents, asked = set(corpus["id"][:]), queries["id"][:]
    labels, excluded = _read_judgements(folder, labels_file, asked, documents)
    return {
        "corpus": corpus,
        "queries": queries.select_columns(["id", "text"]),
        "relevant_docs": labels,
        "top_ranked": None,
        "excluded_ids": excluded,
    }


def _read_judgements(
    folder: Path, file: Path, queries: list[str], documents: set[str]
) -> tuple[Labels, Exclusions]:
    """Read one split's labels and the exclusions, and apply the rules to them."""
    asked = set(queries)
    labels = qrels.read_qrels(file, asked, documents)
    listed = find_file(folder / EXCLUDED)
    if listed is not None:
        excluded = qrels.read_exclusions(listed, asked, documents)
    else:
        excluded = own_ids(labels, queries, documents, str(folder))
    labels, excluded = apply_rules(labels, excluded, queries, documents, str(file))
    if not any(labels.values()):
        msg = f"{file} has no label that counts; nothing could be scored"
        raise DataError(msg)
    return labels, excluded


@dataclass(frozen=True)
class Protected:
    """What a BEIR folder keeps apart from training data.

    Attributes:
        files: The files that say so.
        gold: Ids of the documents that are relevant in any split.
        excluded: Ids of the excluded documents.
        queries: The queries' texts.
    """

    files: tuple[Path, ...]
    gold: frozenset[str]
    excluded: frozenset[str]
    queries: tuple[str, ...]


def read_protected(folder: Path, documents: set[str], without: str | None = None) -> Protected:
    """Read what must stay apart, from every split; queries and labels may be missing.

    Args:
        folder: A BEIR folder.
        documents: Ids of its documents.
        without: A split that is trained on: only the queries that other splits have labels for stay apart.

    Raises:
        DataError: If a file is wrong; the message names file and line.
    """
    queries_file, splits = find_file(folder / QUERIES), label_files(folder)
    texts = {} if queries_file is None else {name: text for name, text, _ in read_texts(queries_file)}
    gold: set[str] = set()
    excluded: set[str] = set()
    asked: set[str] = set()
    for split, file in splits.items():
        if split == without:
            continue
        known = None if queries_file is None else set(texts)
        labels = qrels.read_qrels(file, known, documents)
        check_relevant_documents(labels, documents, str(file))
        asked.update(labels)
        gold.update(d for found in labels.values() for d, label in found.items() if label > 0)
        excluded.update(chain.from_iterable(own_ids(labels, texts, documents, str(file)).values()))
    listed = find_file(folder / EXCLUDED)
    if listed is not None:
        pairs = qrels.read_exclusions(listed, set(texts) or None, documents)
        excluded = set(chain.from_iterable(pairs.values()))
    files = [*splits.values(), *(file for file in (queries_file, listed) if file is not None)]
    apart = tuple(text for name, text in texts.items() if without is None or name in asked)
    return Protected(tuple(files), frozenset(gold), frozenset(excluded), apart)


def read_labels(file: Path) -> Labels:
    """Read a file of labels; one in a BEIR folder is read as the folder's.

    Args:
        file: TREC qrels, or BEIR's table.

    Raises:
        DataError: See `reasonembed_mteb.retrieval.qrels.read_qrels`.
    """
    return qrels.read_qrels(file, *_known_nearby(file))


def read_excluded(file: Path) -> Exclusions:
    """Read a file of exclusions; one in a BEIR folder is read as the folder's.

    Args:
        file: See `reasonembed_mteb.retrieval.qrels.read_exclusions`.

    Raises:
        DataError: If a line cannot be read; the message names file and line.
    """
    return qrels.read_exclusions(file, *_known_nearby(file))


def _known_nearby(file: Path) -> tuple[set[str] | None, set[str] | None]:
    """Return the ids of the BEIR folder around a file, where they could matter to how it is read."""
    place = file.resolve().parent
    folder = place.parent if place.name == LABELS else place
    files = [find_file(folder / name) for name in (QUERIES, CORPUS)]
    if (
        None in files
        or not file.is_file()
        or not any(qrels.may_hide_ids(line) for _, line in numbered_lines(file))
    ):
        return None, None
    queries, documents = ({name for name, *_ in read_texts(one)} for one in files if one is not None)
    return queries, documents


def _as_dataset(file: Path, name: str) -> Dataset:
    """Read a JSON Lines file into Arrow by chunks: id, text and, where there is any, title."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset

    rows = read_texts(file)
    chunks: list[pa.Table] = []
    while chunk := list(islice(rows, _ROWS)):
        columns = zip(*chunk, strict=True)
        chunks.append(pa.table(dict(zip(("id", "text", "title"), map(list, columns), strict=True))))
    table = pa.concat_tables(chunks)
    if not pc.any(pc.not_equal(table["title"], "")).as_py():
        table = table.drop_columns(["title"])
    # Without a name of our own datasets would hash the whole table for one.
    return Dataset(table, fingerprint=f"{name}-{file.stem}-{id(table)}")


def read_texts(file: Path) -> Iterator[tuple[str, str, str]]:
    """Read the documents or the queries of a BEIR folder.

    Args:
        file: JSON Lines with ``_id``, ``text`` and perhaps ``title``, plain or gzipped. Ids may be whole
            numbers; a text or title that is missing, null or NaN is empty; equal lines count once.

    Yields:
        Id, text and title.

    Raises:
        DataError: If a line is wrong, an id has two different texts, or the file holds nothing; the message
            names file and line.
    """
    seen: dict[str, int] = {}
    repeated = without_text = 0
    for number, line in numbered_lines(file):
        where = f"{file}, line {number}"
        name, text, title = record_texts(parse_record(line, where), where)
        content = hash((text, title))
        if name in seen:
            if seen[name] != content:
                raise _contradiction(file, name, number)
            repeated += 1
            continue
        seen[name] = content
        without_text += not (text or title)
        yield name, text, title
    _check_texts(file, len(seen), without_text, repeated)


def _check_texts(file: Path, rows: int, without_text: int, repeated: int) -> None:
    if not rows:
        msg = f"{file} is empty; a BEIR folder has one JSON object a line in it"
        raise DataError(msg)
    if without_text == rows:
        msg = f"{file}: no line has a text; each needs _id and text"
        raise DataError(msg)
    if without_text:
        logger.warning("%s: %d lines have no text; they are empty", file, without_text)
    if repeated:
        logger.warning("%s: %d lines are there twice; each counts once", file, repeated)


def _contradiction(file: Path, name: str, number: int) -> DataError:
    lines = ((n, parse_record(line, f"{file}, line {n}")) for n, line in numbered_lines(file))
    first = next(n for n, record in lines if _id_of(record, f"{file}, line {n}") == name)
    return DataError(
        f"{file}, line {number}: _id {name!r} is also on line {first} with another text; ids must be unique"
    )


def parse_record(line: str, where: str) -> dict[str, Any]:
    """Return what a line of documents or queries holds.

    Args:
        line: JSON.
        where: Names the line in messages.

    Raises:
        DataError: If it is not one JSON object.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"{where} is not JSON ({error}); one object a line is expected"
        raise DataError(msg) from error
    if not isinstance(record, dict):
        msg = (
            f"{where} holds {type(record).__name__}, not an object with _id and text; write one object a line"
        )
        raise DataError(msg)
    return record


def record_texts(record: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    """Return id, text and title of a document or a query; what is missing of the last two is empty.

    Args:
        record: One row, under any of the names that `read_texts` knows.
        where: Names the row in messages.

    Raises:
        DataError: If it has no id, or a value is of another type.
    """
    text, title = (_first_text(record, keys, where) for keys in (_TEXT_KEYS, _TITLE_KEYS))
    return _id_of(record, where), text, title


def document_text(title: str | None, body: str) -> str:
    """Return what a model reads of a document, as in MTEB: the title before the text, stripped.

    Args:
        title: None or empty for none.
        body: The text.
    """
    return (f"{title} {body}" if title else body).strip()


def has_text(record: Mapping[str, Any]) -> bool:
    """Return whether a row has a text, if an empty one.

    Args:
        record: See `record_texts`.
    """
    value = next((record[key] for key in _TEXT_KEYS if key in record), None)
    # NaN is what pandas writes for what is missing.
    return value is not None and value == value


def text_columns(names: Iterable[str]) -> list[str]:
    """Return the columns of a table that hold a document's id, text and title, as far as there are any.

    Args:
        names: All columns.
    """
    known = list(names)
    groups = (_ID_KEYS, _TEXT_KEYS, _TITLE_KEYS)
    return [key for keys in groups if (key := next((key for key in keys if key in known), None))]


def _id_of(record: Mapping[str, Any], where: str) -> str:
    key = next((key for key in _ID_KEYS if key in record), None)
    if key is None:
        msg = (
            f"{where}: '_id' is missing (keys: {', '.join(record) or 'none'}); every line needs _id and text"
        )
        raise DataError(msg)
    value = record[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not _is_unicode(str(value)):
        msg = f"{where}: {key!r} is {value!r}, not text or a whole number; every line needs _id and text"
        raise DataError(msg)
    qrels.check_id(str(value), where)
    return str(value)


def _first_text(record: Mapping[str, Any], keys: Iterable[str], where: str) -> str:
    key = next((key for key in keys if key in record), None)
    value = None if key is None else record[key]
    # pandas writes null or NaN for what is missing.
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        msg = (
            f"{where}: {key!r} is {type(value).__name__}, not text; every line needs _id and text as strings"
        )
        raise DataError(msg)
    # JSON can escape half a character, which no UTF-8 text can hold.
    return (
        value if _is_unicode(value) else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_ROWS_WRITTEN = 10_000


def write_folder(data: Mapping[str, Any], folder: Path, name: str, *, replace: bool = False) -> None:
    """Write one split as a BEIR folder, whole or not at all.

    Args:
        data: What `reasonembed_mteb.retrieval.beir.read_folder` returns; ``corpus`` and ``queries``
            are read in batches.
        folder: A new or empty folder.
        name: What the data are called, for messages.
        replace: Whether a folder with something in it is replaced.

    Raises:
        DataError: If the folder is not empty, or the data do not fit the format: ids that repeat or hold a
            tab, or many labels for documents outside the corpus.
        ReasonEmbedError: If it cannot be written, a full disk for one.
    """
    with replacing_folder(folder, replace=replace) as part:
        documents = _write_records(part / CORPUS, data["corpus"], f"{name}, corpus")
        queries = _write_records(part / QUERIES, data["queries"], f"{name}, queries")
        labels, excluded = data["relevant_docs"], data.get("excluded_ids") or {}
        check_relevant_documents({q: gold for q, gold in labels.items() if q in queries}, documents, name)
        rows = ((q, d, score) for q, gold in labels.items() if q in queries for d, score in gold.items())
        qrels.write_table(part / LABELS / "test.tsv", qrels.LABEL_HEAD, rows)
        pairs = ((q, d) for q, names in excluded.items() if q in queries for d in names if d in documents)
        qrels.write_table(part / EXCLUDED, qrels.LABEL_HEAD[:2], pairs)


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
                qrels.check_id(name, where)
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
