"""Sizes of tasks as published, for plans without the data: by our tables and by MTEB's statistics.

Nothing is loaded. What nobody publishes is None; no length is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval.rows import row_of_task
from reasonembed_mteb.retrieval.sources import splits_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mteb.abstasks import AbsTask

    from reasonembed_mteb.retrieval.rows import TaskRow

_DOCUMENTS, _QUERIES = "documents_text_statistics", "queries_text_statistics"


@dataclass(frozen=True)
class Size:
    """The size of one task.

    Attributes:
        queries: Number of queries; None where nobody says.
        documents: Number of documents; None where nobody says.
        query_characters: Mean length of a query; None where nobody says.
        document_characters: Mean length of a document; None where nobody says.
        same_queries: Equal for tasks that have the same queries.
        same_documents: Equal for tasks that have the same documents.
    """

    queries: int | None
    documents: int | None
    query_characters: float | None
    document_characters: float | None
    same_queries: str
    same_documents: str


def published_size(task: AbsTask) -> Size:
    """Return a task's size without its data.

    Our table comes first, then what MTEB counted of its own task over the same data. Tasks with the same
    documents are those whose table says so, that read them from the same place, or whose documents MTEB
    counted to be equally many, with the same characters in all, the same shortest, longest and unique ones.

    Args:
        task: An MTEB task; it is not loaded.
    """
    name = task.metadata.name
    row = row_of_task(name) or getattr(task, "row", None)
    documents, queries = _counted(task, row, _DOCUMENTS), _counted(task, row, _QUERIES)
    if row is not None and row.is_rewritten:
        # As many as the original ones, and other texts.
        queries = [(count, None, "") for count, _, _ in queries]
    counts = [_sum([count for count, _, _ in part]) for part in (queries, documents)]
    return Size(
        (row.queries if row else 0) or counts[0],
        (row.documents if row else 0) or counts[1],
        (row.query_characters if row else 0) or _mean(queries),
        (row.document_characters if row else 0) or _mean(documents),
        _identity(row, "queries", queries) or name,
        _identity(row, "corpus", documents) or name,
    )


def _counted(task: AbsTask, row: TaskRow | None, part: str) -> list[tuple[int, float | None, str]]:
    """Return number, mean characters and a word for equal texts, by split, as MTEB counted them."""
    import mteb

    metadata = task.metadata
    if row is not None and not row.is_mtebs:
        if row.mteb_name is None:
            return []
        metadata = mteb.get_task(row.mteb_name).metadata
    splits: Mapping[str, Any] = metadata.descriptive_stats or {}
    wanted = metadata.eval_splits
    held = [splits[split].get(part) for split in wanted if split in splits]
    return [
        (round(one["total_text_length"] / one["average_text_length"]), one["average_text_length"], repr(one))
        for one in held
        if one and one.get("average_text_length")
    ]


def _sum(counts: Sequence[int]) -> int | None:
    return sum(counts) or None


def _mean(parts: Sequence[tuple[int, float | None, str]]) -> float | None:
    if not parts or any(mean is None for _, mean, _ in parts):
        return None
    return sum(count * (mean or 0) for count, mean, _ in parts) / sum(count for count, _, _ in parts)


def _identity(row: TaskRow | None, part: str, counted: Sequence[tuple[int, float | None, str]]) -> str:
    """Return what is equal for tasks with the same texts; empty where nothing tells."""
    if row is not None:
        said = row.same_documents if part == "corpus" else row.same_queries
        if said:
            return f"{row.family}: {said}"
    if counted and all(word for _, _, word in counted):
        return " ".join(word for _, _, word in counted)
    if row is None:
        return ""
    try:
        return repr(splits_of(row)[part])
    except DataError:
        # A task of MTEB's that MTEB has not counted.
        return ""
