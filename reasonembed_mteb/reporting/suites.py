"""A suite's tables: each model by benchmark, by domain and by kind of reasoning, with the suite's score."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import first_names
from reasonembed_mteb.evaluation.kinds import kind_of
from reasonembed_mteb.reporting.tables import Mean, ModelRow, ScoreTable, ranked
from reasonembed_mteb.retrieval.rows import suites

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reasonembed_mteb.reporting.results import Model, Result, ResultSet
    from reasonembed_mteb.retrieval.rows import SuiteRow, TaskRow

# A suite is shown from this share of its benchmarks on: who runs BRIGHT alone does not ask for a suite.
_SHOWN = 1 / 3


def suite_tables(results: ResultSet) -> list[ScoreTable]:
    """Return the tables of every suite of which enough was run.

    Args:
        results: What was read; results of several pools are one by now. Single models alone count.

    Returns:
        Up to three tables a suite: by benchmark (its mean is the suite's score, of models that ran all of
        it), by domain and by primary kind of reasoning. A cell is given where every task behind it was run; a
        table without any is left out, and the first one says so.
    """
    held: dict[Model, dict[str, Result]] = {}
    for result in results.found:
        # Other kinds have tables of their own, apart from single models.
        if result.limit is None and not kind_of(result.model.name):
            held.setdefault(result.model, {})[result.task] = result
    tables: list[ScoreTable] = []
    for suite in suites().values():
        if tables and all(row.mean is not None and row.mean.whole for row in tables[0].rows):
            # The whole suite says more than a lighter one.
            break
        whole = {part for cells in held.values() for part, rows in suite.rows().items() if _has(rows, cells)}
        if len(whole) > _SHOWN * len(suite.parts):
            tables += _tables(suite, held, results.labels)
    return tables


def _has(rows: Sequence[TaskRow], cells: Mapping[str, Result]) -> bool:
    return all(row.name in cells for row in rows)


def _tables(
    suite: SuiteRow, held: Mapping[Model, Mapping[str, Result]], labels: Mapping[Model, str]
) -> list[ScoreTable]:
    from reasonembed_mteb.retrieval.suite import suite_groups

    by_part = {part.removesuffix("(ReasonEmbed)"): rows for part, rows in suite.rows().items()}
    groups = {"benchmark": by_part} | {k.lower(): v for k, v in suite_groups(suite).items()}
    first, *others = [_table(suite, name, members, held, labels) for name, members in groups.items()]
    empty = [table.name.rpartition(", ")[2] for table in others if not table.rows]
    if empty:
        note = f"not shown: the tables {' and '.join(empty)}, as no model has run every task of a group"
        first = replace(first, notes=(*first.notes, note))
    return [first, *(table for table in others if table.rows)]


def _table(
    suite: SuiteRow,
    name: str,
    members: Mapping[str, Sequence[TaskRow]],
    held: Mapping[Model, Mapping[str, Result]],
    labels: Mapping[Model, str],
) -> ScoreTable:
    columns = tuple(members)
    rows = []
    for model, results in held.items():
        cells = {
            column: cell
            for column, tasks in members.items()
            if (cell := _cell(column, tasks, results)) is not None
        }
        scores = [cells[column].score for column in columns if column in cells]
        # Groups overlap in benchmarks: a mean over them is not the suite's score.
        # A mean over fewer benchmarks is no score of the suite either.
        whole = name == "benchmark" and len(scores) == len(columns)
        mean = Mean(math.fsum(scores) / len(scores), len(scores), len(columns)) if whole else None
        if cells:
            rows.append(ModelRow(model, labels[model], "", cells, mean, {}))
    tasks = sum(len(one) for one in members.values())
    about = {
        "benchmark": f"the mean is the suite's score, over {len(columns)} benchmarks of {tasks} tasks; who "
        "lacks one has none",
        "domain": "each benchmark counts once in a domain; which task belongs where is our judgement",
        "reasoning": "each benchmark counts once in a kind; which task belongs where is our judgement",
    }[name]
    return ScoreTable(
        f"{suite.name}, by {name}",
        f"{about}; protocols: docs/suite.md",
        None,
        columns,
        {},
        ranked(rows),
        (*_notes(members, held), *_incomplete(rows, columns)) if name == "benchmark" else (),
        heads={column: column for column in columns},
        links=_links(members) if name == "benchmark" else {},
    )


def _links(members: Mapping[str, Sequence[TaskRow]]) -> dict[str, str]:
    """Return where each benchmark's protocol is described."""
    links = {part: rows[0].benchmark_reference or rows[0].reference for part, rows in members.items()}
    return {part: link for part, link in links.items() if link}


def _cell(column: str, rows: Sequence[TaskRow], results: Mapping[str, Result]) -> Result | None:
    """Return the mean of a group's tasks as one result, or None where one was not run."""
    from reasonembed_mteb.retrieval.suite import group_mean

    score = group_mean(rows, {task: result.score for task, result in results.items()})
    if score is None:
        return None
    first = results[rows[0].name]
    return replace(first, task=column, subset="", score=score, metric=None, scores_file=None, seconds=None)


def _notes(
    members: Mapping[str, Sequence[TaskRow]], held: Mapping[Model, Mapping[str, Result]]
) -> tuple[str, ...]:
    """Say which tasks no model has run, by benchmark."""
    run = {task for results in held.values() for task in results}
    missing = {part: [row.name for row in rows if row.name not in run] for part, rows in members.items()}
    return tuple(
        f"not run: {part} ({len(names)} of {len(members[part])} tasks)"
        for part, names in missing.items()
        if names
    )


def _incomplete(rows: Sequence[ModelRow], columns: Sequence[str]) -> list[str]:
    """Say which models have no score of the suite, and for want of which benchmarks."""
    notes = []
    for row in rows:
        lacking = [column for column in columns if column not in row.cells]
        if lacking:
            count = f"{len(columns) - len(lacking)} of {len(columns)} benchmarks"
            notes.append(f"no score for {row.label}: {count} are whole; missing: {first_names(lacking)}")
    return notes
