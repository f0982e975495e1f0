"""What a training run would do: batches, steps, tokens, memory."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, one_line
from reasonembed_mteb.training.cuts import mean_cut, position_limit, row_cuts, warn_of_cuts
from reasonembed_mteb.training.recipes import model_name
from reasonembed_mteb.training.registry import recipe_kind
from reasonembed_mteb.training.rows import SHAPE_FIELDS
from reasonembed_mteb.training.sampling import SubsetPlan, mixed_rows
from reasonembed_mteb.training.schema import BatchShape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from torch import nn

    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.schema import Recipe

logger = logging.getLogger(__name__)

# Rows a subset whose tokens are counted.
SAMPLE = 32
_GIB = 1 << 30
# Tokens of a mini-batch: a few long texts, enough for a device to be busy.
SMALL_BATCH = 4096
# Share of a device's memory that is planned with: the rest goes to what is not counted.
_USABLE = 0.8
# Of each trained weight: itself, its gradient and AdamW's two moments, in float32.
_TRAINED_BYTES = 16
# The same with moments in 8 bits.
_TRAINED_BYTES_8BIT = 10
# 4 bits a weight, and scales that are quantised themselves.
_QUANTIZED_BYTES = 0.52


@dataclass(frozen=True)
class SubsetTokens:
    """Mean tokens of a subset's texts, as they are cut for training.

    Attributes:
        query: Of a query with its instruction.
        reasoning: Of a reasoning query with its instruction.
        document: Of a document.
        cut: Share of documents longer than allowed.
        reasoning_cut: Mean share of the reasoning that is cut away; NaN where no row has any.
    """

    query: float
    reasoning: float
    document: float
    cut: float
    reasoning_cut: float = math.nan


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
        token_memory: Of the activations, the GiB of one token.
        start_step: First step that weighs, counted from 0; None for a loss that never does.
        notes: What a reader of the plan should know, a line each.
    """

    subsets: list[SubsetPlan]
    groups: dict[str, int]
    short_rows: dict[str, int]
    steps: int
    batches: int
    world_size: int
    tokens: dict[str, SubsetTokens] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    token_memory: float = 0.0
    start_step: int | None = None
    notes: list[str] = field(default_factory=list)

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
    def weighted_steps(self) -> int:
        """Steps that weigh their queries, as far as they have reasoning queries."""
        return 0 if self.start_step is None else max(0, self.steps - self.start_step)

    def cached_memory(self, tokens: int = SMALL_BATCH) -> float | None:
        """Return the GiB a device with gradients cached in mini-batches, or None where it is not known.

        Args:
            tokens: Of a mini-batch.
        """
        if not self.memory:
            return None
        return self.memory["weights"] + self.memory["optimizer"] + tokens * self.token_memory

    def fitting_tokens(self, memory: float) -> int:
        """Return the tokens of a mini-batch that fits; 0 where not even the model fits.

        Args:
            memory: Of the device, in GiB.
        """
        model = self.cached_memory(0)
        if model is None or not self.token_memory:
            return SMALL_BATCH
        tokens = int((_USABLE * memory - model) / self.token_memory)
        # In steps that are easy to read; more than this makes nothing faster.
        return max(0, min(tokens // 256 * 256, 8 * SMALL_BATCH))

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
        recipe: What is to be trained, and how.
        data: The rows.
        world_size: Processes.

    Returns:
        The plan, without tokens and memory.

    Raises:
        ReasonEmbedError: If there is no step to make, or the loss has nothing to work with.
    """
    _check_data(recipe, data)
    asked = {name: rows_shape(rows) for name, rows in data.subsets.items()}
    taken = mixed_rows({name: len(rows) for name, rows in data.subsets.items()}, recipe.data.mix)
    subsets = [
        SubsetPlan(
            name,
            len(rows),
            recipe.batch.queries_per_process(name, world_size, asked[name]),
            world_size,
            recipe.batch.drop_last,
            recipe.batch.devices,
            taken[name],
        )
        for name, rows in data.subsets.items()
    ]
    groups = {name: recipe.batch.shape(name, asked[name]).group for name in data.subsets}
    short = {name: _short_rows(rows, groups[name]) for name, rows in data.subsets.items()}
    batches = sum(plan.batches for plan in subsets)
    if not batches:
        raise _no_batch(subsets)
    for plan in subsets:
        if not plan.batches:
            logger.warning("%s: %d rows do not fill a batch of %d", plan.name, plan.taken, plan.joined)
    updates = max(1, math.ceil(batches / recipe.training.accumulation))
    steps = recipe.training.max_steps or math.ceil(updates * recipe.training.epochs)
    start = recipe.loss.first_weighted_step(steps) if recipe.loss.kind == "redapter" else None
    notes = [note for name in data.subsets if (note := _shape_note(recipe, name, asked[name]))]
    found = TrainingPlan(subsets, groups, short, steps, batches, world_size, start_step=start, notes=notes)
    _warn_unweighted(found)
    return found


def _no_batch(subsets: Sequence[SubsetPlan]) -> ReasonEmbedError:
    most = max(subsets, key=lambda plan: plan.taken)
    return ReasonEmbedError(
        f"no subset fills a batch: {most.name}, the largest, gives {most.taken} rows and a global batch "
        f"takes {most.joined}; lower batch.queries or batch.devices, or keep smaller batches with "
        "--set batch.drop_last=false"
    )


def _warn_unweighted(plan: TrainingPlan) -> None:
    """Say when most of a Redapter run is plain InfoNCE."""
    if plan.start_step is None or plan.weighted_steps >= plan.steps / 2:
        return
    logger.warning(
        "%d of %d steps are weighted by reasoning intensity, the others are plain InfoNCE, since weighting "
        "begins at step %d: set a share of the steps, such as --set loss.start_step=0.1, or train longer",
        plan.weighted_steps,
        plan.steps,
        plan.start_step,
    )


def rows_shape(rows: Dataset) -> BatchShape:
    """Return the shape that a subset's rows ask for, of which FlagEmbedding takes the first row's.

    Args:
        rows: With the columns ``group`` and ``queries``.
    """
    first = rows[0]
    shape = BatchShape(group=first.get("group"), queries=first.get("queries"))
    for name, field_name in SHAPE_FIELDS.items():
        if name in rows.column_names and len(rows.data.column(name).unique()) > 1:
            logger.warning(
                "%s: its rows have different values of %s; the first one's, %s, counts",
                first["subset"],
                field_name,
                getattr(shape, name),
            )
    return shape


def _shape_note(recipe: Recipe, name: str, asked: BatchShape) -> str:
    """Say what the recipe puts in place of what the rows ask for, or that theirs is taken."""
    used, said = recipe.batch.shape(name, asked), []
    for one, field_name in SHAPE_FIELDS.items():
        value, taken = getattr(asked, one), getattr(used, one)
        if value is not None:
            said.append(f"{field_name}={value}" + ("" if value == taken else f", the recipe {taken}"))
    return f"{name}: the rows say {', '.join(said)}" if said else ""


def _check_data(recipe: Recipe, data: TrainingData) -> None:
    from reasonembed_mteb.errors import unknown_name

    recipe_kind(recipe).check_data(recipe, data)
    if recipe.loss.kind == "redapter" and not data.has_reasoning:
        msg = (
            "no row has a reasoning_query, which Redapter weighs by: add them (ReMixer writes them), or "
            "train plain InfoNCE with --set loss.kind=infonce"
        )
        raise ReasonEmbedError(msg)
    if recipe.loss.grade_weight and not data.has_grades:
        msg = (
            "no row has grades, which loss.grade_weight learns from: give pos_scores and neg_scores, a "
            "number for each text (ReMixer writes them), or set loss.grade_weight=0"
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
        recipe: What the plan was made for.
        data: The rows.
    """
    name = recipe.model.name or recipe.model.base
    try:
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        logger.warning("tokens and memory are not known: %s", one_line(error))
        return
    limit = min(recipe.data.reasoning_limit, position_limit(config))
    for subset, rows in data.subsets.items():
        plan.tokens[subset] = _tokens(tokenizer, recipe, sample_rows(rows), plan.groups[subset], limit)
    warn_of_cuts({name: tokens.reasoning_cut for name, tokens in plan.tokens.items()}, limit)
    plan.memory = estimate_memory(plan, recipe, config)
    plan.token_memory = _token_bytes(recipe, config) / _GIB


def sample_rows(rows: Dataset) -> list[dict[str, Any]]:
    """Return some rows of a subset, spread over it.

    Args:
        rows: At least one.
    """
    step = max(1, len(rows) // SAMPLE)
    return [rows[index] for index in range(0, len(rows), step)][:SAMPLE]


def _tokens(
    tokenizer: Any,  # noqa: ANN401 - any of transformers' tokenizers
    recipe: Recipe,
    sample: list[dict[str, Any]],
    group: int,
    limit: int,
) -> SubsetTokens:
    from reasonembed_mteb.training.collator import GroupCollator

    collator = GroupCollator(
        preprocess_fn=tokenizer,
        groups={sample[0]["subset"]: group},
        seed=recipe.training.seed,
        template=recipe.model.template,
        document_prefix=recipe.model.document_prefix,
        instructions=recipe.data.instructions,
    )

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]

    redapter = recipe.loss.kind == "redapter"
    limits = {"query": recipe.data.query_tokens, "documents": recipe.data.document_tokens}
    limits["reasoning_query"] = limit if redapter else 0
    means, cut = {}, 0.0
    for column, texts in collator.texts(sample).items():
        lengths = count(texts)
        means[column] = sum(min(length, limits[column]) for length in lengths) / len(lengths)
        if column == "documents":
            cut = sum(length > limits[column] for length in lengths) / len(lengths)
    lost = mean_cut(row_cuts(sample, collator.prefixes(sample), limit, count)) if redapter else math.nan
    return SubsetTokens(means["query"], means["reasoning_query"], means["documents"], cut, lost)


def estimate_memory(plan: TrainingPlan, recipe: Recipe, config: Any) -> dict[str, float]:  # noqa: ANN401
    """Estimate the memory of a device at the largest batch, in GiB; an estimate, not a promise.

    Counted are weights (where they are shared out, those that a device gathers, and beside them its share),
    what AdamW keeps of the trained ones, and activations: with checkpointing the input of each layer and one
    layer's inside, else every layer's inside; of all tokens with a gradient, or of a mini-batch where
    gradients are cached.

    Args:
        plan: With tokens.
        recipe: What the plan was made for.
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
    adapts = recipe.lora.rank or recipe_kind(recipe).trains_tokens(recipe)
    if adapts:
        layers = [p for n, p in model.named_modules() if n.rpartition(".")[2] in recipe.lora.targets]
        sizes = [p.in_features + p.out_features for p in layers if isinstance(p, nn.Linear)]
        trained = recipe.lora.rank * sum(sizes)
    if recipe.sharding.kind != "none":
        found = _shared_bytes(model, recipe, plan.world_size)
        found["activations"] = _activation_bytes(plan, recipe, config)
        found = {name: size / _GIB for name, size in found.items()}
        return found | {"total": sum(found.values())}
    beneath = _QUANTIZED_BYTES if recipe.lora.quantize else 2 if recipe.training.half else 4
    kept = _TRAINED_BYTES_8BIT if recipe.training.optimizer == "adamw_8bit" else _TRAINED_BYTES
    frozen = weights * beneath if adapts else 0
    found = {"weights": frozen / _GIB, "optimizer": trained * kept / _GIB}
    found["activations"] = _activation_bytes(plan, recipe, config) / _GIB
    return found | {"total": sum(found.values())}


def _shared_bytes(model: nn.Module, recipe: Recipe, processes: int) -> dict[str, float]:
    """Count what a device has of weights that are shared out: layers it gathered, and its own share."""
    # A plan that is made by one process is for as many as the recipe is meant for.
    shares = processes if processes > 1 else recipe.batch.devices
    sizes = [sum(p.numel() for p in part.parameters()) for part in model.children()]
    layers = [sum(p.numel() for p in layer.parameters()) for layer in getattr(model, "layers", ())]
    # Two layers at a time, the next being fetched, and what is outside of them; or all of it.
    whole = sum(sizes)
    gathered = whole - sum(layers) + 2 * max(layers, default=0) if recipe.sharding.reshard else whole
    held = 0 if recipe.sharding.cpu_offload else whole * _TRAINED_BYTES / shares
    return {"weights": float(gathered * (2 if recipe.training.half else 4)), "optimizer": float(held)}


def _activation_bytes(plan: TrainingPlan, recipe: Recipe, config: Any) -> float:  # noqa: ANN401
    """Count the activations of the largest batch of a device."""
    means = {p.name: (p.queries, plan.groups[p.name], plan.tokens[p.name]) for p in plan.subsets}
    tokens = max(queries * (mean.query + group * mean.document) for queries, group, mean in means.values())
    loss = recipe.loss
    if loss.mini_batch_tokens:
        tokens = min(tokens, loss.mini_batch_tokens)
    elif loss.mini_batch_size:
        tokens = min(tokens, loss.mini_batch_size * max(m.document for _, _, m in means.values()))
    return tokens * _token_bytes(recipe, config)


def _token_bytes(recipe: Recipe, config: Any) -> float:  # noqa: ANN401
    hidden, layers = config.hidden_size, config.num_hidden_layers
    # Attention's and the feed-forward part's inputs and outputs, a few of each kept for the backward pass.
    inside = 8 * hidden + 3 * config.intermediate_size
    kept = layers * hidden + inside if recipe.training.checkpointing else layers * inside
    return float(kept * (2 if recipe.training.half else 4))


def start_name(recipe: Recipe) -> str:
    """Return what the plan calls the recipe's model, named or not.

    Args:
        recipe: With or without a model's name.
    """
    try:
        return model_name(recipe)
    except ReasonEmbedError:
        return f"{recipe.model.base} tuned on MS MARCO (to be named by --set model.name=...)"
