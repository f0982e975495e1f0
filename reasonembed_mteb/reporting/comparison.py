"""The rows of a table compared: with published scores, and with each other by significance tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.reporting.bootstrap import bootstrap_intervals, pool
from reasonembed_mteb.reporting.formats import MISSING, Grid
from reasonembed_mteb.reporting.published import (
    MEAN,
    PublishedComparison,
    compare_with_published,
    published_for,
)
from reasonembed_mteb.reporting.significance import significance_marks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reasonembed_mteb.reporting.bootstrap import Interval
    from reasonembed_mteb.reporting.queries import SubsetScores
    from reasonembed_mteb.reporting.significance import Marks
    from reasonembed_mteb.reporting.tables import ModelRow, ScoreTable

# With more models, pairs go into the JSON alone: 50 models have 1,225.
_MODELS_WITH_PAIRS = 6
_METRIC = "ndcg_at_10"


@dataclass(frozen=True)
class SourceComparison:
    """One row compared with one source.

    Attributes:
        row: Place of the row in its table.
        source: Where the scores were published, and as what.
        url: The source's address.
        note: What a reader must know to compare.
        scores: By subset, and `MEAN`.
    """

    row: int
    source: str
    url: str
    note: str
    scores: dict[str, PublishedComparison]


def published_comparisons(table: ScoreTable) -> list[SourceComparison]:
    """Compare every row with everything that was published of its model for the same benchmark.

    Args:
        table: One of `score_tables`; rows of a table set together are not compared.

    Returns:
        One for each row and source that share a subset. Means are compared where the row lacks none.
    """
    found = []
    for place, row in enumerate(table.rows):
        sources: dict[tuple[str, str], dict[str, PublishedComparison]] = {}
        for score in published_for(row.model.name, table.published, table.metric):
            ours = _ours(row, score.subset)
            if ours is None or row.model.options:
                continue
            held = sources.setdefault((score.source, score.model), {})
            held[score.subset] = compare_with_published(score, 100 * ours)
        for (source, model), scores in sources.items():
            first = next(iter(scores.values())).published
            found.append(SourceComparison(place, f"{source}: {model}", first.url, first.note, scores))
    return found


def _ours(row: ModelRow, subset: str) -> float | None:
    if subset == MEAN:
        return row.mean.value if row.mean is not None and row.mean.whole else None
    return row.cells[subset].score if subset in row.cells else None


def published_grids(table: ScoreTable, *, decimals: int = 2) -> list[Grid]:
    """Return one table for each row and source: published, ours, difference, verdict.

    Args:
        table: One of `score_tables`.
        decimals: Of our scores.
    """
    grids = []
    for source in published_comparisons(table):
        rows = tuple(
            (
                table.head(subset),
                f"{one.published.value:.{decimals}f}",
                f"{one.ours:.{decimals}f}",
                f"{one.difference:+.{decimals}f}",
                _verdict(one, table.metric),
            )
            for subset, one in source.scores.items()
        )
        title = f"{table.rows[source.row].label} compared with {source.source}"
        head = ("subset", "published", "ours", "difference", "within reproduction noise")
        notes = tuple(filter(None, (source.note, source.url)))
        grids.append(Grid(title, head, rows, notes))
    return grids


def _verdict(one: PublishedComparison, metric: str | None) -> str:
    # The noise was measured on nDCG@10 alone.
    if metric != _METRIC:
        return MISSING
    return "yes" if one.within_noise else "NO"


@dataclass(frozen=True)
class SignificanceTests:
    """What the tests say about one table.

    Attributes:
        marks: Letters and pairs over all queries, weighed as the macro mean weighs them; None where fewer
            than two rows share every query.
        intervals: Bootstrap interval of the macro mean, by label.
        subsets: The same tests on each subset alone.
        left_out: Labels of rows that lack scores by query.
    """

    marks: Marks | None
    intervals: dict[str, Interval]
    subsets: dict[str, Marks]
    left_out: tuple[str, ...]


def compare_rows(
    table: ScoreTable, frames: Sequence[SubsetScores], *, every_subset: bool = False
) -> SignificanceTests:
    """Test every pair of rows of a table.

    Args:
        table: One of `score_tables`.
        frames: Scores by query; see `read_frames`.
        every_subset: Test each subset too where there are many rows, whose pairs no table shows.
    """
    scores = _by_label(table, frames)
    whole = {label: own for label, own in scores.items() if len(own) == len(frames) and frames}
    pooled = {label: pool(own, macro=True) for label, own in whole.items()}
    subsets = {}
    for frame in frames if every_subset or len(scores) <= _MODELS_WITH_PAIRS else ():
        own = {label: held[frame.column] for label, held in scores.items() if frame.column in held}
        if len(own) > 1:
            subsets[frame.column] = significance_marks(own)
    return SignificanceTests(
        marks=significance_marks(pooled) if len(pooled) > 1 else None,
        intervals=bootstrap_intervals(pooled) if pooled else {},
        subsets=subsets,
        left_out=tuple(row.label for row in table.rows if row.label not in whole),
    )


def _by_label(table: ScoreTable, frames: Sequence[SubsetScores]) -> dict[str, dict[str, dict[str, float]]]:
    """Return scores by label, subset and query; a row that lacks any query of a subset lacks the subset."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for place, row in enumerate(table.rows):
        for frame in frames:
            if np.isfinite(frame.scores[place]).all():
                own = dict(zip(frame.queries, frame.scores[place].tolist(), strict=True))
                found.setdefault(row.label, {})[frame.column] = own
    return found


