"""What a training run would do: batches, steps, tokens, memory."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training.recipes import model_name
from reasonembed_mteb.training.sampling import SubsetPlan, mixed_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.schema import Recipe

logger = logging.getLogger(__name__)

# Rows a subset whose tokens are counted.
SAMPLE = 32
_GIB = 1 << 30
# Of each trained weight: itself, its gradient and AdamW's two moments, in float32.
_TRAINED_BYTES = 16


@dataclass(frozen=True)
class SubsetTokens:
    """Mean tokens of a subset's texts, as they are cut for training.

    Attributes:
        query: Of a query with its instruction.
        reasoning: Of a reasoning query with its instruction.
        document: Of a document.
        cut: Share of documents longer than allowed.
    """

    query: float
    reasoning: float
    document: float
    cut: float


@dataclass
class TrainingPlan:
    """A run before it runs.

    Attributes:
        subsets: What an epoch takes of each subset.
        groups: Documents a query, by subset.
        short_rows: Rows with fewer negatives than their group needs, by subset; they repeat some.
        steps: Optimiser steps in all.
        batches: Batches of an epoch, each shared by all processes.
        world_size: Processes.
        tokens: Mean tokens by subset; empty where the tokeniser cannot be loaded.
        memory: Estimated GiB a device by what needs it; empty where the configuration cannot be loaded.
    """

    subsets: list[SubsetPlan]
    groups: dict[str, int]
    short_rows: dict[str, int]
    steps: int
    batches: int
    world_size: int
    tokens: dict[str, SubsetTokens] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    def tokens_of(self, plan: SubsetPlan) -> int | None:
        """Return the tokens of a global batch of one subset, or None where they are not known.

        Args:
            plan: The subset.
        """
        mean = self.tokens.get(plan.name)
        if mean is None:
            return None
        return round(plan.joined * (mean.query + mean.reasoning + self.groups[plan.name] * mean.document))

    @property
    def epoch_tokens(self) -> int | None:
        """Tokens of an epoch, reasoning queries included."""
        found = [self.tokens_of(plan) for plan in self.subsets]
        if any(one is None for one in found):
            return None
        return sum(one * plan.batches for one, plan in zip(found, self.subsets, strict=True) if one)


def plan_training(recipe: Recipe, data: TrainingData, world_size: int = 1) -> TrainingPlan:
    """Plan the batches of a run; loads no model.

    Args:
        recipe: The recipe.
        data: The rows.
        world_size: Processes.

    Returns:
        The plan, without tokens and memory.

    Raises:
        ReasonEmbedError: If there is no step to make, or the loss has nothing to work with.
    """
    _check_data(recipe, data)
    taken = mixed_rows({name: len(rows) for name, rows in data.subsets.items()}, recipe.data.mix)
    subsets = [
        SubsetPlan(
            name,
            len(rows),
            recipe.batch.queries_per_process(name, world_size),
            world_size,
            recipe.batch.drop_last,
            recipe.batch.devices,
            taken[name],
        )
        for name, rows in data.subsets.items()
    ]
    groups = {name: recipe.batch.shape(name).group for name in data.subsets}
    short = {name: _short_rows(rows, groups[name]) for name, rows in data.subsets.items()}
    batches = sum(plan.batches for plan in subsets)
    if not batches:
        most = max(subsets, key=lambda plan: plan.taken)
        msg = (
            f"no subset fills a batch: {most.name}, the largest, gives {most.taken} rows and a global batch "
            f"takes {most.joined}; lower batch.queries or batch.devices, or keep smaller batches with "
            "--set batch.drop_last=false"
        )
        raise ReasonEmbedError(msg)
    for plan in subsets:
        if not plan.batches:
            logger.warning("%s: %d rows do not fill a batch of %d", plan.name, plan.taken, plan.joined)
    updates = max(1, math.ceil(batches / recipe.training.accumulation))
    steps = recipe.training.max_steps or math.ceil(updates * recipe.training.epochs)
    return TrainingPlan(subsets, groups, short, steps, batches, world_size)


def _check_data(recipe: Recipe, data: TrainingData) -> None:
    from reasonembed_mteb.errors import unknown_name

    if recipe.loss.kind == "redapter" and not data.has_reasoning:
        msg = (
            "no row has a reasoning_query, which Redapter weighs by: add them (ReMixer writes them), or "
            "train plain InfoNCE with --set loss.kind=infonce"
        )
        raise ReasonEmbedError(msg)
    # A recipe made for all subsets may be used with some; a subset that it nearly names is a slip.
    for name in recipe.batch.subsets:
        if name not in data.subsets and "did you mean" in str(unknown_name("subset", name, data.subsets)):
            logger.warning("batch.subsets: %s", unknown_name("subset", name, data.subsets))


def _short_rows(rows: Dataset, group: int) -> int:
    import pyarrow.compute as pc

    lengths = pc.list_value_length(rows.data.column("negatives"))
    return int(pc.sum(pc.less(lengths, group - 1)).as_py() or 0)


def measure(plan: TrainingPlan, recipe: Recipe, data: TrainingData) -> None:
    """Count tokens over a sample and estimate memory; what cannot be loaded is left out.

    Args:
        plan: The plan, completed in place.
        recipe: The recipe.
        data: The rows.
    """
    name = recipe.model.name or recipe.model.base
    try:
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        logger.warning("tokens and memory are not known: %s", str(error).strip().splitlines()[0])
        return
    for subset, rows in data.subsets.items():
        plan.tokens[subset] = _tokens(tokenizer, recipe, rows, plan.groups[subset])
    plan.memory = estimate_memory(plan, recipe, config)


def _tokens(tokenizer: Any, recipe: Recipe, rows: Dataset, group: int) -> SubsetTokens:  # noqa: ANN401
    from reasonembed_mteb.training.collator import GroupCollator

    step = max(1, len(rows) // SAMPLE)
    sample = [rows[index] for index in range(0, len(rows), step)][:SAMPLE]
    collator = GroupCollator(
        preprocess_fn=tokenizer,
        groups={sample[0]["subset"]: group},
        seed=recipe.training.seed,
        template=recipe.model.template,
        document_prefix=recipe.model.document_prefix,
        instructions=recipe.data.instructions,
    )
    limits = {"query": recipe.data.query_tokens, "documents": recipe.data.document_tokens}
    limits["reasoning_query"] = recipe.data.query_tokens if recipe.loss.kind == "redapter" else 0
    means, cut = {}, 0.0
    for column, texts in collator.texts(sample).items():
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        means[column] = sum(min(length, limits[column]) for length in lengths) / len(lengths)
        if column == "documents":
            cut = sum(length > limits[column] for length in lengths) / len(lengths)
    return SubsetTokens(means["query"], means["reasoning_query"], means["documents"], cut)


def estimate_memory(plan: TrainingPlan, recipe: Recipe, config: Any) -> dict[str, float]:  # noqa: ANN401
    """Estimate the memory of a device at the largest batch, in GiB; an estimate, not a promise.

    Counted are weights, what AdamW keeps of the trained ones, and activations: with checkpointing the input
    of each layer and one layer's inside, else every layer's inside; of all tokens with a gradient, or of a
    mini-batch where gradients are cached.

    Args:
        plan: With tokens.
        recipe: The recipe.
        config: The model's transformers configuration.

    Returns:
        GiB by ``weights``, ``optimizer``, ``activations`` and ``total``.
    """
    import torch
    from torch import nn
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = weights
    if recipe.lora.rank:
        layers = [p for n, p in model.named_modules() if n.rpartition(".")[2] in recipe.lora.targets]
        sizes = [p.in_features + p.out_features for p in layers if isinstance(p, nn.Linear)]
        trained = recipe.lora.rank * sum(sizes)
    half = recipe.training.precision == "bf16"
    frozen = weights * (2 if half else 4) if recipe.lora.rank else 0
    found = {"weights": frozen / _GIB, "optimizer": trained * _TRAINED_BYTES / _GIB}
    found["activations"] = _activation_bytes(plan, recipe, config) / _GIB
    return found | {"total": sum(found.values())}


def _activation_bytes(plan: TrainingPlan, recipe: Recipe, config: Any) -> float:  # noqa: ANN401
    """Count the activations of the largest batch of a device."""
    means = {p.name: (p.queries, plan.groups[p.name], plan.tokens[p.name]) for p in plan.subsets}
    tokens = max(queries * (mean.query + group * mean.document) for queries, group, mean in means.values())
    loss = recipe.loss
    if loss.mini_batch_tokens:
        tokens = min(tokens, loss.mini_batch_tokens)
    elif loss.mini_batch_size:
        tokens = min(tokens, loss.mini_batch_size * max(m.document for _, _, m in means.values()))
    hidden, layers = config.hidden_size, config.num_hidden_layers
    # Attention's and the feed-forward part's inputs and outputs, a few of each kept for the backward pass.
    inside = 8 * hidden + 3 * config.intermediate_size
    kept = layers * hidden + inside if recipe.training.checkpointing else layers * inside
    return float(tokens * kept * (2 if recipe.training.precision == "bf16" else 4))


def start_name(recipe: Recipe) -> str:
    """Return what the plan calls the recipe's model, named or not.

    Args:
        recipe: The recipe.
    """
    try:
        return model_name(recipe)
    except ReasonEmbedError:
        return f"{recipe.model.base} tuned on MS MARCO (to be named by --set model.name=...)"
