"""Training a reranker: graded lists from rows, and runs of tiny models."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from evaluation_data import save_bert
from safetensors.torch import load_file

from reasonembed_mteb.errors import DataError, ReasonEmbedError, UnknownNameError
from reasonembed_mteb.models.cross_encoder import CrossEncoderReranker
from reasonembed_mteb.training.callback import GuardCallback
from reasonembed_mteb.training.checkpoints import checkpoints
from reasonembed_mteb.training.data import load_training_data
from reasonembed_mteb.training.divergence import DivergedError, DivergenceGuard
from reasonembed_mteb.training.reranking import RerankerSettings, graded_lists, train_reranker

if TYPE_CHECKING:
    from pathlib import Path

GRADED = {"query": "q", "pos": ["a", "b"], "neg": ["c", "d"], "pos_scores": [5, 4], "neg_scores": [2, 1]}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "biology.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lists(file: Path, **settings: Any) -> list[dict[str, Any]]:
    data = load_training_data([file], cache=file.parent / "cache")
    return list(graded_lists(data, RerankerSettings(**settings)))


def test_grades_become_labels(tmp_path: Path) -> None:
    (row,) = lists(write(tmp_path, GRADED))
    assert dict(zip(row["documents"], row["labels"], strict=True)) == {"a": 1, "b": 0.75, "c": 0.25, "d": 0}


def test_ungraded_documents_are_one_and_zero(tmp_path: Path) -> None:
    (row,) = lists(write(tmp_path, {"query": "q", "pos": ["a"], "neg": ["c"]}), instruction="Find: ")
    assert row == {"query": "Find: q", "documents": ["a", "c"], "labels": [1, 0]}


def test_negatives_are_drawn_and_keep_a_place(tmp_path: Path) -> None:
    rows = {"query": "q", "pos": [f"p{i}" for i in range(9)], "neg": [f"n{i}" for i in range(9)]}
    file = write(tmp_path, rows)
    (row,) = lists(file, documents=4)
    assert [text[0] for text in row["documents"]] == ["p", "p", "p", "n"]
    assert lists(file, documents=4) == [row]
    drawn = {lists(file, documents=4, seed=seed)[0]["documents"][-1] for seed in range(12)}
    assert len(drawn) > 3


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lowest": 2.0}, "grade 1 is not between 2 and 5"),
        ({"highest": 4.0}, "grade 5 is not between 1 and 4"),
    ],
)
def test_a_grade_outside_the_scale_is_refused(settings: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        lists(write(tmp_path, GRADED), **settings)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown loss 'lamda'; did you mean 'lambda'"):
        RerankerSettings(loss="lamda")
    with pytest.raises(ReasonEmbedError, match="from 5 to 1 leave no room"):
        RerankerSettings(lowest=5, highest=1)
    with pytest.raises(ReasonEmbedError, match="leave no room"):
        RerankerSettings(highest=float("nan"))
    with pytest.raises(ReasonEmbedError, match="two documents or more"):
        RerankerSettings(documents=1)
    # Nothing would be trained, and saved as finished.
    for epochs in (0, -1, float("nan")):
        with pytest.raises(ReasonEmbedError, match=r"epochs is .*: give a number above 0"):
            RerankerSettings(epochs=epochs)
    with pytest.raises(ReasonEmbedError, match="seed is -1: give a whole number from 0"):
        RerankerSettings(seed=-1)
    with pytest.raises(ReasonEmbedError, match="learning_rate is nan"):
        RerankerSettings(learning_rate=float("nan"))


def made_up(folder: Path) -> Path:
    """Write rows of which the one word tells what is relevant."""
    words = ["root", "leaf", "cell", "soil"]
    rows = [
        {
            "query": word,
            "pos": [f"{word} {word}"],
            "neg": [f"{other} {other}" for other in words if other != word],
        }
        for word in words
    ]
    return write(folder, *(rows * 6))


@pytest.mark.parametrize("loss", ["lambda", pytest.param("bce", marks=pytest.mark.slow)])
def test_a_reranker_learns_and_is_loaded(loss: str, tmp_path: Path) -> None:
    model = save_bert(tmp_path / "cross", head=True)
    file = made_up(tmp_path / "data")
    settings = RerankerSettings(loss=loss, epochs=2, batch_size=8, learning_rate=1e-2, save_steps=3)
    found = train_reranker(str(model), [file], tmp_path / "run", settings, device="cpu")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"]
    assert record["steps"] == (6 if loss == "lambda" else 24)
    assert record["settings"]["loss"] == loss
    pairs = [("root", "root root"), ("root", "soil soil")]
    before = CrossEncoderReranker(str(model), device="cpu").score(pairs)
    after = CrossEncoderReranker(str(found), device="cpu").score(pairs)
    assert np.isfinite(after).all()
    assert not np.allclose(before, after)
    with pytest.raises(ReasonEmbedError, match="go on with the run in it by --resume"):
        train_reranker(str(model), [file], tmp_path / "run", settings, device="cpu")
    other = RerankerSettings(loss=loss, epochs=1)
    with pytest.raises(ReasonEmbedError, match="a run with another settings: give a new folder"):
        train_reranker(str(model), [file], tmp_path / "run", other, device="cpu", resume=True)


@pytest.mark.slow
def test_a_run_that_diverged_keeps_good_checkpoints_and_saves_no_model(tmp_path: Path) -> None:
    model = save_bert(tmp_path / "cross", head=True)
    settings = RerankerSettings(epochs=4, batch_size=8, learning_rate=1e30, save_steps=1, documents=2)
    with pytest.raises(DivergedError, match="after 3 retries in a row") as caught:
        train_reranker(str(model), [made_up(tmp_path / "data")], tmp_path / "run", settings, device="cpu")
    # By the names of this training's own options.
    assert "a lower --learning-rate" in str(caught.value)
    assert "training." not in str(caught.value)
    kept = checkpoints(tmp_path / "run" / "checkpoints")
    assert kept
    for _, folder in kept:
        assert all(value.isfinite().all() for value in load_file(folder / "model.safetensors").values())
    assert not (tmp_path / "run" / "model").exists()
    assert not json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_left_out(spoiled: str) -> None:
    model, loss, state = torch.nn.Linear(2, 1), torch.nn.MSELoss(), SimpleNamespace(global_step=2)
    guard, optimizer = DivergenceGuard(1), torch.optim.AdamW(model.parameters(), 1e-2)
    callback, before = GuardCallback(guard, loss), model.weight.detach().clone()

    def step(scale: float) -> None:
        result = loss(model(torch.ones(1, 2)) * (scale if spoiled == "loss" else 1), torch.ones(1, 1))
        result.backward()
        for weight in model.parameters() if spoiled == "gradient" else ():
            weight.grad *= scale
        known: Any = {"model": model, "optimizer": optimizer}
        callback.on_pre_optimizer_step(None, state, None, **known)  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()

    step(torch.nan)
    assert guard.left_out == 1
    torch.testing.assert_close(model.weight, before)
    step(1.0)
    assert not model.weight.equal(before)
    step(torch.inf)
    with pytest.raises(DivergedError, match="step 3 is not finite"):
        step(torch.nan)


def test_weights_that_are_not_finite_are_not_saved() -> None:
    model = torch.nn.Linear(2, 1)
    callback = GuardCallback(DivergenceGuard(settings="a lower rate"), torch.nn.MSELoss())
    torch.nn.init.constant_(model.bias, torch.inf)
    state: Any = SimpleNamespace(global_step=7)
    for saving in (False, True):
        control: Any = SimpleNamespace(should_save=saving)
        with pytest.raises(DivergedError, match=r"step 7 .*a lower rate") if saving else nullcontext():
            callback.on_step_end(None, state, control, model=model)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_stopped_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers.cross_encoder import CrossEncoderTrainer

    model = save_bert(tmp_path / "cross", head=True)
    file = made_up(tmp_path / "data")
    settings = RerankerSettings(epochs=2, batch_size=8, learning_rate=1e-2, save_steps=2)
    whole = train_reranker(str(model), [file], tmp_path / "whole", settings, device="cpu")
    step = CrossEncoderTrainer.training_step

    steps: list[int] = []

    def count(self: Any, *arguments: Any, **options: Any) -> Any:
        steps.append(self.state.global_step)
        return step(self, *arguments, **options)

    def stop(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(CrossEncoderTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_reranker(str(model), [file], tmp_path / "stopped", settings, device="cpu")
    assert not (tmp_path / "stopped" / "model").exists()
    # A newer one that was cut off while it was written is none.
    half = tmp_path / "stopped" / "checkpoints" / "checkpoint-3"
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    monkeypatch.setattr(CrossEncoderTrainer, "training_step", count)
    found = train_reranker(str(model), [file], tmp_path / "stopped", settings, device="cpu", resume=True)
    # The checkpoint was of step 2.
    assert steps == [2, 3, 4, 5]
    pairs = [("root", "root root"), ("leaf", "soil soil")]
    one, other = (CrossEncoderReranker(str(one), device="cpu").score(pairs) for one in (whole, found))
    np.testing.assert_array_equal(one, other)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    model, file = str(save_bert(tmp_path / "cross", head=True)), made_up(tmp_path / "data")
    with pytest.raises(ReasonEmbedError, match="is a file: name a folder"):
        train_reranker(model, [file], file, device="cpu")
    (tmp_path / "run").mkdir()
    for record in ("{", '{"recipe": {}}'):
        (tmp_path / "run" / "run.json").write_text(record)
        with pytest.raises(DataError, match=r"run\.json is damaged, or no record of such a run"):
            train_reranker(model, [file], tmp_path / "run", device="cpu", resume=True)


def test_grades_out_of_scale_leave_the_folder_to_another_try(tmp_path: Path) -> None:
    model, file = str(save_bert(tmp_path / "cross", head=True)), write(tmp_path / "data", GRADED)
    with pytest.raises(DataError, match="grade 5 is not between 1 and 4"):
        train_reranker(model, [file], tmp_path / "run", RerankerSettings(highest=4), device="cpu")
    assert not (tmp_path / "run" / "run.json").exists()


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match=r"cannot load .* as a cross-encoder"):
        train_reranker(str(tmp_path / "gone"), [made_up(tmp_path / "data")], tmp_path / "run", device="cpu")
