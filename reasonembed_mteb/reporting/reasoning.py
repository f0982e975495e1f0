"""The chapter on reasoning before embedding: quality over generated tokens, and what they cost."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from reasonembed_mteb.escaping import figure_text
from reasonembed_mteb.evaluation.chapter_files import read_chapters
from reasonembed_mteb.evaluation.reasoning_record import (
    ENDED,
    FULL,
    ITSELF,
    NONE,
    REASONING_CHAPTER,
    read_reasoning_run,
)
from reasonembed_mteb.reporting.chapters import Chapter
from reasonembed_mteb.reporting.formats import MISSING, Grid, percent
from reasonembed_mteb.reporting.tables import metric_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from reasonembed_mteb.evaluation.reasoning_record import ReasoningRun

_TITLE = "Reasoning before embedding"
_NOTES = (
    "a column holds one amount of reasoning: a model that generates is never ranked with one that does not",
    "a mean is over the tasks that every column of its row has",
)
# Their amounts of tokens are one scale, from none on; a server's model has its own.
_OWN = (NONE, ITSELF)


def reasoning_chapters(folders: Sequence[Path]) -> tuple[list[Chapter], list[str]]:
    """Return the chapter of some output folders, if any of them has records of reasoning.

    Args:
        folders: Output folders.

    Returns:
        At most one chapter, and a line for each file that was left out.
    """
    runs, problems = read_chapters(folders, REASONING_CHAPTER, read_reasoning_run)
    if not runs:
        return [], problems
    said = dict.fromkeys(f"{run.system}: {run.note}" for run in runs if run.note)
    chapter = Chapter(
        REASONING_CHAPTER,
        _TITLE,
        notes=(*_NOTES, *said),
        grids=(*_quality(runs), _costs(runs)),
        pictures=_pictures(runs),
        data=[asdict(run) for run in runs],
    )
    return [chapter], problems


def _rows(runs: Sequence[ReasoningRun]) -> dict[tuple[str, str, int], list[ReasoningRun]]:
    """Group records by the model that embeds."""
    found: dict[tuple[str, str, int], list[ReasoningRun]] = {}
    for run in runs:
        found.setdefault((run.base, run.base_revision, run.latents), []).append(run)
    return found


def _label(key: tuple[str, str, int], keys: Sequence[tuple[str, str, int]]) -> str:
    base, revision, latents = key
    torn = sum(other[0] == base for other in keys) > 1
    return f"{base}{f' @{revision[:8]}' if torn else ''}, {latents} latent tokens"


def _column(run: ReasoningRun) -> str:
    if run.max_tokens is None:
        return f"given: {run.source}"
    # A server's model is named with its tokens.
    engine = f", {run.engine}" if run.engine else ""
    return f"N = {run.max_tokens:,}{engine}" if run.source in _OWN else run.source


def _order(run: ReasoningRun) -> tuple[bool, bool, int, str]:
    return (run.max_tokens is None, run.source not in _OWN, run.max_tokens or 0, run.source)


def _by_column(held: Sequence[ReasoningRun]) -> dict[str, ReasoningRun]:
    """Return a model's records by column; of two ways of one amount, such as two prompts, both stay."""
    names = Counter(_column(run) for run in held)
    seen: Counter[str] = Counter()
    found = {}
    for run in sorted(held, key=_order):
        name = _column(run)
        seen[name] += 1
        found[name if names[name] == 1 else f"{name} ({seen[name]})"] = run
    return found


def _shared(columns: Mapping[str, ReasoningRun]) -> list[str]:
    tasks = [set(run.tasks) for run in columns.values()]
    return sorted(set.intersection(*tasks)) if tasks else []


def _mean(run: ReasoningRun, tasks: Sequence[str]) -> float | None:
    scores = [run.tasks[task].score for task in tasks]
    return math.fsum(scores) / len(scores) if scores else None


