"""vLLM in this process, by a stand-in of `vllm.LLM` that computes with the model's own modules."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from engine_data import vector_of

from reasonembed_mteb.encoding.engines.engine import EngineError
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.engines import EngineChoice
from reasonembed_mteb.models.mteb_encoder import load_reason_embed

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["Why is the sky blue?", "", "Rayleigh scattering sends short waves to all sides. " * 20, "x"]
LENGTH = 60


@dataclass
class PoolerConfig:
    """vLLM's, as far as it is used."""

    pooling_type: str | None = None
    use_activation: bool | None = None


class StandIn:
    """Keeps what `vllm.LLM` is made with and asked for."""

    made: ClassVar[dict[str, Any]] = {}
    model: Any = None
    prompts: ClassVar[list[dict[str, Any]]] = []
    released = 0

    def __init__(self, **arguments: Any) -> None:
        if arguments.get("dtype") == "broken":
            msg = "no such dtype\nmore lines"
            raise ValueError(msg)
        StandIn.made = arguments
        StandIn.prompts = []

    def encode(self, prompts: list[dict[str, Any]], **options: Any) -> list[Any]:
        """Give each prompt's vector."""
        assert options == {"pooling_task": "embed", "use_tqdm": False}
        StandIn.prompts += prompts
        vectors = [torch.from_numpy(vector_of(StandIn.model, one["prompt_token_ids"])) for one in prompts]
        return [SimpleNamespace(outputs=SimpleNamespace(data=vector.bfloat16())) for vector in vectors]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, model: Any) -> type[StandIn]:
    """Put the stand-in where vLLM would be."""
    package, config, distributed = (ModuleType(n) for n in ("vllm", "vllm.config", "vllm.distributed"))
    package.__dict__.update(LLM=StandIn, __version__="0.99")
    config.__dict__["PoolerConfig"] = PoolerConfig

    def release() -> None:
        StandIn.released += 1

    distributed.__dict__["cleanup_dist_env_and_memory"] = release
    for module in (package, config, distributed):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    StandIn.model = model
    return StandIn


@pytest.fixture(scope="module")
def model(qwen3_dir: Path) -> Any:
    from reasonembed_mteb import ReasonEmbed

    return ReasonEmbed(str(qwen3_dir), device="cpu")


def test_it_gets_the_models_own_tokens(vllm: type[StandIn], qwen3_dir: Path, model: Any) -> None:
    encoder = load_reason_embed("small", path=str(qwen3_dir), engine="vllm")
    encoder.model.max_seq_length = model.max_seq_length = LENGTH
    found = encoder.model.encode(TEXTS, prompt="Query: ", truncate_dim=16, show_progress_bar=False)
    expected = model.encode(TEXTS, prompt="Query: ", truncate_dim=16, show_progress_bar=False)
    model.max_seq_length = 8192
    # The stand-in rounds to bfloat16.
    np.testing.assert_allclose(found, expected, atol=4e-3)
    read = [one["prompt_token_ids"] for one in vllm.prompts]
    assert read == [
        model.tokenizer("Query: " + text, truncation=True, max_length=LENGTH)["input_ids"] for text in TEXTS
    ]
    assert max(map(len, read)) == LENGTH
    assert encoder.model.encoding_stats.truncated == 1


def test_it_is_pinned(vllm: type[StandIn], qwen3_dir: Path) -> None:
    choice = EngineChoice("vllm", options={"trust_remote_code": True, "tensor_parallel_size": 2})
    encoder = load_reason_embed("small", path=str(qwen3_dir), engine=choice)
    made = vllm.made
    assert made["trust_remote_code"] is False
    assert made["pooler_config"] == PoolerConfig("LAST", use_activation=True)
    assert (made["runner"], made["convert"]) == ("pooling", "embed")
    # A directory by its path, and nothing asked of the hub.
    assert made["model"] == made["tokenizer"] == str(qwen3_dir.resolve())
    assert (made["revision"], made["max_model_len"], made["tensor_parallel_size"]) == (None, 8192, 2)
    assert made["dtype"] == ("bfloat16" if torch.cuda.is_available() else "float32")
    identity = encoder.model.engine.identity
    assert identity["name"] == "vllm"
    assert identity["version"] == "0.99"
    assert identity["pooling"] == "LAST"


def test_it_is_released(vllm: type[StandIn], qwen3_dir: Path) -> None:
    engine = load_reason_embed("small", path=str(qwen3_dir), engine="vllm").model.engine
    before = vllm.released
    engine.close()
    engine.close()
    assert vllm.released == before + 1
    with pytest.raises(EngineError, match="was closed"):
        engine.embed([])


def test_a_copy_loads_the_weights_anew(vllm: type[StandIn], qwen3_dir: Path) -> None:
    choice = EngineChoice("vllm", batch_tokens=100, options={"tensor_parallel_size": 2})
    model = load_reason_embed("small", path=str(qwen3_dir), engine=choice).model
    made, expected = vllm.made, model.encode(TEXTS, show_progress_bar=False)
    # As a cluster's workers get it, for which the one here makes room.
    model.engine.close()
    vllm.made = {}
    copied = pickle.loads(pickle.dumps(model))
    assert vllm.made == made
    assert copied.engine.identity == model.engine.identity
    np.testing.assert_array_equal(copied.encode(TEXTS, show_progress_bar=False), expected)


def test_other_pooling_goes_elsewhere(vllm: type[StandIn], qwen3_dir: Path) -> None:
    from dataclasses import replace

    from reasonembed_mteb.models.engines import make_engine, model_facts

    encoder = load_reason_embed("small", path=str(qwen3_dir), engine="vllm")
    facts = model_facts(encoder.model, str(qwen3_dir), None)
    with pytest.raises(EngineError, match="by max: use --engine torch"):
        make_engine(replace(facts, pooling="max"), EngineChoice("vllm"))
    make_engine(replace(facts, pooling="mean", normalized=False), EngineChoice("vllm", batch_tokens=100))
    assert vllm.made["pooler_config"] == PoolerConfig("MEAN", use_activation=False)
    assert vllm.made["max_num_batched_tokens"] == 8192


def test_trouble_is_one_line(vllm: type[StandIn], qwen3_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = EngineChoice("vllm", options={"dtype": "broken"})
    with pytest.raises(ReasonEmbedError, match=r"0\.99 cannot load .*\(no such dtype\): use"):
        load_reason_embed("small", path=str(qwen3_dir), engine=choice)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ReasonEmbedError, match="vLLM is not installed here"):
        load_reason_embed("small", path=str(qwen3_dir), engine="vllm")
