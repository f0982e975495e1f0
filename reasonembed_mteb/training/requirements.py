"""What a run needs beside its data, asked before the data is read, which can take minutes."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import MissingExtraError, ReasonEmbedError, first_names, missing_extra, one_line
from reasonembed_mteb.training.registry import recipe_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reasonembed_mteb.training.schema import Recipe


def check_requirements(recipe: Recipe) -> None:
    """Check that packages, trackers and devices of a recipe are there.

    Args:
        recipe: What is to be trained.

    Raises:
        MissingExtraError: If a package is not installed.
        ReasonEmbedError: If a tracker or a device is not there; what to do is named.
    """
    adapts = recipe.lora.rank or recipe_kind(recipe).trains_tokens(recipe)
    needed = ["accelerate", *(["peft"] if adapts else [])]
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "train")
    _check_card(recipe)
    check_trackers(recipe.training.report_to)


def _check_card(recipe: Recipe) -> None:
    """Refuse what only a CUDA GPU can do where there is none, and what needs bitsandbytes without it."""
    import torch

    part = recipe.training
    packages = {
        "lora.quantize=true": ("lora.quantize=false", recipe.lora.quantize),
        "training.optimizer=adamw_8bit": ("training.optimizer=adamw", part.optimizer == "adamw_8bit"),
    }
    asked = {what: instead for what, (instead, wanted) in packages.items() if wanted}
    if asked and torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is None:
        raise missing_extra("bitsandbytes", "quantized")
    if part.precision == "fp16":
        asked["training.precision=fp16"] = "training.precision=fp32"
    for what, instead in asked.items():
        if not torch.cuda.is_available():
            msg = f"{what} needs a CUDA GPU, and there is none here: --set {instead}"
            raise ReasonEmbedError(msg)


def check_processes(processes: int, precision: str) -> None:
    """Check that the devices fit the precision and the number of processes.

    Args:
        processes: How many train together.
        precision: Of the forward pass.

    Raises:
        ReasonEmbedError: If the GPU has no bf16, or several GPUs would stand idle.
    """
    import torch

    cuda = torch.cuda.is_available()
    # With its emulation left out, which is slower than fp32.
    if precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        msg = f"{torch.cuda.get_device_name()} has no bf16: train with --set training.precision=fp16"
        raise ReasonEmbedError(msg)
    if processes == 1 and torch.cuda.device_count() > 1:
        msg = (
            f"{torch.cuda.device_count()} GPUs are visible and one process runs: start `torchrun "
            "--nproc-per-node N -m reasonembed_mteb train ...`, or choose one by CUDA_VISIBLE_DEVICES=0"
        )
        raise ReasonEmbedError(msg)


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers can be reported to.

    Args:
        names: transformers' names of them, such as ``wandb``.

    Raises:
        MissingExtraError: If a tracker's package is not installed.
        ReasonEmbedError: If there is no tracker of that name.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = first_names(sorted(INTEGRATION_TO_CALLBACK), 20)
            msg = f"training.report_to: no tracker is called {name!r}; there are {known}"
            raise ReasonEmbedError(msg)
        try:
            # They ask for their package when they are made, and do nothing else then.
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            said = one_line(error).partition(": ")[2]
            msg = f"training.report_to names {name}, which is not to be had here: {said} Or leave it out."
            raise MissingExtraError(msg) from error
