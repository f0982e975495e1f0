"""The pieces of a run: model, loss, collator, evaluator and trainer, as a recipe says."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.training.metrics import MetricsFile
from reasonembed_mteb.training.registry import recipe_kind
from reasonembed_mteb.training.schema import LOG_WARMUP
from reasonembed_mteb.training.sharding import fsdp_precision, sharding_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
    from torch import nn
    from transformers import TrainerCallback

    from reasonembed_mteb.training.collator import GroupCollator
    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.evaluator import TaskEvaluator
    from reasonembed_mteb.training.losses import RedapterLoss
    from reasonembed_mteb.training.plan import TrainingPlan
    from reasonembed_mteb.training.schema import Recipe
    from reasonembed_mteb.training.trainer import RedapterTrainer

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
_LOSS_OPTIONS = (
    "temperature",
    "max_intensity",
    "normalize_weights",
    "gather_across_devices",
    "mask_false_negatives",
)
# More steps than any run has.
_NEVER = 1 << 40


def is_main() -> bool:
    """Say whether this process is the one that speaks and writes, before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def on_cpu() -> bool:
    """Say whether there is nothing but the CPU."""
    import torch

    return not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())


def build_trainer(
    recipe: Recipe, data: TrainingData, plan: TrainingPlan, output: Path, say: Callable[[str], None]
) -> RedapterTrainer:
    """Put model, loss, collator, evaluator and trainer together.

    Args:
        recipe: What is to be trained, and how.
        data: The rows.
        plan: Their batches.
        output: Folder of the run.
        say: Takes a line for people now and then.

    Returns:
        The trainer, not yet started.

    Raises:
        ReasonEmbedError: If the recipe asks for two kinds of attention.
    """
    from transformers import set_seed

    from reasonembed_mteb.training.adapters import load_model, pack_texts
    from reasonembed_mteb.training.sampling import repeated
    from reasonembed_mteb.training.schedule import warmup_decay_schedule
    from reasonembed_mteb.training.trainer import RedapterTrainer

    # Before the model: its adapters are drawn.
    set_seed(recipe.training.seed)
    # And before the arguments: after DeepSpeed's, weights would be shared out as they are read, and the probe
    # that tells a bare decoder's kind would run on parts of them.
    model = load_model(recipe)
    evaluator = _evaluator(recipe, output)
    arguments = training_arguments(recipe, output, plan, _best_score(recipe, evaluator), model)
    if recipe.training.packed:
        if recipe.training.attention:
            msg = (
                f"training.packed brings its own attention, training.attention={recipe.training.attention!r} "
                "another one: give one of the two"
            )
            raise ReasonEmbedError(msg)
        pack_texts(model, arguments.device, half=recipe.training.half)
    collator = make_collator(model, recipe, plan)
    return RedapterTrainer(
        model=model,
        args=arguments,
        plans=plan.subsets,
        train_dataset={
            name: repeated(rows, one.passes)
            for one, (name, rows) in zip(plan.subsets, data.subsets.items(), strict=True)
        },
        data_collator=collator,
        loss=shortened(make_loss(model, recipe, plan.start_step), recipe.loss.matryoshka),
        evaluator=evaluator,
        metrics=MetricsFile(output / "metrics.csv"),
        keep=recipe.training.keep,
        retries=recipe.training.retries,
        say=say,
        schedule=warmup_decay_schedule if recipe.training.schedule == LOG_WARMUP else None,
        callbacks=_early_stop(recipe),
        restoring=recipe_kind(recipe).restoring,
    )


