"""Pipelines as a whole: the same scores as a run, stages kept and resumed, prices, what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import pipeline_script
import pytest
from evaluation_data import BIOLOGY, ECONOMICS
from pipeline_script import answer, retrieve, run_pipeline, stage, write_pipeline
from stub_server import CHAT, Reply, Seen, StubServer, chat, failure

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation import resolving, runner
from reasonembed_mteb.evaluation.stages import read_output
from reasonembed_mteb.llm.cache import AnswerCache
from reasonembed_mteb.pipelines.run import Pipeline, PipelineOutcome
from reasonembed_mteb.reporting.pipelines import pipeline_chapters

if TYPE_CHECKING:
    from collections.abc import Callable

    Go = Callable[..., PipelineOutcome]

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """Return a function that writes a pipeline's file and runs it on one task."""

    def run(stages: str, url: str = "http://127.0.0.1:9/v1", **given: Any) -> PipelineOutcome:
        task, say = given.pop("task", BIOLOGY), given.pop("say", print)
        top, price = given.pop("top", ""), given.pop("max_price", None)
        names = ("retry_errors", "batch_requests", "batch_answers")
        how = {name: given.pop(name) for name in names if name in given}
        options = runner.RunOptions(output=tmp_path / "out", device="cpu", progress=False, **given)
        pipeline = Pipeline.from_toml(write_pipeline(tmp_path, stages, url, top))
        tasks = resolving.resolve_tasks([], [task])
        (outcome,) = pipeline.run(tasks, options, max_price=price, say=say, **how)
        return outcome

    return run


def result_scores(folder: Path, task: str = BIOLOGY) -> dict[str, Any]:
    (file,) = folder.glob(f"results/*/*/{task}.json")
    scores: dict[str, Any] = json.loads(file.read_bytes())["scores"]
    return scores


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("kind", ["dense", "bm25"])
def test_a_pipeline_of_one_retriever_scores_as_a_run_does(
    bert: Path, go: Go, tmp_path: Path, kind: str
) -> None:
    model = str(bert) if kind == "dense" else "bm25"
    assert go(retrieve(model)).outcome.error is None
    metas = [resolving.resolve_model(model)]
    tasks = resolving.resolve_tasks([], [BIOLOGY])
    options = runner.RunOptions(output=tmp_path / "plain", device="cpu", progress=False)
    assert runner.run(metas, tasks, options)[0].error is None
    ours, theirs = result_scores(tmp_path / "out"), result_scores(tmp_path / "plain")
    for scores in (ours, theirs):
        # The length is the retriever's own affair.
        scores["test" if "test" in scores else next(iter(scores))][0].pop("max_tokens")
    assert ours == theirs


WHOLE = (
    stage("rewrite", name="think", samples=2)
    + retrieve("bm25", more="top_k = 20\nname = 'bm25s'")
    + stage("iterate", name="again", rounds=2, documents=2, top_k=20)
    + stage("rerank", name="graded", by="pointwise", depth=8, weight=0.25)
    + stage("rerank", name="sorted", by="listwise", depth=8, window=4, step=2)
)


@pytest.mark.usefixtures("data")
def test_stages_are_recorded_and_kept(go: Go, tmp_path: Path) -> None:
    with StubServer(answer) as server:
        first = go(WHOLE, server.base_url)
        asked = server.total
        again = go(WHOLE, server.base_url)
        assert (again.outcome.cached, server.total) == (True, asked)
    record = first.record
    assert record is not None
    assert again.record == record
    by_name = {one.name: one for one in record.stages}
    calls = {name: one.note.cost.calls for name, one in by_name.items()}
    # Six queries: two rewritings, two rounds, eight documents, three windows.
    assert calls == {"think": 12, "bm25s": 0, "again": 12, "graded": 48, "sorted": 18}
    assert by_name["sorted"].note.counts == {"windows": 18}
    assert by_name["graded"].note.counts == {"expected grades": 48}
    assert by_name["bm25s"].parts.keys() == {"original queries: bm25"}
    # The price of 10 tokens in and 5 out.
    assert by_name["think"].note.cost.price == pytest.approx(12 * 20e-6)
    assert record.cost.price == pytest.approx(90 * 20e-6)
    final = read_output(tmp_path / "out" / by_name["sorted"].outputs[0])
    assert by_name["sorted"].scores["ndcg_at_10"] == pytest.approx(first.outcome.score, abs=1e-5)
    assert all(len(found.documents) == 20 for found in final.rankings["sorted"].values())
    # Excluded for the first query, so that no stage may show it.
    assert "d19" not in final.rankings["sorted"]["q0"].documents
    assert mteb.ResultCache(tmp_path / "out").get_cache_paths(models=["pipeline/test"])


