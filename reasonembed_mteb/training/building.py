"""The pieces of a run: model, loss, collator, evaluator and trainer, as a recipe says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.training.metrics import MetricsFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
    from transformers import TrainerCallback

    from reasonembed_mteb.training.collator import GroupCollator
    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.evaluator import TaskEvaluator
    from reasonembed_mteb.training.losses import RedapterLoss
    from reasonembed_mteb.training.plan import TrainingPlan
    from reasonembed_mteb.training.schema import Recipe
    from reasonembed_mteb.training.trainer import RedapterTrainer

CHECKPOINTS = "checkpoints"
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
        recipe: The recipe.
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
    from reasonembed_mteb.training.trainer import RedapterTrainer

    # Before the model: its adapters are drawn.
    set_seed(recipe.training.seed)
    model = load_model(recipe)
    evaluator = _evaluator(recipe, output)
    arguments = _arguments(recipe, output, plan, _best_score(recipe, evaluator))
    if recipe.training.packed:
        if recipe.training.attention:
            msg = (
                f"training.packed brings its own attention, training.attention={recipe.training.attention!r} "
                "another one: give one of the two"
            )
            raise ReasonEmbedError(msg)
        pack_texts(model, arguments.device, half=recipe.training.precision == "bf16")
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
        loss=make_loss(model, recipe),
        evaluator=evaluator,
        metrics=MetricsFile(output / "metrics.csv"),
        keep=recipe.training.keep,
        retries=recipe.training.retries,
        say=say,
        callbacks=_early_stop(recipe),
    )


def _early_stop(recipe: Recipe) -> list[TrainerCallback]:
    from transformers import EarlyStoppingCallback

    patience = recipe.evaluation.patience
    return [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []


def make_collator(model: SentenceTransformer, recipe: Recipe, plan: TrainingPlan) -> GroupCollator:
    """Build the collator of a recipe.

    Args:
        model: The model, which tokenises.
        recipe: The recipe.
        plan: The plan, for the groups.
    """
    from reasonembed_mteb.training.collator import GroupCollator

    return GroupCollator(
        preprocess_fn=model.preprocess,
        groups=plan.groups,
        seed=recipe.training.seed,
        with_reasoning=recipe.loss.kind == "redapter",
        template=recipe.model.template,
        document_prefix=recipe.model.document_prefix,
        instructions=recipe.data.instructions,
        query_tokens=recipe.data.query_tokens,
        document_tokens=recipe.data.document_tokens,
    )


def make_loss(model: SentenceTransformer, recipe: Recipe) -> RedapterLoss:
    """Build the loss of a recipe.

    Args:
        model: The model.
        recipe: The recipe.
    """
    from reasonembed_mteb.training import CachedRedapterLoss, RedapterLoss

    part = recipe.loss
    options = part.model_dump(exclude={"kind", "mini_batch_size", "mini_batch_tokens"})
    if part.kind == "infonce":
        options["start_step"] = None
    if part.mini_batch_tokens:
        return CachedRedapterLoss(model, mini_batch_num_tokens=part.mini_batch_tokens, **options)
    if part.mini_batch_size:
        return CachedRedapterLoss(model, mini_batch_size=part.mini_batch_size, **options)
    return RedapterLoss(model, **options)


def _evaluator(recipe: Recipe, output: Path) -> TaskEvaluator | None:
    if not recipe.evaluation.tasks:
        return None
    from reasonembed_mteb.evaluation.resolving import resolve_tasks
    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.training.evaluator import TaskEvaluator

    register()
    tasks = resolve_tasks([], recipe.evaluation.tasks)
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


def _arguments(
    recipe: Recipe, output: Path, plan: TrainingPlan, best: str | None
) -> SentenceTransformerTrainingArguments:
    import torch
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    part, steps = recipe.training, recipe.evaluation.steps
    return SentenceTransformerTrainingArguments(
        output_dir=str(output / CHECKPOINTS),
        # Only a nominal size: each subset has its own.
        per_device_train_batch_size=max(one.queries for one in plan.subsets),
        num_train_epochs=part.epochs,
        max_steps=part.max_steps or -1,
        learning_rate=part.learning_rate,
        lr_scheduler_type=part.schedule,
        warmup_steps=part.warmup,
        weight_decay=part.weight_decay,
        max_grad_norm=part.max_grad_norm,
        gradient_accumulation_steps=part.accumulation,
        seed=part.seed,
        bf16=part.precision == "bf16",
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
        dataloader_num_workers=part.workers,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        # Workers that outlive an epoch would not learn of the next.
        dataloader_persistent_workers=False,
        # With adapters every trained weight takes part in each step.
        ddp_find_unused_parameters=not recipe.lora.rank,
        disable_tqdm=True,
    )
