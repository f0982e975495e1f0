"""What MTEB's results repository would refuse of one result file."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.zoo import CHECKPOINTS
from reasonembed_mteb.retrieval.rows import load_rows
from reasonembed_mteb.sharing.modelmeta import TWIN, mteb_training_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mteb.models import ModelMeta
    from mteb.results import TaskResult

# tests/run_settings_check.py of the results repository.
MIN_MTEB = "2.0.0"
SETTINGS = "run_settings.jsonl"
_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One thing that stands in the way of a submission.

    Attributes:
        where: File or folder.
        kind: ``metadata``, ``revision``, ``registry``, ``leakage``, ``result``, ``task``, ``version``,
            ``data``, ``subsets``, ``nan``, ``settings``, ``size``, ``files`` or ``experiment``.
        problem: What is wrong.
        remedy: What to do.
        refused: Whether it would be refused; else a reviewer will ask.
    """

    where: Path
    kind: str
    problem: str
    remedy: str
    refused: bool = True


def stray(file: Path) -> Finding:
    """Say that a file does not belong among results."""
    return Finding(file, "files", "is not part of a submission", "move it out of the results folder")


def read_json(file: Path) -> dict[str, Any] | str:
    """Return the object in a file, or what is wrong with it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return f"cannot be read as JSON ({str(error).splitlines()[0]})"
    return content if isinstance(content, dict) else f"holds {type(content).__name__}, not an object"


def some(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def check_result(file: Path) -> tuple[list[Finding], str | None]:
    """Check one result file.

    Args:
        file: The file.

    Returns:
        Findings, and the task that it holds a score for.
    """
    from mteb.results import TaskResult

    content = read_json(file)
    if isinstance(content, str):
        return [Finding(file, "result", content, "run the task again")], None
    if not isinstance(content.get("task_name"), str) or not isinstance(content.get("scores"), dict):
        problem = "is no result: it has no task_name or no scores"
        return [
            Finding(file, "files", problem, "move predictions and other files out of the results folder")
        ], None
    try:
        result = TaskResult.from_disk(file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"is no result that mteb reads ({str(error).splitlines()[0]})"
        return [Finding(file, "result", problem, "run the task again")], None
    checks = (_check_task, _check_versions, _check_scores, _check_settings)
    return [finding for check in checks for finding in check(file, result)], result.task_name


def _check_task(file: Path, result: TaskResult) -> Iterator[Finding]:
    import mteb

    name = result.task_name
    if file.stem != name:
        yield Finding(file, "result", f"holds the task {name}", "the file must be named as the task")
    ours = {row.name: row for row in load_rows()}
    if name in ours:
        twin = None if ours[name].is_rewritten else ours[name].mteb_name
        remedy = f"submit {twin}, which `reasonembed run -t {twin}` scores" if twin else "leave it out"
        yield Finding(file, "task", "is a task of this package, which MTEB does not know", remedy)
        return
    try:
        task = mteb.get_task(name)
    except KeyError:
        yield Finding(
            file, "task", f"MTEB {_version()} has no task {name}", "leave it out, or use its present name"
        )
        return
    if result.dataset_revision != task.metadata.revision:
        problem = (
            f"was scored on data revision {result.dataset_revision}; the task is at {task.metadata.revision}"
        )
        yield Finding(file, "data", problem, "run it on the task's own data; smoke runs cannot be submitted")
    missing = [
        f"{split}/{subset}"
        for split, names in result.get_missing_evaluations(task).items()
        for subset in names
    ]
    if missing:
        yield Finding(
            file, "subsets", f"lacks {some(sorted(missing))}", "run the task again, with all its subsets"
        )


def _version() -> str:
    return importlib.metadata.version("mteb")


def _too_old(version: object) -> bool:
    """Whether a version, or the lower end of a range such as 2.1.0-2.3.0, is none that is accepted."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(str(version).split("-", 1)[0]) < Version(MIN_MTEB)
    except InvalidVersion:
        return True


def _check_versions(file: Path, result: TaskResult) -> Iterator[Finding]:
    each = [scores.get("mteb_version") for split in result.scores.values() for scores in split]
    old = sorted({str(version) for version in [result.mteb_version, *each] if _too_old(version)})
    if old:
        problem = f"was made with mteb {', '.join(old)}; {MIN_MTEB} or newer is asked for"
        yield Finding(file, "version", problem, "run the task again with this version")


def _check_scores(file: Path, result: TaskResult) -> Iterator[Finding]:
    # MTEB's nauc_* are NaN on small data as a matter of course.
    for split, held in result.scores.items():
        for scores in held:
            main = scores["main_score"]
            if not isinstance(main, (int, float)) or not math.isfinite(main):
                problem = f"the main score of {split}/{scores['hf_subset']} is {main}"
                yield Finding(file, "nan", problem, "run the task again in another dtype")


