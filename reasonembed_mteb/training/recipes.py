"""Recipes: everything that decides a training run, as TOML, checked."""

from __future__ import annotations

import tomllib
import types
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.prompts import QUERY_TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True, strict=False)


class ModelPart(_Section):
    """What is trained.

    Attributes:
        name: Hub name or directory; empty where a recipe's starting point has no known name.
        base: The backbone behind it, for messages and for the plan.
        template: What goes before a query; empty for models without instructions.
        document_prefix: What goes before a document.
    """

    name: str = ""
    base: str = ""
    template: str = QUERY_TEMPLATE
    document_prefix: str = ""


class LoraPart(_Section):
    """Low-rank adapters; rank 0 trains every weight.

    Attributes:
        rank: Rank; 0 for full fine-tuning.
        alpha: Scale of the adapters times the rank.
        dropout: Dropout before the adapters.
        targets: Names of the linear layers that get one.
    """

    rank: Count = 32
    alpha: Positive = 64
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )


class LossPart(_Section):
    """The loss; see `reasonembed_mteb.training.RedapterLoss`.

    Attributes:
        kind: ``redapter`` weighs queries by reasoning intensity, ``infonce`` does not.
        temperature: Temperature of the softmax.
        max_intensity: Cap of the reasoning intensity; ``inf`` for none.
        start_step: First step that weighs.
        normalize_weights: Whether the weights of a batch sum to one.
        gather_across_devices: Whether every device's documents are candidates.
        mask_false_negatives: Whether documents equal to a query's positive are no negatives of it.
        mini_batch_size: Rows embedded at a time with cached gradients; 0 embeds all at once.
        mini_batch_tokens: The same as tokens; excludes ``mini_batch_size``.
    """

    kind: Literal["redapter", "infonce"] = "redapter"
    temperature: float = Field(0.02, gt=0, le=10)
    max_intensity: float = Field(5.0, gt=0)
    start_step: Count = 100
    normalize_weights: bool = True
    gather_across_devices: bool = True
    mask_false_negatives: bool = False
    mini_batch_size: Count = 0
    mini_batch_tokens: Count = 0


class DataPart(_Section):
    """How rows are read.

    Attributes:
        query_tokens: Tokens of a query, its instruction included.
        document_tokens: Tokens of a document.
        invalid: What becomes of broken lines and wrong types: ``error``, or ``drop`` and count.
        missing_reasoning: Rows without a reasoning query: ``plain`` trains them with plain InfoNCE.
        instructions: Instruction by subset, for rows that bring none; else our tables' own.
    """

    query_tokens: Annotated[int, Field(ge=8, le=1 << 17)] = 512
    document_tokens: Annotated[int, Field(ge=8, le=1 << 17)] = 512
    invalid: Literal["error", "drop"] = "error"
    missing_reasoning: Literal["plain", "error"] = "plain"
    instructions: dict[str, str] = Field(default_factory=dict)


class BatchShape(_Section):
    """The shape of a subset's batches.

    Attributes:
        group: Documents a query: one positive and ``group - 1`` negatives.
        queries: Queries a device, for the recipe's number of devices.
    """

    group: Annotated[int, Field(ge=1, le=1024)] = 16
    queries: Annotated[int, Field(ge=1, le=65536)] = 8


class BatchPart(BatchShape):
    """Batches.

    Attributes:
        devices: Devices the shapes are meant for. Fewer devices take more queries each, so that the
            global batch, which decides the candidates and the weights, stays as it is.
        drop_last: Whether a subset's last rows, fewer than a global batch, are left out.
        subsets: Shapes of single subsets.
    """

    devices: Positive = 8
    drop_last: bool = True
    subsets: dict[str, BatchShape] = Field(default_factory=dict)

    def shape(self, subset: str) -> BatchShape:
        """Return the shape of a subset's batches.

        Args:
            subset: Its name.
        """
        return self.subsets.get(subset, BatchShape(group=self.group, queries=self.queries))

    def queries_per_process(self, subset: str, world_size: int) -> int:
        """Return how many queries each process takes.

        Args:
            subset: Its name.
            world_size: Number of processes.

        Raises:
            ReasonEmbedError: If the global batch cannot be divided evenly.
        """
        joined = self.shape(subset).queries * self.devices
        if joined % world_size:
            msg = (
                f"the global batch of {subset} has {joined} queries, which {world_size} processes cannot share "
                f"evenly: start a number of processes that divides {joined}, or set batch.devices={world_size}"
            )
            raise ReasonEmbedError(msg)
        return joined // world_size


class TrainingPart(_Section):
    """The optimiser and the run.

    Attributes:
        epochs: Passes over the data.
        max_steps: Stop after so many steps; 0 for no limit.
        learning_rate: Peak learning rate of AdamW.
        schedule: Learning-rate schedule, by transformers' name.
        warmup: Share of the steps over which the rate rises.
        weight_decay: AdamW's weight decay.
        max_grad_norm: Gradient clipping; 0 for none.
        accumulation: Batches a step.
        seed: Seed of batches, samples and dropout.
        precision: ``bf16``: bf16 base weights under adapters, bf16 autocast; ``fp32``: neither.
        checkpointing: Whether activations are recomputed instead of kept.
        attention: Attention implementation, by transformers' name; empty for its default.
        save_steps: Steps between checkpoints; 0 for one at the end.
        keep: Checkpoints kept.
        log_steps: Steps between lines on the console.
        workers: Worker processes that read and tokenise.
        report_to: Trackers, by transformers' names.
    """

    epochs: float = Field(1.0, gt=0, le=1000)
    max_steps: Count = 0
    learning_rate: float = Field(1e-4, gt=0, le=1)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, ge=0)
    accumulation: Positive = 1
    seed: Count = 42
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpointing: bool = True
    attention: str = ""
    save_steps: Count = 0
    keep: Positive = 2
    log_steps: Positive = 10
    workers: Count = 0
    report_to: list[str] = Field(default_factory=list)


