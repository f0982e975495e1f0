"""The LLM client against a real server: order, retries, errors, budget, and what survives a kill."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from stub_server import Reply, Seen, StubServer, chat, failure

from reasonembed_mteb.endpoints import keys, retries
from reasonembed_mteb.endpoints.endpoint import Reply as Kept
from reasonembed_mteb.endpoints.endpoint import request_hash
from reasonembed_mteb.errors import DataError, MissingExtraError, ReasonEmbedError
from reasonembed_mteb.llm.cache import FILE, AnswerCache
from reasonembed_mteb.llm.client import (
    Answer,
    Budget,
    BudgetExceeded,
    Endpoint,
    EndpointError,
    LLMClient,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

pytest.importorskip("openai")
pytest.importorskip("tenacity")

KEY = "sk-1234567890/abcdef=="


def ask(number: int | str, *, n_sample: int = 0, **changed: Any) -> Request:
    """Return a request whose text is its number."""
    fields = {"temperature": 1.0, "top_p": 0.6, "max_tokens": 100, "seed": 7, **changed}
    return Request(f"item {number}", ({"role": "user", "content": str(number)},), n_sample=n_sample, **fields)


def endpoint(server: StubServer | str, **changed: Any) -> Endpoint:
    """Return the server's endpoint with short waits."""
    url = server if isinstance(server, str) else server.base_url
    return Endpoint(url, "stub", **{"backoff": 0.01, "concurrency": 8, "timeout": 5.0, **changed})


def answers(client: LLMClient, requests: Iterable[Request]) -> list[Answer]:
    """Run all requests."""
    return list(client.run(requests, description="Testing"))


def one(server: StubServer, folder: Path, **changed: Any) -> Answer:
    """Run one request."""
    with LLMClient(endpoint(server, **changed), folder) as client:
        (answer,) = answers(client, [ask(0)])
    return answer


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(params=["aiohttp", "httpx"])
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "aiohttp":
        pytest.importorskip("aiohttp")
    monkeypatch.setattr(retries, "_has_aiohttp", lambda: request.param == "aiohttp")


def fails_first(times: int, bad: Reply) -> Callable[[Seen], Reply]:
    """Return a script that answers each request well after so many bad replies."""
    return lambda seen: bad if seen.attempt <= times else chat(f"answer {seen.text}")


@pytest.mark.usefixtures("_backend")
def test_answers_come_in_order_and_a_rerun_sends_nothing(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply:
        # Early requests come back last.
        return chat(f"answer {seen.text}", delay=0.05 if int(seen.text) % 10 == 0 else 0.001)

    with StubServer(script) as server:
        for expected in (0, 300):
            with LLMClient(endpoint(server), tmp_path) as client:
                got = answers(client, map(ask, range(300)))
            assert [a.key for a in got] == [f"item {i}" for i in range(300)]
            assert [a.text for a in got] == [f"answer {i}" for i in range(300)]
            assert {a.cached for a in got} == {expected == 300}
            assert (client.usage.cached, client.usage.requests) == (expected, 300 - expected)
            assert {(a.prompt_tokens, a.completion_tokens) for a in got} == {(10, 5)}
        assert server.total == 300
        assert server.most_at_once == 8
        assert len(server.seen[0].headers["authorization"]) > len("Bearer ")


def test_what_is_sent(tmp_path: Path) -> None:
    with StubServer() as server:
        options = {
            "max_tokens": None,
            "max_completion_tokens": 9,
            "chat_template_kwargs": {"thinking": False},
        }
        with LLMClient(endpoint(server, extra_body=options), tmp_path) as client:
            answers(client, [ask("Größe", n_sample=2)])
    (seen,) = server.seen
    assert seen.body == {
        "model": "stub",
        "messages": [{"role": "user", "content": "Größe"}],
        "temperature": 1.0,
        "top_p": 0.6,
        # Samples of one prompt differ.
        "seed": 9,
        "max_completion_tokens": 9,
        "chat_template_kwargs": {"thinking": False},
    }


def test_equal_requests_are_sent_once_but_samples_each(tmp_path: Path) -> None:
    requests = [ask(i % 3, seed=None, n_sample=i % 2) for i in range(60)]
    with StubServer(delay=0.02) as server, LLMClient(endpoint(server), tmp_path) as client:
        got = answers(client, requests)
        assert server.total == 6
        assert sum(a.cached for a in got) == client.usage.cached == 54
        assert client.usage.prompt_tokens == 60


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(failure(429, "slow down"), id="429"),
        pytest.param(failure(503, "loading"), id="503"),
        pytest.param(failure(500, "oops"), id="500"),
        pytest.param(Reply(b"<html>Bad gateway</html>", status=502), id="502-html"),
        pytest.param(Reply(b'{"choices": [{"mess'), id="broken-json"),
        pytest.param(Reply(b'{"error": {"message": "upstream"}}'), id="error-in-200"),
        pytest.param(Reply(b"[]"), id="other-json"),
        pytest.param(chat("whole", cut=40), id="cut"),
        pytest.param(chat("whole", cut=40, chunked=True), id="cut-chunks"),
        pytest.param(chat("whole", cut=0), id="cut-after-headers"),
        pytest.param(Reply(b"", drop=True), id="dropped"),
        pytest.param(chat("late", delay=1.0), id="slow"),
    ],
)
@pytest.mark.usefixtures("_backend")
def test_passing_trouble_is_tried_again(bad: Reply, tmp_path: Path) -> None:
    with (
        StubServer(fails_first(2, bad)) as server,
        LLMClient(endpoint(server, timeout=0.3 if bad.delay else 5.0), tmp_path) as client,
    ):
        got = answers(client, map(ask, range(5)))
        assert [a.text for a in got] == [f"answer {i}" for i in range(5)]
        assert set(server.counts.values()) == {3}
        # A kept connection that has just been closed may cost one that the server never sees.
        assert client.usage.retries >= 10


