"""The chapter on robustness: drops as the study has them, intervals, geometry, and text that cannot act."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.geometries import Geometry, VectorShape, WeightNorms, write_geometry
from reasonembed_mteb.evaluation.profiles import Profile, QueryCounts, VariedRun, write_profile
from reasonembed_mteb.reporting.bootstrap import resampled_means
from reasonembed_mteb.reporting.chapters import find_chapters
from reasonembed_mteb.reporting.formats import as_table
from reasonembed_mteb.reporting.report import ReportOptions, draw_report, write_report
from reasonembed_mteb.reporting.results import read_results
from reasonembed_mteb.reporting.robustness import (
    drop_grid,
    geometry_grid,
    profile_drops,
    robustness_chapters,
)

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<b>bold</b>\x1b[31m"
COUNTS = QueryCounts(4, 3, 40, 20, 4, {"emptied": 1})


def profile(clean: list[float], varied: dict[str, list[list[float]]], **changes: Any) -> Profile:
    """Return a profile; kinds with one list have no seed."""
    runs = tuple(
        VariedRun(kind, None if len(lists) == 1 else seed, f"T.{kind}-{seed}", tuple(scores), COUNTS)
        for kind, lists in varied.items()
        for seed, scores in enumerate(lists)
    )
    queries = tuple(f"default/test/q{i}" for i in range(len(clean)))
    made = Profile("a/one", "r", "Task", "d", 0.1, False, None, queries, tuple(clean), runs, 1)
    return replace(made, **changes)


def geometry(model: str = "a/one", count: int = 10, task: str = "Task") -> Geometry:
    shape = VectorShape(count, 4, 0.5, 0.75, 0.25, 3.0, 1.0, 0.0)
    return Geometry(model, "r", task, 0, shape, WeightNorms(2, 1.5, 2.0, 1.0, 0.5, 1.0))


SIMPLE = profile(
    [1.0, 0.5, 0.5, 0.0],
    {"misspelling": [[0.5, 0.5, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0]], "keywords": [[0.0, 0.0, 1.0, 1.0]]},
)


def test_drops_are_the_studys() -> None:
    misspelling, keywords = profile_drops(SIMPLE, resamples=200)
    # Means .25 and .5 against .5: drops .5 and 0.
    assert misspelling.drop == pytest.approx(0.25)
    assert misspelling.deviation == pytest.approx(np.std([0.5, 0.0]))
    assert (misspelling.seeds, misspelling.score) == (2, pytest.approx(0.375))
    assert (keywords.drop, keywords.deviation) == (pytest.approx(0), None)
    assert (misspelling.changed_queries, misspelling.changed_words, misspelling.eligible_words) == (
        0.75,
        0.1,
        0.5,
    )
    assert misspelling.kept == {"emptied": 2}


def test_intervals_are_those_of_queries_and_seeds_drawn_again() -> None:
    """Against a loop that draws queries and seeds one sample at a time."""
    draw = np.random.default_rng(0)
    clean = draw.random(60)
    runs = [np.clip(clean - draw.normal(0.05 * (k + 1), 0.1, 60), 0, 1) for k in range(3)]
    (drop,) = profile_drops(profile(list(clean), {"synonyms": [list(run) for run in runs]}))
    drops = []
    for _ in range(4000):
        picked, seeds = draw.integers(0, 60, 60), draw.integers(0, 3, 3)
        drops.append(1 - np.mean([runs[k][picked].mean() for k in seeds]) / clean[picked].mean())
    low, high = np.percentile(drops, [2.5, 97.5])
    assert drop.low == pytest.approx(low, abs=0.01)
    assert drop.high == pytest.approx(high, abs=0.01)
    assert drop.low < (drop.drop or 0) < drop.high
    # Seeds that differ widen it.
    alike = profile_drops(profile(list(clean), {"synonyms": [list(runs[1])] * 3}))[0]
    assert (alike.high or 0) - (alike.low or 0) < drop.high - drop.low


def test_resampled_means_are_means_over_the_same_queries() -> None:
    matrix = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    means = resampled_means(matrix, resamples=50, seed=3)
    assert means.shape == (50, 2)
    assert np.allclose(means[:, 1] - means[:, 0], 1)
    assert means[:, 0].std() > 0


def test_a_drop_from_nothing_is_not_defined() -> None:
    nothing = profile([0.0, 0.0], {"misspelling": [[0.0, 1.0], [0.0, 0.0]]})
    (drop,) = profile_drops(nothing)
    assert (drop.drop, drop.deviation, drop.low, drop.high) == (None, None, None, None)
    grid = drop_grid([nothing])
    assert "a relative drop is not defined" in " ".join(grid.notes)
    (alone,) = profile_drops(profile([0.5], {"keywords": [[0.25]]}))
    assert (alone.drop, alone.low) == (0.5, None)
    # Most samples of these queries have no clean score at all.
    (rare,) = profile_drops(profile([0.0] * 9 + [1.0], {"keywords": [[0.0] * 9 + [0.5]]}))
    assert (rare.low, rare.high) == (0.5, 0.5)


def test_the_grid_says_what_was_changed() -> None:
    grid = drop_grid([SIMPLE])
    table = as_table(grid)
    rows = {row[1]: row for row in grid.rows}
    assert rows["none"][3] == "50.00"
    assert rows["misspelling"][2:6] == ("2", "37.50", "25.00", "25.00")
    assert rows["misspelling"][7:] == ("75.0", "10.0", "50.0")
    # One run without a seed has no spread, and a drop of nothing no sign.
    assert rows["keywords"][4:6] == ("0.00", "-")
    assert "misspelling: queries that stayed as they were, over all runs: 2 emptied" in table
    assert "10 % of the words, at least one; code, formulas and addresses kept" in table


def test_only_profiles_of_the_same_data_share_a_table(tmp_path: Path) -> None:
    others: list[dict[str, Any]] = [
        {"model": "a/two"},
        {"share": 0.2},
        {"official": True},
        {"task": "Other"},
    ]
    for changes in ({}, *others):
        write_profile(tmp_path, replace(SIMPLE, **changes))
    ((chapter,), problems) = robustness_chapters([tmp_path])
    assert problems == []
    assert [len(grid.rows) for grid in chapter.grids] == [3, 6, 3, 3]
    assert [row[0] for row in chapter.grids[1].rows] == ["a/one"] * 3 + ["a/two"] * 3
    assert set(chapter.pictures) == {"profile-1", "profile-2", "profile-3", "profile-4"}


def test_geometry_stands_beside_the_gaussians_and_unequal_numbers_are_refused(tmp_path: Path) -> None:
    grid = geometry_grid([geometry(), geometry("a/two")])
    assert grid.rows[0] == (
        *("a/one", "10", "4", "0.5000", "0.7500", "0.2500", "3.0", "1.000", "0.000", "1.50", "2.00"),
    )
    with pytest.raises(DataError, match="unequal numbers of vectors"):
        geometry_grid([geometry(), geometry("a/two", 20)])
    for one in (geometry(), geometry("a/two", 20), geometry(task="Other")):
        write_geometry(tmp_path, one)
    ((chapter,), problems) = robustness_chapters([tmp_path])
    assert [grid.title for grid in chapter.grids] == ["Other, geometry of the document vectors"]
    assert len(problems) == 1
    bare = replace(geometry(), weights=None, shape=replace(geometry().shape, isoscore=None))
    assert geometry_grid([bare]).rows[0][3] == "-"


def test_a_report_holds_the_chapter_and_its_pictures(tmp_path: Path) -> None:
    write_profile(tmp_path, replace(SIMPLE, model=HOSTILE, task=HOSTILE))
    write_geometry(tmp_path, geometry(HOSTILE))
    chapters, problems = find_chapters([tmp_path])
    assert problems == []
    results = read_results([tmp_path])
    page, _ = write_report(results, ReportOptions(), "html", chapters=chapters)
    assert '<a href="#robustness">Robustness to query variations</a>' in page
    assert "<b>bold" not in page
    assert "\x1b" not in page
    assert "mixed model" in page
    for format in ("table", "markdown", "latex"):
        text, _ = write_report(results, ReportOptions(), format, chapters=chapters)
        assert "misspelling" in text
        assert "\x1b" not in text
    data = json.loads(write_report(results, ReportOptions(), "json", chapters=chapters)[0])
    drops = data["chapters"]["robustness"]["data"]["profiles"][0]["drops"]
    assert [one["variation"] for one in drops] == ["misspelling", "keywords"]
    assert drops[1]["deviation"] is None
    written = [
        [file.read_bytes() for file in draw_report(results, tmp_path / name, "svg", chapters=chapters)]
        for name in ("x", "y")
    ]
    assert written[0] == written[1]
    assert len(written[0]) == 1


def test_nothing_measured_is_no_chapter(tmp_path: Path) -> None:
    assert robustness_chapters([tmp_path]) == ([], [])
