"""The chapter on pipelines: means over the same tasks, waterfalls, the front, tables apart from models."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
from reporting_data import AOPS, BIOLOGY, PAPER, PONY, write_result

from reasonembed_mteb.evaluation.stages import (
    BASELINE,
    PipelineRecord,
    StageCost,
    StageNote,
    StageRecord,
    write_stages,
)
from reasonembed_mteb.reporting.formats import as_table
from reasonembed_mteb.reporting.pipelines import (
    pareto_front,
    pipeline_chapters,
    stage_table,
    summarised,
    waterfall_steps,
)
from reasonembed_mteb.reporting.results import read_results
from reasonembed_mteb.reporting.suites import suite_tables
from reasonembed_mteb.reporting.tables import score_tables

if TYPE_CHECKING:
    from pathlib import Path


if TYPE_CHECKING:
    from pathlib import Path


def scores(value: float) -> dict[str, float]:
    return {"ndcg_at_10": value, "recall_at_10": value, "recall_at_100": value}


def stage(
    name: str, kind: str, value: float | None, *, price: float | None = None, **given: object
) -> StageRecord:
    note = StageNote(StageCost(0 if kind in ("retrieve", "fuse") else 10, 2, 100, 50, price, 1.0), {})
    made = StageRecord(name, kind, scores(value) if value is not None else {}, {}, note, False, ())
    return dataclasses.replace(made, **given)


def record(name: str, task: str, last: float, price: float | None = 0.5, **given: Any) -> PipelineRecord:
    parts = {"bm25": scores(0.2), "dense": scores(0.3), BASELINE + "bm25": scores(0.1)}
    stages = (
        stage("think", "rewrite", None, price=price),
        stage("retrieve", "retrieve", None, parts=parts),
        stage("fuse", "fuse", 0.4, tuned_on_test=given.get("tuned", False)),
        stage("rerank", "rerank", last, price=price),
    )
    return PipelineRecord(f"pipeline/{name}", "r1", task, 100, given.get("limit"), stages)


def test_means_and_sums_over_tasks() -> None:
    (one,) = summarised([record("a", BIOLOGY, 0.5), record("a", PONY, 0.7, 1.5)])
    assert one.score == pytest.approx(0.6)
    assert (one.tasks, one.queries, one.cost.calls, one.cost.price) == (2, 200, 40, 4.0)
    assert one.price == pytest.approx(20.0)
    assert "2 of 12 tasks" in one.benchmark


def test_weights_chosen_on_one_task_are_not_those_of_all(tmp_path: Path) -> None:
    def tuned(task: str, weights: list[float]) -> PipelineRecord:
        made = stage("fuse", "fuse", 0.5, tuned_on_test=True, note=StageNote(chosen={"weights": weights}))
        return dataclasses.replace(record("a", task, 0.5), stages=(made,))

    def told(*records: PipelineRecord) -> str:
        for made in records:
            write(tmp_path, made)
        ((chapter,), _) = pipeline_chapters([tmp_path])
        return next(grid.notes[-1] for grid in chapter.grids if "stage by stage" in grid.title)

    assert told(tuned(BIOLOGY, [0.25, 0.75])) == "fuse: weights 0.25, 0.75"
    assert told(tuned(PONY, [0.25, 0.75])) == "fuse: weights 0.25, 0.75"
    differ = "fuse: its weights were chosen for each task or pool by itself, and differ"
    assert told(tuned(PONY, [0.5, 0.5])) == differ


def test_pipelines_on_other_tasks_are_not_compared() -> None:
    first, second, third = summarised(
        [record("a", BIOLOGY, 0.5), record("b", AOPS, 0.7), record("c", BIOLOGY, 0.6, limit=3)]
    )
    assert len({first.benchmark, second.benchmark, third.benchmark}) == 3


def test_the_waterfall_begins_with_the_original_queries() -> None:
    (one,) = summarised([record("a", BIOLOGY, 0.5)])
    steps = [(step.label, step.score) for step in waterfall_steps(one)]
    assert steps == [("original queries", 0.1), ("retrieve (best of 2)", 0.3), ("fuse", 0.4), ("rerank", 0.5)]
    grid = stage_table(record("a", BIOLOGY, 0.5))
    adds = {row[0]: row[4] for row in grid.rows}
    assert (adds["retrieve"], adds["fuse"], adds["rerank"]) == ("+20.00", "+10.00", "+10.00")
    assert "best" not in as_table(grid)


def test_rankings_of_several_retrievals_stand_side_by_side() -> None:
    stages = (
        stage("first", "retrieve", 0.532),
        stage("second", "retrieve", None, parts={"bm25": scores(0.211)}),
        stage("fuse", "fuse", 0.489),
    )
    made = dataclasses.replace(record("a", BIOLOGY, 0.5), stages=stages)
    (one,) = summarised([made])
    steps = [(step.label, step.score) for step in waterfall_steps(one)]
    assert steps == [("first", 0.532), ("second (best of 2)", 0.532), ("fuse", 0.489)]
    assert [row[4] for row in stage_table(made).rows if row[0] in ("second", "fuse")] == ["+0.00", "-4.30"]


def test_the_pareto_front_against_every_pair() -> None:
    made = {"a": (0.5, 1.0), "b": (0.6, 2.0), "c": (0.55, 3.0), "d": (0.6, 2.0), "e": (0.4, 0.5)}
    # Requests that were sent are not free where nobody knows their price.
    unknown = {"f": (0.9, None)}
    found = summarised([record(name, BIOLOGY, *figures) for name, figures in (made | unknown).items()])
    front = [one.pipeline.rpartition("/")[2] for one in pareto_front(found)]
    wanted = {
        name
        for name, (value, price) in made.items()
        if not any(
            other >= value and cost <= price and (other, cost) != (value, price)
            for other, cost in made.values()
        )
    }
    assert set(front) == wanted == {"e", "a", "b", "d"}
    assert front[:2] == ["e", "a"]


def test_a_pipeline_that_asks_nothing_costs_nothing() -> None:
    free = dataclasses.replace(record("a", BIOLOGY, 0.5), stages=(stage("retrieve", "retrieve", 0.5),))
    assert summarised([free])[0].price == 0.0


def write(folder: Path, made: PipelineRecord) -> None:
    write_stages(folder / f"records/{made.pipeline.replace('/', '__')}/r1/{made.task}.stages.json", made)


def test_the_chapter_marks_what_was_tuned_and_names_what_is_damaged(tmp_path: Path) -> None:
    assert pipeline_chapters([tmp_path]) == ([], [])
    write(tmp_path, record("a", BIOLOGY, 0.5, tuned=True))
    write(tmp_path, record("b", BIOLOGY, 0.4))
    (tmp_path / "records/pipeline__b/r1" / f"{PONY}.stages.json").write_text("{", encoding="utf-8")
    (chapter,), problems = pipeline_chapters([tmp_path])
    assert len(problems) == 1
    text = "\n".join(as_table(grid, 300) for grid in chapter.grids)
    assert text.count("tuned on test") >= 2
    assert "pipeline/a *" in text
    assert "Mira" in text
    assert json.dumps(chapter.data)
    pytest.importorskip("matplotlib")
    figures = {name: draw() for name, draw in chapter.pictures.items()}
    assert figures.keys() == {"price-0", "waterfall-0-0", "waterfall-0-1"}


def test_pipelines_have_tables_of_their_own(tmp_path: Path) -> None:
    for model in (PAPER, "pipeline/mine"):
        write_result(tmp_path, model, BIOLOGY, 0.5)
        write_result(tmp_path, model, f"{BIOLOGY}Gpt4Reason", 0.5)
    results = read_results([tmp_path])
    for together in (False, True):
        tables = score_tables(results, together=together)
        kinds = [{row.model.name.startswith("pipeline/") for row in table.rows} for table in tables]
        assert all(len(one) == 1 for one in kinds)
        assert {True} in kinds
        assert {False} in kinds
    assert not [row for table in suite_tables(results) for row in table.rows if "pipeline" in row.label]
