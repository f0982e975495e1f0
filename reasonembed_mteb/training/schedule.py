"""DeepSpeed's WarmupDecayLR, which transformers does not have: a logarithmic rise, then a linear fall."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


def warmup_decay(step: int, warmup: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the peak.

    DeepSpeed counts from the first step that has ended, so that its rate of step ``s`` is that of ``s - 1``
    in its own count: 0 in the first two steps, the peak after ``warmup`` of them.

    Args:
        step: Counted from 0.
        warmup: Steps of the rise; DeepSpeed takes at least 2.
        steps: Of the whole run.
    """
    warmup, ended = max(2, warmup), step - 1
    if ended < 0:
        return 0.0
    if ended < warmup:
        return math.log(ended + 1) / math.log(warmup)
    return max(0.0, (steps - ended) / max(1.0, steps - warmup))


def warmup_decay_schedule(optimizer: Optimizer, warmup: int, steps: int) -> LambdaLR:
    """Return `warmup_decay` for an optimiser.

    Args:
        optimizer: Its present rate is the peak.
        warmup: Steps of the rise.
        steps: Of the whole run.
    """
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, partial(warmup_decay, warmup=warmup, steps=steps))
