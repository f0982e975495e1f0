"""The specialisation tax: models against a baseline on a reasoning and a general suite, paired by query."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, first_names
from reasonembed_mteb.evaluation.resolving import model_labels
from reasonembed_mteb.evaluation.runner import run
from reasonembed_mteb.evaluation.scores import read_scores
from reasonembed_mteb.evaluation.tax_record import SideScore, TaxRecord
from reasonembed_mteb.files import fingerprint, package_versions
from reasonembed_mteb.reporting.bootstrap import bootstrap_interval, score_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.runner import Outcome, RunOptions

logger = logging.getLogger(__name__)

# Scores of a task by pool and query.
TaskScores = dict[str, dict[str, float]]


def specialisation_tax(
    models: Sequence[ModelMeta],
    baseline: ModelMeta,
    reasoning: Sequence[AbsTask],
    general: Sequence[AbsTask],
    options: RunOptions,
    say: Callable[[str], None] = logger.info,
) -> tuple[list[TaxRecord], list[Outcome]]:
    """Score models and a baseline on two suites, and take each model's differences from the baseline.

    Args:
        models: MTEB metadata.
        baseline: What every model is compared with: BM25, say, or the backbone that it was trained from.
        reasoning: Retrieval tasks.
        general: Other retrieval tasks.
        options: How to run; results are those of `reasonembed_mteb.evaluation.runner.run`, reused likewise.
        say: Takes one line at a time about what happens.

    Returns:
        A record for each model that was scored on every task, and every outcome.

    Raises:
        ReasonEmbedError: If a suite is empty, the suites share a task, the baseline is one of the models or
            fails.
        DataError: If a task has no scores by query.
    """
    _check_suites(reasoning, general)
    labels = model_labels([baseline, *models])
    if labels[0] in labels[1:] or not models:
        msg = f"the baseline {labels[0]} is compared with other models: give one by --model"
        raise ReasonEmbedError(msg)
    outcomes = run([baseline, *models], [*reasoning, *general], options, say)
    held: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        held.setdefault(outcome.model, {})[outcome.task] = outcome
    failed = {name for name, tasks in held.items() if any(one.error is not None for one in tasks.values())}
    if labels[0] in failed:
        error = next(one.error for one in held[labels[0]].values() if one.error is not None)
        msg = f"the baseline {labels[0]} failed, so that there is nothing to compare with: {error}"
        raise ReasonEmbedError(msg)
    names = [[one.metadata.name for one in suite] for suite in (reasoning, general)]
    base = held[labels[0]]
    records = [
        TaxRecord(
            model=label,
            baseline=labels[0],
            reasoning=_suite_score(names[0], held[label], base),
            general=_suite_score(names[1], held[label], base),
            limit=options.limit,
            versions=package_versions(),
        )
        for label in labels[1:]
        if label not in failed
    ]
    return records, outcomes


def tax_name(record: TaxRecord) -> str:
    """Return what tells a record from others: the model, the baseline and the two suites.

    Args:
        record: What was measured.
    """
    suites = fingerprint(sorted(record.reasoning.tasks), sorted(record.general.tasks))
    return f"{record.model}-over-{record.baseline}-{suites[:8]}"


def _check_suites(reasoning: Sequence[AbsTask], general: Sequence[AbsTask]) -> None:
    for name, suite in (("reasoning", reasoning), ("general", general)):
        if not suite:
            msg = f"the {name} suite has no task; give at least one"
            raise ReasonEmbedError(msg)
        others = [one.metadata.name for one in suite if not hasattr(one, "convert_to_reranking")]
        if others:
            msg = f"no retrieval tasks: {first_names(others)}; the tax is over queries: leave them out"
            raise ReasonEmbedError(msg)
    both = {one.metadata.name for one in reasoning} & {one.metadata.name for one in general}
    if both:
        msg = f"{first_names(sorted(both))} would be in both suites; give each task to one of them"
        raise ReasonEmbedError(msg)


def _suite_score(tasks: Sequence[str], own: Mapping[str, Outcome], base: Mapping[str, Outcome]) -> SideScore:
    scores = {
        "model": {task: _by_query(own[task]) for task in tasks},
        "baseline": {task: _by_query(base[task]) for task in tasks},
    }
    flat = {name: _flat(found) for name, found in scores.items()}
    ours, theirs = score_matrix(flat)
    weights = _weights(scores["model"], list(flat["model"]))
    interval = bootstrap_interval([w * (a - b) for w, a, b in zip(weights, ours, theirs, strict=True)])
    return SideScore(
        tasks={task: _task_mean(found) for task, found in scores["model"].items()},
        baseline_tasks={task: _task_mean(found) for task, found in scores["baseline"].items()},
        mean=_mean([_task_mean(found) for found in scores["model"].values()]),
        baseline_mean=_mean([_task_mean(found) for found in scores["baseline"].values()]),
        pooled=float(ours.mean()),
        baseline_pooled=float(theirs.mean()),
        difference=(interval.mean, interval.low, interval.high),
        queries=len(ours),
        metrics=tuple(dict.fromkeys(own[task].metric for task in tasks)),
    )


def _by_query(outcome: Outcome) -> TaskScores:
    """Return a task's main scores by pool and query."""
    if outcome.scores_file is None:
        msg = f"{outcome.model} on {outcome.task} has no scores by query; run it again with --overwrite"
        raise DataError(msg)
    read = read_scores(outcome.scores_file, ["query_id", outcome.metric]).table
    found: TaskScores = {}
    columns: Any = (read[name].to_pylist() for name in ("split", "subset", "query_id", outcome.metric))
    for split, subset, query, score in zip(*columns, strict=True):
        # A query without judgements for a measure has none.
        if score is not None:
            found.setdefault(f"{split}/{subset}", {})[query] = score
    if not found:
        msg = f"{outcome.model} on {outcome.task} has no {outcome.metric} by query; leave the task out"
        raise DataError(msg)
    return found


def _flat(tasks: Mapping[str, TaskScores]) -> dict[str, float]:
    return {
        f"{task}/{pool}/{query}": score
        for task, pools in tasks.items()
        for pool, scores in pools.items()
        for query, score in scores.items()
    }


def _weights(tasks: Mapping[str, TaskScores], queries: Sequence[str]) -> list[float]:
    """Return a weight a query, so that the plain mean of weighted scores is the macro mean over tasks."""
    return [
        len(queries) / (len(tasks) * len(pools) * len(scores))
        for pools in tasks.values()
        for scores in pools.values()
        for _ in scores
    ]


def _task_mean(pools: TaskScores) -> float:
    """Return a task's score: the mean over its pools, as MTEB takes it."""
    return _mean([_mean(list(scores.values())) for scores in pools.values()])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
