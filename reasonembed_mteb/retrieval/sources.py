"""Where a task's data is, on the hub or in a local copy; its files as memory-mapped data sets.

Parquet is read in small batches, however large its row groups are:
`Dataset.from_parquet` holds a row group at a time, which in a file written at one go is the whole corpus.
"""

from __future__ import annotations

import csv
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from reasonembed_mteb.errors import DataError, one_line
from reasonembed_mteb.files import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from datasets import Dataset

    from reasonembed_mteb.retrieval.rows import TaskRow

_ROWS = 4096
_ENDINGS = ("parquet", "jsonl", "tsv")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_BUFFER = 1 << 20


@dataclass
class _Config(datasets.BuilderConfig):  # type: ignore[misc]
    """What is read; part of the name that the converted data are cached under."""

    columns: tuple[str, ...] = ()


class _Rows(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """The library's own conversion and cache, around Arrow's streaming reader."""

    BUILDER_CONFIG_CLASS = _Config

    def _info(self) -> Any:  # noqa: ANN401 - datasets.DatasetInfo
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[Any]:  # noqa: ANN401 - datasets.DownloadManager
        files = dl_manager.download(self.config.data_files)["train"]
        return [datasets.SplitGenerator(name="train", gen_kwargs={"files": files})]

    def _generate_tables(self, files: Sequence[str]) -> Iterator[tuple[Any, pa.Table]]:
        for number, file in enumerate(files):
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER) as opened:
                batches = opened.iter_batches(_ROWS, columns=list(self.config.columns), use_threads=False)
                for place, batch in enumerate(batches):
                    yield (number, place), pa.Table.from_batches([batch])


def read_parquet(files: Sequence[Path], columns: tuple[str, ...]) -> datasets.Dataset:
    """Read Parquet files into a memory-mapped data set, converted once and cached.

    Args:
        files: The files, in order.
        columns: The columns wanted.

    Returns:
        A data set with exactly these columns.

    Raises:
        datasets.exceptions.DatasetGenerationError: If a file cannot be read.
    """
    names = [str(file) for file in files]
    builder = _Rows(dataset_name="reasonembed_parquet", data_files={"train": names}, columns=columns)
    builder.download_and_prepare()
    return builder.as_dataset(split="train")


_COMMIT = re.compile(r"[0-9a-f]{40}")


def local_copy(row: TaskRow) -> Path | None:
    """Return the folder of a task's data: next to its table, or a local copy; None for the hub.

    Args:
        row: The task.

    Raises:
        DataError: If the variable names no folder, or the copy lacks the subset.
    """
    if row.data:
        return Path(row.data)
    variable = row.path_variable
    named = os.environ.get(variable)
    if not named:
        return None
    folder = Path(named).expanduser() / row.copy_folder
    if not folder.is_dir():
        msg = f"{variable}={named}: no folder {folder}; correct it, or unset {variable} to use the hub"
        raise DataError(msg)
    return folder


class Source(NamedTuple):
    """A part of a data set.

    Attributes:
        repo: Hub data set.
        revision: Its commit.
        config: Config name; empty where the part is read by file.
        split: Split name; empty for the only one.
        file: File or pattern within the data set, where it is read by file.
    """

    repo: str
    revision: str
    config: str
    split: str
    file: str = ""

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.file or ", ".join(filter(None, (self.config, self.split)))


def data_files(folder: Path, config: str, split: str, file: str = "") -> list[Path]:
    """Return the files of one split of one config in a local copy.

    Args:
        folder: The local copy.
        config: Config name, which is a folder (``documents/biology-*.parquet``) or the stem of a file.
        split: Split name; empty for the only one.
        file: File or pattern in the data set, in place of config and split; found without its folder too.

    Raises:
        DataError: If there are none; the message names the file looked for.
    """
    for pattern in (file, Path(file).name) if file else _patterns(config, split):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    wanted = file or f"{config}/{split or '*'}-*.parquet"
    msg = f"{folder} has no {wanted}; download it, or run only the subsets it holds"
    raise DataError(msg)


def _patterns(config: str, split: str) -> list[str]:
    """Return where a split may lie: as the hub converts it, as its authors write it, as `hf` leaves it."""
    if not split:
        return [
            *(f"{config}/*.{ending}" for ending in _ENDINGS),
            *(f"{config}.{ending}" for ending in _ENDINGS),
            # The hub's conversion has a folder a split, and files by number.
            f"{config}/*/[0-9]*.parquet",
        ]
    # The hub keeps the config `default` of a data set in a folder of this name, or at its top; BEIR keeps
    # labels in a folder of their own.
    tops = ["data/", "", "qrels/"] if config == "default" else []
    return [
        f"{config}/{split}-*.parquet",
        f"{config}/{split}.parquet",
        f"{config}-{split}.jsonl",
        f"{config}/{split}.jsonl",
        f"{config}/{split}.json",
        *(f"{config}/{split}/*.{ending}" for ending in _ENDINGS),
        *(f"{top}{split}{form}" for top in tops for form in ("-*.parquet", ".parquet", ".jsonl", ".tsv")),
        f"{config}.parquet",
        f"{config}.jsonl",
    ]


