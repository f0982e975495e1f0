"""Packed texts against one text at a time; compiled layers."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import save_decoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling

from reasonembed_mteb import ReasonEmbed
from reasonembed_mteb.encoding import accelerate, packing
from reasonembed_mteb.encoding import plan as compiling
from reasonembed_mteb.encoding import plan as planning

if TYPE_CHECKING:
    from pathlib import Path

# Lengths from one token to a few hundred.
TEXTS = ["x", "The sky. " * 90, "Why is the sky blue?", "long waves pass " * 7, "Rayleigh", "pass. " * 33] * 2
TOLERANCE = 1e-5


def one_by_one(model: SentenceTransformer, texts: list[str], **options: Any) -> Any:
    """Encode by the library alone, one text a batch, unpacked and without padding."""
    plain = SentenceTransformer(modules=list(model), device="cpu")
    return plain.encode(texts, batch_size=1, **options)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
@pytest.mark.parametrize("attn", ["auto", "packed", "padded"])
def test_vectors_are_those_of_single_texts(family: str, attn: str, tmp_path: Path) -> None:
    model = ReasonEmbed(str(save_decoder(tmp_path, family)), device="cpu")
    expected = one_by_one(model, TEXTS)
    model.attn, model.batch_tokens = attn, 256
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)
    # What mixes texts up or lets them see each other is seen.
    assert np.abs(expected[0] - expected[1]).max() > 100 * TOLERANCE
    plan = planning.make_plan(model, attn, None, torch.device("cpu"))
    assert plan.packed == (attn == "packed" or (attn == "auto" and plan.kernel == packing.DOCUMENTS))


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
@pytest.mark.parametrize("attn", ["packed", "padded"])
def test_sliding_windows_hide_the_same_tokens(family: str, attn: str, tmp_path: Path) -> None:
    model = ReasonEmbed(str(save_decoder(tmp_path, family)), device="cpu")
    wide = model.encode(TEXTS)
    config = model[0].auto_model.config
    config.sliding_window = 16
    for layer in model[0].auto_model.layers:
        layer.self_attn.sliding_window = 16
    if family == "qwen2":
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
        model[0].auto_model.has_sliding_layers = True
    expected = one_by_one(model, TEXTS)
    assert np.abs(expected - wide).max() > 100 * TOLERANCE
    model.attn = attn
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "weightedmean", ("cls", "lasttoken")])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_other_poolings_and_modules_take_packed_texts(
    mode: Any,
    include_prompt: bool,
    qwen3_dir: Path,
) -> None:
    transformer = ReasonEmbed(str(qwen3_dir), device="cpu")[0]
    pooling = Pooling(32, mode, include_prompt=include_prompt)
    torch.manual_seed(0)
    dense = Dense(pooling.pooling_output_dimension, 12)
    model = SentenceTransformer(modules=[transformer, pooling, dense, Normalize()], device="cpu")
    expected = one_by_one(model, TEXTS, prompt="Query:")
    accelerate(model, attn="packed")
    found = model.encode(TEXTS, prompt="Query:")
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_the_models_own_attention_comes_back(qwen3_dir: Path) -> None:
    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    model.attn = "packed"
    # The first call asks the model itself whether it may be packed.
    model.encode(TEXTS)
    config = model[0].auto_model.config
    before = config._attn_implementation
    seen = []
    layer = model[0].auto_model.layers[0]
    handle = layer.register_forward_hook(lambda *_: seen.append(config._attn_implementation))
    model.encode(TEXTS)
    handle.remove()
    assert set(seen) == {packing.DOCUMENTS}
    assert config._attn_implementation == before != packing.DOCUMENTS


def test_an_unknown_architecture_is_padded_and_said_once(
    encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_SAID", set())
    expected = one_by_one(encoder, TEXTS)
    accelerate(encoder, attn="packed", batch_tokens=300)
    for _ in range(2):
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)
    said = [message for message in caplog.messages if "packed attention is not known" in message]
    assert said == ["packed attention is not known for this model (bert): encoding padded rows"]


def test_packed_positions_restart() -> None:
    rows = [np.array([5, 6, 7], dtype=np.int32), np.array([8], dtype=np.int32)]
    features = packing.packed_features(rows)
    assert features["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert features["position_ids"].tolist() == [[0, 1, 2, 0]]
    assert features["cu_seq_lens_q"].tolist() == [0, 3, 4]
    assert features["cu_seq_lens_q"].dtype == torch.int32
    assert features["max_length_q"] == 3


def test_torch_has_the_kernel_that_the_gpu_path_calls() -> None:
    # The newest torch that is tested; an older one is padded.
    assert packing.has_varlen()


@pytest.mark.slow
def test_layers_share_one_compiled_graph(qwen3_dir: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    model.attn = "packed"
    expected = model.encode(TEXTS)
    counter = CompileCounter()
    layers = model[0].auto_model.layers
    torch._dynamo.reset()
    compiling.compile_layers(layers, backend=counter)
    model.compile_layers = "on"
    graphs = []
    for some in (slice(0, 12), slice(0, 5), slice(2, 9)):
        np.testing.assert_allclose(model.encode(TEXTS[some]), expected[some], atol=TOLERANCE, rtol=0)
        graphs.append(counter.frame_count)
    # One graph for each part of a layer around the loop over texts; none more for other layers or lengths.
    assert 0 < graphs[0] <= 4
    assert graphs == graphs[:1] * 3
    model.compile_layers = "off"
    model.encode(TEXTS[:2])
    assert not compiling.is_compiled(layers)


@torch.library.custom_op("reasonembed_tests::varlen", mutates_args=())
def varlen_by_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Stand in for torch's kernel on a CPU: (T, H, D) in, (T, H, D) out."""
    ends = starts.tolist()
    assert longest == max(stop - start for start, stop in pairwise(ends))
    mixed = torch.empty_like(query)
    for start, stop in pairwise(ends):
        rows = [tensor[start:stop].transpose(0, 1) for tensor in (query, key, value)]
        where = torch.arange(stop - start)
        back = where[:, None] - where[None, :]
        seen = (back >= 0) & ((back <= window) | (window < 0))
        attend = torch.nn.functional.scaled_dot_product_attention
        mixed[start:stop] = attend(*rows, attn_mask=seen, scale=scale, enable_gqa=True).transpose(0, 1)
    return mixed


