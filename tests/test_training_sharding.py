"""Weights that are shared out over devices: what is refused, what libraries are told, what is saved."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import tiny_recipe

from reasonembed_mteb.errors import DataError, MissingExtraError, ReasonEmbedError
from reasonembed_mteb.training.adapters import load_model
from reasonembed_mteb.training.data import TrainingData
from reasonembed_mteb.training.failures import explained
from reasonembed_mteb.training.plan import SubsetTokens, TrainingPlan, estimate_memory
from reasonembed_mteb.training.recipes import check_recipe, load_recipe
from reasonembed_mteb.training.run import _check_same
from reasonembed_mteb.training.sampling import SubsetPlan
from reasonembed_mteb.training.sharding import (
    check_sharding_devices,
    fsdp_precision,
    layer_classes,
    own_share,
    saved_whole,
    sharding_arguments,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

FSDP, ZERO3 = "qwen3-4b-full-fsdp", "qwen3-8b-full-zero3"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (FSDP, "lora.rank=8", r"--set lora\.rank=0"),
        (FSDP, "loss.mini_batch_tokens=512", r"--set loss\.mini_batch_tokens=0"),
        (ZERO3, "loss.mini_batch_size=4", r"--set loss\.mini_batch_size=0"),
        (FSDP, "training.packed=true", r"--set training\.packed=false"),
        (FSDP, "training.optimizer=adamw_8bit", r"--set training\.optimizer=adamw"),
        (FSDP, "training.precision=fp16", r"--set training\.precision=bf16"),
        (ZERO3, "evaluation.tasks=['ReasonMini']", r"--set evaluation\.tasks=\[\]"),
        (ZERO3, "training.retries=3", r"--set training\.retries=0"),
        (ZERO3, "sharding.reshard=false", r"--set sharding\.reshard=true"),
        (FSDP, "sharding.kind=fsdp3", "'none', 'fsdp' or 'zero3'"),
        (FSDP, "sharding.ofload=true", "unknown key 'ofload'"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(name: str, change: str, words: str) -> None:
    with pytest.raises(ReasonEmbedError, match=words) as caught:
        load_recipe(name, [change])
    assert "\n" not in str(caught.value)


def test_rows_of_mini_batches_are_alike_everywhere() -> None:
    assert load_recipe(FSDP, ["loss.mini_batch_size=4"]).loss.mini_batch_size == 4


def test_trained_tokens_are_refused() -> None:
    with pytest.raises(ReasonEmbedError, match="cannot train single rows of the embeddings"):
        load_recipe("latent-qwen3-4b", ["sharding.kind=fsdp", "lora.rank=0"])


def test_devices_are_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(ZERO3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.xpu.is_available", lambda: False)
    with pytest.raises(ReasonEmbedError, match=r"one runs: start `torchrun --nproc-per-node N"):
        check_sharding_devices(recipe, 1)
    with pytest.raises(ReasonEmbedError, match=r"on CPUs accelerate leaves it off.*kind=none"):
        check_sharding_devices(recipe, 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(MissingExtraError, match=r"deepspeed is not installed: pip install .*\[deepspeed\]"):
        check_sharding_devices(recipe, 2)
    check_sharding_devices(load_recipe(FSDP), 2)
    check_sharding_devices(load_recipe("qwen3-8b"), 1)


@pytest.mark.parametrize(("name", "published"), [(FSDP, "qwen3-4b"), (ZERO3, "qwen3-8b")])
def test_full_recipes_are_the_published_ones_but_for_what_is_ours(name: str, published: str) -> None:
    full, given = load_recipe(name), load_recipe(published)
    assert (full.lora.rank, full.training.learning_rate, full.sharding.reshard) == (0, 1e-5, True)
    same = {"name", "about", "lora", "sharding", "training"}
    assert full.model_dump(exclude=same) == given.model_dump(exclude=same)
    ours = {"learning_rate", "save_steps", "retries"}
    assert full.training.model_dump(exclude=ours) == given.training.model_dump(exclude=ours)


@pytest.fixture(scope="module")
def full(qwen3_dir: Path) -> SentenceTransformer:
    sections: dict[str, Any] = {"lora": {"rank": 0}, "sharding": {"kind": "fsdp"}}
    return load_model(check_recipe(tiny_recipe(qwen3_dir, **sections), "tiny"))


@pytest.mark.parametrize(
    ("asked", "taken"), [("adamw", "adamw_torch_fused"), ("adamw_8bit", "adamw_bnb_8bit")]
)
def test_the_optimizer_is_the_recipe_s(asked: str, taken: str, qwen3_dir: Path, tmp_path: Path) -> None:
    from reasonembed_mteb.training.building import training_arguments

    plan = TrainingPlan([SubsetPlan("biology", 8, 4, 1)], {"biology": 2}, {}, 1, 1, 1)
    recipe = check_recipe(tiny_recipe(qwen3_dir, training={"optimizer": asked}), "tiny")
    assert training_arguments(recipe, tmp_path, plan, None).optim == taken


def test_accelerate_takes_the_settings(
    full: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    from reasonembed_mteb.training.building import training_arguments

    # Set by transformers for whoever comes after.
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    plan = TrainingPlan([SubsetPlan("biology", 8, 4, 1)], {"biology": 2}, {}, 1, 1, 1)
    recipe = load_recipe(FSDP, ["sharding.cpu_offload=true"])
    arguments = training_arguments(recipe, tmp_path, plan, None, full)
    assert arguments.fsdp_plugin_args is not None
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing is True
    assert plugin.transformer_cls_names_to_wrap == ["Qwen3DecoderLayer"]
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(**fsdp_precision())
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)


@pytest.mark.parametrize(("cores", "taken"), [(1, 1), (64, 4)])
def test_no_more_workers_than_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, taken: int
) -> None:
    from reasonembed_mteb.training import building

    monkeypatch.setattr("reasonembed_mteb.encoding.plan.usable_cores", lambda: cores)
    plan = TrainingPlan([SubsetPlan("biology", 8, 4, 1)], {"biology": 2}, {}, 1, 1, 1)
    recipe = load_recipe("qwen3-4b", ["training.precision=fp32"])
    assert building.training_arguments(recipe, tmp_path, plan, None).dataloader_num_workers == taken


def test_deepspeed_is_told_what_transformers_fills_in() -> None:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    told = sharding_arguments(load_recipe(ZERO3), None)
    config = HfDeepSpeedConfig(told["deepspeed"])
    assert config.is_zero3()
    assert not config.is_offload()
    # What ends up in the saved directory.
    assert config.is_true("zero_optimization.stage3_gather_16bit_weights_on_model_save")
    assert config.get_value("gradient_clipping") == "auto"
    away = sharding_arguments(load_recipe(ZERO3, ["sharding.cpu_offload=true"]), None)
    assert HfDeepSpeedConfig(away["deepspeed"]).is_offload()
    assert sharding_arguments(load_recipe("qwen3-8b"), None) == {}


def test_parts_of_a_checkpoint_need_as_many_processes(tmp_path: Path) -> None:
    record = {"recipe": load_recipe(ZERO3).model_dump(), "data": "x", "world_size": 4}
    _check_same(record, record, tmp_path)
    with pytest.raises(ReasonEmbedError, match=r"begun on 4 processes.* and 2 run now: start 4, or name"):
        _check_same(record, record | {"world_size": 2}, tmp_path)
    # FSDP's checkpoints are whole, and how weights are let go changes none of them.
    other = record | {"recipe": load_recipe(FSDP).model_dump()}
    kept = load_recipe(FSDP, ["sharding.reshard=false"]).model_dump()
    _check_same(other, other | {"world_size": 2, "recipe": kept}, tmp_path)
    with pytest.raises(ReasonEmbedError, match=r"sharding\.kind was 'fsdp' and is 'none'"):
        _check_same(
            other, other | {"recipe": load_recipe(FSDP, ["sharding.kind=none"]).model_dump()}, tmp_path
        )


def test_too_little_memory_is_answered_by_more_processes(tmp_path: Path) -> None:
    memory = {"weights": 2.0, "optimizer": 8.0, "activations": 30.0, "total": 40.0}
    plan = TrainingPlan([], {}, {}, 9, 9, 8, memory=memory, token_memory=1e-3)
    words = r"40.0 GiB a device: start more processes, --set sharding\.cpu_offload=true"
    with (
        pytest.raises(ReasonEmbedError, match=words),
        explained(load_recipe(FSDP), TrainingData({}, {}), plan, tmp_path),
    ):
        raise torch.OutOfMemoryError


def test_layers_are_the_models_own(full: SentenceTransformer, encoder: SentenceTransformer) -> None:
    assert layer_classes(full) == ["Qwen3DecoderLayer"]
    encoder.append(torch.nn.Linear(2, 2))
    with pytest.raises(ReasonEmbedError, match="weights beside its transformers model"):
        layer_classes(encoder)
    encoder.transformers_model._no_split_modules = None  # type: ignore[union-attr]
    with pytest.raises(ReasonEmbedError, match="BertModel names no layers to share out"):
        layer_classes(encoder)


def test_gathered_weights_are_saved_in_place_of_shares(full: SentenceTransformer, tmp_path: Path) -> None:
    whole = {name: torch.full_like(value, 0.25) for name, value in full.state_dict().items()}
    with saved_whole(full, whole):
        full.save_pretrained(str(tmp_path / "whole"))
    held = load_file(tmp_path / "whole" / "model.safetensors")
    assert all((value == 0.25).all() for value in held.values())
    assert not (tmp_path / "whole" / "README.md").exists()
    # As before, and nothing of it stays.
    with saved_whole(full, None):
        full.save_pretrained(str(tmp_path / "own"), create_model_card=False)
    own = load_file(tmp_path / "own" / "model.safetensors")
    assert own.keys() == held.keys()
    assert not any((value == 0.25).all() for value in own.values())
    with (
        pytest.raises(DataError, match="not those of the model"),
        saved_whole(full, whole | {"dense.weight": torch.ones(1)}),
    ):
        pytest.fail("saved")
    weight = next(full.parameters())
    assert own_share(weight) is weight


def test_memory_counts_shares() -> None:
    from transformers import Qwen3Config

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16}
    config = Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=99)
    subset = SubsetPlan("biology", 8, 8, 1)
    tokens = {"biology": SubsetTokens(9, 9, 9, 0.0)}

    def memory(*changes: str, processes: int = 1) -> dict[str, float]:
        plan = TrainingPlan([subset], {"biology": 2}, {}, 1, 1, processes, tokens)
        return estimate_memory(plan, load_recipe(FSDP, changes), config)

    alone = memory("sharding.kind=none")
    # One process plans for the recipe's 8 devices.
    assert memory()["optimizer"] == pytest.approx(alone["optimizer"] / 8)
    assert memory(processes=4)["optimizer"] == pytest.approx(alone["optimizer"] / 4)
    assert memory("sharding.cpu_offload=true")["optimizer"] == 0
    # All weights in bf16, of which the 16 bytes of a trained weight are eight times as much.
    kept = memory("sharding.reshard=false")
    assert kept["weights"] == pytest.approx(alone["optimizer"] / 8)
    assert 0 < memory()["weights"] < kept["weights"]
    assert memory()["activations"] == alone["activations"]
    assert memory()["total"] == pytest.approx(sum(memory().values()) - memory()["total"])
