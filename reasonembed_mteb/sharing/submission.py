"""What MTEB's results repository would refuse: of an output folder, of a model's metadata, of each result."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, first_names
from reasonembed_mteb.files import is_number
from reasonembed_mteb.models.checkpoints import CHECKPOINTS
from reasonembed_mteb.reporting.results import is_share, score_problem
from reasonembed_mteb.retrieval.rows import load_rows
from reasonembed_mteb.sharing.modelmeta import TWIN, mteb_training_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta
    from mteb.results import TaskResult

    # Version of mteb by task, split and subset, as run_settings.jsonl says.
    Covered = Mapping[tuple[str, str, str], object]

META, SETTINGS, EXPERIMENTS = "model_meta.json", "run_settings.jsonl", "experiments"
# tests/run_settings_check.py of the results repository.
MIN_MTEB = "2.0.0"
# .github/workflows/check_file_sizes.yml.
MAX_BYTES = 10 * 1024 * 1024
# The first release of MTEB; nothing was scored before, and no model's weights are older than word2vec's.
_FIRST_RESULT, _FIRST_MODEL = datetime.date(2022, 3, 1), datetime.date(2013, 1, 1)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Names, and characters of a value, that a line shows.
_NAMED, _SHOWN = 3, 80
# Compared elsewhere (name, revision), derived (is_cross_encoder), or prose that is kept in the entry alone.
_NOT_COMPARED = frozenset({"name", "revision", "is_cross_encoder", "citation", "contacts"})
_AGAIN = "run the task again"
_META_AGAIN = "run the model again with this version of mteb, which writes it"


@dataclass(frozen=True)
class Finding:
    """One thing that a submission would be refused or asked about.

    Attributes:
        where: File or folder.
        kind: ``metadata``, ``revision``, ``registry``, ``leakage``, ``result``, ``task``, ``version``,
            ``data``, ``subsets``, ``nan``, ``settings``, ``size``, ``files`` or ``experiment``.
        problem: What is wrong; a wrong field is named.
        remedy: What to do.
        refused: Whether it would be refused; else a reviewer will ask.
    """

    where: Path
    kind: str
    problem: str
    remedy: str
    refused: bool = True


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
            findings.append(_stray(model))
            continue
        revisions = sorted(path for path in model.iterdir() if not path.name.startswith("."))
        for revision in revisions:
            findings += _check_revision(revision) if revision.is_dir() else [_stray(revision)]
        findings += _check_duplicates(model, [path for path in revisions if path.is_dir()])
    return findings


def _check_revision(folder: Path) -> list[Finding]:
    findings = [*_check_meta(folder), *_check_files(folder)]
    covered, problems = _read_settings(folder / SETTINGS)
    findings += problems
    scored = []
    for file in _result_files(folder):
        found, task = _check_result(file, covered)
        findings += found
        scored += [task] if task else []
    if not scored and not findings:
        findings.append(Finding(folder, "result", "holds no result", "remove it"))
    return [*findings, *_check_complete(folder, set(scored))]


def _result_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.json") if file.name != META)


# The folder.


def _stray(file: Path) -> Finding:
    """Say that a file does not belong among results."""
    return Finding(file, "files", "is not part of a submission", "move it out of the results folder")


def _check_duplicates(model: Path, revisions: list[Path]) -> Iterator[Finding]:
    held: dict[str, list[str]] = defaultdict(list)
    for revision in revisions:
        for file in _result_files(revision):
            held[file.stem].append(revision.name)
    for task, names in held.items():
        if len(names) > 1:
            problem = f"{task} is there for {len(names)} revisions ({', '.join(names)})"
            remedy = "keep the revision that MTEB's entry names, move the others"
            yield Finding(model, "revision", problem, remedy)


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
                yield _stray(path)
            continue
        if path.suffix == ".jsonl" and path.name != SETTINGS:
            yield _stray(path)
        yield from _check_size(path)


def _check_size(path: Path) -> Iterator[Finding]:
    size = path.stat().st_size if path.is_file() else 0
    if size > MAX_BYTES:
        problem = f"has {size / 2**20:.1f} MiB; {MAX_BYTES >> 20} are allowed"
        remedy = "write the JSON without indentation, or move predictions away"
        yield Finding(path, "size", problem, remedy)


def _check_complete(folder: Path, scored: set[str]) -> Iterator[Finding]:
    """Say which tasks of a benchmark are missing, where others are there."""
    own = [row for row in load_rows() if row.mteb_benchmark and not row.is_rewritten]
    for label in dict.fromkeys(row.mteb_benchmark for row in own):
        rows = [row for row in own if row.mteb_benchmark == label]
        wanted = [row.mtebs_task for row in rows if row.mtebs_task]
        missing = [name for name in wanted if name not in scored]
        if missing and len(missing) < len(wanted):
            counts = f"{len(wanted) - len(missing)} of {label}'s {len(wanted)} tasks"
            problem = f"{counts}; missing: {first_names(missing, _NAMED)}"
            yield Finding(folder, "subsets", problem, "run the others: a mean needs them all", refused=False)


# The model.


def _check_meta(folder: Path) -> list[Finding]:
    file = folder / META
    if not file.is_file():
        others = [path.name for path in folder.glob("*meta*.json")]
        also = f"; there is {first_names(others, _NAMED)}" if others else ""
        return [Finding(file, "metadata", f"is missing{also}", _META_AGAIN)]
    meta = _read_json(file)
    if isinstance(meta, str):
        return [Finding(file, "metadata", meta, _META_AGAIN)]
    name = meta.get("name")
    if not isinstance(name, str):
        return [Finding(file, "metadata", f"names no model: name is {_shown(name)}", _META_AGAIN)]
    registered = _registered(name)
    wrong = _meta_errors(meta)
    findings = [
        Finding(file, "metadata", f"is no model metadata of mteb's: {field}: {said}", _META_AGAIN)
        for field, said in wrong
    ]
    findings += _check_identity(folder, meta, registered)
    known = {field.partition(".")[0] for field, _ in wrong}
    if registered is not None:
        findings += _check_entry(file, meta, registered, known)
    else:
        findings += _check_plausible(file, meta, known)
    return [*findings, *_check_training(file, meta, registered)]


def _meta_errors(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the fields that mteb would not load, and why."""
    from mteb.models import ModelMeta

    # A derived field, which mteb writes and does not read.
    content = {name: value for name, value in meta.items() if name != "is_cross_encoder"}
    return _errors(lambda: ModelMeta.model_validate_json_resolved(json.dumps(content)))