def _check_columns(files: Iterable[Path], columns: tuple[str, ...]) -> None:
    """Read each parquet file's footer, so that a damaged file is named before anything is converted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        try:
            present = pq.read_schema(file).names
        except (OSError, pa.ArrowException) as error:
            cause = str(error).splitlines()[0]
            msg = f"{file} is not a whole parquet file ({cause}); download it again"
            raise DataError(msg) from error
        missing = [column for column in columns if column not in present]
        if missing:
            msg = (
                f"{file} has no column {', '.join(missing)} (it has {', '.join(present)}); download it again"
            )
            raise DataError(msg)


def read_files(files: list[Path], columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> Dataset:
    """Read local files into a memory-mapped data set.

    Args:
        files: Parquet, JSON Lines, CSV or TSV files; cells of the latter two are text.
        columns: The columns wanted.
        optional: Columns that need not be there.

    Returns:
        A data set with exactly these columns.

    Raises:
        DataError: If a file is damaged or lacks a column.
    """
    from datasets import Dataset

    names = [str(file) for file in files]
    with _named(names[0]):
        if files[0].suffix == ".parquet":
            _check_columns(files, columns)
            present = pq.read_schema(files[0]).names
            data: Any = read_parquet(files, (*columns, *(name for name in optional if name in present)))
        elif files[0].suffix in _SEPARATORS:
            data = _read_cells(files, columns)
        else:
            data = Dataset.from_json(names)
    return _selected(data, columns, optional, names[0])


@contextmanager
def _named(file: str) -> Iterator[None]:
    """Let what the library says of a damaged file, or of one without any row, name the file."""
    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        msg = f"{file} cannot be read ({cause}); download it again"
        raise DataError(msg) from error
    except ValueError as error:
        # A sentence about splits of the library's own.
        if "corresponds to no data" not in str(error):
            raise
        msg = f"{file} holds no rows; download it again"
        raise DataError(msg) from error


def _selected(data: Any, columns: tuple[str, ...], optional: tuple[str, ...], where: str) -> Dataset:  # noqa: ANN401
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        msg = f"{where} has no column {', '.join(missing)} (it has {', '.join(data.column_names)})"
        raise DataError(msg)
    chosen = (*columns, *(name for name in optional if name in data.column_names))
    selected: Dataset = data.select_columns(list(chosen))
    return selected


def _read_cells(files: list[Path], columns: tuple[str, ...] = ()) -> Any:  # noqa: ANN401 - Dataset
    """Read CSV or TSV with every cell as text: an id 007 stays one, and "NA" is no missing value.

    Files need not have the same columns, as long as each has those that are wanted.
    """
    from datasets import concatenate_datasets

    parts = [(file, _read_file_of_cells(file)) for file in files]
    for file, part in parts:
        _selected(part, columns, (), str(file))
    heads = [part.column_names for _, part in parts]
    shared = [name for name in heads[0] if all(name in head for head in heads)]
    return concatenate_datasets([part.select_columns(shared) for _, part in parts])


def _read_file_of_cells(file: Path) -> Any:  # noqa: ANN401 - Dataset
    from datasets import Dataset, Features, Value

    separator = _SEPARATORS[file.suffix]
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            head = next(csv.reader(stream, delimiter=separator), [])
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        msg = f"{file} cannot be read ({one_line(error)}); download it again"
        raise DataError(msg) from error
    features = Features({name: Value("string") for name in head})
    with _named(str(file)):
        return Dataset.from_csv(str(file), features=features, sep=separator, keep_default_na=False)


def read_split(
    row: TaskRow, source: Source, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Dataset:
    """Read one part of a task's data, from the local copy where there is one, else from the hub.

    Args:
        row: The task, for its local copy.
        source: The part; see `splits_of`.
        columns: The columns wanted.
        optional: Columns that need not be there.

    Returns:
        A data set with exactly these columns.

    Raises:
        DataError: If the data is missing, damaged, or cannot be fetched.
    """
    folder = local_copy(row)
    if folder is not None:
        files = data_files(folder, source.config, source.split, source.file)
        return read_files(files, columns, optional)
    try:
        data = _from_hub(source)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # The hub's errors are sentences, and some have no text.
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        msg = (
            f"cannot load {source.repo} ({source.label}) at {source.revision[:12]}: {cause}; go online and "
            f"run `reasonembed download -t {row.name}`, or set {row.path_variable} to a local copy"
        )
        raise DataError(msg) from error
    return _selected(data, columns, optional, place_of(row, source))


def place_of(row: TaskRow, source: Source) -> str:
    """Return where one part of a task's data lies, for messages: a file of the local copy, or the hub.

    Args:
        row: The task, for its local copy.
        source: The part; see `splits_of`.
    """
    folder = local_copy(row)
    if folder is None:
        return f"{source.repo} ({source.label}) at {source.revision[:12]}"
    first, *others = data_files(folder, source.config, source.split, source.file)
    return f"{first} and {len(others)} more" if others else str(first)


def _from_hub(source: Source) -> Any:  # noqa: ANN401 - Dataset
    if source.file:
        import huggingface_hub

        root = huggingface_hub.snapshot_download(
            source.repo, repo_type="dataset", revision=source.revision, allow_patterns=[source.file]
        )
        return _read_cells(data_files(Path(root), "", "", source.file))
    found = datasets.load_dataset(
        source.repo, source.config, split=source.split or None, revision=source.revision
    )
    return found if source.split else next(iter(found.values()))


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Keep data sets and hub from fetching anything for the time of the block."""
    import huggingface_hub

    places: tuple[Any, Any] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def splits_of(row: TaskRow) -> dict[str, Source]:
    """Return the parts of a task's data: ``corpus``, ``queries``, ``labels``, ``excluded`` and ``aspects``.

    Labels or exclusions that stand with the queries have no part of their own.

    Args:
        row: The task.

    Raises:
        DataError: If MTEB loads the task.
    """
    if row.is_mtebs:
        msg = f"{row.name} is a task of MTEB's, which loads its data: `mteb.get_task({row.name!r})`"
        raise DataError(msg)
    here, there = (row.path, row.revision), (row.queries_path, row.queries_revision)
    # BRIGHT has a split a subset; where labels are rows of their own, a split is named as its config.
    alone = row.layout == "r2med"
    usual = row.subset if row.layout == "bright" else ""
    parts = {
        "corpus": Source(
            *here,
            row.corpus_config,
            row.corpus_split or (row.corpus_config if alone else usual),
            row.corpus_file,
        ),
        "queries": Source(
            *there,
            row.queries_config,
            row.queries_split or (row.queries_config if alone else usual),
            row.queries_file,
        ),
    }
    if row.label_columns or row.layout == "coquir":
        parts["labels"] = Source(
            *there, row.gold_column, row.labels_split or (row.gold_column if alone else "")
        )
    if row.excluded_config:
        parts["excluded"] = Source(*there, row.excluded_config, "")
    if row.aspects_config:
        parts["aspects"] = Source(*there, row.aspects_config, row.queries_split or usual)
    return parts


