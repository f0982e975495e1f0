"""What a run would do: sizes and token counts, without encoding anything."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, one_line
from reasonembed_mteb.models.instructions import planned_prefix
from reasonembed_mteb.retrieval.rows import max_tokens_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

logger = logging.getLogger(__name__)

# Documents whose tokens are counted, evenly over a corpus: enough to know its size to a few percent.
SAMPLE = 2000
_TOKENIZED = {"dense", "cross-encoder", "late-interaction", "sparse"}


@dataclass(frozen=True)
class TaskPlan:
    """The size of one task for one model.

    Attributes:
        task: Task name.
        prefix: What goes before each query, or None where only the loaded model knows.
        queries: Number of queries.
        documents: Number of documents.
        length: The length in force in tokens, or None for a model without a tokenizer that is known here.
        query_tokens: Tokens of all queries with what goes before them, cut at the length.
        document_tokens: Tokens of all documents, cut at the length; extrapolated where ``sampled``.
        truncated: Share of the documents that are cut.
        sampled: Whether the documents' tokens come from `SAMPLE` documents.
    """

    task: str
    prefix: str | None
    queries: int
    documents: int
    length: int | None = None
    query_tokens: int | None = None
    document_tokens: int | None = None
    truncated: float | None = None
    sampled: bool = False


def plan_models(
    models: Sequence[ModelMeta], tasks: Sequence[AbsTask], limit: int | None = None
) -> list[tuple[list[TaskPlan], list[str]]]:
    """Plan several tasks for several models; the tasks given are left as they are.

    Args:
        models: MTEB metadata.
        tasks: Retrieval tasks.
        limit: Number of queries of a smoke run.

    Returns:
        For each model what `plan_tasks` returns.
    """
    from reasonembed_mteb.evaluation.limits import own_copy

    # Copied before any is loaded.
    copies = [[own_copy(one) for one in tasks] for _ in models]
    return [plan_tasks(meta, own, limit) for meta, own in zip(models, copies, strict=True)]


def models_without_instruction(
    models: Sequence[ModelMeta], tasks: Sequence[AbsTask], instruction: str | None
) -> list[int]:
    """Return which models do not put an instruction that was given for tasks before their queries.

    Args:
        models: MTEB metadata.
        tasks: Tasks with that instruction.
        instruction: The sentence, or None where none was given.

    Returns:
        Places of dense models that put something else there, or nothing.
    """
    if instruction is None or not tasks:
        return []
    prefixes = [planned_prefix(meta, tasks[0].metadata) for meta in models]
    return [
        place
        for place, (meta, prefix) in enumerate(zip(models, prefixes, strict=True))
        if "dense" in (meta.model_type or ()) and prefix is not None and instruction not in prefix
    ]


def plan_tasks(
    meta: ModelMeta, tasks: Sequence[AbsTask], limit: int | None = None
) -> tuple[list[TaskPlan], list[str]]:
    """Plan several tasks; one that cannot be loaded does not stop the others.

    Args:
        meta: The model.
        tasks: Retrieval tasks.
        limit: Number of queries of a smoke run.

    Returns:
        The plans, and one line for each task without one.
    """
    plans, errors = [], []
    for task in tasks:
        try:
            plans.append(plan_task(meta, task, limit))
        except Exception as error:
            logger.debug("planning %s failed", task.metadata.name, exc_info=True)
            errors.append(f"{task.metadata.name}: {one_line(error)}")
    return plans, errors


def plan_task(meta: ModelMeta, task: Any, limit: int | None = None) -> TaskPlan:  # noqa: ANN401 - AbsTaskRetrieval
    """Count what a model would have to encode on one task.

    Args:
        meta: The model.
        task: A retrieval task; it is loaded, and unloaded again.
        limit: Number of queries of a smoke run.

    Returns:
        The counts, over all splits of the task.
    """
    queries, documents, total = _texts(task, limit)
    prefix = planned_prefix(meta, task.metadata)
    task.unload_data()
    tokenizer = load_tokenizer(meta)
    if tokenizer is None:
        return TaskPlan(task.metadata.name, prefix, len(queries), total)
    length = min(max_tokens_for(task.metadata.name), tokenizer.model_max_length)
    asked = _lengths(tokenizer, [(prefix or "") + text for text in queries])
    found = _lengths(tokenizer, documents)
    kept = sum(min(count, length) for count in found)
    return TaskPlan(
        task.metadata.name,
        prefix,
        len(queries),
        total,
        length=length,
        query_tokens=sum(min(count, length) for count in asked),
        document_tokens=round(kept * total / max(len(found), 1)),
        truncated=sum(count > length for count in found) / max(len(found), 1),
        sampled=len(found) < total,
    )


def _texts(task: Any, limit: int | None) -> tuple[list[str], list[str], int]:  # noqa: ANN401
    """Return all queries, a sample of the documents, and the number of documents."""
    if not hasattr(task, "convert_to_reranking"):
        msg = f"{task.metadata.name} is no retrieval task: its size cannot be told before it runs"
        raise ReasonEmbedError(msg)
    if limit:
        from reasonembed_mteb.evaluation.limits import limit_task

        limit_task(task, limit)
    else:
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    splits = [split for group in task.dataset.values() for split in group.values()]
    queries = [text for split in splits for text in split["queries"]["text"]]
    total = sum(len(split["corpus"]) for split in splits)
    step = -(-total // SAMPLE)
    sample = [text for s in splits for text in s["corpus"].select(range(0, len(s["corpus"]), step))["text"]]
    return queries, sample, total


def _lengths(tokenizer: Any, texts: list[str]) -> list[int]:  # noqa: ANN401 - a transformers tokenizer
    if not texts:
        return []
    # Without `verbose=False` transformers warns about each text that is longer than the model takes.
    return [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]


def load_tokenizer(meta: ModelMeta) -> Any:  # noqa: ANN401 - a transformers tokenizer
    """Return a model's tokenizer without its weights, or None where it has none or cannot be had.

    Its ``model_max_length`` is the length that the model's directory sets.

    Args:
        meta: The model.
    """
    from transformers import AutoTokenizer

    if not set(meta.model_type or ()) & _TOKENIZED:
        return None
    path = (meta.loader_kwargs or {}).get("path")
    try:
        if path is not None:
            folder = _tokenizer_folder(Path(path))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.model_max_length = min(tokenizer.model_max_length, _directory_length(folder))
        else:
            tokenizer = AutoTokenizer.from_pretrained(meta.name, revision=meta.revision)
            tokenizer.model_max_length = min(tokenizer.model_max_length, int(meta.max_tokens or 1 << 30))
    except (OSError, ValueError):
        return None
    return tokenizer


def _tokenizer_folder(folder: Path) -> Path:
    """Return the folder of the first module, where sentence-transformers keeps the tokenizer."""
    file = folder / "modules.json"
    modules = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return folder / modules[0]["path"] if modules else folder


def _directory_length(folder: Path) -> int:
    """Return the length that a sentence-transformers directory sets next to its tokenizer."""
    file = folder / "sentence_bert_config.json"
    length = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length") if file.is_file() else None
    return int(length or 1 << 30)
