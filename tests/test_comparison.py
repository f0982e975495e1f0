"""Rows of a table compared: with published scores, and with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from reporting_data import (
    BIOLOGY,
    PAPER,
    record,
    tables,
    write_all,
    write_result,
    write_tested,
)

from reasonembed_mteb.reporting.comparison import (
    compare_rows,
    published_comparisons,
    published_grids,
    significance_grids,
)
from reasonembed_mteb.reporting.queries import read_frames
from reasonembed_mteb.reporting.report import ReportOptions, write_report
from reasonembed_mteb.reporting.results import read_results

if TYPE_CHECKING:
    from pathlib import Path


def test_published_scores_stand_beside_ours(tmp_path: Path) -> None:
    write_all(tmp_path, PAPER, [0.5551, 0.60, *([0.3] * 10)])
    write_all(tmp_path, "x/unknown", [0.3] * 12)
    table = tables(tmp_path)["BRIGHT(ReasonEmbed)"]
    paper = next(source for source in published_comparisons(table) if "Table 2" in source.source)
    biology = paper.scores["biology"]
    assert (biology.published.value, biology.within_noise) == (55.5, True)
    assert biology.difference == pytest.approx(0.01)
    assert not paper.scores["earth_science"].within_noise
    assert paper.scores["mean"].published.value == 38.1
    assert {table.rows[source.row].label for source in published_comparisons(table)} == {PAPER}
    rows = {row[0]: row for row in published_grids(table)[0].rows}
    assert rows["Bio."] == ("Bio.", "55.50", "55.51", "+0.01", "yes")
    assert rows["Earth"][-1] == "NO"


def test_a_mean_over_fewer_subsets_is_not_compared(tmp_path: Path) -> None:
    write_all(tmp_path, PAPER, [0.5] * 11)
    for source in published_comparisons(tables(tmp_path)["BRIGHT(ReasonEmbed)"]):
        assert "mean" not in source.scores


def test_rewritten_queries_and_smoke_runs_are_not_compared_with_published(tmp_path: Path) -> None:
    write_result(tmp_path, PAPER, f"{BIOLOGY}Gpt4Reason", 0.5)
    record(write_result(tmp_path, PAPER, BIOLOGY, 0.5), causes={"limit": 3})
    assert all(not published_comparisons(table) for table in tables(tmp_path).values())


def test_a_variant_is_not_compared_with_the_plain_models_published_score(tmp_path: Path) -> None:
    plain = write_result(tmp_path, PAPER, BIOLOGY, 0.5551)
    write_result(tmp_path, PAPER, BIOLOGY, 0.1, revision="r1/experiments/dim_64", meta={"revision": "r1"})
    record(write_result(tmp_path, PAPER, BIOLOGY, 0.2, revision="r2"), causes={"rerank": "0123 top 100"})
    table = tables(tmp_path)["BRIGHT(ReasonEmbed)"]
    assert len(table.rows) == 3
    compared = {table.rows[source.row].cells["biology"].file for source in published_comparisons(table)}
    assert compared == {plain}


def test_significance_marks_the_means(tmp_path: Path) -> None:
    write_tested(tmp_path)
    table = tables(tmp_path)["BRIGHT(ReasonEmbed)"]
    frames, problems = read_frames(table)
    assert not problems
    tests = compare_rows(table, frames)
    assert tests.marks is not None
    letters = tests.marks.letters
    assert not set(letters["x/good"]) & set(letters["x/same"])
    assert set(letters["x/base"]) & set(letters["x/same"])
    assert tests.left_out == ("x/plain",)
    assert set(tests.subsets) == {"biology", "pony"}
    first, pairs = significance_grids(table, tests)
    good = next(row for row in first.rows if row[0] == "x/good")
    assert good[-1] == "all others"
    assert pairs.head == ("model", "other model", "all", "Bio.", "Pony")
    assert any("x/plain" in note for note in first.notes)
    interval = tests.intervals["x/good"]
    assert interval.low < interval.mean < interval.high
    # The interval is that of the mean in the table.
    assert interval.mean == pytest.approx(table.rows[0].mean.value, abs=1e-5)  # type: ignore[union-attr]


def test_scores_by_query_that_are_damaged_are_named(tmp_path: Path) -> None:
    write_tested(tmp_path)
    (damaged, *_) = sorted((tmp_path / "records").rglob("*.parquet"))
    damaged.write_bytes(b"PAR1")
    text, problems = write_report(read_results([tmp_path]), ReportOptions(significance=True), "table")
    assert len(problems) == 1
    assert str(damaged) in problems[0]
    assert "x/good" in text
