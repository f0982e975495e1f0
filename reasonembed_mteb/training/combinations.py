"""Settings of a recipe that do not go together with weights that are shared out over devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training.registry import recipe_kind

if TYPE_CHECKING:
    from reasonembed_mteb.training.schema import Recipe


def check_sharding(recipe: Recipe) -> None:
    """Refuse settings that do not go with shared-out weights, each with what to set instead.

    Args:
        recipe: What is to be trained, and how.

    Raises:
        ReasonEmbedError: If one of them is set.
    """
    kind, loss, part = recipe.sharding.kind, recipe.loss, recipe.training
    if kind == "none":
        return
    refused = {
        "lora.rank=0": recipe.lora.rank or recipe.lora.quantize,
        # Layers are gathered by all processes together, so all need as many mini-batches.
        "loss.mini_batch_tokens=0": loss.mini_batch_tokens,
        "loss.mini_batch_size=0": kind == "zero3" and loss.mini_batch_size,
        "training.packed=false": part.packed,
        "training.optimizer=adamw": part.optimizer != "adamw",
        "training.precision=bf16": part.precision == "fp16",
        # A score is computed by one process alone, which has a share of the weights.
        "evaluation.tasks=[], and score checkpoints by `reasonembed run`": recipe.evaluation.tasks,
        # DeepSpeed makes its step within the backward pass, before anybody can look at the gradient.
        "training.retries=0": kind == "zero3" and part.retries,
        "sharding.reshard=true": kind == "zero3" and not recipe.sharding.reshard,
    }
    wrong = next((instead for instead, found in refused.items() if found), None)
    if wrong is not None:
        msg = f"recipe {recipe.name}: sharding.kind={kind} needs --set {wrong}; or --set sharding.kind=none"
        raise ReasonEmbedError(msg)
    if recipe_kind(recipe).trains_tokens(recipe):
        msg = (
            f"recipe {recipe.name}: sharding.kind={kind} cannot train single rows of the embeddings: "
            "--set sharding.kind=none"
        )
        raise ReasonEmbedError(msg)