def significance_grids(table: ScoreTable, tests: SignificanceTests) -> list[Grid]:
    """Return the tests as tables: intervals and letters, and for few models every pair.

    Args:
        table: One of `score_tables`.
        tests: See `compare_rows`.
    """
    if tests.marks is None:
        return []
    marks = tests.marks
    rows = tuple(
        (
            row.label,
            _interval(tests.intervals[row.label]),
            marks.letters[row.label],
            _beaten(marks, row.label),
        )
        for row in table.rows
        if row.label in marks.letters
    )
    note = (
        f"paired randomisation test over {marks.comparison.queries:,} queries, Holm's correction over all "
        f"pairs, level {marks.alpha:g}; models without a common letter differ"
    )
    notes = [note]
    if tests.left_out:
        notes.append(f"without scores by query on every subset: {', '.join(tests.left_out)}")
    head = ("model", "mean, 95 % interval", "letters", "significantly better than")
    grids = [Grid(f"{table.name}: significance", head, rows, tuple(notes), words=4)]
    if len(marks.letters) <= _MODELS_WITH_PAIRS:
        grids.append(_pairs_grid(table, tests, marks))
    return grids


def _interval(interval: Interval) -> str:
    ends = f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
    return f"{100 * interval.mean:.2f} ({MISSING if math.isnan(interval.low) else ends})"


def _beaten(marks: Marks, label: str) -> str:
    beaten = marks.beats[label]
    if not beaten:
        return MISSING
    return "all others" if len(beaten) == len(marks.letters) - 1 > 1 else ", ".join(beaten)


def _pairs_grid(table: ScoreTable, tests: SignificanceTests, marks: Marks) -> Grid:
    columns = [column for column in table.columns if column in tests.subsets]
    names = marks.comparison.models
    pairs = [(one, two) for place, one in enumerate(names) for two in names[place + 1 :]]
    rows = tuple(
        (
            one,
            two,
            _pvalue(marks.comparison.pair(one, two)[1]),
            *(_pair(tests.subsets[column], one, two) for column in columns),
        )
        for one, two in pairs
    )
    head = ("model", "other model", "all", *(table.head(column) for column in columns))
    note = "p-values after Holm's correction over the pairs of each column"
    return Grid(f"{table.name}: p-values", head, rows, (note,), words=2)


def _pair(marks: Marks, one: str, two: str) -> str:
    held = {one, two} <= marks.letters.keys()
    return _pvalue(marks.comparison.pair(one, two)[1]) if held else MISSING


def _pvalue(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def published_data(table: ScoreTable) -> list[dict[str, Any]]:
    """Return a table's comparisons with published scores as plain data.

    Args:
        table: One of `score_tables`.
    """
    return [
        {
            "row": source.row,
            "label": table.rows[source.row].label,
            "source": source.source,
            "url": source.url,
            "note": source.note,
            "scores": {
                subset: {
                    "published": one.published.value,
                    "ours": round(one.ours, 4),
                    "difference": round(one.difference, 4),
                    "within_noise": one.within_noise if table.metric == _METRIC else None,
                }
                for subset, one in source.scores.items()
            },
        }
        for source in published_comparisons(table)
    ]


def significance_data(tests: SignificanceTests) -> dict[str, Any]:
    """Return tests as plain data.

    Args:
        tests: See `compare_rows`.
    """
    intervals = {
        label: {"mean": one.mean, "low": _finite(one.low), "high": _finite(one.high)}
        for label, one in tests.intervals.items()
    }
    return {
        "intervals": intervals,
        "all": _marks_data(tests.marks) if tests.marks is not None else None,
        "subsets": {column: _marks_data(marks) for column, marks in tests.subsets.items()},
        "left_out": list(tests.left_out),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _marks_data(marks: Marks) -> dict[str, Any]:
    names: Mapping[int, str] = dict(enumerate(marks.comparison.models))
    return {
        "letters": marks.letters,
        "level": marks.alpha,
        "queries": marks.comparison.queries,
        "pairs": [
            {
                "model": names[one],
                "against": names[two],
                "difference": float(marks.comparison.means[one] - marks.comparison.means[two]),
                "p": float(marks.comparison.pvalues[one, two]),
                "p_holm": float(marks.comparison.adjusted[one, two]),
            }
            for one in names
            for two in names
            if one < two
        ],
    }
