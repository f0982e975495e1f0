"""Searching by one or more models on original or rewritten queries, exclusions before the cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.stages import BASELINE, Ranked, StageNote, StageOutput
from reasonembed_mteb.pipelines.config import ORIGINAL, RetrieveStage
from reasonembed_mteb.pipelines.fuse import fuse_rankings
from reasonembed_mteb.retrieval.lengths import capped_length
from reasonembed_mteb.retrieval.search import excluding_search

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reasonembed_mteb.evaluation.stages import Ranking, Texts
    from reasonembed_mteb.pipelines.config import RetrieverSection
    from reasonembed_mteb.pipelines.pool import Pool, State, Tools

# What MTEB's evaluation asks a search for.
MTEB_TOP_K = 1000


def search(model: Any, pool: Pool, texts: Texts, top_k: int, rrf_k: int) -> Ranking:  # noqa: ANN401 - an MTEB model
    """Search all texts of all queries; the rankings of one query's texts are fused by reciprocal ranks.

    Args:
        model: A loaded MTEB model.
        pool: Corpus, exclusions, and how MTEB calls a search.
        texts: By query.
        top_k: Documents a query.
        rrf_k: Constant of the reciprocal ranks.
    """
    most = max(map(len, texts.values()), default=0)
    rounds = [
        _search_once(model, pool, {q: own[n] for q, own in texts.items() if len(own) > n}, top_k)
        for n in range(most)
    ]
    if most == 1:
        return rounds[0]
    several = fuse_rankings(rounds, list(texts), "rrf", [1.0] * most, rrf_k)
    return {query: Ranked(found.documents[:top_k], found.scores[:top_k]) for query, found in several.items()}


def _search_once(model: Any, pool: Pool, texts: Mapping[str, str], top_k: int) -> Ranking:  # noqa: ANN401
    """Search one text a query, as MTEB's evaluation would; no later stage sees a query's own document."""
    # One more, which leaves; MTEB's evaluation takes it out of as many as it searches.
    most = max(top_k, min(top_k + pool.ignores_own_id, MTEB_TOP_K))
    with capped_length(model, pool.max_tokens):
        wrapped = excluding_search(model, pool.excluded)
        wrapped.index(pool.corpus, task_metadata=pool.task, **pool.call)
        found = wrapped.search(
            _queries(pool, texts),
            top_k=most,
            task_metadata=pool.task,
            top_ranked=None if pool.top_ranked is None else {q: pool.top_ranked.get(q, []) for q in texts},
            **pool.call,
        )
    name = str(getattr(getattr(model, "mteb_model_meta", None), "name", "the model"))
    return {query: _ranked(_counting(found.get(query, {}), query, pool), top_k, name) for query in texts}


def _counting(scores: Mapping[str, float], query: str, pool: Pool) -> Mapping[str, float]:
    """Return a query's documents without its own, where that does not count."""
    if not pool.ignores_own_id:
        return scores
    return {document: score for document, score in scores.items() if document != query}


def _queries(pool: Pool, texts: Mapping[str, str]) -> Any:  # noqa: ANN401 - datasets.Dataset
    """Return a data set of queries; the task's own where nothing was rewritten."""
    if dict(texts) == pool.texts:
        return pool.queries
    from datasets import Dataset

    places = {query: place for place, query in enumerate(pool.texts)}
    rows = pool.queries.select([places[query] for query in texts])
    # Other columns, such as an instruction, stay.
    kept = {name: rows[name][:] for name in rows.column_names if name != "text"}
    return Dataset.from_dict(kept | {"text": list(texts.values())})


def _ranked(scores: Mapping[str, float], top_k: int, name: str) -> Ranked:
    """Sort as trec_eval does: in single precision, equal scores by id descending."""
    if np.isnan(list(scores.values())).any():
        msg = f"{name} scores documents as NaN; try another dtype"
        raise DataError(msg)
    best = sorted(scores.items(), key=lambda hit: (np.float32(hit[1]), hit[0]), reverse=True)[:top_k]
    return Ranked(
        [document for document, _ in best], np.array([score for _, score in best], dtype=np.float64)
    )


def retrieve(stage: RetrieveStage, pool: Pool, state: State, tools: Tools) -> tuple[StageOutput, StageNote]:
    """Run the stage: one ranking a retriever.

    Args:
        stage: Its table.
        pool: What is searched.
        state: The rewritten queries.
        tools: Loads the models.
    """
    rankings: dict[str, Ranking] = {}
    for retriever in stage.retriever:
        model, name = tools.load(retriever), asked_queries(retriever, state)
        texts = state.queries(name, pool)
        rankings[retriever.label] = search(model, pool, texts, stage.top_k, stage.rrf_k)
        if stage.original and name != ORIGINAL:
            original = state.queries(ORIGINAL, pool)
            rankings[BASELINE + retriever.label] = search(model, pool, original, stage.top_k, stage.rrf_k)
    return StageOutput(rankings=rankings), StageNote()


def asked_queries(retriever: RetrieverSection, state: State) -> str:
    """Return the name of the queries that a retriever is asked.

    Args:
        retriever: Without a choice of its own it takes the last rewriting.
        state: The rewritings so far.
    """
    return retriever.queries or next(reversed(state.texts), ORIGINAL)


def handed_on(output: StageOutput) -> StageOutput:
    """Return a retrieval's output without what was only measured.

    Args:
        output: See `retrieve`.
    """
    kept = {name: own for name, own in output.rankings.items() if not name.startswith(BASELINE)}
    return StageOutput(output.texts, kept)
