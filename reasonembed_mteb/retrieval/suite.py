"""A suite: several benchmarks as one of MTEB's, its score the mean of theirs, in groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from mteb.benchmarks.benchmark import Benchmark, CustomGroup, CustomGrouping

from reasonembed_mteb.errors import first_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mteb.abstasks import AbsTask
    from mteb.results import BenchmarkResults, TaskResult

    from reasonembed_mteb.retrieval.rows import SuiteRow, TaskRow


class Lazy(Sequence[Any]):
    """A sequence that is made when it is first looked at."""

    def __init__(self, make: Callable[[], Sequence[Any]]) -> None:
        """Make nothing yet.

        Args:
            make: Called once.
        """
        self._make = make

    @cached_property
    def _held(self) -> Sequence[Any]:
        return self._make()

    @overload
    def __getitem__(self, index: int) -> Any: ...  # noqa: ANN401

    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        return self._held[index]

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._held)


@dataclass(frozen=True)
class SuiteScore:
    """What a suite makes of one model's scores.

    Attributes:
        score: Mean of the parts' means; None where a part is not whole.
        parts: Mean of each part in which every task was run.
        tasks: Number of tasks behind the score, or run so far.
        missing: Tasks that were not run, by part.
    """

    score: float | None
    parts: dict[str, float]
    tasks: int
    missing: dict[str, list[str]]


def score_suite(suite: SuiteRow, scores: Mapping[str, float]) -> SuiteScore:
    """Return a suite's score: the mean of the means of its benchmarks, however many tasks each has.

    Tasks of a benchmark with one ``unit`` count there as one.

    Args:
        suite: The suite.
        scores: Main score by task name.
    """
    parts: dict[str, float] = {}
    missing: dict[str, list[str]] = {}
    for part, rows in suite.rows().items():
        absent = [row.name for row in rows if row.name not in scores]
        if absent:
            missing[part] = absent
        else:
            parts[part] = part_mean(rows, scores)
    tasks = sum(row.name in scores for rows in suite.rows().values() for row in rows)
    score = None if missing else math.fsum(parts.values()) / len(parts)
    return SuiteScore(score, parts, tasks, missing)


def part_mean(rows: Sequence[TaskRow], scores: Mapping[str, float]) -> float:
    """Return the mean of a benchmark's tasks, those of one unit counted as one.

    Args:
        rows: Its tasks.
        scores: Main score by task name, of all of them.
    """
    means = [math.fsum(scores[name] for name in names) / len(names) for names in units_of(rows)]
    return math.fsum(means) / len(means)


def units_of(rows: Sequence[TaskRow]) -> list[list[str]]:
    """Return the names of the tasks that count together in a benchmark's mean; most count by themselves.

    Args:
        rows: The benchmark's tasks.
    """
    units: dict[str, list[str]] = {}
    for row in rows:
        units.setdefault(row.unit or row.name, []).append(row.name)
    return list(units.values())


class UnitBenchmark(Benchmark):
    """A benchmark some of whose tasks count together as one, as MIRB's four premise sets do."""

    def __init__(self, rows: Sequence[TaskRow], **options: Any) -> None:
        """Make an MTEB benchmark.

        Args:
            rows: Its tasks; those of one ``unit`` count as one.
            **options: Of `Benchmark`.
        """
        self._rows = rows
        super().__init__(**options)

    def get_score(
        self, results: BenchmarkResults, *, raise_error: bool = False
    ) -> dict[str, dict[str, float | None]]:
        """Return each model's scores, its means over units; see `Benchmark.get_score`.

        Args:
            results: Of any models.
            raise_error: Whether a task that was not run is an error.
        """
        scores = super().get_score(results, raise_error=raise_error)
        for model in results.join_revisions():
            row = scores[model.model_name]
            held = _whole_scores(model.select_tasks(self.tasks).task_results)
            if all(one.name in held for one in self._rows):
                mean = part_mean(self._rows, held)
                # All tasks are of one type, so that MTEB's three means are one.
                row.update((key, mean) for key in ("Mean(Task)", "Mean(TaskType)", "Retrieval") if key in row)
        return scores

    def _create_summary_table(self, pl_df: Any) -> Any:  # noqa: ANN401 - polars' frame, mteb's SummaryTable
        """Return MTEB's summary with a unit's tasks as pools of the first; one that lacks some has none."""
        import polars as pl

        if pl_df.is_empty() or "model_name" not in pl_df.columns:
            return super()._create_summary_table(pl_df)
        units: dict[str, list[str]] = {}
        for row in self._rows:
            if row.unit:
                units.setdefault(row.unit, []).append(row.name)
        for names in units.values():
            own = pl.col("task_name").is_in(names)
            whole = pl.when(own).then(pl.col("task_name")).n_unique().over("model_name") >= len(names)
            first = pl.when(own).then(pl.lit(names[0])).otherwise(pl.col("task_name")).alias("task_name")
            pool = pl.when(own).then(pl.col("task_name")).otherwise(pl.col("subset")).alias("subset")
            pl_df = pl_df.filter(~own | whole).with_columns(first, pool)
        return super()._create_summary_table(pl_df)