@pytest.mark.usefixtures("data")
def test_a_changed_stage_runs_again_with_those_after_it_only(go: Go) -> None:
    with StubServer(answer) as server:
        go(WHOLE, server.base_url)
        before = server.total
        said: list[str] = []
        outcome = go(
            WHOLE.replace('"depth": 8', "").replace("weight = 0.25", "weight = 0.5"),
            server.base_url,
            say=said.append,
        )
        assert outcome.outcome.error is None
        # The grades are known; only the windows changed.
        sent = [seen.text for seen in server.seen[before:]]
        assert sent
        assert all("Rank the" in text for text in sent)
    assert outcome.record is not None


@pytest.mark.usefixtures("data")
def test_a_spent_budget_stops_before_it_is_passed_and_goes_on_later(go: Go) -> None:
    with StubServer(answer, delay=0.001) as server:
        stopped = go(WHOLE, server.base_url, max_price=0.0049)
        assert "the budget is spent" in str(stopped.outcome.error)
        # 20 millionths a request; the most that one can cost is 5,000, nearly all of the budget.
        some = server.total
        assert 0 < some < 50
        done = go(WHOLE, server.base_url)
        assert done.outcome.error is None
        assert max(server.counts.values()) == 1
        assert some < server.total <= 90


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    "stages",
    [
        stage("rewrite", samples=2) + retrieve("bm25"),
        retrieve("bm25") + stage("iterate"),
        retrieve("bm25") + stage("rerank", by="pointwise"),
        retrieve("bm25") + stage("rerank", by="listwise", window=4, step=2),
        retrieve("bm25") + stage("rerank", by="endpoint", documents=2),
    ],
    ids=["rewrite", "iterate", "pointwise", "listwise", "endpoint"],
)
def test_a_stage_that_is_stopped_leaves_no_thread_behind(go: Go, stages: str) -> None:
    def script(seen: Seen) -> Any:
        if server.total > 3:
            return failure(401, "no")
        if "documents" in seen.body:
            scores = [{"index": n, "relevance_score": n} for n in range(len(seen.body["documents"]))]
            return Reply(json.dumps({"results": scores}).encode())
        return answer(seen)

    before = set(threading.enumerate())
    with StubServer(script, paths=(CHAT, "/v1/rerank")) as server:
        stopped = go(stages, server.base_url)
        assert "refuses the key (401)" in str(stopped.outcome.error)
        left = set(threading.enumerate()) - before
        assert not [one.name for one in left if one.name.startswith(("llm-", "answers"))]


@pytest.mark.usefixtures("data")
def test_an_endpoint_that_is_down_stops_every_task(tmp_path: Path) -> None:
    file = write_pipeline(tmp_path, stage("rewrite") + retrieve("bm25"))
    text = file.read_text(encoding="utf-8").replace("timeout", "max_attempts = 1\ntimeout")
    file.write_text(text, encoding="utf-8")
    options = runner.RunOptions(output=tmp_path / "out", progress=False)
    said: list[str] = []
    tasks = resolving.resolve_tasks([], [BIOLOGY, ECONOMICS])
    first, second = Pipeline.from_toml(file).run(tasks, options, say=said.append)
    assert "127.0.0.1:9" in str(first.outcome.error)
    assert second.outcome.error == first.outcome.error
    # The other one was not tried.
    assert not [line for line in said if ECONOMICS in line]


@pytest.mark.usefixtures("data")
def test_a_budget_needs_prices(go: Go) -> None:
    stages = stage("rewrite", endpoint="free") + retrieve("bm25")
    table = '[endpoints.free]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "stub"\n'
    with pytest.raises(ReasonEmbedError, match=r"prices of \[endpoints.free\]: set price_in"):
        go(table + stages, max_price=1.0)


@pytest.mark.usefixtures("data")
def test_nothing_is_asked_twice_by_equal_stages_of_another_pipeline(go: Go) -> None:
    with StubServer(answer) as server:
        go(stage("rewrite") + retrieve("bm25"), server.base_url)
        asked = server.total
        other = go(
            stage("rewrite") + retrieve("bm25") + stage("fuse", method="z"),
            server.base_url,
            top='about = "another"',
        )
        assert server.total == asked
    assert other.record is not None
    assert [one.note.cost.calls for one in other.record.stages] == [6, 0, 0]