# A date says whole seconds.
@pytest.mark.parametrize("kind", ["seconds", "milliseconds", pytest.param("date", marks=pytest.mark.slow)])
def test_retry_after_is_honoured(kind: str, tmp_path: Path) -> None:
    came: list[float] = []

    def script(seen: Seen) -> Reply:
        came.append(time.time())
        if seen.attempt > 1:
            return chat("fine")
        date = formatdate(time.time() + 2, usegmt=True)
        asked = {"seconds": ("Retry-After", "0.4"), "milliseconds": ("retry-after-ms", "400")}
        name, value = asked.get(kind, ("Retry-After", date))
        return failure(429, "slow down", headers={name: value})

    with StubServer(script) as server:
        assert one(server, tmp_path).text == "fine"
    # A date has whole seconds.
    assert 0.4 <= came[1] - came[0] <= 2.5


def test_a_wait_beyond_all_patience_ends_the_run(tmp_path: Path) -> None:
    script = fails_first(9, failure(429, "daily limit", headers={"Retry-After": "86400"}))
    with StubServer(script) as server, pytest.raises(EndpointError, match=r"86,400 s, above longest_wait"):
        one(server, tmp_path)


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (failure(400, "This model's maximum context length is 8192 tokens."), "context_length", None),
        (failure(400, "too big", code="context_length_exceeded"), "context_length", None),
        (
            failure(400, "The input (9000 tokens) is longer than the model's context length"),
            "context_length",
            None,
        ),
        (failure(422, "`inputs` tokens + `max_new_tokens` must be <= 4096"), "context_length", None),
        (Reply(b"Request Entity Too Large", status=413), "context_length", None),
        (failure(400, "The response was filtered", code="content_filter"), "refused", None),
        (chat(None, refusal="I will not"), "refused", None),
        (chat("so f", finish_reason="content_filter"), "refused", None),
        (chat("so far", finish_reason="length"), "length", "so far"),
        (chat(None), "bad_answer", None),
        (chat(""), "bad_answer", None),
    ],
)
def test_errors_of_one_request_are_answers(
    reply: Reply, error: str, text: str | None, tmp_path: Path
) -> None:
    with StubServer(lambda seen: reply) as server:
        for cached in (False, True):
            answer = one(server, tmp_path)
            assert (answer.error, answer.text, answer.cached) == (error, text, cached)
        assert server.total == 1


def test_errors_are_asked_again_on_demand(tmp_path: Path) -> None:
    replies = iter([chat(None, finish_reason="length"), chat("fine")])
    with StubServer(lambda seen: next(replies)) as server:
        assert one(server, tmp_path).error == "length"
        with LLMClient(endpoint(server), tmp_path, retry_errors=True) as client:
            assert answers(client, [ask(0)])[0].text == "fine"
        assert one(server, tmp_path).text == "fine"


