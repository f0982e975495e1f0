"""A training run from its recipe to what it leaves: the merged model with prompts and card, the adapters."""

from __future__ import annotations

import atexit
import csv
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.files import package_versions, read_json_object, replacing_folder, write_whole
from reasonembed_mteb.training.building import CHECKPOINTS, build_trainer, is_main, on_cpu
from reasonembed_mteb.training.checkpoints import last_whole, remove_broken
from reasonembed_mteb.training.cuts import mean_cut, warn_of_cuts
from reasonembed_mteb.training.data import ReadOptions, describe_counts, load_training_data
from reasonembed_mteb.training.failures import explained
from reasonembed_mteb.training.metrics import summarise
from reasonembed_mteb.training.modelcard import card, write_toml
from reasonembed_mteb.training.plan import plan_training, sample_rows
from reasonembed_mteb.training.registry import recipe_kind
from reasonembed_mteb.training.requirements import check_processes, check_requirements
from reasonembed_mteb.training.schema import Recipe
from reasonembed_mteb.training.sharding import check_sharding_devices, saved_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from reasonembed_mteb.training.collator import GroupCollator
    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.plan import TrainingPlan
    from reasonembed_mteb.training.trainer import RedapterTrainer

logger = logging.getLogger(__name__)

RECORD = "run.json"
MODEL = "model"
ADAPTER = "adapter"
# Keys that change neither a batch nor, but for rounding and dropout, a weight.
_HARMLESS = {
    "loss": ("mini_batch_size", "mini_batch_tokens"),
    "training": ("save_steps", "keep", "retries", "log_steps", "workers", "report_to", "checkpointing"),
    "evaluation": ("tasks", "steps"),
    "sharding": ("reshard", "cpu_offload"),
}
_PACKAGES = ("reasonembed-mteb", "sentence-transformers", "transformers", "torch", "peft", "accelerate")


def training_prompts(recipe: Recipe, data: TrainingData) -> dict[str, str]:
    """Return the prompts of a trained model: what stood before each text in training, and nothing else.

    Args:
        recipe: The recipe, whose template goes before every query; without one nothing does.
        data: The rows.

    Returns:
        The full prefix of every task of ours and of every evaluation task by MTEB's key; of each subset whose
        rows share one; ``query`` too, where all subsets do; and ``document``.
    """
    found = {"document": recipe.model.document_prefix} | {
        f"{task}-query": recipe.model.prefix(instruction)
        for task, instruction in _instructions(recipe).items()
    }
    prefixes = {name: _subset_prefixes(recipe, name, rows) for name, rows in data.subsets.items()}
    found |= {name: next(iter(texts)) for name, texts in prefixes.items() if len(texts) == 1}
    together = set().union(*prefixes.values())
    return found | ({"query": together.pop()} if len(together) == 1 else {})


def _instructions(recipe: Recipe) -> dict[str, str]:
    """Return the instruction of every task of our tables, and of the tasks that the recipe evaluates on."""
    from reasonembed_mteb.retrieval.rows import task_instructions

    found = dict(task_instructions())
    if all(name in found for name in recipe.evaluation.tasks):
        return found
    from reasonembed_mteb.models.instructions import instruction_of
    from reasonembed_mteb.training.evaluator import evaluation_tasks

    tasks = [task.metadata for task in evaluation_tasks(recipe.evaluation.tasks)]
    return {task.name: instruction_of(task) for task in tasks} | found


def _subset_prefixes(recipe: Recipe, subset: str, rows: Dataset) -> set[str]:
    """Return every prefix that stood before a query of a subset."""
    from reasonembed_mteb.training.collator import row_instruction

    own = rows.data.column("instruction").unique().to_pylist()
    given = [row_instruction({"instruction": one, "subset": subset}, recipe.data.instructions) for one in own]
    return {recipe.model.prefix(instruction) for instruction in given}


