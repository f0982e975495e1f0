"""Whatever a SentenceTransformer takes, ours takes, and gives the same."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import save_decoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import masking_utils
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaModel

from reasonembed_mteb import ReasonEmbed
from reasonembed_mteb.encoding import FastSentenceTransformer, accelerate, packing
from reasonembed_mteb.retrieval.lengths import capped_length

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["Why is the sky blue?", "long waves pass", "x", "The sky. " * 20]
TOLERANCE = 1e-5
# What ours adds to a method of the parent.
ADDED = {"encode_query": {"task", "instruction"}}
CALLS: list[dict[str, Any]] = [
    {"inputs": TEXTS},
    {"sentences": TEXTS},
    {"inputs": "one text"},
    {"inputs": tuple(TEXTS)},
    {"inputs": np.array(TEXTS)},
    {"inputs": []},
    {"inputs": TEXTS, "prompt": "Query: "},
    {"inputs": TEXTS, "prompt_name": "ask"},
    {"inputs": TEXTS, "batch_size": 2, "show_progress_bar": False},
    {"inputs": TEXTS, "output_value": "token_embeddings"},
    {"inputs": TEXTS, "output_value": None},
    {"inputs": TEXTS, "precision": "int8"},
    {"inputs": TEXTS, "precision": "ubinary"},
    {"inputs": TEXTS, "convert_to_tensor": True},
    {"inputs": TEXTS, "convert_to_numpy": False},
    {"inputs": TEXTS, "normalize_embeddings": True, "truncate_dim": 8},
    {"inputs": TEXTS, "device": "cpu"},
    {"inputs": TEXTS, "processing_kwargs": {"text": {"max_length": 4, "truncation": True}}},
]


class BothWays(LlamaModel):
    """A Llama whose own code lets every token see all others."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        """Attend in both directions."""
        embeds = self.embed_tokens(input_ids)
        mask = masking_utils.create_bidirectional_mask(
            config=self.config, inputs_embeds=embeds, attention_mask=attention_mask
        )
        return super().forward(inputs_embeds=embeds, attention_mask=mask, **kwargs)


@pytest.fixture
def pair(qwen3_dir: Path, tmp_path: Path) -> tuple[SentenceTransformer, ReasonEmbed]:
    """Return a directory as the library loads it, and as ReasonEmbed does."""
    ReasonEmbed(str(qwen3_dir), device="cpu", prompts={"ask": "Ask: "}).save_pretrained(str(tmp_path / "m"))
    folder = str(tmp_path / "m")
    return SentenceTransformer(folder, device="cpu"), ReasonEmbed(folder, device="cpu")


def same(found: Any, expected: Any, *, tolerance: float = TOLERANCE) -> None:
    """Compare what two calls of encode gave."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        found, expected = found["sentence_embedding"], expected["sentence_embedding"]
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other, tolerance=tolerance)
        return
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found.double(), expected.double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_every_call_gives_what_the_parent_gives(
    method: str, pair: tuple[SentenceTransformer, ReasonEmbed]
) -> None:
    plain, ours = pair
    for call in CALLS:
        tolerance = 1 if call.get("precision") else TOLERANCE
        expected = getattr(plain, method)(**call)
        same(getattr(ours, method)(**call), expected, tolerance=tolerance)
        first = {key: value for key, value in call.items() if key not in ("inputs", "sentences")}
        text = call.get("inputs", TEXTS)
        same(getattr(ours, method)(text, **first), expected, tolerance=tolerance)
    positional = (
        TEXTS,
        None,
        "Query: ",
        2,
        False,
        "sentence_embedding",
        "float32",
        True,
        False,
        "cpu",
        True,
        8,
    )
    same(getattr(ours, method)(*positional), getattr(plain, method)(*positional))


def test_every_parameter_of_encode_is_called() -> None:
    called = {name for call in CALLS for name in call} | {"pool", "chunk_size", "kwargs", "self"}
    for method in ("encode", "encode_query", "encode_document"):
        assert set(inspect.signature(getattr(SentenceTransformer, method)).parameters) <= called


