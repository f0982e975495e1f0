"""The file of a pipeline: endpoints, budget and stages in their order, checked before anything runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.evaluation.stages import BASELINE
from reasonembed_mteb.llm.reranking import DOCUMENTS, SERVICES
from reasonembed_mteb.llm.sections import (
    Count,
    EndpointTable,
    Name,
    Section,
    Share,
    check_section,
    read_toml,
    refuse_keys,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reasonembed_mteb.endpoints.endpoint import Endpoint

EXAMPLE = "examples/pipeline-rewrites.toml"
# The queries as they are, for `queries = "..."`.
ORIGINAL = "original"
# Sums of weighted scores stay finite.
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
# Documents are cut after so many words; 0 leaves them whole, since TOML has no None.
Words = Annotated[Annotated[int, Field(ge=0)] | None, AfterValidator(lambda count: count or None)]
# Weights that a grid may try: each fuses and scores every query.
MOST_WEIGHTS = 10_000


class PriceSection(Section):
    """What a run may cost before it stops.

    Attributes:
        max_price: In the currency of the endpoints' prices.
    """

    max_price: Annotated[float, Field(ge=0)] | None = None


class StageSection(Section):
    """What every stage has.

    Attributes:
        kind: Which stage it is.
        name: As reports and later stages call it; the kind by default.
    """

    kind: str
    name: Name = ""


class AskingStageSection(StageSection):
    """A stage that asks a language model.

    Attributes:
        endpoint: Which table of ``[endpoints]``.
        template: Which of the templates.
        temperature: Sampling temperature.
        top_p: Nucleus.
        max_tokens: Longest answer.
        seed: Of the sampling.
    """

    endpoint: str = "default"
    template: str = ""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count = 2048
    seed: int | None = 42

    @property
    def sampling(self) -> tuple[float, float, int, int | None]:
        """Return temperature, top_p, longest answer and seed, in the order in which requests take them."""
        return self.temperature, self.top_p, self.max_tokens, self.seed


class WritingSection(AskingStageSection):
    """How what a model writes becomes a query.

    Attributes:
        mode: ``replace`` the query, ``append`` to it, or ``repeat`` it first and then append.
        separator: Between query and rewriting.
        repeat: How often the query stands first, for ``repeat``.
        thoughts: What becomes of the text up to ``</think>``, of a model or in a file.
        missing: What becomes of a query without a rewriting: ``refuse`` to go on, or the ``original`` query,
            counted.
    """

    mode: Literal["replace", "append", "repeat"] = "append"
    separator: str = " "
    repeat: Annotated[int, Field(ge=1, le=50)] = 5
    thoughts: Literal["drop", "keep"] = "drop"
    missing: Literal["refuse", "original"] = "refuse"

    @model_validator(mode="after")
    def _repeats(self) -> Self:
        if "repeat" in self.model_fields_set and self.mode != "repeat":
            msg = f'repeat = {self.repeat} goes with mode = "repeat", not with mode = "{self.mode}"'
            raise ValueError(msg)
        return self


_OF_ASKING = {"endpoint", "template", "temperature", "top_p", "max_tokens", "seed", "samples"}
# BRIGHT's own sets are whole queries.
_OF_WRITING = {"mode", "separator", "repeat", "thoughts"}


class RewriteStage(WritingSection):
    """Rewrite the queries: by a language model, or take rewritings that are there.

    Attributes:
        samples: Rewritings a query; their rankings are fused.
        queries: JSON Lines (``id``, ``text``, perhaps ``task``) of rewritings made elsewhere.
        bright: One of BRIGHT's own rewritten sets, such as ``gpt4_reason``, taken as it is.
    """

    kind: Literal["rewrite"]
    template: str = "bright"
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    queries: str | None = None
    bright: str | None = None

    @property
    def asks(self) -> bool:
        """Whether a language model is asked."""
        return self.queries is None and self.bright is None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.queries is not None and self.bright is not None:
            msg = 'queries = "FILE" and bright = "SET" are two sources of rewritings; leave one out'
            raise ValueError(msg)
        unused = self.model_fields_set & (_OF_ASKING | (_OF_WRITING if self.bright is not None else set()))
        if not self.asks and unused:
            msg = (
                f"{', '.join(sorted(unused))}: nobody is asked, since the rewritings are there; leave it out"
            )
            raise ValueError(msg)
        return self


class RetrieverSection(Section):
    """One model that searches.

    Attributes:
        model: Whatever ``reasonembed run`` takes.
        name: As reports and fusions call it; the model by default.
        queries: ``original``, or the name of a stage that writes queries; by default the last one before.
        instruction_template: For models that MTEB does not know.
    """

    model: str = Field(min_length=1)
    name: str = ""
    queries: str | None = None
    instruction_template: str | None = None

    @property
    def label(self) -> str:
        """Return its name."""
        return self.name or self.model


class RetrieveStage(StageSection):
    """Search by one or more models.

    Attributes:
        retriever: One table a model.
        top_k: Documents a query and model.
        rrf_k: Constant of the reciprocal ranks by which the rankings of several rewritings are fused.
        original: Whether retrieval on the original queries is measured too, to see what a rewriting adds.
    """

    kind: Literal["retrieve"]
    retriever: Annotated[list[RetrieverSection], Field(min_length=1)]
    top_k: Annotated[int, Field(ge=1, le=1000)] = 1000
    rrf_k: Annotated[int, Field(ge=0)] = 60
    original: bool = True


class FuseStage(StageSection):
    """Make one ranking of several.

    Attributes:
        method: ``rrf``, or weighted scores that are normalised per query: ``min-max`` or ``z``.
        weights: One a ranking; equal by default.
        grid: Instead of weights: the step of a grid of weights that sum to 1, of which the best by nDCG@10 on
            the test labels is taken. The result is marked as tuned on test.
        rrf_k: Constant of the reciprocal ranks.
    """

    kind: Literal["fuse"]
    method: Literal["rrf", "min-max", "z"] = "rrf"
    weights: Annotated[list[Weight], Field(min_length=1)] | None = None
    grid: Annotated[float, Field(ge=0.01, le=0.5)] | None = None
    rrf_k: Annotated[int, Field(ge=0)] = 60

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.weights is not None and self.grid is not None:
            msg = "weights and grid are two ways to choose weights; leave one out"
            raise ValueError(msg)
        if self.weights is not None and not sum(self.weights):
            msg = "all weights are 0; one at least must be above"
            raise ValueError(msg)
        return self


class RerankSection(StageSection):
    """What every reranking has.

    Attributes:
        depth: How many documents of each query are reranked; the others stay below them.
        queries: ``original``, or the name of a stage that writes queries, whose first text counts.
        weight: Of the ranking before, against the reranker's; both are normalised per query (min-max).
        words: Documents are cut after so many words; they are left whole by default, and at 0.
    """

    kind: Literal["rerank"]
    by: str
    depth: Annotated[int, Field(ge=0, le=1000)] = 100
    queries: str = ORIGINAL
    weight: Share = 0.0
    words: Words = None

    @property
    def asked_depth(self) -> int:
        """How many documents a reranker is asked about; none where the ranking before has all the weight."""
        return 0 if self.weight == 1 else self.depth


class CrossEncoderStage(RerankSection):
    """Rerank by a cross-encoder in this process, whichever MTEB loads.

    Attributes:
        model: Hub name, MTEB name or directory.
        batch_size: Pairs a batch.
    """

    by: Literal["cross-encoder"]
    model: str = Field(min_length=1)
    batch_size: Count = 32


class EndpointStage(RerankSection):
    """Rerank by a server's rerank API.

    Attributes:
        endpoint: Which table of ``[endpoints]``.
        api: ``rerank`` (Jina, Cohere, vLLM), ``score`` (vLLM) or ``tei``.
        instruction: Put before each query as it stands.
        documents: Documents a request, at most.
    """

    by: Literal["endpoint"]
    endpoint: str = "default"
    api: str = "rerank"
    instruction: str | None = None
    documents: Count = DOCUMENTS

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.api not in SERVICES:
            raise ValueError(str(unknown_name("rerank API", self.api, SERVICES)))
        return self


class PointwiseStage(RerankSection, AskingStageSection):
    """Rerank by the grade from 0 to 5 that a language model gives each document.

    Attributes:
        logprobs: Ask for log-probabilities, of which the expected grade is taken; some endpoints refuse.
    """

    by: Literal["pointwise"]
    logprobs: bool = True
    template: str = "grade"
    max_tokens: Count = 16


class ListwiseStage(RerankSection, AskingStageSection):
    """Rerank by a language model that sorts some documents at a time, from the end to the front.

    Attributes:
        window: Documents a request.
        step: How far the window moves; what is better moves on with it.
        words: Documents are cut after so many words; 0 leaves them whole.
    """

    by: Literal["listwise"]
    template: str = "sort"
    max_tokens: Count = 512
    window: Annotated[int, Field(ge=2, le=200)] = 20
    step: Count = 10
    words: Words = 300

    @model_validator(mode="after")
    def _overlaps(self) -> Self:
        if self.step > self.window:
            msg = f"step {self.step} is above window {self.window}: documents between would never be seen"
            raise ValueError(msg)
        return self


class IterateStage(WritingSection):
    """Retrieve, show the best documents to a rewriter, retrieve again; all candidates are kept.

    Attributes:
        rounds: How often.
        documents: How many are shown.
        words: Documents are cut after so many words; 0 leaves them whole.
        retrievers: Names of retrievers of the stages before; all by default.
        rrf_k: Constant of the reciprocal ranks by which the rounds are fused.
        top_k: Documents a query that are kept.
    """

    kind: Literal["iterate"]
    template: str = "feedback"
    rounds: Annotated[int, Field(ge=1, le=10)] = 1
    documents: Annotated[int, Field(ge=1, le=50)] = 5
    words: Words = 300
    retrievers: list[str] | None = None
    rrf_k: Annotated[int, Field(ge=0)] = 60
    top_k: Annotated[int, Field(ge=1, le=1000)] = 1000


Stage = RewriteStage | RetrieveStage | FuseStage | RerankSection | IterateStage
_KINDS: dict[str, type[StageSection]] = {
    "rewrite": RewriteStage,
    "retrieve": RetrieveStage,
    "fuse": FuseStage,
    "iterate": IterateStage,
}
_RERANKERS: dict[str, type[StageSection]] = {
    "cross-encoder": CrossEncoderStage,
    "endpoint": EndpointStage,
    "pointwise": PointwiseStage,
    "listwise": ListwiseStage,
}
KINDS = (*_KINDS, "rerank")


class _File(Section):
    """The file without its stages."""

    name: Name
    about: str = ""
    templates: str | None = None
    endpoints: dict[str, EndpointTable] = Field(default_factory=dict)
    budget: PriceSection = PriceSection()
    stage: Annotated[list[dict[str, Any]], Field(min_length=1)]


@dataclass(frozen=True)
class PipelineConfig:
    """A pipeline's file.

    Attributes:
        file: Where it was read from.
        name: The pipeline's own name.
        about: What a reader of its scores should know.
        templates: A TOML file with templates of the user's own.
        endpoints: By name.
        max_price: What a run may cost; None is no limit.
        stages: In their order, each with a name.
    """

    file: Path
    name: str
    about: str
    templates: str | None
    endpoints: dict[str, Endpoint]
    max_price: float | None
    stages: tuple[Any, ...]

    def path(self, given: str) -> Path:
        """Return a path of the file, which is relative to the file's folder.

        Args:
            given: As it stands there.
        """
        return self.file.resolve().parent / Path(given).expanduser()

    def endpoint(self, stage: AskingStageSection | EndpointStage) -> Endpoint:
        """Return the endpoint of a stage.

        Args:
            stage: One that asks.

        Raises:
            UnknownNameError: If there is none, with the nearest.
        """
        if stage.endpoint not in self.endpoints:
            error = unknown_name("endpoint", stage.endpoint, self.endpoints)
            said = (
                f"{self.file}: stage {stage.name}: {error} Write a table [endpoints.{stage.endpoint}] with "
            )
            error.args = (f"{said}base_url and model.",)
            raise error
        return self.endpoints[stage.endpoint]


def needs_endpoint(stage: StageSection) -> bool:
    """Return whether a stage asks an endpoint.

    Args:
        stage: Any.
    """
    if isinstance(stage, RewriteStage):
        return stage.asks
    return isinstance(stage, (IterateStage, EndpointStage, PointwiseStage, ListwiseStage))


def read_pipeline(file: Path) -> PipelineConfig:
    """Read and check a pipeline's file.

    Args:
        file: TOML; the files ``examples/pipeline-*.toml`` show every key.

    Raises:
        ReasonEmbedError: If it cannot be read, a stage, key or value is not allowed (the nearest is named),
            it holds a key, or the stages do not fit together.
    """
    content = read_toml(file, EXAMPLE)
    refuse_keys(content, file)
    whole = check_section(_File, content, file)
    stages = [_stage(table, number, file) for number, table in enumerate(whole.stage, 1)]
    config = PipelineConfig(
        file,
        whole.name,
        whole.about,
        whole.templates,
        whole.endpoints,
        whole.budget.max_price,
        tuple(_named(stages, file)),
    )
    _check_order(config)
    return config


def _stage(table: dict[str, Any], number: int, file: Path) -> StageSection:
    """Check one stage's table."""
    place = f"stage {number}"
    kind = table.get("kind")
    if not isinstance(kind, str):
        msg = f'{file}: {place} says no kind; write kind = "retrieve", or one of {", ".join(KINDS)}'
        raise ReasonEmbedError(msg)
    if kind not in KINDS:
        raise ReasonEmbedError(f"{file}: {place}: {unknown_name('stage', kind, KINDS)}")
    if kind != "rerank":
        return check_section(_KINDS[kind], table, file, place)
    by = table.get("by")
    if not isinstance(by, str):
        msg = f'{file}: {place} does not say what reranks; write by = "{next(iter(_RERANKERS))}", or one of '
        raise ReasonEmbedError(msg + ", ".join(_RERANKERS))
    if by not in _RERANKERS:
        raise ReasonEmbedError(f"{file}: {place}: {unknown_name('reranker', by, _RERANKERS)}")
    return check_section(_RERANKERS[by], table, file, place)


