"""Local model directories: what they are, and what identifies them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonembed_mteb.errors import ReasonEmbedError, missing_extra
from reasonembed_mteb.files import file_blocks

# PEFT's name for it.
ADAPTER_CONFIG = "adapter_config.json"
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
        do not count: they change no vector. An adapter's hash covers its base, where that is a directory.
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
        for block in file_blocks(file):
            digest.update(block)
    base = (_read_json(folder / ADAPTER_CONFIG) or {}).get("base_model_name_or_path")
    if base and Path(base).is_dir() and Path(base).resolve() != folder.resolve():
        # A base on the hub is told by its name and revision, which the configuration holds.
        digest.update(content_revision(Path(base)).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, as its ``adapter_config.json`` describes it.

    Attributes:
        base: Hub name or directory of the model that it adapts.
        revision: Commit of the base; None for the newest.
        task: PEFT's task type, such as ``FEATURE_EXTRACTION`` or ``SEQ_CLS``; None if it says none.
    """

    base: str
    revision: str | None
    task: str | None


def read_adapter(file: Path) -> Adapter:
    """Read an adapter's configuration.

    Args:
        file: An ``adapter_config.json``.

    Raises:
        ReasonEmbedError: If it names no base model.
        MissingExtraError: If peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise missing_extra("peft", "train")
    config = _read_json(file) or {}
    base = config.get("base_model_name_or_path")
    if not base:
        msg = f"the adapter {file.parent} names no base model: set base_model_name_or_path in {file.name}"
        raise ReasonEmbedError(msg)
    if _is_missing_folder(base):
        msg = (
            f"the base model {base} of the adapter {file.parent} does not exist: correct "
            f"base_model_name_or_path in {file.name}, or merge the adapter into its base and save that"
        )
        raise ReasonEmbedError(msg)
    return Adapter(base, config.get("revision"), config.get("task_type"))


def is_bare_adapter(folder: Path) -> bool:
    """Return whether a directory holds an adapter alone, without the configuration of a whole model.

    Args:
        folder: The directory.
    """
    whole = any((folder / name).is_file() for name in ("config.json", "modules.json"))
    return not whole and (folder / ADAPTER_CONFIG).is_file()


def _is_missing_folder(name: str) -> bool:
    # A hub name has one slash at most, and begins with neither a dot nor a slash.
    looks_local = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    return looks_local and not Path(name).is_dir()


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
    if is_bare_adapter(folder):
        return "cross-encoder" if read_adapter(folder / ADAPTER_CONFIG).task == "SEQ_CLS" else "dense"
    declared = (_read_json(folder / "config_sentence_transformers.json") or {}).get("model_type")
    if not config and modules is None:
        msg = (
            f"{folder} holds no model (none of config.json, modules.json and {ADAPTER_CONFIG}); "
            "give a saved model directory"
        )
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


def may_be_decoder(name: str, config_kwargs: dict[str, Any], cache_folder: str | None) -> bool:
    """Return whether a configuration is one of models that generate; the model itself decides.

    Args:
        name: Hub name or directory.
        config_kwargs: Keyword arguments of ``AutoConfig.from_pretrained``.
        cache_folder: The hub cache, where it is not the usual one.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    config = AutoConfig.from_pretrained(name, cache_dir=cache_folder, **config_kwargs)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or _is_said_to_look_ahead(text):
        return False
    # Encoders of these families share a configuration with decoders, and say which they are.
    if getattr(text, "is_decoder", None) is False:
        return architecture.endswith("ForCausalLM") or "GPT" in architecture
    return (
        architecture.endswith("ForCausalLM")
        or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
        or type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
        or type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    )


def _is_said_to_look_ahead(config: Any) -> bool:  # noqa: ANN401 - any transformers configuration
    # Gemma's key takes "all" and "vision" too.
    bidirectional = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    return bidirectional or getattr(config, "is_causal", True) is False
