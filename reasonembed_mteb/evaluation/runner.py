"""Scoring several models by one protocol, each through ``mteb.evaluate``."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, one_line
from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.evaluation.limits import asked_as, limit_task, own_copy
from reasonembed_mteb.evaluation.record import (
    Causes,
    find_causes,
    first_stage_file,
    first_stage_id,
    make_record,
    record_path,
    scores_info,
    scores_path,
    why_stale,
    write_record,
)
from reasonembed_mteb.evaluation.resolving import model_labels
from reasonembed_mteb.evaluation.scores import check_pattern, collect_scores, write_runs, write_scores
from reasonembed_mteb.evaluation.variants import (
    check_devices,
    encoding_figures,
    innermost,
    load_variant,
    speed_up,
    use_devices,
    use_pool,
    with_store,
)
from reasonembed_mteb.files import file_hash
from reasonembed_mteb.models.engines import engines_of
from reasonembed_mteb.models.instructions import describe_prefix, loaded_prefix, planned_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from mteb.abstasks import AbsTask
    from mteb.cache import ResultCache
    from mteb.models import ModelMeta

    from reasonembed_mteb.encoding.fast import TextPool

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    Attributes:
        output: MTEB's result cache; results lie in ``<output>/results``, as after ``mteb run``.
        batch_size: Rows a batch; None leaves it to MTEB.
        device: Where to, several joined by commas; None lets torch choose.
        overwrite: Run again whatever is cached.
        limit: Smoke run over the first queries only; kept apart from full results.
        rerank_from: Saved predictions whose top documents are reranked; results are kept apart too.
        rerank_top_k: Candidates a query.
        prediction_folder: Where to save predictions; several models, smoke runs and rerankings have folders
            of their own in it.
        run_file: Where to write TREC runs; see `reasonembed_mteb.evaluation.scores.check_pattern`.
        store: Folder of the embedding store; None computes every vector anew.
        store_dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto``: the smallest that is exact.
        batch_tokens: Tokens of an encoding batch; None for the device's own.
        attn: How the encoder attends; see `reasonembed_mteb.encoding.accelerate`.
        compile_layers: Whether decoder layers are compiled: ``auto``, ``on`` or ``off``.
        pool: Takes a loaded SentenceTransformer and returns what encodes in its place, such as a cluster;
            None encodes here.
        progress: Show progress bars; without, nothing but log messages reaches stderr during an evaluation.
    """

    output: Path = Path("results")
    batch_size: int | None = None
    device: str | None = None
    overwrite: bool = False
    limit: int | None = None
    rerank_from: Path | None = None
    rerank_top_k: int = 100
    prediction_folder: Path | None = None
    run_file: str | None = None
    store: Path | None = None
    store_dtype: str = "auto"
    batch_tokens: int | None = None
    attn: str = "auto"
    compile_layers: str = "auto"
    pool: Callable[[Any], TextPool] | None = None
    progress: bool = True

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded.

        Raises:
            ReasonEmbedError: If an option has no such value, or the first stage's predictions are not there.
        """
        from reasonembed_mteb.encoding.plan import check_options

        check_options(self.attn, self.batch_tokens, self.compile_layers)
        if self.rerank_from is not None and not self.rerank_from.exists():
            msg = (
                f"--rerank-from {self.rerank_from} does not exist; make it with --prediction-folder and a "
                "first stage"
            )
            raise ReasonEmbedError(msg)

    @property
    def caveats(self) -> list[str]:
        """What tells these scores from results, a few words each."""
        found = [f"smoke run over the first {self.limit} queries, not a result"] if self.limit else []
        if self.rerank_from is not None:
            found.append(f"top {self.rerank_top_k} of {self.rerank_from} reranked")
        return found


@dataclass
class Outcome:
    """One model on one task.

    Attributes:
        model: The model's name, with its experiment where there is one.
        task: Task name.
        metric: Name of the task's main score.
        score: Main score in ``[0, 1]``, or None after a failure.
        error: One line, or None.
        cached: Whether the score was there already.
        seconds: How long it took.
        scores_file: The scores by query, or None after a failure.
    """

    model: str
    task: str
    metric: str = ""
    score: float | None = None
    error: str | None = None
    cached: bool = False
    seconds: float = 0.0
    scores_file: Path | None = None


class _Loaded:
    """A model that is loaded when it is first needed, and once."""

    def __init__(self, meta: ModelMeta, options: RunOptions) -> None:
        self.meta = meta
        self._options = options
        self._model: Any = None
        self._failure: Exception | None = None

    def get(self) -> Any:  # noqa: ANN401 - any of mteb's model protocols
        if self._failure is not None:
            raise self._failure
        if self._model is None:
            try:
                self._model = load_for_run(self.meta, self._options)
            except Exception as error:
                # A model that cannot be loaded fails on every task, without trying again.
                self._failure = error
                raise
            self.meta = self._model.mteb_model_meta
        return self._model

    def close(self) -> None:
        """Stop the processes that encode on further devices, and engines."""
        if self._model is not None:
            use_devices(self._model, None)
            use_pool(self._model, None)
            for engine in engines_of(self._model):
                engine.close()


def load_for_run(meta: ModelMeta, options: RunOptions) -> Any:  # noqa: ANN401 - any of mteb's model protocols
    """Load a model as a run uses it: on its devices, encoding fast, its vectors kept.

    Args:
        meta: The model.
        options: How to run.

    Raises:
        ReasonEmbedError: If a device is not there or the model cannot be loaded.
    """
    model = load_without_store(meta, options)
    return model if options.store is None else with_store(model, options.store, options.store_dtype)


def load_without_store(meta: ModelMeta, options: RunOptions) -> Any:  # noqa: ANN401 - any of mteb's model protocols
    """Load a model as a run does, without its store.

    Args:
        meta: The model.
        options: How to run.
    """
    devices = check_devices(options.device)
    model = load_variant(meta, device=devices[0] if devices else None)
    speed_up(
        model, batch_tokens=options.batch_tokens, attn=options.attn, compile_layers=options.compile_layers
    )
    if options.pool is not None:
        use_pool(model, options.pool)
    elif len(devices) > 1:
        use_devices(model, devices)
    return model


def run(
    models: Sequence[ModelMeta],
    tasks: Sequence[AbsTask],
    options: RunOptions,
    say: Callable[[str], None] = logger.info,
) -> list[Outcome]:
    """Score models on tasks; one that fails does not stop the others.

    A cached score is taken where everything that decided it is as recorded beside it; else the task runs
    again, and the reason is said.

    Args:
        models: MTEB metadata; see `reasonembed_mteb.evaluation.resolving.resolve_models`.
        tasks: MTEB tasks.
        options: How to run.
        say: Takes one line at a time about what happens.

    Returns:
        One outcome per model and task, in the order given.

    Raises:
        ReasonEmbedError: If several rankings would be written to one run file, or an option does not hold.
    """
    options.check()
    labels = model_labels(models)
    if options.run_file is not None:
        check_pattern(options.run_file, labels, tasks)
    folders = [_prediction_folder(options, label if len(models) > 1 else "") for label in labels]
    return [
        outcome
        for meta, label, folder in zip(models, labels, folders, strict=True)
        for outcome in _run_model(meta, label, tasks, options, folder, say)
    ]


def output_folder(options: RunOptions) -> Path:
    """Return a run's result cache: smoke runs and rerankings have their own, apart from full results.

    Args:
        options: How to run.
    """
    folder = options.output
    if options.limit:
        folder /= f"limit-{options.limit}"
    if options.rerank_from:
        folder /= f"rerank-{options.rerank_from.resolve().stem}-top{options.rerank_top_k}"
    return folder


def _prediction_folder(options: RunOptions, label: str) -> Path | None:
    if options.prediction_folder is None:
        return None
    apart = output_folder(options).relative_to(options.output)
    return options.prediction_folder / apart / (file_name(label) if label else "")


def _run_model(
    meta: ModelMeta,
    label: str,
    tasks: Sequence[AbsTask],
    options: RunOptions,
    predictions: Path | None,
    say: Callable[[str], None],
) -> list[Outcome]:
    from mteb.cache import ResultCache

    cache = ResultCache(output_folder(options))
    loaded = _Loaded(meta, options)
    outcomes: list[Outcome] = []
    with contextlib.closing(loaded):
        for task in tasks:
            started = time.monotonic()
            outcome = Outcome(label, task.metadata.name, task.metadata.main_score)
            try:
                own = own_copy(task)
                outcome.score, outcome.cached = _run_task(loaded, own, cache, options, predictions, say)
                kept = scores_path(record_path(cache, outcome.task, loaded.meta))
                outcome.scores_file = kept if kept.is_file() else None
                if options.run_file is not None:
                    for file in write_runs(options.run_file, label, kept):
                        say(f"{label} on {outcome.task}: run {file}")
                how = "taken from the cache" if outcome.cached else f"in {time.monotonic() - started:.0f} s"
                say(f"{label} on {outcome.task}: {outcome.metric} {100 * outcome.score:.2f} {how}")
            except Exception as error:
                outcome.error = one_line(error)
                logger.debug("%s on %s failed", label, outcome.task, exc_info=True)
                if not outcomes or outcomes[-1].error != outcome.error:
                    say(f"{label} on {outcome.task} failed: {outcome.error}")
            outcome.seconds = time.monotonic() - started
            outcomes.append(outcome)
    return outcomes


def _run_task(
    loaded: _Loaded,
    task: Any,  # noqa: ANN401 - AbsTask
    cache: ResultCache,
    options: RunOptions,
    predictions: Path | None,
    say: Callable[[str], None],
) -> tuple[float, bool]:
    """Score one task, or take the cached score where nothing has changed since."""
    name = task.metadata.name
    _check_candidates(loaded.meta, task, options)
    if loaded.meta.revision is None:
        # What the weights resolve to is known only once they are loaded.
        loaded.get()
    now = _causes(loaded.meta, task, options)
    held = cache.get_task_result_path(name, loaded.meta).is_file()
    saved = predictions / task.prediction_file_name if predictions is not None else None
    reason = why_stale(cache, task, loaded.meta, now, saved)
    if held and options.overwrite:
        reason = "--overwrite"
    cached = cache.load_task_result(name, loaded.meta) if held and reason is None else None
    if cached is not None and not cached.get_missing_evaluations(task):
        return cached.get_score(), True
    if reason is not None:
        say(f"{loaded.meta.name} on {name}: running again, {reason}")
    model = loaded.get()
    prefix = loaded_prefix(innermost(model), asked_as(task))
    if prefix != planned_prefix(loaded.meta, asked_as(task)):
        say(f"{loaded.meta.name} on {name}: before each query: {describe_prefix(prefix)}")
    _prepare(task, options)
    rows = collect_scores(task)
    encoding_figures(model, reset=True)
    result = _evaluate(model, task, cache, options, predictions)
    figures = encoding_figures(model)
    if figures.get("truncated"):
        cut, texts = figures["truncated"], figures["texts"]
        say(
            f"{loaded.meta.name} on {name}: {cut:,} of {texts:,} encoded texts were cut at the length"
            " in force"
        )
    predicted = file_hash(saved) if saved is not None else None
    record = make_record(now, result, innermost(model), task, figures, predicted)
    file = record_path(cache, name, loaded.meta)
    write_scores(scores_path(file), scores_info(record, task), rows)
    write_record(file, record, cache.get_task_result_path(name, loaded.meta))
    return result.get_score(), False


def _check_candidates(meta: ModelMeta, task: AbsTask, options: RunOptions) -> None:
    if (
        "cross-encoder" in (meta.model_type or ())
        and not options.rerank_from
        and task.metadata.type == "Retrieval"
    ):
        msg = (
            f"{meta.name} is a cross-encoder, which reranks candidates: give --rerank-from FOLDER, made by "
            "`reasonembed run -m FIRST_STAGE ... --prediction-folder FOLDER`"
        )
        raise ReasonEmbedError(msg)


def _causes(meta: ModelMeta, task: AbsTask, options: RunOptions) -> Causes:
    first = options.rerank_from
    rerank = first_stage_id(first, task, options.rerank_top_k) if first is not None else None
    return find_causes(meta, task, rerank=rerank, limit=options.limit)


def _prepare(task: Any, options: RunOptions) -> None:  # noqa: ANN401 - AbsTask
    if options.rerank_from is not None:
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)
        task.convert_to_reranking(first_stage_file(options.rerank_from, task), top_k=options.rerank_top_k)
    if options.limit:
        limit_task(task, options.limit, keep_candidates=options.rerank_from is not None)


def bars_shown(progress: bool) -> AbstractContextManager[object]:
    """Return a context in which a search shows progress bars, or none.

    Args:
        progress: Whether they are shown.
    """
    # bm25s draws its progress bars whatever it is told; logging keeps the stream that it has.
    return contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())


def _evaluate(
    model: Any,  # noqa: ANN401 - any of mteb's model protocols
    task: AbsTask,
    cache: ResultCache,
    options: RunOptions,
    predictions: Path | None,
) -> Any:  # noqa: ANN401 - mteb's TaskResult
    import mteb

    encode_kwargs: dict[str, Any] = {"show_progress_bar": options.progress}
    if options.batch_size is not None:
        encode_kwargs["batch_size"] = options.batch_size
    if predictions is not None:
        predictions.mkdir(parents=True, exist_ok=True)
    # MTEB adds to a file of predictions that is there, under the name of the model that wrote it first.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=predictions) as part, bars_shown(options.progress):
        result = mteb.evaluate(
            model,
            [task],
            cache=cache,
            co2_tracker=False,
            overwrite_strategy="always",
            encode_kwargs=encode_kwargs,  # type: ignore[arg-type]
            prediction_folder=part if predictions is not None else None,
            show_progress_bar=options.progress,
        ).task_results[0]
        for file in Path(part).iterdir():
            file.replace((predictions or Path()) / file.name)
    return result
