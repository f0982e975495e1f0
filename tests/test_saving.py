"""What older libraries need in a saved directory: the keys, and (slow) their vectors."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import make_tokenizer

from reasonembed_mteb.models.reason_embed import ReasonEmbed

if TYPE_CHECKING:
    from pathlib import Path

INSTRUCTION = "Given a Biology post, retrieve relevant passages that help answer the post."
TASK = "ReasonEmbedBrightBiology"
# The first is far longer than the others: rotary positions show, and padding.
TEXTS = ["Why is the sky blue and why do leaves fall in autumn? " * 30 + "end", "red sun", "a", "salt"]
DEFAULT = {"rope_type": "default", "rope_theta": 1e6}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 4096}
LONG = {"rope_type": "longrope", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 2048}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LAYERED = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def save(folder: Path, family: str, rope: dict[str, Any], **options: Any) -> ReasonEmbed:
    """Save a bare decoder with these rotary positions, and the model in ``folder/saved``."""
    import torch
    import transformers

    bare = folder / "bare"
    tokenizer = options.pop("tokenizer", None) or make_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"max_position_embeddings": 16384}
    torch.manual_seed(0)
    kind = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{kind}Config")(**sizes, rope_parameters=rope, **options)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    model = ReasonEmbed(str(bare), device="cpu")
    model.save_pretrained(str(folder / "saved"))
    return model


def read(folder: Path, name: str = "config.json") -> Any:
    return json.loads((folder / "saved" / name).read_text(encoding="utf-8"))


def test_rotary_positions_stand_in_both_spellings(tmp_path: Path) -> None:
    save(tmp_path, "Qwen3", DEFAULT)
    config = read(tmp_path)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6
    assert "rope_scaling" not in config
    assert config["torch_dtype"] == config["dtype"] == "float32"


@pytest.mark.parametrize(("family", "rope"), [("Llama", LLAMA3), ("Qwen3", YARN)], ids=["llama3", "yarn"])
def test_scaled_positions_keep_their_scale(family: str, rope: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path, family, dict(rope))
    config = read(tmp_path)
    assert config["rope_theta"] == rope["rope_theta"]
    assert config["rope_scaling"] == {key: value for key, value in rope.items() if key != "rope_theta"}


def test_positions_by_kind_of_layer(tmp_path: Path) -> None:
    save(tmp_path, "Gemma3", LAYERED, sliding_window=8)
    config = read(tmp_path)
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_other_names_of_the_rotary_base(tmp_path: Path) -> None:
    save(tmp_path, "GPTNeoX", DEFAULT | {"partial_rotary_factor": 0.5})
    config = read(tmp_path)
    assert (config["rotary_emb_base"], config["rotary_pct"]) == (1e6, 0.5)


def test_positions_that_have_no_older_spelling_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from reasonembed_mteb.models.saving import add_older_forms

    model = save(tmp_path, "Qwen3", DEFAULT)
    file = tmp_path / "saved" / "config.json"
    held = read(tmp_path) | {"rope_parameters": LAYERED}
    file.write_text(json.dumps({k: v for k, v in held.items() if k != "rope_theta"}), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        add_older_forms(tmp_path / "saved", model)
    assert "no spelling for rotary positions by layer" in caplog.text
    assert "rope_theta" not in read(tmp_path)


def test_modules_and_pooling_are_those_of_version_5(tmp_path: Path) -> None:
    model = save(tmp_path, "Qwen3", DEFAULT)
    kinds = [module["type"] for module in read(tmp_path, "modules.json")]
    assert kinds == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")
    ]
    pooling = read(tmp_path, "1_Pooling/config.json")
    assert pooling["word_embedding_dimension"] == 32
    assert [flag for flag, value in pooling.items() if value is True] == [
        "pooling_mode_lasttoken",
        "include_prompt",
    ]
    # Version 5.1 stops at any other key.
    assert read(tmp_path, "sentence_bert_config.json") == {
        "max_seq_length": model.max_seq_length,
        "do_lower_case": False,
    }


def test_tokenizers_are_read_from_their_file(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaTokenizer

    plain = json.loads(make_tokenizer().backend_tokenizer.to_str())["model"]
    llama = LlamaTokenizer(
        vocab=plain["vocab"],
        merges=[tuple(pair) for pair in plain["merges"]],
        bos_token="<|begin|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["sky"],
        add_eos_token=True,
    )
    expected = llama("red sky")["input_ids"]
    save(tmp_path, "Llama", DEFAULT, tokenizer=llama)
    held = read(tmp_path, "tokenizer_config.json")
    assert held["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "add_eos_token" not in held
    assert held["additional_special_tokens"] == ["sky"]
    assert held["padding_side"] == "right"
    assert held["model_input_names"] == ["input_ids", "attention_mask"]
    again = AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert again("red sky")["input_ids"] == expected
    assert again.extra_special_tokens == ["sky"]


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("Qwen3", DEFAULT),
        ("Llama", LLAMA3),
        ("Qwen3", YARN),
        ("Llama", LONG),
        ("Gemma3", LAYERED),
        ("GPTNeoX", DEFAULT),
    ],
    ids=["qwen3", "llama3", "yarn", "longrope", "gemma3", "gpt_neox"],
)
def test_the_newest_reads_what_it_wrote(family: str, rope: dict[str, Any], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = save(tmp_path, family, json.loads(json.dumps(rope)))
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.abs(plain.encode(TEXTS) - model.encode(TEXTS)).max() < 1e-6
    loaded = ReasonEmbed(str(tmp_path / "saved"), device="cpu")
    assert loaded[0].auto_model.config.rope_parameters == model[0].auto_model.config.rope_parameters
    loaded.save_pretrained(str(tmp_path / "again"))
    names = ("config.json", "modules.json", "sentence_bert_config.json", "tokenizer_config.json")
    for name in (*names, "1_Pooling/config.json", "config_sentence_transformers.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes(), name


def test_other_kinds_of_model_keep_their_form(encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(str(tmp_path / "plain"))
    model = ReasonEmbed(str(tmp_path / "plain"), device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    assert read(tmp_path, "1_Pooling/config.json")["pooling_mode_mean_tokens"] is True
    assert "rope_theta" not in read(tmp_path)
    again = ReasonEmbed(str(tmp_path / "saved"), device="cpu")
    assert np.abs(again.encode(TEXTS[1:]) - encoder.encode(TEXTS[1:])).max() < 1e-6


def test_the_card_says_who_reads_it_and_how(tmp_path: Path) -> None:
    save(tmp_path, "Qwen3", DEFAULT)
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "Reads with sentence-transformers >= 5.1" in card
    assert f'model.encode_query(queries, prompt_name="{TASK}-query")' in card
    assert "The weather is lovely today" not in card
    assert f"`Instruct: {INSTRUCTION}\\nQuery: `" in card


def save_router(folder: Path) -> ReasonEmbed:
    """Save a model that reads queries by static vectors and documents by a decoder, in ``folder/saved``."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Router
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    decoder = save(folder, "Qwen3", DEFAULT)
    static = StaticEmbedding(make_tokenizer().backend_tokenizer, embedding_dim=16)
    documents = [decoder[0], decoder[1], Dense(32, 16)]
    routed = Router.for_query_document(query_modules=[static], document_modules=documents)
    plain = SentenceTransformer(modules=[routed], device="cpu")
    plain.save(str(folder / "plain"))
    model = ReasonEmbed(str(folder / "plain"), device="cpu")
    for method in ("encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(model, method)(TEXTS), getattr(plain, method)(TEXTS), atol=1e-6)
    model.save_pretrained(str(folder / "saved"))
    return model


def test_every_route_of_a_router_is_written_for_older_readers(tmp_path: Path) -> None:
    model = save_router(tmp_path)
    held = read(tmp_path, "router_config.json")
    assert set(held["types"].values()) == {
        f"sentence_transformers.models.{name}"
        for name in ("StaticEmbedding", "Transformer", "Pooling", "Dense")
    }
    assert set(held["parameters"]) == {"default_route", "allow_empty_key"}
    assert read(tmp_path, "document_0_Transformer/config.json")["rope_theta"] == DEFAULT["rope_theta"]
    assert read(tmp_path, "document_1_Pooling/config.json")["pooling_mode_lasttoken"] is True
    again = ReasonEmbed(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(again.encode_document(TEXTS), model.encode_document(TEXTS), atol=1e-6)


READ_BY_SENTENCE_TRANSFORMERS = """
import json, sys
import numpy
from sentence_transformers import SentenceTransformer
given = json.load(open(sys.argv[1], encoding="utf-8"))
for folder in given["folders"]:
    model = SentenceTransformer(folder, device="cpu")
    vectors = [model.encode(given["texts"]), model.encode(given["texts"], prompt_name=given["prompt_name"])]
    numpy.save(folder + "/read.npy", numpy.concatenate(vectors))
"""
READ_BY_FLAGEMBEDDING = """
import json, sys
import numpy
from FlagEmbedding import FlagAutoModel, FlagLLMModel
given = json.load(open(sys.argv[1], encoding="utf-8"))
options = {
    "query_instruction_for_retrieval": given["instruction"],
    "query_instruction_format": "Instruct: {}\\nQuery: {}",
    "use_fp16": False,
    "devices": ["cpu"],
    "query_max_length": 4096,
    "passage_max_length": 4096,
}
if __name__ == "__main__":
    for folder in given["folders"]:
        model = FlagLLMModel(folder, **options)
        found = numpy.concatenate([model.encode_corpus(given["texts"]), model.encode_queries(given["texts"])])
        other = FlagAutoModel.from_finetuned(folder, model_class="decoder-only-base", **options)
        assert numpy.abs(other.encode_corpus(given["texts"]) - found[: len(given["texts"])]).max() < 1e-6
        numpy.save(folder + "/read.npy", found)
"""


def environment(folder: Path, *packages: str) -> Path:
    """Make an environment of its own and return its Python; skip where the index cannot be reached."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    python = folder / "bin" / "python"
    torch = version("torch").partition("+")[0]
    # torch first and by itself: the build that runs here, not the one that the others would choose.
    for wanted in ([f"torch=={torch}"], [f"torch=={torch}", *packages]):
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
        if done.returncode:
            said = done.stderr.strip()
            unreachable = ("No matching distribution", "Connection", "Temporary failure", "Max retries")
            if any(reason in said for reason in unreachable):
                pytest.skip(f"the package index cannot be reached: {said.splitlines()[-1]}")
            pytest.fail(said)
    return python


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "code"),
    [
        (("sentence-transformers==5.1.0", "transformers==4.57.6"), READ_BY_SENTENCE_TRANSFORMERS),
        (("sentence-transformers==5.7.0", "transformers==4.57.6"), READ_BY_SENTENCE_TRANSFORMERS),
        (("FlagEmbedding==1.4.2", "transformers==4.57.6"), READ_BY_FLAGEMBEDDING),
    ],
    ids=["sentence-transformers-5.1", "sentence-transformers-5.7", "flagembedding-1.4"],
)
def test_older_libraries_give_the_same_vectors(packages: tuple[str, ...], code: str, tmp_path: Path) -> None:
    kinds = {"Qwen3": DEFAULT, "Llama": LLAMA3, "Qwen2": DEFAULT, "Mistral": DEFAULT, "Gemma3": LAYERED}
    expected = {}
    for family, rope in kinds.items():
        folder = tmp_path / family
        model = save(folder, family, json.loads(json.dumps(rope)))
        expected[folder / "saved"] = np.concatenate(
            [model.encode_document(TEXTS), model.encode_query(TEXTS, task=TASK)]
        )
    python = environment(tmp_path / "environment", *packages)
    given = {"folders": [str(one) for one in expected], "texts": TEXTS, "instruction": INSTRUCTION}
    (tmp_path / "given.json").write_text(json.dumps(given | {"prompt_name": f"{TASK}-query"}), "utf-8")
    script = tmp_path / "reading.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [str(python), str(script), str(tmp_path / "given.json")],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, vectors in expected.items():
        assert np.abs(np.load(folder / "read.npy") - vectors).max() < 1e-5, folder
