"""Labels: strict parsing, medians, and what could not be judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from remixer_script import answer, document, make_config
from stub_server import StubServer, failure

from reasonembed_mteb.endpoints.endpoint import Endpoint
from reasonembed_mteb.synthesis.annotate import labelled, median_label, parse_label, second_labelled
from reasonembed_mteb.synthesis.annotators import as_released, known_annotator
from reasonembed_mteb.synthesis.pipeline import make_client, synthesize
from reasonembed_mteb.synthesis.prompts import load_prompts, prompt_for
from reasonembed_mteb.synthesis.step import Run

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Reply, Seen

STEPS = ("clean", "generate", "mine", "annotate")
FEW = "[clean]\nskip = true\n[sources]\nper_subset = 6\n"


@pytest.mark.parametrize("label", [1, 2, 3, 4, 5])
def test_a_label(label: int) -> None:
    assert parse_label(f"1. q\n2. d\n3. j\n<score>{label}</score>") == label


@pytest.mark.parametrize(
    "text",
    [
        *("<score>0</score>", "<score>6</score>", "<score>4.5</score>", "<score>4/5</score>"),
        *("<score>four</score>", "<score>3</score><score>4</score>", "<score>-1</score>", "<score>²</score>"),
        *("4", "", None),
    ],
)
def test_anything_else_is_none(text: str | None) -> None:
    assert parse_label(text) == -1


@pytest.mark.parametrize(
    ("labels", "median"),
    [([3], 3), ([1, 5, 4], 4), ([2, 3], 2), ([-1, 4], 4), ([-1, -1, 4], -1), ([-1], -1), ([], -1)],
)
def test_the_median_of_what_could_be_read(labels: list[int], median: int) -> None:
    assert median_label(labels) == median


def annotated(tmp_path: Path, server: StubServer, more: str) -> tuple[Run, list[dict[str, object]]]:
    config = make_config(tmp_path, server.base_url, FEW + more)
    outcomes = synthesize(config, STEPS)
    assert outcomes[-1].error is None
    run = Run(config, make_client(config))
    return run, list(labelled(run, config.subset[0]).rows())


def test_pairs_that_cannot_be_judged_get_minus_one(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply | str:
        if "<score>N</score>" not in seen.text:
            return answer(seen)
        if document(10) in seen.text:
            return failure(400, "maximum context length exceeded", code="context_length_exceeded")
        return "it is a 4" if document(11) in seen.text else "<score>4</score>"

    with StubServer(script) as server:
        _, rows = annotated(tmp_path, server, "[mine]\nretriever = 'bm25'\ntop_k = 60")
    assert len(rows) == 6
    reasons: dict[str, int] = {}
    for row in rows:
        for name, label in zip(row["documents"], row["labels"], strict=True):  # type: ignore[call-overload]
            assert label == (-1 if name in ("d 10", "d 11") else 4)
        for why, count in row.get("unjudged", {}).items():  # type: ignore[attr-defined]
            reasons[why] = reasons.get(why, 0) + count
    assert set(reasons) == {"context_length", "unparsable"}


def test_long_pairs_are_not_asked_about(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        _, rows = annotated(tmp_path, server, "[annotate]\nmax_characters = 10")
        assert not any("<score>N</score>" in seen.text for seen in server.seen)
    assert {label for row in rows for label in row["labels"]} == {-1}  # type: ignore[attr-defined]
    assert all(list(row["unjudged"]) == ["too long"] for row in rows)  # type: ignore[call-overload]


def test_several_samples_and_a_second_annotator(tmp_path: Path) -> None:
    second = "second_endpoint = 'other'\nsecond_queries = 2\n[endpoints.other]\nmodel = 'second'\nbase_url = "
    with StubServer(answer) as server:
        more = f"[annotate]\nsamples = 3\n{second}'{server.base_url}'"
        run, rows = annotated(tmp_path, server, more)
        judged = [seen.body for seen in server.seen if "<score>N</score>" in seen.text]
    pairs = sum(len(row["documents"]) for row in rows)  # type: ignore[arg-type]
    first = [body for body in judged if body["model"] == "stub"]
    assert len(first) == 3 * pairs
    assert {body["seed"] for body in first} == {42, 43, 44}
    assert {(body["temperature"], body["top_p"]) for body in first} == {(0.7, 0.95)}
    for row in rows:
        assert row["labels"] == [median_label(one) for one in row["samples"]]  # type: ignore[attr-defined]
    other = second_labelled(run, run.config.subset[0])
    assert other is not None
    assert [row["id"] for row in other.rows()] == [row["id"] for row in rows[:2]]
    assert {body["model"] for body in judged} == {"stub", "second"}


RELEASED = "hanhainebula/reason-embed-annotator-qwen3-8b-0928"


@pytest.mark.parametrize(
    "model",
    [RELEASED, "/models/reason-embed-annotator-qwen3-8b-0928/", "Reason_Embed_Annotator_Qwen3_8B_0928-AWQ"],
)
def test_the_released_annotator_is_asked_as_it_was_released(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StubServer(answer) as server:
        more = f"[annotate]\nendpoint = 'judge'\n[endpoints.judge]\nmodel = '{model}'\nbase_url = "
        run, rows = annotated(tmp_path, server, f"{more}'{server.base_url}'")
        bodies = [seen.body for seen in server.seen if "<score>" in seen.text]
    assert rows
    assert {body["model"] for body in bodies} == {model}
    for body in bodies:
        assert (body["top_k"], body["max_tokens"]) == (40, 2048)
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert (body["temperature"], body["top_p"]) == (0.7, 0.95)
        (message,) = body["messages"]
        assert "3 - the document holds partial information" in message["content"]
        assert message["content"].endswith("<score>N</score>")
    # The other steps' model is asked as ever.
    others = [seen.body for seen in server.seen if "<query>\n" not in seen.text]
    assert others
    assert not any("top_k" in body or "chat_template_kwargs" in body for body in others)
    (told,) = [one.getMessage() for one in caplog.records if "not ours to ship" in one.getMessage()]
    assert 'templates = "annotator.toml"' in told
    assert run.sampling(run.config.annotate)[2] == 2048


def test_what_the_user_sets_goes_before_the_released_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = "[annotate]\nuser = 'Their words: $query $document <score>N</score>'\n"
    (tmp_path / "own.toml").write_text(own, encoding="utf-8")
    body = "extra_body = { top_k = 5, seed = 1, chat_template_kwargs = { add = true } }"
    with StubServer(answer) as server:
        more = f"[annotate]\nmax_tokens = 9\nendpoint = 'judge'\n[endpoints.judge]\nmodel = '{RELEASED}'\n"
        config = make_config(tmp_path, server.base_url, f"{FEW}{more}{body}\nbase_url = '{server.base_url}'")
        synthesize(config.model_copy(update={"templates": "own.toml"}), STEPS)
        bodies = [seen.body for seen in server.seen if "Their words" in seen.text]
    assert bodies
    assert {(one["top_k"], one["max_tokens"], one["seed"]) for one in bodies} == {(5, 9, 1)}
    kwargs = {"enable_thinking": False, "add": True}
    assert all(one["chat_template_kwargs"] == kwargs for one in bodies)
    assert "not ours to ship" not in caplog.text


def test_another_annotator_keeps_our_prompt_and_the_endpoint_s_length() -> None:
    assert known_annotator("Qwen/Qwen3-8B") is None
    endpoint = Endpoint("http://x", "reason-embed-qwen3-8b-0928")
    assert as_released(endpoint) is endpoint
    ours = load_prompts()["annotate"]
    assert prompt_for(ours, endpoint.model) is ours
    assert prompt_for(ours, RELEASED).hash != ours.hash
