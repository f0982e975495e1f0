"""Local model directories: what they are, and what identifies them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from pathlib import Path

# Files that do not change a vector.
_IGNORED = {"README.md", ".gitattributes"}
_KINDS = {
    "SentenceTransformer": "dense",
    "CrossEncoder": "cross-encoder",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "late-interaction",
    # PyLate's older spelling.
    "ColBERT": "late-interaction",
}


def content_revision(folder: Path) -> str:
    """Return a hash of a model directory's files, to stand for its revision.

    Args:
        folder: The directory.

    Returns:
        32 hex digits. The card, hidden folders and nested checkpoints
        do not count: they change no vector.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    files = (
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in _IGNORED and not _is_hidden(file.relative_to(folder))
    )
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part.startswith("checkpoint-") for part in relative.parts)


def _read_json(file: Path) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError as error:
        msg = f"{file} is not JSON ({error}); save the model again"
        raise ReasonEmbedError(msg) from error


def model_kind(folder: Path) -> str:
    """Say what kind of sentence-transformers model a directory holds.

    Args:
        folder: The directory.

    Returns:
        ``dense``, ``cross-encoder``, ``sparse`` or ``late-interaction``.

    Raises:
        ReasonEmbedError: If it holds no model.
    """
    config = _read_json(folder / "config.json") or {}
    modules = _read_json(folder / "modules.json")
    declared = (_read_json(folder / "config_sentence_transformers.json") or {}).get("model_type")
    if not config and modules is None:
        msg = f"{folder} holds no model (neither config.json nor modules.json); give a saved model directory"
        raise ReasonEmbedError(msg)
    if declared in _KINDS:
        return _KINDS[declared]
    if any("SpladePooling" in module.get("type", "") for module in modules or []):
        return "sparse"
    architectures = config.get("architectures") or [""]
    if modules is None and architectures[0].endswith("ForSequenceClassification"):
        return "cross-encoder"
    return "dense"


def local_name(folder: Path) -> str:
    """Return the name under which a directory's results are filed: ``local/<parent>__<dir>``."""
    resolved = folder.resolve()
    return f"local/{resolved.parent.name or 'root'}__{resolved.name}"
