"""The model as it is trained: loaded, with low-rank adapters, recomputed activations and packed texts."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, missing_extra
from reasonembed_mteb.training.recipes import model_name
from reasonembed_mteb.training.registry import recipe_kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from sentence_transformers import SentenceTransformer
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from reasonembed_mteb.training.schema import LoraPart, Recipe

logger = logging.getLogger(__name__)

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER = "default"
_NAMED = 12


def pack_texts(model: SentenceTransformer, device: torch.device, *, half: bool) -> None:
    """Have a model tokenise into packed rows and attend by a kernel that takes them.

    sentence-transformers does so by itself where flash-attn is installed and asked for. This gives the same
    rows to the kernels of the encoding room, which need no package.

    Args:
        model: The model, changed in place.
        device: Where it is to be trained.
        half: Whether its forward pass runs in 16 bits.

    Raises:
        ReasonEmbedError: If the model or the device has no packed path, or the model drops attention, which
            the packed kernels do not.
    """
    import torch

    from reasonembed_mteb.encoding.packing import can_pack, keep_packed, kernel_for

    transformer: Any = model[0]
    if not can_pack(model):
        kind = getattr(getattr(transformer, "auto_model", None), "config", None)
        msg = (
            f"training.packed: a {getattr(kind, 'model_type', 'model of this kind')} cannot be packed; "
            "set it to false"
        )
        raise ReasonEmbedError(msg)
    kernel = kernel_for(transformer.auto_model.config, device, torch.bfloat16 if half else torch.float32)
    if kernel is None:
        msg = f"training.packed: no packed attention on {device.type} in this precision; set it to false"
        raise ReasonEmbedError(msg)
    dropout = getattr(transformer.auto_model.config, "attention_dropout", 0.0)
    # Of the kernels, flash-attn 2 alone has dropout. That of adapters and layers is outside of any kernel.
    if dropout and kernel != "flash_attention_2":
        msg = (
            f"training.packed: the model's attention_dropout is {dropout}, which packed attention does not "
            "have; set training.packed to false, or attention_dropout in the model's config.json to 0"
        )
        raise ReasonEmbedError(msg)
    keep_packed(transformer, kernel)


def load_model(recipe: Recipe) -> SentenceTransformer:
    """Load a recipe's model as it is to be trained.

    Args:
        recipe: What is to be trained, and how.

    Returns:
        The model on the CPU (quantised, on this process' GPU), with adapters if the recipe has them, in
        training shape.

    Raises:
        ReasonEmbedError: If the recipe names no model, or it cannot be loaded.
    """
    import torch

    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    # With adapters the base stays as it is and may have 16 bits; weights that are trained stay in fp32, where
    # steps as small as a learning rate of 1e-5 are not rounded away.
    kind = recipe_kind(recipe)
    tokens_too = kind.trains_tokens(recipe)
    precision = recipe.training.precision if recipe.lora.rank or tokens_too else "fp32"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    options: dict[str, Any] = {"dtype": dtype}
    device: str | None = "cpu"
    if recipe.lora.quantize:
        # Quantised where they are to be used: moving them afterwards is not supported everywhere.
        device = None
        options |= {"quantization_config": four_bits(dtype), "device_map": {"": training_device()}}
    if recipe.training.attention:
        options["attn_implementation"] = recipe.training.attention
    name = model_name(recipe)
    try:
        model: SentenceTransformer = ReasonEmbed(name, device=device, model_kwargs=options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        msg = (
            f"cannot load the model {name}: {reason}; give a hub name or a directory by --set model.name=..."
        )
        raise ReasonEmbedError(msg) from error
    merge_adapters(model)
    if recipe.lora.rank or tokens_too:
        add_adapters(model, recipe.lora, kind.tokens(model) if tokens_too else ())
    kind.prepare(model, recipe)
    # FSDP recomputes by itself, layer by layer as it gathers them.
    if recipe.training.checkpointing and recipe.sharding.kind != "fsdp":
        recompute_activations(model)
    return model


def training_device() -> str:
    """Return the device of this process, before any process group exists."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how QLoRA holds weights (arXiv 2305.14314): NF4, with scales that are quantised themselves.

    Args:
        dtype: In which they are multiplied.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def on_whole_weights(model: SentenceTransformer, recipe: Recipe, adapter: Path) -> SentenceTransformer:
    """Put adapters that were trained on 4-bit weights onto the weights that these were made from.

    Args:
        model: The trained model.
        recipe: What it was trained by.
        adapter: Folder of its adapters.

    Returns:
        The model itself where its weights are whole; else another with the same adapters and prompts.
    """
    if not recipe.lora.quantize:
        return model
    lora = recipe.lora.model_copy(update={"quantize": False})
    whole = load_model(recipe.model_copy(update={"lora": lora}))
    load_adapter_weights(whole, adapter)
    whole.prompts = model.prompts
    return whole


def backbone(model: SentenceTransformer) -> PreTrainedModel:
    """Return the transformers model inside.

    Args:
        model: A SentenceTransformer whose first module is a Transformer.

    Raises:
        ReasonEmbedError: If it has none.
    """
    inner = getattr(model, "transformers_model", None)
    if inner is None:
        msg = f"{type(model[0]).__name__} has no transformers model inside; this kind cannot be trained here"
        raise ReasonEmbedError(msg)
    found: PreTrainedModel = inner
    return found


def recompute_activations(model: SentenceTransformer) -> None:
    """Keep layer inputs only, and recompute the rest in the backward pass.

    Args:
        model: Changed in place.
    """
    inner = backbone(model)
    # Not by the trainer's option: it would call the outer model's older method, with a warning.
    inner.activation_checkpointing_enable({"use_reentrant": False})
    inner.enable_input_require_grads()  # type: ignore[no-untyped-call]


def add_adapters(model: SentenceTransformer, part: LoraPart, tokens: Sequence[int] = ()) -> None:
    """Put a low-rank adapter on every target layer, let rows of the embeddings be trained, freeze the rest.

    Args:
        model: Changed in place.
        part: Rank, scale and targets; rank 0 for rows of the embeddings alone.
        tokens: Ids of these rows.

    Raises:
        MissingExtraError: If peft is not installed.
        ReasonEmbedError: If the model has no layer of a target's name.
    """
    try:
        from peft import LoraConfig, TrainableTokensConfig
    except ImportError:
        raise missing_extra("peft", "train") from None
    inner = backbone(model)
    linear = linear_names(inner)
    for target in part.targets if part.rank else ():
        if target not in linear:
            held = ", ".join(linear[:_NAMED])
            msg = f"lora.targets: no linear layer is named {target!r}; this model has {held}"
            raise ReasonEmbedError(msg)
    table = _embedding_name(inner)
    config: Any = TrainableTokensConfig(token_indices=list(tokens), target_modules=[table])
    if part.rank:
        config = LoraConfig(
            r=part.rank,
            lora_alpha=part.alpha,
            lora_dropout=part.dropout,
            target_modules=list(part.targets),
            trainable_token_indices={table: list(tokens)} if tokens else None,
        )
    inner.add_adapter(config, adapter_name=_ADAPTER)
    for parameter in inner.parameters():
        if parameter.requires_grad:
            # On a bf16 backbone they come as bf16, in which most steps would round to nothing.
            parameter.data = parameter.data.float()


def _embedding_name(inner: PreTrainedModel) -> str:
    """Return the last name of the embeddings, such as ``embed_tokens``."""
    table: Any = inner.get_input_embeddings()
    found: list[str] = [name for name, part in inner.named_modules() if part is table]
    return found[0].rpartition(".")[2]


def linear_names(inner: nn.Module) -> list[str]:
    """Return the last names of all linear layers, each once.

    Args:
        inner: A model.
    """
    from torch import nn

    names = (name.rpartition(".")[2] for name, part in inner.named_modules() if isinstance(part, nn.Linear))
    return list(dict.fromkeys(names))


def has_adapters(model: SentenceTransformer) -> bool:
    """Say whether the model has adapters that are not merged.

    Args:
        model: With a transformers model inside.
    """
    return hasattr(backbone(model), "peft_config")


def save_adapters(model: SentenceTransformer, folder: Path) -> None:
    """Write the adapters alone, as peft does.

    Args:
        model: A model with adapters.
        folder: Where to.
    """
    backbone(model).save_pretrained(str(folder))


def merge_adapters(model: SentenceTransformer) -> None:
    """Add the adapters to the weights beneath and take them off; nothing is done without adapters.

    Args:
        model: The model, changed in place.

    Raises:
        ReasonEmbedError: If an adapter holds a number that is not finite.
    """
    if not has_adapters(model):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = backbone(model)
    layers = [(name, part) for name, part in inner.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, layer in layers:
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            msg = f"the adapter of {name} holds numbers that are not finite: the training diverged"
            raise ReasonEmbedError(msg) from error
        # Rows of the embeddings trained beside adapters are in a wrapper of their own.
        parent, _, child = name.removesuffix(".token_adapter").rpartition(".")
        setattr(inner.get_submodule(parent), child, layer.get_base_layer())
    inner.delete_adapter(list(inner.peft_config))
    inner.requires_grad_(True)


def load_adapter_weights(model: SentenceTransformer, folder: Path) -> None:
    """Read a checkpoint's adapters into the model's own, bit by bit.

    Args:
        model: A model with adapters.
        folder: The checkpoint.

    Raises:
        DataError: If the weights are missing or of another shape.
    """
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    inner = backbone(model)
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        msg = f"{folder} holds no {ADAPTER_WEIGHTS}: it belongs to a run without adapters"
        raise DataError(msg)
    held, own = load_file(file), get_peft_model_state_dict(inner, adapter_name=_ADAPTER)
    # transformers and peft differ in a prefix; the names beneath it are the same.
    held = {name.removeprefix("base_model.model."): value for name, value in held.items()}
    own = {name.removeprefix("base_model.model."): value for name, value in own.items()}
    wrong = sorted(
        name for name in own.keys() | held.keys() if name not in own or name not in held
        or own[name].shape != held[name].shape
    )  # fmt: skip
    if wrong:
        msg = f"{file} does not fit the model: {len(wrong)} weights differ, {wrong[0]} for one"
        raise DataError(msg)
    with torch.no_grad():
        for name, value in own.items():
            if value.dtype != held[name].dtype:
                logger.warning("%s is %s in the checkpoint and %s here", name, held[name].dtype, value.dtype)
    set_peft_model_state_dict(inner, held, adapter_name=_ADAPTER)
