"""Stages on disk: outputs and records read back, damaged ones named, scores that sort as documents stand."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytrec_eval

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.stages import (
    PipelineRecord,
    Ranked,
    StageCost,
    StageNote,
    StageOutput,
    StageRecord,
    add_costs,
    read_note,
    read_output,
    read_stages,
    stage_scores,
    strict_scores,
    write_output,
    write_stages,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_outputs_are_read_back(tmp_path: Path) -> None:
    output = StageOutput(
        texts={"think": {"q": ["one", "zwei ü"]}},
        rankings={"bm25": {"q": Ranked(["b", "a"], np.array([2.0, 0.1])), "r": Ranked([], np.empty(0))}},
    )
    note = StageNote(StageCost(3, 1, 10, 5, 0.5, 2.0), {"windows": 3}, {"weights": [0.5]})
    file = tmp_path / "stages" / "retrieve-1.parquet"
    assert read_note(file) is None
    write_output(file, output, note)
    kept = file.read_bytes()
    found = read_output(file)
    assert found.texts == output.texts
    assert found.rankings["bm25"]["q"].documents == ["b", "a"]
    assert found.rankings["bm25"]["q"].scores.tolist() == [2.0, 0.1]
    assert found.rankings["bm25"]["r"].documents == []
    assert read_output(file, ["r"]).rankings["bm25"].keys() == {"r"}
    assert read_note(file) == note
    # What changes from run to run is not in it.
    write_output(file, output, dataclasses.replace(note, cost=StageCost(seconds=9.0)))
    assert file.read_bytes() == kept
    file.with_suffix(".json").write_text("{", encoding="utf-8")
    assert read_note(file) is None
    file.write_bytes(kept[:50])
    with pytest.raises(DataError, match="cannot be read"):
        read_output(file)


def test_records_are_read_back(tmp_path: Path) -> None:
    stage = StageRecord("fuse", "fuse", {"ndcg_at_10": 0.5}, {}, StageNote(), True, ("stages/a.parquet",))
    record = PipelineRecord("pipeline/test", "abc", "Task", 3, None, (stage,))
    file = tmp_path / "Task.stages.json"
    write_stages(file, record)
    assert read_stages(file) == record
    assert record.tuned_on_test
    for damaged in ('{"format": 1}', '{"format": 2}', "[", '{"format": 1, "stages": [3]}'):
        file.write_text(damaged, encoding="utf-8")
        with pytest.raises(DataError, match="run the pipeline again"):
            read_stages(file)


def test_costs_add_up() -> None:
    held = [
        StageCost(1, 1, 10, 5, 0.5, 1.0, 1),
        StageCost(2, 0, 20, 10, 0.25, 2.0, 2),
        StageCost(seconds=1.0),
    ]
    assert add_costs(held) == StageCost(3, 1, 30, 15, 0.75, 4.0, 3)
    # A sum without a part that nobody knows would look cheap.
    assert add_costs([*held, StageCost(calls=1)]).price is None
    assert add_costs([StageCost()]).price is None


@pytest.mark.parametrize("seed", range(20))
def test_evaluators_sort_as_the_documents_stand(seed: int) -> None:
    draw = random.Random(seed)
    documents = [f"d{n}" for n in draw.sample(range(50), 20)]
    # Many ties, and differences that single precision does not hold.
    scores = sorted((draw.choice([1.0, 1.0 + 1e-12, 0.5, 3e8, 3e8 + 1]) for _ in documents), reverse=True)
    found = Ranked(documents, np.array(scores))
    run = {"q": strict_scores(found)}
    for place, document in enumerate(documents, 1):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {document: 1}}, {"recip_rank"})
        assert evaluator.evaluate(run)["q"]["recip_rank"] == pytest.approx(1 / place)


def test_scores_in_trec_evals_order_stay_as_they_are() -> None:
    found = Ranked(["b", "a", "c"], np.array([0.7, 0.7, 0.1]))
    assert strict_scores(found) == {"b": 0.7, "a": 0.7, "c": 0.1}


def test_stage_scores_against_hand_computed_ones() -> None:
    ranking = {
        "q": Ranked(["x", "gold"], np.array([2.0, 1.0])),
        "empty": Ranked([], np.empty(0)),
        "unlabelled": Ranked(["x"], np.array([1.0])),
    }
    labels = {"q": {"gold": 1}, "empty": {"gold": 1}, "unlabelled": {}, "not asked": {"gold": 1}}
    found = stage_scores(ranking, labels)
    assert found["ndcg_at_10"] == pytest.approx((1 / np.log2(3)) / 2)
    assert (found["recall_at_10"], found["recall_at_100"]) == (0.5, 0.5)
    assert stage_scores(ranking, labels, ignored={"q": "x"})["ndcg_at_10"] == pytest.approx(0.5)
