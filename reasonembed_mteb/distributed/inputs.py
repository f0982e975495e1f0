"""Documents of any size, cut into slices that any machine can read, and into blocks that are encoded whole.

Where a slice and where a block ends depends on the files and the budget alone, never on machines or threads.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from reasonembed_mteb.errors import DataError, one_line
from reasonembed_mteb.retrieval.beir import (
    CORPUS,
    EXCLUDED,
    QUERIES,
    document_text,
    find_file,
    has_text,
    parse_record,
    record_texts,
    text_columns,
)
from reasonembed_mteb.retrieval.qrels import read_exclusions
from reasonembed_mteb.store.places import matching, opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.retrieval.labels import Exclusions

_PARQUET, _LINES, _PACKED = ".parquet", (".jsonl", ".ndjson", ".json"), ".gz"
# Bytes of a slice of lines, and rows of a slice of Parquet.
SLICE_BYTES, SLICE_ROWS = 1 << 26, 1 << 17
# English in today's vocabularies; a block's budget needs no tokeniser.
_CHARACTERS_PER_TOKEN = 4
_MOST_ROWS = 8192
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_READ_ROWS = 4096


@dataclass(frozen=True)
class Slice:
    """A part of a file that one machine reads.

    Attributes:
        url: The file.
        start: Of lines, the first byte; of Parquet, the first row group. A line belongs to the slice that its
            first byte is in.
        stop: Behind the last.
    """

    url: str
    start: int
    stop: int


@dataclass(frozen=True)
class InputText:
    """A row of the input.

    Attributes:
        id: Its id.
        text: What a model reads of it, the title before the text.
    """

    id: str
    text: str


@dataclass(frozen=True)
class Block:
    """Documents that are encoded and stored together.

    Attributes:
        key: A hash of their ids and texts and of how they are encoded, 32 hex digits.
        documents: In order.
    """

    key: str
    documents: tuple[InputText, ...]


@dataclass(frozen=True)
class Scan:
    """What a slice holds, found without encoding.

    Attributes:
        place: Of the slice among all.
        keys: Of its blocks, in order.
        rows: Documents of each block.
        ids: ``(N,)`` hashes of the documents' ids, in order.
    """

    place: int
    keys: tuple[str, ...]
    rows: tuple[int, ...]
    ids: NDArray[np.uint64]


def find_slices(
    source: str,
    slice_bytes: int = SLICE_BYTES,
    slice_rows: int = SLICE_ROWS,
    *,
    named: str = CORPUS,
) -> list[Slice]:
    """Cut an input into slices.

    Args:
        source: A file of Parquet or JSON Lines, a folder or pattern of such files, or a BEIR folder; a path
            or an address.
        slice_bytes: Of lines; gzipped files are one slice each, as they can only be read from their start.
        slice_rows: Of Parquet, as far as its row groups allow.
        named: The file of a BEIR folder that is meant.

    Raises:
        DataError: If there is nothing that can be read.
        StoreError: If it cannot be reached.
    """
    found: list[Slice] = []
    for url, size in _data_files(source, named):
        if url.endswith(_PARQUET):
            found += _row_group_slices(url, slice_rows)
        elif url.endswith(_PACKED):
            found.append(Slice(url, 0, max(size, 1)))
        else:
            starts = range(0, size, slice_bytes)
            found += [Slice(url, start, min(start + slice_bytes, size)) for start in starts]
    return found


def _data_files(source: str, named: str) -> list[tuple[str, int]]:
    """Return the files of texts; where there are BEIR folders, the named file of each alone."""
    every = dict(matching(source))
    packed = f"{named}{_PACKED}"
    names = [url for url in every if url.rsplit("/", 1)[-1] in (named, packed)]
    # As everywhere, the plain file goes before the packed one.
    names = [url for url in names if url.removesuffix(_PACKED) not in names or not url.endswith(_PACKED)]
    files = names or [url for url in every if _is_data(url)]
    if not files:
        msg = (
            f"{source} holds no texts: give Parquet (.parquet) or JSON Lines (.jsonl, .jsonl.gz), or a "
            f"BEIR folder with its {named}"
        )
        raise DataError(msg)
    return [(url, every[url]) for url in files]


def _is_data(url: str) -> bool:
    return url.endswith(_PARQUET) or url.removesuffix(_PACKED).endswith(_LINES)


def _row_group_slices(url: str, slice_rows: int) -> Iterator[Slice]:
    with _parquet(url) as file:
        sizes = [file.metadata.row_group(one).num_rows for one in range(file.num_row_groups)]
    start, rows = 0, 0
    for group, size in enumerate(sizes):
        if rows and rows + size > slice_rows:
            yield Slice(url, start, group)
            start, rows = group, 0
        rows += size
    if rows:
        yield Slice(url, start, len(sizes))


@contextlib.contextmanager
def _parquet(url: str) -> Iterator[Any]:
    """Open a Parquet file wherever it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(url) as stream:
        try:
            # Pages are read later, by whoever has the file.
            yield pq.ParquetFile(stream)
        except (OSError, pa.ArrowException) as error:
            msg = f"cannot read {url} as Parquet: {one_line(error)}; fetch or write it again"
            raise DataError(msg) from error


