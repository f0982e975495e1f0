"""One self-contained HTML page: no request leaves it, and every text of the data stays text."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from reasonembed_mteb import __version__
from reasonembed_mteb.errors import missing_extra
from reasonembed_mteb.escaping import html_data, visible
from reasonembed_mteb.reporting.comparison import published_data
from reasonembed_mteb.reporting.explorer import explore
from reasonembed_mteb.reporting.published import noise
from reasonembed_mteb.reporting.tables import metric_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reasonembed_mteb.reporting.comparison import SignificanceTests
    from reasonembed_mteb.reporting.tables import Mean, ModelRow, ScoreTable

# Decimals of a score in [0, 1]: what a file holds, and more than a page shows.
_DECIMALS = 5


def render_page(
    boards: Sequence[ScoreTable],
    problems: Sequence[str] = (),
    *,
    tested: Mapping[str, SignificanceTests] | None = None,
    title: str = "Retrieval report",
) -> tuple[str, list[str]]:
    """Return the page.

    Args:
        boards: Tables.
        problems: Lines about files that were left out, shown at the end.
        tested: Tests by name of the table, whose letters follow the means.
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
    explored, more = explore(boards)
    data = {
        "boards": [
            _board(board, explorer, (tested or {}).get(board.name))
            for board, explorer in zip(boards, explored, strict=True)
        ],
        "noise": {"subset": noise(is_mean=False), "mean": noise(is_mean=True)},
        "problems": [*problems, *more],
    }
    dumps = partial(json.dumps, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_part("page.html.jinja")).render(
        title=visible(title),
        version=__version__,
        # Our own files, and JSON in which no character can end its element.
        css=markupsafe.Markup(_part("page.css")),
        js=markupsafe.Markup(_part("page.js")),
        data=jinja2.utils.htmlsafe_json_dumps(html_data(data), dumps=dumps),
    )
    return page, more


def _part(name: str) -> str:
    return (files("reasonembed_mteb.reporting") / name).read_text(encoding="utf-8")


def _board(
    board: ScoreTable, explorer: dict[str, Any] | None, tested: SignificanceTests | None
) -> dict[str, Any]:
    marks = tested.marks if tested is not None else None
    letters = marks.letters if marks is not None else {}
    return {
        "name": board.name,
        "about": board.about,
        "metric_name": metric_name(board.metric) if board.metric else "main scores",
        "columns": list(board.columns),
        "short": [board.head(column) for column in board.columns],
        "groups": list(board.groups),
        "notes": list(board.notes),
        "marks_note": _marks_note(tested),
        "rows": [_row(row, board, letters.get(row.label, "")) for row in board.rows],
        "published": published_data(board),
        "explorer": explorer,
    }


def _marks_note(tested: SignificanceTests | None) -> str:
    if tested is None or tested.marks is None:
        return ""
    marks = tested.marks
    return (
        "Models without a common letter differ significantly: paired randomisation test over "
        f"{marks.comparison.queries:,} queries, Holm's correction over all pairs, level {marks.alpha:g}."
    )


def _row(row: ModelRow, board: ScoreTable, mark: str) -> dict[str, Any]:
    scores = [row.cells[column].score if column in row.cells else None for column in board.columns]
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
