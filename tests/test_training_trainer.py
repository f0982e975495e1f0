"""A run that is resumed: the same bits, wherever in an epoch or an accumulated step it was cut off."""

from __future__ import annotations

import itertools
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import tiny_recipe, write_folder

from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.run import train

if TYPE_CHECKING:
    from pathlib import Path


def run(model: Path, data: Path, output: Path, *, resume: bool = False, **training: Any) -> dict[str, Any]:
    """Train adapters for a while, a checkpoint a step, and return the metrics and the weights."""
    recipe = tiny_recipe(
        model,
        lora={"rank": 2, "targets": ["q_proj"]},
        batch={"group": 2, "queries": 2, "subsets": {}},
        training={"save_steps": 1, "keep": 99} | training,
    )
    train(check_recipe(recipe, "tiny"), [data], output, resume=resume, cache=output.parent / "cache")
    lines = (output / "metrics.csv").read_text(encoding="utf-8").splitlines()
    seen = [line.rpartition(",")[0] for line in lines]
    return {"metrics": seen} | load_file(output / "adapter" / "adapter_model.safetensors")


def check_every_cut(model: Path, folder: Path, batches: int, steps: Any = None, **training: Any) -> None:
    """Cut a run off after some of its steps, or all, and compare what it ends with."""
    data = write_folder(folder / "data", biology=2 * batches)
    whole = run(model, data, folder / "whole", **training)
    made = sorted(int(path.name[11:]) for path in (folder / "whole" / "checkpoints").iterdir())
    for step in made[:-1] if steps is None else steps:
        cut = folder / f"cut-{step}"
        shutil.copytree(folder / "whole", cut)
        for name in ("model", "adapter"):
            shutil.rmtree(cut / name)
        for later in made[made.index(step) + 1 :]:
            shutil.rmtree(cut / "checkpoints" / f"checkpoint-{later}")
        again = run(model, data, cut, resume=True, **training)
        assert again["metrics"] == whole["metrics"], (batches, training, step)
        assert all(torch.equal(again[name], whole[name]) for name in whole if name != "metrics")


@pytest.mark.slow
def test_an_epoch_that_does_not_divide_into_steps(qwen3_dir: Path, tmp_path: Path) -> None:
    # 3 batches, 2 a step: an epoch has two steps, the second of one batch.
    check_every_cut(qwen3_dir, tmp_path, 3, [3], accumulation=2, epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_any_batches_accumulation_and_epochs(seed: int, qwen3_dir: Path, tmp_path: Path) -> None:
    combinations = list(itertools.product(range(1, 8), range(1, 6), (1.0, 1.5, 2.0, 3.0)))
    batches, accumulation, epochs = random.Random(seed).choice(combinations)
    check_every_cut(qwen3_dir, tmp_path, batches, accumulation=accumulation, epochs=epochs)


@pytest.mark.slow
def test_steps_that_are_counted(qwen3_dir: Path, tmp_path: Path) -> None:
    check_every_cut(qwen3_dir, tmp_path, 5, accumulation=3, max_steps=5)