@pytest.mark.parametrize("ours", [FastSentenceTransformer, ReasonEmbed])
def test_every_public_method_takes_what_the_parents_takes(ours: type) -> None:
    for name, member in inspect.getmembers(SentenceTransformer, callable):
        if name.startswith("_") or getattr(ours, name) is member:
            continue
        parent = inspect.signature(member).parameters
        own = inspect.signature(getattr(ours, name)).parameters
        added = ADDED.get(name, ())
        # Defaults and what may be given by position, too.
        assert [(one.name, one.kind, one.default) for one in own.values() if one.name not in added] == [
            (one.name, one.kind, one.default) for one in parent.values()
        ], name
    assert inspect.signature(ours) == inspect.signature(SentenceTransformer)


@pytest.mark.parametrize("method", ["save", "save_pretrained"])
def test_saving_takes_what_the_parent_takes(
    method: str, pair: tuple[SentenceTransformer, ReasonEmbed], tmp_path: Path
) -> None:
    plain, ours = pair
    for number, given in enumerate(
        [("x/name",), (None, False), ("x/name", True, ["one"]), (None, False, None, True)]
    ):
        written = []
        for model in (plain, ours):
            folder = tmp_path / f"{type(model).__name__}-{number}"
            getattr(model, method)(str(folder), *given)
            written.append({str(file.relative_to(folder)) for file in folder.rglob("*")})
        assert written[0] == written[1]
        assert ("README.md" in written[1]) is (len(given) != 2 and given != (None, False, None, True))
    assert getattr(ours, method)(None) is None


def test_overridden_private_methods_take_what_the_library_passes() -> None:
    taken = set(inspect.signature(SentenceTransformer._inference).parameters) - {"self", "inputs", "kwargs"}
    assert taken == {
        "prompt",
        "batch_size",
        "show_progress_bar",
        "output_value",
        "save_to_cpu",
        "normalize_embeddings",
        "truncate_dim",
        "device",
    }
    assert {"pool", "device", "chunk_size"} <= set(
        inspect.signature(SentenceTransformer._multi_process).parameters
    )
    assert "pool" in inspect.signature(SentenceTransformer._get_worker_result).parameters
    for name in (
        "_multi_process_worker",
        "_load_default_modules",
        "_load_modules",
        "_resolve_inference_device",
    ):
        assert callable(getattr(SentenceTransformer, name))


class Named(SentenceTransformer):
    """A user's own class."""


@pytest.mark.parametrize("kind", ["plain", "named", "ReasonEmbed"])
def test_copies_and_pickles_give_the_same_vectors(
    kind: str, pair: tuple[SentenceTransformer, ReasonEmbed]
) -> None:
    plain, ours = pair
    model: Any = ours
    if kind != "ReasonEmbed":
        plain.__class__ = {"plain": SentenceTransformer, "named": Named}[kind]
        model = accelerate(plain, batch_tokens=64)
    expected = model.encode(TEXTS)
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert other.batch_tokens == model.batch_tokens
        np.testing.assert_allclose(other.encode(TEXTS), expected, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "ReasonEmbed"])
def test_process_pools_and_device_lists_give_the_same_vectors(
    kind: str, pair: tuple[SentenceTransformer, ReasonEmbed]
) -> None:
    plain, ours = pair
    expected = plain.encode(TEXTS)
    model = ours if kind == "ReasonEmbed" else accelerate(plain)
    np.testing.assert_allclose(model.encode(TEXTS, device=["cpu", "cpu"]), expected, atol=TOLERANCE)
    pool = model.start_multi_process_pool(["cpu"])
    try:
        np.testing.assert_allclose(model.encode(TEXTS, pool=pool, chunk_size=3), expected, atol=TOLERANCE)
    finally:
        model.stop_multi_process_pool(pool)


