"""Tasks changed for one run: copies, smoke runs over the first queries, the name that models are told."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata

# Documents of a query that are kept besides the gold ones and the candidates.
_DOCUMENTS = 20


def own_copy(task: Any) -> Any:  # noqa: ANN401 - AbsTask
    """Return a copy of a task that can be loaded, limited and reranked without changing the task.

    Args:
        task: An MTEB task, loaded or not.
    """
    own = copy.copy(task)
    if task.data_loaded and isinstance(task.dataset, dict):
        own.dataset = {
            subset: {split: copy.copy(data) for split, data in splits.items()}
            for subset, splits in task.dataset.items()
        }
    return own


def asked_as(task: Any) -> TaskMetadata:  # noqa: ANN401 - AbsTask
    """Return the metadata under which models are asked, which decide instruction, prompt and length.

    A task made from another one, such as one with varied queries, is filed under a name of its own and asked
    under the other's, by its attribute ``asked_as``.

    Args:
        task: An MTEB task.
    """
    metadata: TaskMetadata = getattr(task, "asked_as", None) or task.metadata
    return metadata


def limit_task(task: Any, queries: int, *, keep_candidates: bool = False) -> None:  # noqa: ANN401 - AbsTaskRetrieval
    """Load a task and keep its first queries, their gold documents and a few more.

    Its data revision is marked, so that results cannot pass for full ones.

    Args:
        task: A retrieval task.
        queries: How many queries to keep.
        keep_candidates: Keep the documents to be reranked too.

    Raises:
        ReasonEmbedError: If it is no retrieval task.
    """
    if not hasattr(task, "convert_to_reranking"):
        msg = f"{task.metadata.name} is no retrieval task: --limit cannot cut it, leave it out"
        raise ReasonEmbedError(msg)
    task.load_data()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    for splits in task.dataset.values():
        for split in splits.values():
            _limit_split(split, queries, keep_candidates)
    dataset = dict(task.metadata.dataset)
    dataset["revision"] = f"{dataset['revision']}+limit{queries}"
    task.metadata = task.metadata.model_copy(update={"dataset": dataset})


def _limit_split(split: dict[str, Any], queries: int, keep_candidates: bool) -> None:
    split["queries"] = split["queries"].select(range(min(queries, len(split["queries"]))))
    kept = list(split["queries"]["id"])
    split["relevant_docs"] = {query: split["relevant_docs"].get(query, {}) for query in kept}
    wanted = {document for gold in split["relevant_docs"].values() for document in gold}
    if keep_candidates:
        wanted |= {document for query in kept for document in split["top_ranked"].get(query, ())}
    rows = []
    room = queries * _DOCUMENTS
    for index, document in enumerate(split["corpus"]["id"]):
        if document in wanted or room > 0:
            rows.append(index)
            room -= document not in wanted
    split["corpus"] = split["corpus"].select(rows)
    held = set(split["corpus"]["id"])
    for key in ("top_ranked", "excluded_ids"):
        if split.get(key):
            split[key] = {q: [d for d in split[key][q] if d in held] for q in kept if q in split[key]}
