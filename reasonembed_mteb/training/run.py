"""A training run from recipe to model directory."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, missing_extra
from reasonembed_mteb.files import write_whole
from reasonembed_mteb.training.checkpoints import last_whole, remove_broken
from reasonembed_mteb.training.data import ReadOptions, describe_counts, load_training_data
from reasonembed_mteb.training.metrics import MetricsFile
from reasonembed_mteb.training.modelcard import card, write_toml
from reasonembed_mteb.training.planning import plan_training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
    from torch import nn

    from reasonembed_mteb.training.collator import GroupCollator
    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.evaluating import TaskEvaluator
    from reasonembed_mteb.training.planning import TrainingPlan
    from reasonembed_mteb.training.recipes import Recipe
    from reasonembed_mteb.training.trainer import RedapterTrainer

logger = logging.getLogger(__name__)

RECORD = "run.json"
MODEL = "model"
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
# Keys that change neither a batch nor a weight.
_HARMLESS = {
    "training": ("save_steps", "keep", "log_steps", "workers", "report_to", "checkpointing"),
    "evaluation": ("tasks", "steps"),
}
_PACKAGES = ("reasonembed-mteb", "sentence-transformers", "transformers", "torch", "peft", "accelerate")
# More steps than any run has.
_NEVER = 1 << 40


@dataclass(frozen=True)
class Trained:
    """What a run leaves.

    Attributes:
        model: Plain sentence-transformers directory, adapters merged.
        adapter: The adapters alone, or None.
        steps: Optimiser steps made in all.
        resumed: Step from which it went on; 0 for a run from its start.
    """

    model: Path
    adapter: Path | None
    steps: int
    resumed: int


def is_main() -> bool:
    """Say whether this process is the one that speaks and writes, before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def read_data(
    recipe: Recipe, sources: Sequence[str | Path] | TrainingData, cache: Path | None = None
) -> TrainingData:
    """Read a recipe's data; on several processes the first of each machine reads, the others wait.

    Args:
        recipe: The recipe.
        sources: Files, folders, or data read before.
        cache: Folder for checked rows; None takes the one of `datasets`.

    Returns:
        The data.
    """
    if not isinstance(sources, (list, tuple)):
        return sources  # type: ignore[return-value]
    from accelerate import PartialState
    from datasets import config

    options = ReadOptions(recipe.data.invalid, recipe.data.missing_reasoning)
    folder = cache or Path(config.HF_DATASETS_CACHE) / "reasonembed-training"
    with PartialState(cpu=_on_cpu()).local_main_process_first():
        data = load_training_data(
            sources,
            cache=folder,
            options=options,
            needs_negatives=lambda subset: recipe.batch.shape(subset).group > 1,
        )
    return data


