"""What a run would do: sizes and token counts, without encoding anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

# Enough to know a corpus' lengths to a few percent; counted evenly over the corpus.
SAMPLE = 2000


@dataclass(frozen=True)
class Plan:
    """The size of one task for one model.

    Attributes:
        task: Task name.
        queries: Number of queries.
        documents: Number of documents.
        query_tokens: Tokens of all queries, instruction included; None for a model without a tokenizer.
        document_tokens: Tokens of all documents, cut at the length in force; extrapolated from a sample
            where there are more than `SAMPLE` documents.
        truncated: Share of the documents that are cut.
        sampled: Whether the documents' tokens come from a sample.
        length: The length in force.
    """

    task: str
    queries: int
    documents: int
    query_tokens: int | None
    document_tokens: int | None
    truncated: float | None
    sampled: bool
    length: int | None


def plan_task(meta: ModelMeta, task: Any, prefix: str) -> Plan:  # noqa: ANN401 - AbsTaskRetrieval
    """Count what a model would have to encode on one task.

    Args:
        meta: The model.
        task: A retrieval task; it is loaded, and unloaded again.
        prefix: What goes before each query.

    Returns:
        The counts.
    """
    from reasonembed_mteb.retrieval.tables import max_tokens_for

    task.load_data()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    split = next(iter(next(iter(task.dataset.values())).values()))
    queries, corpus = split["queries"], split["corpus"]
    tokenizer = load_tokenizer(meta)
    sizes = (task.metadata.name, len(queries), len(corpus))
    if tokenizer is None:
        plan = Plan(*sizes, None, None, None, sampled=False, length=None)
    else:
        length = min(max_tokens_for(task.metadata.name), tokenizer.model_max_length)
        step = max(1, len(corpus) // SAMPLE)
        rows = range(0, len(corpus), step)
        found = _lengths(tokenizer, list(corpus.select(rows)["text"]))
        cut = [min(count, length) for count in found]
        asked = _lengths(tokenizer, [prefix + text for text in queries["text"]])
        plan = Plan(
            *sizes,
            query_tokens=sum(min(count, length) for count in asked),
            document_tokens=round(sum(cut) * len(corpus) / max(len(cut), 1)),
            truncated=sum(count > length for count in found) / max(len(found), 1),
            sampled=step > 1,
            length=length,
        )
    task.unload_data()
    return plan


def _lengths(tokenizer: Any, texts: list[str]) -> list[int]:  # noqa: ANN401 - a transformers tokenizer
    if not texts:
        return []
    # Without `verbose=False` transformers warns about each text that is longer than the model takes.
    return [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]


def load_tokenizer(meta: ModelMeta) -> Any:  # noqa: ANN401 - a transformers tokenizer
    """Return a model's tokenizer without its weights, or None where it has none.

    Args:
        meta: The model.
    """
    from transformers import AutoTokenizer

    if not set(meta.model_type or ()) & {"dense", "cross-encoder", "late-interaction"}:
        return None
    source = (meta.loader_kwargs or {}).get("path") or meta.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=None if source != meta.name else meta.revision)
    except (OSError, ValueError):
        return None
    tokenizer.model_max_length = min(tokenizer.model_max_length, _directory_length(source))
    return tokenizer


def _directory_length(source: str) -> int:
    """Return the length that a sentence-transformers directory sets beside its tokenizer."""
    import json
    from pathlib import Path

    file = Path(source) / "sentence_bert_config.json"
    length = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length") if file.is_file() else None
    return length or 1 << 30


def planned_prefix(meta: ModelMeta, task: AbsTask) -> str:
    """Return what goes before each query, as far as metadata alone tells.

    Args:
        meta: The model.
        task: The task.
    """
    import json
    from pathlib import Path

    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    from reasonembed_mteb.prompts import QUERY_TEMPLATE, query_prefix
    from reasonembed_mteb.retrieval.tables import task_instructions
    from reasonembed_mteb.zoo import CHECKPOINTS

    chosen = meta.experiment_kwargs or {}
    instruction = task_instructions().get(task.metadata.name, "")
    if chosen.get("no_instruction"):
        return ""
    if "instruction_template" in chosen or meta.name in {checkpoint.name for checkpoint in CHECKPOINTS}:
        return query_prefix(instruction, str(chosen.get("instruction_template", QUERY_TEMPLATE)))
    loader_kwargs = meta.loader_kwargs or {}
    if "path" in loader_kwargs:
        file = Path(loader_kwargs["path"]) / "config_sentence_transformers.json"
        prompts = json.loads(file.read_text(encoding="utf-8")).get("prompts", {}) if file.is_file() else {}
        return prompts.get(get_prompt_name(prompts, task.metadata, PromptType.query) or "") or ""
    template = loader_kwargs.get("instruction_template")
    return query_prefix(instruction, template) if isinstance(template, str) else ""
