"""Reranking the best documents of each query: by a cross-encoder, a server, or a language model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation.stages import Ranked, StageCost, StageNote, StageOutput
from reasonembed_mteb.llm.grades import GRADED, GradeReranker, first_words
from reasonembed_mteb.llm.replies import CHAT
from reasonembed_mteb.llm.reranking import EndpointReranker
from reasonembed_mteb.pipelines.asking import cost_of, stage_client
from reasonembed_mteb.pipelines.config import (
    CrossEncoderStage,
    EndpointStage,
    ListwiseStage,
    PointwiseStage,
)
from reasonembed_mteb.pipelines.fuse import in_order, normalised
from reasonembed_mteb.pipelines.listwise import sort_lists
from reasonembed_mteb.pipelines.templates import stage_template
from reasonembed_mteb.retrieval.reranker import score_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.pipelines.config import RerankSection
    from reasonembed_mteb.pipelines.pool import Pool, State, Tools
    from reasonembed_mteb.retrieval.reranker import Pair

Scores = dict[str, "NDArray[np.float64]"]


def reranked(before: Ranked, scores: NDArray[np.float64], weight: float) -> Ranked:
    """Put a reranker's order on the first documents; the others stay below them.

    Equal scores keep the order before. A document without a score counts as the worst that has one; where no
    document has a score, the order stays.

    Args:
        before: The ranking before.
        scores: ``(K,)``, of its first documents; NaN where there is none.
        weight: Of the ranking before. Both sides are normalised per query (min-max) where it is above 0.
    """
    depth = len(scores)
    if not depth or np.isnan(scores).all():
        return before
    filled = np.where(np.isnan(scores), np.nanmin(scores), scores).astype(np.float64)
    if weight:
        first = normalised(before.scores[:depth], "min-max")
        filled = weight * first + (1 - weight) * normalised(filled, "min-max")
    top = in_order(before.documents[:depth], filled)
    rest = len(before.documents) - depth
    # Below the last one, whatever scale it is on.
    below = top.scores[-1] - np.arange(1, rest + 1, dtype=np.float64)
    return Ranked([*top.documents, *before.documents[depth:]], np.concatenate([top.scores, below]))


def rerank(stage: RerankSection, pool: Pool, state: State, tools: Tools) -> tuple[StageOutput, StageNote]:
    """Run the stage.

    Args:
        stage: Its table.
        pool: Queries and documents.
        state: The ranking before.
        tools: Models, clients and budget.
    """
    before = state.ranking
    queries = {query: own[0] for query, own in state.queries(stage.queries, pool).items()}
    lists = {query: before[query].documents[: stage.asked_depth] for query in pool.texts if query in before}
    scores, note = _scores(stage, pool, queries, lists, tools)
    made = {query: reranked(before[query], scores[query], stage.weight) for query in lists}
    return StageOutput(rankings={stage.name: made}), note


def _scores(
    stage: RerankSection,
    pool: Pool,
    queries: Mapping[str, str],
    lists: Mapping[str, Sequence[str]],
    tools: Tools,
) -> tuple[Scores, StageNote]:
    """Return a score of each document of each list, and what that cost."""
    documents = pool.documents({name for own in lists.values() for name in own})
    if isinstance(stage, ListwiseStage):
        return _sorted_scores(stage, pool, queries, lists, documents, tools)
    pairs = [(queries[query], documents[name]) for query, own in lists.items() for name in own]
    scores, note = _pair_scores(stage, pool, pairs, tools)
    cuts = np.cumsum([len(own) for own in lists.values()])[:-1]
    return dict(zip(lists, np.split(scores, cuts), strict=True)), note


def _sorted_scores(
    stage: ListwiseStage,
    pool: Pool,
    queries: Mapping[str, str],
    lists: Mapping[str, Sequence[str]],
    documents: Mapping[str, str],
    tools: Tools,
) -> tuple[Scores, StageNote]:
    template = stage_template(stage, tools.config)
    with stage_client(stage, pool, tools) as client:
        made, counts = sort_lists(stage, template, queries, lists, documents, client)
        cost = cost_of(client.usage, client.endpoint)
    return {query: places_as_scores(lists[query], made[query]) for query in lists}, _note(cost, counts)


def places_as_scores(before: Sequence[str], after: Sequence[str]) -> NDArray[np.float64]:
    """Return how many documents stand below each, in the order before.

    Args:
        before: Documents.
        after: The same ones, best first.
    """
    below = {name: float(len(after) - place) for place, name in enumerate(after, 1)}
    return np.array([below[name] for name in before], dtype=np.float64)


def _pair_scores(
    stage: RerankSection, pool: Pool, pairs: Sequence[Pair], tools: Tools
) -> tuple[NDArray[np.float64], StageNote]:
    if isinstance(stage, CrossEncoderStage):
        return _by_model(stage, pool, pairs, tools)
    if isinstance(stage, EndpointStage):
        return _by_server(stage, pairs, tools)
    assert isinstance(stage, PointwiseStage)
    template = stage_template(stage, tools.config)
    with stage_client(stage, pool, tools, GRADED if stage.logprobs else CHAT) as client:
        reranker = GradeReranker(client, template, sampling=stage.sampling, words=stage.words)
        # Not in parts: every answer is kept already.
        scores = reranker.score(pairs)
        return scores, _scored_note(scores, cost_of(client.usage, client.endpoint), reranker.counts)


def _by_server(
    stage: EndpointStage, pairs: Sequence[Pair], tools: Tools
) -> tuple[NDArray[np.float64], StageNote]:
    if tools.batch is not None:
        msg = f"stage {stage.name}: a rerank API takes no batch; leave out --batch-requests"
        raise ReasonEmbedError(msg)
    endpoint = tools.config.endpoint(stage)
    reranker = EndpointReranker(
        endpoint,
        tools.answers,
        api=stage.api,
        instruction=stage.instruction,
        documents=stage.documents,
        budget=tools.budget,
        retry_errors=tools.retry_errors,
    )
    cut = [(query, first_words(document, stage.words)) for query, document in pairs]
    with reranker:
        scores = reranker.score(cut)
        return scores, _scored_note(scores, cost_of(reranker.usage, endpoint), Counter())


def _by_model(
    stage: CrossEncoderStage, pool: Pool, pairs: Sequence[Pair], tools: Tools
) -> tuple[NDArray[np.float64], StageNote]:
    from reasonembed_mteb.models.cross_encoder import LoadedReranker
    from reasonembed_mteb.retrieval.lengths import capped_length

    model = tools.load(stage)
    reranker = LoadedReranker(model, pool.task, pool.call, batch_size=stage.batch_size)
    cut = [(query, first_words(document, stage.words)) for query, document in pairs]
    with capped_length(model, pool.max_tokens):
        scores = score_pairs(
            reranker,
            cut,
            folder=tools.folder / "pairs",
            keep_unscored=True,
            show_progress=tools.progress,
        )
    return scores.astype(np.float64), _scored_note(scores, StageCost(), Counter())


def _scored_note(scores: NDArray[np.floating[Any]], cost: StageCost, counts: Counter[str]) -> StageNote:
    missing = {"documents without a score": int(np.isnan(scores).sum())}
    return _note(cost, counts + Counter(missing))


def _note(cost: StageCost, counts: Counter[str]) -> StageNote:
    return StageNote(cost, {name: count for name, count in sorted(counts.items()) if count})
