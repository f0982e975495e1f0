"""Poisoned corpora: which queries make the passages and which are attacked, how often passages are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import DataError, ReasonEmbedError, one_line
from reasonembed_mteb.evaluation.score_run import CUTS, DEFAULT_METRIC, judge, score_run
from reasonembed_mteb.retrieval.beir_task import only_split
from reasonembed_mteb.retrieval.lengths import capped_length, protocol_length
from reasonembed_mteb.retrieval.search import excluding_search

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from mteb.abstasks.task_metadata import TaskMetadata

    Run = dict[str, dict[str, float]]

ASR_AT = (5, 10, 20, 50)
# Fewer say nothing, and have no interval.
_FEWEST = 2


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        metadata: The task's.
        max_tokens: The protocol's length; see `reasonembed_mteb.retrieval.lengths.protocol_length`.
        split: Name of its split.
        subset: Name of its subset.
        making: Data of the queries that make the passages, as `only_split` gives them.
        attacked: Data of the other queries, over the same corpus.
        halves: Whether both are halves of one split.
    """

    metadata: TaskMetadata
    max_tokens: int
    split: str
    subset: str
    making: dict[str, Any]
    attacked: dict[str, Any]
    halves: bool

    @property
    def documents(self) -> int:
        """How many documents the clean corpus has."""
        return len(self.attacked["corpus"])


def find_target(task: Any, seed: int, makers: Any = None) -> Target:  # noqa: ANN401 - AbsTaskRetrieval
    """Load a task and part its queries into those that make passages and those that are attacked.

    Args:
        task: A retrieval task with one split of texts.
        seed: Parts the queries into halves.
        makers: A task over the same corpus whose queries make the passages, such as the training split of
            the same BEIR folder or `other_split`; all queries of ``task`` are then attacked.

    Raises:
        DataError: If there are too few queries on either side.
        ReasonEmbedError: If it is no retrieval task.
    """
    data = _loaded(task)
    labelled = _labelled(data)
    if makers is None:
        shuffled = np.random.default_rng(seed).permutation(labelled).tolist()
        half = len(shuffled) // 2
        making, attacked = _only(data, shuffled[:half]), _only(data, shuffled[half:])
    else:
        attacked = _only(data, labelled)
        other = _loaded_makers(makers)
        making = _only(other, _labelled(other))
    making = _apart(making, attacked)
    _check_counts(task.metadata.name, making, attacked)
    subset, splits = next(iter(task.dataset.items()))
    return Target(
        metadata=task.metadata,
        max_tokens=protocol_length(task),
        split=next(iter(splits)),
        subset=subset,
        making=making,
        attacked=attacked,
        halves=makers is None,
    )


def other_split(task: Any, split: str) -> Any:  # noqa: ANN401 - AbsTaskRetrieval
    """Return another split of the data set of one of MTEB's tasks, for `find_target`'s makers.

    Args:
        task: A task of MTEB's own.
        split: A split that the task does not score, such as ``train``.

    Raises:
        ReasonEmbedError: If the task scores that split, or its data has one split alone.
    """
    name = task.metadata.name
    if hasattr(task, "row"):
        msg = f"the data of {name} has one split: leave the split out, which takes half of its queries"
        raise ReasonEmbedError(msg)
    if split in task.eval_splits:
        msg = f"{split} is the split of {name} that is attacked; give another, or leave it out"
        raise ReasonEmbedError(msg)
    return type(task)().filter_eval_splits([split])


def _loaded_makers(makers: Any) -> dict[str, Any]:  # noqa: ANN401
    """Load a task whose split may be one that its data set lacks."""
    try:
        data = _loaded(makers)
    except ReasonEmbedError:
        raise
    except Exception as error:
        msg = (
            f"split {', '.join(makers.eval_splits)} of {makers.metadata.name} cannot be loaded "
            f"({one_line(error)}); give a split that its data set has"
        )
        raise DataError(msg) from error
    held = {split for splits in makers.dataset.values() for split in splits}
    if held != set(makers.eval_splits):
        msg = (
            f"{makers.metadata.name} loads split {', '.join(sorted(held))} whatever is asked for; leave the "
            "other split out"
        )
        raise DataError(msg)
    return data


def _labelled(data: Mapping[str, Any]) -> list[str]:
    """Return the queries that have a relevant document, sorted."""
    return sorted(
        query for query, gold in data["relevant_docs"].items() if any(label > 0 for label in gold.values())
    )


def _loaded(task: Any) -> dict[str, Any]:  # noqa: ANN401
    if not hasattr(task, "convert_v1_dataset_format_to_v2"):
        msg = f"{task.metadata.name} is a task of type {task.metadata.type}: give a retrieval task"
        raise ReasonEmbedError(msg)
    task.load_data()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    return only_split(task)


def _only(data: Mapping[str, Any], queries: Collection[str]) -> dict[str, Any]:
    """Return the data of some queries, in the order of the task."""
    wanted = set(queries)
    places = [place for place, name in enumerate(data["queries"]["id"][:]) if name in wanted]
    kept = data["queries"].select(places)
    names = kept["id"][:]
    excluded = data.get("excluded_ids") or {}
    return {
        "corpus": data["corpus"],
        "queries": kept,
        "relevant_docs": {query: dict(data["relevant_docs"][query]) for query in names},
        "excluded_ids": {query: list(excluded[query]) for query in names if query in excluded},
    }


def _apart(making: dict[str, Any], attacked: dict[str, Any]) -> dict[str, Any]:
    """Leave out making queries that are attacked too, under whatever id."""
    names, texts = set(attacked["queries"]["id"][:]), set(attacked["queries"]["text"][:])
    pairs = zip(making["queries"]["id"][:], making["queries"]["text"][:], strict=True)
    return _only(making, [name for name, text in pairs if name not in names and text not in texts])


