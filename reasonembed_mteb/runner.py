"""Scoring several models by one protocol, each through ``mteb.evaluate``."""

from __future__ import annotations

import datetime
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.records import causes, first_stage_id, versions, why_stale, write_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mteb.abstasks import AbsTask
    from mteb.cache import ResultCache
    from mteb.models import ModelMeta

logger = logging.getLogger(__name__)

# Documents kept beside the gold ones, per query of a smoke run.
_LIMIT_DOCUMENTS = 20


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    Attributes:
        output: MTEB's result cache; results lie in ``<output>/results``, as after ``mteb run``.
        name: File a local directory's results under this name instead of its own.
        batch_size: Rows a batch; None leaves it to MTEB.
        device: Where to; None lets torch choose.
        instruction_template: Give the task's instruction in this template to a model MTEB does not know.
        no_instruction: Give no instruction to a model MTEB does not know.
        overwrite: Run again whatever is cached.
        limit: Smoke run over the first queries only; kept apart from full results.
        rerank_from: Saved predictions whose top documents are reranked.
        rerank_top_k: Candidates a query.
        prediction_folder: Where to save predictions.
        progress: Show progress bars.
    """

    output: Path = Path("results")
    name: str | None = None
    batch_size: int | None = None
    device: str | None = None
    instruction_template: str | None = None
    no_instruction: bool = False
    overwrite: bool = False
    limit: int | None = None
    rerank_from: Path | None = None
    rerank_top_k: int = 100
    prediction_folder: Path | None = None
    progress: bool = True


@dataclass
class Outcome:
    """One model on one task.

    Attributes:
        model: The model's name, with its experiment where there is one.
        task: Task name.
        score: Main score in ``[0, 1]``, or None after a failure.
        error: One line, or None.
        cached: Whether the score was there already.
        seconds: How long it took.
    """

    model: str
    task: str
    score: float | None = None
    error: str | None = None
    cached: bool = False
    seconds: float = 0.0


@dataclass
class _Loaded:
    """A model that is loaded when it is first needed."""

    meta: ModelMeta
    device: str | None
    model: Any = field(default=None)

    def get(self) -> Any:  # noqa: ANN401 - any of mteb's model protocols
        if self.model is None:
            self.model = self.meta.load_model(device=self.device)
            self.meta = self.model.mteb_model_meta
        return self.model


def resolve_tasks(benchmarks: Sequence[str], tasks: Sequence[str]) -> list[AbsTask]:
    """Return MTEB tasks by benchmark and task names, each once.

    Args:
        benchmarks: Benchmark names, ours or MTEB's.
        tasks: Task names, ours or MTEB's.

    Raises:
        UnknownNameError: If a name is not known; the nearest is named.
    """
    import mteb

    known = {benchmark.name for benchmark in mteb.get_benchmarks()}
    found: dict[str, AbsTask] = {}
    for name in benchmarks:
        if name not in known:
            raise unknown_name("benchmark", name, known)
        found |= {task.metadata.name: task for task in mteb.get_benchmark(name).tasks}
    for name in tasks:
        try:
            found[name] = mteb.get_task(name)
        except KeyError:
            every = {task.metadata.name for task in mteb.get_tasks()} | _our_tasks()
            raise unknown_name("task", name, every) from None
    return list(found.values())


def _our_tasks() -> set[str]:
    from reasonembed_mteb.retrieval.tables import load_rows

    return {row.name for row in load_rows()}


def resolve_model(name: str, options: RunOptions) -> ModelMeta:
    """Return MTEB metadata of a model by name.

    Args:
        name: A published checkpoint, any model of MTEB's registry, a hub id, or a local directory.
        options: How to run.

    Raises:
        UnknownNameError: If it is none of these; the nearest is named.
        ReasonEmbedError: If instruction options are given for a model that has its own.
    """
    import mteb
    from mteb.models.model_implementations import MODEL_REGISTRY

    from reasonembed_mteb.zoo import local_meta, with_instruction

    if name in MODEL_REGISTRY or (known := _renamed(name)) is not None:
        if options.instruction_template is not None or options.no_instruction:
            msg = f"{name} brings its own instructions; --instruction-template and --no-instruction are for others"
            raise ReasonEmbedError(msg)
        return mteb.get_model_meta(name if name in MODEL_REGISTRY else known)
    folder = Path(name).expanduser()
    if folder.is_dir():
        meta = local_meta(folder, options.name)
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise unknown_name("model", name, MODEL_REGISTRY)
    else:
        meta = _hub_meta(name)
    return with_instruction(meta, options.instruction_template, none=options.no_instruction)


def _renamed(name: str) -> str | None:
    return {"bm25s": "mteb/baseline-bm25s", "bm25": "mteb/baseline-bm25s"}.get(name)


def _hub_meta(name: str) -> ModelMeta:
    import mteb
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from mteb.models.model_implementations import MODEL_REGISTRY

    try:
        meta = mteb.get_model_meta(name, fetch_from_hf=True)
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        nearest = unknown_name("model", name, MODEL_REGISTRY)
        msg = f"{nearest} MTEB does not know it, and the hub cannot be asked ({type(error).__name__})."
        raise ReasonEmbedError(msg) from error
    if meta.loader is None:
        raise unknown_name("model", name, MODEL_REGISTRY)
    return meta


def query_prefix_of(model: Any, task: AbsTask) -> str | None:  # noqa: ANN401 - any of mteb's model protocols
    """Return the text that a loaded model gets before each query of a task.

    Args:
        model: A loaded MTEB model.
        task: The task.

    Returns:
        The prefix; empty for none; None where it cannot be known (an API).
    """
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.types import PromptType

    from reasonembed_mteb.mteb_encoder import ReasonEmbedEncoder

    if isinstance(model, ReasonEmbedEncoder):
        return model.prompt_for(task.metadata, PromptType.query)
    if isinstance(model, InstructSentenceTransformerModel):
        return model.get_task_instruction(task.metadata, PromptType.query)
    if isinstance(model, SentenceTransformerEncoderWrapper):
        prompts = model.model_prompts or {}
        name = get_prompt_name(prompts, task.metadata, PromptType.query)
        return prompts.get(name or "", "")
    return None if getattr(model.mteb_model_meta, "use_instructions", None) else ""


def run(
    models: Sequence[str],
    tasks: Sequence[AbsTask],
    options: RunOptions,
    say: Callable[[str], None] = logger.info,
) -> list[Outcome]:
    """Score models on tasks; one that fails does not stop the others.

    Args:
        models: Model names; see `resolve_model`.
        tasks: MTEB tasks.
        options: How to run.
        say: Takes one line at a time about what happens.

    Returns:
        One outcome per model and task, in the order given.

    Raises:
        UnknownNameError: If a model is not known; nothing has run by then.
    """
    metas = [resolve_model(name, options) for name in models]
    return [outcome for meta in metas for outcome in _run_model(meta, tasks, options, say)]


def output_folder(options: RunOptions) -> Path:
    """Return the result cache of a run: smoke runs have their own, never mixed with full results."""
    return options.output / f"limit-{options.limit}" if options.limit else options.output


def _run_model(
    meta: ModelMeta, tasks: Sequence[AbsTask], options: RunOptions, say: Callable[[str], None]
) -> list[Outcome]:
    from mteb.cache import ResultCache

    cache = ResultCache(output_folder(options))
    loaded = _Loaded(meta, options.device)
    outcomes = []
    for task in tasks:
        started = time.monotonic()
        outcome = Outcome(meta.model_name_with_experiment or str(meta.name), task.metadata.name)
        try:
            outcome.score, outcome.cached = _run_task(loaded, task, cache, options, say)
        except Exception as error:  # noqa: BLE001 - the other models and tasks go on
            outcome.error = f"{type(error).__name__}: {error}".splitlines()[0]
            logger.debug("%s on %s failed", outcome.model, outcome.task, exc_info=True)
            say(f"{outcome.model} on {outcome.task} failed: {outcome.error}")
        outcome.seconds = time.monotonic() - started
        outcomes.append(outcome)
    return outcomes


def _run_task(
    loaded: _Loaded, task: AbsTask, cache: ResultCache, options: RunOptions, say: Callable[[str], None]
) -> tuple[float, bool]:
    """Score one task, or take the cached score where nothing has changed since."""
    import mteb

    if loaded.meta.revision is None:
        # What the weights resolve to is known only once they are loaded.
        loaded.get()
    name = task.metadata.name
    rerank = first_stage_id(options.rerank_from, options.rerank_top_k) if options.rerank_from else None
    now = causes(loaded.meta, task, rerank=rerank, limit=options.limit)
    reason = "--overwrite" if options.overwrite else why_stale(cache, task, loaded.meta, now)
    held = reason is None and cache.get_task_result_path(name, loaded.meta).is_file()
    cached = cache.load_task_result(name, loaded.meta) if held else None
    if cached is not None and not cached.get_missing_evaluations(task):
        return cached.get_score(), True
    if reason is not None:
        say(f"{loaded.meta.name} on {name}: running again, {reason}")
    model = loaded.get()
    prefix = query_prefix_of(model, task)
    say(f"{loaded.meta.name} on {name}: {describe_prefix(prefix)}")
    _prepare(task, options)
    result = mteb.evaluate(
        model,
        [task],
        cache=cache,
        co2_tracker=False,
        overwrite_strategy="always",
        encode_kwargs=_encode_kwargs(options),
        prediction_folder=options.prediction_folder,
        show_progress_bar=options.progress,
    ).task_results[0]
    task.unload_data()
    write_record(cache, task, loaded.meta, _record(now, result, prefix, model))
    return result.get_score(), False


def describe_prefix(prefix: str | None) -> str:
    """Say in a few words what goes before each query."""
    if prefix is None:
        return "instruction set by the model's own code"
    return f"before each query {prefix!r}" if prefix else "no instruction"


def _encode_kwargs(options: RunOptions) -> Any:  # noqa: ANN401 - mteb's EncodeKwargs
    batch = {} if options.batch_size is None else {"batch_size": options.batch_size}
    return {"show_progress_bar": options.progress, **batch}


def _prepare(task: AbsTask, options: RunOptions) -> None:
    if options.limit:
        limit_task(task, options.limit)
    if options.rerank_from:
        task.convert_to_reranking(options.rerank_from, top_k=options.rerank_top_k)  # type: ignore[attr-defined]


def limit_task(task: Any, queries: int) -> None:  # noqa: ANN401 - AbsTaskRetrieval
    """Load a task and keep its first queries, their gold documents and a few more.

    Its data revision is marked, so that results cannot pass for full ones.

    Args:
        task: A retrieval task.
        queries: How many queries to keep.
    """
    task.load_data()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    for splits in task.dataset.values():
        for split in splits.values():
            _limit_split(split, queries)
    dataset = dict(task.metadata.dataset)
    dataset["revision"] = f"{dataset['revision']}+limit{queries}"
    task.metadata = task.metadata.model_copy(update={"dataset": dataset})


def _limit_split(split: dict[str, Any], queries: int) -> None:
    split["queries"] = split["queries"].select(range(min(queries, len(split["queries"]))))
    kept = list(split["queries"]["id"])
    split["relevant_docs"] = {query: split["relevant_docs"].get(query, {}) for query in kept}
    wanted = {document for gold in split["relevant_docs"].values() for document in gold}
    room = queries * _LIMIT_DOCUMENTS
    rows = []
    for index, document in enumerate(split["corpus"]["id"]):
        if document in wanted or room > 0:
            rows.append(index)
            room -= document not in wanted
    split["corpus"] = split["corpus"].select(rows)


def _record(now: dict[str, Any], result: Any, prefix: str | None, model: Any) -> dict[str, Any]:  # noqa: ANN401
    import torch

    lengths = {
        split: [scores.get("max_tokens") for scores in subsets] for split, subsets in result.scores.items()
    }
    inner = getattr(model, "model", None)
    parameter = next(iter(inner.parameters()), None) if isinstance(inner, torch.nn.Module) else None
    return {
        "causes": now,
        "query_prefix": prefix,
        "max_tokens_in_force": lengths,
        "main_score": result.get_score(),
        "dataset_revision": result.dataset_revision,
        "dtype": str(parameter.dtype) if parameter is not None else None,
        "device": str(parameter.device) if parameter is not None else None,
        # Nothing in an evaluation is drawn at random.
        "seed": None,
        "versions": versions(),
        "date": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
    }