@pytest.mark.parametrize(
    ("bad", "error", "attempts"),
    [
        (failure(500, "CUDA error"), "server_error", 3),
        (chat("whole", cut=10), "bad_answer", 3),
        (Reply(b"", drop=True), "bad_answer", 3),
        (chat("late", delay=2.0), "timeout", 3),
        (failure(400, "unsupported character"), "rejected", 1),
    ],
)
@pytest.mark.usefixtures("_backend")
def test_one_hopeless_request_stops_no_others(bad: Reply, error: str, attempts: int, tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply:
        return bad if seen.text in ("0", "39") else chat("fine", delay=0.01)

    with StubServer(script) as server:
        for sent in (True, False):
            before = server.total
            with LLMClient(endpoint(server, max_attempts=3, timeout=0.2), tmp_path) as client:
                got = answers(client, map(ask, range(40)))
            assert {a.key: a.error for a in got if a.error} == {"item 0": error, "item 39": error}
            # And one more, where the last one left fails: whether the endpoint still answers.
            probes = sum(not seen.text.isdigit() for seen in server.seen[before:])
            assert server.total - before - probes == (38 + 2 * attempts if sent else 0)
            assert probes <= sent


@pytest.mark.usefixtures("_backend")
def test_an_endpoint_that_is_down_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with (
            LLMClient(endpoint(url, max_attempts=2), tmp_path) as client,
            pytest.raises(EndpointError) as caught,
        ):
            answers(client, map(ask, range(100)))
    message = str(caught.value)
    assert message.startswith("http://127.0.0.1:")
    assert "cannot be reached" in message
    assert "on 2 attempts" in message
    assert "\n" not in message


@pytest.mark.usefixtures("_backend")
def test_an_endpoint_that_dies_loses_nothing(tmp_path: Path) -> None:
    alive = True

    def script(seen: Seen) -> Reply:
        return chat(f"answer {seen.text}") if alive and int(seen.text) < 100 else failure(503, "shut down")

    got: list[Answer] = []
    with StubServer(script) as server:
        with (
            LLMClient(endpoint(server, max_attempts=2), tmp_path) as client,
            pytest.raises(EndpointError, match="503"),
        ):
            got.extend(client.run(map(ask, range(300)), description="Testing"))
        # All that came before the first unanswered one is handed out.
        assert [a.text for a in got] == [f"answer {i}" for i in range(len(got))]
        assert client.usage.requests == 100
        alive = True
        server.script = lambda seen: chat(f"answer {seen.text}")
        with LLMClient(endpoint(server), tmp_path) as client:
            assert len(answers(client, map(ask, range(300)))) == 300
        assert client.usage.cached == 100


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (failure(500, "CUDA error"), r"fails \(500: CUDA error\)"),
        (failure(400, "unknown field top_p"), r"rejects a request \(400: unknown field top_p\)"),
        (Reply(b"<html>Welcome</html>"), "no JSON: '<html>Welcome"),
    ],
)
@pytest.mark.parametrize("count", [3, 100])
def test_when_every_request_fails_it_is_the_endpoint(
    bad: Reply, said: str, count: int, tmp_path: Path
) -> None:
    with StubServer(lambda seen: bad) as server:
        with (
            LLMClient(endpoint(server, max_attempts=2), tmp_path) as client,
            pytest.raises(EndpointError, match=said),
        ):
            answers(client, map(ask, range(count)))
        server.script = lambda seen: chat("fine")
        with LLMClient(endpoint(server), tmp_path) as client:
            assert {a.text for a in answers(client, map(ask, range(count)))} == {"fine"}


@pytest.mark.parametrize(("count", "alive"), [(30, 20), (30, 29), (100, 95)])
@pytest.mark.usefixtures("_backend")
def test_an_endpoint_that_dies_near_the_end_makes_nothing_final(
    count: int, alive: int, tmp_path: Path
) -> None:
    def dies(seen: Seen) -> Reply:
        return chat("fine") if seen.text.isdigit() and int(seen.text) < alive else failure(500, "CUDA error")

    with StubServer(dies) as server:
        for cached in (0, alive):
            # With answers from before, too.
            with (
                LLMClient(endpoint(server, max_attempts=2), tmp_path) as client,
                pytest.raises(EndpointError, match="CUDA error"),
            ):
                answers(client, map(ask, range(count)))
            assert client.usage.cached == cached
        server.script = lambda seen: chat("fine")
        with LLMClient(endpoint(server), tmp_path) as client:
            assert {a.text for a in answers(client, map(ask, range(count)))} == {"fine"}
        assert client.usage.cached == alive


@pytest.mark.slow
def test_requests_that_always_fail_end_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def script(seen: Seen) -> Reply:
        bad = seen.text.isdigit() and int(seen.text) % 50 == 7
        return failure(500, "CUDA error") if bad else chat(f"answer {seen.text}")

    with StubServer(script) as server:
        # Retries take long, so that those that fail are the last ones.
        tried = endpoint(server, max_attempts=3, backoff=0.3, concurrency=64)
        with LLMClient(tried, tmp_path) as client:
            got = answers(client, map(ask, range(1000)))
        assert {a.key for a in got if a.error} == {f"item {i}" for i in range(7, 1000, 50)}
        assert {a.error for a in got} == {None, "server_error"}
        # Alone in a run they are no more the endpoint's fault than before.
        with LLMClient(tried, tmp_path, retry_errors=True) as client:
            again = answers(client, map(ask, range(1000)))
            assert (client.usage.cached, sum(a.error is not None for a in again)) == (980, 20)
        sent = server.total
        with LLMClient(tried, tmp_path) as client:
            assert [a.error for a in answers(client, map(ask, range(1000)))] == [a.error for a in again]
        assert server.total == sent


