"""The published checkpoints' metadata, and what their loader sends to the tokenizer.

A small random decoder stands in for the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mteb
import pytest
import torch
from mteb.types import PromptType

from reasonembed_mteb.errors import UnknownNameError
from reasonembed_mteb.models import zoo
from reasonembed_mteb.models.mteb_encoder import ReasonEmbedEncoder, load_other
from reasonembed_mteb.retrieval.rows import find, load_rows, max_tokens_for, task_instructions

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def meta(qwen3_dir: Path) -> Any:
    """Make a published checkpoint's metadata load the small decoder."""
    original = zoo.model_meta("hanhainebula/reason-embed-qwen3-8b-0928")
    return original.model_copy(update={"loader_kwargs": original.loader_kwargs | {"path": str(qwen3_dir)}})


@pytest.fixture(scope="module")
def encoder(meta: Any) -> ReasonEmbedEncoder:
    """Load the small decoder as mteb does."""
    loaded = meta.load_model(device="cpu")
    assert isinstance(loaded, ReasonEmbedEncoder)
    return loaded


def seen_texts(
    encoder: ReasonEmbedEncoder, name: str, kind: PromptType, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Encode one text on a task; return the text at the tokenizer and the length in force."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    seen: list[Any] = []
    tokenizer = type(encoder.model.tokenizer)
    original = tokenizer.__call__

    def spy(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        seen.append((text, encoder.model.max_seq_length))
        return original(self, text, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "__call__", spy)
        data = DataLoader(Dataset.from_dict({"text": ["Why is the sky blue?"]}), batch_size=1)
        encoder.encode(
            data, task_metadata=mteb.get_task(name).metadata, prompt_type=kind, hf_split="", hf_subset=""
        )
    # sentence-transformers also tokenizes the prompt alone, to know its length.
    (found,) = {(tuple(text), length) for text, length in seen if isinstance(text, list) and "sky" in text[0]}
    return found


PAPERS = [row for row in load_rows() if row.family in ("BRIGHT", "BRIGHT-Pro", "R2MED")]
OURS = [row.name for row in PAPERS if not row.is_mtebs]
MTEBS = sorted({name for row in PAPERS for name in row.all_names} - set(OURS))
# One of each other benchmark.
OTHERS = list({row.benchmark: row.name for row in load_rows() if row not in PAPERS}.values())


def test_there_are_as_many_names_as_the_protocol_has() -> None:
    assert len(OURS) == 28 + 7 + 5 * 12
    assert len(MTEBS) == 12 + 8 + 7 + 8


@pytest.mark.parametrize("name", OURS + MTEBS + OTHERS)
def test_the_text_at_the_tokenizer(
    name: str, encoder: ReasonEmbedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The instructions themselves are compared with the protocol in test_tables.
    instruction = task_instructions()[name]
    # A protocol without an instruction has nothing before the query.
    expected = (
        f"Instruct: {instruction}\nQuery: Why is the sky blue?" if instruction else "Why is the sky blue?"
    )
    length = {"R2MED": 512, "MIRB": 4096, "FreshStack": 2048}.get(find(name).family, 8192)
    model_length = min(length, encoder.model.max_seq_length)
    assert seen_texts(encoder, name, PromptType.query, monkeypatch) == ((expected,), model_length)
    documents = seen_texts(encoder, name, PromptType.document, monkeypatch)
    assert documents == (("Why is the sky blue?",), model_length)
    assert max_tokens_for(name) == length


def test_other_tasks_keep_their_own_instruction(
    encoder: ReasonEmbedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, length = seen_texts(encoder, "NFCorpus", PromptType.query, monkeypatch)
    prompt = mteb.get_task("NFCorpus").metadata.prompt["query"]
    assert texts == (f"Instruct: {prompt}\nQuery: Why is the sky blue?",)
    assert length == 8192


def test_the_revision_is_what_was_loaded(encoder: ReasonEmbedEncoder, qwen3_dir: Path) -> None:
    from reasonembed_mteb.models.folders import content_revision

    assert encoder.mteb_model_meta.revision == content_revision(qwen3_dir)


FIRST, *OTHERS = (checkpoint.name for checkpoint in zoo.CHECKPOINTS)


@pytest.mark.parametrize("name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_mock_run_passes(name: str, qwen3_dir: Path) -> None:
    original = zoo.model_meta(name)
    loader_kwargs = original.loader_kwargs | {"path": str(qwen3_dir)}
    model = original.model_copy(update={"loader_kwargs": loader_kwargs}).load_model(device="cpu")
    results = mteb.mock_run(model)
    failed = {task: str(status) for task, status in results.items() if type(status).__name__ == "TaskError"}
    assert not failed
    assert any(type(status).__name__ == "TaskResult" for _, status in results.items())


def test_weights_are_float32_on_a_cpu(encoder: ReasonEmbedEncoder) -> None:
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}


def test_a_bare_decoder_folder_loads_with_the_right_modules(qwen3_dir: Path) -> None:
    meta = zoo.local_meta(qwen3_dir)
    model = meta.load_model(device="cpu").model
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]


def test_a_changed_folder_is_refused(qwen3_dir: Path) -> None:
    from reasonembed_mteb.errors import ReasonEmbedError

    with pytest.raises(ReasonEmbedError, match="changed while it was being loaded"):
        load_other("local/x", "0" * 40, path=str(qwen3_dir), kind="dense")


def test_an_unknown_checkpoint_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'hanhainebula/reason-embed-qwen3-8b-0928'"):
        zoo.model_meta("hanhainebula/reason-embed-qwen3-8b")


def test_another_revision_than_a_folders_content_is_refused(qwen3_dir: Path) -> None:
    from mteb.models import ModelMeta

    from reasonembed_mteb.errors import ReasonEmbedError

    own = ModelMeta.from_hub(str(qwen3_dir)).revision
    assert ModelMeta.from_hub(str(qwen3_dir), own).revision == own
    with pytest.raises(ReasonEmbedError, match=f"is {own}, not 'main'"):
        ModelMeta.from_hub(str(qwen3_dir), "main")


def test_an_object_changed_in_memory_has_another_revision(qwen3_dir: Path) -> None:
    from mteb.models import ModelMeta

    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    seen = [ModelMeta.from_sentence_transformer_model(model).revision]
    assert seen == [ModelMeta.from_sentence_transformer_model(model).revision]
    model.max_seq_length = 100
    seen.append(ModelMeta.from_sentence_transformer_model(model).revision)
    model.truncate_dim = 8
    seen.append(ModelMeta.from_sentence_transformer_model(model).revision)
    model.prompts = {"query": "ask: "}
    seen.append(ModelMeta.from_sentence_transformer_model(model).revision)
    next(model.parameters()).data.add_(1)
    seen.append(ModelMeta.from_sentence_transformer_model(model).revision)
    assert len(set(seen)) == len(seen)


@pytest.mark.slow
def test_models_loaded_without_mteb_get_their_own_scores(qwen3_dir: Path, tmp_path: Path) -> None:
    from mteb.cache import ResultCache

    from reasonembed_mteb.models.mteb_encoder import load_reason_embed
    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    other = ReasonEmbed(str(qwen3_dir), device="cpu")
    next(other.parameters()).data.mul_(2)
    other.save(str(tmp_path / "other"))
    task, cache = mteb.get_task("ReasonMiniPony"), ResultCache(tmp_path / "cache")
    seen = {}
    for folder, options in (
        (qwen3_dir, {}),
        (tmp_path / "other", {}),
        (qwen3_dir, {"instruction_template": "{instruction} "}),
        (qwen3_dir, {"max_tokens": 64}),
        (qwen3_dir, {"embed_dim": 8}),
        (qwen3_dir, {"model_kwargs": {"dtype": torch.bfloat16}}),
    ):
        model = load_reason_embed("a/b", path=str(folder), device="cpu", **options)
        own = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
        kept = mteb.evaluate(model, task, cache=cache, co2_tracker=False, show_progress_bar=False)
        assert kept.task_results[0].get_score() == own.task_results[0].get_score(), options
        seen[model.mteb_model_meta.name, model.mteb_model_meta.revision] = options
    assert len(seen) == 6
    assert {name for name, _ in seen} == {zoo.local_meta(one).name for one in (qwen3_dir, tmp_path / "other")}
    # The same again has the same name, so that its scores are found.
    again = load_reason_embed("a/b", path=str(qwen3_dir), device="cpu").mteb_model_meta
    assert seen[again.name, again.revision] == {}
