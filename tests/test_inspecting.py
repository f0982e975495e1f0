"""Single queries: what models found, a model's worst, where two differ."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from reporting_data import write_result, write_run

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.reporting.formats import as_query_report
from reasonembed_mteb.reporting.inspecting import QueryReport, differ, inspect_query, worst
from reasonembed_mteb.reporting.queries import local_texts
from reasonembed_mteb.reporting.results import read_results

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

    from reasonembed_mteb.reporting.results import ResultSet

MINI, PONY = "ReasonMiniBiology", "ReasonMiniPony"
# The first query of the embedded benchmark, and documents of its corpus.
GOLD, OTHER = "weaning_enzyme/persistence_1.txt", "dairy/allergy_1.txt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = {"5": [(OTHER, 0.9), (GOLD, 0.8), ("unknown document", 0.7)]}
    gold = {"5": [GOLD, "never found"]}
    write_run(tmp_path, "x/a", MINI, {"5": 0.75, "1": 0.0, "2": 0.5}, found=found, gold=gold)
    write_run(tmp_path, "x/b", MINI, {"5": 0.0, "1": 0.25, "2": 0.5}, gold=gold)
    write_run(tmp_path, "x/a", PONY, {"1": 0.125})
    write_result(tmp_path, "x/plain", MINI, 0.5)
    return tmp_path


@pytest.fixture
def results(folder: Path) -> ResultSet:
    return read_results([folder])


def test_one_query_shows_documents_gold_and_texts(results: ResultSet) -> None:
    look = inspect_query(results, MINI, "5", top=2)
    assert look.text is not None
    assert look.text.startswith("My father gets cramps")
    assert look.metric == "nDCG@10"
    assert [(answer.model, answer.score) for answer in look.answers] == [("x/a", 0.75), ("x/b", 0.0)]
    first = look.answers[0]
    shown = [(one.id, one.rank, one.relevant) for one in first.top]
    assert shown == [(OTHER, 1, False), (GOLD, 2, True)]
    assert first.top[0].score == pytest.approx(0.9)
    assert first.top[1].text
    # What was not found has no rank, and stands last.
    assert [(one.id, one.rank) for one in first.gold] == [(GOLD, 2), ("never found", None)]


def test_one_query_of_chosen_models(results: ResultSet) -> None:
    look = inspect_query(results, MINI, "5", ["b"])
    assert [answer.model for answer in look.answers] == ["x/b"]


def test_a_query_or_task_that_is_not_there_is_named(results: ResultSet) -> None:
    with pytest.raises(UnknownNameError, match="query '55'"):
        inspect_query(results, MINI, "55")
    with pytest.raises(UnknownNameError, match=f"did you mean '{MINI}'"):
        inspect_query(results, "ReasonMiniBiologie", "5")
    with pytest.raises(ReasonEmbedError, match="kept no scores by query"):
        inspect_query(results, MINI, "5", ["plain"])


def test_the_worst_queries_of_a_model(results: ResultSet) -> None:
    listed = worst(results, "x/a", count=3)
    assert [(one.task, one.query, one.scores) for one in listed] == [
        (MINI, "1", (0.0,)),
        (PONY, "1", (0.125,)),
        (MINI, "2", (0.5,)),
    ]
    assert all(one.text for one in listed)
    assert [one.task for one in worst(results, "x/a", PONY)] == [PONY]
    with pytest.raises(ReasonEmbedError, match="kept no scores by query"):
        worst(results, "x/plain")


def test_where_two_models_differ_most(results: ResultSet) -> None:
    listed = differ(results, "a", "b")
    assert [(one.query, one.scores) for one in listed] == [
        ("5", (0.75, 0.0)),
        ("1", (0.0, 0.25)),
        ("2", (0.5, 0.5)),
    ]
    assert len(differ(results, "a", "b", count=1)) == 1
    with pytest.raises(ReasonEmbedError, match="x/b kept no scores by query on ReasonMiniPony"):
        differ(results, "a", "b", PONY)
    with pytest.raises(ReasonEmbedError, match="one model"):
        differ(results, "x/a", "a")


@pytest.mark.parametrize("name", ["bm25", "bm25s", "baseline-bm25s"])
def test_a_model_has_the_name_that_run_takes(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, "mteb/baseline-bm25s", MINI, {"5": 0.75})
    assert read_results([tmp_path]).model(name).name == "mteb/baseline-bm25s"


def test_a_models_own_name_goes_before_a_short_one(tmp_path: Path) -> None:
    write_run(tmp_path, "mteb/baseline-bm25s", MINI, {"5": 0.75})
    write_run(tmp_path, "x/bm25", MINI, {"5": 0.75})
    assert read_results([tmp_path]).model("bm25").name == "x/bm25"


def test_texts_come_from_the_data_or_say_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = local_texts(MINI, ["5", "no such query"], [GOLD, "no such document"])
    assert set(texts.queries) == {"5"}
    assert set(texts.documents) == {GOLD}
    assert "none of the task tables" in local_texts("SciFact", ["1"], []).missing
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(tmp_path / "nowhere"))
    assert "nowhere" in local_texts("ReasonEmbedBrightPony", ["1"], []).missing


def test_texts_that_are_not_here_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    places = (datasets.config, huggingface_hub.constants)
    asked: list[bool] = []

    def load(*_: object, **__: object) -> None:
        asked.extend(place.HF_HUB_OFFLINE for place in places)
        msg = "offline"
        raise ConnectionError(msg)

    # As in a process that nobody told to stay offline.
    for place in places:
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("REASONEMBED_BRIGHT_PATH", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "reasonembed download" in local_texts("ReasonEmbedBrightPony", ["1"], []).missing
    assert asked == [True, True]
    assert not any(place.HF_HUB_OFFLINE for place in places)


def test_the_command(folder: Path, command: Command) -> None:
    def call(*arguments: str) -> tuple[int, str, str]:
        return command("inspect", str(folder), *arguments)

    status, out, _ = call("--task", MINI, "--query", "5", "--top", "2")
    assert status == 0
    assert "My father gets cramps" in out
    assert GOLD in out
    assert "75.00" in out
    status, out, _ = call("--worst", "2", "--model", "a", "--json")
    assert status == 0
    assert [one["scores"] for one in json.loads(out)] == [{"x/a": 0.0}, {"x/a": 0.125}]
    status, out, _ = call("--differ", "a", "b")
    assert status == 0
    assert "+75.00" in out
    for wrong, said in (
        ((), "give one of --query"),
        (("--query", "5"), "--query needs --task"),
        (("--worst", "5"), "--worst looks at one model"),
        (("--worst", "5", "--differ", "a", "b"), "give one of --query"),
    ):
        status, _, err = call(*wrong)
        assert status == 2
        assert said in err


def test_a_text_cannot_begin_a_line_of_the_report() -> None:
    look = QueryReport(MINI, "1", "why?\nx/a: ndcg_at_10 99.00 %\u2028\x1b[31m", "ndcg_at_10", [])
    assert as_query_report(look).splitlines()[1] == "why? x/a: ndcg_at_10 99.00 % \\x1b[31m"
