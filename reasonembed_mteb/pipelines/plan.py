"""What a pipeline would ask: calls, tokens and price of every stage, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.pipelines.config import (
    EndpointStage,
    IterateStage,
    ListwiseStage,
    PointwiseStage,
    RewriteStage,
    needs_endpoint,
)
from reasonembed_mteb.pipelines.listwise import windows
from reasonembed_mteb.pipelines.pool import check_task
from reasonembed_mteb.pipelines.templates import stage_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mteb.abstasks import AbsTask

    from reasonembed_mteb.pipelines.config import PipelineConfig

# Characters of English text a token of today's vocabularies, about, and of a word with its space.
_CHARACTERS, _WORD = 4, 6
# Tokens of a rewriting, about; the longest answer where that is shorter.
_REWRITING = 600
# Tokens of one identifier in a ranking: [12] and what stands between.
_IDENTIFIER = 5
# Documents whose lengths are looked at, evenly over a corpus.
_SAMPLE = 1000


@dataclass(frozen=True)
class StageEstimate:
    """One stage of a pipeline on one task.

    Attributes:
        task: MTEB task name.
        stage: The stage.
        calls: At most so many requests.
        prompt_tokens: Their length, about.
        completion_tokens: Their answers' length, about.
        price: By the endpoint's prices; None without.
    """

    task: str
    stage: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None


@dataclass(frozen=True)
class _Sizes:
    """A task's size: queries, documents of its largest pool, and their mean lengths in characters."""

    queries: int
    documents: int
    query: int
    document: int


def estimate_pipeline(
    config: PipelineConfig, tasks: Sequence[AbsTask], limit: int | None = None
) -> list[StageEstimate]:
    """Say what a run would ask at most, as if nothing had been answered yet.

    Args:
        config: The pipeline's file.
        tasks: MTEB retrieval tasks.
        limit: Number of queries of a smoke run.

    Returns:
        One estimate a task and stage that asks.

    Raises:
        DataError: If a task's data cannot be read.
    """
    asking = [stage for stage in config.stages if needs_endpoint(stage)]
    return [
        _estimate(config, stage, task.metadata.name, sizes)
        for task in tasks
        for sizes in [_sizes(task, limit)]
        for stage in asking
    ]


def _sizes(task: Any, limit: int | None) -> _Sizes:  # noqa: ANN401 - AbsTaskRetrieval
    """Return a task's size, over all its pools; the task stays as it is."""
    from reasonembed_mteb.evaluation.limits import limit_task, own_copy

    own = own_copy(task)
    check_task(own)
    own.load_data()
    own.convert_v1_dataset_format_to_v2(num_proc=None)
    if limit is not None:
        limit_task(own, limit)
    pools = [split for splits in own.dataset.values() for split in splits.values()]
    # Queries without a label are not scored, and not asked about.
    texts = [
        text
        for pool in pools
        for query, text in zip(pool["queries"]["id"][:], pool["queries"]["text"][:], strict=True)
        if pool["relevant_docs"].get(query)
    ]
    documents = [text for pool in pools for text in _sampled(pool["corpus"])]
    return _Sizes(
        len(texts), max(len(pool["corpus"]) for pool in pools), _mean_length(texts), _mean_length(documents)
    )


def _sampled(corpus: Any) -> list[str]:  # noqa: ANN401 - datasets.Dataset
    step = max(1, len(corpus) // _SAMPLE)
    found: list[str] = corpus.select(range(0, len(corpus), step))["text"][:]
    return found


def _mean_length(texts: Sequence[str]) -> int:
    return sum(map(len, texts)) // max(len(texts), 1)


def _estimate(config: PipelineConfig, stage: Any, task: str, sizes: _Sizes) -> StageEstimate:  # noqa: ANN401
    calls, characters, answer = _calls(stage, sizes)
    if not isinstance(stage, EndpointStage):
        template = stage_template(stage, config)
        characters += len(template.system) + len(template.user)
        answer = min(answer, stage.max_tokens)
    prompt, completion = calls * characters // _CHARACTERS, calls * answer
    price = config.endpoint(stage).cost(prompt, completion)
    return StageEstimate(task, stage.name, calls, prompt, completion, price)


def _calls(stage: Any, sizes: _Sizes) -> tuple[int, int, int]:  # noqa: ANN401 - any stage that asks
    """Return the number of requests, the characters of one besides its template, and its answer's tokens."""
    if isinstance(stage, RewriteStage):
        return sizes.queries * stage.samples, sizes.query, _REWRITING
    words = getattr(stage, "words", None)
    document = sizes.document if words is None else min(sizes.document, _WORD * words)
    if isinstance(stage, IterateStage):
        shown = min(stage.documents, sizes.documents)
        return sizes.queries * stage.rounds, sizes.query + shown * document, _REWRITING
    depth = min(stage.asked_depth, sizes.documents)
    if isinstance(stage, PointwiseStage):
        return sizes.queries * depth, sizes.query + document, 2
    if isinstance(stage, ListwiseStage):
        own = windows(depth, stage.window, stage.step)
        width = max((end - start for start, end in own), default=0)
        return sizes.queries * len(own), sizes.query + width * document, _IDENTIFIER * width
    groups = -(-depth // stage.documents)
    each = -(-depth // groups) if groups else 0
    return sizes.queries * groups, sizes.query + each * document, 0
