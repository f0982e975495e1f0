"""What MTEB's results repository would refuse of one result file."""

from __future__ import annotations

import importlib.metadata
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.retrieval.tables import load_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

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
