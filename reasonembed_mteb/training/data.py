"""Training data: files and data sets read as a stream, checked row by row, kept on disk by subset."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from reasonembed_mteb.errors import DataError, first_names
from reasonembed_mteb.files import content_hash, fingerprint, read_json_lines, replacing, write_whole
from reasonembed_mteb.training.hub import fetch_folder, hub_name
from reasonembed_mteb.training.rows import (
    COMPRESSION_TARGET,
    GENERATION_TARGET,
    TARGETS,
    BadRowError,
    Row,
    parse_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# Part of every key: a change of what is stored must not meet old files.
VERSION = 5
ROWS_A_BATCH = 256
# reason-embed-data's files are named `<subset>-formatted.jsonl`.
_ENDING = "-formatted"
# The hub's converted files: `train-00000-of-00002.parquet`, in a folder of the subset's name.
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_NO_NEGATIVE = "rows dropped: no negative"


@dataclass(frozen=True)
class ReadOptions:
    """How rows are read.

    Attributes:
        invalid: ``error`` stops at the first broken row, ``drop`` counts it.
        missing_reasoning: ``plain`` keeps rows without a reasoning query, ``error`` stops at the first.
        negatives: Whether rows without a negative are dropped; None: unless they ask for groups of one.
    """

    invalid: str = "error"
    missing_reasoning: str = "plain"
    negatives: bool | None = True


def subset_name(file: Path) -> str:
    """Return the subset that a file holds.

    Args:
        file: Such as ``biology-formatted.jsonl``.
    """
    ending = next((suffix for suffix in SUFFIXES if file.name.endswith(suffix)), file.suffix)
    name = file.name.removesuffix(ending).removesuffix(_ENDING)
    shard = _SHARD.search(name)
    # The hub's layout of converted data sets: split and shard in the name, the subset in the folder's.
    return file.parent.name or name if shard else name


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
    if not path.is_dir():
        msg = f"{path} is neither a file nor a folder: write the rows to a file ({', '.join(SUFFIXES)})"
        raise DataError(msg)
    found = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
    splits = {file: _SHARD.sub("", file.name.partition(".")[0]) for file in found}
    if "train" in splits.values():
        # What a data set keeps for validation and test is not trained on.
        left = [file.name for file in found if splits[file] in ("validation", "dev", "test")]
        if left:
            logger.warning("%s: %s is not trained on", path, first_names(left))
        found = [file for file in found if file.name not in left]
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
    if file.name.endswith(".parquet"):
        yield from _read_parquet(file)
        return
    last = 0

    def pass_blank(number: int) -> None:
        nonlocal last
        counts["lines dropped: empty"] += number - last - 1
        last = number

    def broken(number: int, error: Exception) -> None:
        pass_blank(number)
        counts["rows read"] += 1
        refuse(f"{file}, line {number}", f"not JSON ({_reason(error)})", options, counts)

    for number, row in read_json_lines(file, broken=broken):
        pass_blank(number)
        yield f"{file}, line {number}", row


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
        files: In any order.
        options: How they are read.

    Raises:
        DataError: If one cannot be read.
    """
    try:
        return _digest([repr(options), content_hash(files)])
    except OSError as error:
        msg = f"cannot read {error.filename}: {error.strerror}"
        raise DataError(msg) from error