def save_run(
    model: SentenceTransformer,
    recipe: Recipe,
    record: dict[str, Any],
    output: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> Path | None:
    """Write the adapters, the merged model and the record, each whole.

    Args:
        model: The trained model; its adapters are merged.
        recipe: What was trained, and how.
        record: The run's record.
        output: Folder of the run.
        weights: The whole weights of a model that is shared out over processes.

    Returns:
        The folder of the adapters, or None.

    Raises:
        ReasonEmbedError: If the disk is full, or an adapter not finite.
    """
    from reasonembed_mteb.training.adapters import (
        has_adapters,
        merge_adapters,
        on_whole_weights,
        save_adapters,
    )

    adapter = None
    if has_adapters(model):
        adapter = output / ADAPTER
        with replacing_folder(adapter, replace=True) as folder:
            save_adapters(model, folder)
        model = on_whole_weights(model, recipe, adapter)
        merge_adapters(model)
    summary = summarise(output / "metrics.csv")
    record |= {"finished": True, "scores": _scores(output / "evaluation.csv")}
    record |= {
        "weighted_steps": summary.weighted,
        "left_out_steps": summary.left_out,
        "reasoning_cut": plain_numbers(summary.cut),
    }
    with replacing_folder(output / MODEL, replace=True) as folder:
        with saved_whole(model, weights):
            model.save_pretrained(str(folder), create_model_card=False)
        recipe_kind(recipe).finish(model, recipe, folder)
        (folder / "README.md").write_text(card(recipe, record, model.prompts), encoding="utf-8")
    write_whole(output / RECORD, json.dumps(record, indent=1))
    return adapter


def plain_numbers(values: Mapping[str, float]) -> dict[str, float]:
    """Return what JSON can hold: NaN is left out.

    Args:
        values: By name.
    """
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _scores(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


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


def read_data(
    recipe: Recipe, sources: Sequence[str | Path] | TrainingData, cache: Path | None = None
) -> TrainingData:
    """Read a recipe's data; on several processes the first of each machine reads, the others wait.

    Args:
        recipe: Says how rows are read, and which need negatives.
        sources: Files, folders, or data read before.
        cache: Folder for checked rows; None takes the one of `datasets`.

    Returns:
        The data.
    """
    if not isinstance(sources, (list, tuple)):
        return sources  # type: ignore[return-value]
    from accelerate import PartialState  # type: ignore[import-untyped]
    from datasets import config

    options = ReadOptions(recipe.data.invalid, recipe.data.missing_reasoning)
    folder = cache or Path(config.HF_DATASETS_CACHE) / "reasonembed-training"
    with PartialState(cpu=on_cpu()).local_main_process_first():
        return load_training_data(
            sources,
            cache=folder,
            options=options,
            needs_negatives=recipe.batch.needs_negatives,
        )


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
    check_output(output, resume=resume)
    check_requirements(recipe)
    # An unknown task is named before the rows are read, too.
    _instructions(recipe)
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu())
    check_processes(state.num_processes, recipe.training.precision)
    check_sharding_devices(recipe, state.num_processes)
    data = read_data(recipe, sources, cache)
    plan = plan_training(recipe, data, state.num_processes)
    record = _record(recipe, data, plan)
    start = _last_of_same(output, record, main=state.is_main_process)
    speak = say if state.is_main_process else logger.debug
    _say_plan(plan, data, start, speak)
    trainer = build_trainer(recipe, data, plan, output, say)
    for rows in data.subsets.values():
        # In every process: one that stopped alone would leave the others waiting.
        trainer.group_collator.check_room(sample_rows(rows))
    if state.is_main_process:
        _warn_of_cuts(trainer.group_collator, data)
    # Before the first step: evaluations and checkpoints have the prompts that the finished model has.
    trainer.model.prompts = dict[str, str | None](training_prompts(recipe, data))
    # Only now, and on every process: what cannot be built leaves the folder to another try.
    state.wait_for_everyone()
    if state.is_main_process and not (output / RECORD).is_file():
        write_whole(output / RECORD, json.dumps(record, indent=1))
        write_whole(output / "recipe.toml", write_toml(record["recipe"]).strip() + "\n")
    step = int(start.name.rpartition("-")[2]) if start else 0
    if state.is_main_process:
        for file in (trainer.metrics_file, getattr(trainer.evaluator, "scores", None)):
            if file is not None:
                file.start(step)
    with explained(recipe, data, plan, output):
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        if recipe.evaluation.tasks and not recipe.evaluation.steps:
            trainer.evaluate()
        state.wait_for_everyone()
        adapter, weights = None, trainer.whole_weights()
        if state.is_main_process:
            record |= _best(recipe, trainer)
            adapter = save_run(trainer.model, recipe, record, output, weights)
        state.wait_for_everyone()
    # Only after a run that ended well: after an error the others may never come to leave.
    atexit.register(_leave_group)
    return Trained(output / MODEL, adapter, trainer.state.global_step, step)


def _leave_group() -> None:
    """Leave the group of processes: its threads abort a process that ends with them, finished run or not."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _say_plan(plan: TrainingPlan, data: TrainingData, start: Path | None, say: Callable[[str], None]) -> None:
    say(
        f"{data.rows:,} rows of {len(data.subsets)} subsets, {plan.steps:,} steps "
        f"({describe_counts(data.counts)})"
    )
    for note in plan.notes:
        say(note)
    if start:
        say(f"going on from {start.name}")


def _warn_of_cuts(collator: GroupCollator, data: TrainingData) -> None:
    """Say before the first step where the length cuts the reasoning away."""
    if collator.with_reasoning:
        cuts = {name: mean_cut(collator.cuts(sample_rows(rows))) for name, rows in data.subsets.items()}
        warn_of_cuts(cuts, collator.reasoning_limit)


def check_output(output: Path, *, resume: bool) -> None:
    """Check that a run may be written to a folder.

    Args:
        output: The folder.
        resume: Whether a run in it is gone on with.

    Raises:
        ReasonEmbedError: If it is a file, or holds something.
    """
    if not output.exists():
        return
    if not output.is_dir():
        msg = f"{output} is a file: name a folder"
        raise ReasonEmbedError(msg)
    # Of several processes the first one may have begun to write. Folders in which nothing lies are nothing.
    if not resume and is_main() and any(not path.is_dir() for path in output.rglob("*")):
        msg = f"{output} is not empty: go on with the run in it by --resume, or name another folder"
        raise ReasonEmbedError(msg)


def _record(recipe: Recipe, data: TrainingData, plan: TrainingPlan) -> dict[str, Any]:
    return {
        "format": 1,
        "recipe": recipe.model_dump(),
        "data": data.key,
        "counts": {name: dict(counts) for name, counts in data.counts.items()},
        "short_rows": plan.short_rows,
        "steps": plan.steps,
        "world_size": plan.world_size,
        "versions": package_versions(_PACKAGES),
        "finished": False,
    }


def _best(recipe: Recipe, trainer: RedapterTrainer) -> dict[str, Any]:
    """Return which checkpoint became the model, where that was chosen by a score."""
    if not recipe.evaluation.best:
        return {}
    state = trainer.state
    chosen = {"by": recipe.evaluation.best, "step": state.best_global_step, "score": state.best_metric}
    return {"best": chosen, "steps_made": state.global_step}


def _last_of_same(output: Path, record: dict[str, Any], *, main: bool) -> Path | None:
    """Check a run that is there against this one, and return the checkpoint to go on from."""
    held = held_record(output / RECORD, "recipe")
    if held is not None:
        _check_same(held, record, output)
    if main:
        remove_broken(output / CHECKPOINTS)
    # Processes that look before the first one has cleaned up still choose a whole one.
    return last_whole(output / CHECKPOINTS)


def held_record(file: Path, wanted: str) -> dict[str, Any] | None:
    """Return the record of the run that a folder holds, None where there is none.

    Args:
        file: The record.
        wanted: What the record of such a run has.

    Raises:
        DataError: If it is damaged, or that of something else.
    """
    if not file.is_file():
        return None
    held = read_json_object(file)
    if held is None or wanted not in held:
        msg = f"{file} is damaged, or no record of such a run; remove it, or name another folder"
        raise DataError(msg)
    return held


def _decisive(recipe: dict[str, Any]) -> dict[str, Any]:
    # Scores decide nothing, unless the best of them chooses the model.
    scored = bool(recipe.get("evaluation", {}).get("best"))
    flat = {}
    for section, values in recipe.items():
        if isinstance(values, dict):
            for key, value in values.items():
                if key not in _HARMLESS.get(section, ()) or (section == "evaluation" and scored):
                    flat[f"{section}.{key}"] = value
    return flat


def _check_same(held: dict[str, Any], record: dict[str, Any], output: Path) -> None:
    # A run of an earlier version had none of the settings that came since.
    before = _decisive(Recipe(name="").model_dump()) | _decisive(held["recipe"])
    now = _decisive(record["recipe"])
    changed = [
        f"{key} was {before.get(key)!r} and is {now[key]!r}" for key in now if before.get(key) != now[key]
    ]
    if changed:
        msg = f"the run in {output} has another recipe: {'; '.join(changed)}; take its own, or another folder"
        raise ReasonEmbedError(msg)
    if held["data"] != record["data"]:
        msg = f"the run in {output} was begun with other data: give the same files, or another folder"
        raise ReasonEmbedError(msg)
    alike = held["world_size"] == record["world_size"]
    if not alike and record["recipe"]["sharding"]["kind"] == "zero3":
        msg = (
            f"the run in {output} was begun on {held['world_size']} processes, each of which has a part of "
            f"the checkpoint, and {record['world_size']} run now: start {held['world_size']}, or name "
            "another folder"
        )
        raise ReasonEmbedError(msg)
    if not alike:
        logger.warning(
            "the run in %s was begun on %d processes and goes on with %d: equal but for rounding and dropout",
            output,
            held["world_size"],
            record["world_size"],
        )
