"""The parts of a recipe, with what each value may be."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from reasonembed_mteb.errors import MOST_SEED, ReasonEmbedError
from reasonembed_mteb.prompts import QUERY_TEMPLATE

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
# FlagEmbedding's own where neither recipe nor rows say anything else (PROTOCOL section 6).
GROUP, QUERIES = 16, 8
# The one schedule that is not transformers' own.
LOG_WARMUP = "linear_log_warmup"
MOST_DOCUMENTS, MOST_QUERIES = 1024, 65536


class RecipeSection(BaseModel):
    """A part of a recipe: no key beside its own, and no change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True, strict=False)


class ModelPart(RecipeSection):
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

    def prefix(self, instruction: str) -> str:
        """Return what goes before a query, in training and afterwards; nothing without a template.

        Args:
            instruction: One sentence; empty for none.
        """
        return prefix_of(self.template, instruction)


def prefix_of(template: str, instruction: str) -> str:
    """Return what goes before a query under a recipe's template, which is empty for no instructions.

    Args:
        template: Where the instruction goes.
        instruction: One sentence; empty for none.
    """
    from reasonembed_mteb.models.instructions import PromptRule

    return PromptRule(template=template).instructed(instruction) if template else ""


class LoraPart(RecipeSection):
    """Low-rank adapters; rank 0 trains every weight.

    Attributes:
        rank: Rank; 0 for full fine-tuning.
        alpha: Scale of the adapters times the rank.
        dropout: Dropout before the adapters.
        quantize: Whether the weights beneath are held in 4 bits (QLoRA); needs bitsandbytes and a CUDA GPU.
        targets: Names of the linear layers that get one.
    """

    rank: Count = 32
    alpha: Positive = 64
    dropout: float = Field(default=0.0, ge=0, lt=1)
    quantize: bool = False
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )


class LossPart(RecipeSection):
    """The loss; see `reasonembed_mteb.training.RedapterLoss`.

    Attributes:
        kind: ``redapter`` weighs queries by reasoning intensity, ``infonce`` does not.
        temperature: Temperature of the softmax.
        max_intensity: Cap of the reasoning intensity; ``inf`` for none.
        start_step: First step that weighs; below 1, the share of the steps before it.
        normalize_weights: Whether the weights of a batch sum to one.
        gather_across_devices: Whether every device's documents are candidates.
        mask_false_negatives: Whether documents equal to a query's positive are no negatives of it.
        grade_weight: Weight of the divergence from graded labels (``pos_scores`` and ``neg_scores`` of the
            rows) beside this loss; 0 for none.
        grade_temperature: What grades are divided by before their softmax.
        matryoshka: Further lengths of the vectors at which the loss is taken too, each counting as much as
            the full one; empty for the full one alone.
        mini_batch_size: Rows embedded at a time with cached gradients; 0 embeds all at once.
        mini_batch_tokens: The same as tokens; excludes ``mini_batch_size``.
    """

    kind: Literal["redapter", "infonce"] = "redapter"
    temperature: float = Field(default=0.02, gt=0, le=10)
    max_intensity: float = Field(default=5.0, gt=0)
    start_step: float = Field(default=100, ge=0)
    normalize_weights: bool = True
    gather_across_devices: bool = True
    mask_false_negatives: bool = False
    grade_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    grade_temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    matryoshka: list[Positive] = Field(default_factory=list)
    mini_batch_size: Count = 0
    mini_batch_tokens: Count = 0

    @field_validator("start_step")
    @classmethod
    def _step_or_share(cls, value: float) -> float:
        """Keep steps whole, so that `1.0` is the second step and no share."""
        if 0 < value < 1:
            return value
        if not float(value).is_integer():
            msg = "must be a step (0, 1, 2, ...) or a share of the steps between 0 and 1"
            raise ValueError(msg)
        return int(value)

    def first_weighted_step(self, steps: int) -> int:
        """Return the first step that weighs, counted from 0.

        Args:
            steps: Of the whole run.
        """
        return math.ceil(self.start_step * steps) if 0 < self.start_step < 1 else int(self.start_step)