@pytest.mark.slow
def test_an_endpoint_that_fails_half_way_stops_and_goes_on_later(tmp_path: Path) -> None:
    broken = threading.Event()

    def script(seen: Seen) -> Reply:
        if seen.text == "100":
            broken.set()
        return failure(500, "CUDA error") if broken.is_set() else chat(f"answer {seen.text}")

    with StubServer(script) as server:
        tried = endpoint(server, max_attempts=2)
        got: list[Answer] = []
        for _ in range(2):
            # Nor does it end otherwise with answers on disk.
            with (
                LLMClient(tried, tmp_path) as client,
                pytest.raises(EndpointError, match="requests in a row"),
            ):
                got += client.run(map(ask, range(300)), description="Testing")
        assert not any(a.error for a in got)
    with StubServer() as server, LLMClient(endpoint(server), tmp_path) as client:
        whole = answers(client, map(ask, range(300)))
        assert {a.error for a in whole} == {None}
        assert client.usage.cached >= 90


@pytest.mark.slow
def test_a_busy_endpoint_is_waited_for(tmp_path: Path) -> None:
    last = 0.0

    def script(seen: Seen) -> Reply:
        # One in 15 ms: far too few for eight at a time to be let in within three attempts.
        nonlocal last
        if time.monotonic() < last + 0.015:
            return failure(429, "slow down")
        last = time.monotonic()
        return chat("fine")

    with StubServer(script) as server, LLMClient(endpoint(server, max_attempts=3), tmp_path) as client:
        assert {a.text for a in answers(client, map(ask, range(60)))} == {"fine"}
        assert max(server.counts.values()) > 3


def test_a_wrong_key_is_said_and_never_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("THE_KEY", KEY)
    with StubServer(key="sk-right") as server:
        with (
            LLMClient(endpoint(server, api_key_env="THE_KEY"), tmp_path, show_progress=True) as client,
            pytest.raises(EndpointError, match=r"refuses the key \(401\): THE_KEY") as caught,
        ):
            answers(client, map(ask, range(20)))
        # The others were given up at once.
        assert server.total <= 8
        # The server sends the key back in its messages; in those of other errors too.
        server.key = KEY
        server.script = lambda seen: (
            failure(500, f"Cannot serve Bearer {KEY}") if seen.text == "3" else chat("fine")
        )
        with LLMClient(endpoint(server, api_key_env="THE_KEY", max_attempts=2), tmp_path) as client:
            got = answers(client, map(ask, range(20)))
    assert [a.key for a in got if a.error] == ["item 3"]
    assert "Cannot serve Bearer ***" in caplog.text
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    shown = "".join(capfd.readouterr())
    everything = f"{caught.value}{caplog.text}{shown}{client.__dict__}{client.endpoint}"
    assert KEY not in everything
    assert KEY.encode() not in written


def hides(server: StubServer, folder: Path, **changed: Any) -> str:
    """Ask once or more in vain; return all that was said."""
    with (
        LLMClient(endpoint(server, api_key_env="THE_KEY", max_attempts=2, **changed), folder) as client,
        pytest.raises(EndpointError) as caught,
    ):
        answers(client, map(ask, range(3)))
    return "".join(traceback.format_exception(caught.value))


