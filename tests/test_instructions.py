"""What goes before a query: the same in the plan, at the tokenizer and in the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mteb
import pytest
from evaluation_data import (
    BIOLOGY,
    BIOLOGY_INSTRUCTION,
    ECONOMICS,
    ECONOMICS_INSTRUCTION,
    TEMPLATE,
)
from mteb.types import PromptType

from reasonembed_mteb.evaluation import resolving
from reasonembed_mteb.evaluation.plan import plan_task
from reasonembed_mteb.models import instructions as prefixes
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.retrieval.beir_task import beir_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mteb.abstasks.task_metadata import TaskMetadata

pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.parametrize(
    ("resolve", "expected"),
    [
        ({}, {BIOLOGY: "cell ", ECONOMICS: "leaf "}),
        ({"no_instruction": True}, {BIOLOGY: "", ECONOMICS: ""}),
        (
            {"template": TEMPLATE},
            {
                BIOLOGY: f"Instruct: {BIOLOGY_INSTRUCTION}\nQuery: ",
                ECONOMICS: f"Instruct: {ECONOMICS_INSTRUCTION}\nQuery: ",
            },
        ),
    ],
)
def test_the_prefix_told_before_a_run_is_the_one_that_the_model_gets(
    prompted: Path, resolve: dict[str, Any], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = resolving.resolve_model(str(prompted), **resolve)
    model = meta.load_model(device="cpu")
    for name, prefix in expected.items():
        task = mteb.get_task(name)
        assert prefixes.planned_prefix(meta, task.metadata) == prefix
        assert prefixes.loaded_prefix(model, task.metadata) == prefix
        assert given_prefix(model, task, monkeypatch) == prefix


def given_prefix(model: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what sentence-transformers is told to put before a query."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    seen = []
    inner = model.model._inference

    def spy(texts: list[str], *, prompt: str | None, **kwargs: Any) -> Any:
        assert texts == ["salt"]
        seen.append(prompt or "")
        return inner(texts, prompt=prompt, **kwargs)

    loader = DataLoader(Dataset.from_dict({"text": ["salt"]}))
    kind = PromptType.query
    with monkeypatch.context() as patched:
        patched.setattr(model.model, "_inference", spy)
        model.encode(loader, task_metadata=task.metadata, prompt_type=kind, hf_split="", hf_subset="")
    (prefix,) = seen
    return prefix


def test_prefixes_of_registered_models_are_told_without_loading() -> None:
    biology = mteb.get_task(BIOLOGY).metadata
    native = mteb.get_task("BrightBiologyRetrieval").metadata

    def planned(name: str, task: TaskMetadata = biology) -> str | None:
        return prefixes.planned_prefix(resolving.resolve_model(name), task)

    instructed = f"Instruct: {BIOLOGY_INSTRUCTION}\nQuery: "
    assert planned("hanhainebula/reason-embed-qwen3-8b-0928") == instructed
    assert planned("hanhainebula/reason-embed-qwen3-8b-0928", native) == instructed
    assert planned("intfloat/multilingual-e5-large-instruct") == instructed
    assert planned("intfloat/e5-small-v2") == "query: "
    assert planned("bm25s") == ""
    # Its loader builds the prompt in code of its own.
    assert planned("Qwen/Qwen3-Embedding-0.6B") is None
    assert prefixes.describe_prefix(instructed).endswith(r"post.\nQuery: ")
    assert prefixes.describe_prefix("") == "none"


ASKED = "Given a riddle, retrieve its answer."


def sent(model: Any, task: Any, texts: list[str], kind: PromptType) -> tuple[set[str], int]:
    """Encode as mteb does; return what was put before the texts, and the tokens that were read."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    seen = set()
    inner = model.model._inference

    def spy(texts: list[str], *, prompt: str | None, **kwargs: Any) -> Any:
        seen.add(prompt or "")
        return inner(texts, prompt=prompt, **kwargs)

    model.model._inference = spy
    loader = DataLoader(Dataset.from_dict({"text": texts}), batch_size=8)
    model.encode(loader, task_metadata=task.metadata, prompt_type=kind, hf_split="", hf_subset="")
    del model.model._inference
    return seen, int(model.model.last_token_counts.sum())


