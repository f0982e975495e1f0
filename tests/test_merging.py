"""Merged models and adapters: the sums are exact, the directory is plain, what does not fit is refused."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reasonembed_mteb.errors import DataError, MissingExtraError, ReasonEmbedError, UnknownNameError
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.training import tensors
from reasonembed_mteb.training.merging import merge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

TEXTS = ["Why is the sky blue?", "short", "the tide and the moon and the salt in the sea"]


def weights(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder, of however many shards."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def shaken(model: Any, seed: int, size: float = 0.05) -> Any:
    """Change every weight of a model by chance."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=random).to(parameter.dtype))
    return model


def adapter_of(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    """Save an adapter with random factors."""
    from peft import LoraConfig

    from reasonembed_mteb.training.adapters import backbone, save_adapters

    model = ReasonEmbed(str(base), device="cpu")
    options = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]} | options
    backbone(model).add_adapter(LoraConfig(**options), adapter_name="default")
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    save_adapters(model, folder)
    return folder


@pytest.fixture(scope="module")
def room(qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two decoders `a` and `b`, and two adapters `one` and `two` of `a`."""
    folder = tmp_path_factory.mktemp("merging")
    ReasonEmbed(str(qwen3_dir), device="cpu").save_pretrained(str(folder / "a"))
    shaken(ReasonEmbed(str(qwen3_dir), device="cpu"), 1).save_pretrained(str(folder / "b"))
    adapter_of(folder / "a", folder / "one", 1)
    adapter_of(folder / "a", folder / "two", 2, r=3, target_modules=["q_proj", "v_proj"], use_rslora=True)
    return folder


def peft_weights(base: Path, *adapters: tuple[Path, float]) -> dict[str, Tensor]:
    """Return a base's weights with adapters added by peft, each in its own model, times its weight."""
    from reasonembed_mteb.training.adapters import backbone, merge_adapters

    start = {name: value.double() for name, value in weights(base).items()}
    total = {name: value.clone() for name, value in start.items()}
    for adapter, weight in adapters:
        model = ReasonEmbed(str(base), device="cpu").double()
        backbone(model).load_adapter(str(adapter))
        model.double()
        merge_adapters(model)
        for name, value in backbone(model).state_dict().items():
            total[name] += weight * (value - start[name])
    return total


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-7) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), wanted[name].double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shares", [[0.7, 0.3], [1.0, 0.0], [0.25, 0.75]])
def test_a_linear_merge_is_the_weighted_sum(room: Path, tmp_path: Path, shares: list[float]) -> None:
    out = merge([room / "a", room / "b"], shares, tmp_path / "out")
    one, two = weights(room / "a"), weights(room / "b")
    for name, value in weights(out).items():
        wanted = shares[0] * one[name].double() + shares[1] * two[name].double()
        assert torch.equal(value, wanted.float()), name