def train(
    recipe: Recipe,
    sources: Sequence[str | Path] | TrainingData,
    output: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    say: Callable[[str], None] = logger.info,
) -> Trained:
    """Train a model; under torchrun or accelerate on several devices.

    Args:
        recipe: What to do.
        sources: Files or folders (see `reasonembed_mteb.training.data.load_training_data`), or
            `TrainingData`.
        output: Folder of the run: ``model``, ``adapter``, ``checkpoints``, ``metrics.csv``, ``run.json``.
        resume: Go on with the run that is there, from its last whole checkpoint.
        cache: Folder for checked rows.
        say: Takes a line for people now and then.

    Returns:
        What the run left.

    Raises:
        ReasonEmbedError: If recipe, data or folder do not allow it.
    """
    try:
        from accelerate import PartialState
    except ImportError:
        raise missing_extra("accelerate", "train") from None
    _check_output(output, resume=resume)
    state = PartialState(cpu=_on_cpu())
    _check_devices(state.num_processes, recipe.training.precision)
    data = read_data(recipe, sources, cache)
    plan = plan_training(recipe, data, state.num_processes)
    record = _record(recipe, data, plan)
    start = _prepare(output, record, main=state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        say(
            f"{data.rows:,} rows of {len(data.subsets)} subsets, {plan.steps:,} steps ({describe_counts(data.counts)})"
        )
        if start:
            say(f"going on from {start.name}")
    trainer = _build(recipe, data, plan, output, say)
    step = int(start.name.rpartition("-")[2]) if start else 0
    if state.is_main_process:
        for file in (trainer.metrics_file, getattr(trainer.evaluator, "scores", None)):
            if file is not None:
                file.start(step)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    if recipe.evaluation.tasks and not recipe.evaluation.steps:
        trainer.evaluate()
    state.wait_for_everyone()
    adapter = None
    if state.is_main_process:
        adapter = _finish(trainer.model, recipe, data, record, output)
    state.wait_for_everyone()
    return Trained(output / MODEL, adapter, trainer.state.global_step, step)


def _check_output(output: Path, *, resume: bool) -> None:
    if not output.exists() or resume:
        return
    if not output.is_dir():
        msg = f"{output} is a file: name a folder"
        raise ReasonEmbedError(msg)
    # Of several processes the first one may have begun to write.
    if is_main() and any(output.iterdir()):
        msg = f"{output} is not empty: go on with the run in it by --resume, or name another folder"
        raise ReasonEmbedError(msg)


def _on_cpu() -> bool:
    import torch

    return not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())


def _check_devices(processes: int, precision: str) -> None:
    import torch

    if precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        msg = f"{torch.cuda.get_device_name()} has no bf16: train with --set training.precision=fp32"
        raise ReasonEmbedError(msg)
    if processes == 1 and torch.cuda.device_count() > 1:
        msg = (
            f"{torch.cuda.device_count()} GPUs are visible and one process runs: start `torchrun "
            "--nproc-per-node N -m reasonembed_mteb train ...`, or choose one by CUDA_VISIBLE_DEVICES=0"
        )
        raise ReasonEmbedError(msg)


def _record(recipe: Recipe, data: TrainingData, plan: TrainingPlan) -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except ModuleNotFoundError:
            continue
    return {
        "format": 1,
        "recipe": recipe.model_dump(),
        "data": data.key,
        "counts": {name: dict(counts) for name, counts in data.counts.items()},
        "short_rows": plan.short_rows,
        "steps": plan.steps,
        "world_size": plan.world_size,
        "versions": versions,
        "finished": False,
    }


def _prepare(output: Path, record: dict[str, Any], *, main: bool) -> Path | None:
    """Check a run that is there against this one, and return the checkpoint to go on from."""
    held = _held(output / RECORD)
    if held is not None:
        _check_same(held, record, output)
    if main:
        if held is None:
            write_whole(output / RECORD, json.dumps(record, indent=1))
            write_whole(output / "recipe.toml", write_toml(record["recipe"]).strip() + "\n")
        remove_broken(output / CHECKPOINTS)
    # Processes that look before the first one has cleaned up still choose a whole one.
    return last_whole(output / CHECKPOINTS)


