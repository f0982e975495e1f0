"""Single queries of a report: their texts, where the data is at hand, their scores and ranked documents.

A report fetches nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.scores import read_scores
from reasonembed_mteb.retrieval.layouts import load_corpus, load_queries
from reasonembed_mteb.retrieval.rows import row_of_task
from reasonembed_mteb.retrieval.sources import nothing_fetched

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy.typing as npt
    import pyarrow as pa
    from datasets import Dataset

    from reasonembed_mteb.reporting.results import Result
    from reasonembed_mteb.reporting.tables import ScoreTable


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
        with nothing_fetched():
            return Texts(_pick(load_queries(row), set(queries)), _pick(load_corpus(row), set(documents)))
    except DataError as error:
        return Texts(missing=f"no texts: {error}")


def _pick(data: Dataset, wanted: set[str]) -> dict[str, str]:
    """Read the rows of some ids alone: corpora are large, and memory-mapped."""
    ids: list[str] = data["id"][:]
    rows = [row for row, name in enumerate(ids) if name in wanted]
    if not rows:
        return {}
    texts: Any = data.select(rows)["text"][:]
    # A later row of the same id counts, as it does in the task itself.
    return {ids[row]: str(text) for row, text in zip(rows, texts, strict=True)}


# Files are small and decompressed outside the interpreter's lock.
_READERS = 4
# A main score is rounded to five decimals, and is the mean of its queries' scores.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class SubsetScores:
    """Main scores of every query of one subset.

    Attributes:
        column: The subset.
        task: MTEB task name of the first row that has it.
        queries: Query ids, ``Q`` of them.
        scores: ``(R, Q)``, one row per row of the table; NaN where a model lacks the query.
    """

    column: str
    task: str
    queries: list[str]
    scores: npt.NDArray[np.float64]


def read_columns(result: Result, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a result's scores by query.

    Args:
        result: It must have them.
        columns: Such as ``query_id`` and ``ndcg_at_10``.

    Returns:
        The rows of the result's own split and subset.

    Raises:
        DataError: If the file is damaged, of another format, or lacks a column.
    """
    import pyarrow.compute as pc

    if result.scores_file is None:
        msg = f"{result.file} has no scores by query; `reasonembed run` keeps them"
        raise DataError(msg)
    table = read_scores(result.scores_file, columns).table
    own = pc.and_(pc.equal(table["split"], result.split), pc.equal(table["subset"], result.subset))
    return table.filter(own).select(list(columns))


def main_metric(result: Result) -> str:
    """Return the metric behind a main score; a task that nobody knows names it in its own file.

    Args:
        result: With or without a metric of its own.
    """
    if result.metric is not None:
        return result.metric
    info = read_scores(result.scores_file, ()).info if result.scores_file is not None else {}
    return str(info.get("main_score", "ndcg_at_10"))


def read_scores_by_query(result: Result) -> dict[str, float]:
    """Return the main score of each query.

    Args:
        result: One with scores by query.

    Raises:
        DataError: If they are damaged, or their mean is not the main score.
    """
    table = read_columns(result, ["query_id", main_metric(result)])
    scores = np.asarray(table.column(1).to_numpy(), dtype=np.float64)
    if not len(scores) or not np.isfinite(scores).all():
        msg = f"{result.scores_file} holds no scores, or NaN; run the task again with --overwrite"
        raise DataError(msg)
    if abs(float(scores.mean()) - result.score) > _ROUNDING:
        msg = (
            f"{result.scores_file} has mean {scores.mean():.5f}, its result {result.score:.5f}: they do not "
            "belong together; run the task again with --overwrite"
        )
        raise DataError(msg)
    return dict(zip(table.column(0).to_pylist(), scores.tolist(), strict=True))


def read_frames(table: ScoreTable) -> tuple[list[SubsetScores], list[str]]:
    """Read every query's main score in a table.

    Args:
        table: One of `score_tables`.

    Returns:
        A frame for each column where any model has scores by query, and a line for each file that was
        left out.
    """
    cells = [
        (column, place, row.cells[column])
        for column in table.columns
        for place, row in enumerate(table.rows)
        if column in row.cells and row.cells[column].scores_file is not None
    ]
    with ThreadPoolExecutor(_READERS) as readers:
        read = list(readers.map(lambda cell: _try(cell[2]), cells))
    problems = [found for found in read if isinstance(found, str)]
    held: dict[str, dict[int, Mapping[str, float]]] = {}
    tasks: dict[str, str] = {}
    for (column, place, cell), found in zip(cells, read, strict=True):
        if not isinstance(found, str):
            held.setdefault(column, {})[place] = found
            tasks.setdefault(column, cell.task)
    frames = [_frame(column, tasks[column], found, len(table.rows)) for column, found in held.items()]
    return frames, problems


def _try(result: Result) -> dict[str, float] | str:
    try:
        return read_scores_by_query(result)
    except DataError as error:
        return str(error)


def _frame(column: str, task: str, found: Mapping[int, Mapping[str, float]], rows: int) -> SubsetScores:
    queries = list(dict.fromkeys(query for scores in found.values() for query in scores))
    table = np.full((rows, len(queries)), np.nan)
    for place, scores in found.items():
        table[place] = [scores.get(query, np.nan) for query in queries]
    return SubsetScores(column, task, queries, table)


@dataclass(frozen=True)
class RankedDocuments:
    """What one model found for one query.

    Attributes:
        gold: Ids of the relevant documents.
        hits: ``(document id, score)``, best first.
    """

    gold: list[str]
    hits: list[tuple[str, float]]


def read_rankings(
    result: Result, queries: Collection[str], top: int | None = None
) -> dict[str, RankedDocuments]:
    """Return what a model found for some queries.

    Args:
        result: One with scores by query.
        queries: Query ids; those that are not there are left out.
        top: How many documents, or None for all.

    Raises:
        DataError: If the scores by query are damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = read_columns(result, ["query_id", "gold_ids", "document_ids", "scores"])
    wanted = table.filter(pc.is_in(table["query_id"], pa.array(list(queries), pa.string())))
    found = {}
    for row in range(wanted.num_rows):
        documents, scores = (wanted[name][row].values[:top] for name in ("document_ids", "scores"))
        hits = list(zip(documents.to_pylist(), scores.to_pylist(), strict=True))
        found[wanted["query_id"][row].as_py()] = RankedDocuments(wanted["gold_ids"][row].as_py(), hits)
    return found
