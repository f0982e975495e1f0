"""Reading result folders: every score with its model, task and record, and a name for each model."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, first_names, unknown_name
from reasonembed_mteb.evaluation.chapter_files import CHAPTERS
from reasonembed_mteb.evaluation.record import Record, read_record, scores_path
from reasonembed_mteb.evaluation.resolving import experiment_words, registered_name
from reasonembed_mteb.files import bytes_hash, is_number
from reasonembed_mteb.retrieval.rows import row_of_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, order=True)
class Model:
    """A model as its results name it.

    Attributes:
        name: MTEB's name, ``org/name``.
        revision: Its revision; two of one model are two models here.
        options: How it was run where not plainly: experiment options, a reranking, a smoke run.
        source: The folder it was read from, where two folders disagree about it.
        shown: The options as labels show them, where that is not how MTEB files them.
    """

    name: str
    revision: str
    options: str = ""
    source: str = ""
    shown: str = field(default="", compare=False)


@dataclass(frozen=True)
class Result:
    """One main score.

    Attributes:
        model: Whose.
        task: MTEB task name.
        split: Split of the data.
        subset: MTEB's subset of the task, mostly ``default``; empty for the mean of several.
        score: Main score, ``[0, 1]`` for retrieval.
        metric: Its name, or None where neither we nor MTEB know the task.
        file: The result file.
        mteb_version: Which MTEB wrote it.
        data_revision: Revision of the data.
        seconds: How long it took, if that is known.
        limit: Number of queries of a smoke run; None for a full one.
        record: What `reasonembed run` recorded of it; None for others' results.
        meta: MTEB's metadata of the model; empty where the folder has none.
        scores_file: Scores by query, or None.
    """

    model: Model
    task: str
    split: str
    subset: str
    score: float
    metric: str | None
    file: Path
    mteb_version: str
    data_revision: str
    seconds: float | None = None
    limit: int | None = None
    record: Record | None = field(default=None, repr=False)
    meta: dict[str, Any] = field(default_factory=dict, repr=False)
    scores_file: Path | None = None


@dataclass
class ResultSet:
    """What was read.

    Attributes:
        found: Every score, in the order of the files.
        problems: One line for each file that was left out, and why.
    """

    found: list[Result] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[Model]:
        """Every model once, in order of name."""
        return sorted({result.model for result in self.found})

    @property
    def labels(self) -> dict[Model, str]:
        """A short name for each model.

        Where two share one, their options in full, then the revision, then the folder is added.
        """
        named = {model: _label(model, model.shown or model.options) for model in self.models}
        names = Counter(named.values())
        named = {
            model: _label(model, model.options) if names[label] > 1 else label
            for model, label in named.items()
        }
        names = Counter(named.values())
        named = {
            model: f"{label} @{model.revision[:8]}" if names[label] > 1 else label
            for model, label in named.items()
        }
        names = Counter(named.values())
        return {
            model: f"{label} in {model.source or 'another folder'}" if names[label] > 1 else label
            for model, label in named.items()
        }

    def model(self, name: str) -> Model:
        """Return a model by its label, its full name, the last part of it, or a short name of ours.

        Args:
            name: As the user wrote it.

        Raises:
            UnknownNameError: If there is none.
            ReasonEmbedError: If the name fits several.
        """
        labels = self.labels
        filed = {m: _label(m, m.options) for m in labels}
        full = {m: m.name for m in labels}
        last = {m: m.name.split("/")[-1] for m in labels}
        registered = registered_name(name)
        for names, wanted in (
            (labels, name),
            (filed, name),
            (full, name),
            (last, name),
            (full, registered),
        ):
            fitting = [model for model, given in names.items() if given == wanted]
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                choice = ", ".join(repr(labels[model]) for model in fitting)
                msg = f"{name!r} names {len(fitting)} models of these results: give one of {choice}"
                raise ReasonEmbedError(msg)
        raise unknown_name("model of these results", name, labels.values())


def _label(model: Model, options: str) -> str:
    return f"{model.name} ({options})" if options else model.name


# Next to MTEB's `results` tree in an output folder, and no results themselves.
_OTHER_FOLDERS = frozenset({"records", "remote", "predictions", CHAPTERS})
_NO_RESULTS = frozenset({"model_meta.json"})
_NO_REVISION = "no_revision_available"
# Metrics of retrieval are shares; whoever edits a file tends to write per cent.
_SHARES = ("ndcg", "recall", "map", "mrr", "precision", "hit_rate", "alpha_ndcg", "coverage", "ppa")
# MTEB rounds what it writes to five or six decimals.
_ROUNDING = 2e-5


def read_results(folders: Sequence[Path]) -> ResultSet:
    """Read every result below some folders.

    Args:
        folders: Output folders, ``results`` trees, folders of one model, or single files.

    Returns:
        The results, and what was left out. Where two folders hold different scores of one model and task,
        the folder is added to the model.

    Raises:
        ReasonEmbedError: If a folder does not exist or holds no result at all.
    """
    results = ResultSet()
    for folder in folders:
        files = list(_result_files(folder))
        if not files and not (folder / CHAPTERS).is_dir():
            msg = f"{folder} holds no MTEB results; give an output folder, as `reasonembed run` leaves it"
            raise ReasonEmbedError(msg)
        metas: dict[Path, dict[str, Any]] = {}
        for file in files:
            try:
                results.found += _read(file, folder, metas)
            except DataError as error:
                results.problems.append(f"{file}: {error}")
    results.found, torn = _one_a_task(_apart(results.found))
    results.problems += torn
    return results


def _one_a_task(found: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Make one result of the pools of a task of our tables: their mean, as MTEB takes it.

    A run that was stopped leaves the pools that it had finished. A mean over them is not the task's score, so
    that such a result is left out; a line names the pools that it lacks.
    """
    pools: dict[tuple[Any, ...], list[Result]] = {}
    for result in found:
        # MTEB's own tasks over several of our rows keep their subsets.
        alone = row_of_task(result.task) is None
        key = (result.model, result.task, result.split, result.limit, result.subset if alone else "")
        pools.setdefault(key, []).append(result)
    whole, problems = [], []
    for held in pools.values():
        lacking = _lacking_pools(held)
        if lacking:
            problems.append(
                f"{held[0].file}: it lacks {len(lacking)} of the task's pools ({first_names(lacking)}), as a "
                "run that was stopped leaves it; run the task again"
            )
        elif len(held) == 1:
            whole.append(held[0])
        else:
            whole.append(replace(held[0], subset="", score=_mean_of(held), scores_file=None))
    return whole, problems