def read_slice(one: Slice) -> Iterator[InputText]:
    """Read the documents of a slice, in order.

    Args:
        one: See `find_slices`.

    Raises:
        DataError: If a row has no id or no text; the message names file and row.
    """
    for _, document in _numbered(one):
        yield document


def _numbered(one: Slice) -> Iterator[tuple[int, InputText]]:
    """Yield the documents of a slice, each with what `_where` names its row by."""
    for place, record in _rows(one) if one.url.endswith(_PARQUET) else _lines(one):
        try:
            name, text, title = record_texts(record, "")
        except DataError:
            record_texts(record, _where(one, place))
            raise
        if not (text or title or has_text(record)):
            msg = f"{_where(one, place)}: the document {name!r} has no text; mend or leave out the row"
            raise DataError(msg)
        yield place, InputText(name, document_text(title, text))


def _where(one: Slice, place: int) -> str:
    """Name a row in a message."""
    if one.url.endswith(_PARQUET):
        return f"{one.url}, row {place + 1}"
    # Counting lines is dear, and done for a message alone.
    before = sum(1 for start, _ in _raw_lines(Slice(one.url, 0, place)) if start < place)
    return f"{one.url}, line {before + 1}"


def _rows(one: Slice) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows with their numbers in the file."""
    with _parquet(one.url) as file:
        columns = text_columns(file.schema_arrow.names)
        number = sum(file.metadata.row_group(group).num_rows for group in range(one.start))
        groups = list(range(one.start, one.stop))
        for batch in file.iter_batches(_READ_ROWS, row_groups=groups, columns=columns, use_threads=False):
            for record in batch.to_pylist():
                yield number, record
                number += 1


def _lines(one: Slice) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows with the places of their first bytes."""
    for place, line in _raw_lines(one):
        text = line.removeprefix(_BYTE_ORDER_MARK) if place == 0 else line
        if text.strip():
            yield place, _record(one, place, text)


def _record(one: Slice, place: int, line: bytes) -> dict[str, Any]:
    try:
        return parse_record(line.decode("utf-8"), "")
    except UnicodeDecodeError as error:
        msg = f"{_where(one, place)} is not UTF-8 text; save it as UTF-8"
        raise DataError(msg) from error
    except DataError:
        parse_record(line.decode("utf-8"), _where(one, place))
        raise


def _raw_lines(one: Slice) -> Iterator[tuple[int, bytes]]:
    """Yield the lines whose first byte is in the slice, each with that byte's place."""
    with opened(one.url) as stream:
        if one.url.endswith(_PACKED):
            try:
                position = 0
                with gzip.open(stream, "rb") as packed:
                    for line in packed:
                        yield position, line
                        position += len(line)
            except (OSError, EOFError, zlib.error) as error:
                msg = f"{one.url} is a damaged gzip file ({error}); fetch or write it again"
                raise DataError(msg) from error
            return
        position = one.start
        if position:
            # The line that runs into the slice, if only by its end, is the slice before's.
            stream.seek(position - 1)
            position += len(stream.readline()) - 1
        while position < one.stop and (line := stream.readline()):
            yield position, line
            position += len(line)


