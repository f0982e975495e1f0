"""The specialisation tax as a chapter: tables, published points, a picture that holds them all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.evaluation.chapter_files import chapter_file
from reasonembed_mteb.evaluation.tax_record import KIND, SideScore, TaxRecord, write_tax
from reasonembed_mteb.reporting.chapters import find_chapters
from reasonembed_mteb.reporting.page import render_page
from reasonembed_mteb.reporting.tax import (
    published_points,
    published_tax_grid,
    tax_chapters,
    tax_grid,
    tax_plot,
)

if TYPE_CHECKING:
    from pathlib import Path


def side(task: str, mean: float, base: float) -> SideScore:
    return SideScore(
        tasks={task: mean},
        baseline_tasks={task: base},
        mean=mean,
        baseline_mean=base,
        pooled=mean + 0.01,
        baseline_pooled=base - 0.01,
        difference=(mean - base, mean - base - 0.05, mean - base + 0.05),
        queries=20,
        metrics=("ndcg_at_10",),
    )


RECORD = TaxRecord("a/<b>one", "bm25", side("Hard", 0.4, 0.2), side("Plain", 0.3, 0.5))
OTHER = replace(RECORD, model="a/two", reasoning=side("Hard", 0.25, 0.2))


def test_the_table_has_the_baseline_and_each_difference() -> None:
    grid = tax_grid([RECORD, OTHER])
    assert grid.rows == (
        ("bm25", "20.00", "", "19.00", "50.00", "", "49.00"),
        (
            "a/<b>one",
            "40.00",
            "+20.00 (+15.00 to +25.00)",
            "41.00",
            "30.00",
            "-20.00 (-25.00 to -15.00)",
            "31.00",
        ),
        ("a/two", "25.00", "+5.00 (+0.00 to +10.00)", "26.00", "30.00", "-20.00 (-25.00 to -15.00)", "31.00"),
    )
    assert grid.notes[0] == "reasoning: Hard; 20 queries, nDCG@10"
    assert "smoke run over the first 5 queries a task" in tax_grid([replace(RECORD, limit=5)]).title


def test_published_points_are_the_studys() -> None:
    points = published_points()
    # Section 5 of the study's numbers as they were summed up: ReasonEmbed 37.9 / 48.3, Qwen3-Embedding-8B
    # 22.7 / 65.0, BM25 14.5 / 42.0, bge-m3 12.2 / 50.3.
    expected = {
        "bge_reasoner": (37.9, 48.3),
        "qwen3": (22.7, 65.0),
        "bm25": (14.5, 42.0),
        "bge_m3": (12.2, 50.3),
        "contriever": (14.9, 47.3),
        "linq": (24.2, 62.2),
        "gte": (23.3, 62.8),
        "reasonir": (24.3, 52.8),
        "diver": (29.0, 53.5),
    }
    assert {name: (round(x, 1), round(y, 1)) for name, (x, y) in points.items()} == expected
    rows = {row[0]: row for row in published_tax_grid().rows}
    assert rows["bge_reasoner"] == ("bge_reasoner", "37.9", "+23.4", "48.3", "+6.3")


def test_records_of_one_baseline_and_suites_share_a_table(tmp_path: Path) -> None:
    elsewhere = replace(RECORD, general=side("Other", 0.3, 0.5))
    for number, record in enumerate((RECORD, OTHER, elsewhere)):
        write_tax(chapter_file(tmp_path, KIND, str(number)), record)
    broken = chapter_file(tmp_path, KIND, "broken")
    broken.write_text("{")
    (chapter,), problems = tax_chapters([tmp_path, tmp_path])
    assert sorted(len(grid.rows) for grid in chapter.grids[:2]) == [2, 3]
    assert len(chapter.data) == 3
    assert list(chapter.pictures) == ["scatter-1", "scatter-2"]
    (line,) = problems
    assert str(broken) in line
    assert tax_chapters([tmp_path / "none"]) == ([], [])
    # The report finds it by itself, and the page shows names as text.
    (found,), _ = find_chapters([tmp_path])
    page, _ = render_page([], chapters=[found])
    assert "Specialisation tax" in page
    assert "a/<b>one" not in page


def test_the_picture_has_every_point() -> None:
    figure = tax_plot([RECORD, OTHER])
    measured, published = figure.axes
    named = {text.get_text() for text in measured.texts} - {""}
    assert len(named) == 3
    points = [tuple(one.get_offsets()[0]) for one in measured.collections if len(one.get_offsets())]
    points = points[-3:]
    spans = [high - low for low, high in (measured.get_xlim(), measured.get_ylim())]
    assert spans[0] == pytest.approx(spans[1])
    assert points == [pytest.approx(one) for one in ((50, 20), (30, 40), (30, 25))]
    assert len(published.collections) == 9
