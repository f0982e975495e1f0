"""Full fine-tuning with weights, gradients and moments shared out over the devices, by FSDP2 or ZeRO-3."""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, missing_extra
from reasonembed_mteb.training.adapters import backbone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn

    from reasonembed_mteb.training.schema import Recipe


def check_sharding_devices(recipe: Recipe, processes: int) -> None:
    """Refuse to share weights out where there is nobody to share them with, or no library for it.

    Args:
        recipe: What is to be trained, and how.
        processes: How many train together.

    Raises:
        MissingExtraError: If DeepSpeed is not installed.
        ReasonEmbedError: If there is one process, or no GPU.
    """
    import torch

    kind = recipe.sharding.kind
    if kind == "none":
        return
    if processes == 1:
        msg = (
            f"sharding.kind={kind} shares the weights out over processes, and one runs: start `torchrun "
            "--nproc-per-node N -m reasonembed_mteb train ...`, or --set sharding.kind=none"
        )
        raise ReasonEmbedError(msg)
    if not (torch.cuda.is_available() or torch.xpu.is_available()):
        msg = (
            f"sharding.kind={kind} needs GPUs, and there are none here: on CPUs accelerate leaves it off and "
            "every process would hold all weights: --set sharding.kind=none"
        )
        raise ReasonEmbedError(msg)
    if kind == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise missing_extra("deepspeed", "deepspeed")


def sharding_arguments(recipe: Recipe, model: SentenceTransformer | None) -> dict[str, Any]:
    """Return what transformers' training arguments are told.

    Args:
        recipe: What is to be trained, and how.
        model: The model, for the names of its layers; only FSDP needs it.

    Returns:
        Arguments by name; empty where nothing is shared out.
    """
    if recipe.sharding.kind == "fsdp" and model is not None:
        return {"fsdp": True, "fsdp_config": _fsdp_settings(recipe, model)}
    return {"deepspeed": _zero3_settings(recipe)} if recipe.sharding.kind == "zero3" else {}


def _fsdp_settings(recipe: Recipe, model: SentenceTransformer) -> dict[str, Any]:
    # Where accelerate looks for the last norm; in the outer model it finds `Normalize`, and fails on it.
    model.base_model_prefix = "transformers_model"  # type: ignore[assignment]
    return {
        "version": 2,
        "reshard_after_forward": recipe.sharding.reshard,
        "cpu_offload": recipe.sharding.cpu_offload,
        # In place of transformers' own, which would gather a layer's weights once more.
        "activation_checkpointing": recipe.training.checkpointing,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": layer_classes(model),
        # One file that any number of processes can go on from, and any library can read.
        "state_dict_type": "FULL_STATE_DICT",
    }


def fsdp_precision() -> dict[str, Any]:
    """Return FSDP's precision by part: layers in bf16, sums of gradients over the processes in fp32.

    Without it gradients are added up in bf16, which loses what a single process would keep.
    """
    import torch

    return {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32, "output_dtype": torch.float32}


def _zero3_settings(recipe: Recipe) -> dict[str, Any]:
    """Return DeepSpeed's configuration; what transformers knows already is left to it by ``auto``."""
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    if recipe.sharding.cpu_offload:
        zero |= {f"offload_{part}": {"device": "cpu", "pin_memory": True} for part in ("param", "optimizer")}
    return {
        "zero_optimization": zero,
        # The optimiser is ours, as without DeepSpeed, and so is its schedule.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def layer_classes(model: SentenceTransformer) -> list[str]:
    """Return the classes of the layers that are shared out one by one, as the model itself names them.

    Args:
        model: With a transformers model inside.

    Raises:
        ReasonEmbedError: If the model names none, or has weights outside of its transformers model.
    """
    inner = backbone(model)
    held = {type(module).__name__ for module in inner.modules()}
    found = sorted(held & set(getattr(inner, "_no_split_modules", None) or ()))
    if not found:
        msg = f"sharding: {type(inner).__name__} names no layers to share out: --set sharding.kind=none"
        raise ReasonEmbedError(msg)
    inside = sum(1 for _ in inner.parameters())
    if inside != sum(1 for _ in model.parameters()):
        msg = "sharding: the model has weights beside its transformers model: --set sharding.kind=none"
        raise ReasonEmbedError(msg)
    return found


@contextmanager
def saved_whole(model: SentenceTransformer, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Have a model that is shared out saved as it would be on one device.

    Args:
        model: Its own parameters are this process' shares.
        weights: The whole weights by name, gathered on this process; None for a model that is whole.

    Yields:
        Nothing; ``model.save_pretrained`` writes the whole weights then.

    Raises:
        DataError: If the weights are not those of the model.
    """
    if weights is None:
        yield
        return
    inner = backbone(model)
    prefix = next(name for name, module in model.named_modules() if module is inner) + "."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if len(own) != len(weights) or not own:
        msg = f"the gathered weights are not those of the model: {len(own)} of {len(weights)} are its own"
        raise DataError(msg)
    outer: Any = model
    # The library's own argument for it, which sentence-transformers does not hand on.
    inner.save_pretrained = partial(inner.save_pretrained, state_dict=own)  # type: ignore[method-assign]
    # A card's example is embedded, which takes all processes; this one is alone.
    outer.save_pretrained = partial(outer.save_pretrained, create_model_card=False)
    try:
        yield
    finally:
        del inner.save_pretrained, outer.save_pretrained


def load_whole(trainer: Any, folder: Path) -> None:  # noqa: ANN401 - a trainer of transformers under FSDP
    """Share a checkpoint's weights out to all processes, bit by bit.

    Args:
        trainer: Whose model is shared out by FSDP.
        folder: The checkpoint.
    """
    from accelerate.utils import load_fsdp_model  # type: ignore[import-untyped]

    accelerator = trainer.accelerator
    load_fsdp_model(accelerator.state.fsdp_plugin, accelerator, trainer.model, str(folder))


def own_share(weight: nn.Parameter) -> Tensor:
    """Return this process' share of a weight, which is all of it where nothing is shared out.

    Args:
        weight: Of a model that FSDP or ZeRO-3 may have shared out.
    """
    share: Any = getattr(weight, "ds_tensor", weight)
    local: Tensor = share.to_local() if hasattr(share, "to_local") else share
    return local
