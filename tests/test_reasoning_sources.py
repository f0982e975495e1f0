"""Reasonings from a file, from BRIGHT's rewritten queries, from a server; what they lack is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from bright_data import write
from evaluation_data import BIOLOGY, ECONOMICS
from stub_server import StubServer, failure

from reasonembed_mteb.errors import DataError, ReasonEmbedError, UnknownNameError
from reasonembed_mteb.evaluation.reasoning_record import ENDED, FULL
from reasonembed_mteb.llm.client import Budget, BudgetExceeded, Endpoint, LLMClient
from reasonembed_mteb.reasoning.generation import Decoding
from reasonembed_mteb.reasoning.sources import (
    AskedReasonings,
    Query,
    ReasoningFile,
    RewrittenQueries,
    check_prompt,
)

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Reply, Seen

QUERIES = [Query("Why?", "q0", BIOLOGY), Query("How?", "q1", BIOLOGY)]


def write_rows(tmp_path: Path, *rows: Any) -> Path:
    file = tmp_path / "thoughts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def texts(source: ReasoningFile, queries: list[Query]) -> list[str]:
    return [one.text for one in source.reasonings(queries)]


def test_a_file_by_id_task_or_text(tmp_path: Path) -> None:
    rows = [
        {"id": "q0", "task": BIOLOGY, "reasoning": "first", "stop": "end"},
        {"query": "How?", "reasoning": "second"},
        {"id": "q9", "reasoning": "third"},
    ]
    source = ReasoningFile(write_rows(tmp_path, *rows))
    assert texts(source, [*QUERIES, Query("What?", "q9", BIOLOGY)]) == ["first", "second", "third"]
    assert [one.stop for one in source.reasonings(QUERIES)] == ["given", "given"]
    assert source.name == "thoughts"
    other = ReasoningFile(write_rows(tmp_path, *rows[:2]))
    assert other.identity != source.identity


def test_a_file_that_lacks_queries(tmp_path: Path) -> None:
    source = ReasoningFile(write_rows(tmp_path, {"query": "Why?", "reasoning": "x"}))
    with pytest.raises(DataError, match=r"no reasoning for 1 of 2 queries \(q1\)"):
        source.reasonings(QUERIES)
    with pytest.raises(DataError, match=r"\('How\?'\)"):
        source.reasonings([Query("How?")])


def test_bare_ids_are_not_shared_by_tasks(tmp_path: Path) -> None:
    source = ReasoningFile(write_rows(tmp_path, {"id": "q0", "reasoning": "x"}))
    assert texts(source, QUERIES[:1]) == ["x"]
    with pytest.raises(DataError, match=f"{BIOLOGY} and {ECONOMICS} may have the same ids"):
        source.reasonings([Query("Another", "q0", ECONOMICS)])


@pytest.mark.parametrize(
    "row",
    [
        {"query": "Why?"},
        {"reasoning": "x"},
        {"query": "Why?", "reasoning": ""},
        {"id": 3, "reasoning": "x"},
        7,
    ],
)
def test_a_row_without_its_keys(row: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"thoughts.jsonl:2: write texts for reasoning"):
        ReasoningFile(write_rows(tmp_path, {"query": "How?", "reasoning": "y"}, row))


def test_two_rows_that_disagree(tmp_path: Path) -> None:
    rows = [{"id": "q0", "reasoning": "x"}, {"id": "q0", "reasoning": "x"}, {"id": "q0", "reasoning": "y"}]
    with pytest.raises(DataError, match=r"thoughts.jsonl:3: another reasoning of 'q0'"):
        ReasoningFile(write_rows(tmp_path, *rows))
    assert texts(ReasoningFile(write_rows(tmp_path, *rows[:2])), QUERIES[:1]) == ["x"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        ReasoningFile(tmp_path / "none.jsonl")


def test_rewritten_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(tmp_path))
    from bright_data import example

    rows = [example() | {"id": name, "query": f"thought of {name}"} for name in ("q0", "q1")]
    write(tmp_path, "gpt4_reason/biology-00000-of-00001.parquet", rows)
    source = RewrittenQueries("gpt4_reason")
    assert [one.text for one in source.reasonings(QUERIES)] == ["thought of q0", "thought of q1"]
    assert (source.name, source.identity) == ("gpt4_reason", {"rewritten": "gpt4_reason"})
    with pytest.raises(DataError, match=r"gpt4_reason lacks 1 of 1 queries \(q7\)"):
        source.reasonings([Query("What?", "q7", BIOLOGY)])
    with pytest.raises(ReasonEmbedError, match="ReasonMiniBiology has no queries rewritten by gpt4_reason"):
        source.reasonings([Query("What?", "q0", "ReasonMiniBiology")])
    with pytest.raises(UnknownNameError, match="did you mean 'gpt4_reason'"):
        RewrittenQueries("gpt4-reason")


def client(server: StubServer, folder: Path, **budget: float) -> LLMClient:
    endpoint = Endpoint(server.base_url, "org/thinker", price_in=1.0, price_out=1.0, max_attempts=1)
    return LLMClient(endpoint, folder, Budget(**budget), show_progress=False)  # type: ignore[arg-type]


def test_a_server_is_asked_once(tmp_path: Path) -> None:
    with StubServer(lambda seen: f"on {seen.text}") as server:
        for _ in range(2):
            with client(server, tmp_path) as asking:
                source = AskedReasonings(asking, Decoding(32, 0.5, 0.9, 7), "Think: {query}")
                found = source.reasonings(QUERIES)
        assert server.total == 2
        body = server.seen[0].body
    assert [one.text for one in found] == ["on Think: Why?", "on Think: How?"]
    assert {one.stop for one in found} == {ENDED}
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"]) == (32, 0.5, 0.9, 7)
    assert source.name == "thinker-32"
    assert source.identity["asked"] == "org/thinker"


def test_an_answer_that_was_cut_counts_as_full(tmp_path: Path) -> None:
    from stub_server import chat

    def script(seen: Seen) -> Reply:
        return chat("half of", finish_reason="length" if "Why" in seen.text else "stop")

    with StubServer(script) as server, client(server, tmp_path) as asking:
        found = AskedReasonings(asking, Decoding(2)).reasonings(QUERIES)
    assert [one.stop for one in found] == [FULL, ENDED]


def test_a_server_without_an_answer(tmp_path: Path) -> None:
    def script(seen: Seen) -> Any:
        return failure(400, "no") if "How" in seen.text else "fine"

    with (
        StubServer(script) as server,
        client(server, tmp_path) as asking,
        pytest.raises(ReasonEmbedError, match=r"no reasoning for 1 of 2 queries: q1 \(rejected\)"),
    ):
        AskedReasonings(asking, Decoding(2)).reasonings(QUERIES)


def test_a_budget_that_is_spent(tmp_path: Path) -> None:
    with (
        StubServer() as server,
        client(server, tmp_path, max_cost=0.0) as asking,
        pytest.raises(BudgetExceeded, match="the budget is spent"),
    ):
        AskedReasonings(asking, Decoding(2)).reasonings(QUERIES)


@pytest.mark.parametrize("template", ["no place", "{query} and {query}", ""])
def test_a_prompt_without_one_place(template: str) -> None:
    with pytest.raises(ReasonEmbedError, match="once, where the query goes"):
        check_prompt(template)