def _registered(name: str) -> ModelMeta | None:
    """Return MTEB's own entry of a model; what this package registered is none."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    meta = MODEL_REGISTRY.get(name)
    ours = str(getattr(getattr(meta, "loader", None), "__module__", "")).startswith("reasonembed_mteb")
    return None if ours else meta


def _check_identity(folder: Path, meta: dict[str, Any], registered: ModelMeta | None) -> Iterator[Finding]:
    name, revision, file = str(meta["name"]), meta.get("revision"), folder / META
    expected = name.replace("/", "__").replace(" ", "_")
    if name.count("/") != 1 or expected != folder.parent.name:
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
    elif registered is not None and registered.revision and not known:
        problem = f"revision is {folder.name}, and MTEB's entry of {name} has {registered.revision}"
        remedy = "the leaderboard shows the entry's: run that one, or change the entry first"
        yield Finding(file, "revision", problem, remedy, refused=False)
    if registered is None:
        published = name in {checkpoint.name for checkpoint in CHECKPOINTS}
        how = (
            f"`reasonembed export-modelmeta {name}` writes what it needs" if published else "see mteb's guide"
        )
        remedy = f"open a pull request to mteb first: {how}"
        yield Finding(file, "registry", f"MTEB has no entry of {name}", remedy)


def _check_entry(
    file: Path, meta: Mapping[str, Any], registered: ModelMeta, skipped: set[str]
) -> Iterator[Finding]:
    """Compare metadata with MTEB's own entry, field by field."""
    entry = json.loads(json.dumps(registered.to_dict(), default=list))
    # A model that was given as an object, or run with options, is described by what it was loaded from.
    remedy = f"run it by its name (-m {registered.name}), so that MTEB's own entry is written"
    for field in sorted(entry.keys() - _NOT_COMPARED - skipped):
        if field == "training_datasets" and meta.get(field) is None:
            continue
        if field not in meta:
            problem = f"{field} is missing; MTEB's entry has {_shown(entry[field])}"
            yield Finding(file, "metadata", problem, _META_AGAIN, refused=False)
        elif _comparable(meta[field]) != _comparable(entry[field]):
            problem = f"{field} differs from MTEB's entry: {_difference(meta[field], entry[field])}"
            yield Finding(file, "metadata", problem, remedy)


