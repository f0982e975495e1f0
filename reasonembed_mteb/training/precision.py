"""Mixed precision around forward passes that are repeated, or taken without gradients."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from types import TracebackType

    from sentence_transformers.base.losses import RandContext


def device_type(features: dict[str, Any]) -> str:
    """Return the kind of device, such as ``cuda``, that a column's tensors are on."""
    return next((value.device.type for value in features.values() if isinstance(value, torch.Tensor)), "cpu")


def autocast_like_now(kind: str) -> torch.autocast:
    """Repeat the mixed precision in force, without its cache of weights.

    Before pytorch/pytorch#165068 (December 2025) the cache keeps weights that were cast without gradients,
    and a later forward pass with gradients under the same context trains nothing through them.

    Args:
        kind: The device's kind.

    Returns:
        The context; it can be entered later, where another precision is in force.
    """
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=enabled, cache_enabled=False)


class Replay:
    """The random numbers and the mixed precision of a forward pass, entered to run it again."""

    def __init__(self, random: RandContext, autocast: torch.autocast) -> None:
        self.random = random
        self.autocast = autocast
        self._entered = ExitStack()

    def __enter__(self) -> None:
        self._entered.enter_context(self.autocast)
        self._entered.enter_context(self.random)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.__exit__(kind, error, trace)