def _check_settings(file: Path, result: TaskResult) -> Iterator[Finding]:
    settings = file.parent / SETTINGS
    if not settings.is_file():
        yield Finding(settings, "settings", "is missing", "run the tasks again with this version of mteb")
        return
    try:
        covered = dict(_settings(settings))
    except (ValueError, AttributeError) as error:
        problem = f"is not one JSON object a line ({error})"
        yield Finding(settings, "settings", problem, "run the tasks again with this version of mteb")
        return
    scored = {
        (result.task_name, split, scores["hf_subset"])
        for split, held in result.scores.items()
        for scores in held
    }
    missing = sorted(f"{split}/{subset}" for task, split, subset in scored - covered.keys())
    if missing:
        problem = f"says nothing about {result.task_name} {some(missing)}"
        yield Finding(settings, "settings", problem, "run the task again")
    old = sorted({str(covered[key]) for key in scored & covered.keys() if _too_old(covered[key])})
    if old:
        problem = f"says that {result.task_name} was run with mteb {', '.join(old)}"
        yield Finding(settings, "version", problem, f"run the task again with mteb {MIN_MTEB} or newer")


def _settings(file: Path) -> Iterator[tuple[tuple[str, str, str], object]]:
    """Yield task, split and subset of each run, and the version of mteb it was made with."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        entry = json.loads(line)
        version = entry.get("version", {}).get("mteb")
        # Older versions of mteb wrote one split and one subset a line.
        for split in entry.get("splits") or [entry.get("split")]:
            for subset in entry.get("subsets") or [entry.get("subset")]:
                yield (entry.get("task"), split, subset), version


# .github/workflows/check_file_sizes.yml.
MAX_BYTES = 10 * 1024 * 1024
META, EXPERIMENTS = "model_meta.json", "experiments"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def results_root(folder: Path) -> Path:
    """Return the folder that holds one folder a model.

    Args:
        folder: The output folder of a run, or the ``results`` folder in it.

    Raises:
        ReasonEmbedError: If there are no results.
    """
    for root in (folder / "results", folder):
        if any(root.glob("*/*/*.json")):
            return root
    msg = f"{folder} holds no results (results/<model>/<revision>/<task>.json); give a run's output folder"
    raise ReasonEmbedError(msg)


def submit_command(folder: Path) -> str:
    """Return the command of mteb's that submits the results.

    Args:
        folder: See `results_root`.
    """
    return f"mteb submit-results --output-folder {results_root(folder).parent}"


def check_submission(folder: Path) -> list[Finding]:
    """Say what MTEB's results repository would refuse.

    Args:
        folder: The output folder of a run, or the ``results`` folder in it.

    Returns:
        Findings, model by model; empty if there is nothing to say.

    Raises:
        ReasonEmbedError: If there are no results.
    """
    root = results_root(folder)
    findings: list[Finding] = []
    for model in sorted(path for path in root.iterdir() if not path.name.startswith(".")):
        if not model.is_dir():
            findings.append(stray(model))
            continue
        revisions = sorted(path for path in model.iterdir() if not path.name.startswith("."))
        for revision in revisions:
            findings += _check_revision(revision) if revision.is_dir() else [stray(revision)]
        findings += _check_duplicates(model, [path for path in revisions if path.is_dir()])
    return findings


def _result_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.json") if file.name != META)


def _check_duplicates(model: Path, revisions: list[Path]) -> Iterator[Finding]:
    held: dict[str, list[str]] = defaultdict(list)
    for revision in revisions:
        for file in _result_files(revision):
            held[file.stem].append(revision.name)
    for task, names in held.items():
        if len(names) > 1:
            problem = f"{task} is there for {len(names)} revisions ({', '.join(names)})"
            yield Finding(
                model, "revision", problem, "keep the revision that MTEB's entry names, move the others"
            )


def _check_revision(folder: Path) -> list[Finding]:
    meta, findings = _read_meta(folder)
    registered = _registered(str(meta["name"])) if meta else None
    if meta:
        findings += _check_identity(folder, meta, registered)
        findings += _check_training(folder, meta)
    findings += _check_files(folder)
    scored = []
    for file in _result_files(folder):
        found, task = check_result(file)
        findings += found
        scored += [task] if task else []
    if not scored and not findings:
        findings.append(Finding(folder, "result", "holds no result", "remove it"))
    findings += _check_complete(folder, set(scored))
    return findings


def _read_meta(folder: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    file = folder / META
    again = "run the model again with this version of mteb, which writes it"
    if not file.is_file():
        return None, [Finding(file, "metadata", "is missing", again)]
    content = read_json(file)
    if isinstance(content, str):
        return None, [Finding(file, "metadata", content, again)]
    problem = _meta_problem(file)
    findings = [Finding(file, "metadata", problem, again)] if problem else []
    return (content if isinstance(content.get("name"), str) else None), findings


def _meta_problem(file: Path) -> str | None:
    """Say why mteb would not load a metadata file."""
    from mteb.models import ModelMeta

    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content.get("name"), str):
        return "names no model"
    # A derived field, which mteb writes and does not read.
    content.pop("is_cross_encoder", None)
    try:
        ModelMeta.model_validate_json_resolved(json.dumps(content))
    except ValueError as error:
        return f"is no model metadata of mteb's ({'; '.join(str(error).splitlines()[1:3]) or error})"
    return None


def _registered(name: str) -> ModelMeta | None:
    """Return MTEB's own entry of a model; what this package registered is none."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    meta = MODEL_REGISTRY.get(name)
    ours = str(getattr(getattr(meta, "loader", None), "__module__", "")).startswith("reasonembed_mteb")
    return None if ours else meta