def _comparable(value: Any) -> Any:  # noqa: ANN401 - a field of JSON
    """Return a value such that lists in another order, and 256 and 256.0, are equal."""
    return sorted(map(_shown, value)) if isinstance(value, list) else value


def _difference(given: Any, entry: Any) -> str:  # noqa: ANN401 - fields of JSON
    if isinstance(given, list) and isinstance(entry, list):
        ours, theirs = ([str(one) for one in value] for value in (given, entry))
        parts = {
            "lacks": [one for one in theirs if one not in ours],
            "adds": [one for one in ours if one not in theirs],
        }
        return "; ".join(f"it {verb} {first_names(names, _NAMED)}" for verb, names in parts.items() if names)
    return f"{_shown(given)} here, {_shown(entry)} there"


def _check_plausible(file: Path, meta: Mapping[str, Any], skipped: set[str]) -> Iterator[Finding]:
    """Check the fields of a model that MTEB has no entry of."""
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "n_parameters": (_is_count, "a whole number above 0"),
        "n_embedding_parameters": (_is_count, "a whole number above 0"),
        "n_active_parameters_override": (_is_count, "a whole number above 0"),
        "memory_usage_mb": (_is_positive, "a number above 0"),
        "max_tokens": (_is_positive, "a number above 0"),
        "embed_dim": (_are_counts, "a whole number above 0, or a list of them"),
        "release_date": (lambda value: _is_date(value, _FIRST_MODEL), "a past day, as 2025-10-11"),
    }
    for field, (holds, allowed) in rules.items():
        value = meta.get(field)
        if field not in skipped and value is not None and not holds(value):
            problem = f"{field} is {_shown(value)}; it must be {allowed}"
            yield Finding(file, "metadata", problem, "correct the model's entry and run it again")
    whole, part = meta.get("n_parameters"), meta.get("n_embedding_parameters")
    if isinstance(whole, int) and isinstance(part, int) and 0 < whole < part:
        problem = f"n_embedding_parameters is {part}, more than all n_parameters {whole}"
        yield Finding(file, "metadata", problem, "correct the model's entry and run it again")
    if meta.get("open_weights") is True and meta.get("license") is None:
        problem = "license is null, and open_weights is true"
        yield Finding(file, "metadata", problem, "name the licence, as the model card does", refused=False)


def _is_positive(value: Any) -> bool:  # noqa: ANN401 - a field of JSON
    # A model without positions of its own has no longest input, which is written as Infinity.
    return value == math.inf or (is_number(value) and value > 0)


def _is_count(value: Any) -> bool:  # noqa: ANN401 - a field of JSON
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_counts(value: Any) -> bool:  # noqa: ANN401 - a field of JSON
    return bool(value) and all(map(_is_count, value if isinstance(value, list) else [value]))


def _is_date(value: object, first: datetime.date) -> bool:
    """Return whether a text is a day or time between `first` and tomorrow, wherever on earth."""
    try:
        return _is_past(datetime.datetime.fromisoformat(str(value)).date(), first)
    except ValueError:
        return False


def _is_time(value: object, first: datetime.date) -> bool:
    """Return whether a value is such a text, or seconds since 1970, as mteb writes its results."""
    if not isinstance(value, (int, float)) or not is_number(value):
        return _is_date(value, first)
    try:
        return _is_past(datetime.datetime.fromtimestamp(value, datetime.UTC).date(), first)
    except (OverflowError, OSError, ValueError):
        return False


