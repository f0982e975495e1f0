"""The best checkpoint by a score, and when training stops for want of a better one."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import tiny_recipe, write_folder

from reasonembed_mteb.errors import DataError, ReasonEmbedError, UnknownNameError
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.training import building
from reasonembed_mteb.training.merging import average_checkpoints, merge
from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.run import train

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from reasonembed_mteb.training.run import Trained

SCORES = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("rows"), biology=20)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Score checkpoints by a table instead of a task; return the steps that were scored."""
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

    asked: list[int] = []

    class Table(SentenceEvaluator):
        scores = None
        tasks = (SimpleNamespace(metadata=SimpleNamespace(name="Sky", main_score="ndcg_at_10")),)

        def __call__(self, *_: Any, steps: int = -1, **__: Any) -> dict[str, float]:
            asked.append(steps)
            # The mean falls, so that nobody takes it for the task.
            return {"Sky_ndcg_at_10": SCORES[steps], "mean": 1 - steps / 10}

    monkeypatch.setattr(building, "_evaluator", lambda *_: Table())
    return asked


def run(model: Path, folder: Path, output: Path, /, *, resume: bool = False, **sections: Any) -> Trained:
    part = {"tasks": ["Sky"], "steps": 1, "best": "Sky", "patience": 2} | sections.pop("evaluation", {})
    sections = {"training": {"keep": 1}, "evaluation": part} | sections
    recipe = check_recipe(tiny_recipe(model, **sections), "tiny")
    # `Sky` is no task of MTEB, whose instruction would be asked for.
    return train(recipe, [folder], output, resume=resume, cache=output.parent / "cache")


@pytest.fixture(autouse=True)
def no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasonembed_mteb.training import run as module

    monkeypatch.setattr(module, "_instructions", lambda _: {})


def merged_weights(checkpoint: Path, model: Path) -> dict[str, Tensor]:
    """Return a checkpoint's weights, its adapter put on the base."""
    from reasonembed_mteb.training.adapters import (
        add_adapters,
        backbone,
        load_adapter_weights,
        merge_adapters,
    )

    if not (checkpoint / "adapter_config.json").is_file():
        return load_file(checkpoint / "model.safetensors")
    loaded = ReasonEmbed(str(model), device="cpu")
    add_adapters(loaded, check_recipe(tiny_recipe(model), "tiny").lora)
    load_adapter_weights(loaded, checkpoint)
    merge_adapters(loaded)
    return dict(backbone(loaded).state_dict())


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    assert found.keys() == wanted.keys()
    return all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.mark.parametrize("rank", [pytest.param(4, marks=pytest.mark.slow), 0])
