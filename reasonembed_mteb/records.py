"""What a result was made with, kept beside it, so that a cached one is reused only where nothing changed.

Records lie in ``<output>/records/``, outside MTEB's ``results/`` tree, at the same relative path.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.retrieval.tables import max_tokens_for, task_instructions

if TYPE_CHECKING:
    from pathlib import Path

    from mteb.abstasks import AbsTask
    from mteb.cache import ResultCache
    from mteb.models import ModelMeta

PROTOCOL = "ReasonEmbed"
_PACKAGES = ("reasonembed-mteb", "mteb", "sentence-transformers", "transformers", "torch", "datasets")
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


def causes(
    meta: ModelMeta, task: AbsTask, *, rerank: str | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Return everything that decides a result and is known before the model is loaded.

    Args:
        meta: The model; its revision must be resolved.
        task: The task.
        rerank: What identifies the first stage of a reranking.
        limit: Number of queries of a smoke run.
    """
    options = {key: str(value) for key, value in sorted((meta.loader_kwargs or {}).items()) if key != "path"}
    extra = {key: str(value) for key, value in sorted((meta.experiment_kwargs or {}).items())}
    name = task.metadata.name
    return {
        "protocol": PROTOCOL,
        "instruction": task_instructions().get(name) or json.dumps(task.metadata.prompt),
        "max_tokens": max_tokens_for(name),
        "data_revision": _data_revision(task),
        "model_revision": meta.revision,
        "loader": options | extra,
        "rerank": rerank,
        "limit": limit,
    }


def _data_revision(task: AbsTask) -> str:
    from reasonembed_mteb.retrieval.sources import data_revision

    row = getattr(task, "row", None)
    return data_revision(row) if row is not None else str(task.metadata.dataset["revision"])


def record_path(cache: ResultCache, task: str, meta: ModelMeta) -> Path:
    """Return where a result's record lies.

    Args:
        cache: MTEB's result cache of the output folder.
        task: Task name.
        meta: The model.
    """
    result = cache.get_task_result_path(task, meta)
    return cache.cache_path / "records" / result.relative_to(cache.cache_path / "results")


def why_stale(cache: ResultCache, task: AbsTask, meta: ModelMeta, now: dict[str, Any]) -> str | None:
    """Say why a cached result may not be reused.

    Args:
        cache: MTEB's result cache of the output folder.
        task: The task.
        meta: The model, its revision resolved.
        now: What would be recorded now; see `causes`.

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
        before = json.loads(file.read_text(encoding="utf-8"))["causes"]
    except (ValueError, KeyError, TypeError):
        return "its record is damaged"
    changed = [words for key, words in _REASONS.items() if before.get(key) != now[key]]
    return f"{' and '.join(changed)} changed" if changed else None


def versions() -> dict[str, str]:
    """Return the versions of the packages that a score depends on."""
    return {package: importlib.metadata.version(package) for package in _PACKAGES}


def write_record(cache: ResultCache, task: AbsTask, meta: ModelMeta, content: dict[str, Any]) -> Path:
    """Write a result's record, whole or not at all.

    Args:
        cache: MTEB's result cache of the output folder.
        task: The task.
        meta: The model, its revision resolved.
        content: What to record.

    Returns:
        The file.
    """
    file = record_path(cache, task.metadata.name, meta)
    write_whole(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
    return file


def write_whole(file: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never half of it.

    Args:
        file: The file; its folder is made.
        text: Its content.

    Raises:
        ReasonEmbedError: If it cannot be written, a full disk for one.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        msg = f"cannot write {file}: {error.strerror or error}; free space or choose another --output-folder"
        raise ReasonEmbedError(msg) from error


def first_stage_id(folder: Path, top_k: int) -> str:
    """Return what identifies the saved predictions that a reranking starts from.

    Args:
        folder: Folder (or file) of MTEB predictions.
        top_k: Candidates a query.
    """
    files = sorted(folder.glob("*_predictions.json")) if folder.is_dir() else [folder]
    digest = hashlib.sha256(usedforsecurity=False)
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return f"{digest.hexdigest()[:16]} top {top_k}"
