"""What MTEB's results repository would refuse of a folder of results, before anything is sent.

The rules are the repository's own checks (github.com/embeddings-benchmark/results: ``tests/`` and
``.github/workflows/check_file_sizes.yml``), and what ``mteb submit-results`` needs.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.reporting.modelmeta import TWIN, mteb_training_tasks
from reasonembed_mteb.reporting.result_checks import SETTINGS, Finding, check_result, read_json, some, stray
from reasonembed_mteb.retrieval.tables import load_rows
from reasonembed_mteb.zoo import CHECKPOINTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mteb.models import ModelMeta

# .github/workflows/check_file_sizes.yml.
MAX_BYTES = 10 * 1024 * 1024
META, EXPERIMENTS = "model_meta.json", "experiments"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KINDS = {"bright": "BRIGHT", "bright_long": "BRIGHT long", "r2med": "R2MED"}


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
    for kind, label in _KINDS.items():
        rows = [row for row in load_rows() if row.kind == kind and not row.is_rewritten]
        wanted = [row.mteb_name for row in rows if row.mteb_name]
        missing = [name for name in wanted if name not in scored]
        if missing and len(missing) < len(wanted):
            problem = (
                f"{len(wanted) - len(missing)} of {label}'s {len(wanted)} tasks; missing: {some(missing)}"
            )
            yield Finding(folder, "subsets", problem, "run the others: a mean needs them all", refused=False)