def _check_counts(name: str, making: Mapping[str, Any], attacked: Mapping[str, Any]) -> None:
    counts = len(making["queries"]), len(attacked["queries"])
    if min(counts) < _FEWEST:
        msg = (
            f"{name} has too few labelled queries to attack: {counts[0]} would make passages and {counts[1]} "
            f"be attacked, and each side needs {_FEWEST}; give a task with more"
        )
        raise DataError(msg)


def check_cutoffs(wanted: Sequence[int] | None, documents: int) -> tuple[int, ...]:
    """Return the depths at which passages count as found.

    Args:
        wanted: As asked for; None for those of `ASR_AT` that the corpus has.
        documents: Of the poisoned corpus.

    Raises:
        ReasonEmbedError: If one is below 1 or above the corpus or the depth of a search, or the corpus has
            none of `ASR_AT`.
    """
    highest = min(documents, CUTS[-1])
    found = tuple(k for k in ASR_AT if k < documents) if wanted is None else tuple(dict.fromkeys(wanted))
    for k in found:
        if not 1 <= k <= highest:
            msg = f"ASR@{k}: the poisoned corpus has {documents:,} documents, of which {highest:,} are ranked"
            raise ReasonEmbedError(f"{msg}; give a k from 1 to {highest:,}")
    if not found:
        msg = (
            f"the poisoned corpus has {documents:,} documents, so that ASR@{ASR_AT[0]} says nothing; give --k"
        )
        raise ReasonEmbedError(msg)
    return found


def poisoned_names(attack: str, count: int) -> list[str]:
    """Return the ids of an attack's documents.

    Args:
        attack: Its name.
        count: Of documents.
    """
    return [f"poisoned-{attack}-{number}" for number in range(count)]


def poisoned_data(clean: Mapping[str, Any], attack: str, passages: Sequence[str]) -> dict[str, Any]:
    """Return data with passages added to the corpus.

    Args:
        clean: The attacked queries' data.
        attack: Its name.
        passages: Texts.

    Raises:
        DataError: If the corpus holds documents of such names already.
    """
    from datasets import Dataset, concatenate_datasets

    names = poisoned_names(attack, len(passages))
    corpus = clean["corpus"]
    if not set(names).isdisjoint(corpus["id"][:]):
        msg = f"the corpus holds a document {names[0]!r} already: give the clean corpus"
        raise DataError(msg)
    kept = [name for name in ("id", "title", "text") if name in corpus.column_names]
    columns = {"id": names, "title": [""] * len(names), "text": list(passages)}
    added = Dataset.from_dict({name: columns[name] for name in kept}).cast(
        corpus.select_columns(kept).features
    )
    return dict(clean) | {"corpus": concatenate_datasets([corpus.select_columns(kept), added])}


def search_target(model: Any, target: Target, data: Mapping[str, Any], **encode_kwargs: Any) -> Run:  # noqa: ANN401
    """Search a corpus by a task's protocol.

    Args:
        model: Any MTEB model that searches a whole corpus.
        target: Whose protocol.
        data: Corpus and queries.
        **encode_kwargs: Options of encoding.

    Returns:
        Scores by query and document id.
    """
    search = excluding_search(model, data.get("excluded_ids") or {})
    call: dict[str, Any] = {
        "task_metadata": target.metadata,
        "hf_split": target.split,
        "hf_subset": target.subset,
        "encode_kwargs": encode_kwargs,
        "num_proc": None,
    }
    with capped_length(model, target.max_tokens):
        search.index(data["corpus"], **call)
        found: Run = search.search(data["queries"], top_k=CUTS[-1], top_ranked=None, **call)
    return found


@dataclass(frozen=True)
class Retrieved:
    """How a corpus was searched for the attacked queries.

    Attributes:
        ndcg: nDCG@10 by query.
        first: The best rank of a poisoned document by query, from 1; queries without one are left out.
    """

    ndcg: dict[str, float]
    first: dict[str, int]

    def success(self, k: int) -> float:
        """Return the share of the queries with a poisoned document among the first k.

        Args:
            k: How deep.
        """
        return sum(rank <= k for rank in self.first.values()) / len(self.ndcg)


def judged(run: Run, data: Mapping[str, Any], poisoned: Collection[str] = ()) -> Retrieved:
    """Return what a search of the attacked queries found.

    Args:
        run: Scores by query and document id.
        data: The attacked queries' data.
        poisoned: Ids of the poisoned documents.
    """
    scores = score_run(run, judge("the attacked queries", data["relevant_docs"], data.get("excluded_ids")))
    ndcg = {query: row[DEFAULT_METRIC] for query, row in scores.per_query.items()}
    return Retrieved(ndcg, dict(_first_ranks(run, ndcg, set(poisoned))))


def _first_ranks(run: Run, queries: Collection[str], poisoned: set[str]) -> Iterator[tuple[str, int]]:
    for query in queries:
        held = run.get(query, {})
        # Equal scores by id descending, as pytrec_eval.
        places = {name: (held[name], name) for name in poisoned & held.keys()}
        if places:
            best = max(places.values())
            yield query, 1 + sum((score, name) > best for name, score in held.items())


def with_documents(run: Run, scores: Mapping[str, Mapping[str, float]]) -> Run:
    """Return a run with further documents in it.

    Args:
        run: Scores by query and document id.
        scores: Those of the further documents, likewise.
    """
    return {query: dict(found) | dict(scores.get(query, {})) for query, found in run.items()}