def _named(stages: Iterable[StageSection], file: Path) -> list[StageSection]:
    """Give each stage without a name that of its kind; refuse a name that is given twice."""
    found: list[StageSection] = []
    for stage in stages:
        taken = {one.name for one in found}
        name, number = stage.name or stage.kind, 2
        while not stage.name and name in taken:
            name, number = f"{stage.kind}-{number}", number + 1
        if name in taken or name == ORIGINAL:
            msg = f"{file}: two stages are called {name!r}; give each a name of its own"
            raise ReasonEmbedError(msg)
        found.append(stage.model_copy(update={"name": name}))
    return found


@dataclass
class _Seen:
    """What the stages so far hand on."""

    rewritings: list[str]
    rankings: list[str]
    retrievers: list[str]


def _check_order(config: PipelineConfig) -> None:
    """Refuse stages that do not fit together."""
    seen = _Seen([], [], [])
    for stage in config.stages:
        where = f"{config.file}: stage {stage.name}"
        _check_names(stage, seen, where)
        if needs_endpoint(stage):
            config.endpoint(stage)
        _take(stage, seen, where)
    if not seen.retrievers:
        msg = f'{config.file} retrieves nothing; write a stage with kind = "retrieve" and a retriever'
        raise ReasonEmbedError(msg)
    if len(seen.rankings) > 1:
        msg = (
            f"{config.file} ends with {len(seen.rankings)} rankings ({', '.join(seen.rankings)}); "
            'write a stage with kind = "fuse" after them'
        )
        raise ReasonEmbedError(msg)


