"""What is missing is said before any row is read."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
from training_data import tiny_recipe

from reasonembed_mteb.errors import MissingExtraError, ReasonEmbedError, UnknownNameError
from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.requirements import check_processes, check_requirements, check_trackers
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


ONLY_CUDA = [
    ({"lora": {"quantize": True}}, r"lora\.quantize=true needs a CUDA GPU.*--set lora\.quantize=false"),
    (
        {"training": {"optimizer": "adamw_8bit"}},
        r"8bit needs a CUDA GPU.*--set training\.optimizer=adamw",
    ),
    ({"training": {"precision": "fp16"}}, r"fp16 needs a CUDA GPU.*--set training\.precision=fp32"),
]


@pytest.mark.parametrize(("sections", "words"), ONLY_CUDA)
def test_what_needs_a_card_is_refused_without(
    sections: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ReasonEmbedError, match=words):
        check_requirements(check_recipe(tiny_recipe("x", **sections), "tiny"))


@pytest.mark.parametrize("sections", [sections for sections, _ in ONLY_CUDA[:2]])
def test_with_a_card_the_extra_is_named(sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    recipe = check_recipe(tiny_recipe("x", **sections), "tiny")
    with monkeypatch.context() as patch:
        without("bitsandbytes", patch)
        with pytest.raises(MissingExtraError, match=r"pip install .*\[quantized\]"):
            check_requirements(recipe)
    found = importlib.util.find_spec("sys")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: found)
    check_requirements(recipe)


@pytest.mark.parametrize(("has_bf16", "stops"), [(True, False), (False, True)])
def test_a_card_without_bf16_is_told_of_fp16(
    has_bf16: bool, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    if not stops:
        return check_processes(1, "bf16")
    with pytest.raises(ReasonEmbedError, match=r"Tesla V100 has no bf16: .*training\.precision=fp16"):
        check_processes(1, "bf16")
    return check_processes(1, "fp16")


def test_a_benchmark_is_all_its_tasks(registered: None) -> None:
    from reasonembed_mteb.training.evaluator import evaluation_tasks

    tasks = evaluation_tasks(["ReasonMini", "ReasonMiniBiology"])
    names = [task.metadata.name for task in tasks]
    assert len(names) == len(set(names)) == 12
    assert "ReasonMiniBiology" in names
    with pytest.raises(UnknownNameError):
        evaluation_tasks(["ReasonMinii"])