def _is_past(day: datetime.date, first: datetime.date) -> bool:
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    return first <= day <= tomorrow


def _check_training(file: Path, meta: Mapping[str, Any], registered: ModelMeta | None) -> Iterator[Finding]:
    declared = meta.get("training_datasets")
    ours = {checkpoint.name for checkpoint in CHECKPOINTS} | {TWIN[1]}
    if meta["name"] in ours or str(meta.get("adapted_from")) in ours:
        known = set(map(str, declared)) if isinstance(declared, list) else set()
        missing = sorted(mteb_training_tasks() - known)
        if missing:
            named = first_names(missing, _NAMED)
            problem = f"training_datasets does not declare {named}, whose data the model was trained on"
            yield Finding(file, "leakage", problem, "declare them: the scores are not zero-shot")
    elif declared is None and (registered is None or registered.training_datasets is not None):
        problem = "training_datasets is null: nobody knows whether the scores are zero-shot"
        remedy = "declare the MTEB tasks trained on, or an empty set"
        yield Finding(file, "leakage", problem, remedy, refused=False)


# The results.


def _check_result(file: Path, covered: Covered | None) -> tuple[list[Finding], str | None]:
    """Check one result file.

    Args:
        file: One task of one model, as MTEB writes it.
        covered: What the settings in the same folder say; None if there are none.

    Returns:
        Findings, and the task that it holds a score for.
    """
    from mteb.results import TaskResult

    content = _read_json(file)
    if isinstance(content, str):
        return [Finding(file, "result", content, _AGAIN)], None
    if not {"task_name", "scores"} & content.keys():
        problem = "is no result: it has no task_name and no scores"
        remedy = "move predictions and other files out of the results folder"
        return [Finding(file, "files", problem, remedy)], None
    findings = [*_check_fields(file, content), *_check_entries(file, content)]
    text = json.dumps(content)
    wrong = _errors(lambda: TaskResult.model_validate_json(text))
    named = [one.problem for one in findings]
    for field, said in wrong:
        problem = f"is no result that mteb reads: {field}: {said}"
        # What is wrong inside of the scores has been said with its split and subset.
        if not (field == "scores" and said.startswith("Value error") and named):
            findings.append(Finding(file, "result", problem, _AGAIN))
    if wrong:
        return findings, None
    result = TaskResult.model_validate_json(text)
    findings += [*_check_task(file, result), *_check_versions(file, result)]
    if covered is not None:
        findings += _check_covered(file.parent / SETTINGS, result, covered)
    return findings, result.task_name