def test_the_output_is_a_plain_directory(room: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    out = merge([room / "a", room / "b"], [0.7, 0.3], tmp_path / "out")
    # What sentence-transformers writes for `a`, in the layout of older readers too.
    names = {file.relative_to(room / "a") for file in (room / "a").rglob("*") if file.is_file()}
    assert {file.relative_to(out) for file in out.rglob("*") if file.is_file()} == names
    for name in ("modules.json", "1_Pooling/config.json", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (room / "a" / name).read_bytes(), name
    model, held = SentenceTransformer(str(out), device="cpu"), ReasonEmbed(str(room / "a"), device="cpu")
    assert model.prompts == held.prompts
    assert model.max_seq_length == held.max_seq_length
    average = ReasonEmbed(str(room / "a"), device="cpu")
    average.transformers_model.load_state_dict(
        {n: 0.7 * v + 0.3 * weights(room / "b")[n] for n, v in weights(room / "a").items()}
    )
    torch.testing.assert_close(
        torch.tensor(model.encode(TEXTS)), torch.tensor(average.encode(TEXTS)), rtol=0, atol=1e-5
    )


def test_where_it_comes_from_stands_in_card_and_configuration(room: Path, tmp_path: Path) -> None:
    from reasonembed_mteb.models.folders import content_revision

    out = merge([room / "a", room / "b"], [0.7, 0.3], tmp_path / "out")
    record = json.loads((out / "config_sentence_transformers.json").read_text(encoding="utf-8"))["merge"]
    assert record["method"] == "linear"
    assert [(one["model"], one["weight"]) for one in record["inputs"]] == [("a", 0.7), ("b", 0.3)]
    assert [one["fingerprint"] for one in record["inputs"]] == [content_revision(room / n) for n in "ab"]
    assert "transformers" in record["versions"]
    card = (out / "README.md").read_text(encoding="utf-8")
    for one in record["inputs"]:
        assert one["fingerprint"] in card
    assert str(room) not in card + json.dumps(record)
    joined = merge([room / "one", room / "two"], None, tmp_path / "joined")
    held = json.loads((joined / "merge.json").read_text(encoding="utf-8"))
    assert [(one["model"], one["base"], one["weight"]) for one in held["inputs"]] == [
        ("one", "a", 0.5),
        ("two", "a", 0.5),
    ]


def test_adapters_become_one_whose_product_is_the_sum_of_theirs(room: Path, tmp_path: Path) -> None:
    out = merge([room / "one", room / "two"], [0.7, 0.3], tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (5, 5, False)
    wanted = peft_weights(room / "a", (room / "one", 0.7), (room / "two", 0.3))
    close(peft_weights(room / "a", (out, 1)), wanted, 1e-7)
    # Not what the mean of the factors gives.
    apart = peft_weights(room / "a", (room / "one", 0.7))
    assert any((apart[name] - wanted[name]).abs().max() > 1e-2 for name in wanted)


def test_the_merged_adapter_loads_on_its_base(room: Path, tmp_path: Path) -> None:
    out = merge([room / "one", room / "two"], [0.7, 0.3], tmp_path / "out")
    whole = merge([room / "one", room / "two"], [0.7, 0.3], tmp_path / "whole", full=True)
    adapted = ReasonEmbed(str(out), device="cpu")
    plain = ReasonEmbed(str(whole), device="cpu")
    torch.testing.assert_close(
        torch.tensor(adapted.encode(TEXTS)), torch.tensor(plain.encode(TEXTS)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("base", ["a", "bare"])
def test_an_adapter_beside_models_counts_as_the_model_it_makes(
    room: Path, qwen3_dir: Path, tmp_path: Path, base: str
) -> None:
    start = room / "a" if base == "a" else qwen3_dir
    out = merge([start, room / "one", room / "two"], [0.1, 0.6, 0.3], tmp_path / "out")
    close(weights(out), peft_weights(room / "a", (room / "one", 0.6), (room / "two", 0.3)), 2e-7)
    # A bare decoder checkpoint becomes what ReasonEmbed makes of it: its head is not merged.
    assert (out / "modules.json").read_bytes() == (room / "a" / "modules.json").read_bytes()


def test_an_adapter_of_another_model_is_put_on_its_own_base(room: Path, tmp_path: Path) -> None:
    out = merge([room / "b", room / "one"], [0.5, 0.5], tmp_path / "out")
    made = peft_weights(room / "a", (room / "one", 1))
    wanted = {name: 0.5 * value.double() + 0.5 * made[name] for name, value in weights(room / "b").items()}
    close(weights(out), wanted)


def test_an_adapter_named_as_on_a_model_with_a_head(room: Path, tmp_path: Path) -> None:
    shutil.copytree(room / "two", tmp_path / "two")
    file = tmp_path / "two" / "adapter_model.safetensors"
    start = "base_model.model."
    held = {name.replace(start, f"{start}model."): value for name, value in load_file(file).items()}
    assert len(held) == len(load_file(file))
    save_file(held, file, {"format": "pt"})
    out = merge([room / "one", tmp_path / "two"], [0.7, 0.3], tmp_path / "out")
    wanted = peft_weights(room / "a", (room / "one", 0.7), (room / "two", 0.3))
    close(peft_weights(room / "a", (out, 1)), wanted)
    whole = merge([room / "a", tmp_path / "two"], [0, 1], tmp_path / "on")
    close(weights(whole), peft_weights(room / "a", (room / "two", 1)))
    # The first one's names are taken.
    turned = merge([tmp_path / "two", room / "one"], [0.3, 0.7], tmp_path / "turned")
    assert all(name.startswith(f"{start}model.") for name in load_file(turned / "adapter_model.safetensors"))


def slerp(one: Tensor, two: Tensor, share: float) -> Tensor:
    """Interpolate on the sphere as it is written in textbooks."""
    a, b = one.double().flatten(), two.double().flatten()
    angle = math.acos(float(a @ b / (a.norm() * b.norm())))
    sine = math.sin(angle)
    mixed = math.sin((1 - share) * angle) / sine * a + math.sin(share * angle) / sine * b
    return mixed.reshape(one.shape)


def test_two_models_meet_on_the_sphere(room: Path, tmp_path: Path) -> None:
    out = merge([room / "a", room / "b"], [0.7, 0.3], tmp_path / "out", method="spherical")
    one, two = weights(room / "a"), weights(room / "b")
    close(weights(out), {name: slerp(one[name], two[name], 0.3) for name in one})


def test_adapters_meet_on_the_sphere_by_their_products(room: Path, tmp_path: Path) -> None:
    adapter_of(room / "a", tmp_path / "three", 3)
    out = merge([room / "one", tmp_path / "three"], [0.4, 0.6], tmp_path / "out", method="spherical")
    start = {name: value.double() for name, value in weights(room / "a").items()}
    one, two, found = (
        {name: value - start[name] for name, value in peft_weights(room / "a", (adapter, 1)).items()}
        for adapter in (room / "one", tmp_path / "three", out)
    )
    for name in found:
        if one[name].any():
            torch.testing.assert_close(found[name], slerp(one[name], two[name], 0.6), rtol=1e-5, atol=1e-6)


def test_the_mean_of_several_directions_turns_with_them() -> None:
    from reasonembed_mteb.training.averages import spherical_coefficients

    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, 6, generator=random, dtype=torch.float64)
    shares = [0.1, 0.2, 0.3, 0.4]
    units = vectors / vectors.norm(dim=1, keepdim=True)
    mean = torch.tensor(spherical_coefficients(units @ units.T, shares), dtype=torch.float64) @ units
    assert abs(float(mean.norm()) - 1) < 1e-12
    # What makes it the mean: the ways from it to the vectors, times the shares, cancel out.
    angles = (units @ mean).arccos()
    ways = (units - (units @ mean)[:, None] * mean) * (angles / angles.sin())[:, None]
    assert float((torch.tensor(shares, dtype=torch.float64) @ ways).norm()) < 1e-7
    # The order of the vectors does not matter.
    back = units.flip(0)
    turned = torch.tensor(spherical_coefficients(back @ back.T, shares[::-1]), dtype=torch.float64) @ back
    torch.testing.assert_close(turned, mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("two", [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 1e-9]])
def test_vectors_without_an_angle_are_averaged(two: list[float]) -> None:
    from reasonembed_mteb.training.averages import spherical_coefficients

    vectors = torch.tensor([[1.0, 0.0], two], dtype=torch.float64)
    assert spherical_coefficients(vectors @ vectors.T, [0.7, 0.3]) == pytest.approx([0.7, 0.3], abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_kept_and_the_sum_rounded_once(room: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    for name in "ab":
        shutil.copytree(room / name, tmp_path / name)
        half = {key: value.to(dtype) for key, value in weights(room / name).items()}
        save_file(half, tmp_path / name / "model.safetensors", {"format": "pt"})
        edit(tmp_path / name, "config.json", dtype=str(dtype)[6:], torch_dtype=str(dtype)[6:])
    out = merge([tmp_path / "a", tmp_path / "b"], [1 / 3, 2 / 3], tmp_path / "out")
    one, two, found = (weights(folder) for folder in (tmp_path / "a", tmp_path / "b", out))
    for name, value in found.items():
        assert value.dtype == dtype
        assert torch.equal(value, (one[name].double() * (1 / 3) + two[name].double() * (2 / 3)).to(dtype)), (
            name
        )
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == str(dtype)[6:]


def sharded(source: Path, folder: Path, shards: int) -> Path:
    """Copy a model with its weights in shards."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    held = weights(source)
    names = list(held)
    placed = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        chosen = names[number::shards]
        save_file({name: held[name] for name in chosen}, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(chosen, file)
    (folder / tensors.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}), encoding="utf-8")
    return folder


def test_shards_are_merged_however_they_are_cut(room: Path, tmp_path: Path) -> None:
    out = merge([sharded(room / "a", tmp_path / "a", 6), room / "b"], [0.7, 0.3], tmp_path / "out")
    close(weights(out), weights(merge([room / "a", room / "b"], [0.7, 0.3], tmp_path / "one")), 0)
    assert len(list(out.glob("*.safetensors"))) == 6
    index = json.loads((out / tensors.INDEX).read_text(encoding="utf-8"))
    for name, file in index["weight_map"].items():
        with safe_open(out / file, "pt") as held:
            assert name in held.keys()  # noqa: SIM118 - no mapping
    ReasonEmbed(str(out), device="cpu").encode(TEXTS)


def big_decoder(folder: Path, seed: int) -> Path:
    """Save a decoder of 12 shards of about 1 MB."""
    from conftest import make_tokenizer
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(seed)
    fast = make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        tie_word_embeddings=False,
    )
    Qwen3Model(config).save_pretrained(folder, max_shard_size="1MB")
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_less_than_two_shards_lie_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    from reasonembed_mteb.training import merging

    one, two = big_decoder(tmp_path / "one", 1), big_decoder(tmp_path / "two", 2)
    shards = list(one.glob("*.safetensors"))
    assert len(shards) >= 12
    largest = max(file.stat().st_size for file in shards)

    class Counter(TorchDispatchMode):
        """Count the bytes of all storages alive that torch has made since it was entered."""

        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, Any] = {}
            self.peak = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import weakref

            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                    storage = value.untyped_storage()
                    key = storage.data_ptr()
                    if key and key not in self.alive:
                        self.alive[key] = storage.nbytes()
                        weakref.finalize(storage, self.alive.pop, key, None)
            self.peak = max(self.peak, sum(self.alive.values()))
            return result

    counter = Counter()
    write: Callable[..., None] = merging._write_shards

    def counted(*arguments: Any) -> None:
        with counter:
            write(*arguments)

    monkeypatch.setattr(merging, "_write_shards", counted)
    merge([one, two], [0.5, 0.5], tmp_path / "out", method=method)
    assert 0 < counter.peak < 2 * largest
    # The count is one of what is alive: all that was read is many times as much.
    assert sum(file.stat().st_size for file in shards) > 10 * largest


@pytest.mark.parametrize(
    ("names", "shares", "method", "message"),
    [
        (["a"], None, "linear", "at least two models"),
        (["a", "b"], [1.0], "linear", "2 models and 1 weights"),
        (["a", "b"], [0.5, 0.3, 0.2], "linear", "2 models and 3 weights"),
        (["a", "b"], [0.5, float("nan")], "linear", "finite"),
        (["a", "b"], [0.5, float("inf")], "linear", "finite"),
        (["a", "b"], [1.5, -0.5], "spherical", "must be positive"),
        (["a", "b"], [0.0, 0.0], "spherical", "must be positive"),
        (["a", "nowhere/at/all"], None, "linear", "there is no folder"),
    ],
)
def test_wrong_weights_and_names_are_refused(
    room: Path, tmp_path: Path, names: list[str], shares: list[float] | None, method: str, message: str
) -> None:
    models = [room / name if (room / name).exists() else name for name in names]
    with pytest.raises(ReasonEmbedError, match=message):
        merge(models, shares, tmp_path / "out", method=method)
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_names_the_nearest(room: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'spherical'"):
        merge([room / "a", room / "b"], None, tmp_path / "out", method="sperical")


@pytest.mark.parametrize("method", ["linear", "spherical"])
def test_weights_that_do_not_sum_to_one_are_said(
    room: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    with caplog.at_level(logging.WARNING):
        out = merge([room / "a", room / "b"], [1.4, 0.6], tmp_path / "out", method=method)
    assert "the weights sum to 2" in caplog.text
    record = json.loads((out / "config_sentence_transformers.json").read_text(encoding="utf-8"))["merge"]
    shares = [1.4, 0.6] if method == "linear" else [0.7, 0.3]
    assert [one["weight"] for one in record["inputs"]] == pytest.approx(shares)


def edit(folder: Path, name: str, **changes: Any) -> None:
    file = folder / name
    held = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(held | changes), encoding="utf-8")


def other_pooling(folder: Path) -> None:
    edit(folder, "1_Pooling/config.json", pooling_mode_lasttoken=False, pooling_mode_mean_tokens=True)


def other_length_of_vectors(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))[:-1]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


def other_token(folder: Path) -> None:
    held = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = held["model"]["vocab"]
    one, two = list(vocabulary)[100:102]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(held), encoding="utf-8")


def other_rule(folder: Path) -> None:
    held = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    held["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(held), encoding="utf-8")


def other_positions(folder: Path) -> None:
    edit(folder, "config.json", rope_theta=5e5, rope_parameters={"rope_type": "default", "rope_theta": 5e5})


def other_similarity(folder: Path) -> None:
    edit(folder, "config_sentence_transformers.json", similarity_fn_name="dot")


def other_shape(folder: Path) -> None:
    held = weights(folder)
    name = "layers.0.mlp.down_proj.weight"
    save_file(held | {name: held[name].T.contiguous()}, folder / "model.safetensors", {"format": "pt"})


def less(folder: Path) -> None:
    held = weights(folder)
    held.pop("layers.1.mlp.up_proj.weight")
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def quantised(folder: Path) -> None:
    held = {name: value.to(torch.float8_e4m3fn) for name, value in weights(folder).items()}
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def infinite(folder: Path) -> None:
    held = weights(folder)
    held["norm.weight"][3] = float("nan")
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def half_a_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_pooling, "their modules differ"),
        (other_length_of_vectors, "their modules differ"),
        (other_token, "other vocabularies"),
        (other_rule, "by other rules"),
        (other_positions, "rope"),
        (other_similarity, "similarity"),
        (other_shape, "cannot read the model"),
        (less, "only one has layers.1.mlp.up_proj.weight"),
        (quantised, "is (F32 and F8_E4M3|F8_E4M3 and F32)"),
        (infinite, "norm.weight would hold numbers that are not finite"),
        (half_a_file, "cannot read the"),
    ],
)
def test_models_that_do_not_belong_together_are_refused(
    room: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(room / "b", tmp_path / "b")
    change(tmp_path / "b")
    for models in ([room / "a", tmp_path / "b"], [tmp_path / "b", room / "a"]):
        with pytest.raises(ReasonEmbedError, match=message):
            merge(models, [0.5, 0.5], tmp_path / "out")
        # Whole or not at all.
        assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_another_architecture_is_refused(room: Path, encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(str(tmp_path / "bert"))
    with pytest.raises(ReasonEmbedError, match="model_type is 'qwen3' and 'bert'"):
        merge([room / "a", tmp_path / "bert"], None, tmp_path / "out")


def test_prompts_lengths_and_dtypes_that_differ_are_said(
    room: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = ReasonEmbed(str(room / "b"), device="cpu")
    other.prompts = {**other.prompts, "query": "Find: "}
    other.max_seq_length = 77
    other.half().save_pretrained(str(tmp_path / "b"))
    with caplog.at_level(logging.WARNING):
        out = merge([room / "a", tmp_path / "b"], None, tmp_path / "out")
    assert "differ (query); the first's are taken" in caplog.text
    assert "8192 and 77 tokens" in caplog.text
    assert "the dtypes of" in caplog.text
    held, own = (ReasonEmbed(str(folder), device="cpu") for folder in (room / "a", out))
    assert (held.prompts, held.max_seq_length) == (own.prompts, own.max_seq_length)


def test_a_package_of_the_extra_is_named(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonembed_mteb.training.merge_inputs.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"accelerate is not installed: pip install .*train"):
        merge([room / "a", room / "b"], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(room: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="not an empty folder"):
        merge([room / "a", room / "b"], None, tmp_path / "out")
    with pytest.raises(DataError, match="not an empty folder"):
        merge([room / "a", room / "b"], None, room / "a")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_encoder_with_a_dense_layer_and_whole_numbers(encoder: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    for number, name in enumerate("ab"):
        torch.manual_seed(number)
        dense = Dense(32, 8)
        model = SentenceTransformer(modules=[encoder[0], encoder[1], dense], device="cpu")
        shaken(model, number).save_pretrained(str(tmp_path / name))
        held = weights(tmp_path / name)
        # Older versions of transformers wrote the positions too, some with and some without.
        if name == "b":
            held["embeddings.position_ids"] = torch.arange(512)[None]
        save_file(held, tmp_path / name / "model.safetensors", {"format": "pt"})
    for order in ("ab", "ba"):
        out = merge([tmp_path / name for name in order], [0.25, 0.75], tmp_path / f"out-{order}")
        for part in (".", "2_Dense"):
            found, one, two = (weights(folder / part) for folder in (out, *(tmp_path / n for n in order)))
            assert found
            for name, value in found.items():
                wanted = 0.25 * one[name].double() + 0.75 * two[name].double()
                assert torch.equal(value, wanted.to(value.dtype)), name
        assert SentenceTransformer(str(out), device="cpu").encode(TEXTS).shape == (3, 8)


def test_a_tied_tensor_is_found_under_its_other_name(tmp_path: Path) -> None:
    from conftest import make_tokenizer
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    tokenizer = make_tokenizer()
    for number, name in enumerate("ab"):
        torch.manual_seed(number)
        T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(
            tmp_path / f"bare-{name}"
        )
        tokenizer.save_pretrained(tmp_path / f"bare-{name}")
        transformer = Transformer(str(tmp_path / f"bare-{name}"))
        SentenceTransformer(modules=[transformer, Pooling(16, "mean")]).save_pretrained(str(tmp_path / name))
    held = weights(tmp_path / "b")
    (shared,) = [name for name in held if name in ("shared.weight", "encoder.embed_tokens.weight")]
    other = ({"shared.weight", "encoder.embed_tokens.weight"} - {shared}).pop()
    held[other] = held.pop(shared)
    save_file(held, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    for order in ("ab", "ba"):
        out = merge([tmp_path / name for name in order], [0.25, 0.75], tmp_path / f"out-{order}")
        one, two = (weights(tmp_path / name) for name in order)
        names = (shared, other) if order == "ab" else (other, shared)
        wanted = 0.25 * one[names[0]].double() + 0.75 * two[names[1]].double()
        assert torch.equal(weights(out)[names[0]], wanted.float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "uses use_dora"),
        ({"bias": "lora_only"}, "uses bias"),
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"modules_to_save": ["norm"]}, "uses modules_to_save"),
        ({"base_model_name_or_path": "some/other"}, "other bases"),
    ],
)
def test_adapters_that_are_no_plain_products_of_one_base_are_refused(
    room: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(room / "two", tmp_path / "two")
    edit(tmp_path / "two", "adapter_config.json", **changes)
    with pytest.raises(ReasonEmbedError, match=message):
        merge([room / "one", tmp_path / "two"], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_does_not_fit_its_base_is_refused(room: Path, encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(str(tmp_path / "bert"))
    shutil.copytree(room / "two", tmp_path / "two")
    edit(tmp_path / "two", "adapter_config.json", base_model_name_or_path=str(tmp_path / "bert"))
    with pytest.raises(ReasonEmbedError, match="does not fit its base"):
        merge([tmp_path / "bert", tmp_path / "two"], None, tmp_path / "out")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    from reasonembed_mteb.cli import main

    monkeypatch.setattr(sys, "argv", ["reasonembed", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    "given",
    [
        ["A", "B", "--weights", ".7", ".3"],
        ["--weights", ".7", ".3", "A", "B"],
        ["A", "B", "--weights", ".7", "--weights", ".3"],
        ["A", "--weights=.7", "B", "--weights=3e-1"],
        ["A", "B", "--weights", ".7,.3"],
        ["--weights", ".7,", ".3", "A", "B"],
        ["A", "B", "--weights=.7,.3"],
        ["A", "B", "--weights=.7", ".3"],
    ],
)
def test_the_command_takes_weights_in_a_row(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    names = {"A": room / "a", "B": room / "b"}
    given = [str(names.get(one, one)) for one in given]
    assert call(monkeypatch, "merge", *given, "--output", tmp_path / "out") == 0
    one, two = weights(room / "a"), weights(room / "b")
    wanted = {name: (0.7 * one[name].double() + 0.3 * two[name].double()).float() for name in one}
    close(weights(tmp_path / "out"), wanted, 0)


def test_the_command_says_what_is_wrong_in_one_line(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = (room / "a", room / "b")
    shares = ["--weights", "-1", "0.5", ".2"]
    assert call(monkeypatch, "merge", *models, *shares, "--output", tmp_path / "x") == 2
    assert "2 models and 3 weights were given" in capsys.readouterr().err
    # What is no number is no model either.
    assert call(monkeypatch, "merge", *models, "--weights", ".5;.5", "--output", tmp_path / "x") == 2
    assert "Invalid value for '--weights'" in capsys.readouterr().err
    assert call(monkeypatch, "merge", room / "a", "--output", tmp_path / "x") == 2
    assert "takes at least two models" in capsys.readouterr().err
