"""What would be generated: counts as a run has them, what is kept, prices; nothing sent, no weights."""

from __future__ import annotations

import json
from shutil import copytree
from typing import TYPE_CHECKING, Any

import pytest
from conftest import save_decoder
from evaluation_data import BIOLOGY, ECONOMICS

from reasonembed_mteb.endpoints.endpoint import Endpoint, Reply, request_hash
from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation import resolving
from reasonembed_mteb.evaluation.plan import TaskPlan, plan_models
from reasonembed_mteb.llm.client import LLMClient
from reasonembed_mteb.reasoning import planning
from reasonembed_mteb.reasoning.generation import Decoding
from reasonembed_mteb.reasoning.latents import add_latents
from reasonembed_mteb.reasoning.planning import ReasoningEstimate, ReasoningPlanner
from reasonembed_mteb.reasoning.running import ReasoningModel, ReasoningPlan
from reasonembed_mteb.reasoning.sources import AskedReasonings, Query, ReasoningFile, RewrittenQueries

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that is long enough for its texts and not for the protocol's length."""
    made = tmp_path_factory.mktemp("planning")
    add_latents(str(save_decoder(made / "bare", "qwen2", bos=True)), 2, made / "model")
    return made / "model"


def estimate(
    folder: Path, plan: ReasoningPlan, store: Path, *tasks: str, limit: int | None = None
) -> list[ReasoningEstimate]:
    base = resolving.resolve_model(str(folder))
    found = resolving.resolve_tasks([], tasks or [BIOLOGY])
    planned = [TaskPlan(task.metadata.name, "", limit or 6, 40, query_tokens=123) for task in found]
    return ReasoningPlanner(found, store, limit).estimate(base, plan, planned)


def reason(folder: Path, plan: ReasoningPlan, store: Path, limit: int, length: int = 8192) -> None:
    """Generate for the first queries of a task, as a run does; documents are left out."""
    from mteb.types import PromptType

    from reasonembed_mteb.evaluation.limits import limit_task
    from reasonembed_mteb.retrieval.lengths import capped_length
    from reasonembed_mteb.retrieval.search import column_loader

    (task,) = resolving.resolve_tasks([], [BIOLOGY])
    limit_task(task, limit)
    queries = task.dataset["default"]["standard"]["queries"]
    model = ReasoningModel(resolving.resolve_model(str(folder)), plan, store)
    encoder: Any = model.meta.load_model(device="cpu")
    with capped_length(encoder, length):
        encoder.encode(
            column_loader({"id": queries["id"][:], "text": queries["text"][:]}, 4),
            task_metadata=task.metadata,
            hf_split="standard",
            hf_subset="default",
            prompt_type=PromptType.query,
        )
    model.close()


