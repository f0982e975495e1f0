"""The offline mode: requests written, answers read back, and what is missing."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.llm import batch
from reasonembed_mteb.llm.batch import BatchFiles, MissingAnswersError
from reasonembed_mteb.llm.client import Endpoint, LLMClient, Request

if TYPE_CHECKING:
    from pathlib import Path

ENDPOINT = Endpoint("http://localhost:1/v1", "stub", price_in=1e6, price_out=2e6, extra_body={"top_k": 20})


def ask(number: int, n_sample: int = 0) -> Request:
    """Return a request whose text is its number."""
    messages = ({"role": "system", "content": "Antworte knäpplich"}, {"role": "user", "content": str(number)})
    return Request(f"item {number}", messages, 0.7, 0.95, 100, 3, n_sample)


def read(file: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def answered(
    line: dict[str, Any], text: str | None = None, *, status: int = 200, **body: Any
) -> dict[str, Any]:
    """Answer a line of requests as OpenAI and vLLM do."""
    text = text or f"answer {line['body']['messages'][1]['content']}"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = body or {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "batch_req_1", "custom_id": line["custom_id"], "response": response, "error": None}


def write(file: Path, lines: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def missing(
    folder: Path, requests: list[Request], *files: Path
) -> tuple[MissingAnswersError, list[str | None]]:
    """Run in vain; return the error and the texts handed out before it."""
    texts: list[str | None] = []
    with (
        BatchFiles(ENDPOINT, folder / "store", folder / "requests.jsonl", files) as client,
        pytest.raises(MissingAnswersError) as caught,
    ):
        texts.extend(answer.text for answer in client.run(iter(requests), description="Testing"))
    return caught.value, texts


def test_requests_out_and_answers_in(tmp_path: Path) -> None:
    requests = [ask(i) for i in range(600)]
    error, texts = missing(tmp_path, requests)
    assert (error.count, error.keys, texts) == (600, ["item 0", "item 1", "item 2"], [])
    assert str(error).startswith(
        "600 of 600 requests have no answer (item 0, item 1, item 2 ...): they are written"
    )
    lines = read(tmp_path / "requests.jsonl")
    assert lines[0] == {
        "custom_id": lines[0]["custom_id"],
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": ENDPOINT.body(requests[0]),
    }
    assert len({line["custom_id"] for line in lines}) == 600
    # Batches come back in any order, and in pieces.
    answers = [answered(line) for line in reversed(lines)]
    first = write(tmp_path / "first.jsonl", answers[10:])
    error, texts = missing(tmp_path, requests, first)
    assert (error.count, error.keys, len(texts)) == (10, ["item 590", "item 591", "item 592"], 590)
    assert len(read(tmp_path / "requests.jsonl")) == 10
    last = write(tmp_path / "last.jsonl", answers[:10])
    with BatchFiles(ENDPOINT, tmp_path / "store", tmp_path / "requests.jsonl", [last]) as client:
        got = list(client.run(requests, total=600, description="Testing"))
        assert [a.text for a in got] == [f"answer {i}" for i in range(600)]
        assert [a.key for a in got] == [r.key for r in requests]
        usage = client.usage
    assert (usage.requests, usage.cached, usage.prompt_tokens, usage.cost) == (10, 600, 100, 200.0)
    # The other client finds the same answers; it would fail if it sent anything.
    with LLMClient(ENDPOINT, tmp_path / "store") as online:
        assert list(online.run(requests, description="Testing")) == got


def test_equal_requests_are_written_once_but_samples_each(tmp_path: Path) -> None:
    requests = [ask(i % 3, n_sample=i % 2) for i in range(30)]
    error, _ = missing(tmp_path, requests)
    assert (error.count, len(read(tmp_path / "requests.jsonl"))) == (30, 6)


def test_only_what_has_no_answer_is_written(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    with BatchFiles(ENDPOINT, tmp_path / "store", file) as client:
        assert client.write_requests((ask(i) for i in range(5)), file) == [file]
    answers = write(tmp_path / "answers.jsonl", [answered(line) for line in read(file)[1:3]])
    with BatchFiles(ENDPOINT, tmp_path / "store", file, [answers]) as client:
        client.write_requests((ask(i) for i in range(5)), file)
        assert [line["body"]["messages"][1]["content"] for line in read(file)] == ["0", "3", "4"]
        client.write_requests([ask(1)], file)
        assert file.read_bytes() == b""


@pytest.mark.parametrize("limit", ["requests", "bytes"])
def test_large_lists_become_several_files(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "requests.jsonl"
    with BatchFiles(ENDPOINT, tmp_path / "store", file) as client:
        client.write_requests([ask(0)], file)
        size = file.stat().st_size
        monkeypatch.setattr(
            batch, *{"requests": ("MOST_REQUESTS", 4), "bytes": ("MOST_BYTES", 4 * size + 1)}[limit]
        )
        files = client.write_requests((ask(i % 10) for i in range(20)), file)
        assert [f.name for f in files] == ["requests.jsonl", "requests-2.jsonl", "requests-3.jsonl"]
        assert [len(read(f)) for f in files] == [4, 4, 2]
        # A shorter list leaves no parts of the longer one.
        client.write_requests([ask(i) for i in range(5)], file)
        assert sorted(f.name for f in tmp_path.glob("*.jsonl")) == ["requests-2.jsonl", "requests.jsonl"]
        # One request alone is written, however large.
        monkeypatch.setattr(batch, "MOST_BYTES", 1)
        assert len(client.write_requests([ask(0), ask(1)], file)) == 2


def test_answers_that_are_errors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    requests = [ask(i) for i in range(6)]
    missing(tmp_path, requests)
    lines = read(tmp_path / "requests.jsonl")
    answers = [
        answered(lines[0], status=400, error={"message": "maximum context length is 8192 tokens"}),
        answered(lines[1], status=500, error={"message": "CUDA error"}),
        {**answered(lines[2]), "response": None, "error": {"code": "batch_expired", "message": "too late"}},
        {**answered(lines[3]), "response": None},
        answered(lines[4], choices=[]),
        answered(lines[5], status=503, note="an error that is no dictionary"),
    ]
    with caplog.at_level(logging.WARNING):
        error, texts = missing(tmp_path, requests, write(tmp_path / "answers.jsonl", answers))
    # Too long stays too long; the others are to be asked again.
    assert (error.count, error.keys, texts) == (5, ["item 1", "item 2", "item 3"], [None])
    for said in (
        "status 500: CUDA error",
        "batch_expired too late",
        "no response",
        "no chat completion",
        "503",
    ):
        assert said in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        '{"custom_id": "ab", "resp',
        "[]",
        '{"response": {}}',
        '{"custom_id": "request-1", "response": {}}',
        '{"custom_id": "abcd", "response": {}}',
        '{"custom_id": "' + "ab" * 32 + '", "response": "fine"}',
    ],
)
def test_files_that_hold_no_answers(line: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"answers\.jsonl:2(: not an answer in OpenAI's batch format| is not JSON)"
    ):
        BatchFiles(ENDPOINT, tmp_path, tmp_path / "requests.jsonl", [file])
    with pytest.raises(ReasonEmbedError, match=r"cannot read .*absent.jsonl: No such file"):
        BatchFiles(ENDPOINT, tmp_path, tmp_path / "requests.jsonl", [tmp_path / "absent.jsonl"])


def test_requests_that_need_earlier_answers_are_no_batch(tmp_path: Path) -> None:
    with (
        BatchFiles(ENDPOINT, tmp_path / "store", tmp_path / "requests.jsonl") as client,
        pytest.raises(ReasonEmbedError, match="made of earlier answers cannot be a batch"),
    ):
        list(client.run(iter([ask(1)]), description="Testing", ahead=4))
    assert not (tmp_path / "requests.jsonl").exists()


def test_a_changed_prompt_finds_no_old_answer(tmp_path: Path) -> None:
    missing(tmp_path, [ask(0)])
    answers = write(tmp_path / "answers.jsonl", [answered(read(tmp_path / "requests.jsonl")[0])])
    changed = Request("item 0", ({"role": "user", "content": "another prompt"},), 0.7, 0.95, 100, 3)
    error, _ = missing(tmp_path, [changed], answers)
    assert error.keys == ["item 0"]


def test_a_key_in_an_answer_that_is_none_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    missing(tmp_path, [ask(0)])
    (line,) = read(tmp_path / "requests.jsonl")
    error = {"message": "wrong key sk-0123456789abcdef"}
    write(tmp_path / "answers.jsonl", [answered(line, status=500, error=error)])
    missing(tmp_path, [ask(0)], tmp_path / "answers.jsonl")
    assert "status 500: wrong key ***" in caplog.text
    assert "0123456789abcdef" not in caplog.text
