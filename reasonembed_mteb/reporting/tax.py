"""The specialisation tax as tables, a picture of two axes, and a chapter of the report."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.evaluation.chapter_files import read_chapters
from reasonembed_mteb.evaluation.tax_record import KIND, SideScore, TaxRecord, read_tax
from reasonembed_mteb.reporting.chapters import Chapter
from reasonembed_mteb.reporting.formats import Grid
from reasonembed_mteb.reporting.published import MEAN, published_scores
from reasonembed_mteb.reporting.tables import metric_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

_STUDY = "arXiv 2604.16576 (robustness study)"
_PUBLISHED_AXES = ("BRIGHT(ReasonEmbed)", "BEIR")
# The backbone family whose embedder the study sets beside ReasonEmbed.
_FROM, _TO = "qwen3", "bge_reasoner"
# Points of an axis of the picture, at least.
_LEAST_SPAN = 10.0
_NOTES = (
    "The difference is the model's macro mean less the baseline's, its interval by bootstrap over queries, "
    "paired. Over all queries every query counts once.",
    f"Published points: {_STUDY}, macro means of nDCG@10 over 12 subsets of BRIGHT and 13 sets of BEIR, each "
    "model with the study's own instructions. They lie beside the measured ones for the shape, and may be "
    "compared with them only where these are of the same two benchmarks.",
)


def tax_grid(records: Sequence[TaxRecord]) -> Grid:
    """Return the table of models over one baseline.

    Args:
        records: Of one baseline and the same two suites, one a model.
    """
    first = records[0]
    base = (first.baseline, *_base(first.reasoning), *_base(first.general))
    rows = [(one.model, *_own(one.reasoning), *_own(one.general)) for one in records]
    smoke = f"; smoke run over the first {first.limit} queries a task, not a result" if first.limit else ""
    return Grid(
        title=f"against {first.baseline}, in %{smoke}",
        head=(
            "model",
            "reasoning",
            "- baseline (95 %)",
            "all queries",
            "general",
            "- baseline (95 %)",
            "all queries",
        ),
        rows=(base, *rows),
        notes=tuple(
            f"{name}: {', '.join(suite.tasks)}; {suite.queries:,} queries, "
            f"{', '.join(map(metric_name, suite.metrics))}"
            for name, suite in (("reasoning", first.reasoning), ("general", first.general))
        ),
    )


def _base(suite: SideScore) -> tuple[str, str, str]:
    return f"{100 * suite.baseline_mean:.2f}", "", f"{100 * suite.baseline_pooled:.2f}"


def _own(suite: SideScore) -> tuple[str, str, str]:
    # Adding 0 makes a zero of a negative one, which would be shown as such.
    mean, low, high = (round(100 * one, 2) + 0.0 for one in suite.difference)
    return (
        f"{100 * suite.mean:.2f}",
        f"{mean:+.2f} ({low:+.2f} to {high:+.2f})",
        f"{100 * suite.pooled:.2f}",
    )


def published_points() -> dict[str, tuple[float, float]]:
    """Return the study's macro means by model: BRIGHT and BEIR, in per cent."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for one in published_scores():
        if one.source == _STUDY and one.subset == MEAN:
            found[one.model][one.benchmark] = one.value
    reasoning, general = _PUBLISHED_AXES
    return {name: (one[reasoning], one[general]) for name, one in found.items() if len(one) > 1}


def tax_plot(records: Sequence[TaxRecord]) -> Figure:
    """Return general against reasoning: what was measured, and what was published, each on axes of its own.

    Args:
        records: Of one baseline and the same two suites, one a model.
    """
    from matplotlib.figure import Figure

    from reasonembed_mteb.escaping import figure_text

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    measured, published = figure.subplots(1, 2)
    first = records[0]
    points = {first.baseline: (100 * first.reasoning.baseline_mean, 100 * first.general.baseline_mean)}
    points |= {one.model: (100 * one.reasoning.mean, 100 * one.general.mean) for one in records}
    arrows = [(first.baseline, one.model) for one in records]
    for one in records:
        _add_intervals(measured, one)
    _scatter(measured, points, arrows, "#2a6fd6")
    title = f"measured, against {first.baseline} (bars: 95 % of the difference)"
    measured.set_title(figure_text(title), fontsize=10, loc="left")
    measured.set_ylabel("reasoning suite, macro mean, %")
    measured.set_xlabel("general suite, macro mean, %")
    _scatter(published, published_points(), [(_FROM, _TO)], "#c2621f")
    published.set_title(figure_text(f"published: {_STUDY}"), fontsize=10, loc="left")
    published.set_ylabel("BRIGHT, mean nDCG@10 of 12, %")
    published.set_xlabel("BEIR, mean nDCG@10 of 13, %")
    return figure