def _quality(runs: Sequence[ReasoningRun]) -> list[Grid]:
    """Return the means of every model, and each model's tasks."""
    rows = _rows(runs)
    held = {_label(key, list(rows)): _by_column(found) for key, found in rows.items()}
    order = {name: _order(run) for columns in held.values() for name, run in columns.items()}
    names = sorted(order, key=lambda name: (order[name], name))
    cells = []
    for label, columns in held.items():
        tasks = _shared(columns)
        means = [percent(_mean(columns[n], tasks)) if n in columns else MISSING for n in names]
        cells.append((label, str(len(tasks)), *means))
    grids = [Grid("mean score over generated tokens, %", ("model", "tasks", *names), tuple(cells))]
    return grids + [_tasks(label, columns) for label, columns in held.items()]


def _tasks(label: str, columns: Mapping[str, ReasoningRun]) -> Grid:
    every = sorted({(task, one.metric) for run in columns.values() for task, one in run.tasks.items()})
    rows = tuple(
        (
            task,
            metric_name(metric),
            *(percent(run.tasks[task].score if task in run.tasks else None) for run in columns.values()),
        )
        for task, metric in every
    )
    return Grid(f"{label}, by task, %", ("task", "metric", *columns), rows, words=2)


def _costs(runs: Sequence[ReasoningRun]) -> Grid:
    """Return tokens, stop reasons and seconds a query."""
    head = ("system", "reasoning", "queries", "tokens a query", "ended", "full", "seconds a query", "cut")
    return Grid("cost", head, tuple(_cost(run) for run in sorted(runs, key=lambda run: run.system)), words=2)


def _cost(run: ReasoningRun) -> tuple[str, ...]:
    held = list(run.tasks.values())
    queries = sum(one.queries for one in held)
    if not queries:
        return (run.system, _column(run), "0", *(MISSING for _ in range(5)))
    stops: Counter[str] = Counter()
    for one in held:
        stops.update(one.stops)
    return (
        run.system,
        _column(run),
        f"{queries:,}",
        f"{sum(one.tokens for one in held) / queries:,.1f}",
        percent(stops[ENDED] / queries, 0),
        percent(stops[FULL] / queries, 0),
        f"{sum(one.seconds for one in held) / queries:.3f}",
        f"{sum(one.cut for one in held):,}",
    )


def _pictures(runs: Sequence[ReasoningRun]) -> dict[str, partial[Figure]]:
    """Return what draws quality over tokens, where a model has at least two amounts."""
    rows = _rows(runs)
    lines = {
        _label(key, list(rows)): points for key, found in rows.items() if len(points := _points(found)) > 1
    }
    return {"tokens": partial(_over_tokens, lines)} if lines else {}


def _points(found: Sequence[ReasoningRun]) -> list[tuple[int, float]]:
    own = {
        name: run
        for name, run in _by_column(found).items()
        if run.source in _OWN and run.max_tokens is not None
    }
    tasks = _shared(own)
    means = [(run.max_tokens or 0, _mean(run, tasks)) for run in own.values()]
    return [(tokens, mean) for tokens, mean in means if mean is not None]


def _over_tokens(lines: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    # Not pyplot, which keeps every figure.
    from matplotlib.figure import Figure

    amounts = sorted({tokens for points in lines.values() for tokens, _ in points})
    # Amounts double and quadruple, and begin at 0.
    places = {tokens: place for place, tokens in enumerate(amounts)}
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for label, points in lines.items():
        axes.plot(
            [places[tokens] for tokens, _ in points],
            [100 * mean for _, mean in points],
            marker="o",
            label=figure_text(label),
        )
    axes.set_xticks(range(len(amounts)), [f"{tokens:,}" for tokens in amounts])
    axes.set_xlabel("most tokens generated before embedding, N")
    axes.set_ylabel("mean score, %")
    axes.set_title(_TITLE, fontsize=10, loc="left")
    figure.legend(loc="outside lower right", frameon=False, fontsize=8)
    return figure
