"""How a model will encode: which kernel, how many tokens a batch, compiled layers or not."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from reasonembed_mteb.encoding.packing import (
    CAUSAL,
    can_pack,
    flash_kernel,
    has_windows,
    is_known_decoder,
    kernel_for,
)
from reasonembed_mteb.errors import ReasonEmbedError, unknown_name

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

logger = logging.getLogger(__name__)

# Warm-up of a decoder's layers in seconds, and what compiling saves of the time without (measured on an
# H200: 10-15 s; 20.0 to 13.4 s for 4B, 10.4 to 4.8 s for 0.6B).
_WARM_UP = 15.0
_SAVED = 1 / 3
# FLOP/s of packed encoding without compiling, on the same device: 0.24 to 0.56 of 780e12.
_SPEED = 350e12


def asked(wish: str | bool) -> bool | None:
    """Read the option.

    Args:
        wish: ``"auto"``, ``"on"``, ``"off"`` or a bool.

    Returns:
        Whether to compile; None to decide by the work.

    Raises:
        UnknownNameError: If it is none of these.
    """
    known = {"auto": None, "on": True, "off": False}
    if isinstance(wish, bool):
        return wish
    if wish not in known:
        raise unknown_name("compile option", str(wish), known)
    return known[wish]


def pays(layers: nn.ModuleList, tokens: int, device: torch.device) -> bool:
    """Return whether compiling saves more time than it takes.

    Args:
        layers: The decoder's layers.
        tokens: Tokens to encode, about.
        device: Where; only CUDA pays.
    """
    if device.type != "cuda":
        return False
    weights = sum(parameter.numel() for parameter in layers.parameters())
    return 2 * weights * tokens / _SPEED * _SAVED > _WARM_UP


def decoder_layers(backbone: Any) -> nn.ModuleList | None:  # noqa: ANN401 - any transformers model
    """Return a backbone's layers, or None where it keeps them under no known name.

    Args:
        backbone: A transformers model.
    """
    layers = getattr(backbone, "layers", None)
    return layers if isinstance(layers, torch.nn.ModuleList) else None


def compile_layers(layers: nn.ModuleList, **options: Any) -> None:
    """Compile each layer in place, for any number of tokens; parameters keep their names.

    Compilation itself happens on first use, and may fail there: see `restore_layers`.

    Args:
        layers: The decoder's layers.
        **options: For `torch.compile`.
    """
    for layer in layers:
        if not _is_compiled(layer):
            layer.compile(dynamic=True, **options)


def is_compiled(layers: nn.ModuleList | None) -> bool:
    """Return whether layers run compiled.

    Args:
        layers: The decoder's layers, if known.
    """
    return layers is not None and any(map(_is_compiled, layers))


def restore_layers(layers: nn.ModuleList, reason: Exception | None = None) -> None:
    """Run layers as they are again.

    Args:
        layers: The decoder's layers.
        reason: Why compiling failed; logged in one line.
    """
    for layer in layers:
        # `Module.compile` has no public opposite.
        layer._compiled_call_impl = None  # noqa: SLF001
    if reason is not None:
        # torch's first line names the backend, its second what went wrong.
        said = " ".join(str(reason).split("\n")[:2]) or type(reason).__name__
        logger.warning("compiling the layers failed, going on without: %s", said)


def _is_compiled(layer: nn.Module) -> bool:
    return layer._compiled_call_impl is not None  # noqa: SLF001


ATTENTION = ("auto", "packed", "padded", "flash", "off")
# Tokens of a batch. A GPU's matrix units are full well below; caches of a CPU favour small batches.
GPU_BATCH_TOKENS = 32_768
CPU_BATCH_TOKENS = 2_048
_SAID: set[str] = set()


@dataclass(frozen=True, slots=True)
class EncodingPlan:
    """How texts go through the model.

    Attributes:
        packed: One after another instead of in padded rows.
        kernel: Attention name; None leaves the model's own.
        batch_tokens: Budget of a batch.
    """

    packed: bool
    kernel: str | None
    batch_tokens: int


def say_once(message: str, *, level: int = logging.WARNING) -> None:
    """Log a line once in the life of this process.

    Args:
        message: The line.
        level: Of the logging module.
    """
    if message not in _SAID:
        _SAID.add(message)
        logger.log(level, "%s", message)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_options(attn: str, batch_tokens: int | None, compile_layers: str | bool) -> None:
    """Refuse options that mean nothing.

    Args:
        attn: One of `ATTENTION`.
        batch_tokens: None, or at least 1.
        compile_layers: ``"auto"``, ``"on"``, ``"off"`` or a bool.

    Raises:
        UnknownNameError: If a name is not known; the nearest is named.
        ReasonEmbedError: If the budget is no positive number.
    """
    if attn not in ATTENTION:
        raise unknown_name("attention", attn, ATTENTION)
    if batch_tokens is not None and batch_tokens < 1:
        msg = f"batch_tokens is {batch_tokens}: give at least 1, or None for the device's own"
        raise ReasonEmbedError(msg)
    asked(compile_layers)


def make_plan(
    model: SentenceTransformer, attn: str, batch_tokens: int | None, device: torch.device
) -> EncodingPlan:
    """Decide how a model's texts are laid out, and which kernel attends.

    Args:
        model: A model whose first module is a `Transformer`.
        attn: One of `ATTENTION` but ``"off"``.
        batch_tokens: Budget; None for the device's.
        device: Where the model runs.

    Returns:
        The plan; the padded one where nothing better is known.

    Raises:
        ReasonEmbedError: If flash-attn is asked for and cannot be had.
    """
    tokens = batch_tokens or (CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS)
    kernel = None if attn == "padded" else _packed_kernel(model, attn, device)
    if kernel is not None:
        return EncodingPlan(packed=True, kernel=kernel, batch_tokens=tokens)
    backbone = model[0].auto_model
    config = getattr(backbone, "config", None)
    own = getattr(config, "_attn_implementation", None)
    drops_mask = own == "sdpa" and not has_windows(config) and is_known_decoder(backbone)
    return EncodingPlan(packed=False, kernel=CAUSAL if drops_mask else None, batch_tokens=tokens)


def _packed_kernel(model: SentenceTransformer, attn: str, device: torch.device) -> str | None:
    if attn == "flash" and (device.type != "cuda" or flash_kernel() is None):
        msg = f"attn='flash' needs flash-attn and a CUDA device (here: {device}); attn='auto' needs neither"
        raise ReasonEmbedError(msg)
    config = getattr(model[0].auto_model, "config", None)
    if not can_pack(model):
        kind = getattr(config, "model_type", type(model[0].auto_model).__name__)
        level = logging.INFO if attn == "auto" else logging.WARNING
        say_once(f"packed attention is not known for this model ({kind}): encoding padded rows", level=level)
        return None
    if attn == "flash":
        return flash_kernel()
    kernel = kernel_for(config, device, model.dtype)
    if kernel is None and attn == "packed":
        say_once(f"no packed attention for {model.dtype} on {device}: encoding padded rows")
    return kernel
