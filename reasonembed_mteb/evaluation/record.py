"""What a result was made with, kept beside it, so that a cached one is reused only where nothing changed.

Records lie in ``<output>/records/``, outside MTEB's ``results/`` tree, at the same relative path.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.evaluation.limits import asked_as
from reasonembed_mteb.files import file_hash, is_number, package_versions, write_whole
from reasonembed_mteb.retrieval.rows import max_tokens_for, task_instructions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mteb.abstasks import AbsTask
    from mteb.cache import ResultCache
    from mteb.models import ModelMeta

PROTOCOL = "ReasonEmbed"
# A difference in one of these makes a cached result stale; the words are for the message.
_REASONS = {
    "protocol": "the protocol",
    "instruction": "the task's instruction",
    "max_tokens": "the protocol's length",
    "data_revision": "the data",
    "model_revision": "the model's content",
    "loader": "how the model is loaded (template or prompts)",
    "rerank": "the first stage",
    "limit": "the limit",
}


@dataclass(frozen=True)
class Causes:
    """Everything that decides a result and is known before the model is loaded.

    Attributes:
        protocol: Name of the protocol.
        instruction: The task's sentence, or MTEB's prompt of a task that is in no table.
        max_tokens: The protocol's length in tokens.
        data_revision: Revision of the data; a smoke run's ends in ``+limitN``.
        model_revision: Revision of the model, or a hash of what its directory holds.
        loader: Options of the loader and of the experiment, as JSON.
        rerank: What identifies the first stage of a reranking.
        limit: Number of queries of a smoke run.
    """

    protocol: str | None = None
    instruction: str | None = None
    max_tokens: int | None = None
    data_revision: str | None = None
    model_revision: str | None = None
    loader: dict[str, Any] = field(default_factory=dict)
    rerank: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class RunCost:
    """What the scores of one task cost.

    Attributes:
        seconds: Wall time of the evaluation.
        texts: Texts encoded now; those taken from the store do not count.
        tokens: Their tokens.
        truncated: How many of them were cut at the length in force.
        dimensions: Of a vector.
        device_name: Name of the GPU, or None on a CPU.
    """

    seconds: float | None = None
    texts: int | None = None
    tokens: int | None = None
    truncated: int | None = None
    dimensions: int | None = None
    device_name: str | None = None


@dataclass(frozen=True)
class Record:
    """What one result was made with, and what it cost.

    Attributes:
        causes: What decides it.
        model: MTEB's name of the model.
        task: MTEB task name.
        query_prefix: What stood before each query, or None where the task decides query by query.
        max_tokens_in_force: The length in tokens that the model was held to.
        main_score: The result, in ``[0, 1]`` for retrieval.
        dataset_revision: As MTEB writes it in the result.
        dtype: Of the weights.
        device: Where they were.
        engine: Name, version and options of what computed the vectors in place of torch; None for torch.
        seed: None: nothing in a retrieval evaluation is drawn at random.
        cost: What it cost.
        versions: Of the packages that a score depends on.
        date: UTC, ISO 8601.
        predictions: SHA-256 of the saved predictions, or None where none were asked for.
        scores: SHA-256 of the scores by query.
        result: SHA-256 of MTEB's result file.
    """

    causes: Causes = field(default_factory=Causes)
    model: str | None = None
    task: str | None = None
    query_prefix: str | None = None
    max_tokens_in_force: int | None = None
    main_score: float | None = None
    dataset_revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    engine: dict[str, Any] | None = None
    seed: int | None = None
    cost: RunCost = field(default_factory=RunCost)
    versions: dict[str, str] = field(default_factory=dict)
    date: str | None = None
    predictions: str | None = None
    scores: str | None = None
    result: str | None = None


def read_record(file: Path) -> Record:
    """Read a record, of this version or of an earlier one.

    What an earlier version did not record yet is None; what a later one adds is left out.

    Args:
        file: Written by `write_record`.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    try:
        content = json.loads(file.read_bytes())
        parts = {name: content.get(name) or {} for name in ("causes", "cost")}
        record = Record(
            **_known(Record, content)
            | {"causes": Causes(**_known(Causes, parts["causes"])), "cost": _cost_of(parts["cost"])}
        )
        if not isinstance(content["result"], str):
            raise TypeError
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        msg = f"its record {file} is damaged; run the task again, or delete the record"
        raise DataError(msg) from error
    return record


def _known(kind: type, content: dict[str, Any]) -> dict[str, Any]:
    return {one.name: content[one.name] for one in fields(kind) if content.get(one.name) is not None}


