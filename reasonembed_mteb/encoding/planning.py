"""How a model's texts are laid out, and which kernel attends: decided once a call."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonembed_mteb.encoding import compiling
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
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

ATTENTION = ("auto", "packed", "padded", "flash", "off")
# Tokens of a batch. A GPU's matrix units are full well below; caches of a CPU favour small batches.
GPU_BATCH_TOKENS = 32_768
CPU_BATCH_TOKENS = 2_048
_SAID: set[str] = set()


@dataclass(frozen=True, slots=True)
class Plan:
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
    compiling.asked(compile_layers)


def make_plan(model: SentenceTransformer, attn: str, batch_tokens: int | None, device: torch.device) -> Plan:
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
        return Plan(packed=True, kernel=kernel, batch_tokens=tokens)
    config = getattr(model[0].auto_model, "config", None)
    own = getattr(config, "_attn_implementation", None)
    drops_mask = is_known_decoder(config) and not has_windows(config) and own == "sdpa"
    return Plan(packed=False, kernel=CAUSAL if drops_mask else None, batch_tokens=tokens)


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
