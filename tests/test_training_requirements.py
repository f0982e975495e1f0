"""What is missing is said before any row is read."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
from training_data import tiny_recipe

from reasonembed_mteb.errors import MissingExtraError, ReasonEmbedError, UnknownNameError
from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.requirements import check_requirements, check_trackers
from reasonembed_mteb.training.run import train

if TYPE_CHECKING:
    from pathlib import Path


def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == package else own(name))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"training": {"report_to": ["wandb"]}}, "names wandb, .*pip install wandb"),
        ({"training": {"report_to": ["wanddb"]}}, "no tracker is called 'wanddb'; there are .*wandb"),
        ({"evaluation": {"tasks": ["ReasonMiniBiologi"]}}, "did you mean 'ReasonMiniBiology'"),
    ],
)
def test_nothing_is_read_before(
    sections: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reasonembed_mteb.training.run.read_data", lambda *_: pytest.fail("read"))
    # wandb may be installed where this runs.
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    recipe = check_recipe(tiny_recipe("x", **sections), "tiny")
    with pytest.raises(ReasonEmbedError, match=words) as caught:
        train(recipe, [tmp_path], tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package", ["accelerate", "peft"])
def test_a_package_of_the_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(package, monkeypatch)
    with pytest.raises(MissingExtraError, match=f"{package} is not installed: pip install .*train"):
        check_requirements(check_recipe(tiny_recipe("x"), "tiny"))


def test_adapters_alone_need_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    without("peft", monkeypatch)
    check_requirements(check_recipe(tiny_recipe("x", lora={"rank": 0}), "tiny"))
    check_trackers(["none"])


def test_a_benchmark_is_all_its_tasks(registered: None) -> None:
    from reasonembed_mteb.training.evaluator import evaluation_tasks

    tasks = evaluation_tasks(["ReasonMini", "ReasonMiniBiology"])
    names = [task.metadata.name for task in tasks]
    assert len(names) == len(set(names)) == 12
    assert "ReasonMiniBiology" in names
    with pytest.raises(UnknownNameError):
        evaluation_tasks(["ReasonMinii"])