@dataclass
class TrainingData:
    """Rows by subset, and what became of the rest.

    Attributes:
        subsets: For each subset a memory-mapped data set with the columns ``subset``, ``row``, ``query``,
            ``reasoning`` (or null), ``instruction`` (or null), ``positives`` and ``negatives``, and, or null,
            ``group``, ``queries``, ``positive_grades``, ``negative_grades``, ``generation_target``,
            ``compression_question`` and ``compression_target`` of `Row`.
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

    @property
    def has_grades(self) -> bool:
        """Whether any row has graded documents."""
        return any(counts.get("rows with grades") for counts in self.counts.values())


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
    needs_negatives: Callable[[str], bool | None] = always,
) -> TrainingData:
    """Read files or folders into rows on disk; what was read before is taken from there.

    Args:
        sources: ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` files, folders of them (one file a subset, named
            ``<subset>.jsonl`` or ``<subset>-formatted.jsonl``), or folders written by
            ``datasets.Dataset.save_to_disk``; or a data set of the hub that holds such files, as
            ``org/name`` or ``org/name/folder``.
        cache: Folder for the checked rows.
        options: How to read.
        needs_negatives: Whether a subset's rows need a negative; those without are then dropped. None leaves
            it to each row's own ``train_group_size``.

    Returns:
        The rows; texts stay on disk.

    Raises:
        DataError: If a file is missing, or a row broken: with its file and line number.
    """
    options = options or ReadOptions()
    parts: dict[str, list[Path]] = {}
    loaded: dict[str, Any] = {}
    for source in sources:
        path = _local(source)
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


def _local(source: str | Path) -> Path:
    """Return where a source lies on this machine, once it is fetched where it is the hub's."""
    path = Path(source).expanduser()
    if path.exists() or (named := hub_name(str(source), SUFFIXES)) is None:
        return path
    return fetch_folder(*named, SUFFIXES)


def from_datasets(
    given: Mapping[str, Dataset] | Dataset,
    *,
    cache: Path,
    options: ReadOptions | None = None,
    needs_negatives: Callable[[str], bool | None] = always,
) -> TrainingData:
    """Check the rows of `datasets` objects.

    Args:
        given: Data sets by subset, or one with a column ``subset`` (without it, the subset is ``all``).
            Columns as in `reasonembed_mteb.training.rows`.
        cache: Folder for the checked rows.
        options: How to read.
        needs_negatives: Whether a subset's rows need a negative; those without are then dropped. None leaves
            it to each row's own ``train_group_size``.

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

    text, texts, grades = pa.large_string(), pa.large_list(pa.large_string()), pa.large_list(pa.float32())
    columns = {"query": text, "reasoning": text, "instruction": text, "positives": texts, "negatives": texts}
    columns |= {"group": pa.int64(), "queries": pa.int64()}
    columns |= {"positive_grades": grades, "negative_grades": grades}
    columns |= dict.fromkeys(TARGETS, text)
    return pa.schema([("subset", text), ("row", pa.int64()), *columns.items()])


def _write(
    subset: str, raw: Iterable[tuple[str, Any]], file: Path, counts: Counter[str], options: ReadOptions
) -> None:
    import pyarrow as pa

    schema = _schema()
    with replacing(file) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
        batch: list[dict[str, Any]] = []
        for row in _checked(raw, counts, options):
            batch.append({"subset": subset, "row": counts["rows kept"], **vars(row)})
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
        needed = row.group != 1 if options.negatives is None else options.negatives
        if needed and not row.negatives:
            counts[_NO_NEGATIVE] += 1
            continue
        if row.reasoning is None:
            if options.missing_reasoning == "error":
                msg = f"{place}: no reasoning_query; add it, or train such rows with plain InfoNCE by "
                raise DataError(msg + "--set data.missing_reasoning=plain")
            counts["rows without reasoning query"] += 1
        counts["rows with grades"] += row.positive_grades is not None
        for name in (GENERATION_TARGET, COMPRESSION_TARGET):
            counts[f"rows with {name}"] += getattr(row, name) is not None
        yield row


def _finish(data: TrainingData) -> TrainingData:
    for subset in [name for name, rows in data.subsets.items() if len(rows) == 0]:
        logger.warning(
            "%s has no row that can be trained on%s", subset, _remedy({subset: data.counts[subset]})
        )
        del data.subsets[subset]
    if not data.subsets:
        counted = describe_counts(data.counts) or "nothing was read"
        msg = f"no row can be trained on: {counted}{_remedy(data.counts)}"
        raise DataError(msg)
    return data


def _remedy(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Say how rows without negatives are trained on, where any was dropped."""
    if not any(one.get(_NO_NEGATIVE) for one in counts.values()):
        return ""
    return (
        "; rows without negatives train against the batch's other documents with --set batch.group=1 "
        "(batch.subsets.NAME.group=1 where the recipe gives a subset its own shape)"
    )


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
    return fingerprint(VERSION, *parts)[:16]