def _check_identity(folder: Path, meta: dict[str, Any], registered: ModelMeta | None) -> Iterator[Finding]:
    name, revision, file = str(meta["name"]), meta.get("revision"), folder / META
    expected = name.replace("/", "__").replace(" ", "_")
    if "/" not in name or expected != folder.parent.name:
        problem = f"names {name!r}, but the folder is {folder.parent.name}"
        yield Finding(file, "metadata", problem, "a model is org/name and its folder org__name")
    if revision != folder.name:
        problem = f"has revision {revision!r}, but the folder is {folder.name}"
        yield Finding(file, "revision", problem, "both must name the commit")
    known = registered is not None and registered.revision == folder.name
    if not known and not _COMMIT.fullmatch(folder.name):
        problem = f"the revision {folder.name!r} is no commit of the hub"
        remedy = "publish the weights and run them by their hub name, so that the commit is recorded"
        yield Finding(folder, "revision", problem, remedy)
    if registered is None:
        published = name in {checkpoint.name for checkpoint in CHECKPOINTS}
        how = (
            f"`reasonembed export-modelmeta {name}` writes what it needs" if published else "see mteb's guide"
        )
        yield Finding(
            file, "registry", f"MTEB has no entry of {name}", f"open a pull request to mteb first: {how}"
        )


def _check_training(folder: Path, meta: dict[str, Any]) -> Iterator[Finding]:
    declared, file = meta.get("training_datasets"), folder / META
    ours = {checkpoint.name for checkpoint in CHECKPOINTS} | {TWIN[1]}
    if meta["name"] in ours or meta.get("adapted_from") in ours:
        missing = sorted(mteb_training_tasks() - set(declared or ()))
        if missing:
            problem = (
                f"training_datasets does not declare {some(missing)}, whose data the model was trained on"
            )
            yield Finding(file, "leakage", problem, "declare them: the scores are not zero-shot")
    elif declared is None:
        problem = "training_datasets is null: nobody knows whether the scores are zero-shot"
        yield Finding(
            file, "leakage", problem, "declare the MTEB tasks trained on, or an empty set", refused=False
        )


def _check_files(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] == EXPERIMENTS:
            if len(relative.parts) == 2 and path.is_dir():
                problem = "are results with options of their own, which the leaderboard does not show"
                remedy = "leave them out, unless they were asked for"
                yield Finding(path, "experiment", problem, remedy, refused=False)
            continue
        if path.is_dir() or path.suffix not in (".json", ".jsonl") or len(relative.parts) > 1:
            if not path.is_dir() or path.is_symlink():
                yield stray(path)
            continue
        if path.suffix == ".jsonl" and path.name != SETTINGS:
            yield stray(path)
        if path.stat().st_size > MAX_BYTES:
            problem = f"has {path.stat().st_size / 2**20:.1f} MiB; {MAX_BYTES >> 20} are allowed"
            yield Finding(
                path, "size", problem, "write the JSON without indentation, or move predictions away"
            )


def _check_complete(folder: Path, scored: set[str]) -> Iterator[Finding]:
    """Say which tasks of a benchmark are missing beside the ones that are there."""
    own = [row for row in load_rows() if row.mteb_benchmark and not row.is_rewritten]
    for label in dict.fromkeys(row.mteb_benchmark for row in own):
        rows = [row for row in own if row.mteb_benchmark == label]
        wanted = [row.mteb_name for row in rows if row.mteb_name]
        missing = [name for name in wanted if name not in scored]
        if missing and len(missing) < len(wanted):
            problem = (
                f"{len(wanted) - len(missing)} of {label}'s {len(wanted)} tasks; missing: {some(missing)}"
            )
            yield Finding(folder, "subsets", problem, "run the others: a mean needs them all", refused=False)