class SubsetMix(RecipeSection):
    """What an epoch takes of a subset.

    Attributes:
        weight: Share of the epoch's rows, beside the other subsets' weights; 0 for none of its own.
        cap: At most so many rows an epoch, others in each; 0 for no limit.
        repeats: How often an epoch goes through the subset: 2 sees each row twice, 0.5 half of the rows.
    """

    weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    cap: Count = 0
    repeats: float = Field(default=1.0, gt=0, le=1000)


class DataPart(RecipeSection):
    """How rows are read.

    Attributes:
        query_tokens: Tokens of a query, its instruction included.
        reasoning_tokens: Tokens of a reasoning query, its instruction included; at least ``query_tokens``
            count, and no more than the model takes. It holds the query and its reasoning.
        document_tokens: Tokens of a document.
        invalid: What becomes of broken lines and wrong types: ``error``, or ``drop`` and count.
        missing_reasoning: Rows without a reasoning query: ``plain`` trains them with plain InfoNCE.
        instructions: Instruction by subset, for rows that bring none; else our tables' own.
        mix: What an epoch takes of single subsets; all rows of those that are not named.
    """

    query_tokens: Annotated[int, Field(ge=8, le=1 << 17)] = 512
    # ReMixer keeps queries of up to 1,000 words and writes 400 words of reasoning: 1,400 words and an
    # instruction, at 1.3 tokens a word of prose and twice that of code. A batch pays for its longest text.
    reasoning_tokens: Annotated[int, Field(ge=8, le=1 << 17)] = 4096
    document_tokens: Annotated[int, Field(ge=8, le=1 << 17)] = 512
    invalid: Literal["error", "drop"] = "error"
    missing_reasoning: Literal["plain", "error"] = "plain"
    instructions: dict[str, str] = Field(default_factory=dict)
    mix: dict[str, SubsetMix] = Field(default_factory=dict)

    @property
    def reasoning_limit(self) -> int:
        """Tokens at which a reasoning query is cut: one that repeats its query keeps what the query keeps."""
        return max(self.query_tokens, self.reasoning_tokens)


class BatchShape(RecipeSection):
    """The shape of a subset's batches; what is None is left to the rows.

    Attributes:
        group: Documents a query: one positive and ``group - 1`` negatives.
        queries: Queries a device, for the recipe's number of devices.
    """

    group: Annotated[int, Field(ge=1, le=MOST_DOCUMENTS)] | None = None
    queries: Annotated[int, Field(ge=1, le=MOST_QUERIES)] | None = None


class Shape(NamedTuple):
    """A decided `BatchShape`."""

    group: int
    queries: int


class BatchPart(BatchShape):
    """Batches; a subset's own shape counts before that of all, and both before what the rows ask for.

    Attributes:
        devices: Devices the shapes are meant for. Fewer devices take more queries each, so that the
            global batch, which decides the candidates and the weights, stays as it is.
        drop_last: Whether a subset's last rows, fewer than a global batch, are left out.
        subsets: Shapes of single subsets.
    """

    devices: Positive = 8
    drop_last: bool = True
    subsets: dict[str, BatchShape] = Field(default_factory=dict)

    def shape(self, subset: str, rows: BatchShape | None = None) -> Shape:
        """Return the shape of a subset's batches.

        Args:
            subset: Its name.
            rows: What its rows ask for (``train_group_size`` and ``batch_size``), where the recipe gives
                neither the subset nor all subsets a value.
        """
        given = [self.subsets.get(subset, BatchShape()), self, rows or BatchShape()]
        group = next((one.group for one in given if one.group is not None), GROUP)
        return Shape(group, next((one.queries for one in given if one.queries is not None), QUERIES))

    def needs_negatives(self, subset: str) -> bool | None:
        """Say whether a subset's groups have negatives; None where its rows decide.

        Args:
            subset: Its name.
        """
        given = (self.subsets.get(subset, BatchShape()).group, self.group)
        return next((group > 1 for group in given if group is not None), None)

    def queries_per_process(self, subset: str, world_size: int, rows: BatchShape | None = None) -> int:
        """Return how many queries each process takes.

        Args:
            subset: Its name.
            world_size: Number of processes.
            rows: As of `shape`.

        Raises:
            ReasonEmbedError: If the global batch cannot be divided evenly.
        """
        joined = self.shape(subset, rows).queries * self.devices
        if joined % world_size:
            msg = (
                f"the global batch of {subset} has {joined} queries, which {world_size} processes cannot "
                f"share evenly: start a number of processes that divides {joined}, or set "
                f"batch.devices={world_size}"
            )
            raise ReasonEmbedError(msg)
        return joined // world_size


