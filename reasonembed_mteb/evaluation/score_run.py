"""Scoring runs by the protocol, with pytrec_eval and under MTEB's metric names; measures of tasks besides.

Excluded documents leave before any cut, and out of the labels too. Ties are pytrec_eval's: document id
descending. The mean is over every labelled query; one that a run has no rows for scores 0. A measure of
nuggets or of worse documents is the mean over the queries that have such judgements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import DataError, first_names, unknown_name
from reasonembed_mteb.evaluation.scores import MEASURES, mrr_at, mteb_names
from reasonembed_mteb.retrieval.measures import EXAMPLES, MEASURE, Judged, query_measures

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path


# `k_values` of MTEB's AbsTaskRetrieval.
CUTS = (1, 3, 5, 10, 20, 100, 1000)
# In the order of MTEB's result files.
_STEMS = (*MEASURES.values(),)
METRICS = tuple(f"{stem}_at_{k}" for stem in (*_STEMS[:-1], "mrr", _STEMS[-1]) for k in CUTS)
DEFAULT_METRIC = "ndcg_at_10"


@dataclass(frozen=True)
class Judgements:
    """What runs are scored against.

    Attributes:
        name: Task or file, for people.
        labels: Labels by query and document id.
        excluded: Documents that do not count, by query id.
        main_score: MTEB's name of the main metric, or one of the measures.
        suspects: What scorers must know of the labels, one line each.
        measures: Measures besides MTEB's; see `reasonembed_mteb.retrieval.measures`.
        judged: What the measures need, by query id.
    """

    name: str
    labels: dict[str, dict[str, int]]
    excluded: Mapping[str, Collection[str]]
    main_score: str = DEFAULT_METRIC
    suspects: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    judged: Mapping[str, Judged] = field(default_factory=dict)


@dataclass(frozen=True)
class RunScores:
    """One run, scored.

    Attributes:
        per_query: MTEB's metrics and the measures by query id, for every labelled query.
        scores: Their means, not rounded; a measure that no query is judged for is left out.
        main_score: Name of the main metric.
        without_rows: Labelled queries that the run has no rows for; they score 0.
        without_labels: Queries of the run that have no labels; they are left out.
        removed: Excluded documents that the run held.
        shortened: Queries that hold fewer documents than the deepest cut since those left.
    """

    per_query: dict[str, dict[str, float]]
    scores: dict[str, float]
    main_score: str
    without_rows: tuple[str, ...]
    without_labels: tuple[str, ...]
    removed: int
    shortened: int

    def remarks(self) -> list[str]:
        """Return what a reader of the scores must know, one line each."""
        found = []
        if self.without_rows:
            found.append(f"{_queries(self.without_rows)} of the labels not in the run: counted with score 0")
        if self.without_labels:
            found.append(f"{_queries(self.without_labels)} of the run without labels: left out")
        if self.shortened:
            found.append(
                f"{self.removed:,} excluded documents taken out, after which {self.shortened:,} queries hold "
                f"fewer than {CUTS[-1]:,}: deep metrics are lower bounds if the run was cut before"
            )
        return found


def _queries(ids: tuple[str, ...]) -> str:
    return f"{len(ids):,} {'query' if len(ids) == 1 else 'queries'} ({first_names(map(repr, ids), 3)})"


def per_query_metrics(
    run: Mapping[str, Mapping[str, float]], labels: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, float]]:
    """Compute MTEB's retrieval metrics of every query that has both rows and labels.

    Args:
        run: Scores by query and document id.
        labels: Labels by query and document id.

    Returns:
        By query id, the metrics of `METRICS`.
    """
    import pytrec_eval

    cuts = ",".join(map(str, CUTS))
    measures = {f"{name}.{cuts}" for name in MEASURES} | {"recip_rank"}
    evaluated = pytrec_eval.RelevanceEvaluator(labels, measures).evaluate(run)
    rows = {query: mteb_names(row) | mrr_at(row["recip_rank"], CUTS) for query, row in evaluated.items()}
    return {query: {name: row[name] for name in METRICS} for query, row in rows.items()}


def score_run(run: Mapping[str, Mapping[str, float]], judgements: Judgements) -> RunScores:
    """Score a run by the protocol.

    Args:
        run: Scores by query and document id.
        judgements: What to score it against.

    Raises:
        DataError: If the run and the labels have no query in common.
    """
    labels = judgements.labels
    if not run.keys() & labels.keys():
        raise _nothing_in_common(run, judgements)
    counting: dict[str, Mapping[str, float]] = {}
    removed = shortened = 0
    for query in labels:
        # No rows is an empty ranking: pytrec_eval would leave the query out of the mean.
        found = run.get(query, {})
        out = found.keys() & judgements.excluded.get(query, ())
        if out:
            found = {document: score for document, score in found.items() if document not in out}
            removed += len(out)
            shortened += len(found) < CUTS[-1]
        counting[query] = found
    per_query = per_query_metrics(counting, labels)
    for query, row in per_query.items():
        row |= _measured(counting[query], query, judgements)
    return RunScores(
        per_query=per_query,
        scores=_means(per_query, judgements),
        main_score=judgements.main_score,
        without_rows=tuple(query for query in labels if not run.get(query)),
        without_labels=tuple(query for query in run if query not in labels),
        removed=removed,
        shortened=shortened,
    )


def _measured(found: Mapping[str, float], query: str, judgements: Judgements) -> dict[str, float]:
    ranked = sorted(found, key=lambda document: (found[document], document), reverse=True)
    judged = judgements.judged.get(query, Judged())
    return query_measures(judgements.measures, ranked, judgements.labels[query], judged)


def _means(per_query: Mapping[str, Mapping[str, float]], judgements: Judgements) -> dict[str, float]:
    means = {}
    for name in dict.fromkeys((*METRICS, *judgements.measures)):
        held = [row[name] for row in per_query.values() if name in row]
        if held:
            means[name] = math.fsum(held) / len(held)
    if judgements.main_score not in means:
        msg = (
            f"{judgements.name} is scored by {judgements.main_score}, and no query has the judgements for "
            "it: check the data"
        )
        raise DataError(msg)
    return means


def _nothing_in_common(run: Mapping[str, object], judgements: Judgements) -> DataError:
    one, other = next(iter(run), ""), next(iter(judgements.labels), "")
    hint = "give the labels that belong to the run"
    for query in run:
        known = next((label for label in judgements.labels if query.endswith(label)), None)
        if known is not None:
            hint = f"--prefix {query.removesuffix(known)!r} strips what stands before the query ids"
            break
    return DataError(
        f"no query of the run has labels in {judgements.name} (ids such as {one!r} and {other!r}); {hint}"
    )


def strip_prefix(run: dict[str, dict[str, float]], prefix: str) -> dict[str, dict[str, float]]:
    """Take a prefix off a run's query ids; ids without it stay.

    Args:
        run: Scores by query and document id.
        prefix: Such as ``biology-``.

    Raises:
        DataError: If no id begins with it, or two ids would become one.
    """
    if not prefix:
        return run
    if not any(query.startswith(prefix) for query in run):
        msg = f"no query id begins with {prefix!r} (the first is {next(iter(run), '')!r}); correct the prefix"
        raise DataError(msg)
    stripped = {query.removeprefix(prefix): found for query, found in run.items()}
    if len(stripped) != len(run):
        msg = f"without the prefix {prefix!r} two queries of the run share an id; part them into two runs"
        raise DataError(msg)
    return stripped


def judge(
    name: str,
    labels: Mapping[str, Mapping[str, int]],
    excluded: Mapping[str, Collection[str]] | None = None,
    main_score: str = DEFAULT_METRIC,
) -> Judgements:
    """Check labels and take the excluded documents out of them.

    Args:
        name: Task or file, for people.
        labels: Labels by query and document id. Negative ones count as not relevant, as in trec_eval.
        excluded: Documents that do not count, by query id.
        main_score: MTEB's name of the main metric.
    """
    excluded = excluded or {}
    kept = {
        query: {document: label for document, label in found.items() if document not in out}
        for query, found in labels.items()
        for out in [frozenset(excluded.get(query, ()))]
    }
    dropped = sum(map(len, labels.values())) - sum(map(len, kept.values()))
    negative = sum(label < 0 for found in kept.values() for label in found.values())
    empty = tuple(query for query, found in kept.items() if not found)
    kept = {query: found for query, found in kept.items() if found}
    barren = tuple(query for query, found in kept.items() if max(found.values()) <= 0)
    suspects = []
    if dropped:
        suspects.append(f"{dropped:,} labelled documents are excluded: they count as excluded")
    if negative:
        suspects.append(f"{negative:,} negative labels: they count as not relevant")
    if empty:
        suspects.append(f"{_queries(empty)} without any label: left out, as MTEB does")
    if barren:
        suspects.append(f"{_queries(barren)} without a relevant document: counted with score 0")
    strangers = [query for query in excluded if query not in labels]
    if len(strangers) == len(excluded) > 0:
        suspects.append("no excluded query id has labels: labels and exclusions do not belong together")
    return Judgements(name, kept, excluded, main_score, tuple(suspects))


def judgements_from_files(qrels: Path, exclude: Path | None = None) -> Judgements:
    """Read labels and exclusions from files, TREC's or those of a BEIR folder.

    Args:
        qrels: See `reasonembed_mteb.retrieval.beir.read_labels`.
        exclude: See `reasonembed_mteb.retrieval.beir.read_excluded`.

    Raises:
        DataError: If a file cannot be read.
    """
    from reasonembed_mteb.retrieval.beir import read_excluded, read_labels

    return judge(qrels.name, read_labels(qrels), read_excluded(exclude) if exclude is not None else None)


def judgements_of_task(name: str, pool: str | None = None) -> Judgements:
    """Return a task's labels, exclusions and judgements; its corpus is not read.

    Args:
        name: See `reasonembed_mteb.retrieval.rows.find`.
        pool: Which pool of a task that has several, MTEB's subset of it; other tasks have none.

    Raises:
        UnknownNameError: If no task is called so, or it has no such pool.
        DataError: If the data is missing or damaged, or a pool has to be named.
    """
    from reasonembed_mteb.retrieval.layouts import labels_of_pool, load_labels
    from reasonembed_mteb.retrieval.rows import find

    row = find(name)
    if row.pools and pool is None:
        msg = (
            f"{row.name} ranks in each of its pools: give a run of one, and --subset: {', '.join(row.pools)}"
        )
        raise DataError(msg)
    found = load_labels(row)
    title = row.name
    if row.pools and pool is not None:
        found, title = labels_of_pool(row, found, pool), f"{row.name}, {pool}"
    made = judge(title, found.labels, found.excluded, row.main_score)
    return replace(made, measures=row.measures, judged=found.judged)


def with_measures(judgements: Judgements, names: Sequence[str]) -> Judgements:
    """Have further measures computed.

    Args:
        judgements: What a run is scored against.
        names: See `reasonembed_mteb.retrieval.measures.EXAMPLES`, at any cut.

    Raises:
        UnknownNameError: If there is no such measure; the nearest is named.
    """
    for name in names:
        if not MEASURE.fullmatch(name) and name not in METRICS:
            raise unknown_name("measure", name, (*EXAMPLES, *METRICS))
    own = [name for name in names if name not in METRICS]
    return replace(judgements, measures=tuple(dict.fromkeys((*judgements.measures, *own))))
