"""QLoRA's two halves that need no GPU: how weights are held, and how adapters come back to whole ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from training_data import tiny_recipe

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training.adapters import (
    four_bits,
    load_model,
    merge_adapters,
    on_whole_weights,
    save_adapters,
)
from reasonembed_mteb.training.recipes import check_recipe

if TYPE_CHECKING:
    from pathlib import Path


def test_weights_are_held_as_qlora_holds_them() -> None:
    config = four_bits(torch.bfloat16)
    assert config.load_in_4bit
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_quantised_model_is_asked_for_on_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {}

    def load(name: str, **options: object) -> None:
        asked.update(options)
        raise OSError("enough")

    monkeypatch.setattr("reasonembed_mteb.models.reason_embed.ReasonEmbed", load)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    sections = {"lora": {"quantize": True}, "training": {"precision": "fp16"}}
    with pytest.raises(ReasonEmbedError, match="enough"):
        load_model(check_recipe(tiny_recipe("x", **sections), "x"))
    given = asked["model_kwargs"]
    assert isinstance(given, dict)
    assert given["device_map"] == {"": "cuda:3"}
    assert given["dtype"] == given["quantization_config"].bnb_4bit_compute_dtype == torch.float16


def test_adapters_come_back_to_whole_weights(qwen3_dir: Path, tmp_path: Path) -> None:
    plain = check_recipe(tiny_recipe(qwen3_dir), "x")
    model = load_model(plain)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    model.prompts = {"query": "Find: "}
    save_adapters(model, tmp_path)
    assert on_whole_weights(model, plain, tmp_path) is model
    # As after a run on quantised weights: the model at hand is not the one that is saved.
    quantised = check_recipe(tiny_recipe(qwen3_dir, lora={"quantize": True}), "x")
    whole = on_whole_weights(model, quantised, tmp_path)
    assert whole is not model
    assert whole.prompts["query"] == "Find: "
    merge_adapters(whole)
    merge_adapters(model)
    texts = ["Why is the sky blue?", "salt"]
    assert torch.equal(torch.tensor(whole.encode(texts)), torch.tensor(model.encode(texts)))
