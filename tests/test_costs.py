"""What a planned run costs in all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation.costs import (
    MeasuredSpeed,
    Shared,
    add_up,
    by_benchmark,
    mean_tokens,
    measured_speed,
    recorded_speed,
)
from reasonembed_mteb.evaluation.plan import TaskPlan
from reasonembed_mteb.evaluation.record import Record, RunCost
from reasonembed_mteb.evaluation.resolving import resolve_model
from reasonembed_mteb.evaluation.runner import RunOptions

if TYPE_CHECKING:
    from pathlib import Path


def plan(task: str, same_documents: str, same_queries: str, **changes: object) -> TaskPlan:
    made = TaskPlan(
        task,
        "why ",
        10,
        1000,
        length=512,
        query_tokens=200,
        document_tokens=50_000,
        same_documents=same_documents,
        same_queries=same_queries,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


PLANS = [plan("a", "D", "Q"), plan("b", "D", "Q", prefix="how "), plan("c", "E", "R")]


def test_shared_texts_count_once() -> None:
    total = add_up(PLANS)
    assert (total.tasks, total.tokens, total.texts) == (3, 2 * 50_000 + 3 * 200, 2 * 1000 + 3 * 10)
    # Another sentence before it makes another query.
    assert total.shared == (Shared("documents", ("a", "b"), 1000),)
    assert add_up([*PLANS, plan("d", "F", "Q")]).shared[1] == Shared("queries", ("a", "d"), 10)


def test_without_a_store_nothing_is_shared() -> None:
    total = add_up(PLANS, shares=False)
    assert (total.tokens, total.texts, total.shared) == (3 * 50_200, 3 * 1010, ())


def test_documents_of_another_length_are_encoded_again() -> None:
    assert add_up([PLANS[0], plan("b", "D", "Q", length=256)]).tokens == 2 * 50_200


def test_bare_queries_leave_the_documents() -> None:
    total = add_up(PLANS, documents=False)
    assert (total.tokens, total.texts) == (600, 30)


def test_what_is_not_known_is_named_and_not_counted() -> None:
    odd = plan("x", "X", "X", documents=None, document_tokens=None, published=True)
    total = add_up([*PLANS, odd, plan("y", "Y", "Y", document_tokens=None, published=True)])
    assert total.without_tokens == ("x", "y")
    assert total.without_texts == ("x",)
    assert total.tokens == add_up(PLANS).tokens + 400
    assert total.texts == add_up(PLANS).texts + 10 + 1010
    assert total.estimated
    assert not add_up(PLANS).estimated


def test_hours_and_room() -> None:
    total = add_up(PLANS)
    assert total.hours(MeasuredSpeed(100.6, "")) == pytest.approx(100_600 / 100.6 / 3600)
    assert total.disk(384, "float16") == 2030 * (384 * 2 + 20)
    assert total.disk(384, "auto") == total.disk(384, "float32") == 2030 * (384 * 4 + 20)


def test_tasks_by_benchmark() -> None:
    names = ["ReasonEmbedTempoLaw", "ReasonEmbedTempoTravel", "CosQA", "Strange"]
    assert by_benchmark(names) == {"TEMPO": 2, "CoIR": 1, "Strange": 1}


def test_the_mean_is_over_documents() -> None:
    assert mean_tokens([PLANS[0], plan("b", "", "", documents=3000, document_tokens=30_000)]) == 20
    assert mean_tokens([plan("b", "", "", document_tokens=None)]) == 256


def test_the_fastest_earlier_run_of_the_model_tells_the_speed(tmp_path: Path) -> None:
    import json
    from dataclasses import asdict

    meta = resolve_model("mteb/baseline-random-encoder")

    def write(name: str, **changes: object) -> None:
        record = Record(model=meta.name, task=name, result="r", **changes)  # type: ignore[arg-type]
        file = tmp_path / "records" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(asdict(record)))

    assert recorded_speed(tmp_path, meta) is None
    write("slow", cost=RunCost(seconds=100.0, tokens=40_000, dimensions=8))
    write("fast", cost=RunCost(seconds=50.0, tokens=40_000, dimensions=8))
    write("small", cost=RunCost(seconds=0.1, tokens=1000, dimensions=8))
    write("elsewhere", cost=RunCost(seconds=1.0, tokens=40_000, device_name="some card"))
    (tmp_path / "records" / "broken.json").write_text("{")
    found = recorded_speed(tmp_path, meta)
    assert found == MeasuredSpeed(800.0, "the fastest earlier run, fast", 8)
    assert recorded_speed(tmp_path, resolve_model("bm25s")) is None


def test_speed_is_measured_with_texts_of_the_length(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reasonembed_mteb.evaluation import costs

    monkeypatch.setattr(costs, "_SECONDS", 0.05)
    found = measured_speed(resolve_model(str(bert)), RunOptions(store=None), 20, 4.0)
    assert found.tokens_a_second > 0
    assert found.dimensions == 16
    assert found.how.startswith("measured now, texts of ")


def test_weights_that_are_not_here_are_not_fetched() -> None:
    meta = resolve_model("hanhainebula/reason-embed-qwen3-8b-0928")
    with pytest.raises(ReasonEmbedError, match="its weights are not here"):
        measured_speed(meta, RunOptions(store=None), 20, 4.0)
