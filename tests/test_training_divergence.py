"""Runs that diverge: they stop, say what to do, and leave the last good checkpoint."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_data import tiny_recipe, write_folder

from reasonembed_mteb.training.checkpoints import checkpoints, is_whole
from reasonembed_mteb.training.divergence import DivergedError, DivergenceGuard, check_weights
from reasonembed_mteb.training.losses import RedapterLoss
from reasonembed_mteb.training.metrics import read_metrics
from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.run import train
from reasonembed_mteb.training.trainer import RedapterTrainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def guard_after(*steps: tuple[float, float], retries: int = 2, scaler: Any = None) -> DivergenceGuard:
    """Return a guard that has seen steps of a loss and a gradient's norm."""
    guard = DivergenceGuard(retries)
    for number, (loss, norm) in enumerate(steps, 1):
        guard.see_loss(loss, "biology")
        guard.see_norm(norm)
        guard.end_step(number, bad=guard.is_bad(scaler))
    return guard


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)])
def test_too_many_bad_steps_in_a_row_end_the_run(bad: tuple[float, float]) -> None:
    assert guard_after(bad, bad, (1.0, 1.0), bad, bad).left_out == 4
    with pytest.raises(
        DivergedError, match=r"step 3 is not finite .*subset biology.*after 2 retries in a row"
    ) as e:
        guard_after(bad, bad, bad)
    assert "lower training.learning_rate" in str(e.value)
    assert "\n" not in str(e.value)
    with pytest.raises(DivergedError, match="step 1 is not finite"):
        guard_after(bad, retries=0)


def test_one_bad_batch_of_an_accumulated_step_counts() -> None:
    guard = DivergenceGuard(0)
    for loss in (1.0, math.nan, 1.0):
        guard.see_loss(loss)
    assert guard.is_bad()


def test_a_scaler_s_own_skipped_steps_are_no_divergence() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    assert guard_after(*[(1.0, math.inf)] * 9, retries=0, scaler=scaler).left_out == 0
    # A loss that is not finite is no overflow of the scaled gradient.
    with pytest.raises(DivergedError):
        guard_after((math.nan, math.nan), retries=0, scaler=scaler)
    # Nor is there an end while the scale can only be made smaller than the gradient itself.
    spent = torch.amp.GradScaler("cpu", init_scale=1.0)
    with pytest.raises(DivergedError):
        guard_after((1.0, math.inf), retries=0, scaler=spent)


def test_weights_that_are_not_finite_are_named() -> None:
    model = torch.nn.Linear(2, 2)
    check_weights(model, 3)
    with torch.no_grad():
        model.bias[1] = math.inf
    with pytest.raises(DivergedError, match="after step 3 the weight bias is not finite"):
        check_weights(model, 3)


def test_shares_that_are_not_finite_are_named() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(DivergedError, match="of another process' share is not finite"):
        check_weights(model, 3, lambda _: True)
    # What ZeRO-3 keeps of a weight, whose own values are let go.
    model.weight.ds_tensor = torch.tensor([math.nan])  # type: ignore[assignment]
    with pytest.raises(DivergedError, match="after step 3 the weight weight is not finite"):
        check_weights(model, 3)


@pytest.fixture
def run(qwen3_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains up to ten steps in a folder, a checkpoint a step, one of them kept."""
    data = write_folder(tmp_path / "data", biology=8)

    def start(*, resume: bool = False, **sections: Any) -> Path:
        training = {"save_steps": 1, "keep": 1, "epochs": 5} | sections.pop("training", {})
        recipe = check_recipe(tiny_recipe(qwen3_dir, training=training, **sections), "tiny")
        train(recipe, [data], tmp_path / "run", cache=tmp_path / "cache", resume=resume)
        return tmp_path / "run"

    return start


def spoil(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool], what: str = "loss") -> None:
    """Have losses, or only their gradients, be NaN at some steps."""
    original = RedapterLoss._loss_of  # type: ignore[attr-defined]

    def spoiled(self: Any, *arguments: Any, **options: Any) -> Any:
        loss = original(self, *arguments, **options)
        if not (torch.is_grad_enabled() and bad(self.global_step)):
            return loss
        if what == "gradient":
            loss.register_hook(lambda gradient: gradient * math.nan)
            return loss
        return loss * math.nan

    monkeypatch.setattr(RedapterLoss, "_loss_of", spoiled)


KINDS: dict[str, Any] = {
    "adapters": {},
    "every weight": {"lora": {"rank": 0}},
    "cached": {"loss": {"mini_batch_size": 2}},
    "packed": {"training": {"packed": True}},
    "accumulated": {"training": {"accumulation": 2, "epochs": 10}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_that_diverged_keeps_the_last_good_checkpoint(
    kind: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda step: step >= 3)
    with pytest.raises(DivergedError, match="step 7 is not finite"):
        run(**KINDS[kind])
    ((step, kept),) = checkpoints(tmp_path / "run" / "checkpoints")
    assert is_whole(kept)
    assert not (tmp_path / "run" / "model").exists()
    assert '"finished": false' in (tmp_path / "run" / "run.json").read_text()
    # What was seen is written, and weights stopped moving before the first bad step.
    assert read_metrics(tmp_path / "run")[-1]["step"] == 7
    from safetensors.torch import load_file

    files = list(kept.rglob("*.safetensors"))
    assert files
    assert all(value.isfinite().all() for file in files for value in load_file(file).values())
    assert 3 <= step <= 6
    # What had gone wrong is mended: the run goes on, and ends.
    monkeypatch.undo()
    run(**KINDS[kind], resume=True)
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("what", ["loss", pytest.param("gradient", marks=pytest.mark.slow)])
def test_a_bad_step_is_left_out_and_the_run_goes_on(
    what: str, run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, lambda step: step in (1, 2, 4), what)
    output = run(training={"retries": 2, "epochs": 3})
    assert (output / "model").is_dir()
    assert caplog.text.count("it is left out") == 3
    assert "2 of at most 2 in a row" in caplog.text
    assert json.loads((output / "run.json").read_text())["left_out_steps"] == 3
    assert "3 of these steps were left out" in (output / "model" / "README.md").read_text()


def test_weights_that_one_step_spoils_are_not_saved(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loss before it is finite, and there may be no batch after it.
    end = RedapterTrainer.end_step

    def spoiled(self: RedapterTrainer) -> None:
        end(self)
        if self.state.global_step == 3:
            next(p for p in self.model.parameters() if p.requires_grad).data.fill_(math.inf)

    monkeypatch.setattr(RedapterTrainer, "end_step", spoiled)
    with pytest.raises(DivergedError, match=r"after step 3 the weight .*lora.* is not finite"):
        run()
    assert [step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")] == [2]


def test_a_model_that_is_broken_already_stops_at_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda _: True)
    with pytest.raises(DivergedError, match=r"step 1 is not finite .*after 0 retries"):
        run(training={"retries": 0})


def test_the_command_says_it_in_one_line(
    qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from reasonembed_mteb.cli import main
    from reasonembed_mteb.training.modelcard import write_toml

    spoil(monkeypatch, lambda _: True)
    data = write_folder(tmp_path / "data", biology=8)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        write_toml(check_recipe(tiny_recipe(qwen3_dir, training={"retries": 0}), "t").model_dump())
    )
    command = ["reasonembed", "train", str(recipe), "--data", str(data), "--output", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code not in (0, None)
    assert "the training diverged: step 1" in capsys.readouterr().err
