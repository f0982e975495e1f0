"""Any retrieval task with varied queries, as an MTEB task of a name of its own that any MTEB model can run.

Only the queries differ: labels, exclusions, documents, and what models are told (instruction, prompt, length)
are the task's own, so that a store gives the documents' vectors to every variation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.profiles import QueryCounts
from reasonembed_mteb.files import fingerprint
from reasonembed_mteb.robustness.words import plain_breaks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mteb.abstasks import AbsTask
    from mteb.abstasks.task_metadata import TaskMetadata

    from reasonembed_mteb.robustness.variations import Variation, Varied

__all__ = ["VariedQueries", "count_varied", "query_texts", "varied_name", "vary_task"]


def count_varied(texts: Sequence[str], varied: Sequence[Varied]) -> QueryCounts:
    """Count what a variation did.

    Args:
        texts: The queries.
        varied: Each of them varied.
    """
    reasons = sorted({one.kept for one in varied if one.kept})
    return QueryCounts(
        queries=len(varied),
        changed_queries=sum(one.text != plain_breaks(text) for text, one in zip(texts, varied, strict=True)),
        words=sum(one.words for one in varied),
        eligible_words=sum(one.eligible for one in varied),
        changed_words=sum(one.changed for one in varied),
        kept={reason: sum(one.kept == reason for one in varied) for reason in reasons},
    )


class VariedQueries:
    """What `vary_task` adds to a task's own class."""

    variation: Variation
    asked_as: TaskMetadata
    change: str
    metadata: TaskMetadata
    dataset: Any
    data_loaded: bool
    held_data: Any

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Load the task's data, and vary its queries.

        Args:
            num_proc: As the task's own.
            **kwargs: As the task's own.

        Raises:
            DataError: If there are no queries, or they are no texts.
        """
        if self.data_loaded:
            return
        name = self.metadata.name
        if self.held_data is None:
            super().load_data(num_proc=num_proc, **kwargs)  # type: ignore[misc]
            # Not before its queries are varied.
            self.data_loaded = False
            self.convert_v1_dataset_format_to_v2(num_proc=num_proc)  # type: ignore[attr-defined]
        else:
            self.dataset = self.held_data
        self.dataset = {
            subset: {split: self._varied(data) for split, data in splits.items()}
            for subset, splits in self.dataset.items()
        }
        # The task's own loading may have named the data that it read.
        self.metadata = _marked(self.metadata, name, self.change)
        self.data_loaded = True

    def _varied(self, data: dict[str, Any]) -> dict[str, Any]:
        queries = data["queries"]
        texts = [self.variation.vary(text).text for text in _texts(queries, self.asked_as.name)]
        kind = queries.features["text"]
        queries = queries.remove_columns("text").add_column("text", texts, feature=kind)
        return {**data, "queries": queries}

    def evaluate(self, model: Any, split: str = "test", *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - mteb's types
        """Evaluate as the task does, the model asked under the task's own name.

        Args:
            model: As the task's own.
            split: As the task's own.
            *args: As the task's own.
            **kwargs: As the task's own.
        """
        self.load_data()
        own = self.metadata
        self.metadata = self.asked_as
        try:
            return super().evaluate(model, split, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.metadata = own

    @property
    def prediction_file_name(self) -> str:
        """Predictions lie under the variation's own name."""
        return f"{varied_name(self.asked_as.name, self.variation)}_predictions.json"


def varied_name(task: str, variation: Variation) -> str:
    """Return the name of a task with varied queries.

    Args:
        task: The task's own name.
        variation: What is done to its queries.
    """
    return f"{task}.{variation.label}"


def vary_task(task: AbsTask, variation: Variation) -> AbsTask:
    """Return a task with varied queries; the one given is left as it is.

    Args:
        task: Any MTEB retrieval task of texts, ours, a BEIR folder's or MTEB's own. Data that it has loaded
            is not loaded again.
        variation: What is done to its queries.

    Returns:
        A task for ``mteb.evaluate``, named ``TASK.VARIATION-SEED``.

    Raises:
        DataError: If it is no retrieval task.
    """
    if not hasattr(task, "convert_to_reranking"):
        msg = f"{task.metadata.name} is no retrieval task: its queries cannot be varied, leave it out"
        raise DataError(msg)
    name = varied_name(task.metadata.name, variation)
    change = f"+{variation.label}:{fingerprint(*variation.causes)[:8]}"
    kind = type(task)
    # On the class: MTEB drops an object's own metadata when it unloads the data.
    namespace = {"metadata": _marked(task.metadata, name, change), "__module__": __name__}
    varied = type(f"Varied{kind.__name__}", (VariedQueries, kind), namespace)
    # A copy of the task, of a class that varies what its own class loads.
    own: Any = object.__new__(varied)
    own.__dict__.update({key: value for key, value in vars(task).items() if key != "metadata"})
    own.variation, own.change, own.asked_as = variation, change, task.metadata
    own.held_data = _own_data(task) if task.data_loaded else None
    own.dataset, own.data_loaded = {}, False
    return own  # type: ignore[no-any-return]


def _own_data(task: Any) -> Any:  # noqa: ANN401 - AbsTaskRetrieval
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    # MTEB drops queries without labels in place.
    return {
        subset: {split: dict(data) for split, data in splits.items()}
        for subset, splits in task.dataset.items()
    }


def _marked(metadata: TaskMetadata, name: str, change: str) -> TaskMetadata:
    """Give metadata a name, and mark the revision of the data with what was done to it."""
    dataset = dict(metadata.dataset)
    revision = str(dataset["revision"])
    dataset["revision"] = revision if revision.endswith(change) else f"{revision}{change}"
    return metadata.model_copy(update={"name": name, "dataset": dataset})


def _texts(queries: Any, task: str) -> list[str]:  # noqa: ANN401 - datasets.Dataset
    """Return the texts of some queries; refuse none at all, and queries that are no texts."""
    if not len(queries):
        msg = f"{task} has no queries left; vary a task that has some"
        raise DataError(msg)
    texts = queries["text"][:] if "text" in queries.column_names else [None]
    strange = [text for text in texts if not isinstance(text, str)]
    if strange:
        kind = type(strange[0]).__name__
        msg = f"{task} has queries that are no texts but {kind}; vary another task"
        raise DataError(msg)
    return list(texts)


def query_texts(task: Any, limit: int | None = None) -> Iterator[str]:  # noqa: ANN401 - AbsTaskRetrieval
    """Yield the scored queries of a task that is loaded, those with labels, of every subset and split.

    Args:
        task: A retrieval task.
        limit: Only the first of each split, with labels or without, as in a smoke run.

    Yields:
        Their texts, in order.

    Raises:
        DataError: If a split has no queries, none that is scored, or they are no texts.
    """
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    for subset in task.hf_subsets:
        for split in task.eval_splits:
            data, name = task.dataset[subset][split], task.metadata.name
            pairs = zip(data["queries"]["id"][:limit], _texts(data["queries"], name)[:limit], strict=True)
            # MTEB drops the others.
            scored = [text for query, text in pairs if data["relevant_docs"].get(query)]
            if not scored:
                among = "queries" if limit is None else f"first {limit} queries"
                remedy = "vary a task that has labels" if limit is None else "give a higher --limit"
                msg = f"none of the {among} of {name} has a label, so that none is scored; {remedy}"
                raise DataError(msg)
            yield from scored
