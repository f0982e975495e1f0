"""What a run would do: sizes and token counts, without encoding or downloading anything.

Data that are here (next to their table, in a local copy or in the hub's cache) are counted; of the others the
published sizes hold, and tokens are estimated from mean lengths in characters.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, first_names, one_line
from reasonembed_mteb.evaluation.sizes import published_size
from reasonembed_mteb.files import fingerprint
from reasonembed_mteb.models.instructions import ABLATED, planned_prefix
from reasonembed_mteb.retrieval.rows import max_tokens_for
from reasonembed_mteb.retrieval.sources import local_copy, nothing_fetched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.sizes import Size

logger = logging.getLogger(__name__)

# Documents whose tokens are counted, evenly over a corpus: enough to know its size to a few percent.
SAMPLE = 2000
_TOKENIZED = {"dense", "cross-encoder", "late-interaction", "sparse"}
# Documents of the embedded benchmark by which characters are turned into tokens.
_MINI = "ReasonMini"
# Of English where no tokenizer is at hand: all-MiniLM's has 4.4 on BRIGHT's answers.
CHARACTERS_A_TOKEN = 4.0
# What `evaluation.limits` keeps of a smoke run's documents, gold ones apart.
_LIMITED = 20


@dataclass(frozen=True)
class TaskPlan:
    """The size of one task for one model.

    Attributes:
        task: Task name.
        prefix: What goes before each query, or None where only the loaded model knows.
        queries: Number of queries; None where nobody says.
        documents: Number of documents; None where nobody says.
        length: The length in force in tokens, or None for a model without a tokenizer that is known here.
        query_tokens: Tokens of all queries with what goes before them, cut at the length.
        document_tokens: Tokens of all documents, cut at the length; extrapolated where ``sampled``.
        truncated: Share of the documents that are cut.
        sampled: Whether the documents' tokens come from `SAMPLE` documents.
        published: Whether the data are not here: numbers are the published ones, tokens are estimated.
        same_queries: Equal for tasks with the same queries: by the texts that are here, or as published; see
            `reasonembed_mteb.evaluation.sizes`.
        same_documents: Likewise for documents; of many, a sample is compared.
    """

    task: str
    prefix: str | None
    queries: int | None
    documents: int | None
    length: int | None = None
    query_tokens: int | None = None
    document_tokens: int | None = None
    truncated: float | None = None
    sampled: bool = False
    published: bool = False
    same_queries: str = ""
    same_documents: str = ""


class Reader:
    """A model's tokenizer, loaded when it is first needed and once; missing ones are looked for once too."""

    def __init__(self, meta: ModelMeta) -> None:
        """Load nothing yet.

        Args:
            meta: The model.
        """
        self._meta = meta

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401 - a transformers tokenizer
        """See `load_tokenizer`."""
        return load_tokenizer(self._meta)

    @cached_property
    def characters_a_token(self) -> float:
        """Of the embedded benchmark's documents; `CHARACTERS_A_TOKEN` without a tokenizer."""
        if self.tokenizer is None:
            return CHARACTERS_A_TOKEN
        texts = list(mini_texts())
        return sum(map(len, texts)) / sum(_lengths(self.tokenizer, texts))

    @property
    def longest(self) -> int:
        """Tokens that the model takes, as far as that is known without its weights."""
        if self.tokenizer is not None:
            return int(self.tokenizer.model_max_length)
        return int(self._meta.max_tokens or 1 << 30)


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


def without_idle_ablations(
    models: Sequence[ModelMeta], tasks: Sequence[AbsTask]
) -> tuple[list[ModelMeta], list[str]]:
    """Leave out models without instruction that would repeat the scores of the plain model.

    Args:
        models: MTEB metadata; some perhaps of `reasonembed_mteb.evaluation.variants.without_instruction`.
        tasks: The tasks.

    Returns:
        The models that are left, and a line for each that has no instruction to take away: on all tasks, so
        that it is left out, or on some, on which its score is the plain model's.
    """
    kept, lines = [], []
    for meta in models:
        chosen = dict(meta.experiment_kwargs or {})
        if not chosen.pop(ABLATED, False):
            kept.append(meta)
            continue
        plain = meta.model_copy(update={"experiment_kwargs": chosen or None})
        bare = [task.metadata.name for task in tasks if planned_prefix(plain, task.metadata) == ""]
        if len(bare) < len(tasks):
            kept.append(meta)
        if bare:
            which = f"the queries of {len(bare)} of {len(tasks)} tasks ({first_names(bare)})"
            result = "its scores are equal there" if len(bare) < len(tasks) else "it is not run a second time"
            lines.append(f"--ablate-instruction: {meta.name} puts nothing before {which} as it is: {result}")
    return kept, lines


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
    reader = Reader(meta)
    for task in tasks:
        try:
            plans.append(plan_task(meta, task, limit, reader))
        except Exception as error:
            logger.debug("planning %s failed", task.metadata.name, exc_info=True)
            errors.append(f"{task.metadata.name}: {one_line(error)}")
    return plans, errors


