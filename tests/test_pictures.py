"""Pictures of a report: the same bytes each time, and the figures of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from reporting_data import (
    PAPER,
    tables,
    write_all,
    write_run,
)

from reasonembed_mteb.reporting.report import draw_report
from reasonembed_mteb.reporting.results import read_results
from reasonembed_mteb.retrieval.rows import benchmarks

if TYPE_CHECKING:
    from pathlib import Path


def test_pictures_are_written_and_repeat_to_the_byte(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_all(tmp_path, PAPER, [0.5] * 12)
    write_all(tmp_path, "x/$a_b", [0.4] * 11)
    results = read_results([tmp_path])
    files = draw_report(results, tmp_path / "one", "svg")
    names = ["heatmap", "published", "cost"]
    assert [file.name for file in files] == [f"BRIGHT-ReasonEmbed-{name}.svg" for name in names]
    again = draw_report(results, tmp_path / "two", "svg")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    (first, *_) = draw_report(results, tmp_path / "png", "png")
    assert first.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_cost_shows_each_models_own_seconds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from reasonembed_mteb.reporting.pictures import cost_plot

    for name, seconds in (("x/fast", 3.0), ("x/slow", 70.0)):
        for row in benchmarks()["ReasonMini"]:
            write_run(tmp_path, name, row.name, {"q": 0.5}, cost={"seconds": seconds, "dimensions": 384})
    table = tables(tmp_path)["ReasonMini"]
    figure = cost_plot(table)
    assert figure is not None
    (points,) = figure.axes[0].collections
    drawn = dict(zip([row.label for row in table.rows], points.get_offsets()[:, 0], strict=True))
    subsets = len(benchmarks()["ReasonMini"])
    assert drawn == {"x/fast": 3.0 * subsets, "x/slow": 70.0 * subsets}
