"""Parquet files as memory-mapped data sets, read in small batches whatever their row groups.

`Dataset.from_parquet` holds a row group at a time, which in a file written at one go is the whole corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

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