class TrainingPart(RecipeSection):
    """The optimiser and the run.

    Attributes:
        epochs: Passes over the data.
        max_steps: Stop after so many steps; 0 for no limit.
        learning_rate: Peak learning rate of AdamW.
        schedule: Learning-rate schedule, by transformers' name; ``linear_log_warmup`` is DeepSpeed's
            ``WarmupDecayLR``: a logarithmic rise, then a linear fall.
        warmup: Share of the steps over which the rate rises.
        weight_decay: AdamW's weight decay.
        max_grad_norm: Gradient clipping; 0 for none. The gradient is the joined batch's own: code that
            averages it over devices clips one that is smaller by their number.
        accumulation: Batches a step.
        seed: Seed of batches, samples and dropout.
        optimizer: ``adamw``, or ``adamw_8bit`` with moments in 8 bits; needs bitsandbytes and a CUDA GPU.
        precision: ``bf16``: bf16 base weights under adapters, bf16 autocast; ``fp16``: the same in fp16 with
            a scaled loss, for GPUs without bf16; ``fp32``: neither.
        checkpointing: Whether activations are recomputed instead of kept.
        attention: Attention implementation, by transformers' name; empty for its default.
        packed: Whether texts are packed without padding (Qwen2, Qwen3, Llama and Mistral decoders; on CUDA
            in bf16 or fp16).
        save_steps: Steps between checkpoints; 0 for one at the end.
        keep: Checkpoints kept.
        retries: Steps in a row that are left out because loss or gradient is not finite, before the run ends.
        log_steps: Steps between lines on the console.
        workers: Worker processes that read and tokenise.
        report_to: Trackers, by transformers' names.
    """

    epochs: float = Field(default=1.0, gt=0, le=1000)
    max_steps: Count = 0
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup", "linear_log_warmup"] = "linear"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, ge=0)
    accumulation: Positive = 1
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 42
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    precision: Literal["fp16", "bf16", "fp32"] = "bf16"
    checkpointing: bool = True
    attention: str = ""
    packed: bool = False
    save_steps: Count = 0
    keep: Positive = 2
    retries: Count = 3
    log_steps: Positive = 10
    workers: Count = 0
    report_to: list[str] = Field(default_factory=list)

    @property
    def half(self) -> bool:
        """Whether the forward pass runs in 16 bits."""
        return self.precision != "fp32"


class ShardingPart(RecipeSection):
    """How the weights of full fine-tuning are shared out over the devices; see docs/training.md.

    Attributes:
        kind: ``none``: every device holds all; ``fsdp``: PyTorch's FSDP2; ``zero3``: DeepSpeed's ZeRO-3,
            which needs ``deepspeed``. Weights, gradients and AdamW's moments are shared out by decoder layer.
        reshard: Whether a layer's whole weights are let go between its forward and its backward pass;
            false is faster and holds all of them in between. ZeRO-3 always lets them go.
        cpu_offload: Whether shares wait in the host's memory.
    """

    kind: Literal["none", "fsdp", "zero3"] = "none"
    reshard: bool = True
    cpu_offload: bool = False


class EvaluationPart(RecipeSection):
    """Scores during training.

    Attributes:
        tasks: MTEB task names, ours or MTEB's.
        steps: Steps between evaluations, the last step included; 0 for that one alone.
        best: Task by whose main score the best checkpoint becomes the model, or ``mean`` of all tasks; empty
            for the last one. A checkpoint is then written at each evaluation.
        patience: Evaluations without a better score after which training stops; 0 for never.
    """

    tasks: list[str] = Field(default_factory=list)
    steps: Count = 0
    best: str = ""
    patience: Count = 0


class Recipe(RecipeSection):
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
    sharding: ShardingPart = Field(default_factory=ShardingPart)
    evaluation: EvaluationPart = Field(default_factory=EvaluationPart)