def _cost_of(content: dict[str, Any]) -> RunCost:
    cost = RunCost(**_known(RunCost, content))
    for name, value in asdict(cost).items():
        if name != "device_name" and not (value is None or is_number(value)):
            raise TypeError
    return cost


def find_causes(
    meta: ModelMeta, task: AbsTask, *, rerank: str | None = None, limit: int | None = None
) -> Causes:
    """Return everything that decides a result and is known before the model is loaded.

    Args:
        meta: The model; its revision must be resolved.
        task: Loaded or not; its name, data and prompt are asked.
        rerank: What identifies the first stage of a reranking.
        limit: Number of queries of a smoke run.
    """
    held = (meta.loader_kwargs or {}).items()
    # Where weights lie and run decides nothing; a loaded model names its device, one that is not does not.
    options = {key: _plain(value) for key, value in held if key not in ("path", "device")}
    extra = {key: _plain(value) for key, value in (meta.experiment_kwargs or {}).items()}
    asked = asked_as(task)
    row = getattr(task, "row", None)
    return Causes(
        protocol=PROTOCOL,
        instruction=task_instructions().get(asked.name) or json.dumps(asked.prompt),
        # A BEIR folder is in no table.
        max_tokens=row.max_tokens if row is not None and not row.table else max_tokens_for(asked.name),
        data_revision=_data_revision(task),
        model_revision=meta.revision,
        loader=options | extra,
        rerank=rerank,
        limit=limit,
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - an option of a model loader
    """Return an option as JSON that is the same in every process; a function is known by its name."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(_plain(one)) for one in value)
    if callable(value):
        return (
            f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
        )
    return str(value)


def _data_revision(task: AbsTask) -> str:
    from reasonembed_mteb.retrieval.sources import data_revision

    row = getattr(task, "row", None)
    held = data_revision(row) if row is not None else str(task.metadata.dataset["revision"])
    # Of a task made from another one: what was done to its data.
    change: str = getattr(task, "change", "")
    return held if held.endswith(change) else f"{held}{change}"


def record_path(cache: ResultCache, task: str, meta: ModelMeta) -> Path:
    """Return where a result's record lies.

    Args:
        cache: MTEB's result cache of the output folder.
        task: Task name.
        meta: The model.
    """
    result = cache.get_task_result_path(task, meta)
    return cache.cache_path / "records" / result.relative_to(cache.cache_path / "results")


def scores_path(record: Path) -> Path:
    """Return where the scores by query lie; see `reasonembed_mteb.evaluation.scores`.

    Args:
        record: The record; see `record_path`.
    """
    return record.with_suffix(".parquet")


def why_stale(
    cache: ResultCache, task: AbsTask, meta: ModelMeta, now: Causes, predictions: Path | None = None
) -> str | None:
    """Say why a cached result may not be reused.

    Args:
        cache: MTEB's result cache of the output folder.
        task: With the data revision that would be scored now.
        meta: The model, its revision resolved.
        now: What would be recorded now; see `find_causes`.
        predictions: Where the predictions behind the result must lie, if they are wanted.

    Returns:
        The reason in a few words, or None if the result is missing or still holds.
    """
    name = task.metadata.name
    if not cache.get_task_result_path(name, meta).is_file():
        return None
    file = record_path(cache, name, meta)
    if not file.is_file():
        return "it has no record of how it was made"
    try:
        record = read_record(file)
    except DataError:
        return "its record is damaged"
    if record.result != file_hash(cache.get_task_result_path(name, meta)):
        return "it was written by another program since its record was made"
    before, wanted = asdict(record.causes), asdict(now)
    changed = [words for key, words in _REASONS.items() if before[key] != wanted[key]]
    if changed:
        return f"{' and '.join(changed)} changed"
    if record.scores is None or record.scores != file_hash(scores_path(file)):
        return "its scores by query are missing or damaged"
    if predictions is not None and (file_hash(predictions) or "none") != record.predictions:
        return f"its predictions are not in {predictions.parent}"
    return None


def make_record(
    now: Causes,
    result: Any,  # noqa: ANN401 - mteb's TaskResult
    model: Any,  # noqa: ANN401 - any of mteb's model protocols
    task: AbsTask,
    figures: Mapping[str, int] | None = None,
    predictions: str | None = None,
) -> Record:
    """Return what to write beside a result; `write_record` adds what ties it to its files.

    Args:
        now: See `find_causes`.
        result: MTEB's result of the task.
        model: Loaded, since its prefix, length and weights are asked.
        task: As it was evaluated.
        figures: Texts and tokens that were encoded, and how many were cut.
        predictions: SHA-256 of the saved predictions.
    """
    import torch

    from reasonembed_mteb.models.instructions import loaded_prefix

    inner = getattr(model, "model", None)
    parameter = next(iter(inner.parameters()), None) if isinstance(inner, torch.nn.Module) else None
    engine = getattr(inner, "engine", None)
    if engine is not None:
        # The weights, and with them dtype and device, are the engine's.
        parameter = None
    return Record(
        causes=now,
        model=model.mteb_model_meta.name,
        task=task.metadata.name,
        query_prefix=loaded_prefix(model, asked_as(task)),
        max_tokens_in_force=_length_in_force(model, result, task),
        main_score=result.get_score(),
        dataset_revision=result.dataset_revision,
        dtype=str(parameter.dtype) if parameter is not None else None,
        device=str(parameter.device) if parameter is not None else None,
        engine=engine.identity if engine is not None else None,
        cost=_cost(model, result, parameter, figures or {}),
        versions=package_versions(),
        date=datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        predictions=predictions,
    )


def _cost(
    model: Any,  # noqa: ANN401 - any of mteb's model protocols
    result: Any,  # noqa: ANN401 - mteb's TaskResult
    parameter: Any,  # noqa: ANN401 - Tensor
    figures: Mapping[str, int],
) -> RunCost:
    """Return what the scores cost; tokens are those read now, not those of vectors from the store."""
    import torch

    on_gpu = parameter is not None and parameter.device.type == "cuda"
    dimension = getattr(getattr(model, "model", None), "get_embedding_dimension", lambda: None)
    return RunCost(
        seconds=result.evaluation_time,
        texts=figures.get("texts"),
        tokens=figures.get("tokens"),
        truncated=figures.get("truncated"),
        dimensions=dimension(),
        device_name=torch.cuda.get_device_name(parameter.device) if on_gpu else None,
    )


def _length_in_force(model: Any, result: Any, task: AbsTask) -> int | None:  # noqa: ANN401
    """Return the length that our tasks report, or that our encoders keep to on MTEB's tasks."""
    from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder
    from reasonembed_mteb.retrieval.lengths import current_length

    reported = [
        scores["max_tokens"]
        for splits in result.scores.values()
        for scores in splits
        if "max_tokens" in scores
    ]
    if reported:
        length: int | None = reported[0]
        return length
    own = current_length(model)
    if own is None or not isinstance(model, ProtocolEncoder):
        return own
    return min(own, max_tokens_for(asked_as(task).name, default=own))


def scores_info(record: Record, task: AbsTask) -> dict[str, Any]:
    """Return what the scores by query say about how they were made: the record without dates and costs.

    Args:
        record: See `make_record`.
        task: Its main score is named.
    """
    made = record.causes
    return {
        "protocol": made.protocol,
        "task": record.task,
        "model": record.model,
        "model_revision": made.model_revision,
        "data_revision": made.data_revision,
        "instruction": made.instruction,
        "query_prefix": record.query_prefix,
        "max_tokens": record.max_tokens_in_force,
        "dtype": record.dtype,
        "loader": made.loader,
        "rerank": made.rerank,
        "limit": made.limit,
        "main_score": task.metadata.main_score,
        "versions": record.versions,
    }


def write_record(file: Path, record: Record, result: Path) -> None:
    """Write a result's record, whole or not at all, tied to the result and to its scores by query.

    Args:
        file: Where to; see `record_path`. The scores by query must be there; see `scores_path`.
        record: See `make_record`.
        result: MTEB's result file.
    """
    tied = asdict(record) | {"result": file_hash(result), "scores": file_hash(scores_path(file))}
    write_whole(file, json.dumps(tied, indent=2, sort_keys=True) + "\n")


def first_stage_file(folder: Path, task: AbsTask) -> Path:
    """Return the saved predictions of one task.

    Args:
        folder: A folder of MTEB predictions, or one such file.
        task: Its name is looked up in the file.

    Raises:
        ReasonEmbedError: If there are none.
    """
    file = folder / task.prediction_file_name if folder.is_dir() else folder
    if not file.is_file():
        msg = (
            f"no first-stage predictions {file}; make them with `reasonembed run -m FIRST_STAGE "
            f"-t {task.metadata.name} --prediction-folder FOLDER`"
        )
        raise ReasonEmbedError(msg)
    return file


def first_stage_id(folder: Path, task: AbsTask, top_k: int) -> str:
    """Return what identifies the candidates that a reranking starts from.

    Args:
        folder: A folder of MTEB predictions, or one such file.
        task: Its name is looked up in the file.
        top_k: Candidates a query.

    Raises:
        ReasonEmbedError: If there are none for the task.
    """
    return f"{file_hash(first_stage_file(folder, task))} top {top_k}"
