"""The one class behind all our tasks; `reasonembed_mteb.retrieval.tasks` is its public face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from reasonembed_mteb.encoding.lengths import capped_length
from reasonembed_mteb.plugin import finish_deferred
from reasonembed_mteb.retrieval.data import load_split
from reasonembed_mteb.retrieval.search import excluding_search
from reasonembed_mteb.retrieval.sources import data_revision

if TYPE_CHECKING:
    from mteb.models import MTEBModels

    from reasonembed_mteb.retrieval.tables import TaskRow

# AbsTaskRetrieval's own name for the only subset of a task in one language.
_SUBSET = "default"


class ReasonTask(AbsTaskRetrieval):
    """A retrieval task built from one row of our tables.

    Differs from MTEB's tasks in two points of the protocol: excluded documents leave before the cut,
    for every kind of model, and inputs are truncated at min(the protocol's length, the model's own).
    The length in force is recorded among the scores as ``max_tokens`` (null where it is not known).
    """

    row: TaskRow

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Load the data from the hub, or from a local copy (see `sources`).

        Args:
            num_proc: Unused; nothing is mapped.
            **kwargs: MTEB's further arguments; unused.

        Raises:
            DataError: If data is missing or damaged.
        """
        if self.data_loaded:
            return
        self.dataset = {_SUBSET: {self.row.split: load_split(self.row)}}  # type: ignore[dict-item]
        self._record_data_revision()
        self.data_loaded = True

    def _record_data_revision(self) -> None:
        """Let results name the data that was read: a local copy may not be the published commit."""
        dataset = dict(self.metadata.dataset) | {"revision": data_revision(self.row)}
        # On the instance: the class keeps saying what the table says.
        self.metadata = self.metadata.model_copy(update={"dataset": dataset})

    def _evaluate_subset(self, model: MTEBModels, data_split: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - mteb's signature
        """Evaluate with exclusions and the protocol's length; see `AbsTaskRetrieval._evaluate_subset`."""
        with capped_length(model, self.row.max_tokens) as length:
            search = excluding_search(model, data_split.get("excluded_ids") or {})
            scores: Any = super()._evaluate_subset(search, data_split, **kwargs)
        scores["max_tokens"] = length
        return scores


def _metadata(row: TaskRow) -> TaskMetadata:
    # Validated as data, which the table is; the literal types are mteb's to check.
    return TaskMetadata.model_validate(
        {
            "name": row.name,
            "description": row.description,
            "reference": row.reference,
            "dataset": {"path": row.path, "revision": row.revision},
            "type": "Retrieval",
            "category": "t2t",
            "modalities": ["text"],
            "eval_splits": [row.split],
            "eval_langs": ["eng-Latn"],
            "main_score": row.main_score,
            "date": row.date,
            "domains": list(row.domains),
            "task_subtypes": list(row.task_subtypes),
            "license": row.license,
            "annotations_creators": row.annotations_creators,
            "dialect": [],
            "sample_creation": row.sample_creation,
            "bibtex_citation": row.citation,
            "prompt": {"query": row.instruction},
            "adapted_from": [row.mteb_name] if row.mteb_name else None,
        }
    )


def make_task(row: TaskRow) -> type[ReasonTask]:
    """Build the task class of one row.

    Args:
        row: The row.

    Returns:
        A class named as the task, which lives in this module so that it can be pickled.
    """
    namespace = {"row": row, "metadata": _metadata(row), "__module__": __name__, "__doc__": row.description}
    task = type(row.name, (ReasonTask,), namespace)
    globals()[row.name] = task
    return task


# Where this module is imported before mteb, the start-up hook ran in the middle of it.
finish_deferred()
