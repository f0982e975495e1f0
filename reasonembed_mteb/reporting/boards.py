"""Which results belong into one table: same task family, same kind of queries and documents, same tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from reasonembed_mteb.retrieval.tables import load_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reasonembed_mteb.reporting.results import Result
    from reasonembed_mteb.retrieval.tables import TaskRow

# The paper's three groups of BRIGHT's subsets (arXiv 2407.12883, table 1).
GROUPS = {
    "StackExchange": (
        "biology",
        "earth_science",
        "economics",
        "psychology",
        "robotics",
        "stackoverflow",
        "sustainable_living",
    ),
    "coding": ("leetcode", "pony"),
    "theorem": ("aops", "theoremqa_questions", "theoremqa_theorems"),
}
# Column heads that let twelve subsets stand beside each other.
SHORT = {
    "biology": "Bio.",
    "earth_science": "Earth",
    "economics": "Econ.",
    "psychology": "Psy.",
    "robotics": "Rob.",
    "stackoverflow": "Stack",
    "sustainable_living": "Sust.",
    "leetcode": "Leet.",
    "pony": "Pony",
    "aops": "AoPS",
    "theoremqa_questions": "TheoQ",
    "theoremqa_theorems": "TheoT",
    "Biology": "Bio.",
    "Bioinformatics": "Bioinf.",
    "Medical-Sciences": "MedSci",
    "MedXpertQA-Exam": "MedXp.",
    "MedQA-Diag": "MedQA",
    "PMC-Treatment": "PMC-T",
    "PMC-Clinical": "PMC-C",
    "IIYi-Clinical": "IIYi",
}
_FAMILIES = {"bright": "BRIGHT", "bright_long": "BRIGHT", "r2med": "R2MED", "mini": "ReasonMini"}
# MTEB's own tasks over the same data, as published scores name the benchmark.
_MTEB = {"bright": "BRIGHT(v1.1)", "bright_long": "BRIGHT(v1.1) long", "r2med": "R2MED"}
_PRO = "BRIGHT-Pro"
_THEIRS = ", MTEB's own"
_METRICS = {"ndcg": "nDCG", "recall": "recall", "map": "MAP", "mrr": "MRR", "precision": "precision"}


@dataclass(frozen=True)
class BoardKey:
    """One table's identity.

    Attributes:
        name: What it is called.
        family: Data that it shares with other tables, which may be set together on request.
        about: Which queries, which documents, whose tasks.
        metric: Name of the main score, or None where tasks differ.
        columns: The subsets of a whole row; empty where no table of ours says.
        published: Under which benchmark its published scores stand; empty for none.
    """

    name: str
    family: str
    about: str
    metric: str | None
    columns: tuple[str, ...] = ()
    published: str = ""


@cache
def _places() -> dict[str, tuple[BoardKey, str]]:
    """Return the table and column of every task of the tables: ours, MTEB's own, BRIGHT-Pro."""
    members: dict[tuple[str, str, str, str], list[tuple[str, TaskRow]]] = {}
    for row in load_rows():
        for task, name, family, about in _tables_of(row):
            members.setdefault((name, family, about, row.main_score), []).append((task, row))
    found: dict[str, tuple[BoardKey, str]] = {}
    for (name, family, about, metric), tasks in members.items():
        columns = tuple(row.subset for _, row in tasks)
        board = BoardKey(name, family, about, metric, columns, published=name.removesuffix(_THEIRS))
        found |= {task: (board, row.subset) for task, row in tasks}
    return found


def _tables_of(row: TaskRow) -> Iterator[tuple[str, str, str, str]]:
    """Yield the tasks that share a row's data, each with the name, family and description of its table."""
    family, about = _FAMILIES[row.kind], _about(row)
    yield row.name, row.benchmark, family, f"{about}; our tasks"
    if row.is_rewritten or row.kind not in _MTEB:
        return
    if row.mteb_name is not None:
        yield row.mteb_name, _MTEB[row.kind] + _THEIRS, family, f"{about}; MTEB's own tasks"
    for task in row.also:
        yield task, _PRO + _THEIRS, _PRO, "original queries, aspect labels; MTEB's own tasks"


def board_order() -> dict[str, int]:
    """Return the place of each known table by name, in the order of the task tables."""
    names = dict.fromkeys(key.name for key, _ in _places().values())
    return {name: number for number, name in enumerate(names)}


def _about(row: TaskRow) -> str:
    queries = f"rewritten queries ({row.queries_config})" if row.is_rewritten else "original queries"
    if row.kind == "mini":
        return f"{queries}; a smoke benchmark, not a BRIGHT result"
    documents = {"bright": ", short documents", "bright_long": ", long documents"}.get(row.kind, "")
    return queries + documents


def place(result: Result) -> tuple[BoardKey, str]:
    """Return the table and the column of a result.

    Args:
        result: Of any task; one that no table of ours knows goes to a table of other tasks, an older one of
            several subsets to a table of its own.
    """
    found = _places().get(result.task)
    if found is None:
        found = _elsewhere(result)
    board, column = found
    if result.limit is not None:
        name = f"{board.name}, first {result.limit} queries"
        about = f"smoke run over the first {result.limit} queries, not a result; {board.about}"
        board = BoardKey(name, f"{board.family} smoke", about, board.metric, board.columns)
    return board, column


def _elsewhere(result: Result) -> tuple[BoardKey, str]:
    if result.subset != "default":
        about = f"split {result.split}; MTEB's own task"
        if result.task.startswith("Bright"):
            about += " before v1.1: exclusions ignored, no instructions"
        return BoardKey(f"{result.task}, {result.split}", result.task, about, result.metric), result.subset
    metric = result.metric or "main score"
    key = BoardKey(f"Other tasks, {metric}", f"other {metric}", "tasks of no table of ours", metric)
    return key, result.task


def metric_name(metric: str | None) -> str:
    """Return a metric as people write it, such as ``nDCG@10``.

    Args:
        metric: MTEB's name, such as ``ndcg_at_10``.
    """
    stem, at, cut = (metric or "main score").partition("_at_")
    return f"{_METRICS.get(stem, stem)}@{cut}" if at else stem


def row_of_task(task: str) -> TaskRow | None:
    """Return the table row whose data a task has: our own task's, or that of MTEB's own over the same data.

    Args:
        task: MTEB task name.
    """
    rows = load_rows()
    by_name = {row.mteb_name: row for row in reversed(rows) if row.mteb_name and not row.is_rewritten}
    return {row.name: row for row in rows}.get(task) or by_name.get(task)