def _lacking_pools(held: Sequence[Result]) -> list[str]:
    """Return the pools of a task of our tables that its results do not hold."""
    task = held[0].task
    row = row_of_task(task)
    if row is None:
        return []
    expected = row.pools if task == row.name and not row.is_mtebs else _mteb_subsets(task)
    found = {result.subset for result in held}
    return [pool for pool in expected if pool not in found]


@cache
def _mteb_subsets(task: str) -> tuple[str, ...]:
    import mteb

    try:
        return tuple(mteb.get_task(task).metadata.hf_subsets)
    except KeyError:
        # An older or newer MTEB's task.
        return ()


def _mean_of(held: Sequence[Result]) -> float:
    return math.fsum(result.score for result in held) / len(held)


def _result_files(folder: Path) -> Iterator[Path]:
    """Yield what may be a result, in order of path."""
    if not folder.exists():
        msg = f"no folder {folder}; give an output folder of `reasonembed run` or `mteb run`"
        raise ReasonEmbedError(msg)
    if folder.is_file():
        yield folder
        return
    inner = folder / "results"
    if (folder / CHAPTERS).is_dir() and not inner.is_dir():
        # An output folder, in which nothing was scored.
        return
    root = inner if inner.is_dir() else folder
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _OTHER_FOLDERS and name[0] != ".")
        for name in sorted(names):
            if name.endswith(".json") and name not in _NO_RESULTS and name[0] != ".":
                yield Path(parent, name)


def _read(file: Path, folder: Path, metas: dict[Path, dict[str, Any]]) -> list[Result]:
    content = file.read_bytes()
    loaded = _load(file, content)
    if file.parent not in metas:
        metas[file.parent] = _json(file.parent / "model_meta.json")
    meta = metas[file.parent]
    beside = _beside(file)
    record = read_record(beside) if beside is not None else None
    if record is not None and record.result != bytes_hash(content):
        msg = f"it changed since it was recorded: run it again, or delete {beside} to take it as it is"
        raise DataError(msg)
    scores_file = scores_path(beside) if beside is not None else None
    base = Result(
        model=_model(file, meta, record, str(folder)),
        task=loaded.task_name,
        split="",
        subset="",
        score=0.0,
        metric=_metric(loaded.task_name),
        file=file,
        mteb_version=str(loaded.mteb_version or "unknown"),
        data_revision=loaded.dataset_revision,
        seconds=_seconds(record, loaded.evaluation_time),
        limit=_limit(record, loaded.dataset_revision),
        record=record,
        meta=meta,
        scores_file=scores_file if scores_file is not None and scores_file.is_file() else None,
    )
    return [
        replace(base, split=split, subset=str(entry.get("hf_subset", "default")), score=_score(entry, base))
        for split, entries in _splits(loaded)
        for entry in entries
    ]


def _load(file: Path, content: bytes) -> Any:  # noqa: ANN401 - TaskResult
    """Read a result of any MTEB version by MTEB's own loader; say in a few words what is wrong."""
    from mteb.results.task_result import TaskResult

    try:
        raw = json.loads(content)
    except ValueError as error:
        msg = f"it is half-written or no JSON ({error}); run the task again"
        raise DataError(msg) from error
    if not isinstance(raw, dict) or not {"task_name", "mteb_dataset_name"} & raw.keys():
        msg = "it is no MTEB result (it names no task)"
        raise DataError(msg)
    try:
        return TaskResult.from_disk(file)
    except Exception as error:
        # Old formats end in whatever exception the missing part makes.
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        msg = f"MTEB cannot read it ({type(error).__name__}: {cause}); run the task again"
        raise DataError(msg) from error