def _add_intervals(axes: Any, record: TaxRecord) -> None:  # noqa: ANN401 - matplotlib's Axes
    """Draw how far a model's point may lie from where it is, the baseline's staying in place."""
    ends = []
    for side in (record.general, record.reasoning):
        mean, low, high = (100 * one for one in side.difference)
        ends.append([[mean - low], [high - mean]])
    x, y = 100 * record.general.mean, 100 * record.reasoning.mean
    axes.errorbar(x, y, xerr=ends[0], yerr=ends[1], ecolor="#9ca3af", elinewidth=1, fmt="none")


def _scatter(
    axes: Any,  # noqa: ANN401 - matplotlib's Axes
    points: dict[str, tuple[float, float]],
    arrows: Sequence[tuple[str, str]],
    color: str,
) -> None:
    """Draw named points, the general suite to the right, the reasoning suite upwards."""
    axes.spines[["top", "right"]].set_visible(False)
    for start, end in arrows:
        (y0, x0), (y1, x1) = points[start], points[end]
        style = {"arrowstyle": "->", "color": "#6b7280", "linewidth": 0.8}
        axes.annotate("", (x1, y1), (x0, y0), arrowprops=style)
    for reasoning, general in points.values():
        axes.scatter(general, reasoning, 40, color=color, edgecolor="white")
    _equal_spans(axes)
    _name_points(axes, points)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(b=True)


def _name_points(axes: Any, points: dict[str, tuple[float, float]]) -> None:  # noqa: ANN401
    """Write each name beside its point: above, or below where another name is just above."""
    from reasonembed_mteb.escaping import figure_text

    left, right = axes.get_xlim()
    near = (right - left) / 12
    named: list[tuple[float, float]] = []
    for name, (y, x) in sorted(points.items(), key=lambda one: -one[1][0]):
        crowded = any(abs(x - other) < 2 * near and above - y < near for above, other in named)
        beyond = right - x < 3 * near
        place = (-6 if beyond else 6, -10 if crowded else 4)
        aside: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
        axes.annotate(figure_text(name), (x, y), place, ha="right" if beyond else "left", **aside)
        named.append((y, x))


def _equal_spans(axes: Any) -> None:  # noqa: ANN401 - matplotlib's Axes
    """Let a point be as long on both axes, and a difference of one point look small."""
    ends = [axes.get_xlim(), axes.get_ylim()]
    span = max(_LEAST_SPAN, *(high - low for low, high in ends)) * 1.15
    for (low, high), limit in zip(ends, (axes.set_xlim, axes.set_ylim), strict=True):
        middle = (low + high) / 2
        limit(middle - span / 2, middle + span / 2)


def published_tax_grid() -> Grid:
    """Return the study's means and each model's differences from BM25."""
    points = published_points()
    reasoning, general = points["bm25"]
    return Grid(
        title=f"published, {_STUDY}, nDCG@10 in %",
        head=("model", "BRIGHT", "- bm25", "BEIR", "- bm25"),
        rows=tuple(
            (name, f"{x:.1f}", f"{x - reasoning:+.1f}", f"{y:.1f}", f"{y - general:+.1f}")
            for name, (x, y) in points.items()
        ),
    )


def _grouped(records: Sequence[TaxRecord]) -> list[list[TaxRecord]]:
    """Return records of the same baseline and suites together."""
    found: dict[str, list[TaxRecord]] = defaultdict(list)
    for one in records:
        suites = (tuple(one.reasoning.tasks), tuple(one.general.tasks))
        scores = (one.reasoning.baseline_tasks, one.general.baseline_tasks)
        found[repr((one.baseline, one.limit, suites, scores))].append(one)
    return [sorted(held, key=lambda one: one.model) for _, held in sorted(found.items())]


def tax_chapters(folders: Sequence[Path]) -> tuple[list[Chapter], list[str]]:
    """Return the chapter on the tax of some output folders, and a line for each record that was left out.

    Args:
        folders: Output folders.
    """
    records, problems = read_chapters(folders, KIND, read_tax)
    if not records:
        return [], problems
    held = _grouped(records)
    return [
        Chapter(
            name=KIND,
            title="Specialisation tax",
            notes=_NOTES,
            grids=(*map(tax_grid, held), published_tax_grid()),
            pictures={f"scatter-{number}": partial(tax_plot, group) for number, group in enumerate(held, 1)},
            data=[asdict(one) for group in held for one in group],
        )
    ], problems