@pytest.mark.usefixtures("data")
def test_what_a_model_itself_reasoned(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedModel

    plan, store = ReasoningPlan(Decoding(3)), tmp_path / "kept"
    with monkeypatch.context() as patch:
        # Not even the tokenizer is read where nothing can be kept.
        patch.setattr(planning, "load_variant", None)
        (before,) = estimate(folder, plan, store)
    assert (before.queries, before.most_tokens, before.kept, before.left_tokens) == (6, 18, 0, 18)
    assert (before.reasoning, before.price, before.estimated) == ("itself-3", None, False)
    assert not store.exists()
    reason(folder, plan, store, 4)
    # No weights are read, of the model or its head.
    for kind in (PreTrainedModel, AutoModelForCausalLM):
        monkeypatch.setattr(kind, "from_pretrained", None)
    (after,) = estimate(folder, plan, store)
    assert (after.kept, after.most_tokens, after.left_tokens) == (4, 18, 6)
    assert after.query_tokens == 123
    (limited,) = estimate(folder, plan, store, limit=2)
    assert (limited.queries, limited.kept, limited.left_tokens) == (2, 2, 0)
    base, found = resolving.resolve_model(str(folder)), resolving.resolve_tasks([], [BIOLOGY, ECONOMICS])
    planner = ReasoningPlanner(found, store)
    planned = [TaskPlan(task.metadata.name, "", 6, 40) for task in found]
    # Other tasks' queries have other instructions.
    assert [one.kept for one in planner.estimate(base, plan, planned)] == [4, 0]
    for other in (
        ReasoningPlan(Decoding(4)),
        ReasoningPlan(Decoding(3, seed=1)),
        ReasoningPlan(Decoding(3), prompt="{query}: "),
    ):
        assert planner.estimate(base, other, planned[:1])[0].kept == 0
    assert planner.estimate(base.model_copy(update={"revision": "x"}), plan, planned[:1])[0].kept == 0
    # A loader that needs the weights, and a store that says nothing of its models.
    monkeypatch.setattr(planning, "load_variant", None)
    (unknown,) = estimate(folder, plan, store)
    assert (unknown.kept, unknown.left_tokens) == (None, 18)
    (store / "models.json").unlink()
    assert estimate(folder, plan, store)[0].kept is None


@pytest.mark.slow
@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("length", [8192, 44])
def test_queries_are_cut_as_a_run_cuts_them(
    length: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the model's 50 tokens less 3 of reasoning, or by the protocol's."""
    short = copytree(folder, tmp_path / "short")
    file = short / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_seq_length": 50}))
    plan, store = ReasoningPlan(Decoding(3)), tmp_path / "kept"
    reason(short, plan, store, 6, length)
    monkeypatch.setattr(planning, "max_tokens_for", lambda _: length)
    assert estimate(short, plan, store)[0].kept == 6


@pytest.mark.usefixtures("data")
def test_what_a_server_was_asked(folder: Path, tmp_path: Path) -> None:
    # Nobody is there: nothing is sent.
    endpoint = Endpoint("http://localhost:1/v1", "org/thinker", price_in=1e6, price_out=2e6)
    base, tasks = resolving.resolve_model(str(folder)), resolving.resolve_tasks([], [BIOLOGY])
    planned = [TaskPlan(BIOLOGY, "", 6, 40, query_tokens=123)]
    with LLMClient(endpoint, tmp_path / "answers", show_progress=False) as client:
        source = AskedReasonings(client, Decoding(9))
        planner, plan = ReasoningPlanner(tasks, tmp_path), ReasoningPlan(Decoding(9), source)
        (before,) = planner.estimate(base, plan, planned)
        texts = planner._queries_of(BIOLOGY)
        assert texts is not None
        bodies = [endpoint.body(source._request(0, one)) for one in texts]
        assert before.price == pytest.approx(sum(map(endpoint.most_cost, bodies)))
        # Nine tokens of answer each, and more than one of a question.
        assert before.price is not None
        assert before.price > 6 * 9 * 2
        assert (before.kept, before.most_tokens) == (0, 54)
        client._cache.add((request_hash(body, 0), Reply("leaf", None)) for body in bodies[:2])
        (after,) = planner.estimate(base, plan, planned)
        assert (after.kept, after.left_tokens, after.reasoning) == (2, 36, "thinker-9")
        assert after.price == pytest.approx(sum(map(endpoint.most_cost, bodies[2:])))
        # Equal queries are paid for once.
        assert source.planned([texts[3]] * 2) == (0, pytest.approx(endpoint.most_cost(bodies[3])))
        assert source.reasonings(texts[:2])[0].text == "leaf"
    with LLMClient(Endpoint("http://localhost:1/v1", "org/thinker"), tmp_path / "answers") as client:
        assert AskedReasonings(client, Decoding(9)).planned(texts) == (2, None)


def test_data_that_are_not_here(folder: Path, tmp_path: Path) -> None:
    endpoint = Endpoint("http://localhost:1/v1", "thinker", price_in=1.0, price_out=2.0)
    with LLMClient(endpoint, tmp_path / "answers") as client:
        source = AskedReasonings(client, Decoding(100), "?" * 40 + "{query}")
        base, tasks = resolving.resolve_model(str(folder)), resolving.resolve_tasks([], [BIOLOGY])
        ((planned, _),) = plan_models([base], tasks)
        plan = ReasoningPlan(Decoding(100), source)
        (found,) = ReasoningPlanner(tasks, tmp_path).estimate(base, plan, planned)
    assert (found.queries, found.kept, found.most_tokens) == (103, None, 10300)
    assert found.query_tokens is not None
    # 40 characters are about 10 tokens.
    assert found.price == pytest.approx((found.query_tokens + 103 * 10 + 2 * 10300) / 1e6)
    assert found.estimated


@pytest.mark.usefixtures("data")
def test_what_a_file_holds(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "thoughts.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"q{i}", "reasoning": "leaf"}) for i in range(4)))
    plan = ReasoningPlan(source=ReasoningFile(file))
    (found,) = estimate(folder, plan, tmp_path)
    assert (found.queries, found.kept, found.most_tokens, found.left_tokens) == (6, 4, 0, 0)
    with pytest.raises(DataError, match="names queries by id alone"):
        estimate(folder, plan, tmp_path, BIOLOGY, ECONOMICS)
    assert RewrittenQueries("gpt4_reason").planned([Query("a")]) == (None, None)


@pytest.mark.usefixtures("data")
def test_the_command_says_it(folder: Path, command: Command, tmp_path: Path) -> None:
    run = ("reason-run", "-m", str(folder), "-t", BIOLOGY, "--dry-run", "--tokens", "0")
    server = ("--endpoint", "http://localhost:1/v1", "--endpoint-model", "org/thinker")
    prices = ("--price-in", "1000", "--price-out", "2000")
    status, out, _ = command(*run, "--tokens", "7", "--tokens", "9", *server, *prices)
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    # Documents with their tokens, as `run --dry-run` has them.
    assert next(line for line in lines if line[:1] == [BIOLOGY])[1:3] == ["6", "40"]
    asked = [line for line in lines if "thinker" in " ".join(line)]
    assert [line[1:3] + line[4:7] for line in asked] == [
        ["thinker-7", "6", "42", "0", "42"],
        ["thinker-9", "6", "54", "0", "54"],
    ]
    total = next(line for line in lines if line[:1] == ["all"])
    assert total[1] == "96"
    assert float(total[2]) > 96 * 2000 / 1e6
    assert not (tmp_path / "results").exists()
    status, out, _ = command(*run, "--tokens", "7")
    assert ("itself-7" in out, "thinker" in out) == (True, False)
    # Refused as the run would be; and what cannot be planned fails.
    status, _, error = command(*run, "--tokens", "7", "-m", "bm25")
    assert (status, "reasoning goes before dense models" in error) == (2, True)
    status, _, error = command(*run, "--tokens", "7", "-t", "STSBenchmark")
    assert status == 1
    assert f"FAILED local/{folder.parent.name}__model on STSBenchmark" in error
