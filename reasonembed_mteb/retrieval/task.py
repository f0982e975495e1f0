"""The one class behind all our tasks, and the tasks and benchmarks that the tables name."""

from __future__ import annotations

import math
import re
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from pydantic import ValidationError

from reasonembed_mteb.errors import DataError, unknown_name
from reasonembed_mteb.retrieval.layouts import load_data
from reasonembed_mteb.retrieval.lengths import capped_length
from reasonembed_mteb.retrieval.measures import Judged, query_measures
from reasonembed_mteb.retrieval.rows import benchmark_rows, benchmarks, load_rows, suites
from reasonembed_mteb.retrieval.search import excluding_search
from reasonembed_mteb.retrieval.sources import data_revision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mteb.abstasks import AbsTask
    from mteb.benchmarks.benchmark import Benchmark
    from mteb.models import MTEBModels

    from reasonembed_mteb.retrieval.rows import TaskRow

# Where this module is imported before mteb, the start-up hook runs in the middle of the imports above and
# leaves here what has to wait until the task class exists.
when_imported: list[Callable[[], None]] = globals().get("when_imported", [])


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
        self.dataset = {pool: {self.row.split: part} for pool, part in load_data(self.row).items()}  # type: ignore[dict-item]
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

    def query_measures(
        self, results: Mapping[str, Mapping[str, float]], hf_split: str, hf_subset: str
    ) -> dict[str, dict[str, float]]:
        """Return the row's measures besides MTEB's, by query.

        Args:
            results: Scores by query and document id.
            hf_split: Split of the data, as the table names it.
            hf_subset: Pool; ``default`` where there is one only.

        Returns:
            Measures by query and name. A query that was asked and has judgements but no results has 0.
        """
        part: Any = self.dataset[hf_subset][hf_split]
        judged = part.get("judged") or {}
        found = {}
        for query in judged.keys() | results.keys() if self.row.measures else ():
            hits = results.get(query, {})
            ranked = sorted(hits, key=lambda document: (hits[document], document), reverse=True)
            labels = part["relevant_docs"].get(query, {})
            found[query] = query_measures(self.row.measures, ranked, labels, judged.get(query, Judged()))
        return {query: measures for query, measures in found.items() if measures}

    def task_specific_scores(
        self,
        scores: dict[str, dict[str, float]],
        qrels: Any,  # noqa: ANN401 - mteb's type
        results: dict[str, dict[str, float]],
        hf_split: str,
        hf_subset: str,
    ) -> dict[str, float]:
        """Return the means of `query_measures`; see `AbsTaskRetrieval.task_specific_scores`."""
        found = self.query_measures(results, hf_split, hf_subset)
        values = {name: [row[name] for row in found.values() if name in row] for name in self.row.measures}
        return {name: math.fsum(held) / len(held) for name, held in values.items() if held}


def _metadata(row: TaskRow) -> TaskMetadata:
    # Validated as data, which the table is; the literal types are mteb's to check.
    try:
        return TaskMetadata.model_validate(_metadata_values(row))
    except ValidationError as error:
        raise _refused_value(row, error) from error


def _metadata_values(row: TaskRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "description": row.description,
        "reference": row.reference or None,
        "dataset": {"path": row.path, "revision": row.revision or "local"},
        "type": "Retrieval",
        "category": "t2t",
        "modalities": ["text"],
        "eval_splits": [row.split],
        "eval_langs": {pool: ["eng-Latn"] for pool in row.pools} if row.pools else ["eng-Latn"],
        "main_score": row.main_score,
        "date": row.date or None,
        "domains": list(row.domains) or None,
        "task_subtypes": list(row.task_subtypes) or None,
        "license": row.license or None,
        "annotations_creators": row.annotations_creators or None,
        "dialect": [],
        "sample_creation": row.sample_creation or None,
        "bibtex_citation": row.citation,
        "prompt": {"query": row.instruction} if row.instruction else None,
        "adapted_from": [row.mteb_name] if row.mteb_name else None,
    }


