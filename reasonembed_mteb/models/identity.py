"""What identifies a model that is a Python object: a name, and a hash of everything that decides its vectors.

MTEB files results by name and revision. A directory or a checkpoint has both; an object has neither, so that
two of them would share a cached score.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from reasonembed_mteb.files import json_hash
from reasonembed_mteb.models.folders import local_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mteb.models import ModelMeta

# What MTEB's `ModelMeta.create_empty` fills in.
_NO_NAME = "no_model_name/available"
# Entries of a transformers configuration that change no vector.
_NOT_OF_VECTORS = {"transformers_version", "dtype", "torch_dtype"}
_named_elsewhere: ContextVar[bool] = ContextVar("named_elsewhere", default=False)


def weights_hash(module: torch.nn.Module) -> str:
    """Return a hash of every weight, its name, dtype and shape.

    Args:
        module: The model.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.is_meta:
            # An engine holds the weights.
            continue
        values = tensor.detach().reshape(-1)
        # In pieces, so that a GPU's weights are never whole on the host.
        for piece in values.split(1 << 26):
            digest.update(piece.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    """Return what decides a SentenceTransformer's vectors, apart from the text, its prompt and its length.

    Args:
        model: A SentenceTransformer; its weights are hashed on the device that they are on.
    """
    parameter = next(model.parameters(), None)
    engine = getattr(model, "engine", None)
    return {
        # Vectors of another engine are other vectors.
        **({"engine": engine.identity} if engine is not None else {}),
        "dtype": str(parameter.dtype) if parameter is not None else None,
        "truncate_dim": getattr(model, "truncate_dim", None),
        "modules": [_module_config(module) for module in model.children()],
        "weights": weights_hash(model),
        "tokenizer": tokenizer_hash(getattr(model, "tokenizer", None)),
    }


def _module_config(module: torch.nn.Module) -> list[Any]:
    """Return a module's kind and options, such as a pooling mode, which are no weights."""
    options: dict[str, Any] = getattr(module, "get_config_dict", dict)()
    # The length belongs to each text's key.
    plain = {key: value for key, value in options.items() if key != "max_seq_length"}
    return [type(module).__name__, json.loads(json.dumps(plain, default=str, sort_keys=True))]


def tokenizer_hash(tokenizer: Any) -> str | None:  # noqa: ANN401 - transformers' or the tokenizers library's
    """Return a hash of a tokenizer's vocabulary and rules, or None where it has no file of them.

    Args:
        tokenizer: Of transformers, or of the tokenizers library itself.
    """
    # A static embedding model has a tokenizer of the tokenizers library itself.
    backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        return None
    return _state_hash(backend.to_str())


@lru_cache(maxsize=2)
def _state_hash(text: str) -> str:
    state = json.loads(text)
    # Set by the last call, by batch and length.
    for passing in ("truncation", "padding"):
        state.pop(passing, None)
    return json_hash(state)


def object_revision(model: torch.nn.Module, **chosen: object) -> str:
    """Return a hash of everything that decides a model's score: also what was changed since it was loaded.

    Args:
        model: A SentenceTransformer.
        **chosen: What else decides it, such as an instruction template.

    Returns:
        32 hex digits, the same in every process.
    """
    described = describe_model(model) | {
        "prompts": getattr(model, "prompts", None),
        "default_prompt_name": getattr(model, "default_prompt_name", None),
        "max_seq_length": getattr(model, "max_seq_length", None),
        "similarity": str(getattr(model, "similarity_fn_name", None)),
        "configs": [_architecture(module) for module in model.modules() if hasattr(module, "config")],
        "padding_side": getattr(getattr(model, "tokenizer", None), "padding_side", None),
        "chosen": chosen,
    }
    return json_hash(described, default=str)


def _architecture(module: Any) -> dict[str, Any]:  # noqa: ANN401 - a transformers model
    """Return a transformers model's configuration: equal weights give other vectors under another one."""
    options: dict[str, Any] = getattr(module.config, "to_dict", dict)()
    return {
        key: value for key, value in options.items() if not key.startswith("_") and key not in _NOT_OF_VECTORS
    }


def object_name(model: Any) -> str:  # noqa: ANN401 - a SentenceTransformer
    """Return the name under which the results of a model that MTEB has no name for are filed.

    Args:
        model: A SentenceTransformer.

    Returns:
        The name of its directory, as for a directory (``local/<parent>__<dir>``), or that of its class.
    """
    first = next(iter(model.children()), None)
    config = getattr(getattr(first, "auto_model", None), "config", None)
    origin = str(getattr(config, "_name_or_path", "") or "")
    if origin and Path(origin).is_dir():
        return local_name(Path(origin))
    return origin if origin.count("/") == 1 else f"local/{type(model).__name__}"


def identified(meta: ModelMeta, model: Any, **chosen: object) -> ModelMeta:  # noqa: ANN401
    """Return MTEB's metadata of an object with a name and a revision of its own.

    Args:
        meta: What MTEB makes of the object.
        model: A SentenceTransformer.
        **chosen: See `object_revision`.
    """
    name = object_name(model) if meta.name in (None, _NO_NAME) else meta.name
    return meta.model_copy(update={"name": name, "revision": object_revision(model, **chosen)})


@contextmanager
def named_elsewhere() -> Iterator[None]:
    """Leave MTEB's metadata of objects as they are while the context lasts: their maker names them."""
    token = _named_elsewhere.set(True)
    try:
        yield
    finally:
        _named_elsewhere.reset(token)


def needs_identity(model: object) -> bool:
    """Whether MTEB's metadata of an object lack a revision that tells it from others.

    Args:
        model: What `mteb.evaluate` was given; ReasonEmbed and whatever `accelerate` made qualify.
    """
    from reasonembed_mteb.encoding.fast import FastSentenceTransformer

    return isinstance(model, FastSentenceTransformer) and not _named_elsewhere.get()