def static_model() -> SentenceTransformer:
    """Return a static embedding model, whose tokenizer is no transformers one."""
    words = ["[UNK]", "Why", "is", "the", "sky", "blue", "x", "waves"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")


def bag_of_words() -> SentenceTransformer:
    """Return a bag of words."""
    return SentenceTransformer(modules=[BoW(vocab=["sky", "blue", "waves"])], device="cpu")


@pytest.mark.parametrize("make", [static_model, bag_of_words])
def test_models_without_a_transformers_tokenizer_take_the_parents_path(make: Any, tmp_path: Path) -> None:
    plain = make()
    texts = [*TEXTS, ""]
    expected = plain.encode(texts)
    plain.save(str(tmp_path))
    for model in (ReasonEmbed(str(tmp_path), device="cpu"), accelerate(plain)):
        with capped_length(model, 8192):
            np.testing.assert_allclose(model.encode(texts), expected, atol=TOLERANCE)


class Shouting(SentenceTransformer):
    """A user's class that changes texts before they are tokenised."""

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> Any:
        """Shout."""
        return super().preprocess([text.upper() for text in inputs], prompt=prompt, **kwargs)


def test_a_class_with_its_own_preprocessing_keeps_it(encoder: SentenceTransformer) -> None:
    encoder.__class__ = Shouting
    expected = encoder.encode(TEXTS)
    np.testing.assert_allclose(accelerate(encoder).encode(TEXTS), expected, atol=TOLERANCE)


@pytest.fixture
def llama(tmp_path: Path) -> SentenceTransformer:
    """Return a Llama with mean pooling."""
    model = ReasonEmbed(str(save_decoder(tmp_path, "llama")), device="cpu")
    model[1].pooling_mode = "mean"
    return SentenceTransformer(modules=list(model), device="cpu")


@pytest.fixture(params=["class", "modules", "masks", "attention"])
def looking_ahead(
    request: pytest.FixtureRequest, llama: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> SentenceTransformer:
    """Make it look ahead, in one of the ways in which people do."""
    backbone: Any = llama[0].auto_model
    if request.param == "class":
        backbone.__class__ = BothWays
    elif request.param == "masks":
        monkeypatch.setattr(modeling_llama, "create_causal_mask", both_ways)
    elif request.param == "attention":
        from transformers import AttentionInterface

        AttentionInterface.register("tests_both_ways", attend_both_ways)
        backbone.config._attn_implementation = "tests_both_ways"
    for layer in backbone.layers:
        layer.self_attn.is_causal = request.param == "attention"
    return llama


def both_ways(**kwargs: Any) -> Any:
    """Take what transformers' maker of causal masks takes, and hide the padding alone."""
    return masking_utils.create_bidirectional_mask(
        **{key: kwargs[key] for key in ("config", "inputs_embeds", "attention_mask")}
    )


def attend_both_ways(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    """Attend to everything; enough for texts that are encoded alone."""
    grouped = query.shape[1] != key.shape[1]
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, enable_gqa=grouped).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("attn", ["auto", "padded", "packed"])
def test_a_model_that_looks_ahead_keeps_its_vectors(looking_ahead: SentenceTransformer, attn: str) -> None:
    texts = TEXTS[:1]
    expected = looking_ahead.encode(texts)
    np.testing.assert_allclose(accelerate(looking_ahead, attn=attn).encode(texts), expected, atol=TOLERANCE)
    assert not packing.is_known_decoder(looking_ahead[0].auto_model)


def test_a_change_after_the_first_call_is_seen(llama: SentenceTransformer) -> None:
    accelerate(llama)
    llama.encode(TEXTS)
    backbone: Any = llama[0].auto_model
    assert packing.is_known_decoder(backbone)
    assert packing.is_causal(backbone)
    backbone.__class__ = BothWays
    for layer in backbone.layers:
        layer.self_attn.is_causal = False
    expected = SentenceTransformer(modules=list(llama), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(llama.encode(TEXTS), expected, atol=TOLERANCE)
    assert not packing.is_causal(backbone)