def _refused_value(row: TaskRow, error: ValidationError) -> DataError:
    """Return the error for a value that MTEB does not take, with the nearest that it does."""
    first = error.errors()[0]
    column = next((str(part) for part in first["loc"] if isinstance(part, str)), "row")
    column = {"bibtex_citation": "citation", "prompt": "instruction"}.get(column, column)
    allowed = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
    if allowed:
        problem = str(unknown_name(column, str(first["input"]), allowed))
    else:
        problem = f"{column} = {first['input']!r}: {first['msg']}"
    return DataError(f"{row.table}, task {row.name}: {problem}")


@cache
def make_task(row: TaskRow) -> type[ReasonTask]:
    """Build the task class of one row.

    Args:
        row: Of one of the tables, ours or a user's.

    Returns:
        A class named as the task, which lives in this module so that it can be pickled; for an equal row
        the same class.

    Raises:
        DataError: If MTEB does not take a value of the row; the nearest that it takes is named.
    """
    namespace = {"row": row, "metadata": _metadata(row), "__module__": __name__, "__doc__": row.description}
    task = type(row.name, (ReasonTask,), namespace)
    globals()[row.name] = task
    return task


def build_tasks() -> dict[str, type[ReasonTask]]:
    """Return the task class of every row, by name."""
    # The module below needs mteb's task classes. Importing mteb first lets our start-up hook, which
    # calls this very function, run before and not in the middle of it.
    import_module("mteb")

    return {row.name: make_task(row) for row in load_rows() if not row.is_mtebs}


def load_tasks(benchmark: str = "BRIGHT(ReasonEmbed)") -> list[AbsTask]:
    """Return the tasks of one of our benchmarks, ready for ``mteb.evaluate``.

    Args:
        benchmark: Its name, such as ``"ReasonMini"``.

    Raises:
        UnknownNameError: If we have no such benchmark.
    """
    return [_new_task(row) for row in benchmark_rows(benchmark)]


def _new_task(row: TaskRow) -> AbsTask:
    """Return a new object of a row's task: ours, or MTEB's own."""
    if not row.is_mtebs:
        return make_task(row)()
    # `mteb.get_task` is there only once `import mteb` has ended; benchmarks are registered before.
    from mteb.get_tasks import get_task

    try:
        return get_task(row.name)
    except KeyError:
        msg = f"{row.table}: this MTEB has no task {row.name}; install a newer one, or take the row out"
        raise DataError(msg) from None


def _description(name: str, rows: list[TaskRow]) -> str:
    first = rows[0]
    metric = first.main_score.replace("_at_", "@").replace("ndcg", "nDCG")
    queries = f", queries rewritten with reasoning ({first.rewritten})" if first.is_rewritten else ""
    return (
        f"{first.summary or name}{queries}, by one protocol: the table's instructions, {first.max_tokens} "
        f"tokens, excluded documents removed before the cut, {metric}, macro mean of {len(rows)}."
    )


def build_benchmarks() -> dict[str, Benchmark]:
    """Return our benchmarks as MTEB objects, by name."""
    import_module("mteb")
    from mteb.benchmarks.benchmark import Benchmark

    from reasonembed_mteb.retrieval.suite import Lazy, SuiteBenchmark, UnitBenchmark

    def kind(rows: list[TaskRow]) -> Callable[..., Benchmark]:
        return partial(UnitBenchmark, rows) if any(row.unit for row in rows) else Benchmark

    found: dict[str, Benchmark] = {
        name: kind(rows)(
            name=name,
            # Tasks are made when somebody looks at them: `import mteb` has to stay quick.
            tasks=Lazy(partial(load_tasks, name)),
            description=_description(name, rows),
            reference=rows[0].benchmark_reference or rows[0].reference or None,
            citation=rows[0].citation or None,
        )
        for name, rows in benchmarks().items()
    }
    return found | {name: SuiteBenchmark(suite, _new_task) for name, suite in suites().items()}


for _finish in when_imported:
    _finish()