def _held(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{file} is damaged ({error}); remove the folder and start again"
        raise DataError(msg) from error
    return held


def _decisive(recipe: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for section, values in recipe.items():
        if isinstance(values, dict):
            for key, value in values.items():
                if key not in _HARMLESS.get(section, ()):
                    flat[f"{section}.{key}"] = value
    return flat


def _check_same(held: dict[str, Any], record: dict[str, Any], output: Path) -> None:
    before, now = _decisive(held["recipe"]), _decisive(record["recipe"])
    changed = [
        f"{key} was {before.get(key)!r} and is {now[key]!r}" for key in now if before.get(key) != now[key]
    ]
    if changed:
        msg = f"the run in {output} has another recipe: {'; '.join(changed)}; take its own, or another folder"
        raise ReasonEmbedError(msg)
    if held["data"] != record["data"]:
        msg = f"the run in {output} was begun with other data: give the same files, or another folder"
        raise ReasonEmbedError(msg)
    if held["world_size"] != record["world_size"]:
        logger.warning(
            "the run in %s was begun on %d processes and goes on with %d: equal but for rounding and dropout",
            output,
            held["world_size"],
            record["world_size"],
        )


def _build(
    recipe: Recipe, data: TrainingData, plan: TrainingPlan, output: Path, say: Callable[[str], None]
) -> RedapterTrainer:
    """Put model, loss, collator, evaluator and trainer together."""
    from transformers import set_seed

    from reasonembed_mteb.training.adapters import load_model
    from reasonembed_mteb.training.trainer import RedapterTrainer

    # Before the model: its adapters are drawn.
    set_seed(recipe.training.seed)
    model = load_model(recipe)
    collator = make_collator(model, recipe, plan)
    return RedapterTrainer(
        model=model,
        args=_arguments(recipe, output, plan),
        plans=plan.subsets,
        train_dataset=data.subsets,
        data_collator=collator,
        loss=make_loss(model, recipe),
        evaluator=_evaluator(recipe, output),
        metrics=MetricsFile(output / "metrics.csv"),
        keep=recipe.training.keep,
        say=say,
    )


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


def make_loss(model: SentenceTransformer, recipe: Recipe) -> nn.Module:
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
    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.running.resolving import resolve_tasks
    from reasonembed_mteb.training.evaluating import TaskEvaluator

    register()
    tasks = resolve_tasks([], recipe.evaluation.tasks)
    return TaskEvaluator(tasks, recipe.model.template, output / "evaluation.csv" if is_main() else None)


def _arguments(recipe: Recipe, output: Path, plan: TrainingPlan) -> SentenceTransformerTrainingArguments:
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
        use_cpu=_on_cpu(),
        save_strategy="steps",
        save_steps=part.save_steps or _NEVER,
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


def training_prompts(recipe: Recipe, data: TrainingData) -> dict[str, str]:
    """Return the prompts that a model was trained with, by subset.

    Args:
        recipe: The recipe.
        data: The rows.

    Returns:
        The full prefix by subset, where its rows share one; ``query`` too, where all subsets do; and
        ``document`` where documents have one.
    """
    from reasonembed_mteb.prompts import query_prefix
    from reasonembed_mteb.training.collator import instruction_of

    found: dict[str, str] = {"document": recipe.model.document_prefix} if recipe.model.document_prefix else {}
    prefixes: set[str] = set()
    for subset, rows in data.subsets.items() if recipe.model.template else ():
        own = rows.data.column("instruction").unique().to_pylist()
        texts = {
            query_prefix(
                instruction_of({"instruction": one, "subset": subset}, recipe.data.instructions),
                recipe.model.template,
            )
            for one in own
        }
        prefixes |= texts
        if len(texts) == 1:
            found[subset] = texts.copy().pop()
    if len(prefixes) == 1:
        found["query"] = prefixes.pop()
    return found


def _finish(
    model: SentenceTransformer, recipe: Recipe, data: TrainingData, record: dict[str, Any], output: Path
) -> Path | None:
    """Write the adapters, the merged model and the record, each whole."""
    from reasonembed_mteb.training.adapters import has_adapters, merge_adapters, save_adapters

    adapter = None
    if has_adapters(model):
        adapter = output / ADAPTER
        _whole_folder(adapter, lambda folder: save_adapters(model, folder))
        merge_adapters(model)
    model.prompts = dict(model.prompts) | training_prompts(recipe, data)
    record |= {"finished": True, "scores": _scores(output / "evaluation.csv")}

    def save(folder: Path) -> None:
        model.save_pretrained(str(folder), create_model_card=False)
        (folder / "README.md").write_text(card(recipe, record, model.prompts), encoding="utf-8")

    _whole_folder(output / MODEL, save)
    write_whole(output / RECORD, json.dumps(record, indent=1))
    return adapter


def _scores(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _whole_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place, then move it there."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        write(part)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        msg = f"cannot write {folder}: {error.strerror or error}; free space, then go on with --resume"
        raise ReasonEmbedError(msg) from error