def _check_names(stage: Any, seen: _Seen, where: str) -> None:  # noqa: ANN401 - any stage
    """Refuse names of queries and retrievers that no stage before makes."""
    asked = [one.queries for one in getattr(stage, "retriever", ())]
    asked += [stage.queries] if isinstance(stage, RerankSection) else []
    for name in filter(None, asked):
        if name != ORIGINAL and name not in seen.rewritings:
            raise ReasonEmbedError(f"{where}: {unknown_name('queries', name, [ORIGINAL, *seen.rewritings])}")
    for name in getattr(stage, "retrievers", None) or ():
        if name not in seen.retrievers:
            raise ReasonEmbedError(f"{where}: {unknown_name('retriever', name, seen.retrievers)}")


def _take(stage: Any, seen: _Seen, where: str) -> None:  # noqa: ANN401 - any stage
    """Note what a stage hands on, if it can do with what it gets."""
    if isinstance(stage, RewriteStage):
        seen.rewritings.append(stage.name)
        return
    if isinstance(stage, RetrieveStage):
        labels = [one.label for one in stage.retriever]
        for name in labels:
            if name.startswith(BASELINE):
                msg = f"{where}: a retriever is called {name!r}; {BASELINE!r} is how measurements are called"
                raise ReasonEmbedError(f"{msg}, give it another name")
            if labels.count(name) > 1 or name in [*seen.retrievers, *seen.rankings]:
                msg = f"{where}: two rankings are called {name!r}; give each retriever a name of its own"
                raise ReasonEmbedError(msg)
        seen.retrievers += labels
        seen.rankings += labels
        return
    if not seen.rankings:
        msg = f'{where}: there is nothing to {stage.kind} yet; write a stage with kind = "retrieve" before it'
        raise ReasonEmbedError(msg)
    if isinstance(stage, FuseStage):
        _check_weights(stage, seen.rankings, where)
    elif len(seen.rankings) > 1:
        msg = (
            f"{where}: it takes one ranking and gets {len(seen.rankings)} ({', '.join(seen.rankings)}); "
            'write a stage with kind = "fuse" before it'
        )
        raise ReasonEmbedError(msg)
    if isinstance(stage, IterateStage):
        seen.rewritings.append(stage.name)
    seen.rankings = [stage.name]


