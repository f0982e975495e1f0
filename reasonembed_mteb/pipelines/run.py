"""Running a pipeline: its stages in order on every task, each kept by what decides it, scored by MTEB."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.endpoints.endpoint import EndpointError
from reasonembed_mteb.endpoints.limits import Budget, BudgetExceeded
from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.evaluation.kinds import PIPELINE
from reasonembed_mteb.evaluation.record import record_path
from reasonembed_mteb.evaluation.runner import Outcome, RunOptions, load_for_run, output_folder
from reasonembed_mteb.evaluation.runner import run as run_models
from reasonembed_mteb.evaluation.stages import (
    FORMAT,
    PipelineRecord,
    StageNote,
    StageRecord,
    joined_stage,
    read_note,
    read_output,
    read_stages,
    stages_path,
    strict_scores,
    write_output,
    write_stages,
)
from reasonembed_mteb.files import bytes_hash, file_hash, fingerprint
from reasonembed_mteb.pipelines.config import (
    AskingStageSection,
    CrossEncoderStage,
    FuseStage,
    RetrieverSection,
    RetrieveStage,
    RewriteStage,
    needs_endpoint,
    read_pipeline,
    stage_causes,
)
from reasonembed_mteb.pipelines.pool import Pool, State, Tools, check_task
from reasonembed_mteb.pipelines.templates import stage_template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.stages import StageOutput
    from reasonembed_mteb.pipelines.config import PipelineConfig

logger = logging.getLogger(__name__)

# Folder of the stages' outputs, below the output folder.
STAGES = "stages"


@dataclass(frozen=True)
class PipelineOutcome:
    """A pipeline on one task.

    Attributes:
        outcome: Its score, or why there is none.
        record: What its stages gave and cost; None where it failed.
    """

    outcome: Outcome
    record: PipelineRecord | None


class Pipeline:
    """Stages of retrieval, scored as one by MTEB.

    docs/pipelines.md shows a file and how it is run.
    """

    def __init__(self, config: PipelineConfig) -> None:
        """Take a checked file.

        Args:
            config: See `reasonembed_mteb.pipelines.config.read_pipeline`.

        Raises:
            ReasonEmbedError: If a template, a file or a rewritten set that it names is not there, or does not
                fit.
        """
        self.config = config
        self.name = f"{PIPELINE}/{config.name}"
        # Said before anything is loaded or sent.
        self._templates = {
            stage.name: stage_template(stage, config).hash
            for stage in config.stages
            if isinstance(stage, AskingStageSection) and needs_endpoint(stage)
        }
        self._files = {
            stage.name: _content(config.path(stage.queries), stage.name)
            for stage in config.stages
            if isinstance(stage, RewriteStage) and stage.queries is not None
        }
        _check_sets(config)

    @classmethod
    def from_toml(cls, file: Path | str) -> Pipeline:
        """Read a pipeline's file.

        Args:
            file: TOML; the files ``examples/pipeline-*.toml`` show every key.

        Raises:
            ReasonEmbedError: If something in it is not allowed.
        """
        return cls(read_pipeline(Path(file)))

    def metas(self) -> dict[str, ModelMeta]:
        """Return MTEB's metadata of the models that run here, by stage and retriever.

        Raises:
            ReasonEmbedError: If a model is not known, or is of the wrong kind.
        """
        found: dict[str, ModelMeta] = {}
        for stage in self.config.stages:
            if isinstance(stage, CrossEncoderStage):
                found[_model_key(stage)] = self._resolved(stage.model, stage.name, reranks=True)
            for one in stage.retriever if isinstance(stage, RetrieveStage) else ():
                found[_model_key(one)] = self._resolved(
                    one.model, stage.name, reranks=False, template=one.instruction_template
                )
        return found

    def _resolved(self, model: str, stage: str, *, reranks: bool, template: str | None = None) -> ModelMeta:
        from reasonembed_mteb.evaluation.resolving import resolve_model

        folder = self.config.path(model)
        meta = resolve_model(str(folder) if folder.is_dir() else model, template=template)
        if ("cross-encoder" in (meta.model_type or ())) != reranks:
            where = f"{self.config.file}: stage {stage}: {model} is"
            if reranks:
                msg = f'{where} no cross-encoder; it retrieves, in a stage with kind = "retrieve"'
            else:
                msg = f'{where} a cross-encoder; it reranks, in a stage with kind = "rerank"'
            raise ReasonEmbedError(msg)
        return meta

    def run(
        self,
        tasks: Sequence[AbsTask],
        options: RunOptions | None = None,
        *,
        max_price: float | None = None,
        retry_errors: bool = False,
        batch_requests: Path | None = None,
        batch_answers: Sequence[Path] = (),
        say: Callable[[str], None] = logger.info,
    ) -> list[PipelineOutcome]:
        """Score the pipeline on tasks; one that fails does not stop the others.

        A spent budget, or an endpoint that cannot be used, stops all that would follow.

        Every stage's output is kept by what decides it: a killed run goes on where it was, and a changed
        stage runs again with those after it.

        Args:
            tasks: MTEB retrieval tasks.
            options: How to run.
            max_price: What may be spent on endpoints, in place of the file's own limit.
            retry_errors: Ask again where requests failed for good in an earlier run.
            batch_requests: Ask nothing; write requests into this folder, in OpenAI's batch format.
            batch_answers: Files of a batch's answers, to be read first.
            say: Takes one line at a time about what happens.

        Returns:
            One outcome a task, in the order given.

        Raises:
            ReasonEmbedError: If an option or a model does not hold.
        """
        chosen = options or RunOptions()
        if chosen.rerank_from is not None:
            msg = "a pipeline has a first stage of its own: leave out rerank_from"
            raise ReasonEmbedError(msg)
        self.check_tasks(tasks)
        limit = self.config.max_price if max_price is None else max_price
        budget = None if limit is None else Budget(max_cost=limit, strict=True)
        model = _PipelineModel(self, chosen, budget, retry_errors=retry_errors, batch=batch_requests, say=say)
        model.take_answers(batch_answers)
        outcomes: list[PipelineOutcome] = []
        for task in tasks:
            if model.stopped is not None:
                name, metric = task.metadata.name, task.metadata.main_score
                failed = Outcome(self.name, name, metric, error=str(model.stopped))
                outcomes.append(PipelineOutcome(failed, None))
                continue
            outcomes.append(model.run(task))
        return outcomes

    def check_tasks(self, tasks: Sequence[AbsTask]) -> None:
        """Refuse a file of rewritings that fits several of the tasks, before anything runs.

        Args:
            tasks: MTEB tasks; one that no pipeline can run on says so in its turn.

        Raises:
            DataError: If it does, or cannot be read.
        """
        from reasonembed_mteb.pipelines.rewrite import refuse_shared_ids

        fitting = [task for task in tasks if hasattr(task, "convert_to_reranking")]
        for stage in self.config.stages:
            if isinstance(stage, RewriteStage) and stage.queries is not None:
                refuse_shared_ids(self.config.path(stage.queries), fitting)

    def causes(self, metas: Mapping[str, ModelMeta]) -> dict[str, dict[str, Any]]:
        """Return what decides each stage's output besides the data and the stages before, by stage.

        Args:
            metas: See `metas`; every revision is known.
        """
        found = {}
        for stage in self.config.stages:
            causes = stage_causes(stage, self.config)
            named = [stage] if isinstance(stage, CrossEncoderStage) else getattr(stage, "retriever", ())
            causes["models"] = [_identity(metas[_model_key(one)]) for one in named]
            causes["template"] = self._templates.get(stage.name)
            causes["file"] = self._files.get(stage.name)
            found[stage.name] = causes
        return found


def _model_key(section: RetrieverSection | CrossEncoderStage) -> str:
    """Return what a model is known by: a retriever and a reranker may share a name."""
    if isinstance(section, RetrieverSection):
        return f"retriever {section.label}"
    return f"stage {section.name}"


def _check_sets(config: PipelineConfig) -> None:
    from reasonembed_mteb.retrieval.layouts import check_rewriting

    for stage in config.stages:
        if isinstance(stage, RewriteStage) and stage.bright is not None:
            check_rewriting(stage.bright)


def _content(file: Path, stage: str) -> str:
    found = file_hash(file)
    if found is None:
        msg = f"stage {stage}: there is no file {file}; correct queries"
        raise ReasonEmbedError(msg)
    return found


def _identity(meta: ModelMeta) -> list[Any]:
    options = {**(meta.loader_kwargs or {}), **(meta.experiment_kwargs or {})}
    chosen = {name: str(value) for name, value in options.items() if name != "path"}
    return [meta.name, meta.revision, chosen]


class _PipelineModel:
    """What MTEB searches with: the stages, and the models that they load."""

    def __init__(
        self,
        pipeline: Pipeline,
        options: RunOptions,
        budget: Budget | None,
        *,
        retry_errors: bool,
        batch: Path | None,
        say: Callable[[str], None],
    ) -> None:
        self._pipeline, self._config, self._options, self._say = pipeline, pipeline.config, options, say
        self._metas, self._models = pipeline.metas(), dict[str, Any]()
        self._check_prices(budget)
        self._settle_revisions()
        self._causes = pipeline.causes(self._metas)
        self._tools = Tools(
            self._config,
            options.output,
            budget,
            self._load,
            retry_errors=retry_errors,
            progress=options.progress,
            batch=batch,
        )
        self.mteb_model_meta = self._make_meta()
        # What would stop every other task too.
        self.stopped: ReasonEmbedError | None = None
        self._corpus: Any = None
        self._task: Any = None
        self._traces: list[_Trace] = []

    def _check_prices(self, budget: Budget | None) -> None:
        """Refuse a price limit where prices are not known, before anything runs."""
        for stage in self._config.stages if budget is not None else ():
            if needs_endpoint(stage) and self._config.endpoint(stage).cost(0, 0) is None:
                msg = (
                    f"{self._config.file}: a price limit needs the prices of [endpoints.{stage.endpoint}]: "
                    "set price_in and price_out"
                )
                raise ReasonEmbedError(msg)

    def take_answers(self, files: Sequence[Path]) -> None:
        """Put the answers of a batch among those on disk."""
        if not files:
            return
        from reasonembed_mteb.llm.batch import BatchFiles

        # Each answer names its request; which endpoint was asked stands there.
        for endpoint in list(self._config.endpoints.values())[:1]:
            with BatchFiles(
                endpoint, self._tools.answers, self._tools.answers / "requests.jsonl", files
            ) as batch:
                self._say(f"{batch.usage.requests:,} answers read")

    def _settle_revisions(self) -> None:
        """Load the models whose revision nobody knows before that."""
        for label, meta in self._metas.items():
            if meta.revision is None:
                self._models[label] = load_for_run(meta, self._options)
                self._metas[label] = self._models[label].mteb_model_meta

    def _load(self, section: RetrieverSection | CrossEncoderStage) -> Any:  # noqa: ANN401 - an MTEB model
        label = _model_key(section)
        if label not in self._models:
            self._models[label] = load_for_run(self._metas[label], self._options)
        return self._models[label]

    def _make_meta(self) -> ModelMeta:
        from mteb.models import ModelMeta

        def load(name: str, revision: str | None = None, **_: Any) -> _PipelineModel:
            del name, revision
            return self

        ordered = [self._causes[stage.name] for stage in self._config.stages]
        return ModelMeta.create_empty(
            overwrites={
                "name": self._pipeline.name,
                "revision": fingerprint(FORMAT, ordered),
                "model_type": ["hybrid"],
                "loader": load,
                "loader_kwargs": {"stages": [f"{one.name}: {one.kind}" for one in self._config.stages]},
            }
        )

    def run(self, task: AbsTask) -> PipelineOutcome:
        """Score one task, and write what its stages gave and cost."""
        from mteb.cache import ResultCache

        from reasonembed_mteb.evaluation.limits import own_copy

        name = task.metadata.name
        try:
            check_task(task)
        except ReasonEmbedError as error:
            return PipelineOutcome(Outcome(self._pipeline.name, name, error=str(error)), None)
        self._task, self._traces = own_copy(task), []
        cache = ResultCache(output_folder(self._options))
        file = stages_path(record_path(cache, name, self.mteb_model_meta))
        options = self._options
        if self._tools.retry_errors or not _is_readable(file):
            # Its score stands without its stages: they are read from disk again.
            options = replace(options, overwrite=True)
        if options.overwrite or not cache.get_task_result_path(name, self.mteb_model_meta).is_file():
            # Once for MTEB and for us, who need the labels and exclusions.
            self._load_task()
        (outcome,) = run_models([self.mteb_model_meta], [self._task], options, self._say)
        if outcome.error is not None:
            return PipelineOutcome(outcome, None)
        kept = read_stages(file) if outcome.cached else None
        # Prices are those of the file as it is now, whenever the tokens were counted.
        record = self._priced(self._record(name) if kept is None else kept)
        if record != kept:
            write_stages(file, record)
        return PipelineOutcome(outcome, read_stages(file))

    def _priced(self, record: PipelineRecord) -> PipelineRecord:
        """Return a record with the prices of the endpoints as the pipeline's file has them."""
        pairs = zip(self._config.stages, record.stages, strict=True)
        stages = [replace(seen, note=self._with_price(stage, seen.note)) for stage, seen in pairs]
        return replace(record, stages=tuple(stages))

    def _with_price(self, stage: Any, note: StageNote) -> StageNote:  # noqa: ANN401 - any stage
        from reasonembed_mteb.pipelines.asking import priced

        if not needs_endpoint(stage):
            return note
        return replace(note, cost=priced(note.cost, self._config.endpoint(stage)))

    def _record(self, task: str) -> PipelineRecord:
        # Means over pools, as MTEB's are.
        stages = [joined_stage(seen) for seen in zip(*(trace.stages for trace in self._traces), strict=True)]
        meta = self.mteb_model_meta
        queries = sum(trace.queries for trace in self._traces)
        return PipelineRecord(
            str(meta.name), str(meta.revision), task, queries, self._options.limit, tuple(stages)
        )

    # What MTEB calls.

    def index(self, corpus: Any, **_: Any) -> None:  # noqa: ANN401 - mteb's protocol
        """Keep the corpus; each retriever indexes it when its turn comes."""
        self._corpus = corpus

    def search(
        self,
        queries: Any,  # noqa: ANN401 - mteb's protocol
        *,
        task_metadata: Any,  # noqa: ANN401
        top_k: int,
        top_ranked: Any = None,  # noqa: ANN401
        **call: Any,
    ) -> dict[str, dict[str, float]]:
        """Take every query through the stages; scores are such that every evaluator sorts them so."""
        split = self._given(call["hf_split"], call["hf_subset"])
        pool = Pool(
            queries,
            self._corpus,
            task_metadata,
            call,
            self._max_tokens(task_metadata.name),
            excluded=split.get("excluded_ids") or {},
            top_ranked=top_ranked,
            labels=split["relevant_docs"],
            ignores_own_id=getattr(self._task, "ignore_identical_ids", False),
        )
        trace = _Trace(len(pool.texts), [])
        try:
            state = self._through(pool, trace)
        except (BudgetExceeded, EndpointError) as error:
            self.stopped = error
            raise
        self._traces.append(trace)
        scores = {query: strict_scores(found) for query, found in state.ranking.items()}
        return {query: dict(list(own.items())[:top_k]) for query, own in scores.items()}

    def _given(self, split: str, subset: str) -> Any:  # noqa: ANN401 - mteb's RetrievalSplitData
        """Return labels and exclusions, which MTEB does not pass to a search."""
        self._load_task()
        return self._task.dataset[subset][split]

    def _load_task(self) -> None:
        self._task.load_data()
        self._task.convert_v1_dataset_format_to_v2(num_proc=None)

    def _max_tokens(self, task: str) -> int:
        from reasonembed_mteb.retrieval.rows import max_tokens_for

        row = getattr(self._task, "row", None)
        return int(row.max_tokens) if row is not None else max_tokens_for(task, default=1 << 30)

    def _through(self, pool: Pool, trace: _Trace) -> State:
        """Run the stages, or read what they gave before."""
        from reasonembed_mteb.pipelines.retrieve import handed_on

        state, key = State(), _pool_identity(pool)
        for stage in self._config.stages:
            causes = dict(self._causes[stage.name])
            if isinstance(stage, RewriteStage) and stage.bright is not None:
                causes["data"] = _bright_revision(pool.task.name, stage.bright)
            key = fingerprint(FORMAT, key, causes)
            file = self._options.output / STAGES / file_name(pool.task.name) / f"{stage.kind}-{key}.parquet"
            output, note = self._one(stage, pool, state, file)
            state.take(handed_on(output) if isinstance(stage, RetrieveStage) else output, stage.kind)
            # Requests that failed may be answered another time.
            key = fingerprint(key, file_hash(file))
            trace.stages.append(self._seen(stage, output, note, state, pool, file))
            self._tell(pool, trace.stages[-1])
        return state

    def _one(self, stage: Any, pool: Pool, state: State, file: Path) -> tuple[StageOutput, StageNote]:  # noqa: ANN401
        from reasonembed_mteb.pipelines.work import work

        note = None if self._tools.retry_errors and needs_endpoint(stage) else read_note(file)
        if note is not None:
            try:
                return read_output(file), note
            except DataError:
                logger.warning("%s is damaged; the stage %s runs again", file, stage.name)
        started = time.monotonic()
        output, note = work(stage, pool, state, self._tools)
        cost = replace(note.cost, seconds=time.monotonic() - started)
        note = replace(note, cost=cost)
        write_output(file, output, note)
        # As later runs read it.
        return output, note

    def _seen(
        self,
        stage: Any,  # noqa: ANN401 - any stage
        output: StageOutput,
        note: StageNote,
        state: State,
        pool: Pool,
        file: Path,
    ) -> StageRecord:
        """Measure what a stage handed on."""
        measured = {name: pool.scores(ranking) for name, ranking in output.rankings.items()}
        only = next(iter(state.rankings)) if len(state.rankings) == 1 and measured else None
        scores = measured.pop(only, {}) if only is not None else {}
        tuned = isinstance(stage, FuseStage) and stage.grid is not None
        outputs = (file.relative_to(self._options.output).as_posix(),)
        return StageRecord(stage.name, stage.kind, scores, measured, note, tuned, outputs)

    def _tell(self, pool: Pool, seen: StageRecord) -> None:
        told = f"{self._pipeline.name} on {pool.task.name}, {seen.name}:"
        if seen.scores:
            told += f" nDCG@10 {100 * seen.scores['ndcg_at_10']:.2f},"
        cost, counts = seen.note.cost, seen.note.counts
        told += f" {cost.calls:,} calls, {cost.cached:,} from disk," if cost.calls else ""
        told += "".join(f" {name} {count:,}," for name, count in counts.items())
        self._say(f"{told} {cost.seconds:.1f} s")


@dataclass(frozen=True)
class _Trace:
    """The stages on one pool."""

    queries: int
    stages: list[StageRecord]


def _pool_identity(pool: Pool) -> str:
    """Return a hash of the data that a pool's stages work on."""
    texts = bytes_hash("\0".join(f"{query}\0{text}" for query, text in pool.texts.items()).encode("utf-8"))
    data = dict(pool.task.dataset)
    return fingerprint(
        pool.task.name,
        [
            pool.call["hf_split"],
            pool.call["hf_subset"],
            str(data.get("revision")),
            len(pool.corpus),
            pool.ignores_own_id,
        ],
        str(pool.task.prompt),
        pool.max_tokens,
        texts,
    )


def _bright_revision(task: str, rewritten: str) -> str:
    from reasonembed_mteb.retrieval.layouts import rewritten_row
    from reasonembed_mteb.retrieval.sources import data_revision

    return data_revision(rewritten_row(task, rewritten))


def _is_readable(file: Path) -> bool:
    try:
        read_stages(file)
    except DataError:
        return False
    return True
