"""Where a task's data is and which revision; its Parquet files as memory-mapped data sets.

Files are read in small batches, however large their row groups are:
`Dataset.from_parquet` holds a row group at a time, which in a file written at one go is the whole corpus.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from datasets import Dataset

    from reasonembed_mteb.retrieval.rows import TaskRow

_ROWS = 4096
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


def data_files(folder: Path, config: str, split: str) -> list[Path]:
    """Return the files of one split of one config in a local copy.

    Args:
        folder: The local copy.
        config: Config name, which is a folder (``documents/biology-*.parquet``) or the stem of a file.
        split: Split name.

    Raises:
        DataError: If there are none; the message names the file looked for.
    """
    patterns = (
        f"{config}/{split}-*.parquet",
        f"{config}/{split}.parquet",
        f"{config}-{split}.jsonl",
        f"{config}/{split}.jsonl",
        f"{config}.parquet",
        f"{config}.jsonl",
    )
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if found:
            return found
    msg = f"{folder} has no {config}/{split}-*.parquet; download it, or run only the subsets it holds"
    raise DataError(msg)


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


def read_files(files: list[Path], columns: tuple[str, ...]) -> Dataset:
    """Read local files into a memory-mapped data set.

    Args:
        files: Parquet files, or JSON Lines files.
        columns: The columns wanted.

    Returns:
        A data set with exactly these columns.

    Raises:
        DataError: If a file is damaged or lacks a column.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    names = [str(file) for file in files]
    try:
        if files[0].suffix == ".parquet":
            _check_columns(files, columns)
            data: Any = read_parquet(files, columns)
        else:
            data = Dataset.from_json(names)
    except DatasetGenerationError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        msg = f"{names[0]} cannot be read ({cause}); download it again"
        raise DataError(msg) from error
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        msg = f"{names[0]} has no column {', '.join(missing)} (it has {', '.join(data.column_names)})"
        raise DataError(msg)
    selected: Dataset = data.select_columns(list(columns))
    return selected


def read_split(
    row: TaskRow, repo: str, revision: str, config: str, split: str, columns: tuple[str, ...]
) -> Dataset:
    """Read one split of one config, from the local copy where there is one, else from the hub.

    Args:
        row: The task, for its local copy.
        repo: Hub data set.
        revision: Its commit.
        config: Config name.
        split: Split name.
        columns: The columns wanted.

    Returns:
        A data set with exactly these columns.

    Raises:
        DataError: If the data is missing, damaged, or cannot be fetched.
    """
    folder = local_copy(row)
    if folder is not None:
        return read_files(data_files(folder, config, split), columns)
    import datasets

    try:
        data = datasets.load_dataset(repo, config, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = str(error).splitlines()[0]
        msg = (
            f"cannot load {repo} ({config}, {split}) at {revision[:12]}: {cause}; go online and run "
            f"`reasonembed download -t {row.name}`, or set {row.path_variable} to a local copy"
        )
        raise DataError(msg) from error
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        msg = f"{repo} ({config}, {split}) at {revision} has no column {', '.join(missing)}"
        raise DataError(msg)
    selected: datasets.Dataset = data.select_columns(list(columns))
    return selected


def splits_of(row: TaskRow) -> list[tuple[str, str, str, str]]:
    """Return what a task reads, as ``(repo, revision, config, split)``."""
    if row.layout == "r2med":
        configs = (row.corpus_config, row.queries_config, row.gold_column)
        return [(row.path, row.revision, config, config) for config in configs]
    return [
        (row.path, row.revision, row.corpus_config, row.subset),
        (row.queries_path, row.queries_revision, row.queries_config, row.subset),
    ]


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
    files = [file for *_, config, split in splits_of(row) for file in data_files(folder, config, split)]
    return copied_revision(folder, files) or content_hash(files)
