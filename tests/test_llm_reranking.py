"""Rerank APIs of a server: what is sent, what is read, and what becomes of documents without a score."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from stub_server import Reply, Seen, StubServer, failure

from reasonembed_mteb.endpoints.endpoint import Endpoint, EndpointError
from reasonembed_mteb.endpoints.retries import AttemptError
from reasonembed_mteb.errors import UnknownNameError
from reasonembed_mteb.llm.reranking import EndpointReranker, read_relevance, rerank_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("openai")
pytest.importorskip("tenacity")

PATHS = ("/v1/rerank", "/v1/score", "/rerank")
PAIRS = [("one", "a"), ("one", "bbb"), ("one", "cc"), ("two", "dddd")]
LENGTHS = [1.0, 3.0, 2.0, 4.0]


def ranked(seen: Seen) -> list[dict[str, Any]]:
    """Score a document by its length, and give the best first, as the servers do."""
    texts = seen.body.get("documents") or seen.body.get("text_2") or seen.body.get("texts")
    assert texts is not None
    name = {"/v1/rerank": "relevance_score"}.get(seen.path, "score")
    return sorted(({"index": i, name: len(text)} for i, text in enumerate(texts)), key=lambda one: -one[name])


def served(seen: Seen) -> Reply:
    found = ranked(seen)
    key = {"/v1/rerank": "results", "/v1/score": "data"}.get(seen.path)
    return Reply(json.dumps(found if key is None else {key: found, "usage": {"total_tokens": 7}}).encode())


def reranker(server: StubServer, folder: Path, **options: Any) -> EndpointReranker:
    url = options.pop("url", server.base_url)
    return EndpointReranker(Endpoint(url, "stub", backoff=0.01, max_attempts=2), folder, **options)


@pytest.mark.parametrize(
    ("api", "path", "query", "documents"),
    [
        ("rerank", "/v1/rerank", "query", "documents"),
        ("score", "/v1/score", "text_1", "text_2"),
        ("tei", "/rerank", "query", "texts"),
    ],
)
@pytest.mark.parametrize("ending", ["/v1", "", "/v1/", "/v1/rerank"])
def test_each_api_in_its_own_words(
    api: str, path: str, query: str, documents: str, ending: str, tmp_path: Path
) -> None:
    with StubServer(served, paths=PATHS) as server:
        url = server.base_url.removesuffix("/v1") + ending
        with reranker(server, tmp_path, api=api, url=url, instruction="Find: ") as asked:
            assert asked.score(PAIRS).tolist() == LENGTHS
        bodies = [one.body for one in server.seen]
        assert {one.path for one in server.seen} == {path}
    found = {body[query]: body[documents] for body in bodies}
    assert found == {"Find: one": ["a", "bbb", "cc"], "Find: two": ["dddd"]}


def test_nothing_is_asked_twice_and_requests_are_small(tmp_path: Path) -> None:
    with StubServer(served, paths=PATHS) as server:
        with reranker(server, tmp_path, documents=2) as asked:
            assert asked.score(PAIRS).tolist() == LENGTHS
            assert asked.usage.requests == 3
        with reranker(server, tmp_path, documents=2) as again:
            assert again.score(PAIRS).tolist() == LENGTHS
            assert (again.usage.requests, again.usage.cached) == (0, 3)
        assert server.total == 3


def too_long(seen: Seen) -> Reply:
    if "cc" in seen.body["documents"]:
        return failure(400, "the input is longer than the maximum model length")
    return served(seen)


def strange(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Seen], Reply]:
    return lambda seen: Reply(json.dumps({"results": change(ranked(seen))}).encode())


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        # One document that is too long costs its own score only.
        (too_long, [1, 3, None, 4]),
        (strange(lambda found: [one | {"index": one["index"] + 100} for one in found]), [None] * 4),
        (strange(lambda found: [one | {"relevance_score": None} for one in found]), [None] * 4),
        # Only the best: the others are asked for alone.
        (strange(lambda found: found[:1]), LENGTHS),
    ],
)
def test_what_has_no_score_is_nan(
    script: Callable[[Seen], Reply], expected: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StubServer(script, paths=PATHS) as server, reranker(server, tmp_path) as asked:
        scores = asked.score(PAIRS)
    assert [None if np.isnan(one) else one for one in scores] == expected
    assert ("gives no score for some pairs" in caplog.text) == (None in expected)


@pytest.mark.parametrize(
    ("script", "paths", "message"),
    [
        (served, ("/v1/chat/completions",), "cannot serve 'stub'"),
        (lambda seen: "prose", PATHS, "the answer holds no scores"),
    ],
)
def test_a_server_that_cannot_rerank_stops_the_run(
    script: Callable[[Seen], Reply], paths: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with (
        StubServer(script, paths=paths) as server,
        reranker(server, tmp_path) as asked,
        pytest.raises(EndpointError, match=message),
    ):
        asked.score(PAIRS)


@pytest.mark.parametrize("score", ["Infinity", "NaN", "-1e400", f"{10**400}", "true", "null"])
def test_a_score_that_is_no_finite_number_is_none(score: str) -> None:
    raw = f'{{"results": [{{"index": 0, "relevance_score": {score}}}, {{"index": 1, "score": 2}}]}}'
    assert read_relevance(raw.encode()).text == "[[1, 2]]"


@pytest.mark.parametrize("index", ["1e400", "NaN", "null"])
def test_an_index_that_is_no_place_is_a_bad_answer(index: str) -> None:
    with pytest.raises(AttemptError, match="holds no scores"):
        read_relevance(f'{{"results": [{{"index": {index}, "relevance_score": 1}}]}}'.encode())


def test_unknown_api_and_identity(tmp_path: Path) -> None:
    endpoint = Endpoint("http://one:1/v1", "m")
    with pytest.raises(UnknownNameError, match="did you mean 'rerank'"):
        EndpointReranker(endpoint, tmp_path, api="rerankr")
    with (
        EndpointReranker(endpoint, tmp_path) as one,
        EndpointReranker(Endpoint("http://two:2", "m"), tmp_path) as other,
        EndpointReranker(endpoint, tmp_path, instruction="x") as third,
    ):
        assert one.identity == other.identity != third.identity
    assert rerank_endpoint(Endpoint("https://api.cohere.com/v2", "m")).base_url == "https://api.cohere.com/v2"