@pytest.mark.usefixtures("data")
def test_prices_are_those_of_the_file_as_it_is_now(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = stage("rewrite") + retrieve("bm25")
    with StubServer(answer) as server:
        go(stages, server.base_url)
    # Ten times as much for the 10 tokens that come in.
    dearer = pipeline_script.ENDPOINT.replace("price_in = 1.0", "price_in = 10.0")
    monkeypatch.setattr(pipeline_script, "ENDPOINT", dearer)
    wanted = pytest.approx(6 * 110e-6)
    for more, given in (("", {}), ("", {"overwrite": True}), (stage("fuse"), {})):
        outcome = go(stages + more, **given)
        assert outcome.outcome.cached == (not given and not more)
        assert outcome.record is not None
        assert outcome.record.stages[0].note.cost.price == wanted
        assert outcome.record.cost.price == wanted
    (chapter,), _ = pipeline_chapters([tmp_path / "out"])
    assert [one["price_per_1000"] for one in chapter.data] == [pytest.approx(110e-3)] * 2


@pytest.mark.usefixtures("data")
def test_rewritings_that_are_missing(go: Go, tmp_path: Path) -> None:
    rows = [{"id": "q0", "text": "leaf"}, {"id": "q1", "text": " "}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    refused = go(stage("rewrite", queries="own.jsonl") + retrieve("bm25"))
    assert "5 of 6 queries have no rewriting (q1, q2, q3, q4, q5)" in str(refused.outcome.error)
    taken = go(stage("rewrite", queries="own.jsonl", missing="original") + retrieve("bm25"))
    assert taken.record is not None
    assert taken.record.stages[0].note.counts == {"original queries": 5}
    texts = read_output(tmp_path / "out" / taken.record.stages[0].outputs[0]).texts["rewrite"]
    assert texts["q0"] == ["cell leaf water leaf"]
    assert texts["q1"] == ["leaf water light"]


@pytest.mark.usefixtures("data")
def test_prompts_that_are_too_long_are_counted(go: Go) -> None:
    def script(seen: Seen) -> Any:
        if "leaf" in seen.text:
            return failure(
                400, "This model's maximum context length is 8 tokens", code="context_length_exceeded"
            )
        return answer(seen)

    stages = (
        retrieve("bm25") + stage("rerank", by="pointwise", depth=4) + stage("rerank", by="listwise", depth=4)
    )
    with StubServer(script) as server:
        outcome = go(stages, server.base_url)
        assert outcome.record is not None
        _, graded, ordered = outcome.record.stages
        assert (
            graded.note.counts["no grade: context_length"] == graded.note.counts["documents without a score"]
        )
        assert ordered.note.counts["left as they were: context_length"] > 0
        refused = go(stage("rewrite", name="short") + retrieve("bm25"), server.base_url)
    assert "no rewriting: context_length" in str(refused.outcome.error)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("said", "counted"),
    [
        (lambda count: " > ".join(f"[{n}]" for n in range(count, 0, -1)), {"windows"}),
        (lambda count: "[2] > [1]", {"windows", "mended windows", "mended: missing"}),
        (
            lambda count: "[99] > [3] > [3]",
            {"windows", "mended windows", "mended: unknown", "mended: repeated", "mended: missing"},
        ),
        (lambda count: "They are all fine.", {"windows", "mended windows", "mended: unreadable"}),
    ],
)
def test_rerankers_that_misbehave_are_counted_and_lose_nothing(
    go: Go, tmp_path: Path, said: Any, counted: set[str]
) -> None:
    stages = retrieve("bm25", more="top_k = 12") + stage("rerank", by="listwise", depth=8, window=4, step=2)
    with StubServer(lambda seen: said(4)) as server:
        outcome = go(stages, server.base_url)
    record = outcome.record
    assert record is not None
    assert record.stages[1].note.counts.keys() == counted
    before = read_output(tmp_path / "out" / record.stages[0].outputs[0]).rankings["bm25"]
    after = read_output(tmp_path / "out" / record.stages[1].outputs[0]).rankings["rerank"]
    for query, found in before.items():
        assert sorted(after[query].documents) == sorted(found.documents)
        assert after[query].documents[8:] == found.documents[8:]
    if "mended: unreadable" in counted:
        assert {q: o.documents for q, o in after.items()} == {q: o.documents for q, o in before.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_identities(go: Go, tmp_path: Path) -> None:
    def order(stages: str, name: str) -> dict[str, list[str]]:
        with StubServer(answer) as server:
            record = go(stages, server.base_url).record
        assert record is not None
        found = read_output(tmp_path / "out" / record.stages[-1].outputs[0]).rankings[name]
        return {query: own.documents for query, own in found.items()}

    first = retrieve("bm25", more="top_k = 9")
    plain = order(first, "bm25")
    for by in ("pointwise", "listwise"):
        assert order(first + stage("rerank", by=by, depth=0), "rerank") == plain
        assert order(first + stage("rerank", by=by, weight=1.0), "rerank") == plain
        assert order(first + stage("rerank", by=by), "rerank") != plain
    whole = order(first + stage("rerank", by="listwise", window=9, step=9), "rerank")
    assert order(first + stage("rerank", by="listwise", window=20, step=10), "rerank") == whole


@pytest.mark.usefixtures("data")
def test_a_cross_encoder_reranks_as_mteb_does(go: Go, bert: Path, cross: Path, tmp_path: Path) -> None:
    stages = retrieve(str(bert), more="top_k = 10") + stage(
        "rerank", by="cross-encoder", model=str(cross), depth=10
    )
    ours = go(stages).outcome.score
    # The same by MTEB: candidates of a first stage, reranked.
    tasks = resolving.resolve_tasks([], [BIOLOGY])
    folder = tmp_path / "predictions"
    options = runner.RunOptions(
        output=tmp_path / "first", device="cpu", progress=False, prediction_folder=folder
    )
    runner.run([resolving.resolve_model(str(bert))], tasks, options)
    options = runner.RunOptions(
        output=tmp_path / "second", device="cpu", progress=False, rerank_from=folder, rerank_top_k=10
    )
    (theirs,) = runner.run([resolving.resolve_model(str(cross))], tasks, options)
    assert theirs.score is not None
    assert ours == pytest.approx(theirs.score, abs=1e-5)


@pytest.mark.usefixtures("data")
def test_models_of_the_wrong_kind_are_refused(go: Go, bert: Path, cross: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="a cross-encoder; it reranks"):
        go(retrieve(str(cross)))
    with pytest.raises(ReasonEmbedError, match="no cross-encoder; it retrieves"):
        go(retrieve("bm25") + stage("rerank", by="cross-encoder", model=str(bert)))


@pytest.mark.usefixtures("data")
def test_a_grid_is_marked_as_tuned_on_test(go: Go, bert: Path, tmp_path: Path) -> None:
    first = retrieve("bm25", str(bert))
    plain = go(first + stage("fuse", method="min-max")).record
    tuned = go(first + stage("fuse", method="min-max", grid=0.1)).record
    assert plain is not None
    assert tuned is not None
    assert (plain.tuned_on_test, tuned.tuned_on_test) == (False, True)
    weights = tuned.stages[-1].note.chosen["weights"]
    assert sum(weights) == pytest.approx(1)
    assert tuned.stages[-1].scores["ndcg_at_10"] >= plain.stages[-1].scores["ndcg_at_10"]


@pytest.mark.usefixtures("data")
def test_a_damaged_stage_runs_again(go: Go, tmp_path: Path) -> None:
    record = go(retrieve("bm25") + stage("fuse")).record
    assert record is not None
    file = tmp_path / "out" / record.stages[0].outputs[0]
    kept = file.read_bytes()
    file.write_bytes(b"no parquet")
    assert go(retrieve("bm25") + stage("fuse"), overwrite=True).outcome.error is None
    assert file.read_bytes() == kept


@pytest.mark.usefixtures("data")
def test_smoke_runs_are_kept_apart(go: Go, tmp_path: Path) -> None:
    outcome = go(retrieve("bm25"), task=ECONOMICS, limit=2)
    assert outcome.record is not None
    assert (outcome.record.queries, outcome.record.limit) == (2, 2)
    assert (tmp_path / "out" / "limit-2" / "results").is_dir()


@pytest.mark.usefixtures("data")
def test_batches_in_place_of_asking(go: Go, tmp_path: Path) -> None:
    stages = stage("rewrite", samples=2) + retrieve("bm25") + stage("rerank", by="pointwise", depth=3)
    with StubServer(answer) as server:
        wanted = go(stages, server.base_url)
    shutil.rmtree(tmp_path / "out")
    folder, files = tmp_path / "batch", list[Path]()
    for name in ("rewrite", "rerank"):
        waiting = go(stages, batch_requests=folder, batch_answers=files)
        file = folder / f"{BIOLOGY}-{name}.jsonl"
        assert f"written to {file}" in str(waiting.outcome.error)
        lines = []
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            reply = answer(Seen(line["body"], 1, {}))
            body = json.loads((chat(reply) if isinstance(reply, str) else reply).body)
            response = {"status_code": 200, "body": body}
            lines.append(json.dumps({"custom_id": line["custom_id"], "response": response, "error": None}))
        files = [tmp_path / f"{name}-answers.jsonl"]
        files[0].write_text("\n".join(lines), encoding="utf-8")
    done = go(stages, batch_requests=folder, batch_answers=files)
    assert done.outcome.score == wanted.outcome.score
    assert done.record is not None
    assert wanted.record is not None
    for one, other in zip(done.record.stages, wanted.record.stages, strict=True):
        assert (one.scores, one.note.counts, one.note.cost.calls) == (
            other.scores,
            other.note.counts,
            other.note.cost.calls,
        )
        assert one.note.cost.price == other.note.cost.price


@pytest.mark.usefixtures("data")
def test_what_hangs_on_earlier_answers_is_no_batch(go: Go, tmp_path: Path) -> None:
    for by in ("listwise", "endpoint"):
        failed = go(retrieve("bm25") + stage("rerank", by=by), batch_requests=tmp_path / "batch")
        assert "batch" in str(failed.outcome.error)


PRELOADED = [
    "reasonembed_mteb.encoding.plan",
    "pipeline_script",
    "mteb",
    "bm25s",
    "openai",
    "aiohttp",
    "tenacity",
    "pytrec_eval",
]
PRELOADED += ["reasonembed_mteb.pipelines.run", "reasonembed_mteb.pipelines.work", "reasonembed_mteb.plugin"]


@pytest.mark.slow
def test_twenty_kills_end_with_the_same_bytes_and_pay_nothing_twice(data: Path, tmp_path: Path) -> None:
    del data
    # Its processes begin with everything imported.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def start(output: str, url: str) -> Any:
        file = write_pipeline(tmp_path, WHOLE, url)
        child = context.Process(
            target=run_pipeline, args=(file, tmp_path / output, BIOLOGY, dict(os.environ))
        )
        child.start()
        return child

    with StubServer(answer) as server:
        whole = start("whole", server.base_url)
        whole.join()
        assert whole.exitcode == 0
    chosen, unfinished = random.Random(0), 0
    # Slow enough that most kills meet requests on their way, and all 66 do not end before the last.
    with StubServer(lambda seen: slowly(answer(seen), 0.1)) as server:
        for number in range(20):
            child, before, until = start("killed", server.base_url), server.total, time.monotonic() + 60
            wanted = before + chosen.randrange(1, 6)
            while server.total < wanted and child.exitcode is None:
                assert time.monotonic() < until, number
                time.sleep(0.01)
            time.sleep(chosen.random() * 0.1)
            assert child.exitcode in (None, 0)
            child.kill()
            child.join()
            with AnswerCache(tmp_path / "killed" / "answers") as kept_answers:
                unfinished += len(server.counts) - len(kept_answers)
        last = start("killed", server.base_url)
        last.join()
        assert last.exitcode == 0
        # Only what was asked and not on disk at a kill is asked again, once.
        assert server.counts.total() - len(server.counts) <= unfinished
        with AnswerCache(tmp_path / "killed" / "answers") as kept_answers:
            assert len(kept_answers) == len(server.counts)
        assert len(server.counts) > 60
    kept = [kept_bytes(tmp_path / name) for name in ("whole", "killed")]
    assert kept[0] == kept[1]


def slowly(reply: Reply | str, delay: float) -> Reply:
    """Return a reply that takes its time."""
    return dataclasses.replace(chat(reply) if isinstance(reply, str) else reply, delay=delay)


def kept_bytes(output: Path) -> dict[str, bytes]:
    """Return every file that holds no times: the stages' outputs and the scores by query."""
    files = [*output.glob("stages/*/*.parquet"), *output.glob("records/*/*/*.parquet")]
    assert len(files) == 6
    return {file.relative_to(output).as_posix(): file.read_bytes() for file in files}
