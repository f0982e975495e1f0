"""Runs of models that reason first: names, records, caches, and never a table with single models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from conftest import save_decoder
from evaluation_data import BIOLOGY, ECONOMICS, WORDS

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation import resolving, runner
from reasonembed_mteb.evaluation.chapter_files import chapter_files
from reasonembed_mteb.evaluation.reasoning_record import read_reasoning_run
from reasonembed_mteb.reasoning.generation import Decoding
from reasonembed_mteb.reasoning.latents import add_latents
from reasonembed_mteb.reasoning.reasoner import SelfReasoning
from reasonembed_mteb.reasoning.running import ReasoningModel, ReasoningPlan
from reasonembed_mteb.reasoning.sources import ReasoningFile

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("registered", "data")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("running")
    add_latents(str(save_decoder(made / "bare", "qwen2")), 2, made / "model")
    return made / "model"


def score(
    folder: Path,
    output: Path,
    plan: ReasoningPlan | None,
    *tasks: str,
    note: str = "",
    **options: Any,
) -> tuple[list[runner.Outcome], list[str]]:
    said: list[str] = []
    chosen = runner.RunOptions(output, device="cpu", progress=False, store=output / "vectors", **options)
    model = ReasoningModel(resolving.resolve_model(str(folder)), plan, output / "kept")
    return model.run(resolving.resolve_tasks([], tasks or [BIOLOGY]), chosen, said.append, note), said


def records(output: Path) -> dict[str, Any]:
    found = [read_reasoning_run(file) for file in chapter_files(output, "reasoning")]
    return {run.system: run for run in found}


@pytest.mark.slow
def test_a_model_with_and_without_reasoning_are_two(folder: Path, tmp_path: Path) -> None:
    (plain,), _ = score(folder, tmp_path, None)
    (outcome,), _ = score(folder, tmp_path, ReasoningPlan(Decoding(6)))
    held = records(tmp_path)
    alone, run = held[plain.model], held[outcome.model]
    assert (alone.source, alone.max_tokens, alone.latents) == ("none", 0, 2)
    assert alone.tasks[BIOLOGY].score == pytest.approx(plain.score)
    assert (run.base, run.base_revision, run.latents) == (plain.model, alone.base_revision, 2)


def test_a_run_has_a_name_and_a_record_of_its_own(folder: Path, tmp_path: Path) -> None:
    (outcome,), _ = score(folder, tmp_path, ReasoningPlan(Decoding(6)), note="a check")
    base = resolving.resolve_model(str(folder))
    assert str(base.name).startswith("local/")
    assert outcome.model == f"reasoning/{str(base.name).rpartition('/')[2]}-itself-6"
    assert outcome.score is not None
    run = records(tmp_path)[outcome.model]
    assert (run.base, run.base_revision, run.latents) == (base.name, base.revision, 2)
    assert (run.source, run.max_tokens, run.note) == ("itself", 6, "a check")
    task = run.tasks[BIOLOGY]
    assert task.score == pytest.approx(outcome.score)
    assert (task.queries, sum(task.stops.values())) == (6, 6)
    assert 6 <= task.tokens <= 36
    assert task.seconds > 0
    (file,) = tmp_path.glob("reasonings/*/*/reasonings.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(6)]
    assert sum(row["tokens"] for row in rows) == task.tokens
    assert len((file.parent / "seconds.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
def test_what_is_recorded_is_taken_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ReasoningPlan(Decoding(6))
    score(folder, tmp_path, plan)
    monkeypatch.setattr(SelfReasoning, "_generate", None)
    (again,), _ = score(folder, tmp_path, plan)
    assert again.cached
    # A score without its record is run again; what was generated is there.
    (file,) = chapter_files(tmp_path, "reasoning")
    before = file.read_text()
    file.unlink()
    (again,), _ = score(folder, tmp_path, plan)
    assert not again.cached
    assert file.read_text() == before
    # So is one task more, whose reasonings are not.
    outcomes, _ = score(folder, tmp_path, plan, BIOLOGY, ECONOMICS)
    assert outcomes[0].cached
    assert "NoneType" in str(outcomes[1].error)


@pytest.mark.slow
def test_documents_are_encoded_once_for_all(folder: Path, tmp_path: Path) -> None:
    score(folder, tmp_path, None)
    shards = sorted((tmp_path / "vectors").rglob("*"))
    score(folder, tmp_path, ReasoningPlan(Decoding(6)))
    assert sorted((tmp_path / "vectors").rglob("*")) == shards


def test_another_prompt_is_another_revision(folder: Path, tmp_path: Path) -> None:
    base = resolving.resolve_model(str(folder))
    plans = [
        ReasoningPlan(Decoding(6)),
        ReasoningPlan(Decoding(6), prompt="{query}: "),
        ReasoningPlan(Decoding(6, temperature=1.0)),
    ]
    metas = [ReasoningModel(base, plan, tmp_path).meta for plan in plans]
    assert len({meta.name for meta in metas}) == 1
    assert len({meta.revision for meta in metas}) == 3
    assert base.revision not in {meta.revision for meta in metas}


@pytest.mark.slow
def test_two_prompts_have_a_record_each(folder: Path, tmp_path: Path) -> None:
    score(folder, tmp_path, ReasoningPlan(Decoding(6)))
    score(folder, tmp_path, ReasoningPlan(Decoding(6), prompt="{query}: "))
    assert len(chapter_files(tmp_path, "reasoning")) == 2


@pytest.mark.slow
def test_reasonings_from_a_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "thoughts.jsonl"
    rows = [{"task": BIOLOGY, "id": f"q{i}", "reasoning": WORDS[i]} for i in range(6)]
    file.write_text("\n".join(map(json.dumps, rows)))
    plan = ReasoningPlan(source=ReasoningFile(file))
    (outcome,), _ = score(folder, tmp_path / "out", plan)
    assert outcome.model.endswith("-thoughts")
    run = records(tmp_path / "out")[outcome.model]
    assert (run.source, run.max_tokens) == ("thoughts", None)
    assert run.tasks[BIOLOGY].stops == {"given": 6}
    file.write_text("\n".join(map(json.dumps, rows[1:])))
    (outcome,), _ = score(folder, tmp_path / "out", ReasoningPlan(source=ReasoningFile(file)))
    assert "no reasoning for 1 of 6 queries (q0)" in str(outcome.error)


def test_plans_that_cannot_be(folder: Path, tmp_path: Path, cross: Path) -> None:
    base = resolving.resolve_model(str(folder))
    for plan, said in (
        (ReasoningPlan(), "nothing reasons"),
        (ReasoningPlan(Decoding(0)), "0 reasoning tokens"),
        (ReasoningPlan(Decoding(4), prompt="none"), "once, where the query goes"),
    ):
        with pytest.raises(ReasonEmbedError, match=said):
            ReasoningModel(base, plan, tmp_path)
    with pytest.raises(ReasonEmbedError, match=r"dense models, and .* is cross-encoder"):
        ReasoningModel(resolving.resolve_model(str(cross)), None, tmp_path)


def test_an_embedder_that_is_no_decoder(bert: Path, tmp_path: Path) -> None:
    (outcome,), _ = score(bert, tmp_path, ReasoningPlan(Decoding(4)))
    assert "is no decoder" in str(outcome.error)
