"""Training on packed texts: the same loss and gradients as on padded ones; adapters upon 4-bit weights."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import save_decoder
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from training_data import checked_rows, tiny_recipe, write_folder

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.training import CachedRedapterLoss, RedapterLoss
from reasonembed_mteb.training.adapters import (
    four_bits,
    load_model,
    merge_adapters,
    on_whole_weights,
    pack_texts,
    recompute_activations,
    save_adapters,
)
from reasonembed_mteb.training.collator import GroupCollator
from reasonembed_mteb.training.metrics import read_metrics
from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.run import train

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
LOSSES: dict[str, Any] = {
    "plain": RedapterLoss,
    "rows": lambda model, **options: CachedRedapterLoss(model, mini_batch_size=3, **options),
    "tokens": lambda model, **options: CachedRedapterLoss(model, mini_batch_num_tokens=200, **options),
}


def gradients(folder: Path, loss: str, *, packed: bool, recompute: bool) -> tuple[float, dict[str, Any]]:
    """Take one backward pass of a batch in fp64."""
    model = ReasonEmbed(str(folder), device="cpu", model_kwargs={"dtype": torch.float64})
    if recompute:
        recompute_activations(model)
    if packed:
        pack_texts(model, CPU, half=False)
    collator = GroupCollator(
        preprocess_fn=model.preprocess, groups={"biology": 4}, template="Instruct: {instruction}\nQuery: "
    )
    batch = collator(checked_rows(3))
    assert ("documents_cu_seq_lens_q" in batch) is packed
    columns, _ = SentenceTransformerTrainer.collect_features(None, batch)  # type: ignore[arg-type]
    model.train()
    value = LOSSES[loss](model, start_step=0)(columns, None)
    value.backward()
    return value.item(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", ["qwen3", pytest.param("llama", marks=pytest.mark.slow)])
def test_gradients_are_those_of_padded_texts(family: str, loss: str, recompute: bool, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, family)
    expected, wanted = gradients(folder, "plain", packed=False, recompute=False)
    value, found = gradients(folder, loss, packed=True, recompute=recompute)
    assert value == pytest.approx(expected, abs=1e-12)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12 * max(1, gradient.abs().max()))


@pytest.mark.slow
def test_a_run_counts_the_same_and_ends_alike(qwen3_dir: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", biology=8)
    runs = {}
    for packed in (False, True):
        recipe = check_recipe(tiny_recipe(qwen3_dir, training={"packed": packed}), "tiny")
        output = tmp_path / f"packed-{packed}"
        train(recipe, [data], output, cache=tmp_path / "cache")
        runs[packed] = read_metrics(output)
    assert len(runs[False]) == len(runs[True]) > 0
    for padded, packed_row in zip(runs[False], runs[True], strict=True):
        for name in ("queries", "documents", "tokens"):
            assert padded[name] == packed_row[name] > 0
        assert padded["loss"] == pytest.approx(packed_row["loss"], abs=1e-4)


def test_a_trained_directory_is_plain(qwen3_dir: Path, tmp_path: Path) -> None:
    recipe = check_recipe(tiny_recipe(qwen3_dir, training={"packed": True}), "tiny")
    done = train(recipe, [write_folder(tmp_path / "data", biology=8)], tmp_path / "run", cache=tmp_path / "c")
    assert "reasonembed_" not in (done.model / "config.json").read_text(encoding="utf-8")


def test_an_encoder_is_refused(encoder: Any) -> None:
    with pytest.raises(ReasonEmbedError, match=r"training\.packed: a bert cannot be packed"):
        pack_texts(encoder, CPU, half=False)


def test_a_device_without_kernel_is_refused(qwen3_dir: Path) -> None:
    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    with pytest.raises(ReasonEmbedError, match="no packed attention on mps"):
        pack_texts(model, torch.device("mps"), half=True)


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_dropout_of_attention_is_refused(family: str, tmp_path: Path) -> None:
    model = ReasonEmbed(str(save_decoder(tmp_path, family)), device="cpu")
    pack_texts(model, CPU, half=False)
    model = ReasonEmbed(str(tmp_path), device="cpu", config_kwargs={"attention_dropout": 0.1})
    with pytest.raises(
        ReasonEmbedError, match=r"attention_dropout is 0\.1, which packed attention does not have"
    ):
        pack_texts(model, CPU, half=False)


def test_another_attention_beside_it_is_refused(qwen3_dir: Path, tmp_path: Path) -> None:
    content = tiny_recipe(qwen3_dir, training={"packed": True, "attention": "eager"})
    with pytest.raises(ReasonEmbedError, match=r"training\.attention='eager' another one"):
        train(check_recipe(content, "tiny"), [write_folder(tmp_path / "d", biology=8)], tmp_path / "run")


def test_dropout_of_adapters_is_kept(qwen3_dir: Path) -> None:
    from reasonembed_mteb.training.adapters import load_model

    content = tiny_recipe(qwen3_dir, lora={"dropout": 0.5, "targets": ["q_proj"]})
    model = load_model(check_recipe(content, "tiny"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weight)
    pack_texts(model, CPU, half=False)
    features = model.preprocess(["Why is the sky blue?", "Post"])
    model.train()
    one, other = (model(dict(features))["sentence_embedding"] for _ in range(2))
    assert not torch.equal(one, other)


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


# bitsandbytes computes on processors too, more slowly: what needs a card in earnest is run here without one.
QUANTISED: dict[str, dict[str, Any]] = {
    "weights": {"lora": {"quantize": True}},
    "moments": {"lora": {"rank": 0, "dropout": 0.0}, "training": {"optimizer": "adamw_8bit"}},
    "both": {"lora": {"quantize": True}, "training": {"optimizer": "adamw_8bit", "precision": "bf16"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_run_goes_on_to_the_same_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = pytest.importorskip("bitsandbytes", reason="the extra quantized is not installed")
    monkeypatch.setattr("reasonembed_mteb.training.requirements._check_card", lambda recipe: None)
    # Some processors compute on weights of another layout, which is for inference alone.
    monkeypatch.setattr(bits.nn.modules, "has_avx512bf16", lambda: False)
    sections = QUANTISED[kind]
    steps = {"epochs": 2, "save_steps": 2, "learning_rate": 1e-3, "keep": 9} | sections.get("training", {})
    # Moments of fewer than 4,096 weights stay as they are.
    model = save_decoder(tmp_path / "model", inner=128)
    recipe = check_recipe(tiny_recipe(model, **(sections | {"training": steps})), "tiny")
    if recipe.lora.quantize:
        loaded = load_model(recipe)
        assert loaded.pools_last_token
        held = [one for one in loaded.parameters() if isinstance(one, bits.nn.Params4bit)]
        # Seven products in each of the two layers.
        assert len(held) == 14
    rows = [write_folder(tmp_path / "rows", biology=16)]
    straight = train(recipe, rows, tmp_path / "run")
    first, *rest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    if kind == "moments":
        state = torch.load(first / "optimizer.pt", weights_only=True)["state"]
        assert "dtype=torch.uint8" in repr(state)
    made = load_file(straight.model / "model.safetensors")
    assert {value.dtype for value in made.values()} <= {torch.float32, torch.bfloat16}
    assert "quantization_config" not in json.loads((straight.model / "config.json").read_text())
    for one in (*rest, straight.model):
        shutil.rmtree(one)
    (tmp_path / "run" / "run.json").unlink()
    resumed = train(recipe, rows, tmp_path / "run", resume=True)
    assert (resumed.resumed, resumed.steps) == (2, straight.steps)
    again = load_file(resumed.model / "model.safetensors")
    assert again.keys() == made.keys()
    assert all(torch.equal(value, made[name]) for name, value in again.items())
