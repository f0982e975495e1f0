"""Reranking: order, interpolation and ties against plain references; a server against MTEB's wrapper."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from evaluation_data import BIOLOGY
from pipeline_script import ENDPOINT, retrieve, stage, write_pipeline
from stub_server import CHAT, Reply, Seen, StubServer

from reasonembed_mteb.evaluation import resolving, runner
from reasonembed_mteb.evaluation.stages import Ranked, read_output
from reasonembed_mteb.pipelines.config import read_pipeline
from reasonembed_mteb.pipelines.pool import State, Tools
from reasonembed_mteb.pipelines.rerank import places_as_scores, rerank, reranked
from reasonembed_mteb.pipelines.run import Pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from reasonembed_mteb.evaluation.stages import StageCost
    from reasonembed_mteb.pipelines.pool import Pool


def plain(before: Ranked, scores: list[float], weight: float) -> list[str]:
    """Do it in the plainest way."""
    known = [score for score in scores if not np.isnan(score)]
    if not known:
        return before.documents
    filled = [min(known) if np.isnan(score) else score for score in scores]

    def scaled(values: list[float]) -> list[float]:
        span = max(values) - min(values)
        return [(value - min(values)) / span if span else 1.0 for value in values]

    if weight:
        first = scaled(before.scores[: len(scores)].tolist())
        filled = [weight * a + (1 - weight) * b for a, b in zip(first, scaled(filled), strict=True)]
    places = sorted(range(len(scores)), key=lambda place: (-filled[place], place))
    return [before.documents[place] for place in places] + before.documents[len(scores) :]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_orders_against_a_plain_reference(seed: int, weight: float) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 30)
    # Whole numbers, so that there are ties; some without a score.
    before = Ranked(
        [f"d{n}" for n in draw.sample(range(50), count)],
        np.array(sorted((float(draw.randint(0, 40)) for _ in range(count)), reverse=True)),
    )
    scores = [draw.choice([float("nan"), *map(float, range(5))]) for _ in range(draw.randint(0, count))]
    made = reranked(before, np.array(scores), weight)
    assert made.documents == plain(before, scores, weight)
    # What stands below has a lower score, so that a fusion keeps the order.
    assert (np.diff(made.scores) <= 0).all()


def test_weight_one_and_depth_zero_are_identities() -> None:
    before = Ranked(["a", "b", "c"], np.array([3.0, 3.0, 1.0]))
    assert reranked(before, np.array([1.0, 2.0, 9.0]), 1.0).documents == before.documents
    assert reranked(before, np.empty(0), 0.0) is before
    assert reranked(before, np.full(3, np.nan), 0.5) is before
    assert reranked(before, np.array([7.0, 7.0, 7.0]), 0.0).documents == before.documents


def test_places_as_scores() -> None:
    assert places_as_scores(["a", "b", "c"], ["c", "a", "b"]).tolist() == [1.0, 0.0, 2.0]


@pytest.mark.usefixtures("data", "registered")
@pytest.mark.parametrize("suffix", ["/v1", "", "/v1/rerank"])
def test_a_servers_scores_are_those_of_mtebs_wrapper(tmp_path: Path, suffix: str) -> None:
    from mteb.models import OpenAIAPIRerankWrapper

    def script(seen: Seen) -> Any:
        import json

        query, documents = seen.body["query"], seen.body["documents"]
        shared = [len(set(query.split()) & set(text.split())) + len(text) / 100 for text in documents]
        results = [{"index": n, "relevance_score": score} for n, score in enumerate(shared)]
        random.Random(0).shuffle(results)
        return Reply(json.dumps({"results": results, "usage": {"total_tokens": 7}}).encode())

    stages = retrieve("bm25", more="top_k = 10") + stage("rerank", by="endpoint", depth=10, documents=4)
    with StubServer(script, paths=(CHAT, "/v1/rerank")) as server:
        address = server.base_url.removesuffix("/v1")
        pipeline = Pipeline.from_toml(write_pipeline(tmp_path, stages, address + suffix))
        options = runner.RunOptions(output=tmp_path / "out", progress=False)
        (one,) = pipeline.run(resolving.resolve_tasks([], [BIOLOGY]), options)
        assert one.record is not None
        cost = one.record.stages[1].note.cost
        # Ten documents, four a request, six queries.
        assert (cost.calls, cost.prompt_tokens) == (18, 126)
        made = read_output(tmp_path / "out" / one.record.stages[1].outputs[0]).rankings["rerank"]["q0"]
        wrapper = OpenAIAPIRerankWrapper.__new__(OpenAIAPIRerankWrapper)
        wrapper.model_name = "stub"
        wrapper._make_request = lambda path, payload: _post(address + path, payload)  # type: ignore[method-assign]
        texts = {f"d{n}": text for n, text in enumerate(_documents())}
        theirs = wrapper._rerank("cell leaf water", [texts[name] for name in made.documents])
    assert made.scores.astype(np.float32).tolist() == pytest.approx(np.asarray(theirs).tolist())


BEFORE = {query: Ranked(["a", "b"], np.array([2.0, 1.0])) for query in ("q", "r")}


def reranked_pool(folder: Path, stages: str, url: str, prices: str = ENDPOINT) -> tuple[Any, StageCost]:
    """Run a reranking stage on two queries with two documents each; return its ranking and what it cost."""
    file = write_pipeline(folder, retrieve("bm25") + stages, url)
    file.write_text(file.read_text("utf-8").replace(ENDPOINT, prices), "utf-8")
    config = read_pipeline(file)
    pool = SimpleNamespace(
        task=SimpleNamespace(name="Task"),
        texts={"q": "why?", "r": "how?"},
        documents=lambda ids: {one: f"text {one}" for one in ids},
    )
    tools = Tools(config, folder, None, lambda _: None, progress=False)
    output, note = rerank(config.stages[1], cast("Pool", pool), State(rankings={"bm25": BEFORE}), tools)
    return output.rankings["rerank"], note.cost


@pytest.mark.parametrize("by", ["endpoint", "pointwise", "listwise"])
def test_nothing_is_asked_where_the_ranking_before_has_all_the_weight(tmp_path: Path, by: str) -> None:
    stages = stage("rerank", by=by, weight=1.0)
    made, cost = reranked_pool(tmp_path, stages, "http://127.0.0.1:9/v1")
    assert {query: one.documents for query, one in made.items()} == {"q": ["a", "b"], "r": ["a", "b"]}
    assert cost.calls == 0


def test_a_server_that_counts_no_tokens_has_no_known_price(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply:
        scores = [{"index": n, "score": -n} for n in range(len(seen.body["texts"]))]
        return Reply(json.dumps(scores).encode())

    def cost(url: str, price: float) -> StageCost:
        prices = ENDPOINT.replace("price_in = 1.0", f"price_in = {price}").replace("= 2.0", "= 0.0")
        return reranked_pool(tmp_path, stage("rerank", by="endpoint", api="tei"), url, prices)[1]

    with StubServer(script, paths=("/rerank",)) as server:
        paid, again, free = (cost(server.base_url, price) for price in (1.0, 1.0, 0.0))
    assert [(one.calls, one.uncounted, one.price) for one in (paid, again, free)] == [
        (2, 2, None),
        (2, 2, None),
        (2, 2, 0.0),
    ]


def _post(url: str, payload: dict[str, Any]) -> Any:
    import json
    import urllib.request

    sent = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent) as reply:
        return json.loads(reply.read())


def _documents() -> list[str]:
    from evaluation_data import WORDS

    return [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(3)) for i in range(40)]