class EvaluationPart(_Section):
    """Scores during training.

    Attributes:
        tasks: MTEB task names, ours or MTEB's.
        steps: Steps between evaluations, the last step included; 0 for that one alone.
    """

    tasks: list[str] = Field(default_factory=list)
    steps: Count = 0


class Recipe(_Section):
    """A training run; see the parts.

    Attributes:
        name: Its name.
        about: One sentence.
    """

    name: str
    about: str = ""
    model: ModelPart = Field(default_factory=ModelPart)
    lora: LoraPart = Field(default_factory=LoraPart)
    loss: LossPart = Field(default_factory=LossPart)
    data: DataPart = Field(default_factory=DataPart)
    batch: BatchPart = Field(default_factory=BatchPart)
    training: TrainingPart = Field(default_factory=TrainingPart)
    evaluation: EvaluationPart = Field(default_factory=EvaluationPart)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = files("reasonembed_mteb") / "training" / "recipes"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name[-5:] == ".toml"
    )


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Load a recipe and check every value.

    Args:
        name: One of `recipe_names`, or a TOML file.
        changes: ``section.key=value`` lines; values are TOML, and bare words are strings.

    Returns:
        The recipe.

    Raises:
        UnknownNameError: If there is no such recipe; the nearest is named.
        ReasonEmbedError: If a key is unknown or a value is out of range.
    """
    content = _read(name)
    for change in changes:
        _set(content, change)
    return check_recipe(content, name)


def check_recipe(content: dict[str, Any], name: str) -> Recipe:
    """Build a recipe from a TOML table.

    Args:
        content: The table.
        name: Where it comes from, for messages.

    Raises:
        ReasonEmbedError: If a key is unknown or a value is out of range.
    """
    content = {"name": Path(name).stem if name.endswith(".toml") else name} | content
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise ReasonEmbedError(_explain(error, name)) from None
    _check_together(recipe)
    return recipe


def _read(name: str) -> dict[str, Any]:
    file = Path(name).expanduser()
    try:
        if file.suffix == ".toml":
            text = file.read_text(encoding="utf-8")
        elif name in recipe_names():
            text = (files("reasonembed_mteb") / "training" / "recipes" / f"{name}.toml").read_text("utf-8")
        else:
            raise unknown_name("recipe", name, recipe_names())
        return tomllib.loads(text)
    except OSError as error:
        msg = f"cannot read the recipe {name}: {error.strerror}; recipes here: {', '.join(recipe_names())}"
        raise ReasonEmbedError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"the recipe {name} is not TOML: {error}"
        raise ReasonEmbedError(msg) from error


def _set(content: dict[str, Any], change: str) -> None:
    key, sign, value = change.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not sign or not all(path):
        msg = f"--set {change!r} must be of the form section.key=value, such as training.epochs=2"
        raise ReasonEmbedError(msg)
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    table = content
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            msg = f"--set {change!r}: {part} is a value, not a section"
            raise ReasonEmbedError(msg)
    table[path[-1]] = parsed


def _section_keys(location: Iterable[str | int]) -> list[str]:
    """Return the keys allowed at a place in a recipe."""
    section: Any = Recipe
    for part in location:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(part)].annotation
        elif get_origin(section) is dict:
            section = get_args(section)[1]
        if get_origin(section) in (Union, types.UnionType):
            section = next(a for a in get_args(section) if a is not type(None))
    return list(section.model_fields) if hasattr(section, "model_fields") else []


def _explain(error: ValidationError, name: str) -> str:
    """Say in one line what is wrong with a recipe."""
    found = []
    for problem in error.errors():
        *where, key = problem["loc"]
        path = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            hint = str(unknown_name("key", str(key), _section_keys(where)))
            found.append(f"{hint.rstrip('.')} (in {'.'.join(map(str, where)) or 'the recipe'})")
        else:
            wrong = problem["msg"].replace("Input should", "must")
            found.append(f"{path} = {problem['input']!r} {wrong}")
    return f"recipe {name}: {'; '.join(found)}"


def _check_together(recipe: Recipe) -> None:
    if recipe.loss.mini_batch_size and recipe.loss.mini_batch_tokens:
        msg = f"recipe {recipe.name}: give loss.mini_batch_size or loss.mini_batch_tokens, not both"
        raise ReasonEmbedError(msg)
    if recipe.model.template and "{instruction}" not in recipe.model.template:
        msg = f"recipe {recipe.name}: model.template {recipe.model.template!r} must contain {{instruction}}"
        raise ReasonEmbedError(msg)


def model_name(recipe: Recipe) -> str:
    """Return what a recipe starts from.

    Args:
        recipe: The recipe.

    Raises:
        ReasonEmbedError: If it names none, with the way to make it.
    """
    if recipe.model.name:
        return recipe.model.name
    base = recipe.model.base or "the backbone"
    msg = (
        f"recipe {recipe.name} names no model: the published run starts from {base} tuned on MS MARCO, which "
        f"has no known hub name. Train it with `reasonembed train stage-one-msmarco --set model.name={base} "
        "--output STAGE_ONE ...`, then add --set model.name=STAGE_ONE/model here"
    )
    raise ReasonEmbedError(msg)
