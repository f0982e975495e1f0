"""What a loss asks of devices: precision and random numbers of repeated passes, all processes' rows."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.util import all_gather, get_rank, get_world_size

from reasonembed_mteb.training.columns import LossError

if TYPE_CHECKING:
    from types import TracebackType

    from sentence_transformers.base.losses import RandContext
    from torch import Tensor


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


@dataclass(frozen=True)
class Devices:
    """The processes whose rows make up one batch.

    Attributes:
        rank: This process.
        world: How many there are; 1 where nothing is shared.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def present(cls, *, gather: bool) -> Devices:
        """Look at the process group; without ``gather`` each process stands alone."""
        return cls(get_rank(), get_world_size()) if gather else cls()

    def rows(self, tensor: Tensor, *, with_grad: bool = False) -> Tensor:
        """Join the rows of all devices, in the order of their ranks.

        Args:
            tensor: ``(B, ...)``, of the same shape everywhere.
            with_grad: Whether the gradient of the joined rows flows back to the device that owns them.

        Returns:
            ``(world * B, ...)``.
        """
        if self.world == 1:
            return tensor
        with warnings.catch_warnings():
            # sentence-transformers gathers with gradient by a name that torch 2.13 deprecates.
            warnings.simplefilter("ignore", FutureWarning)
            gathered: Tensor = all_gather(tensor.contiguous(), with_grad=with_grad)
        return gathered

    def own(self, rows: Tensor) -> Tensor:
        """Cut this device's share out of joined rows ``(world * B, ...)``."""
        size = len(rows) // self.world
        return rows[self.rank * size : (self.rank + 1) * size]

    def check_alike(self, device: torch.device, **sizes: int) -> None:
        """Refuse batches that differ from device to device, which collectives would hang or crash on.

        Args:
            device: Where the embeddings are.
            **sizes: What must be equal everywhere, by name.

        Raises:
            LossError: If one of them is not; on every device alike.
        """
        if self.world == 1:
            return
        mine = torch.tensor([list(sizes.values())], dtype=torch.int64, device=device)
        table = self.rows(mine).T.tolist()
        for name, values in zip(sizes, table, strict=True):
            if len(set(values)) > 1:
                msg = (
                    f"{name} differs between devices ({values}): with gather_across_devices=True all need "
                    "a batch of one shape at each step, so let the sampler give them the same data set"
                )
                raise LossError(msg)
