"""Texts of queries and documents, from a task's data where it is at hand; a report fetches nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.reporting.boards import row_of_task
from reasonembed_mteb.retrieval.sources import read_split, splits_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from datasets import Dataset

    from reasonembed_mteb.retrieval.tables import TaskRow


@dataclass(frozen=True)
class Texts:
    """Texts by id.

    Attributes:
        queries: Of queries.
        documents: Of documents.
        missing: Why there are none, or an empty string.
    """

    queries: dict[str, str] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    missing: str = ""


def stay_offline() -> None:
    """Keep the libraries from asking the hub for data that is not here; call it before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"


def local_texts(task: str, queries: Collection[str], documents: Collection[str]) -> Texts:
    """Return texts of one of our tasks, or of MTEB's own task over the same data.

    Args:
        task: MTEB task name.
        queries: Ids of queries.
        documents: Ids of documents.

    Returns:
        The texts that are there, or why there are none.
    """
    row = row_of_task(task)
    if row is None:
        return Texts(missing=f"{task} is in none of the task tables, so its texts are not known")
    try:
        return Texts(_queries(row, set(queries)), _documents(row, set(documents)))
    except DataError as error:
        return Texts(missing=f"no texts: {error}")


def _documents(row: TaskRow, wanted: set[str]) -> dict[str, str]:
    column = "text" if row.layout == "r2med" else "content"
    return _pick(read_split(row, *splits_of(row)[0], columns=("id", column)), column, wanted)


def _queries(row: TaskRow, wanted: set[str]) -> dict[str, str]:
    column = "text" if row.layout == "r2med" else "query"
    return _pick(read_split(row, *splits_of(row)[1], columns=("id", column)), column, wanted)


def _pick(data: Dataset, column: str, wanted: set[str]) -> dict[str, str]:
    """Read the rows of some ids alone: corpora are large, and memory-mapped."""
    ids: list[str] = data["id"][:]
    rows = [row for row, name in enumerate(ids) if name in wanted]
    if not rows:
        return {}
    texts: Any = data.select(rows)[column][:]
    # A later row of the same id counts, as it does in the task itself.
    return {ids[row]: str(text) for row, text in zip(rows, texts, strict=True)}