@varlen_by_documents.register_fake
def _(query: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(query)


def stand_in(
    query: Any, key: Any, value: Any, starts: Any, also: Any, most: int, same: int, **kwargs: Any
) -> Any:
    """Take what torch.nn.attention.varlen.varlen_attn takes."""
    assert starts.dtype == torch.int32
    assert kwargs["enable_gqa"]
    assert kwargs["window_size"][1] == 0
    return varlen_by_documents(query, key, value, starts, most, kwargs["scale"], kwargs["window_size"][0])


@pytest.mark.parametrize("window", [None, 16])
def test_the_gpu_kernel_is_called_rightly(
    window: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.testing import CompileCounter

    model = ReasonEmbed(str(save_decoder(tmp_path, "mistral")), device="cpu")
    model[0].auto_model.config.sliding_window = window
    model.attn = "packed"
    expected = model.encode(TEXTS)
    monkeypatch.setattr(packing, "varlen_attn", stand_in)
    monkeypatch.setattr(planning, "kernel_for", lambda *_: packing.VARLEN)
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiling.compile_layers(model[0].auto_model.layers, backend=counter)
    model.compile_layers = "on"
    for some in (slice(0, 12), slice(0, 5), slice(2, 9)):
        np.testing.assert_allclose(model.encode(TEXTS[some]), expected[some], atol=TOLERANCE, rtol=0)
        # One graph holds a whole layer, for every layer, number of texts and longest text.
        assert counter.frame_count == 1


@pytest.mark.slow
def test_compiling_that_fails_is_said_and_undone(qwen3_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    expected = model.encode(TEXTS)

    def broken(*_: object) -> None:
        msg = "no compiler here\nand more"
        raise RuntimeError(msg)

    torch._dynamo.reset()
    compiling.compile_layers(model[0].auto_model.layers, backend=broken)
    model.compile_layers = "on"
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)
    (said,) = [message for message in caplog.messages if "compiling" in message]
    assert "no compiler here" in said
    assert not compiling.is_compiled(model[0].auto_model.layers)


def test_compiling_pays_for_much_work_on_a_gpu_only() -> None:
    layers = torch.nn.ModuleList([torch.nn.Linear(1000, 1000, device="meta") for _ in range(600)])
    gpu = torch.device("cuda")
    assert not compiling.pays(layers, 10_000, gpu)
    assert compiling.pays(layers, 100_000_000, gpu)
    assert not compiling.pays(layers, 100_000_000, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("compile_layers", ["off", "on"])
def test_on_a_gpu_bf16_errs_no_more_than_the_library(qwen3_dir: Path, compile_layers: str) -> None:
    reference = ReasonEmbed(str(qwen3_dir), device="cpu").encode(TEXTS)
    model = ReasonEmbed(str(qwen3_dir), device="cuda", model_kwargs={"dtype": torch.bfloat16})
    model.attn = "off"
    own = np.abs(model.encode(TEXTS) - reference).mean()
    model.attn, model.compile_layers = "packed", compile_layers
    assert planning.make_plan(model, "packed", None, torch.device("cuda")).packed
    assert np.abs(model.encode(TEXTS) - reference).mean() <= 1.1 * own + 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_running_out_of_memory_goes_on(qwen3_dir: Path) -> None:
    model = ReasonEmbed(str(qwen3_dir), device="cuda", model_kwargs={"dtype": torch.bfloat16})
    expected = model.encode(TEXTS)
    model.batch_tokens = 1 << 30
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        found = model.encode(TEXTS * 5000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(found[: len(TEXTS)], expected, atol=2e-2)
