"""The page's plots by matplotlib: heat map, bars against published scores, quality and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import missing_extra
from reasonembed_mteb.escaping import figure_text
from reasonembed_mteb.reporting.comparison import published_comparisons
from reasonembed_mteb.reporting.formats import MISSING
from reasonembed_mteb.reporting.published import MEAN, noise
from reasonembed_mteb.reporting.tables import metric_name
from reasonembed_mteb.retrieval.rows import REASONING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reasonembed_mteb.reporting.tables import ModelRow, ScoreTable

BLUE, ORANGE, GREY = "#2a6fd6", "#c2621f", "#6b7280"
_NOISE_METRIC = "ndcg_at_10"
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


def draw(table: ScoreTable) -> dict[str, Figure]:
    """Return the pictures of a table.

    Args:
        table: One of `score_tables`.

    Returns:
        ``heatmap``; ``published`` where anything was; ``cost`` where seconds are known; ``profile`` of a
        table whose columns are kinds of reasoning.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 - whether it is there
    except ImportError as error:
        raise missing_extra("matplotlib", "report") from error
    drawn = {
        "heatmap": heat_map(table),
        "published": published_bars(table),
        "cost": cost_plot(table),
        "profile": profile_plot(table),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_figure(figure: Figure, file: Any, format: str) -> None:  # noqa: ANN401 - as matplotlib takes it
    """Write a picture; the same figure gives the same bytes.

    Args:
        figure: What to write.
        file: Path or stream.
        format: ``png`` or ``svg``.
    """
    import matplotlib as mpl

    # Without a date and with fixed ids.
    with mpl.rc_context({"svg.hashsalt": "reasonembed"}):
        metadata = {"Date": None} if format == "svg" else None
        figure.savefig(file, format=format, dpi=150, metadata=metadata)


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """Return an empty picture and its axes.

    Args:
        width: In inches.
        height: In inches.
    """
    # Not pyplot: it keeps every figure, and picks a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def heat_map(table: ScoreTable) -> Figure:
    """Return models by subsets; colours run from the worst to the best of each subset.

    Args:
        table: One of `score_tables`.
    """
    scores = np.array(
        [[row.cells[c].score if c in row.cells else np.nan for c in table.columns] for row in table.rows]
    )
    low, high = np.fmin.reduce(scores), np.fmax.reduce(scores)
    span = np.where(high > low, high - low, 1.0)
    shares = np.where(high > low, (scores - low) / span, np.where(np.isnan(scores), np.nan, 0.5))
    count = len(table.columns)
    figure, axes = new_figure(3.4 + 0.62 * count, 1.3 + 0.3 * len(table.rows))
    axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=-0.1, vmax=1.25, aspect="auto")
    for (row, column), score in np.ndenumerate(scores):
        text = MISSING if np.isnan(score) else f"{100 * score:.1f}"
        # Where white begins to be read more easily than black.
        color = "white" if shares[row, column] > 0.88 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(count), [table.head(column) for column in table.columns], fontsize=9)
    axes.set_yticks(range(len(table.rows)), [figure_text(_label(row)) for row in table.rows], fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    metric = metric_name(table.metric) if table.metric else "main scores"
    axes.set_title(figure_text(f"{table.name}: {metric} in %"), fontsize=10, loc="left")
    return figure


def published_bars(table: ScoreTable) -> Figure | None:
    """Return our means and the published ones, or None where none was published.

    Args:
        table: One of `score_tables`.
    """
    held = [source for source in published_comparisons(table) if MEAN in source.scores]
    if not held:
        return None
    held.reverse()
    places = np.arange(len(held))
    means = [source.scores[MEAN] for source in held]
    figure, axes = new_figure(9, 1.3 + 0.5 * len(held))
    theirs = [one.published.value for one in means]
    band = noise(is_mean=True) if table.metric == _NOISE_METRIC else None
    axes.barh(places + 0.19, [one.ours for one in means], 0.36, color=BLUE, label="ours")
    axes.barh(
        places - 0.19, theirs, 0.36, color=ORANGE, label="published", xerr=band, ecolor="black", capsize=3
    )
    for place, one in zip(places, means, strict=True):
        ends = max(one.ours, one.published.value) + 0.9
        axes.text(ends, place, f"{one.difference:+.2f}", va="center", fontsize=8, color=GREY)
    axes.margins(x=0.09)
    names = [f"{table.rows[source.row].label}\n{source.source}" for source in held]
    axes.set_yticks(places, [figure_text(name) for name in names], fontsize=8)
    axes.set_xlabel(
        f"mean {metric_name(table.metric)}, %" + (f"; whiskers: reproduction noise ±{band:g}" if band else "")
    )
    axes.set_title(figure_text(f"{table.name}: ours against published"), fontsize=10, loc="left")
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    return figure


def profile_plot(table: ScoreTable) -> Figure | None:
    """Return each model's scores over the kinds of reasoning, or None for a table of other columns.

    Dots rather than lines or a radar: kinds have no order, and ten models stay apart.

    Args:
        table: One of `score_tables`.
    """
    if not (table.rows and table.columns and set(table.columns) <= set(REASONING)):
        return None
    figure, axes = new_figure(8, 1.6 + 0.19 * (len(table.rows) + 1) * len(table.columns))
    step = 0.88 / len(table.rows)
    for place, row in enumerate(table.rows):
        held = [column for column in table.columns if column in row.cells]
        heights = [table.columns.index(column) + (place + 0.5) * step - 0.44 for column in held]
        scores = [100 * row.cells[column].score for column in held]
        color, mark = f"C{place % 10}", _MARKS[place % len(_MARKS)]
        axes.hlines(heights, 0, scores, color=color, linewidth=1, alpha=0.5)
        axes.plot(scores, heights, mark, color=color, label=figure_text(_label(row)), markersize=6)
        for score, height in zip(scores, heights, strict=True):
            axes.text(score + 0.8, height, f"{score:.1f}", va="center", fontsize=7, color=GREY)
    axes.set_yticks(range(len(table.columns)), list(table.columns), fontsize=9)
    axes.set_ylim(len(table.columns) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean of the benchmarks' main scores in each kind, %")
    axes.set_title(figure_text(table.name), fontsize=10, loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def cost_plot(table: ScoreTable) -> Figure | None:
    """Return the mean by seconds, area by size of the vectors, or None where no time is known.

    Args:
        table: One of `score_tables`.
    """
    held = [row for row in table.rows if row.mean is not None and row.mean.whole and row.cost.seconds]
    if not held:
        return None
    seconds = np.array([row.cost.seconds for row in held], dtype=float)
    means = np.array([100 * row.mean.value for row in held if row.mean is not None])
    areas = np.array([30 + 200 * (row.cost.dimensions or 0) / 4096 for row in held])
    figure, axes = new_figure(8, 4.6)
    axes.scatter(seconds, means, areas, color=BLUE, alpha=0.75, edgecolor="white")
    for row, x, y in zip(held, seconds, means, strict=True):
        if len(held) <= 12 or means[seconds <= x].max() == y:
            end = np.log(x) > np.log(seconds).mean()
            offset, side = ((-9, 0), "right") if end else ((9, 0), "left")
            axes.annotate(
                figure_text(_label(row)),
                (x, y),
                offset,
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=8,
            )
    axes.set_xscale("log")
    _label_seconds(axes, seconds.max() / seconds.min())
    axes.margins(0.12)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds, all subsets together (area: size of the vectors)")
    axes.set_ylabel(f"mean {metric_name(table.metric)}, %")
    axes.set_title(figure_text(f"{table.name}: quality and cost"), fontsize=10, loc="left")
    return figure


def _label_seconds(axes: Any, ratio: float) -> None:  # noqa: ANN401 - matplotlib's Axes
    """Write ticks of a logarithmic axis as plain numbers, several of them however small its range."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    steps = (1.0,) if ratio > 100 else (1.0, 2.0, 5.0) if ratio > 3 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(row: ModelRow) -> str:
    return " · ".join(filter(None, (row.label, row.variant)))
