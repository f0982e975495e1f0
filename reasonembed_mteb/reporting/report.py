"""A whole report: tables of scores, comparisons, tests and costs in one format; and its pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.reporting import formats
from reasonembed_mteb.reporting.chapters import chapter_grids, drawn_pictures
from reasonembed_mteb.reporting.comparison import (
    SignificanceTests,
    compare_rows,
    published_data,
    published_grids,
    significance_data,
    significance_grids,
)
from reasonembed_mteb.reporting.pictures import save_figure
from reasonembed_mteb.reporting.queries import read_frames
from reasonembed_mteb.reporting.suites import suite_tables
from reasonembed_mteb.reporting.tables import score_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from reasonembed_mteb.reporting.chapters import Chapter
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
    chapters: Sequence[Chapter] = (),
) -> tuple[str, list[str]]:
    """Return a report as text.

    Args:
        results: What was read.
        wanted: What to add.
        format: ``table``, ``markdown``, ``latex``, ``csv``, ``json`` or ``html``.
        width: Columns of a terminal, for ``table``.
        chapters: What stands behind the scores (not in ``csv``, which holds scores alone).

    Returns:
        The text, and a line for each file of scores by query that was left out.
    """
    tables = [*score_tables(results, together=wanted.together), *suite_tables(results)]
    tests, problems = _tests(tables, format == "json") if wanted.significance else ({}, [])
    if format == "html":
        from reasonembed_mteb.reporting.page import render_page

        page, more = render_page(tables, results.problems, tests=tests, chapters=chapters)
        return page, list(dict.fromkeys([*problems, *more]))
    if format == "csv":
        return formats.as_csv(tables), problems
    if format == "json":
        data = [_data(table, wanted, tests) for table in tables]
        parts = {one.name: {"title": one.title, "notes": one.notes, "data": one.data} for one in chapters}
        whole = {"tables": data, "chapters": parts, "left_out": [*results.problems, *problems]}
        return formats.to_json(whole), problems
    grids = [grid for table in tables for grid in _grids(table, wanted, tests.get(table.name))]
    grids += [grid for chapter in chapters for grid in chapter_grids(chapter)]
    if format == "table":
        return "\n".join(formats.as_table(grid, width) for grid in grids), problems
    return "\n".join(map(formats.GRID_FORMATS[format], grids)), problems


def _tests(
    tables: Sequence[ScoreTable], every_subset: bool
) -> tuple[dict[str, SignificanceTests], list[str]]:
    tests, problems = {}, []
    for table in tables:
        frames, lines = read_frames(table)
        tests[table.name] = compare_rows(table, frames, every_subset=every_subset)
        problems += lines
    return tests, problems


def _grids(table: ScoreTable, wanted: ReportOptions, tests: SignificanceTests | None) -> list[Grid]:
    marks = tests.marks.letters if tests is not None and tests.marks is not None else None
    grids = [formats.score_grid(table, decimals=wanted.decimals, marks=marks)]
    if tests is not None:
        grids += significance_grids(table, tests)
    if wanted.published:
        grids += published_grids(table, decimals=wanted.decimals)
    costs = formats.cost_grid(table, decimals=wanted.decimals) if wanted.cost else None
    return grids if costs is None else [*grids, costs]


def _data(table: ScoreTable, wanted: ReportOptions, tests: dict[str, SignificanceTests]) -> dict[str, Any]:
    data = formats.as_data(table)
    if wanted.published:
        data["published"] = published_data(table)
    if table.name in tests:
        data["significance"] = significance_data(tests[table.name])
    return data


def draw_report(
    results: ResultSet,
    folder: Path,
    format: str,
    *,
    together: bool = False,
    chapters: Sequence[Chapter] = (),
) -> list[Path]:
    """Write a report's pictures: of each table (heat map, published, cost) and of each chapter.

    Args:
        results: What was read.
        folder: Where to.
        format: ``png`` or ``svg``.
        together: See `ReportOptions`.
        chapters: Whose pictures to add.

    Returns:
        The files.
    """
    from reasonembed_mteb.reporting.pictures import draw

    written = []
    for table in (*score_tables(results, together=together), *suite_tables(results)):
        stem = file_name(re.sub(r"[^\w.-]+", "-", table.name).strip("-"))
        drawn = {f"{stem}-{name}": figure for name, figure in draw(table).items()}
        written += _save(drawn, folder, format)
    for chapter in chapters:
        drawn = {f"{chapter.name}-{name}": figure for name, figure in drawn_pictures(chapter).items()}
        written += _save(drawn, folder, format)
    return written


def _save(figures: dict[str, Figure], folder: Path, format: str) -> list[Path]:
    from reasonembed_mteb.files import replacing

    files = []
    for name, figure in figures.items():
        file = folder / f"{file_name(name)}.{format}"
        with replacing(file) as part:
            save_figure(figure, part, format)
        files.append(file)
    return files
