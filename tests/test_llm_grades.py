"""Grades of a language model: expected by log-probabilities against fractions, written ones, none."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pipeline_script import with_logprobs
from stub_server import Seen, StubServer, chat

from reasonembed_mteb.endpoints.endpoint import Endpoint
from reasonembed_mteb.endpoints.retries import AttemptError, Service
from reasonembed_mteb.llm.client import LLMClient
from reasonembed_mteb.llm.grades import (
    GRADED,
    GradeReranker,
    expected_grade,
    first_words,
    read_graded,
    written_grade,
)
from reasonembed_mteb.llm.replies import CHAT
from reasonembed_mteb.llm.templates import ChatTemplate

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = ChatTemplate("", "$query|$document")


def client(server: StubServer, folder: Path, service: Service = GRADED) -> LLMClient:
    return LLMClient(Endpoint(server.base_url, "stub", concurrency=4), folder, service=service)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("4", 4),
        (" 0.", 0),
        ("**5**", 5),
        ("Grade: 3", 3),
        ("Score: 2, since", 2),
        ("<think>5 of 5?</think>\n1", 1),
        ("There are 3 reasons", None),
        ("7", None),
        ("45", None),
        ("4.5", None),
        ("4/10", None),
        ("", None),
    ],
)
def test_written_grades(text: str, grade: int | None) -> None:
    assert written_grade(text) == grade


def test_the_expected_grade_against_fractions() -> None:
    # Probabilities 1/2, 1/4 and 1/8: they count among themselves.
    top = {"5": math.log(1 / 2), "4": math.log(1 / 4), "0": math.log(1 / 8)}
    wanted = (5 * Fraction(1, 2) + 4 * Fraction(1, 4)) / (Fraction(1, 2) + Fraction(1, 4) + Fraction(1, 8))
    assert expected_grade(top) == pytest.approx(float(wanted), abs=1e-15)
    assert expected_grade({"3": -900.0}) == 3.0


def candidates(token: str) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": -1.0}, {"token": "4", "logprob": -2.0}]


def test_log_probabilities_are_taken_where_the_grade_stands() -> None:
    body = json.loads(chat("<think>2</think>Grade: 4").body)
    tokens = ["<think>", "2", "</think>", "Grade", ":", " 4"]
    body["choices"][0]["logprobs"] = {
        "content": [{"token": one, "logprob": 0, "top_logprobs": candidates(one)} for one in tokens]
    }
    said = json.loads(read_graded(json.dumps(body).encode()).text or "")
    # " 4" and "4" are one grade.
    assert said["top"] == {"4": pytest.approx(math.log(math.exp(-1) + math.exp(-2)))}


def test_replies_that_are_none() -> None:
    broken = json.loads(chat("4").body)
    broken["choices"][0]["logprobs"] = {"content": [{"token": "4", "top_logprobs": [{"token": "4"}]}]}
    with pytest.raises(AttemptError, match="log-probabilities"):
        read_graded(json.dumps(broken).encode())
    cut = read_graded(chat("4 because it", finish_reason="length").body)
    assert cut.error is None
    assert read_graded(chat("Because it", finish_reason="length").body).error == "length"


def test_pairs_without_a_grade_are_counted(tmp_path: Path) -> None:
    answers = {
        "a": with_logprobs("4", [("4", math.log(0.75)), ("0", math.log(0.25))]),
        "b": "2",
        "c": "It helps.",
        "d": chat(None, refusal="no"),
    }

    def script(seen: Seen) -> Any:
        assert seen.body["logprobs"] is True
        return answers[seen.text.partition("|")[2]]

    with StubServer(script) as server:
        with client(server, tmp_path) as asked:
            grader = GradeReranker(asked, TEMPLATE)
            scores = grader.score([("q", name) for name in answers])
        with client(server, tmp_path) as asked:
            again = GradeReranker(asked, TEMPLATE)
            assert np.array_equal(again.score([("q", name) for name in answers]), scores, equal_nan=True)
        assert server.total == 4
        assert again.usage.cached == 4
    assert scores[:2] == pytest.approx([3.0, 2.0])
    assert np.isnan(scores[2:]).all()
    assert grader.counts == {
        "expected grades": 1,
        "written grades": 1,
        "no grade: unreadable": 1,
        "no grade: refused": 1,
    }


def test_without_log_probabilities(tmp_path: Path) -> None:
    def script(seen: Seen) -> Any:
        assert "logprobs" not in seen.body
        return chat("3 as", finish_reason="length")

    with StubServer(script) as server:
        with client(server, tmp_path, CHAT) as asked:
            grader = GradeReranker(asked, TEMPLATE, words=2)
            assert grader.score([("q", "one two three")]).tolist() == [3.0]
        assert server.seen[0].text == "q|one two"


def test_first_words() -> None:
    assert first_words(" one  two\nthree", 2) == " one  two"
    assert first_words("one", 2) == "one"
    assert first_words("one two", None) == "one two"