def _splits(loaded: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - TaskResult
    """Return the splits that count: of a task of the tables its own alone."""
    expected = row_of_task(loaded.task_name)
    scores = loaded.scores
    if not any(scores.values()):
        msg = "it holds no scores; run the task again"
        raise DataError(msg)
    if expected is not None and expected.split not in scores:
        msg = f"it has split {', '.join(scores)}, and the task's is {expected.split}; run the task again"
        raise DataError(msg)
    if expected is not None:
        scores = {expected.split: scores[expected.split]}
    return list(scores.items())


def _metric(task: str) -> str | None:
    row = row_of_task(task)
    return row.score_of(task) if row is not None else _mteb_metric(task)


@cache
def _mteb_metric(task: str) -> str | None:
    import mteb

    try:
        return str(mteb.get_task(task).metadata.main_score)
    except KeyError:
        return None


def score_problem(entry: Mapping[str, Any], metric: str | None) -> str | None:
    """Say what is wrong with a main score, or return None.

    Args:
        entry: The scores of one split and subset.
        metric: Which metric the main score is, or None where nobody knows the task.
    """
    value = entry.get("main_score")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"its main score is {value!r}, not a number; run the task again"
    if not math.isfinite(value):
        return "its main score is NaN or infinite: the vectors were broken (a half-precision overflow?)"
    if metric is None:
        return None
    if is_share(metric) and not 0 <= value <= 1:
        return f"its main score is {value}, and {metric} lies in [0, 1]: it was edited; run the task again"
    named = entry.get(metric, value)
    if is_number(named) and abs(named - value) > _ROUNDING:
        return f"its main score {value} is not its {metric} {named}: it was edited; run the task again"
    return None


def is_share(metric: str) -> bool:
    """Return whether a metric lies in [0, 1].

    Args:
        metric: MTEB's name, such as ``ndcg_at_10``.
    """
    return metric.startswith(_SHARES)


def _score(entry: dict[str, Any], result: Result) -> float:
    """Return a checked main score."""
    problem = score_problem(entry, result.metric)
    if problem is not None:
        raise DataError(problem)
    return float(entry["main_score"])


def _model(file: Path, meta: dict[str, Any], record: Record | None, source: str) -> Model:
    folder = file.parent
    experiment = folder.name if folder.parent.name == "experiments" else ""
    own = folder.parent.parent if experiment else folder
    # Before revisions had folders, results lay in the model's own.
    bare = "__" in own.name and "__" not in own.parent.name
    name = (own if bare else own.parent).name.replace("__", "/", 1)
    chosen = meta.get("experiment_kwargs")
    words = experiment_words(chosen) if experiment and isinstance(chosen, dict) else ""
    rerank = record.causes.rerank if record is not None else None
    stage = f"reranks the {rerank.partition(' ')[2] or 'first stage'}" if rerank else ""
    return Model(
        name=str(meta.get("name") or name),
        revision=str(meta.get("revision") or (_NO_REVISION if bare else own.name)),
        options=", ".join(filter(None, (experiment, stage))),
        source=source,
        shown=", ".join(filter(None, (words or experiment, stage))),
    )


def _beside(file: Path) -> Path | None:
    """Return where the record of a result lies, if its folder is an output folder of ours."""
    for parent in file.parents:
        if parent.name == "results":
            record = parent.parent / "records" / file.relative_to(parent)
            if record.is_file():
                return record
    return None


def _json(file: Path) -> dict[str, Any]:
    """Return what a JSON file says, or nothing: results count without it."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _seconds(record: Record | None, evaluation_time: float | None) -> float | None:
    recorded = record.cost.seconds if record is not None else None
    seconds: Any = recorded if recorded is not None else evaluation_time
    return float(seconds) if is_number(seconds) else None


def _limit(record: Record | None, data_revision: str) -> int | None:
    if record is not None and record.causes.limit:
        return int(record.causes.limit)
    marked = data_revision.rpartition("+limit")[2]
    return int(marked) if "+limit" in data_revision and marked.isdigit() else None


def _apart(found: Sequence[Result]) -> list[Result]:
    """Drop what several folders hold alike; keep the folder in the model where they disagree."""
    unnamed = [replace(result, model=replace(result.model, source="")) for result in found]
    scores: dict[tuple[Any, ...], set[float]] = {}
    for result in unnamed:
        key = (result.model, result.task, result.split, result.subset, result.limit)
        scores.setdefault(key, set()).add(result.score)
    torn = {key[0] for key, values in scores.items() if len(values) > 1}
    kept: dict[tuple[Any, ...], Result] = {}
    for result, bare in zip(found, unnamed, strict=True):
        chosen = result if bare.model in torn else bare
        kept.setdefault((chosen.model, result.task, result.split, result.subset, result.limit), chosen)
    return list(kept.values())
