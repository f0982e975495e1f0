"""Chapters of a report: their place beside the scores, in every format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from reporting_data import write_all

from reasonembed_mteb.errors import MissingExtraError
from reasonembed_mteb.evaluation.chapter_files import (
    chapter_file,
    chapter_files,
    read_chapter,
    read_chapters,
    write_chapter,
)
from reasonembed_mteb.reporting.chapters import Chapter, chapter_grids, drawn_pictures, find_chapters
from reasonembed_mteb.reporting.formats import Grid
from reasonembed_mteb.reporting.page import render_page
from reasonembed_mteb.reporting.report import ReportOptions, draw_report, write_report
from reasonembed_mteb.reporting.results import read_results

HOSTILE = "<b>bold</b>\x1b[31m"


def picture() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1], [1, 0])
    return figure


def chapter() -> Chapter:
    grid = Grid("losses", ("model", "drop"), (("a/one", "12.0"), (HOSTILE, "-")), ("in %",))
    return Chapter("loss", "What is lost", ("of nothing else",), (grid,), {"plot": picture}, {"a/one": 0.12})


def found(folders: Any) -> tuple[list[Chapter], list[str]]:
    return [chapter()], [f"{folder}: damaged" for folder in folders]


def test_records_of_a_kind_lie_in_its_folder(tmp_path: Path) -> None:
    file = chapter_file(tmp_path, "loss", "a/one ../two")
    assert file.parent == tmp_path / "chapters" / "loss"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    chapter_file(tmp_path, "other", "a/one")
    assert chapter_files(tmp_path, "loss") == [file]
    assert chapter_files(tmp_path, "other") == []


@dataclass(frozen=True)
class Loss:
    """A record."""

    model: str
    drop: float


def read_loss(file: Path) -> Loss:
    return read_chapter(file, lambda content: Loss(**content), "losses", "reasonembed lose")


def test_records_have_one_writer_and_one_reader(tmp_path: Path) -> None:
    good, damaged, later = (chapter_file(tmp_path, "loss", name) for name in "abc")
    write_chapter(good, Loss("a/one", 0.5))
    damaged.write_text("{")
    later.write_text(json.dumps({"format": 99, "model": "a/one", "drop": 0.5}))
    # A folder that is named twice counts once.
    records, problems = read_chapters([tmp_path, tmp_path], "loss", read_loss)
    assert records == [Loss("a/one", 0.5)]
    assert [line.partition(" is no record of losses of this version")[0] for line in problems] == [
        str(damaged),
        str(later),
    ]
    assert all("run `reasonembed lose` again" in line for line in problems)


def test_every_finder_is_asked() -> None:
    chapters, lines = find_chapters([Path("x")], [f"{__name__}:found", f"{__name__}:found"])
    assert [one.name for one in chapters] == ["loss", "loss"]
    assert lines == ["x: damaged"] * 2


def test_an_output_folder_may_hold_chapters_alone(tmp_path: Path) -> None:
    file = chapter_file(tmp_path, "loss", "one")
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert read_results([tmp_path]).found == []
    assert read_results([tmp_path]).problems == []


def test_a_chapter_follows_the_scores_in_every_format(tmp_path: Path) -> None:
    write_all(tmp_path, "a/one", [0.5] * 12)
    results = read_results([tmp_path])
    for format in ("table", "markdown", "latex"):
        text, _ = write_report(results, ReportOptions(), format, chapters=[chapter()])
        assert text.index("a/one") < text.index("What is lost: losses") < text.index("drop")
        assert "of nothing else" in text
        assert "\x1b" not in text
    data = json.loads(write_report(results, ReportOptions(), "json", chapters=[chapter()])[0])
    assert data["chapters"]["loss"]["data"] == {"a/one": 0.12}


def test_a_page_holds_a_chapter_and_its_pictures_as_images(tmp_path: Path) -> None:
    write_all(tmp_path, "a/one", [0.5] * 12)
    page, _ = write_report(read_results([tmp_path]), ReportOptions(), "html", chapters=[chapter()])
    assert '<a href="#loss">What is lost</a>' in page
    assert '<img src="data:image/svg+xml;base64,' in page
    assert "<td>12.0</td>" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold" not in page


def test_pictures_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    write_all(tmp_path, "a/one", [0.5] * 12)
    results = read_results([tmp_path])
    written = [
        {
            file.name: file.read_bytes()
            for file in draw_report(results, tmp_path / name, "svg", chapters=[chapter()])
        }
        for name in ("x", "y")
    ]
    assert written[0] == written[1]
    assert "loss-plot.svg" in written[0]


def test_pictures_without_matplotlib_name_the_extra() -> None:
    def absent() -> Any:
        msg = "No module named 'matplotlib.figure'"
        raise ModuleNotFoundError(msg, name="matplotlib.figure")

    with pytest.raises(MissingExtraError, match=r"reasonembed-mteb\[report\]"):
        drawn_pictures(Chapter("a", "A", pictures={"plot": absent}))
    assert chapter_grids(Chapter("a", "A")) == []


def test_a_page_of_chapters_alone_shows_no_empty_tables() -> None:
    page, _ = render_page([], chapters=[chapter()])
    assert '<body class="unscored">' in page
    assert 'href="#scores">Scores' not in page
    assert '<a href="#loss">What is lost</a>' in page