def blocks(documents: Iterable[InputText], tokens: int, salt: str) -> Iterator[Block]:
    """Cut documents into blocks.

    Args:
        documents: In order.
        tokens: Of a block, estimated by characters; a longer text has a block of its own.
        salt: What else decides how they are encoded.

    Yields:
        Blocks of at most 8,192 documents.
    """
    held: list[InputText] = []
    cost = 0
    for document in documents:
        own = 1 + len(document.text) // _CHARACTERS_PER_TOKEN
        if held and (cost + own > tokens or len(held) == _MOST_ROWS):
            yield Block(_key(held, salt), tuple(held))
            held, cost = [], 0
        held.append(document)
        cost += own
    if held:
        yield Block(_key(held, salt), tuple(held))


def _key(documents: Sequence[InputText], salt: str) -> str:
    digest = xxhash.xxh3_128(salt.encode())
    for one in documents:
        name, text = one.id.encode(), one.text.encode("utf-8", "surrogatepass")
        digest.update(len(name).to_bytes(8, "little") + name + len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def scan_slice(place: int, one: Slice, tokens: int, salt: str) -> Scan:
    """Read a slice once: how many documents, which blocks, which ids.

    Args:
        place: Of the slice among all.
        one: The slice.
        tokens: Of a block; see `blocks`.
        salt: See `blocks`.

    Raises:
        DataError: If a row has no id or no text.
    """
    keys, rows = [], []
    ids: list[int] = []
    for block in blocks(read_slice(one), tokens, salt):
        keys.append(block.key)
        rows.append(len(block.documents))
        ids += [_id_hash(document.id) for document in block.documents]
    return Scan(place, tuple(keys), tuple(rows), np.array(ids, dtype=np.uint64))


def check_ids(slices: Sequence[Slice], scans: Sequence[Scan]) -> None:
    """Refuse an input in which two documents have one id.

    The leading process holds eight bytes a document for it.

    Args:
        slices: Of the input.
        scans: Of all slices, in their order.

    Raises:
        DataError: If an id comes twice; the message names it and both rows.
    """
    every = np.concatenate([scan.ids for scan in scans]) if scans else np.empty(0, dtype=np.uint64)
    every.sort()
    twice = set(every[1:][every[1:] == every[:-1]].tolist())
    if not twice:
        return
    seen: dict[str, tuple[Slice, int]] = {}
    for one, scan in zip(slices, scans, strict=True):
        if not np.isin(scan.ids, np.fromiter(twice, np.uint64)).any():
            continue
        for place, document in _numbered(one):
            if _id_hash(document.id) not in twice:
                continue
            # Two ids may share a hash.
            if document.id in seen:
                msg = (
                    f"the id {document.id!r} comes twice, in {_where(*seen[document.id])} and in "
                    f"{_where(one, place)}; ids must be unique"
                )
                raise DataError(msg)
            seen[document.id] = one, place


def _id_hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def read_queries(source: str, excluded: Path | None = None) -> tuple[dict[str, str], Exclusions]:
    """Read queries, and the pairs of query and document that do not count.

    Args:
        source: JSON Lines, Parquet, or a BEIR folder, whose ``excluded.tsv`` holds where none is given.
        excluded: A file of pairs.

    Returns:
        Texts by query id, and excluded document ids by query id.

    Raises:
        DataError: If there is no query, one has no id or no text, or an id comes twice.
    """
    texts: dict[str, str] = {}
    for one in find_slices(source, named=QUERIES):
        for query in read_slice(one):
            if query.id in texts:
                msg = f"{one.url}: the query id {query.id!r} comes twice; ids must be unique"
                raise DataError(msg)
            texts[query.id] = query.text
    if not texts:
        msg = f"{source} holds no query; give a file with at least one"
        raise DataError(msg)
    folder = Path(source).expanduser()
    own = find_file(folder / EXCLUDED) if folder.is_dir() else None
    file = excluded or own
    return texts, {} if file is None else read_exclusions(file, set(texts), None)
