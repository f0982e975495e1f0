"""One self-contained HTML page: no request leaves it, and every text of the data stays text."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from reasonembed_mteb import __version__
from reasonembed_mteb.errors import missing_extra
from reasonembed_mteb.escaping import html_data, visible
from reasonembed_mteb.reporting.chapters import drawn_pictures
from reasonembed_mteb.reporting.comparison import published_data
from reasonembed_mteb.reporting.explorer import explore
from reasonembed_mteb.reporting.pictures import save_figure
from reasonembed_mteb.reporting.published import noise
from reasonembed_mteb.reporting.tables import metric_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from reasonembed_mteb.reporting.chapters import Chapter
    from reasonembed_mteb.reporting.comparison import SignificanceTests
    from reasonembed_mteb.reporting.formats import Grid
    from reasonembed_mteb.reporting.tables import Mean, ModelRow, ScoreTable

# Decimals of a score in [0, 1]: what a file holds, and more than a page shows.
_DECIMALS = 5


def render_page(
    tables: Sequence[ScoreTable],
    problems: Sequence[str] = (),
    *,
    tests: Mapping[str, SignificanceTests] | None = None,
    chapters: Sequence[Chapter] = (),
    title: str = "Retrieval report",
) -> tuple[str, list[str]]:
    """Return the page.

    Args:
        tables: See `score_tables`.
        problems: Lines about files that were left out, shown at the end.
        tests: Tests by name of the table, whose letters follow the means.
        chapters: What stands behind the scores.
        title: Heading.

    Returns:
        HTML, and a line for each file of scores by query that was left out.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    try:
        import jinja2
        import jinja2.utils
        import markupsafe
    except ImportError as error:
        raise missing_extra("jinja2", "report") from error
    explored, more = explore(tables)
    data = {
        "tables": [
            _table(table, explorer, (tests or {}).get(table.name))
            for table, explorer in zip(tables, explored, strict=True)
        ],
        "noise": {"subset": noise(is_mean=False), "mean": noise(is_mean=True)},
        "problems": [*problems, *more],
    }
    dumps = partial(json.dumps, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_part("page.html.jinja")).render(
        title=visible(title),
        version=__version__,
        scored=bool(tables),
        chapters=[_chapter(chapter) for chapter in chapters],
        # Our own files, and JSON in which no character can end its element.
        css=markupsafe.Markup(_part("page.css")),
        js=markupsafe.Markup(_part("page.js")),
        data=jinja2.utils.htmlsafe_json_dumps(html_data(data), dumps=dumps),
    )
    return page, more


def _chapter(chapter: Chapter) -> dict[str, Any]:
    return {
        "name": chapter.name,
        "title": visible(chapter.title),
        "notes": [visible(note) for note in chapter.notes],
        "grids": [_grid(grid) for grid in chapter.grids],
        "pictures": {name: _inline(figure) for name, figure in drawn_pictures(chapter).items()},
    }


def _grid(grid: Grid) -> dict[str, Any]:
    return {
        "title": visible(grid.title),
        "head": [visible(cell) for cell in grid.head],
        "rows": [[visible(cell) for cell in row] for row in grid.rows],
        "notes": [visible(note) for note in grid.notes],
        "words": grid.words,
    }


def _inline(figure: Figure) -> str:
    """Return a picture as a link that holds it: it is an image there, in which nothing can act."""
    stream = io.BytesIO()
    save_figure(figure, stream, "svg")
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _part(name: str) -> str:
    return (files("reasonembed_mteb.reporting") / name).read_text(encoding="utf-8")


def _table(
    table: ScoreTable, explorer: dict[str, Any] | None, tests: SignificanceTests | None
) -> dict[str, Any]:
    marks = tests.marks if tests is not None else None
    letters = marks.letters if marks is not None else {}
    return {
        "name": table.name,
        "about": table.about,
        "metric_name": metric_name(table.metric) if table.metric else "main scores",
        "columns": list(table.columns),
        "short": [table.head(column) for column in table.columns],
        # A user's table may hold any text, and an address may be a script.
        "links": [
            link if (link := table.links.get(c, "")).startswith("https://") else None for c in table.columns
        ],
        "groups": list(table.groups),
        "notes": list(table.notes),
        "marks_note": _marks_note(tests),
        "rows": [_row(row, table, letters.get(row.label, "")) for row in table.rows],
        "published": published_data(table),
        "explorer": explorer,
    }


def _marks_note(tests: SignificanceTests | None) -> str:
    if tests is None or tests.marks is None:
        return ""
    marks = tests.marks
    return (
        "Models without a common letter differ significantly: paired randomisation test over "
        f"{marks.comparison.queries:,} queries, Holm's correction over all pairs, level {marks.alpha:g}."
    )


def _row(row: ModelRow, table: ScoreTable, mark: str) -> dict[str, Any]:
    scores = [row.cells[column].score if column in row.cells else None for column in table.columns]
    return {
        "label": row.label,
        "model": row.model.name,
        "revision": row.model.revision,
        "table": row.variant,
        "rank": row.rank,
        "mean": _mean(row.mean),
        "mark": mark,
        "groups": {name: _mean(mean) for name, mean in row.groups.items()},
        "scores": [None if score is None else round(score, _DECIMALS) for score in scores],
        "cost": asdict(row.cost),
    }


def _mean(mean: Mean | None) -> dict[str, Any] | None:
    return None if mean is None else asdict(mean) | {"value": round(mean.value, _DECIMALS)}
