"""Compiled decoder layers, where the work pays for the warm-up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from reasonembed_mteb.errors import unknown_name

if TYPE_CHECKING:
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