def _check_fields(file: Path, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the fields that are no scores; what mteb itself refuses is left to it."""
    seconds = content.get("evaluation_time", 0)
    if seconds is None:
        yield Finding(file, "result", "evaluation_time is null", _AGAIN, refused=False)
    elif not is_number(seconds) or seconds < 0:
        problem = f"evaluation_time is {_shown(seconds)}; it must be a number of seconds"
        yield Finding(file, "result", problem, _AGAIN)
    emitted = content.get("kg_co2_emissions")
    if emitted is not None and not (is_number(emitted) and emitted >= 0):
        problem = f"kg_co2_emissions is {_shown(emitted)}; it must be null or a number from 0 on"
        yield Finding(file, "result", problem, _AGAIN)
    date = content.get("date")
    if date is not None and not _is_time(date, _FIRST_RESULT):
        problem = (
            f"date is {_shown(date)}; it must be a past time since {_FIRST_RESULT}, or its seconds since 1970"
        )
        yield Finding(file, "result", problem, _AGAIN)


def _check_entries(file: Path, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Check every score of every split and subset."""
    scores = content.get("scores")
    metric = _main_metric(content.get("task_name"))
    for split, held in scores.items() if isinstance(scores, dict) else ():
        entries = held if isinstance(held, list) else []
        for place, entry in enumerate(entries):
            if not isinstance(entry, dict):
                problem = f"scores.{split}.{place} holds {type(entry).__name__}, not an object"
                yield Finding(file, "result", problem, _AGAIN)
                continue
            where = f"{split}/{entry.get('hf_subset', place)}"
            for kind, problem in _entry_problems(where, entry, metric):
                yield Finding(file, kind, problem, _AGAIN)
        counts = Counter(str(entry.get("hf_subset")) for entry in entries if isinstance(entry, dict))
        for subset, count in counts.items():
            if count > 1:
                yield Finding(file, "result", f"hf_subset {split}/{subset} is there {count} times", _AGAIN)


def _entry_problems(where: str, entry: Mapping[str, Any], metric: str | None) -> Iterator[tuple[str, str]]:
    """Yield the kind and the problem of every field of one split and subset."""
    for field, kind in {"main_score": object, "hf_subset": str, "languages": list}.items():
        if field not in entry:
            yield "result", f"is no result that mteb reads: {field} of {where} is missing"
        elif not isinstance(entry[field], kind):
            yield "result", f"{field} of {where} is {_shown(entry[field])}"
    if "main_score" in entry and (problem := score_problem(entry, metric)):
        broken = isinstance(entry["main_score"], float) and not math.isfinite(entry["main_score"])
        yield "nan" if broken else "result", f"main_score of {where}: {problem}"
    for name, value in entry.items():
        # MTEB's nauc_* are NaN on small data as a matter of course.
        if name == "main_score" or name.startswith("nauc"):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            yield "nan", f"{name} of {where} is {value}"
        elif is_share(name) and not (is_number(value) and 0 <= value <= 1):
            yield "result", f"{name} of {where} is {_shown(value)}; it lies in [0, 1]"


def _main_metric(task: object) -> str | None:
    import mteb

    try:
        return str(mteb.get_task(str(task)).metadata.main_score)
    except KeyError:
        return None


def _check_task(file: Path, result: TaskResult) -> Iterator[Finding]:
    import mteb

    name = result.task_name
    if file.stem != name:
        yield Finding(file, "result", f"holds the task {name}", "the file must be named as the task")
    ours = {row.name: row for row in load_rows() if not row.is_mtebs}
    if name in ours:
        twin = None if ours[name].is_rewritten else ours[name].mteb_name
        remedy = f"submit {twin}, which `reasonembed run -t {twin}` scores" if twin else "leave it out"
        yield Finding(file, "task", "is a task of this package, which MTEB does not know", remedy)
        return
    try:
        task = mteb.get_task(name)
    except KeyError:
        problem = f"MTEB {importlib.metadata.version('mteb')} has no task {name}"
        yield Finding(file, "task", problem, "leave it out, or use its present name")
        return
    if result.dataset_revision != task.metadata.revision:
        scored = result.dataset_revision or "''"
        problem = (
            f"dataset_revision: it was scored on data revision {scored}; "
            f"the task is at {task.metadata.revision}"
        )
        yield Finding(file, "data", problem, "run it on the task's own data; smoke runs cannot be submitted")
    yield from _check_subsets(file, result, task)


def _check_subsets(file: Path, result: TaskResult, task: AbsTask) -> Iterator[Finding]:
    """Compare splits and subsets, and the languages of each, with the task's."""
    wanted = {
        (split, subset)
        for split in task.metadata.eval_splits
        for subset in task.metadata.hf_subsets_to_langscripts
    }
    languages = task.metadata.hf_subsets_to_langscripts
    held = {
        (split, str(entry["hf_subset"])): entry
        for split, entries in result.scores.items()
        for entry in entries
    }
    missing = sorted("/".join(place) for place in wanted - held.keys())
    if missing:
        yield Finding(
            file, "subsets", f"lacks {first_names(missing, _NAMED)}", f"{_AGAIN}, with all its subsets"
        )
    unknown = sorted("/".join(place) for place in held.keys() - wanted)
    if unknown:
        problem = f"has {first_names(unknown, _NAMED)}, which the task does not evaluate"
        yield Finding(file, "subsets", problem, "the leaderboard ignores it", refused=False)
    for place in sorted(held.keys() & wanted):
        given = held[place]["languages"]
        if sorted(map(str, given)) != sorted(languages[place[1]]):
            problem = f"languages of {'/'.join(place)}: {_difference(given, list(languages[place[1]]))}"
            yield Finding(file, "result", problem, _AGAIN, refused=False)


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
        problem = f"mteb_version: it was made with mteb {', '.join(old)}; {MIN_MTEB} or newer is asked for"
        yield Finding(file, "version", problem, "run the task again with this version")


# The settings of the runs.


def _read_settings(file: Path) -> tuple[Covered | None, list[Finding]]:
    """Return what the settings say, each line checked, or None where there are none."""
    again = "run the tasks again with this version of mteb"
    if not file.is_file():
        return None, [Finding(file, "settings", "is missing", again)]
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (ValueError, OSError) as error:
        return None, [Finding(file, "settings", f"cannot be read ({_first(error)})", again)]
    covered: dict[tuple[str, str, str], object] = {}
    findings = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        read = _settings_of(line)
        if isinstance(read, str):
            findings.append(Finding(file, "settings", f"line {number} {read}", again))
        else:
            covered.update(read)
    return (None if findings else covered), findings


def _settings_of(line: str) -> dict[tuple[str, str, str], object] | str:
    """Return the version of mteb by task, split and subset of one line, or what is wrong with it."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not one JSON object ({_first(error)})"
    if not isinstance(entry, dict):
        return f"is not one JSON object but {type(entry).__name__}"
    # Older versions of mteb wrote one split and one subset a line.
    names: dict[str, Any] = {
        "task": [entry.get("task")],
        "splits": entry["splits"] if "splits" in entry else [entry.get("split")],
        "subsets": entry["subsets"] if "subsets" in entry else [entry.get("subset")],
    }
    for field, values in names.items():
        if not isinstance(values, list) or not values or not all(isinstance(one, str) for one in values):
            return f"names no {field}: it has {_shown(values)}"
    version = entry.get("version")
    if not isinstance(version, dict) or not isinstance(version.get("mteb"), str):
        return f"names no version.mteb: version is {_shown(version)}"
    return {
        (task, split, subset): version["mteb"]
        for task in names["task"]
        for split in names["splits"]
        for subset in names["subsets"]
    }


def _check_covered(settings: Path, result: TaskResult, covered: Covered) -> Iterator[Finding]:
    scored = {
        (result.task_name, split, str(scores["hf_subset"]))
        for split, held in result.scores.items()
        for scores in held
    }
    missing = sorted(f"{split}/{subset}" for task, split, subset in scored - covered.keys())
    if missing:
        problem = f"says nothing about {result.task_name} {first_names(missing, _NAMED)}"
        yield Finding(settings, "settings", problem, _AGAIN)
    old = sorted({str(covered[key]) for key in scored & covered.keys() if _too_old(covered[key])})
    if old:
        problem = f"says that {result.task_name} was run with mteb {', '.join(old)}"
        yield Finding(settings, "version", problem, f"{_AGAIN} with mteb {MIN_MTEB} or newer")


# Words.


def _read_json(file: Path) -> dict[str, Any] | str:
    """Return the object in a file, or what is wrong with it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        return f"cannot be read as JSON ({_first(error)})"
    return content if isinstance(content, dict) else f"holds {type(content).__name__}, not an object"


def _errors(read: Callable[[], object]) -> list[tuple[str, str]]:
    """Return every field that a model of pydantic's refuses, as ``(field, why)``."""
    from pydantic import ValidationError

    try:
        read()
    except ValidationError as error:
        return [_named(dict(one)) for one in error.errors(include_url=False)]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return [("content", _first(error))]
    return []


def _named(error: Mapping[str, Any]) -> tuple[str, str]:
    field = ".".join(map(str, error["loc"])) or "content"
    given = "" if error["type"] == "missing" else f" (it is {_shown(error.get('input'))})"
    return field, f"{error['msg']}{given}"


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _shown(value: object) -> str:
    """Return a value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