def _early_stop(recipe: Recipe) -> list[TrainerCallback]:
    from transformers import EarlyStoppingCallback

    patience = recipe.evaluation.patience
    return [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []


def make_collator(model: SentenceTransformer, recipe: Recipe, plan: TrainingPlan) -> GroupCollator:
    """Build the collator of a recipe.

    Args:
        model: The model, which tokenises.
        recipe: Says lengths, prefixes and seed.
        plan: The plan, for the groups.
    """
    from reasonembed_mteb.encoding.tokenizing import check_room
    from reasonembed_mteb.training.adapters import backbone
    from reasonembed_mteb.training.collator import GroupCollator
    from reasonembed_mteb.training.cuts import position_limit

    most = position_limit(backbone(model))
    part = recipe.data
    for name in ("query_tokens", "document_tokens"):
        if getattr(part, name) > most:
            logger.warning("data.%s is %d; the model takes %d tokens", name, getattr(part, name), most)
        # Queries' instructions may be their rows' own.
        before = recipe.model.document_prefix if name == "document_tokens" else ""
        check_room(model.tokenizer, min(getattr(part, name), most), f"data.{name}", before)
    plain = GroupCollator(
        preprocess_fn=model.preprocess,
        groups=plan.groups,
        seed=recipe.training.seed,
        with_reasoning=recipe.loss.kind == "redapter",
        with_grades=recipe.loss.grade_weight > 0,
        template=recipe.model.template,
        document_prefix=recipe.model.document_prefix,
        instructions=recipe.data.instructions,
        query_tokens=min(part.query_tokens, most),
        reasoning_tokens=min(part.reasoning_limit, most),
        document_tokens=min(part.document_tokens, most),
    )
    return recipe_kind(recipe).make_collator(plain, model, recipe)


def make_loss(model: SentenceTransformer, recipe: Recipe, start_step: int | None) -> RedapterLoss:
    """Build the loss of a recipe.

    Args:
        model: Embeds the batches.
        recipe: Its settings.
        start_step: First step that weighs, None for plain InfoNCE; see `TrainingPlan`.
    """
    part = recipe.loss
    options: dict[str, Any] = part.model_dump(include=set(_LOSS_OPTIONS)) | {"start_step": start_step}
    if part.mini_batch_tokens:
        options["mini_batch_num_tokens"] = part.mini_batch_tokens
    elif part.mini_batch_size:
        options["mini_batch_size"] = part.mini_batch_size
    cached = bool(part.mini_batch_tokens or part.mini_batch_size)
    loss: Any = recipe_kind(recipe).make_loss(model, recipe, options, cached=cached)
    loss.grade_weight, loss.grade_temperature = part.grade_weight, part.grade_temperature
    made: RedapterLoss = loss
    return made


def shortened(loss: RedapterLoss, lengths: Sequence[int]) -> nn.Module:
    """Have a loss taken of shortened vectors too, each length counting as much as the full one.

    Args:
        loss: Ours.
        lengths: Dimensions, of the first of which a shortened vector is made; empty for none.

    Returns:
        `MatryoshkaLoss`, or the loss itself.

    Raises:
        ReasonEmbedError: If a length is not below the model's own.
    """
    if not lengths:
        return loss
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    full = loss.model.get_embedding_dimension() or 0
    if max(lengths) >= full:
        msg = f"loss.matryoshka: {max(lengths)} is not below the {full} dimensions of the model's vectors"
        raise ReasonEmbedError(msg)
    return MatryoshkaLoss(loss.model, loss, [full, *sorted(set(lengths), reverse=True)])


def _evaluator(recipe: Recipe, output: Path) -> TaskEvaluator | None:
    if not recipe.evaluation.tasks:
        return None
    from reasonembed_mteb.training.evaluator import TaskEvaluator, evaluation_tasks

    tasks = evaluation_tasks(recipe.evaluation.tasks)
    return TaskEvaluator(tasks, output / "evaluation.csv" if is_main() else None)


def _best_score(recipe: Recipe, evaluator: TaskEvaluator | None) -> str | None:
    """Return the evaluator's name of the score by which the best checkpoint is chosen."""
    by = recipe.evaluation.best
    if not by or evaluator is None:
        return None
    named = {
        task.metadata.name: f"{task.metadata.name}_{task.metadata.main_score}" for task in evaluator.tasks
    }
    if by in named:
        return named[by]
    # A benchmark is the mean of its tasks.
    if by == "mean" or recipe.evaluation.tasks == [by]:
        return "mean"
    raise unknown_name("task", by, [*named, "mean"])


def training_arguments(
    recipe: Recipe,
    output: Path,
    plan: TrainingPlan,
    best: str | None,
    model: SentenceTransformer | None = None,
) -> SentenceTransformerTrainingArguments:
    """Translate a recipe into the library's training arguments.

    Args:
        recipe: What is to be trained, and how.
        output: Folder of the run.
        plan: Its batches.
        best: The evaluator's name of the score that chooses the model; None for the last one.
        model: The model, where FSDP is to share it out by its layers.
    """
    import torch
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    from reasonembed_mteb.encoding.plan import usable_cores

    part, steps = recipe.training, recipe.evaluation.steps
    default = SentenceTransformerTrainingArguments
    made = SentenceTransformerTrainingArguments(
        output_dir=str(output / CHECKPOINTS),
        # Only a nominal size: each subset has its own.
        per_device_train_batch_size=max(one.queries for one in plan.subsets),
        num_train_epochs=part.epochs,
        max_steps=part.max_steps or -1,
        learning_rate=part.learning_rate,
        lr_scheduler_type="linear" if part.schedule == LOG_WARMUP else part.schedule,
        warmup_steps=part.warmup,
        weight_decay=part.weight_decay,
        max_grad_norm=part.max_grad_norm,
        gradient_accumulation_steps=part.accumulation,
        seed=part.seed,
        bf16=part.precision == "bf16",
        fp16=part.precision == "fp16",
        optim="adamw_bnb_8bit" if part.optimizer == "adamw_8bit" else default.optim,
        # Without this word several processes on CPUs would not know of each other, and bf16 be refused.
        use_cpu=on_cpu(),
        save_strategy="steps",
        # The best is one of those that are kept.
        save_steps=steps if best else part.save_steps or _NEVER,
        load_best_model_at_end=best is not None,
        metric_for_best_model=best,
        greater_is_better=True if best else None,
        # A run that goes on counts on where it was.
        restore_callback_states_from_checkpoint=recipe.evaluation.patience > 0,
        # Ours are counted once they are whole.
        save_total_limit=None,
        eval_strategy="steps" if recipe.evaluation.tasks and steps else "no",
        eval_steps=steps or None,
        logging_steps=part.log_steps,
        logging_first_step=True,
        # A step that diverged must be seen.
        logging_nan_inf_filter=False,
        report_to=part.report_to or "none",
        # More of them would wait for each other, and torch would warn.
        dataloader_num_workers=min(part.workers, usable_cores()),
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        # Workers that outlive an epoch would not learn of the next.
        dataloader_persistent_workers=False,
        # With adapters every trained weight takes part in each step.
        ddp_find_unused_parameters=not recipe.lora.rank,
        disable_tqdm=True,
        **sharding_arguments(recipe, model),
    )
    if made.fsdp_plugin_args is not None and part.half:
        made.fsdp_plugin_args["mixed_precision_policy"] = fsdp_precision()
    return made