def copied_revision(folder: Path, files: Iterable[Path]) -> str | None:
    """Return the commit that a local copy was downloaded from, where the download left a note of it.

    Args:
        folder: The local copy: a hub snapshot (named by its commit), or a ``--local-dir`` download
            (each file has a ``.metadata`` note whose first line is the commit).
        files: The files read.

    Returns:
        The commit, if all files agree on it; else None.
    """
    if _COMMIT.fullmatch(folder.resolve().name):
        return folder.resolve().name
    notes = folder / ".cache" / "huggingface" / "download"
    commits = set()
    for file in files:
        note = notes / f"{file.relative_to(folder)}.metadata"
        commits.add(note.read_text(encoding="utf-8").split("\n", 1)[0] if note.is_file() else "")
    commit = commits.pop() if len(commits) == 1 else ""
    return commit if _COMMIT.fullmatch(commit) else None


def task_files(row: TaskRow, folder: Path) -> list[Path]:
    """Return the files of a task in its local copy, each once.

    Args:
        row: The task.
        folder: The local copy.

    Raises:
        DataError: If a file is missing.
    """
    parts = splits_of(row).values()
    found = (file for part in parts for file in data_files(folder, part.config, part.split, part.file))
    return list(dict.fromkeys(found))


def data_revision(row: TaskRow) -> str:
    """Return what identifies the data that a task would be scored on.

    Returns:
        The commit on the hub; for a local copy the commit it was downloaded from if that is known, else
        a content hash of the task's own files. Data next to a table may have it in the table; a BEIR folder's
        was taken when its task was made.

    Raises:
        DataError: If a file of the task is missing.
    """
    if row.layout == "beir" or (row.data and row.revision):
        return row.revision
    folder = local_copy(row)
    if folder is None:
        return row.revision
    files = task_files(row, folder)
    return copied_revision(folder, files) or content_hash(files)