def _check_weights(stage: FuseStage, rankings: Sequence[str], where: str) -> None:
    if stage.weights is not None and len(stage.weights) != len(rankings):
        msg = (
            f"{where}: {len(stage.weights)} weights for {len(rankings)} rankings ({', '.join(rankings)}); "
            "give one for each, in this order"
        )
        raise ReasonEmbedError(msg)
    if stage.grid is not None and (count := grid_size(len(rankings), stage.grid)) > MOST_WEIGHTS:
        msg = (
            f"{where}: grid = {stage.grid} tries {count:,} weights of {len(rankings)} rankings; "
            f"{MOST_WEIGHTS:,} at most: take a larger step"
        )
        raise ReasonEmbedError(msg)


def grid_size(count: int, step: float) -> int:
    """Return how many weights a grid holds, see `reasonembed_mteb.pipelines.fuse.weight_grid`.

    Args:
        count: Rankings.
        step: Between two values of one weight.
    """
    return math.comb(round(1 / step) + count - 1, count - 1)


def stage_causes(stage: Any, config: PipelineConfig) -> dict[str, Any]:  # noqa: ANN401 - any stage
    """Return what of a stage's table decides its output, as JSON can hold it; not where it is computed.

    Args:
        stage: One of the pipeline's.
        config: Its endpoint's model counts, not the address.
    """
    causes: dict[str, Any] = json.loads(stage.model_dump_json(exclude={"endpoint", "batch_size"}))
    if needs_endpoint(stage):
        endpoint = config.endpoint(stage)
        causes["asked"] = [endpoint.model, endpoint.extra_body]
    return causes
