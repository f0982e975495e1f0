"""The task tables: one row of TOML per task, read once, with the standard library alone.

A table holds ``[defaults]`` and one ``[[task]]`` per row that says only what differs. ``base`` names
another table whose row of the same subset lies underneath; ``[rewritten]`` repeats every row with
another query config.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, unknown_name

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

TABLES = ("bright.toml", "bright_long.toml", "r2med.toml", "mini.toml")


@dataclass(frozen=True)
class TaskRow:
    """One task, as its table says it.

    Attributes:
        name: Our MTEB task name.
        subset: Subset of the benchmark, spelt as the data spells it.
        instruction: The sentence put before each query.
        wanted: What the task looks for; part of the description.
        mteb_name: MTEB's own task over the same data, or None.
        also: Further MTEB tasks that take the same instruction.
        kind: ``bright``, ``bright_long``, ``r2med`` or ``mini``.
        layout: How the data is laid out: ``bright``, ``r2med`` or ``mini``.
        max_tokens: Longest input in tokens, queries and documents alike.
        path: Hub data set (or folder inside the package).
        revision: Its commit.
        queries_path: Hub data set of the queries; differs for rewritten queries.
        queries_revision: Its commit.
        gold_column: Column (or config, for R2MED) with the relevant documents.
    """

    name: str
    subset: str
    instruction: str
    wanted: str
    kind: str
    benchmark: str
    layout: str
    path: str
    revision: str
    corpus_config: str
    queries_config: str
    gold_column: str
    split: str
    main_score: str
    max_tokens: int
    description: str
    reference: str
    license: str
    date: tuple[str, str]
    domains: tuple[str, ...]
    task_subtypes: tuple[str, ...]
    annotations_creators: str
    sample_creation: str
    citation: str
    queries_path: str
    queries_revision: str
    mteb_name: str | None = None
    also: tuple[str, ...] = ()

    @property
    def is_rewritten(self) -> bool:
        """Whether the queries are rewritten ones, which never mix with the original."""
        return self.queries_config.endswith("_reason")


_FIELDS = frozenset(field.name for field in fields(TaskRow))


def tables_folder() -> Traversable:
    """Return the folder of the tables: installed package data, or the checkout's own ``tasks/``."""
    installed = files("reasonembed_mteb") / "tasks"
    if installed.joinpath(TABLES[0]).is_file():
        return installed
    checkout = Path(__file__).resolve().parents[2] / "tasks"
    if not (checkout / TABLES[0]).is_file():
        msg = f"the task tables are missing from this installation (looked in {installed}): reinstall"
        raise DataError(msg)
    return checkout


def _read(table: str) -> dict[str, Any]:
    return tomllib.loads(tables_folder().joinpath(table).read_text(encoding="utf-8"))


def _make_row(values: dict[str, Any], table: str) -> TaskRow:
    """Build a row from merged values; derived fields are filled by one rule for all tables."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if "name" not in values:
        values["name"] = "ReasonEmbed" + values["mteb_name"].removesuffix("Retrieval")
    for key in ("path", "reference", "description"):
        values[key] = values[key].format(subset=values["subset"], wanted=values["wanted"])
    values.setdefault("queries_path", values["path"])
    values.setdefault("queries_revision", values["revision"])
    for key in values:
        if key not in _FIELDS:
            msg = f"{table}, task {values['name']}: {unknown_name('key', key, _FIELDS)}"
            raise DataError(msg)
    return TaskRow(**values)


def _own_rows(table: str) -> list[TaskRow]:
    content = _read(table)
    defaults = dict(content["defaults"])
    base = defaults.pop("base", None)
    beneath = {row["subset"]: _beneath(base, row) for row in _read(base)["task"]} if base else {}
    return [_make_row(beneath.get(row["subset"], {}) | defaults | row, table) for row in content["task"]]


def _beneath(base: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return what a row inherits from the row of the same subset in another table."""
    inherited: dict[str, Any] = _read(base)["defaults"] | row
    # The names belong to the other table's tasks alone.
    return {key: value for key, value in inherited.items() if key not in ("mteb_name", "also")}


def _rewritten_rows(table: str) -> list[TaskRow]:
    spec = _read(table).get("rewritten")
    if spec is None:
        return []
    return [
        replace(
            row,
            name=row.name + suffix,
            benchmark=row.benchmark.replace("BRIGHT(", f"BRIGHT-{config}("),
            description=f"{row.description} Queries rewritten with reasoning ({config}).",
            queries_config=config,
            queries_path=spec["path"],
            queries_revision=spec["revision"],
            also=(),
        )
        for config, suffix in spec["suffixes"].items()
        for row in _own_rows(table)
    ]


@cache
def load_rows() -> tuple[TaskRow, ...]:
    """Return every task row, in the order of the tables.

    Raises:
        DataError: If a table is missing, or a row holds an unknown key.
    """
    rows = [row for table in TABLES for row in (*_own_rows(table), *_rewritten_rows(table))]
    return tuple(rows)


@cache
def _rows_by_name() -> dict[str, TaskRow]:
    return {row.name: row for row in load_rows()}


def row(name: str) -> TaskRow:
    """Return the row of one of our tasks.

    Args:
        name: Our MTEB task name, such as ``ReasonEmbedBrightBiology``.

    Raises:
        UnknownNameError: If no row has that name.
    """
    if name not in _rows_by_name():
        raise unknown_name("task", name, _rows_by_name())
    return _rows_by_name()[name]


def benchmarks() -> dict[str, list[TaskRow]]:
    """Return the rows of each of our benchmarks, by benchmark name."""
    grouped: dict[str, list[TaskRow]] = {}
    for task in load_rows():
        grouped.setdefault(task.benchmark, []).append(task)
    return grouped


@cache
def _tasks_by_any_name() -> dict[str, TaskRow]:
    """Return rows by every MTEB task name that shares their instruction: ours and MTEB's own."""
    found: dict[str, TaskRow] = {}
    for task in load_rows():
        names = (task.name, *task.also)
        if task.mteb_name is not None:
            names += (task.mteb_name,)
        for name in names:
            # A rewritten row repeats the MTEB name of the original one, which came first.
            found.setdefault(name, task)
    return found


def task_instructions() -> dict[str, str]:
    """Return the instruction of every MTEB task name we know: ours and MTEB's own."""
    return {name: task.instruction for name, task in _tasks_by_any_name().items()}


def instruction_for(task: str) -> str:
    """Return the instruction of a task.

    Args:
        task: An MTEB task name (ours or MTEB's own), or a BRIGHT subset (``biology``), which
            means its short instruction, or an R2MED subset (``PMC-Treatment``).

    Raises:
        UnknownNameError: If it is neither, with the nearest known name.
    """
    by_name = _tasks_by_any_name()
    if task in by_name:
        return by_name[task].instruction
    subsets = {known.subset: known for known in reversed(load_rows()) if known.kind in ("bright", "r2med")}
    if task in subsets:
        return subsets[task].instruction
    raise unknown_name("task", task, (*by_name, *subsets))


def max_tokens_for(task: str, default: int = 8192) -> int:
    """Return the protocol's length for a task, in tokens.

    Args:
        task: An MTEB task name, ours or MTEB's own.
        default: What a task outside our tables gets.
    """
    known = _tasks_by_any_name().get(task)
    return known.max_tokens if known else default