# As it is, in JSON's spelling, in an address, and where a message is cut in the key's middle.
ECHOES = [
    pytest.param(Reply(f"<html>You sent Bearer {KEY}</html>".encode()), id="200-no-json"),
    pytest.param(Reply(json.dumps({"headers": {"authorization": KEY}}).encode()), id="200-json"),
    pytest.param(Reply(json.dumps({"x": "x" * 270 + KEY}).encode()), id="200-cut"),
    pytest.param(Reply(quote(KEY).encode(), status=502), id="502-quoted"),
    pytest.param(failure(500, "x" * 285 + KEY), id="500-cut"),
    pytest.param(failure(503, f"Bearer {KEY}"), id="503"),
    pytest.param(failure(404, f"no {KEY} here"), id="404"),
    pytest.param(failure(400, f"bad header {KEY}"), id="400"),
    pytest.param(failure(401, f"wrong {KEY}"), id="401"),
    pytest.param(failure(429, KEY, headers={"Retry-After": "9999"}), id="429"),
]


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.usefixtures("_backend")
def test_a_key_that_a_server_sends_back_is_hidden(
    echo: Reply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("THE_KEY", KEY)
    with StubServer(lambda seen: echo) as server:
        said = hides(server, tmp_path) + caplog.text
    # Nor any part of it that would be long enough to go on from.
    assert not [part for part in (KEY, quote(KEY), KEY[:9], KEY[3:12]) if part in said]


@pytest.mark.parametrize("kind", ["LibraryError", "OpenAIError", "RuntimeError"])
@pytest.mark.parametrize("where", ["post", "client"])
def test_a_key_in_an_error_of_the_library_is_hidden(
    kind: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import openai

    caplog.set_level(logging.DEBUG)
    # Another endpoint's key in the same process, hidden in the same logs.
    keys.keep_out_of_logs("sk-of-another-endpoint")
    monkeypatch.setenv("THE_KEY", KEY)
    known = {"OpenAIError": openai.OpenAIError, "RuntimeError": RuntimeError}
    error = known.get(kind, type(kind, (Exception,), {}))

    def leak(*_: object, **__: object) -> None:
        try:
            raise ValueError(KEY)
        except ValueError as cause:
            logging.getLogger("openai._base_client").debug("sends %s", {"Authorization": KEY})
            logging.getLogger("httpx").exception("no luck with %s", KEY)
            msg = f"illegal header value b'Bearer {KEY}'"
            raise error(msg) from cause

    target = openai.AsyncOpenAI
    monkeypatch.setattr(target, "post" if where == "post" else "__init__", leak)
    with StubServer() as server:
        said = hides(server, tmp_path)
    assert f"cannot be asked ({kind}: illegal header value b'Bearer ***')" in said
    assert "no luck with ***" in caplog.text
    assert KEY not in said + caplog.text


def test_a_key_is_in_no_stored_answer_but_a_word_in_its_place_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(seen: Seen) -> Reply:
        return chat(f"{seen.headers['authorization']} was sent", finish_reason="length")

    for key, kept in ((KEY, "Bearer *** was sent"), ("EMPTY", "Bearer EMPTY was sent")):
        monkeypatch.setenv("THE_KEY", key)
        with StubServer(script) as server:
            assert one(server, tmp_path / key, api_key_env="THE_KEY").text == kept


def test_waits_between_attempts_are_those_of_the_endpoint(tmp_path: Path) -> None:
    came: list[float] = []

    def script(seen: Seen) -> Reply:
        came.append(time.monotonic())
        return failure(500, "oops") if seen.attempt < 4 else chat("fine")

    with StubServer(script) as server:
        assert one(server, tmp_path, backoff=0.2, longest_wait=0.2).text == "fine"
    # Never doubled, since the longest wait forbids it; half of the first one at most is drawn on top.
    assert all(0.2 <= later - sooner < 0.45 for sooner, later in pairwise(came))


def test_a_key_that_is_not_set(tmp_path: Path) -> None:
    with StubServer(key=KEY) as server, pytest.raises(EndpointError, match="OPENAI_API_KEY is not set"):
        one(server, tmp_path)


def test_a_key_that_cannot_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u201cquoted\u201d")
    with StubServer() as server, pytest.raises(EndpointError, match="OPENAI_API_KEY holds characters"):
        one(server, tmp_path)


def test_after_an_error_nothing_is_tried_again(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply:
        return failure(401, "no", delay=0.1) if seen.text == "0" else failure(500, "oops", delay=0.02)

    with StubServer(script) as server, LLMClient(endpoint(server, max_attempts=1000), tmp_path) as client:
        with pytest.raises(EndpointError, match="refuses the key"):
            answers(client, map(ask, range(50)))
        # Seven others for a tenth of a second, not until their patience ends.
        assert server.total < 100


def test_an_unknown_model(tmp_path: Path) -> None:
    bad = failure(404, "The model `stub` does not exist.", code="model_not_found")
    with (
        StubServer(lambda seen: bad) as server,
        pytest.raises(EndpointError, match="cannot serve 'stub': The model"),
    ):
        one(server, tmp_path)
    assert server.total == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base_url": "localhost:8000/v1"}, r"base_url is 'localhost:8000/v1'"),
        ({"base_url": f"http://me:{KEY}@localhost/v1"}, "base_url holds a user or password"),
        ({"api_key_env": KEY}, "name of an environment variable"),
        ({"concurrency": 0}, "concurrency is 0: it must be above 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"backoff": float("nan")}, "backoff is nan"),
        ({"longest_wait": float("inf")}, "longest_wait is inf"),
        ({"model": ""}, "model is empty"),
        ({"price_in": -1.0}, r"price_in is -1.0: it must not be below 0"),
    ],
)
def test_endpoints_are_checked(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ReasonEmbedError, match=said) as caught:
        Endpoint(**{"base_url": "http://localhost/v1", "model": "stub", **changed})
    assert KEY not in str(caught.value)


def test_the_budget_stops_cleanly(tmp_path: Path) -> None:
    prices = {"price_in": 100.0, "price_out": 200.0}  # 0.002 a request
    got: list[Answer] = []
    with StubServer(delay=0.002) as server:
        budget = Budget(max_cost=0.1)
        with (
            LLMClient(endpoint(server, **prices), tmp_path, budget) as client,
            pytest.raises(BudgetExceeded) as caught,
        ):
            got.extend(client.run(map(ask, range(1000)), description="Testing"))
        # 50 are affordable; the first 8 were let through without knowing the price.
        assert client.usage.requests == server.total == 50
        assert client.usage.cost == pytest.approx(0.1)
        assert len(got) == 50
        assert "50 requests take up max_cost = 0.1;" in str(caught.value)
        # Answers on disk cost nothing; another client shares what is left.
        tokens = Budget(max_tokens=150)
        for folder, sent in ((tmp_path, 10), (tmp_path / "other", 0)):
            with LLMClient(endpoint(server), folder, tokens) as client, pytest.raises(BudgetExceeded):
                answers(client, map(ask, range(1000)))
            assert client.usage.requests == sent
            assert client.usage.cached == (50 if sent else 0)


def test_a_cost_budget_needs_prices(tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="set price_in and price_out"):
        LLMClient(endpoint("http://localhost/v1"), tmp_path, Budget(max_cost=1.0))


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_a_limit_is_a_number_that_is_not_below_zero(limit: float) -> None:
    # One that is no number would never be passed.
    with pytest.raises(ReasonEmbedError, match=f"max_cost is {limit}: it must be a number"):
        Budget(max_cost=limit, strict=True)


def test_requests_are_taken_as_they_are_needed(tmp_path: Path) -> None:
    taken = 0

    def requests() -> Iterator[Request]:
        nonlocal taken
        for number in range(1500):
            taken += 1
            yield ask(number)

    with StubServer(keep=False) as server, LLMClient(endpoint(server, concurrency=16), tmp_path) as client:
        ahead = [taken - done for done, _ in enumerate(client.run(requests(), description="Testing"))]
    assert 200 < max(ahead) <= 16 * 16


def client_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(("llm-client", "answers"))}


def test_a_closed_client_ends_what_was_left_half_way(tmp_path: Path) -> None:
    before = client_threads()
    with StubServer() as server:
        with LLMClient(endpoint(server), tmp_path) as client:
            run = client.run(map(ask, range(200)), description="Testing")
            next(run)
            assert client_threads() - before
        assert client_threads() <= before
        run.close()


def test_a_run_that_is_left_keeps_its_answers_and_ends_its_thread(tmp_path: Path) -> None:
    before = client_threads()
    with StubServer(delay=0.01) as server, LLMClient(endpoint(server), tmp_path) as client:
        run = client.run(map(ask, range(500)), description="Testing")
        for _ in range(20):
            next(run)
        run.close()
        assert client_threads() <= before
        with AnswerCache(tmp_path) as cache:
            assert len(cache) == client.usage.requests >= 20

        def broken() -> Iterator[Request]:
            yield from map(ask, range(600, 700))
            msg = "no more"
            raise LookupError(msg)

        with pytest.raises(LookupError, match="no more"):
            answers(client, broken())


def test_answers_on_disk_need_neither_openai_nor_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubServer() as server:
        one(server, tmp_path)
    monkeypatch.setitem(sys.modules, "openai", None)
    assert one(server, tmp_path).cached
    with (
        LLMClient(endpoint(server), tmp_path) as client,
        pytest.raises(MissingExtraError, match=r"mteb\[synthesis\]"),
    ):
        answers(client, [ask(1)])


def test_half_a_character_pair(tmp_path: Path) -> None:
    reply = Reply(b'{"choices": [{"message": {"content": "half \\ud83d, null \\u0000."}}]}')
    with StubServer(lambda seen: reply) as server, LLMClient(endpoint(server), tmp_path) as client:
        good, bad = answers(client, [ask(0), ask("half \ud83d")])
        assert good.text == "half ?, null \0."
        assert bad.error == "rejected"
        assert answers(client, [ask(0)])[0].text == good.text


def test_the_hash_covers_what_changes_an_answer() -> None:
    base: dict[str, Any] = {"base_url": "http://localhost/v1", "model": "stub"}

    def digest(request: Request, **changed: Any) -> bytes:
        return request_hash(Endpoint(**{**base, **changed}).body(request), request.n_sample)

    same = digest(ask(0))
    assert digest(ask(0), base_url="http://elsewhere/v1", api_key_env="OTHER", concurrency=1) == same
    assert digest(Request("another key", ask(0).messages, 1.0, 0.6, 100, 7)) == same
    changed = [{"temperature": 0.5}, {"top_p": 1.0}, {"max_tokens": None}, {"seed": 8}, {"seed": None}]
    others = [digest(ask(0, **one)) for one in changed]
    others += [digest(ask(1)), digest(ask(0, seed=None, n_sample=1)), digest(ask(0, seed=6, n_sample=1))]
    others += [digest(ask(0), model="other"), digest(ask(0), extra_body={"top_k": 1})]
    assert len({same, *others}) == 1 + len(others)
    # What is on disk stays valid: this changes only together with the format's name.
    assert same.hex() == "dcf38b6a6f56399ed854421c5e21facc7d4cf9eadf24ead47de5ae75364291e9"


# The answers on disk.


def test_a_full_disk(tmp_path: Path) -> None:
    with StubServer(lambda seen: "long " * 2000) as server, LLMClient(endpoint(server), tmp_path) as client:
        client._cache._connection.execute("PRAGMA max_page_count = 150")
        with pytest.raises(
            ReasonEmbedError, match=r"cannot write .*answers.sqlite: database or disk is full"
        ):
            answers(client, map(ask, range(100)))
        client._cache._connection.execute("PRAGMA max_page_count = 100000")
        got = answers(client, map(ask, range(100)))
        assert {a.text for a in got} == {"long " * 2000}
        assert 0 < client.usage.cached < 100


def test_half_a_transaction_is_dropped(tmp_path: Path) -> None:
    kept, torn = tmp_path / "kept", tmp_path / "torn"
    torn.mkdir()
    with AnswerCache(kept) as cache:
        cache.add((bytes([i]) * 32, Kept(f"first {i}", None)) for i in range(20))
        size = (kept / f"{FILE}-wal").stat().st_size
        cache.add((bytes([i]) * 32, Kept(f"second {i}", None)) for i in range(20, 40))
        whole = (kept / f"{FILE}-wal").read_bytes()
        assert len(whole) > size
        (torn / FILE).write_bytes((kept / FILE).read_bytes())
        (torn / f"{FILE}-wal").write_bytes(whole[:-100])
    with AnswerCache(torn) as cache:
        assert len(cache) == 20
        assert cache.find([bytes([3]) * 32, bytes([30]) * 32]) == {bytes([3]) * 32: Kept("first 3", None)}
        cache.add([(bytes([30]) * 32, Kept("again", None))])
        assert len(cache) == 21


def test_many_answers_at_once_and_the_first_one_stays(tmp_path: Path) -> None:
    hashes = [i.to_bytes(32) for i in range(3000)]
    with AnswerCache(tmp_path) as cache:
        cache.add((h, Kept("first", None, 1, 2)) for h in hashes[:2000])
        cache.add([(hashes[0], Kept("second", None))])
        found = cache.find(hashes)
    assert found == dict.fromkeys(hashes[:2000], Kept("first", None, 1, 2))


def test_what_is_no_file_of_answers(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database, " * 100)
    with pytest.raises(DataError, match=r"answers.sqlite is damaged .*: move it away"):
        AnswerCache(tmp_path)
    later = tmp_path / "later"
    AnswerCache(later).close()
    connection = sqlite3.connect(later / FILE)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(DataError, match="has format 2, this version reads 1"):
        AnswerCache(later)
    (tmp_path / "file").touch()
    with pytest.raises(ReasonEmbedError, match="cannot make"):
        AnswerCache(tmp_path / "file")


# Whole processes.

CHILD = """
import sys
from pathlib import Path
from reasonembed_mteb.llm.client import Endpoint, LLMClient, Request
url, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
prompts = (({"role": "user", "content": str(i)},) for i in range(count))
requests = (Request(f"item {i}", prompt, 1.0, 0.6, 100, 7) for i, prompt in enumerate(prompts))
with LLMClient(Endpoint(url, "stub", concurrency=16), folder) as client:
    for answer in client.run(requests, description="Child"):
        print(answer.key, answer.text, flush=True)
"""


def start(server: StubServer, folder: Path, count: int) -> subprocess.Popen[str]:
    """Start a process that runs so many requests."""
    command = [sys.executable, "-c", CHILD, server.base_url, str(folder), str(count)]
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def killed_runs(folder: Path, kills: int, count: int) -> None:
    """Kill a process at random moments, then finish: nothing stored is sent again."""
    draw = random.Random(kills)
    bodies: dict[str, int] = {}

    def script(seen: Seen) -> Reply:
        bodies[seen.text] = bodies.get(seen.text, 0) + 1
        return chat(f"answer {seen.text}", delay=0.01)

    with StubServer(script) as server:
        stored: set[bytes] = set()
        sent_before_start: dict[str, int] = {}
        for _ in range(kills):
            child = start(server, folder, count)
            assert child.stdout is not None
            # Somewhere in the first tenths of the work: any moment from before the first answer on.
            for _ in range(draw.randrange(count // kills)):
                child.stdout.readline()
            time.sleep(draw.random() * 0.03)
            child.kill()
            handed_out = re.findall(r"^item (\d+) answer \1$", child.communicate()[0], flags=re.MULTILINE)
            with AnswerCache(folder) as cache:
                rows = cache._connection.execute("SELECT text FROM answers").fetchall()
            now = {row[0].encode() for row in rows}
            # What was stored stays, what was handed out is stored.
            assert stored <= now
            assert {f"answer {number}".encode() for number in handed_out} <= now
            for text in stored:
                number = text.decode().removeprefix("answer ")
                assert bodies[number] == sent_before_start[number], "a stored answer was asked for again"
            stored, sent_before_start = now, dict(bodies)
        assert 0 < len(stored) < count
        last = start(server, folder, count)
        out, error = last.communicate(timeout=100)
        assert last.returncode == 0, error
        assert out.splitlines() == [f"item {i} answer {i}" for i in range(count)]
        for text in stored:
            number = text.decode().removeprefix("answer ")
            assert bodies[number] == sent_before_start[number], "a stored answer was asked for again"
        # Only what was on its way at a kill came twice.
        assert sum(bodies.values()) - count <= kills * (16 + 16)


@pytest.mark.slow
def test_kill(tmp_path: Path) -> None:
    killed_runs(tmp_path, kills=2, count=600)


@pytest.mark.slow
def test_kill_twenty_times(tmp_path: Path) -> None:
    killed_runs(tmp_path, kills=20, count=4000)


@pytest.mark.slow
def test_two_processes_share_the_answers(tmp_path: Path) -> None:
    with StubServer(lambda seen: f"answer {seen.text}", delay=0.005) as server:
        children = [start(server, tmp_path, 300) for _ in range(2)]
        for child in children:
            out, error = child.communicate(timeout=60)
            assert child.returncode == 0, error
            assert out.splitlines() == [f"item {i} answer {i}" for i in range(300)]
        total = server.total
        with AnswerCache(tmp_path) as cache:
            assert len(cache) == 300
        assert answers(LLMClient(endpoint(server), tmp_path), map(ask, range(300)))[-1].text == "answer 299"
        assert server.total == total


@pytest.mark.slow
def test_memory_is_flat() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "synthesis.py"
    peaks = []
    for count in (2_000, 20_000):
        command = [sys.executable, str(script), "--requests", str(count), "--latency", "0", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(json.loads(done.stdout)["peak_mib"])
    assert peaks[1] < peaks[0] + 40
    assert peaks[1] < 1000


def test_a_strict_budget_is_never_passed(tmp_path: Path) -> None:
    # 10 tokens in and 5 out, at 1 and 2 a token: 20. What is known beforehand is the prompt's bytes and
    # 16 tokens of the answer.
    prices = {"price_in": 1e6, "price_out": 2e6}
    with StubServer(delay=0.002) as server:
        asked = endpoint(server, **prices)
        most = asked.most_cost(asked.body(ask(0)))
        budget = Budget(max_cost=most + 100, strict=True)
        with LLMClient(asked, tmp_path, budget) as client, pytest.raises(BudgetExceeded, match="spent"):
            answers(client, map(ask, range(1000)))
        # Six are let through, one after the other: before each, the most that it can cost still fits.
        assert 5 <= server.total <= 6
        assert server.most_at_once == 1
        # With room for many, many are on their way, and nothing is lost.
        with LLMClient(asked, tmp_path, Budget(max_cost=1e9, strict=True)) as client:
            assert len(answers(client, map(ask, range(100)))) == 100
        assert server.most_at_once > 1
        assert max(server.counts.values()) == 1


def test_a_strict_budget_holds_where_no_tokens_are_counted(tmp_path: Path) -> None:
    with StubServer(lambda seen: chat("fine", usage=False)) as server:
        asked = endpoint(server, price_in=1e6, price_out=2e6)
        most = asked.most_cost(asked.body(ask(0)))
        budget = Budget(max_cost=3.5 * most, strict=True)
        with LLMClient(asked, tmp_path, budget) as client, pytest.raises(BudgetExceeded, match="spent"):
            answers(client, map(ask, range(10, 100)))
        assert server.total == 3
        assert client.usage.uncounted == 3
        # Answers on disk are no better known.
        with LLMClient(asked, tmp_path) as again:
            answers(again, map(ask, range(10, 13)))
            assert (again.usage.cached, again.usage.uncounted) == (3, 3)


def test_requests_may_be_made_of_earlier_answers(tmp_path: Path) -> None:
    seen: list[str] = []

    def requests() -> Iterator[Request]:
        for number in range(100):
            # The answer to the request ten before is there by now.
            assert len(seen) >= number - 9
            yield ask(number)

    with StubServer(delay=0.01) as server, LLMClient(endpoint(server), tmp_path) as client:
        for answer in client.run(requests(), description="Testing", ahead=10):
            seen.append(answer.key)
        assert len(seen) == server.total == 100
        assert server.most_at_once > 4
        usage = client.usage
        again = list(client.run(map(ask, range(100)), description="Testing"))
        assert all(answer.cached for answer in again)
        assert client.usage.cached_prompt_tokens == usage.prompt_tokens
        assert client.usage.cached_completion_tokens == usage.completion_tokens