class SuiteBenchmark(Benchmark):
    """A suite as MTEB's benchmark; its tasks and groups, which are objects, are made on first use."""

    def __init__(self, suite: SuiteRow, new_task: Callable[[TaskRow], AbsTask]) -> None:
        """Make nothing yet.

        Args:
            suite: The suite.
            new_task: Makes the task of a row.
        """
        self.suite = suite
        super().__init__(
            name=suite.name,
            tasks=Lazy(lambda: [new_task(row) for rows in suite.rows().values() for row in rows]),
            description=f"{suite.about}: the mean of the means of {len(suite.parts)} benchmarks.",
            reference=suite.reference or None,
            aggregations=Lazy(self._groupings),
        )

    def __post_init__(self) -> None:
        """Leave the groups alone: MTEB would look at them, and so make all tasks."""

    def _groupings(self) -> list[CustomGrouping]:
        made = {task.metadata.name: task for task in self.tasks}
        rows = [row for part in self.suite.rows().values() for row in part]
        keys: dict[str, Callable[[TaskRow], str]] = {
            "Benchmark": lambda row: row.benchmark,
            "Domain": lambda row: row.domain,
            "Reasoning": lambda row: row.reasoning[0],
        }
        return [CustomGrouping(name, _groups(rows, key, made)) for name, key in keys.items()]

    def get_score(
        self,
        results: BenchmarkResults,
        *,
        raise_error: bool = False,
    ) -> dict[str, dict[str, float | None]]:
        """Return each model's scores; see `Benchmark.get_score`.

        Args:
            results: Of any models.
            raise_error: Whether a task that was not run is an error.

        Returns:
            By model: ``Mean(Benchmark)``, the suite's score, ``Tasks``, how many it rests on, each part and
            group (``Domain::law``), and ``Rank`` by the suite's score. What is not whole is None.

        Raises:
            ValueError: If a task was not run and that is to be an error.
        """
        held = {
            one.model_name: _whole_scores(one.select_tasks(self.tasks).task_results)
            for one in results.join_revisions()
        }
        scores = {model: self._scores(found, raise_error) for model, found in held.items()}
        ordered = sorted(one for row in scores.values() if (one := row["Mean(Benchmark)"]) is not None)
        for row in scores.values():
            own = row["Mean(Benchmark)"]
            row["Rank"] = 1 + sum(other > own for other in ordered) if own is not None else None
        return scores

    def _scores(self, held: Mapping[str, float], raise_error: bool) -> dict[str, float | None]:
        found = score_suite(self.suite, held)
        if found.missing and raise_error:
            absent = [name for names in found.missing.values() for name in names]
            msg = f"{self.name}: not run: {first_names(absent)}"
            raise ValueError(msg)
        scores: dict[str, float | None] = {"Mean(Benchmark)": found.score, "Tasks": found.tasks}
        scores |= {f"Benchmark::{part}": found.parts.get(part) for part in self.suite.rows()}
        for name, groups in suite_groups(self.suite).items():
            scores |= {f"{name}::{label}": group_mean(rows, held) for label, rows in groups.items()}
        return scores


def _whole_scores(results: Iterable[TaskResult]) -> dict[str, float]:
    """Return the score of each task that was run whole: MTEB gives a pool that was not run the score NaN."""
    scores = {result.task_name: result.get_score() for result in results}
    return {task: score for task, score in scores.items() if math.isfinite(score)}


def suite_groups(suite: SuiteRow) -> dict[str, dict[str, list[TaskRow]]]:
    """Return a suite's tasks by ``Domain`` and by primary kind of ``Reasoning``.

    Args:
        suite: The suite.
    """
    found: dict[str, dict[str, list[TaskRow]]] = {"Domain": {}, "Reasoning": {}}
    for rows in suite.rows().values():
        for row in rows:
            found["Domain"].setdefault(row.domain, []).append(row)
            found["Reasoning"].setdefault(row.reasoning[0], []).append(row)
    return found


def group_mean(rows: Sequence[TaskRow], scores: Mapping[str, float]) -> float | None:
    """Return the mean over a group's benchmarks of the means of their tasks in it; None where one is missing.

    Args:
        rows: Tasks of several benchmarks.
        scores: Main score by task name.
    """
    if any(row.name not in scores for row in rows):
        return None
    parts: dict[str, list[TaskRow]] = {}
    for row in rows:
        parts.setdefault(row.benchmark, []).append(row)
    means = [part_mean(own, scores) for own in parts.values()]
    return math.fsum(means) / len(means)


def _groups(
    rows: Sequence[TaskRow], key: Callable[[TaskRow], str], made: Mapping[str, AbsTask]
) -> list[CustomGroup]:
    labels = dict.fromkeys(key(row) for row in rows)
    return [
        CustomGroup(label=label, tasks=[made[row.name] for row in rows if key(row) == label])
        for label in labels
    ]
