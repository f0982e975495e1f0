"""Files of training rows, read as a stream: every raw row with its place."""

from __future__ import annotations

import gzip
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from reasonembed_mteb.errors import DataError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# Part of every key: a change of what is stored must not meet old files.
VERSION = 2
ROWS_A_BATCH = 256
# reason-embed-data's files are named `<subset>-formatted.jsonl`.
_ENDING = "-formatted"


@dataclass(frozen=True)
class ReadOptions:
    """How rows are read.

    Attributes:
        invalid: ``error`` stops at the first broken row, ``drop`` counts it.
        missing_reasoning: ``plain`` keeps rows without a reasoning query, ``error`` stops at the first.
        negatives: Whether rows without a negative are dropped.
    """

    invalid: str = "error"
    missing_reasoning: str = "plain"
    negatives: bool = True


def subset_name(file: Path) -> str:
    """Return the subset that a file holds.

    Args:
        file: Such as ``biology-formatted.jsonl``.
    """
    ending = next((suffix for suffix in SUFFIXES if file.name.endswith(suffix)), file.suffix)
    return file.name.removesuffix(ending).removesuffix(_ENDING)


def source_files(path: Path) -> list[Path]:
    """Return a file itself, or the files of a folder.

    Args:
        path: File or folder.

    Raises:
        DataError: If there is none that can be read.
    """
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            msg = f"{path} is none of {', '.join(SUFFIXES)}"
            raise DataError(msg)
        return [path]
    if not path.exists():
        msg = f"there is no {path}: give a file ({', '.join(SUFFIXES)}) or a folder of them"
        raise DataError(msg)
    found = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
    if not found:
        msg = f"{path} holds no {', '.join(SUFFIXES)} file; give the folder in which the files lie"
        raise DataError(msg)
    return found


def read_file(file: Path, options: ReadOptions, counts: Counter[str]) -> Iterator[tuple[str, Any]]:
    """Yield a file's raw rows, each with its place.

    Args:
        file: ``.jsonl``, ``.jsonl.gz`` or ``.parquet``.
        options: How to read.
        counts: Broken lines are counted here where they are dropped.

    Yields:
        Such as ``("biology.jsonl, line 7", {...})``.

    Raises:
        DataError: If the file or a line of it is broken.
    """
    try:
        if file.name.endswith(".parquet"):
            yield from _read_parquet(file)
            return
        # In bytes, lines end at \n only: JSON may hold other line separators.
        with gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                place = f"{file}, line {number}"
                if not line.strip():
                    counts["lines dropped: empty"] += 1
                    continue
                try:
                    yield place, json.loads(line)
                except (ValueError, RecursionError) as error:
                    counts["rows read"] += 1
                    refuse(place, f"not JSON ({_reason(error)})", options, counts)
    except (OSError, EOFError) as error:
        msg = f"cannot read {file}: {getattr(error, 'strerror', None) or error}; fetch it again"
        raise DataError(msg) from error


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _read_parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_A_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", row
    except pa.ArrowInvalid as error:
        msg = f"{file} is no Parquet file, or damaged after row {number}: {str(error).splitlines()[0]}"
        raise DataError(msg) from error


def refuse(place: str, why: str, options: ReadOptions, counts: Counter[str]) -> None:
    """Count a broken row, or stop.

    Args:
        place: Where it stands.
        why: What is wrong with it.
        options: Which of the two.
        counts: Counted up.

    Raises:
        DataError: If broken rows are not dropped.
    """
    if options.invalid == "drop":
        counts["rows dropped: broken"] += 1
        logger.warning("%s: %s; dropped", place, why)
        return
    msg = f"{place}: {why}; mend the row, or drop and count such rows with --set data.invalid=drop"
    raise DataError(msg)


def file_key(files: Sequence[Path], options: ReadOptions) -> str:
    """Return a key of files by content: a copy elsewhere is the same data.

    Args:
        files: The files.
        options: How they are read.

    Raises:
        DataError: If one cannot be read.
    """
    digest = xxhash.xxh3_128(repr((VERSION, options)).encode())
    for file in files:
        try:
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        except OSError as error:
            msg = f"cannot read {file}: {error.strerror}"
            raise DataError(msg) from error
    return digest.hexdigest()[:16]
