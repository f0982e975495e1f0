"""What stops a run half-way, said so that it can be mended: a full disk, too little memory."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError, one_line
from reasonembed_mteb.training.building import CHECKPOINTS, is_main
from reasonembed_mteb.training.checkpoints import remove_broken
from reasonembed_mteb.training.plan import measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.plan import TrainingPlan
    from reasonembed_mteb.training.schema import Recipe

logger = logging.getLogger(__name__)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch and safetensors write by code of their own, whose errors are no OSError.
_WRITING = ("no space left", "disk quota", "file too large", "writer failed", "file write failed")
_ALLOCATING = ("can't allocate memory", "not enough memory", "out of memory")
_GIB = 1 << 30
# Characters of a library's message.
_SHOWN = 200


@contextmanager
def explained(recipe: Recipe, data: TrainingData, plan: TrainingPlan, output: Path) -> Iterator[None]:
    """Say what stopped a run, where more can be said than the library does.

    Args:
        recipe: What is trained.
        data: The rows.
        plan: Their batches.
        output: Folder of the run.

    Yields:
        Nothing.

    Raises:
        ReasonEmbedError: If the disk or the memory was full; other errors pass as they are.
    """
    try:
        yield
    except (OSError, RuntimeError, MemoryError, ValueError) as error:
        if isinstance(error, ReasonEmbedError):
            raise
        if is_disk_full(error):
            raise ReasonEmbedError(_no_space(output, error)) from error
        if is_out_of_memory(error):
            raise ReasonEmbedError(_no_memory(recipe, data, plan, error)) from error
        raise
    except Exception as error:
        # safetensors' own error is of no kind that others share.
        if is_disk_full(error):
            raise ReasonEmbedError(_no_space(output, error)) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Say whether an error, or one behind it, comes from a disk that takes no more.

    Args:
        error: Any error.
    """
    behind = error.__cause__ or error.__context__
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return True
    if any(words in str(error).lower() for words in _WRITING):
        return True
    return behind is not None and is_disk_full(behind)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error comes from a device, or a machine, without memory left.

    Args:
        error: Any error.
    """
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _ALLOCATING)


def _no_space(output: Path, error: BaseException) -> str:
    """Give back what was half-written, and say how to go on."""
    if is_main():
        remove_broken(output / CHECKPOINTS)
    free = shutil.disk_usage(output).free / _GIB
    return (
        f"cannot write in {output}: the disk is full ({free:.1f} GiB free; {one_line(error)}); "
        "free space, then go on with --resume from the last whole checkpoint"
    )


def _no_memory(recipe: Recipe, data: TrainingData, plan: TrainingPlan, error: BaseException) -> str:
    if not plan.memory:
        measure(plan, recipe, data)
    known = "" if not plan.memory else f", estimated at {plan.memory['total']:.1f} GiB a device"
    said = one_line(error)[:_SHOWN]
    if recipe.sharding.kind != "none":
        return (
            f"out of memory{known}: start more processes, --set sharding.cpu_offload=true, or lower "
            f"batch.queries ({said})"
        )
    tokens = plan.fitting_tokens(device_memory())
    held = recipe.loss.mini_batch_tokens
    if held:
        tokens = min(tokens, held // 2)
    if not tokens:
        return (
            f"out of memory: not even the model fits{known}; train adapters (lora.rank=32), a smaller model, "
            f"or on a larger device ({said})"
        )
    cached = plan.cached_memory(tokens)
    fits = "" if cached is None else f", estimated at {cached:.1f} GiB with the same result"
    more = "" if recipe.training.checkpointing else " and training.checkpointing=true"
    return (
        f"out of memory: a batch does not fit{known}; --set loss.mini_batch_tokens={tokens}{more} would"
        f"{fits}; add --resume where a checkpoint was written ({said})"
    )


def device_memory() -> float:
    """Return the memory of the device that is trained on, in GiB."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory) / _GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
