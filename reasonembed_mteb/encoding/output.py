"""What an encode call gives: vectors in input order, figures, errors that name texts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reasonembed_mteb.errors import ReasonEmbedError, first_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor


# Texts that an error names.
_NAMED = 10


class TextsError(ReasonEmbedError):
    """An error about some of the texts, which knows their positions."""

    def __init__(self, positions: Sequence[int], what: str) -> None:
        """Name the texts.

        Args:
            positions: Of the texts in the input.
            what: The rest of the sentence.
        """
        super().__init__(positions, what)
        self.positions = list(positions)
        self.what = what

    def __str__(self) -> str:
        """Name at most ten positions."""
        shown = first_names(self.positions, _NAMED)
        return f"{len(self.positions)} text(s) at position(s) {shown} {self.what}"

    def moved(self, by: int) -> TextsError:
        """Return the same error about texts further on.

        Args:
            by: How far.
        """
        return TextsError([position + by for position in self.positions], self.what)

    def named(self, ids: Sequence[str]) -> ReasonEmbedError:
        """Return the same error with the texts' own names.

        Args:
            ids: Of all texts of the input.
        """
        shown = first_names((ids[position] for position in self.positions), _NAMED)
        return ReasonEmbedError(f"{len(self.positions)} text(s) ({shown}) {self.what}")


@dataclass
class EncodingStats:
    """What was encoded since the last reset.

    Attributes:
        texts: How many.
        tokens: What the model read of them, special tokens included.
        truncated: How many were longer than the model's length.
        batches: Forward passes.
        seconds: Wall time inside encode; of several processes, their sum.
    """

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    batches: int = 0
    seconds: float = 0.0

    def reset(self) -> None:
        """Start again from zero."""
        self.__init__()  # type: ignore[misc]

    def add(self, other: EncodingStats) -> None:
        """Add what another call or process did.

        Args:
            other: Its figures.
        """
        self.texts += other.texts
        self.tokens += other.tokens
        self.truncated += other.truncated
        self.batches += other.batches
        self.seconds += other.seconds


class Results:
    """Vectors in input order; copies from a GPU are waited for two batches later."""

    def __init__(self, count: int, device: torch.device, *, to_cpu: bool) -> None:
        """Prepare.

        Args:
            count: How many vectors there will be.
            device: Where they are made.
            to_cpu: Whether they are kept in host memory instead.
        """
        self._count = count
        self._to_cpu = to_cpu
        self._device = torch.device("cpu") if to_cpu else device
        self._vectors: Tensor | None = None
        self._waiting: deque[tuple[NDArray[np.int64], Tensor, Any]] = deque()

    def add(self, positions: NDArray[np.int64], vectors: Tensor) -> None:
        """Take a batch's vectors.

        Args:
            positions: ``(N,)`` places of its texts in the input.
            vectors: ``(N, dim)``.

        Raises:
            TextsError: If earlier ones are not finite.
        """
        arrived = None
        if self._to_cpu and vectors.is_cuda:
            vectors = vectors.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._waiting.append((positions, vectors, arrived))
        while len(self._waiting) > 2:
            self._store()

    def finish(self, dimensions: Callable[[], int]) -> Tensor:
        """Wait for what is under way.

        Args:
            dimensions: Asked for the width where no text had a vector.

        Returns:
            All vectors ``(N, dim)``; zeros for the texts that none came for.

        Raises:
            TextsError: If any is not finite.
        """
        while self._waiting:
            self._store()
        if self._vectors is None:
            return torch.zeros(self._count, dimensions(), device=self._device)
        if not self._to_cpu:
            _check_finite(np.arange(self._count), self._vectors)
        return self._vectors

    def _store(self) -> None:
        positions, vectors, arrived = self._waiting.popleft()
        if arrived is not None:
            arrived.synchronize()
        vectors = vectors.to(self._device)
        if self._to_cpu:
            _check_finite(positions, vectors)
        if self._vectors is None:
            shape = (self._count, vectors.shape[1])
            self._vectors = torch.zeros(shape, dtype=vectors.dtype, device=self._device)
        self._vectors[torch.from_numpy(positions).to(self._device)] = vectors


def _check_finite(positions: NDArray[np.int64], vectors: Tensor) -> None:
    broken = ~torch.isfinite(vectors).all(dim=1)
    if broken.any():
        named = sorted(positions[broken.cpu().numpy()].tolist())
        what = (
            "have vectors that are NaN or infinite: load the model in bfloat16 or float32, check its weights"
        )
        raise TextsError(named, what)
