"""The plan of a run: sizes, tokens and prefixes before anything is encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mteb
import pytest
from evaluation_data import (
    BIOLOGY,
    BIOLOGY_INSTRUCTION,
    ECONOMICS,
    write_subset,
)

from reasonembed_mteb.evaluation import plan as planning
from reasonembed_mteb.evaluation import resolving, runner
from reasonembed_mteb.retrieval.sources import nothing_fetched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Score = Callable[..., tuple[list[runner.Outcome], list[str]]]


pytestmark = pytest.mark.usefixtures("registered")


def test_plan_counts_what_would_be_encoded(bert: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_subset(data, "biology", last=" salt" * 60)
    meta = resolving.resolve_model(str(bert), template="cell {instruction} ")
    tokens = len(BIOLOGY_INSTRUCTION.replace(".", " .").replace(",", " ,").split()) + 1
    plan = planning.plan_task(meta, mteb.get_task(BIOLOGY))
    assert (plan.queries, plan.documents, plan.length) == (6, 40, 32)
    assert plan.query_tokens == 6 * (3 + tokens)
    assert plan.document_tokens == 39 * 3 + 32
    assert plan.truncated == pytest.approx(1 / 40)
    assert not plan.sampled
    assert planning.plan_task(meta, mteb.get_task(BIOLOGY), limit=1).queries == 1
    monkeypatch.setattr(planning, "SAMPLE", 13)
    sampled = planning.plan_task(meta, mteb.get_task(BIOLOGY))
    # Every fourth document, without the long one at the end.
    assert (sampled.sampled, sampled.document_tokens) == (True, 40 * 3)


def test_what_tasks_share_is_told_by_the_texts_that_are_here(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BRIGHT's AoPS and TheoremQA share their documents as published; local copies may differ."""
    other = tmp_path / "other"
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(other))
    for subset, last in (("aops", ""), ("theoremqa_questions", " salt"), ("biology", "")):
        write_subset(other, subset, last=last)
    meta = resolving.resolve_model("bm25s")
    names = ("ReasonEmbedBrightAops", "ReasonEmbedBrightTheoremQAQuestions", BIOLOGY)
    aops, theorems, biology = (planning.plan_task(meta, mteb.get_task(name)) for name in names)
    assert aops.same_documents != theorems.same_documents
    assert aops.same_documents == biology.same_documents
    assert aops.same_queries == theorems.same_queries == biology.same_queries


def test_a_model_without_instruction_is_not_run_twice(bert: Path) -> None:
    """A task without instruction, or a model that takes none, leaves nothing to ablate."""
    none, own = mteb.get_task("ReasonEmbedBarExamQAFull"), mteb.get_task(BIOLOGY)
    plain = resolving.resolve_model(str(bert), template="cell {instruction} ")
    both = resolving.Variants(ablate_instruction=True).of([plain])
    assert planning.without_idle_ablations(both, [own]) == (both, [])
    kept, (line,) = planning.without_idle_ablations(both, [own, none])
    assert kept == both
    assert (
        "nothing before the queries of 1 of 2 tasks (ReasonEmbedBarExamQAFull) as it is: its scores" in line
    )
    kept, (line,) = planning.without_idle_ablations(both, [none])
    assert kept == [plain]
    assert line.endswith("as it is: it is not run a second time")


def test_plan_of_a_model_without_tokenizer_and_of_broken_data(data: Path) -> None:
    (data / "examples/economics-00000-of-00001.parquet").unlink()
    tasks = [mteb.get_task(name) for name in (ECONOMICS, BIOLOGY, "STS12")]
    (plan,), errors = planning.plan_tasks(resolving.resolve_model("bm25s"), tasks)
    assert (plan.task, plan.queries, plan.length, plan.query_tokens) == (BIOLOGY, 6, None, None)
    assert len(errors) == 2
    assert "examples/economics-*.parquet" in errors[0]
    assert "no retrieval task" in errors[1]


def test_plan_without_data_has_published_sizes(bert: Path) -> None:
    meta = resolving.resolve_model(str(bert), template="cell {instruction} ")
    reader = planning.Reader(meta)
    ratio = reader.characters_a_token
    texts = planning.mini_texts()
    assert ratio == pytest.approx(
        sum(map(len, texts)) / sum(len(reader.tokenizer(t)["input_ids"]) for t in texts)
    )
    plan = planning.plan_task(meta, mteb.get_task(BIOLOGY), reader=reader)
    assert plan.published
    assert (plan.queries, plan.documents, plan.length) == (103, 57_359, 32)
    # 329 characters a document are more than the model's 32 tokens.
    assert plan.document_tokens == 57_359 * min(18_882_181 / 57_359 / ratio, 32)
    arc = planning.plan_task(meta, mteb.get_task("ARCChallenge"), reader=reader)
    assert arc.document_tokens == pytest.approx(289_311 / ratio, abs=1)
    limited = planning.plan_task(meta, mteb.get_task(BIOLOGY), limit=2)
    assert (limited.queries, limited.documents) == (2, 40)
    without = planning.plan_task(resolving.resolve_model("bm25s"), mteb.get_task(BIOLOGY))
    assert (without.queries, without.document_tokens, without.length) == (103, None, None)


def test_plan_names_a_task_of_which_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    task = mteb.get_task("NFCorpus")
    monkeypatch.setattr(type(task.metadata), "descriptive_stats", None)
    _, (line,) = planning.plan_tasks(resolving.resolve_model("bm25s"), [task])
    assert "its data are not here and its size is not published" in line


def test_plans_fetch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    places = (datasets.config, huggingface_hub.constants)
    for place in places:
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    with nothing_fetched():
        assert all(place.HF_HUB_OFFLINE for place in places)
    assert not any(place.HF_HUB_OFFLINE for place in places)
