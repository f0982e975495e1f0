"""Training data: read as a stream, checked line by line, kept on disk."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import xxhash

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import replacing, write_whole
from reasonembed_mteb.training.reading import (
    ROWS_A_BATCH,
    VERSION,
    ReadOptions,
    file_key,
    read_file,
    refuse,
    source_files,
    subset_name,
)
from reasonembed_mteb.training.rows import BadRowError, Row, parse_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclass
class TrainingData:
    """Rows by subset, and what became of the rest.

    Attributes:
        subsets: For each subset a memory-mapped data set with the columns ``subset``, ``row``, ``query``,
            ``reasoning`` (or null), ``instruction`` (or null), ``positives`` and ``negatives``.
        counts: For each subset, counts by what was counted: ``rows read``, ``rows kept``, ``rows without
            reasoning query``, ``rows dropped: ...``, ``negatives removed: ...``.
        key: Hash of everything that was read.
    """

    subsets: dict[str, Dataset]
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    key: str = ""

    @property
    def rows(self) -> int:
        """Rows of all subsets."""
        return sum(len(rows) for rows in self.subsets.values())

    @property
    def has_reasoning(self) -> bool:
        """Whether any row has a reasoning query."""
        return any(
            counts["rows kept"] > counts["rows without reasoning query"] for counts in self.counts.values()
        )


def always(subset: str) -> bool:
    """Say yes.

    Args:
        subset: Any.
    """
    del subset
    return True


def load_training_data(
    sources: Sequence[str | Path],
    *,
    cache: Path,
    options: ReadOptions | None = None,
    needs_negatives: Callable[[str], bool] = always,
) -> TrainingData:
    """Read files or folders into rows on disk; what was read before is taken from there.

    Args:
        sources: ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` files, folders of them (one file a subset, named
            ``<subset>.jsonl`` or ``<subset>-formatted.jsonl``), or folders written by
            ``datasets.Dataset.save_to_disk``.
        cache: Folder for the checked rows.
        options: How to read.
        needs_negatives: Whether a subset's rows need a negative; those without are then dropped.

    Returns:
        The rows; texts stay on disk.

    Raises:
        DataError: If a file is missing, or a row broken: with its file and line number.
    """
    options = options or ReadOptions()
    parts: dict[str, list[Path]] = {}
    loaded: dict[str, Any] = {}
    for source in sources:
        path = Path(source).expanduser()
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded |= _saved(path)
            continue
        for file in source_files(path):
            parts.setdefault(subset_name(file), []).append(file)
    data = TrainingData({})
    for subset, files in parts.items():
        reading = replace(options, negatives=needs_negatives(subset))
        key = file_key(files, reading)
        raw = (row for file in files for row in read_file(file, reading, _counter(data, subset)))
        _keep(data, subset, raw, cache / f"{_safe(subset)}-{key}", reading)
    for subset, rows in loaded.items():
        _add_dataset(data, subset, rows, cache, replace(options, negatives=needs_negatives(subset)))
    return _finish(data)


def from_datasets(
    given: Mapping[str, Dataset] | Dataset,
    *,
    cache: Path,
    options: ReadOptions | None = None,
    needs_negatives: Callable[[str], bool] = always,
) -> TrainingData:
    """Check the rows of `datasets` objects.

    Args:
        given: Data sets by subset, or one with a column ``subset`` (without it, the subset is ``all``).
            Columns as in `reasonembed_mteb.training.rows`.
        cache: Folder for the checked rows.
        options: How to read.
        needs_negatives: Whether a subset's rows need a negative; those without are then dropped.

    Returns:
        The rows; texts stay on disk.

    Raises:
        DataError: If a row is broken, with its subset and number.
    """
    options = options or ReadOptions()
    data = TrainingData({})
    for subset, rows in _by_subset(given).items():
        _add_dataset(data, subset, rows, cache, replace(options, negatives=needs_negatives(subset)))
    return _finish(data)


def _saved(path: Path) -> dict[str, Dataset]:
    from datasets import load_from_disk

    loaded = _by_subset(load_from_disk(str(path)))
    return {path.name if name == "all" else name: rows for name, rows in loaded.items()}


def _by_subset(given: Any) -> dict[str, Any]:  # noqa: ANN401 - one data set, or several
    # A DatasetDict is a dictionary too.
    if isinstance(given, dict):
        return dict(given)
    if "subset" not in given.column_names:
        return {"all": given}
    names = given["subset"][:]
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        found.setdefault(str(name), []).append(index)
    return {name: given.select(rows) for name, rows in found.items()}


def _counter(data: TrainingData, subset: str) -> Counter[str]:
    counter = data.counts.setdefault(subset, Counter())
    return cast("Counter[str]", counter)


def _add_dataset(data: TrainingData, subset: str, rows: Dataset, cache: Path, options: ReadOptions) -> None:
    # The library's own identity of a data set: a hash of how it came to be.
    key = _digest([rows._fingerprint, repr(options), subset])  # noqa: SLF001
    raw = ((f"{subset}, row {index + 1}", row) for index, row in enumerate(rows))
    _keep(data, subset, raw, cache / f"{_safe(subset)}-{key}", options)


def _keep(
    data: TrainingData, subset: str, raw: Iterable[tuple[str, Any]], folder: Path, options: ReadOptions
) -> None:
    """Check the rows and write them to a folder, unless they are there."""
    from datasets import Dataset

    counts, rows = folder / "counts.json", folder / "rows.arrow"
    if not counts.is_file():
        _write(subset, raw, rows, _counter(data, subset), options)
        # Written last: a folder with counts is whole.
        write_whole(counts, json.dumps(data.counts[subset], indent=1))
    data.counts[subset] = Counter(json.loads(counts.read_text(encoding="utf-8")))
    data.subsets[subset] = Dataset.from_file(str(rows))
    data.key = _digest([data.key, folder.name])


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, texts = pa.large_string(), pa.large_list(pa.large_string())
    columns = {"query": text, "reasoning": text, "instruction": text, "positives": texts, "negatives": texts}
    return pa.schema([("subset", text), ("row", pa.int64()), *columns.items()])


def _write(
    subset: str, raw: Iterable[tuple[str, Any]], file: Path, counts: Counter[str], options: ReadOptions
) -> None:
    import pyarrow as pa

    schema = _schema()
    with replacing(file) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
        batch: list[dict[str, Any]] = []
        for row in _checked(raw, counts, options):
            batch.append(
                {"subset": subset, "row": counts["rows kept"], "query": row.query, "reasoning": row.reasoning}
                | {"instruction": row.instruction, "positives": row.positives, "negatives": row.negatives}
            )
            counts["rows kept"] += 1
            if len(batch) == ROWS_A_BATCH:
                out.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
                batch.clear()
        if batch:
            out.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def _checked(raw: Iterable[tuple[str, Any]], counts: Counter[str], options: ReadOptions) -> Iterator[Row]:
    for place, value in raw:
        counts["rows read"] += 1
        try:
            row = parse_row(value, counts)
        except BadRowError as error:
            refuse(place, str(error), options, counts)
            continue
        if row is None:
            continue
        if options.negatives and not row.negatives:
            counts["rows dropped: no negative"] += 1
            continue
        if row.reasoning is None:
            if options.missing_reasoning == "error":
                msg = f"{place}: no reasoning_query; add it, or train such rows with plain InfoNCE by "
                raise DataError(msg + "--set data.missing_reasoning=plain")
            counts["rows without reasoning query"] += 1
        yield row


def _finish(data: TrainingData) -> TrainingData:
    for subset in [name for name, rows in data.subsets.items() if len(rows) == 0]:
        logger.warning("%s has no row that can be trained on", subset)
        del data.subsets[subset]
    if not data.subsets:
        msg = f"no row can be trained on: {describe_counts(data.counts) or 'nothing was read'}"
        raise DataError(msg)
    return data


def describe_counts(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Say in one line what was counted over all subsets.

    Args:
        counts: By subset.
    """
    total: Counter[str] = Counter()
    for one in counts.values():
        total.update(one)
    return ", ".join(f"{name}: {number:,}" for name, number in total.items() if number)


def _safe(subset: str) -> str:
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in subset)


def _digest(parts: Iterable[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\0".join((str(VERSION), *parts)).encode())[:16]
