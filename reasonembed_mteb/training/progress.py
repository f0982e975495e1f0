"""How fast a run is, how long it still takes and how much memory it holds, for the line on the console."""

from __future__ import annotations

import datetime
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_GIB = 1 << 30


class Progress:
    """Steps and tokens over time, from the first step that this process makes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing done.

        Args:
            clock: Seconds from any point on.
        """
        self._clock = clock
        self._begun: tuple[float, int] | None = None
        self._said = 0.0
        self._tokens = 0

    def begin(self, step: int) -> None:
        """Start the clock, unless it runs.

        Args:
            step: Steps made before, by a run that is gone on with.
        """
        if self._begun is None:
            self._said = self._clock()
            self._begun = self._said, step

    def add(self, tokens: int) -> None:
        """Count a batch.

        Args:
            tokens: Of all devices.
        """
        self._tokens += tokens

    def line(self, step: int, steps: int) -> str:
        """Say tokens a second since the last line, the time left, and the peak of memory.

        The time left goes by all that was done so far, scores and checkpoints included.

        Args:
            step: Steps made.
            steps: Of the whole run.
        """
        if self._begun is None:
            return ""
        now, (begun, first) = self._clock(), self._begun
        parts = []
        if self._tokens and now > self._said:
            parts.append(f"{self._tokens / (now - self._said):,.0f} tokens/s")
        if first < step < steps:
            left = (now - begun) / (step - first) * (steps - step)
            parts.append(f"{datetime.timedelta(seconds=round(left))} left")
        parts.append(peak_memory())
        self._said, self._tokens = now, 0
        return ", ".join(part for part in parts if part)


def peak_memory() -> str:
    """Say the most memory that was held so far: of the GPU, or of the process where there is none."""
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.current_device()
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.max_memory_allocated(device) / _GIB:.1f} of {total / _GIB:.1f} GiB"
    if sys.platform == "win32":
        return ""
    import resource

    # In KiB, but on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB:.1f} GiB"