def test_training_stops_and_the_best_checkpoint_is_the_model(
    qwen3_dir: Path, folder: Path, tmp_path: Path, scored: list[int], rank: int
) -> None:
    lora = {"rank": rank, "alpha": 8}
    done = run(qwen3_dir, folder, tmp_path / "run", lora=lora)
    # Of five steps: the second is best, and neither of the two after it is better.
    assert (done.steps, scored) == (4, [1, 2, 3, 4])
    checkpoints = {path.name: path for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")}
    # One is kept, and the best beside it.
    assert checkpoints.keys() == {"checkpoint-2", "checkpoint-4"}
    found = load_file(done.model / "model.safetensors")
    assert equal(found, merged_weights(checkpoints["checkpoint-2"], qwen3_dir))
    assert not equal(found, merged_weights(checkpoints["checkpoint-4"], qwen3_dir))
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["best"] == {"by": "Sky", "step": 2, "score": 0.5}
    assert "in 4 steps" in (card := (done.model / "README.md").read_text(encoding="utf-8"))
    assert "It is the checkpoint of step 2, the best by Sky." in card


@pytest.mark.slow
def test_a_killed_run_stops_where_it_would_have(
    qwen3_dir: Path, folder: Path, tmp_path: Path, scored: list[int]
) -> None:
    straight = run(qwen3_dir, folder, tmp_path / "run", training={"keep": 9})
    shutil.copytree(tmp_path / "run", tmp_path / "moved" / "run")
    for name in ("model", "adapter", "checkpoints/checkpoint-4"):
        shutil.rmtree(tmp_path / "moved" / "run" / name)
    # The best lies where the run lies now.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    scored.clear()
    done = run(qwen3_dir, folder, tmp_path / "moved" / "run", resume=True, training={"keep": 9})
    assert (done.steps, done.resumed, scored) == (4, 3, [4])
    assert equal(*(load_file(one.model / "model.safetensors") for one in (straight, done)))


def test_what_chooses_the_model_cannot_change_on_the_way(qwen3_dir: Path, tmp_path: Path) -> None:
    from reasonembed_mteb.training.run import _check_same

    def record(**part: Any) -> dict[str, Any]:
        recipe = check_recipe(tiny_recipe(qwen3_dir, evaluation=part), "tiny").model_dump()
        return {"recipe": recipe, "data": "", "world_size": 1}

    chosen = {"tasks": ["Sky"], "steps": 1, "best": "Sky"}
    for change in ({"steps": 2}, {"tasks": ["Sky", "Sea"]}, {"best": "mean"}, {"patience": 1}):
        with pytest.raises(ReasonEmbedError, match=f"evaluation.{next(iter(change))} was"):
            _check_same(record(**chosen), record(**chosen | change), tmp_path)
    # Scores alone may be taken more or less often, and a run of an earlier version goes on.
    held = record(tasks=["Sky"], steps=1)
    del held["recipe"]["evaluation"]["best"], held["recipe"]["data"]["mix"]
    _check_same(held, record(tasks=["Sky"], steps=2), tmp_path)
    mixed = record()
    mixed["recipe"]["data"]["mix"] = {"pony": {"repeats": 2}}
    with pytest.raises(ReasonEmbedError, match=r"data.mix was \{\} and is"):
        _check_same(held, mixed, tmp_path)


@pytest.mark.parametrize(("by", "best"), [pytest.param("mean", 1, marks=pytest.mark.slow), ("Sky", 5)])
def test_the_best_is_by_one_task_or_all(
    qwen3_dir: Path, folder: Path, tmp_path: Path, scored: list[int], by: str, best: int
) -> None:
    run(qwen3_dir, folder, tmp_path / "run", evaluation={"best": by, "patience": 0})
    assert scored == [1, 2, 3, 4, 5]
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["best"]["step"] == best


def test_a_task_that_is_not_scored_is_named(
    qwen3_dir: Path, folder: Path, tmp_path: Path, scored: list[int]
) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'Sky'"):
        run(qwen3_dir, folder, tmp_path / "run", evaluation={"best": "Sly"})
    assert not scored


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"best": "Sky"}, "needs evaluation.tasks"),
        ({"best": "Sky", "tasks": ["Sky"]}, "evaluation.steps"),
        ({"patience": 2, "tasks": ["Sky"], "steps": 1}, "needs evaluation.best"),
    ],
)
def test_settings_that_need_others_say_so(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ReasonEmbedError, match=message):
        check_recipe(tiny_recipe("any", evaluation=part), "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(4, marks=pytest.mark.slow), 0])
def test_the_last_checkpoints_are_averaged(qwen3_dir: Path, folder: Path, tmp_path: Path, rank: int) -> None:
    lora = {"rank": rank, "alpha": 8}
    training = {"save_steps": 1, "keep": 4}
    recipe = check_recipe(tiny_recipe(qwen3_dir, lora=lora, training=training), "tiny")
    train(recipe, [folder], tmp_path / "run", cache=tmp_path / "cache")
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name[11:] for path in kept] == ["2", "3", "4", "5"]
    # One that was cut off does not count.
    (kept[1] / "trainer_state.json").unlink()
    out = average_checkpoints(tmp_path / "run", tmp_path / "out", last=3)
    one, two, three = (merged_weights(kept[place], qwen3_dir) for place in (0, 2, 3))
    if rank:
        # An adapter with the run's prompts, which upon its base is the mean of what they make.
        assert (out / "adapter_config.json").is_file()
        whole = merge([out, qwen3_dir], [1, 0], tmp_path / "whole")
        adapted, plain = (ReasonEmbed(str(path), device="cpu") for path in (out, whole))
        assert adapted.prompts == plain.prompts
        assert plain.prompts["query"] == "Instruct: Given a post, retrieve passages.\nQuery: "
        found = (torch.tensor(model.encode_query(["Why is the sky blue?"])) for model in (adapted, plain))
        torch.testing.assert_close(*found, rtol=0, atol=1e-5)
        out = whole
    for name, value in load_file(out / "model.safetensors").items():
        wanted = (one[name].double() + two[name].double() + three[name].double()) / 3
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-7)
    newest = average_checkpoints(tmp_path / "run", tmp_path / "newest", last=2)
    file = newest / ("merge.json" if rank else "config_sentence_transformers.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    inputs = (record if rank else record["merge"])["inputs"]
    assert [one["model"] for one in inputs] == ["checkpoint-4", "checkpoint-5"]
    with pytest.raises(DataError, match="has 3 whole checkpoints and the last 4"):
        average_checkpoints(tmp_path / "run", tmp_path / "more", last=4)
    with pytest.raises(DataError, match="there is no folder"):
        average_checkpoints(tmp_path / "gone", tmp_path / "more")
    with pytest.raises(DataError, match="between 2 and"):
        average_checkpoints(tmp_path / "run", tmp_path / "more", last=1)