def plan_task(
    meta: ModelMeta,
    task: Any,  # noqa: ANN401 - AbsTaskRetrieval
    limit: int | None = None,
    reader: Reader | None = None,
) -> TaskPlan:
    """Count what a model would have to encode on one task.

    Args:
        meta: The model.
        task: A retrieval task; it is loaded where its data are here, and unloaded again.
        limit: Number of queries of a smoke run.
        reader: The model's tokenizer, for several tasks.

    Returns:
        The counts, over all splits of the task.

    Raises:
        ReasonEmbedError: If it is no retrieval task, its local copy is damaged, or its data are not here and
            nobody has published its size.
    """
    found = _texts_here(task, limit)
    prefix = planned_prefix(meta, task.metadata)
    reader = reader or Reader(meta)
    if found is None:
        return _plan_published(meta, task, published_size(task), prefix, limit, reader)
    queries, documents, total = found
    task.unload_data()
    tokenizer = reader.tokenizer
    plan = TaskPlan(
        task.metadata.name,
        prefix,
        len(queries),
        total,
        same_queries=fingerprint("queries", *sorted(queries)),
        # What was published of a task says nothing of the texts that were counted here.
        same_documents=fingerprint("documents", total, *sorted(documents)),
    )
    if tokenizer is None:
        return plan
    length = min(max_tokens_for(task.metadata.name), tokenizer.model_max_length)
    asked = _lengths(tokenizer, [(prefix or "") + text for text in queries])
    kept_of = _lengths(tokenizer, documents)
    kept = sum(min(count, length) for count in kept_of)
    return replace(
        plan,
        length=length,
        query_tokens=sum(min(count, length) for count in asked),
        document_tokens=round(kept * total / max(len(kept_of), 1)),
        truncated=sum(count > length for count in kept_of) / max(len(kept_of), 1),
        sampled=len(kept_of) < total,
    )


def _plan_published(
    meta: ModelMeta, task: AbsTask, size: Size, prefix: str | None, limit: int | None, reader: Reader
) -> TaskPlan:
    """Plan a task whose data are not here, from what is published of its size."""
    name = task.metadata.name
    if size.queries is None and size.documents is None and size.same_documents == name:
        msg = f"its data are not here and its size is not published: `reasonembed download -t {name}` first"
        raise DataError(msg)
    queries, documents = size.queries, size.documents
    if limit:
        queries = None if queries is None else min(queries, limit)
        documents = None if documents is None else min(documents, limit * _LIMITED)
    length = query_tokens = document_tokens = None
    # BM25 counts as sparse and has no tokenizer.
    if reader.tokenizer is not None or set(meta.model_type or ()) & (_TOKENIZED - {"sparse"}):
        ratio, length = reader.characters_a_token, min(max_tokens_for(name), reader.longest)
        asked = size.query_characters and size.query_characters + len(prefix or "")
        query_tokens = _estimated(queries, asked, ratio, length)
        document_tokens = _estimated(documents, size.document_characters, ratio, length)
    return TaskPlan(
        name,
        prefix,
        queries,
        documents,
        length=length,
        query_tokens=query_tokens,
        document_tokens=document_tokens,
        published=True,
        same_queries=size.same_queries,
        same_documents=size.same_documents,
    )


def _estimated(count: int | None, characters: float | None, ratio: float, length: int) -> int | None:
    """Return the tokens of so many texts: the mean of cut lengths is at most the mean length, cut."""
    if count is None or not characters:
        return None
    return round(count * min(characters / ratio, length))


@cache
def mini_texts() -> tuple[str, ...]:
    """Return the documents of the embedded benchmark."""
    from reasonembed_mteb.retrieval.layouts import load_corpus
    from reasonembed_mteb.retrieval.rows import benchmark_rows

    return tuple(text for row in benchmark_rows(_MINI) for text in load_corpus(row)["text"][:])


def _texts_here(task: Any, limit: int | None) -> tuple[list[str], list[str], int] | None:  # noqa: ANN401
    """Return what `_texts` does, or None where the data are neither in a local copy nor in a cache."""
    return _texts(task) if load_here(task, limit) else None


def load_here(task: Any, limit: int | None) -> bool:  # noqa: ANN401 - AbsTaskRetrieval
    """Load a task, cut for a smoke run, and return whether its data are here; nothing is fetched.

    Args:
        task: A retrieval task; changed in place.
        limit: Number of queries of a smoke run.

    Raises:
        ReasonEmbedError: If it is no retrieval task, or its local copy is damaged.
    """
    from datasets.exceptions import DatasetsError

    row = getattr(task, "row", None)
    if task.data_loaded or (row is not None and (row.layout == "beir" or local_copy(row) is not None)):
        _load(task, limit)
        return True
    with nothing_fetched():
        try:
            _load(task, limit)
        except (OSError, ValueError, KeyError, DatasetsError, DataError):
            logger.debug("the data of %s are not here", task.metadata.name, exc_info=True)
            return False
    return True


def _load(task: Any, limit: int | None) -> None:  # noqa: ANN401 - AbsTaskRetrieval
    if not hasattr(task, "convert_to_reranking"):
        msg = f"{task.metadata.name} is no retrieval task: its size cannot be told before it runs"
        raise ReasonEmbedError(msg)
    if limit:
        from reasonembed_mteb.evaluation.limits import limit_task

        limit_task(task, limit)
    else:
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)


def _texts(task: Any) -> tuple[list[str], list[str], int]:  # noqa: ANN401 - AbsTaskRetrieval
    """Return all queries, a sample of the documents, and the number of documents."""
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
