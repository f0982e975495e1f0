"""Writing BEIR folders, whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
from itertools import chain
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.retrieval.beir_folder import CORPUS, EXCLUDED, LABEL_HEAD, LABELS, QUERIES, check_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset

_ROWS = 10_000
_NAMED = 5


def write_folder(data: Mapping[str, Any], folder: Path, name: str) -> None:
    """Write one split as a BEIR folder, whole or not at all.

    Args:
        data: What `reasonembed_mteb.retrieval.beir_folder.read_folder` returns; ``corpus`` and ``queries``
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
        for batch in rows.iter(batch_size=_ROWS):
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