def riddles(folder: Path, instruction: str | None) -> Any:
    """Return a BEIR folder's task."""
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "title": "", "text": "cell leaf water light"}\n')
    (folder / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "sun moon"}\n{"_id": "q2", "text": "star"}\n'
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t1\n")
    return beir_task(folder, instruction=instruction)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("model", "task", "options", "expected"),
    [
        ("qwen3_dir", BIOLOGY, {}, f"Instruct: {BIOLOGY_INSTRUCTION}\nQuery: "),
        ("qwen3_dir", BIOLOGY, {"no_instruction": True}, ""),
        ("qwen3_dir", BIOLOGY, {"template": "{instruction} :"}, f"{BIOLOGY_INSTRUCTION} :"),
        ("qwen3_dir", "beir", {}, f"Instruct: {ASKED}\nQuery: "),
        ("qwen3_dir", "beir, not instructed", {}, f"Instruct: {prefixes._GENERIC_INSTRUCTION}\nQuery: "),
        ("prompted", BIOLOGY, {}, "cell "),
        ("prompted", "beir", {}, "leaf "),
        ("prompted", "beir", {"template": TEMPLATE}, f"Instruct: {ASKED}\nQuery: "),
        ("bert", "beir", {}, ""),
    ],
)
def test_what_the_plan_announces_is_what_is_sent(
    model: str,
    task: str,
    options: dict[str, Any],
    expected: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    instruction = None if "not" in task else ASKED

    def made() -> Any:
        return riddles(tmp_path, instruction) if "beir" in task else mteb.get_task(task)

    one = made()
    meta = resolving.resolve_model(str(request.getfixturevalue(model)), **options)
    one.load_data()
    one.convert_v1_dataset_format_to_v2(num_proc=None)
    (split,) = one.dataset["default"].values()
    queries, documents = list(split["queries"]["text"]), list(split["corpus"]["text"])
    plan = plan_task(meta, one)
    loaded = meta.load_model(device="cpu")
    assert sent(loaded, one, queries, PromptType.query) == ({expected}, plan.query_tokens)
    assert sent(loaded, one, documents, PromptType.document) == ({""}, plan.document_tokens)
    assert plan.prefix == expected


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.encode_query("why?"),
        lambda model: model.encode_query("why?", prompt_name="query"),
        lambda model: model.encode("why?", prompt_name="query"),
        lambda model: model.encode(["why?", "how?"]),
    ],
)
def test_every_way_to_ask_without_an_instruction_is_said_once(
    ask: Callable[[ReasonEmbed], object], qwen3_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    ask(model)
    ask(model)
    assert caplog.text.count("without an instruction") == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.encode_query("why?", task="biology"),
        lambda model: model.encode_query("why?", prompt_name=f"{BIOLOGY}-query"),
        lambda model: model.encode_document("because"),
        lambda model: model.encode("because", prompt=""),
        lambda model: model.encode("because", prompt_name="document"),
    ],
)
def test_what_needs_no_instruction_or_has_one_is_not_said(
    ask: Callable[[ReasonEmbed], object], qwen3_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask(ReasonEmbed(str(qwen3_dir), device="cpu"))
    assert "without an instruction" not in caplog.text


def test_the_example_of_a_model_card_neither_warns_nor_spends_the_warning(
    qwen3_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "README.md").is_file()
    assert "without an instruction" not in caplog.text
    model.encode_query("why?")
    assert caplog.text.count("without an instruction") == 1
    model.save_pretrained(str(tmp_path / "again"))
    model.encode_query("why?")
    assert caplog.text.count("without an instruction") == 1
