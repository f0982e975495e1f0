"""Attacks as tables and a picture, over seeds; records that are damaged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.chapter_files import chapter_file, chapter_files
from reasonembed_mteb.evaluation.poisoning_record import (
    KIND,
    PoisoningOutcome,
    PoisoningRecord,
    keep_poisoning,
    read_poisoning,
    write_poisoning,
)
from reasonembed_mteb.reporting.page import render_page
from reasonembed_mteb.reporting.poisoning import poisoning_chapters, poisoning_grid, success_plot

if TYPE_CHECKING:
    from pathlib import Path


def outcome(fed: str = "text", share: float = 0.5, model: str = "a/one") -> PoisoningOutcome:
    return PoisoningOutcome(model, "gradient", fed, {5: share / 2, 20: share}, 0.9, 0.85, (0.05, 0.01, 0.09))


SETTINGS = {"passages": 10, "tokens": 50, "iterations": 50, "candidates": 20, "start": "relevant", "seed": 1}
RECORD = PoisoningRecord(
    model="a/one",
    task="Task<b>",
    seed=1,
    documents=190,
    making=8,
    attacked=9,
    halves=True,
    settings=SETTINGS,
    objective=(0.1, 0.3),
    outcomes=(outcome(), outcome("ids", 0.6)),
)
SECOND = replace(
    RECORD, seed=5, settings=SETTINGS | {"seed": 5}, outcomes=(outcome(share=0.7), outcome("ids", 0.6))
)


def test_a_table_names_depths_with_their_share_of_the_corpus() -> None:
    grid = poisoning_grid([RECORD])
    assert grid.head[3:5] == ("ASR@5 (2.5 %)", "ASR@20 (10 %)")
    assert grid.rows[0] == (
        "a/one",
        "gradient",
        "text",
        "25.0",
        "50.0",
        "90.0",
        "85.0",
        "5.00 (1.00 to 9.00)",
    )
    assert "10 passages of 50 tokens among 190 documents, 9 queries attacked, seed 1" in grid.title
    assert "passages made from 8 queries, the other half of them" in grid.notes
    assert grid.notes[1].endswith("similarity to the validation queries 0.1000 to 0.3000")


def test_seeds_give_a_mean_and_the_population_deviation() -> None:
    row = poisoning_grid([RECORD, SECOND]).rows[0]
    assert row[3:5] == ("30.0 ± 5.0", "60.0 ± 10.0")
    assert row[-1] == "5.0 ± 0.0"


def test_seeds_share_a_table_and_other_settings_do_not(tmp_path: Path) -> None:
    other = replace(RECORD, settings=SETTINGS | {"tokens": 20})
    for number, record in enumerate((SECOND, RECORD, other)):
        write_poisoning(chapter_file(tmp_path, KIND, str(number)), record)
    (chapter,), problems = poisoning_chapters([tmp_path])
    assert not problems
    assert sorted("seed 1, 5" in grid.title for grid in chapter.grids) == [False, True]
    assert read_poisoning(chapter_file(tmp_path, KIND, "1")) == RECORD
    page, _ = render_page([], chapters=[chapter])
    assert "Corpus poisoning" in page
    assert "Task<b>" not in page


def test_attacks_of_two_calls_are_one_record(tmp_path: Path) -> None:
    first = replace(RECORD, causes="a", folders={"gradient": "x"})
    assert keep_poisoning(tmp_path, first) == first
    copied = replace(outcome(share=0.2), attack="copied", asr={3: 0.1})
    later = replace(first, objective=None, outcomes=(copied,), folders={"copied": "y"})
    both = keep_poisoning(tmp_path, later)
    assert both.outcomes == (*first.outcomes, copied)
    assert both.objective == first.objective
    assert both.folders == {"gradient": "x", "copied": "y"}
    (chapter,), problems = poisoning_chapters([tmp_path])
    assert not problems
    # Depths that a call did not measure are empty.
    assert [row[3:6] for row in chapter.grids[0].rows][1:] == [("", "30.0", "60.0"), ("10.0", "", "")]
    # What is measured again takes the place of what it was; other seeds and sizes have records of their own.
    again = replace(later, outcomes=(replace(copied, after=0.1),))
    assert keep_poisoning(tmp_path, again).outcomes == (*first.outcomes, *again.outcomes)
    for other in (SECOND, replace(first, settings=SETTINGS | {"tokens": 20}), replace(first, halves=False)):
        assert keep_poisoning(tmp_path, other) == other
    assert len(chapter_files(tmp_path, KIND)) == 4
    # Other causes, such as weights trained since, are not joined; nor are unknown ones.
    for causes in ("b", ""):
        trained = replace(later, causes=causes)
        assert keep_poisoning(tmp_path, trained) == keep_poisoning(tmp_path, trained) == trained
    (tmp_path / "chapters" / KIND / f"{first.name}.json").write_text("{", encoding="utf-8")
    assert keep_poisoning(tmp_path, first) == first


def test_bars_are_of_texts_at_the_headline() -> None:
    axes = success_plot([RECORD, SECOND]).axes[0]
    (bar,) = axes.patches
    assert bar.get_width() == pytest.approx(60)
    assert axes.get_xlabel() == "ASR@20, % of the attacked queries; 20 documents are 10 % of the corpus"
    shallow = replace(RECORD, outcomes=(replace(outcome(), asr={3: 0.2}),))
    assert success_plot([shallow]).axes[0].get_xlabel().startswith("ASR@3")
    # Calls with depths of their own: the one that most have.
    deep = replace(
        RECORD, outcomes=(*shallow.outcomes, replace(outcome(), attack="copied", asr={3: 0.1, 9: 1}))
    )
    assert success_plot([deep]).axes[0].get_xlabel().startswith("ASR@3")


@pytest.mark.parametrize("content", ["", "{}", '{"format": 9}', '{"format": 1, "outcomes": [{}]}'])
def test_damaged_records_are_left_out(tmp_path: Path, content: str) -> None:
    file = chapter_file(tmp_path, KIND, "broken")
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(DataError, match="run `reasonembed poison` again"):
        read_poisoning(file)
    chapters, (line,) = poisoning_chapters([tmp_path])
    assert chapters == []
    assert str(file) in line
