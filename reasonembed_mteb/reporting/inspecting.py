"""Single queries: what models found for one, a model's worst, and where two differ most."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.reporting.queries import (
    Texts,
    local_texts,
    main_metric,
    read_rankings,
    read_scores_by_query,
)
from reasonembed_mteb.reporting.tables import metric_name
from reasonembed_mteb.reporting.trails import query_trail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reasonembed_mteb.reporting.results import Model, Result, ResultSet
    from reasonembed_mteb.reporting.trails import Trail


@dataclass(frozen=True)
class Document:
    """A document as a model, or the labels, see it.

    Attributes:
        id: Document id.
        text: Its text, or None where the data is not at hand.
        rank: From 1; None where the model did not find it.
        score: The model's score, or None.
        relevant: Whether the labels say so.
    """

    id: str
    text: str | None
    rank: int | None
    score: float | None
    relevant: bool


@dataclass(frozen=True)
class ModelAnswer:
    """What one model found.

    Attributes:
        model: The model's label.
        score: The query's score.
        top: Its best documents.
        gold: The relevant ones, with the rank that the model gives each.
    """

    model: str
    score: float
    top: list[Document]
    gold: list[Document]


@dataclass(frozen=True)
class QueryReport:
    """One query, and what models found for it.

    Attributes:
        task: MTEB task name.
        query: Query id.
        text: The query, or None where the data is not at hand.
        metric: What the scores are.
        answers: One per model.
        missing: Why there are no texts, or an empty string.
        trails: The query through the stages of each pipeline.
        documents: Texts of the documents that the trails show.
    """

    task: str
    query: str
    text: str | None
    metric: str
    answers: list[ModelAnswer]
    missing: str = ""
    trails: list[Trail] = field(default_factory=list)
    documents: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QueryEntry:
    """A query in a list.

    Attributes:
        task: MTEB task name.
        query: Query id.
        scores: One per model that was asked about.
        text: The query, or None where the data is not at hand.
    """

    task: str
    query: str
    scores: tuple[float, ...]
    text: str | None = None


def inspect_query(
    results: ResultSet, task: str, query: str, models: Sequence[str] = (), top: int = 5
) -> QueryReport:
    """Return what models found for one query.

    Args:
        results: What was read.
        task: MTEB task name.
        query: Query id.
        models: Labels or names; none means every model with scores by query.
        top: How many documents.

    Raises:
        UnknownNameError: If the task, the query or a model is not there.
        ReasonEmbedError: If nobody kept scores by query.
    """
    labels = results.labels
    wanted = [results.model(name) for name in models]
    kept = [one for one in _kept(results, task) if not wanted or one.model in wanted]
    if not kept:
        msg = f"{', '.join(models)} kept no scores by query on {task}; `reasonembed run` keeps them"
        raise ReasonEmbedError(msg)
    scores = [read_scores_by_query(one) for one in kept]
    found = [read_rankings(one, [query]).get(query) for one in kept]
    holders = [
        (one, by_query, f) for one, by_query, f in zip(kept, scores, found, strict=True) if f is not None
    ]
    if not holders:
        raise unknown_name("query", query, dict.fromkeys(name for ids in scores for name in ids))
    documents = {name for _, _, f in holders for name in (*f.gold, *(hit for hit, _ in f.hits[:top]))}
    walked = [query_trail(one, labels[one.model], query, f.gold, top) for one, _, f in holders]
    trails = [trail for trail in walked if trail is not None]
    moved = {name for trail in trails for name in trail.documents}
    documents |= moved
    texts = local_texts(task, [query], documents)
    answers = []
    for one, by_query, f in holders:
        ranks = {name: (rank, score) for rank, (name, score) in enumerate(f.hits, 1)}
        shown = [_document(name, ranks, f.gold, texts) for name, _ in f.hits[:top]]
        gold = [_document(name, ranks, f.gold, texts) for name in f.gold]
        gold.sort(key=lambda document: document.rank or len(ranks) + 1)
        answers.append(ModelAnswer(labels[one.model], by_query[query], shown, gold))
    answers.sort(key=lambda answer: (-answer.score, answer.model))
    metric = metric_name(main_metric(kept[0]))
    own = {name: text for name, text in texts.documents.items() if name in moved}
    return QueryReport(task, query, texts.queries.get(query), metric, answers, texts.missing, trails, own)


def _document(name: str, ranks: dict[str, tuple[int, float]], gold: Sequence[str], texts: Texts) -> Document:
    rank, score = ranks.get(name, (None, None))
    return Document(name, texts.documents.get(name), rank, score, name in gold)


def worst(results: ResultSet, model: str, task: str | None = None, count: int = 20) -> list[QueryEntry]:
    """Return the queries on which a model scores worst.

    Args:
        results: What was read.
        model: Label or name.
        task: One task alone.
        count: How many.

    Raises:
        UnknownNameError: If the model or the task is not there.
        ReasonEmbedError: If it kept no scores by query.
    """
    own = _of(results, results.model(model), task)
    listed = [
        QueryEntry(one.task, query, (score,))
        for one in own
        for query, score in read_scores_by_query(one).items()
    ]
    listed.sort(key=lambda query: (query.scores[0], query.task, query.query))
    return _with_texts(listed[:count])


def differ(
    results: ResultSet, first: str, second: str, task: str | None = None, count: int = 20
) -> list[QueryEntry]:
    """Return the queries on which two models disagree most.

    Args:
        results: What was read.
        first: Label or name.
        second: Label or name.
        task: One task alone.
        count: How many.

    Raises:
        UnknownNameError: If a model or the task is not there.
        ReasonEmbedError: If they share no query with scores kept.
    """
    one, two = results.model(first), results.model(second)
    if one == two:
        msg = f"{first!r} and {second!r} are one model: give two"
        raise ReasonEmbedError(msg)
    theirs = {(result.task, result.split, result.subset): result for result in _of(results, two, task)}
    listed = []
    for result in _of(results, one, task):
        other = theirs.get((result.task, result.split, result.subset))
        if other is None:
            continue
        scores = read_scores_by_query(other)
        listed += [
            QueryEntry(result.task, query, (score, scores[query]))
            for query, score in read_scores_by_query(result).items()
            if query in scores
        ]
    if not listed:
        msg = f"{first} and {second} share no task with scores by query; run both on the same tasks"
        raise ReasonEmbedError(msg)
    listed.sort(key=lambda query: (-abs(query.scores[0] - query.scores[1]), query.task, query.query))
    return _with_texts(listed[:count])


def _kept(results: ResultSet, task: str) -> list[Result]:
    """Return a task's results that have scores by query."""
    of_task = [result for result in results.found if result.task == task]
    if not of_task:
        raise unknown_name("task of these results", task, {result.task for result in results.found})
    kept = [result for result in of_task if result.scores_file is not None and result.limit is None]
    if not kept:
        msg = f"nobody kept scores by query on {task}; run it with `reasonembed run`, which keeps them"
        raise ReasonEmbedError(msg)
    return kept


def _of(results: ResultSet, model: Model, task: str | None) -> list[Result]:
    """Return a model's full results that have scores by query."""
    found = _kept(results, task) if task is not None else results.found
    held = [one for one in found if one.model == model and one.scores_file is not None and one.limit is None]
    if not held:
        where = f" on {task}" if task else ""
        msg = f"{results.labels[model]} kept no scores by query{where}; `reasonembed run` keeps them"
        raise ReasonEmbedError(msg)
    return held


def _with_texts(listed: Sequence[QueryEntry]) -> list[QueryEntry]:
    wanted: dict[str, list[str]] = {}
    for query in listed:
        wanted.setdefault(query.task, []).append(query.query)
    texts = {task: local_texts(task, queries, ()).queries for task, queries in wanted.items()}
    return [replace(query, text=texts[query.task].get(query.query)) for query in listed]
