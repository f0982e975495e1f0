"""A whole report: tables of scores, comparisons, tests and costs in one format; and its pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.reporting import formats
from reasonembed_mteb.reporting.comparison import (
    SignificanceTests,
    compare_rows,
    published_data,
    published_grids,
    significance_data,
    significance_grids,
)
from reasonembed_mteb.reporting.queries import read_frames
from reasonembed_mteb.reporting.suites import suite_tables
from reasonembed_mteb.reporting.tables import score_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reasonembed_mteb.reporting.formats import Grid
    from reasonembed_mteb.reporting.results import ResultSet
    from reasonembed_mteb.reporting.tables import ScoreTable


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds besides the scores.

    Attributes:
        published: Comparisons with published scores.
        significance: Tests of every pair.
        cost: Time, tokens, device, size of the vectors.
        together: Tables of the same data as one.
        decimals: Of scores in per cent.
    """

    published: bool = False
    significance: bool = False
    cost: bool = False
    together: bool = False
    decimals: int = 2


def write_report(
    results: ResultSet,
    wanted: ReportOptions,
    format: str,
    width: int | None = None,
) -> tuple[str, list[str]]:
    """Return a report as text.

    Args:
        results: What was read.
        wanted: What to add.
        format: ``table``, ``markdown``, ``latex``, ``csv``, ``json`` or ``html``.
        width: Columns of a terminal, for ``table``.

    Returns:
        The text, and a line for each file of scores by query that was left out.
    """
    boards = [*score_tables(results, together=wanted.together), *suite_tables(results)]
    tested, problems = _tests(boards, format == "json") if wanted.significance else ({}, [])
    if format == "html":
        from reasonembed_mteb.reporting.page import render_page

        page, more = render_page(boards, results.problems, tested=tested)
        return page, list(dict.fromkeys([*problems, *more]))
    if format == "csv":
        return formats.as_csv(boards), problems
    if format == "json":
        tables = [_data(board, wanted, tested) for board in boards]
        return formats.to_json({"tables": tables, "left_out": [*results.problems, *problems]}), problems
    grids = [grid for board in boards for grid in _grids(board, wanted, tested.get(board.name))]
    if format == "table":
        return "\n".join(formats.as_table(grid, width) for grid in grids), problems
    return "\n".join(map(formats.GRID_FORMATS[format], grids)), problems


def _tests(
    boards: Sequence[ScoreTable], every_subset: bool
) -> tuple[dict[str, SignificanceTests], list[str]]:
    tested, problems = {}, []
    for board in boards:
        frames, lines = read_frames(board)
        tested[board.name] = compare_rows(board, frames, every_subset=every_subset)
        problems += lines
    return tested, problems


def _grids(board: ScoreTable, wanted: ReportOptions, tested: SignificanceTests | None) -> list[Grid]:
    marks = tested.marks.letters if tested is not None and tested.marks is not None else None
    grids = [formats.score_grid(board, decimals=wanted.decimals, marks=marks)]
    if tested is not None:
        grids += significance_grids(board, tested)
    if wanted.published:
        grids += published_grids(board, decimals=wanted.decimals)
    costs = formats.cost_grid(board, decimals=wanted.decimals) if wanted.cost else None
    return grids if costs is None else [*grids, costs]


def _data(board: ScoreTable, wanted: ReportOptions, tested: dict[str, SignificanceTests]) -> dict[str, Any]:
    data = formats.as_data(board)
    if wanted.published:
        data["published"] = published_data(board)
    if board.name in tested:
        data["significance"] = significance_data(tested[board.name])
    return data


def draw_report(
    results: ResultSet,
    folder: Path,
    format: str,
    *,
    together: bool = False,
) -> list[Path]:
    """Write a report's pictures: for each table a heat map, bars against published, cost beside quality.

    Args:
        results: What was read.
        folder: Where to.
        format: ``png`` or ``svg``.
        together: See `ReportOptions`.

    Returns:
        The files.
    """
    from reasonembed_mteb.files import replacing
    from reasonembed_mteb.reporting.pictures import draw

    written = []
    for board in (*score_tables(results, together=together), *suite_tables(results)):
        stem = file_name(re.sub(r"[^\w.-]+", "-", board.name).strip("-"))
        for name, figure in draw(board).items():
            file = folder / f"{stem}-{name}.{format}"
            with replacing(file) as part:
                # Without a date and with fixed ids, the same results give the same bytes.
                metadata = {"Date": None} if format == "svg" else None
                figure.savefig(part, format=format, dpi=150, metadata=metadata)
            written.append(file)
    return written
