"""A run that stops half-way says what to do about it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_data import tiny_recipe, write_folder

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training.failures import explained, is_disk_full, is_out_of_memory
from reasonembed_mteb.training.plan import SMALL_BATCH, TrainingPlan
from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.run import train

if TYPE_CHECKING:
    from pathlib import Path


def full(number: int = errno.ENOSPC) -> OSError:
    return OSError(number, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        full(),
        full(errno.EDQUOT),
        full(errno.EFBIG),
        # torch's and safetensors' own writers.
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception) -> None:
    assert is_disk_full(error)
    behind = ValueError("while saving")
    behind.__cause__ = error
    assert is_disk_full(behind)
    assert not is_disk_full(PermissionError(errno.EACCES, "Permission denied"))
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError(),
    ],
)
def test_too_little_memory_is_told_from_other_errors(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def plan() -> TrainingPlan:
    memory = {"weights": 15.0, "optimizer": 1.0, "activations": 215.0, "total": 231.0}
    return TrainingPlan([], {}, {}, 9, 9, 1, memory=memory, token_memory=1e-3)


def stop(
    error: Exception, recipe: dict[str, Any], tmp_path: Path, planned: TrainingPlan | None = None
) -> str:
    """Return what is said of an error."""
    with (
        pytest.raises(ReasonEmbedError) as caught,
        explained(check_recipe(tiny_recipe("x", **recipe), "x"), None, planned or plan(), tmp_path),  # type: ignore[arg-type]
    ):
        raise error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_memory_names_the_figure_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.\nMore lines")
    monkeypatch.setattr("reasonembed_mteb.training.failures.device_memory", lambda: 24.0)
    # Of 24 GiB, 0.8 are planned with and 16 belong to the model: 3,200 tokens, in steps of 256.
    said = stop(error, {}, tmp_path)
    assert "231.0 GiB a device" in said
    assert "--set loss.mini_batch_tokens=3072 and training.checkpointing=true would" in said
    assert "estimated at 19.1 GiB with the same result" in said
    # What has just failed is not proposed again.
    again = stop(error, {"loss": {"mini_batch_tokens": 2048}}, tmp_path)
    assert "loss.mini_batch_tokens=1024" in again
    monkeypatch.setattr("reasonembed_mteb.training.failures.device_memory", lambda: 16.0)
    assert "not even the model fits" in stop(error, {}, tmp_path)


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    unknown = TrainingPlan([], {}, {}, 9, 9, 1)
    recipe = check_recipe(tiny_recipe("nobody/nothing"), "x")
    with (
        pytest.raises(ReasonEmbedError, match=rf"loss\.mini_batch_tokens={SMALL_BATCH}") as caught,
        explained(recipe, None, unknown, tmp_path),  # type: ignore[arg-type]
    ):
        raise MemoryError
    assert "GiB" not in str(caught.value)


def test_the_finished_model_is_gone_on_with_too(tmp_path: Path) -> None:
    from reasonembed_mteb.files import replacing_folder

    # Which by itself proposes another folder.
    recipe = check_recipe(tiny_recipe("x"), "x")
    with (
        pytest.raises(ReasonEmbedError, match=r"the disk is full .* go on with --resume"),
        explained(recipe, None, plan(), tmp_path),  # type: ignore[arg-type]
        replacing_folder(tmp_path / "model"),
    ):
        raise full()
    assert not list(tmp_path.iterdir())


def test_other_errors_pass(tmp_path: Path) -> None:
    recipe = check_recipe(tiny_recipe("x"), "x")
    for error in (RuntimeError("shapes"), PermissionError(errno.EACCES, "no"), ReasonEmbedError("ours")):
        with (
            pytest.raises(type(error)) as caught,
            explained(recipe, None, plan(), tmp_path),  # type: ignore[arg-type]
        ):
            raise error
        assert caught.value is error


@pytest.mark.slow
def test_a_full_disk_at_a_checkpoint_keeps_the_last_good_one(
    qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = write_folder(tmp_path / "rows", biology=13), tmp_path / "run"
    recipe = check_recipe(tiny_recipe(qwen3_dir, training={"save_steps": 1, "keep": 9}), "tiny")
    own, calls = torch.save, []

    def save(what: Any, *rest: Any, **options: Any) -> None:
        calls.append(rest)
        # The second checkpoint's first file.
        if len(calls) > held:
            raise full()
        own(what, *rest, **options)

    with monkeypatch.context() as patch:
        # A checkpoint without adapters' weights is written by three calls or so; count those of one.
        held = 1 << 30
        patch.setattr(torch, "save", save)
        train(recipe, [folder], tmp_path / "whole", cache=tmp_path / "cache")
        held, calls[:] = len(calls) // 3, []
        with pytest.raises(ReasonEmbedError, match=r"the disk is full .* go on with --resume"):
            train(recipe, [folder], output, cache=tmp_path / "cache")
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["checkpoint-1"]
    done = train(recipe, [folder], output, resume=True, cache=tmp_path / "cache")
    assert (done.steps, done.resumed) == (3, 1)
