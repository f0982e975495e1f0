"""Retrieving again with queries that have seen the best documents so far; all candidates are kept."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.evaluation.stages import Ranked, StageNote, StageOutput
from reasonembed_mteb.pipelines.asking import cost_of, stage_client
from reasonembed_mteb.pipelines.config import RetrieveStage
from reasonembed_mteb.pipelines.fuse import fuse_rankings
from reasonembed_mteb.pipelines.listwise import numbered, shown_document
from reasonembed_mteb.pipelines.retrieve import search
from reasonembed_mteb.pipelines.rewrite import combined, with_originals, written_text
from reasonembed_mteb.pipelines.templates import stage_template

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reasonembed_mteb.evaluation.stages import Ranking, Texts
    from reasonembed_mteb.llm.templates import ChatTemplate
    from reasonembed_mteb.pipelines.asking import Client
    from reasonembed_mteb.pipelines.config import IterateStage, PipelineConfig, RetrieverSection
    from reasonembed_mteb.pipelines.pool import Pool, State, Tools


def iterate(stage: IterateStage, pool: Pool, state: State, tools: Tools) -> tuple[StageOutput, StageNote]:
    """Run the stage.

    The rankings of the round's retrievers and the one so far are fused by reciprocal ranks, with half of the
    weight on the one so far.

    Args:
        stage: Its table.
        pool: What is searched.
        state: The ranking before.
        tools: Client and retrievers.

    Raises:
        DataError: If a query gets no rewriting and the stage refuses to go on without.
    """
    ranking, counts = state.ranking, Counter[str]()
    retrievers = chosen_retrievers(stage, tools.config)
    template = stage_template(stage, tools.config)
    texts: dict[str, Texts] = {}
    with stage_client(stage, pool, tools) as client:
        for number in range(1, stage.rounds + 1):
            written = _write(stage, pool, ranking, template, client, counts)
            own = with_originals(written, pool.texts, stage, counts)
            found = [search(tools.load(one), pool, own, stage.top_k, stage.rrf_k) for one in retrievers]
            ranking = united(ranking, found, stage)
            texts[stage.name if number == stage.rounds else f"{stage.name} round {number}"] = own
        note = StageNote(cost_of(client.usage, client.endpoint), dict(sorted(counts.items())))
    return StageOutput(texts, {stage.name: ranking}), note


def united(before: Ranking, found: list[Ranking], stage: IterateStage) -> Ranking:
    """Return the candidates of all rounds.

    Args:
        before: The ranking so far.
        found: This round's, one a retriever.
        stage: Constant of the reciprocal ranks, and how many documents are kept.
    """
    weights = [float(len(found)), *[1.0] * len(found)]
    made = fuse_rankings([before, *found], list(before), "rrf", weights, stage.rrf_k)
    return {
        query: Ranked(one.documents[: stage.top_k], one.scores[: stage.top_k]) for query, one in made.items()
    }


def chosen_retrievers(stage: IterateStage, config: PipelineConfig) -> list[RetrieverSection]:
    """Return the retrievers of an iteration.

    Args:
        stage: Names some, or none for all before it.
        config: Holds them.
    """
    before = config.stages[: [one.name for one in config.stages].index(stage.name)]
    every = [one for other in before if isinstance(other, RetrieveStage) for one in other.retriever]
    return [one for one in every if stage.retrievers is None or one.label in stage.retrievers]


def _write(
    stage: IterateStage,
    pool: Pool,
    ranking: Ranking,
    template: ChatTemplate,
    client: Client,
    counts: Counter[str],
) -> dict[str, list[str]]:
    """Let the rewriter see the best documents; return the texts of the queries that it answered."""
    best = {query: ranking[query].documents[: stage.documents] for query in pool.texts if query in ranking}
    documents = pool.documents({name for own in best.values() for name in own})
    shown = {name: shown_document(text, stage.words) for name, text in documents.items()}
    answers = client.run(
        iterate_requests(stage, pool.texts, best, shown, template),
        total=len(pool.texts),
        description=stage.name,
    )
    found: dict[str, list[str]] = {}
    for (query, text), answer in zip(pool.texts.items(), answers, strict=True):
        written = written_text(answer, stage)
        if written is None:
            counts[f"no rewriting: {answer.error or 'empty'}"] += 1
        else:
            if answer.error == "length":
                counts["cut at max_tokens"] += 1
            found[query] = [combined(text, written, stage)]
    return found


def iterate_requests(
    stage: IterateStage,
    queries: Mapping[str, str],
    best: Mapping[str, list[str]],
    shown: Mapping[str, str],
    template: ChatTemplate,
) -> Iterator[Request]:
    """Yield what is asked in a round.

    Args:
        stage: Sampling.
        queries: Texts by id.
        best: Documents that are shown, by query.
        shown: Their texts.
        template: With ``$query`` and ``$documents``.
    """
    for query, text in queries.items():
        documents = numbered([shown[name] for name in best.get(query, ())])
        yield Request(
            f"{stage.name}/{query}", template.messages(query=text, documents=documents), *stage.sampling
        )
