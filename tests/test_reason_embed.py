"""ReasonEmbed against plain sentence-transformers and a plain-transformers reference."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, save_decoder
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoTokenizer

from reasonembed_mteb import ReasonEmbed
from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.models.mteb_encoder import load_other
from reasonembed_mteb.models.special_tokens import (
    change_post_processor,
    settle_special_tokens,
    surrounded,
)
from reasonembed_mteb.retrieval.rows import task_instructions

if TYPE_CHECKING:
    from pathlib import Path

QUERY = "Why is the sky blue?"
GOLDEN_DOCUMENT = [286, 353, 364]
GOLDEN_QUERY = [
    284,
    343,
    292,
    30,
    225,
    349,
    268,
    356,
    279,
    16,
    368,
    367,
    369,
    341,
    354,
    366,
    280,
    279,
    18,
    203,
    285,
    342,
    30,
    360,
    332,
    280,
    339,
    361,
    35,
]
PREFIX = "Instruct: Given a Biology post, retrieve relevant passages that help answer the post.\nQuery: "
TEXTS = [
    "Rayleigh scattering",
    "long waves pass, short ones are sent to all sides of the sky",
    "x",
    "The sky. " * 40,
]


@pytest.fixture(scope="module")
def model(qwen3_dir: Path) -> ReasonEmbed:
    """Load the bare checkpoint."""
    return ReasonEmbed(str(qwen3_dir), device="cpu")


@pytest.fixture(scope="module")
def saved(model: ReasonEmbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save it as a directory."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(str(folder))
    return folder


def reference(folder: Path, texts: list[str]) -> Any:
    """Encode one text at a time with transformers alone: last token, unit length."""
    tokenizer = make_tokenizer(chat=True)
    backbone = AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            last = backbone(input_ids=ids).last_hidden_state[0, -1].double().numpy()
        vectors.append(last / np.sqrt((last * last).sum()))
    return np.stack(vectors)


def test_vectors_are_the_same_however_they_are_made(model: ReasonEmbed, saved: Path, qwen3_dir: Path) -> None:
    expected = reference(qwen3_dir, TEXTS)
    plain = SentenceTransformer(str(saved), device="cpu")
    single = np.stack([model.encode_document(text) for text in TEXTS])
    for found in (model.encode_document(TEXTS), plain.encode_document(TEXTS), single):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    asked = model.encode_query([QUERY], task="biology")
    np.testing.assert_allclose(asked, reference(qwen3_dir, [PREFIX + QUERY]), atol=1e-6)
    np.testing.assert_allclose(plain.encode([QUERY], prompt=PREFIX), asked, atol=1e-6)
    np.testing.assert_allclose(
        plain.encode([QUERY], prompt_name="ReasonEmbedBrightBiology-query"), asked, atol=1e-6
    )


def test_left_padding_gives_the_same_vectors(saved: Path, model: ReasonEmbed) -> None:
    left = SentenceTransformer(str(saved), device="cpu", processor_kwargs={"padding_side": "left"})
    assert left.tokenizer.padding_side == "left"
    np.testing.assert_allclose(left.encode(TEXTS), model.encode(TEXTS), atol=1e-6)


def test_token_ids_are_golden(model: ReasonEmbed) -> None:
    assert model.tokenizer.padding_side == "right"
    query = model.preprocess([QUERY], prompt=PREFIX)
    document = model.preprocess(["Rayleigh scattering"])
    assert model.tokenizer.decode(query["input_ids"][0]) == PREFIX + QUERY
    assert document["input_ids"].tolist() == [GOLDEN_DOCUMENT]
    assert query["input_ids"].tolist() == [GOLDEN_QUERY]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
@pytest.mark.parametrize(
    "tokenizer",
    [
        {},
        {"chat": True},
        {"pad": False},
        {"eos": True},
        {"bos": True},
        {"chat": True, "eos": True, "bos": True},
    ],
)
def test_bare_decoders_load_rightly(family: str, tokenizer: dict[str, bool], tmp_path: Path) -> None:
    model = ReasonEmbed(str(save_decoder(tmp_path, family, **tokenizer)), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model[1].pooling_mode == "lasttoken"
    assert model.modalities == ["text"]
    assert model.tokenizer.padding_side == "right"
    assert model.tokenizer.pad_token in model.tokenizer.get_vocab()
    assert model.max_seq_length == 8192
    # Nothing is added that the tokenizer did not add before, and nothing is taken away.
    expected = make_tokenizer(**tokenizer)(QUERY)["input_ids"]
    assert model.preprocess([QUERY])["input_ids"].tolist() == [expected]
    vectors = model.encode([QUERY, "x"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_backbone_saved_without_its_head_is_a_decoder_too(tmp_path: Path) -> None:
    model = ReasonEmbed(str(save_decoder(tmp_path, headless=True)), device="cpu")
    assert model[1].pooling_mode == "lasttoken"


def test_an_encoder_keeps_sentence_transformers_defaults(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=500, **sizes)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = ReasonEmbed(str(tmp_path), device="cpu")
    assert model[1].pooling_mode == "mean"
    assert "ReasonEmbedBrightBiology-query" not in model._get_model_config()["prompts"]


def test_a_pad_token_is_chosen_from_the_vocabulary(tmp_path: Path) -> None:
    model = ReasonEmbed(str(save_decoder(tmp_path, "llama", pad=False)), device="cpu")
    assert model.tokenizer.pad_token == "<|finetune_right_pad_id|>"


def test_truncation_keeps_the_eos_token(tmp_path: Path) -> None:
    model = ReasonEmbed(str(save_decoder(tmp_path, eos=True)), device="cpu")
    model.max_seq_length = 8
    ids = model.preprocess(["The sky. " * 40])["input_ids"][0].tolist()
    assert len(ids) == 8
    assert ids[-1] == model.tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_the_length_of_the_last_call_is_not_saved(qwen3_dir: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    model.save_pretrained(str(tmp_path / "unused"), create_model_card=False)
    model.max_seq_length = 8
    model.preprocess(["The sky. " * 40, "short"])
    model.max_seq_length = 64
    model.save_pretrained(str(tmp_path / "used"), create_model_card=False)
    files = [tmp_path / name / "tokenizer.json" for name in ("unused", "used")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(Tokenizer.from_file(str(files[1])).encode("The sky. " * 40).ids) > 64
    assert len(model.preprocess(["The sky. " * 40])["input_ids"][0]) == 64


def test_saved_prompts_hold_every_task(saved: Path) -> None:
    config = json.loads((saved / "config_sentence_transformers.json").read_text())
    for name, instruction in task_instructions().items():
        prefix = f"Instruct: {instruction}\nQuery: " if instruction else None
        assert config["prompts"].get(f"{name}-query") == prefix
    assert config["prompts"]["document"] == ""
    assert config["default_prompt_name"] is None
    assert config["model_type"] == "SentenceTransformer"
    modules = json.loads((saved / "modules.json").read_text())
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    assert (saved / "model.safetensors").is_file()
    card = (saved / "README.md").read_text()
    assert "8192 tokens" in card
    assert "R2MED's protocol is 512 tokens" in card


def test_mteb_finds_the_prompts_of_the_object_itself(model: ReasonEmbed, saved: Path) -> None:
    config = json.loads((saved / "config_sentence_transformers.json").read_text())
    assert model.prompts["BrightBiologyRetrieval-query"] == PREFIX
    assert model.prompts | {"query": ""} == config["prompts"] | {"query": ""}


def test_a_directory_loads_as_it_is(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    file = folder / "1_Pooling" / "config.json"
    flags = {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | flags | {"pooling_mode": "mean"}))
    assert ReasonEmbed(str(folder), device="cpu")[1].pooling_mode == "mean"


def test_saving_twice_is_the_same_as_saving_once(saved: Path, tmp_path: Path) -> None:
    ReasonEmbed(str(saved), device="cpu").save_pretrained(str(tmp_path / "again"))
    for name in ("config_sentence_transformers.json", "modules.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes(), name


def test_push_to_hub_uploads_the_whole_directory(model: ReasonEmbed, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path as RealPath

    import huggingface_hub

    seen: dict[str, Any] = {}

    def upload(self: Any, *, folder_path: str, **_: Any) -> Any:
        config = RealPath(folder_path) / "config_sentence_transformers.json"
        seen["prompts"] = json.loads(config.read_text())["prompts"]
        seen["files"] = {file.name for file in RealPath(folder_path).iterdir()}
        return type("Commit", (), {"commit_url": "x", "oid": "y", "pr_url": None})()

    api = huggingface_hub.HfApi
    monkeypatch.setattr(api, "upload_folder", upload)
    monkeypatch.setattr(api, "create_repo", lambda *_, **__: type("Url", (), {"repo_id": "a/b"})())
    model.push_to_hub("a/b")
    assert "BrightBiologyRetrieval-query" in seen["prompts"]
    assert {"modules.json", "model.safetensors", "README.md"} <= seen["files"]


@pytest.mark.slow
def test_without_this_package_mteb_scores_it_the_same(saved: Path, tmp_path: Path) -> None:
    code = """
import sys
for name in list(sys.modules):
    if name.startswith("reasonembed_mteb"):
        del sys.modules[name]
sys.modules["reasonembed_mteb"] = None
import mteb
from mteb.types import PromptType
from mteb.models.abs_encoder import get_prompt_name
from sentence_transformers import SentenceTransformer
from mteb.models import SentenceTransformerEncoderWrapper
model = SentenceTransformerEncoderWrapper(SentenceTransformer(sys.argv[1], device="cpu"))
task = mteb.get_task("BrightBiologyRetrieval").metadata
for kind in (PromptType.query, PromptType.document):
    print(repr(model.model_prompts.get(get_prompt_name(model.model_prompts, task, kind))))
"""
    import os

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(saved)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"REASONEMBED_MTEB_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [repr(PREFIX), repr("")]


def test_query_arguments(model: ReasonEmbed) -> None:
    by_task = model.encode_query(QUERY, task="ReasonEmbedBrightBiology")
    assert by_task.shape == (32,)
    np.testing.assert_array_equal(by_task, model.encode_query(QUERY, task="BrightProBiologyRetrieval"))
    own = model.encode_query(QUERY, instruction="Find it.")
    np.testing.assert_array_equal(own, model.encode("Instruct: Find it.\nQuery: " + QUERY))
    np.testing.assert_array_equal(model.encode_query(QUERY, instruction=""), model.encode(QUERY))
    with pytest.raises(UnknownNameError, match="did you mean 'biology'"):
        model.encode_query(QUERY, task="biologie")
    for both in ({"instruction": "x"}, {"prompt": "x"}, {"prompt_name": "query"}):
        with pytest.raises(ReasonEmbedError, match="give one of"):
            model.encode_query(QUERY, task="biology", **both)
    with pytest.raises(ReasonEmbedError, match="give one of"):
        model.encode_query(QUERY, "query", task="biology")


def test_no_instruction_warns_once(qwen3_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    for _ in range(2):
        np.testing.assert_array_equal(model.encode_query(QUERY), model.encode(QUERY))
    assert caplog.text.count("without an instruction") == 1


def test_the_directorys_query_prompt_is_taken(qwen3_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ReasonEmbed(str(qwen3_dir), device="cpu", prompts={"query": "ask: ", "document": ""})
    np.testing.assert_array_equal(model.encode_query(QUERY), model.encode("ask: " + QUERY, prompt=""))
    assert "without an instruction" not in caplog.text


def test_empty_texts_have_zero_vectors(model: ReasonEmbed, tmp_path: Path) -> None:
    assert not model.encode([""]).any()
    mixed = model.encode(["", "x", ""])
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), [0, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(mixed[1], model.encode("x"))
    assert model.encode("").shape == (32,)
    assert model.encode([]).shape == (0,)
    # An instruction, or an EOS of the tokenizer's own, is something to encode.
    assert model.encode_query([""], task="biology").any()
    with_eos = ReasonEmbed(str(save_decoder(tmp_path, eos=True)), device="cpu")
    assert with_eos.encode([""]).any()


@pytest.mark.parametrize("value", [None, 3, 2.5, b"bytes"])
def test_what_is_not_text_is_refused(model: ReasonEmbed, value: object) -> None:
    with pytest.raises(ReasonEmbedError, match=f"input 1 is {type(value).__name__}, not text"):
        model.encode(["fine", value])  # type: ignore[list-item]


def test_a_directory_without_tokenizer_is_an_error(tmp_path: Path) -> None:
    save_decoder(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ReasonEmbedError, match=r"no tokenizer \(tokenizer.json\): save the tokenizer"):
        ReasonEmbed(str(tmp_path), device="cpu")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_decoder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ReasonEmbedError, match="pickled weights, which may run code"):
        ReasonEmbed(str(tmp_path), device="cpu")


def test_only_safetensors_are_written(model: ReasonEmbed, tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="only safetensors"):
        model.save_pretrained(str(tmp_path), safe_serialization=False)


def test_the_constructor_is_sentence_transformers_own() -> None:
    assert inspect.signature(ReasonEmbed) == inspect.signature(SentenceTransformer)


def save_backbone(folder: Path, name: str, **options: Any) -> str:
    """Save a small random backbone of any family with a tokenizer."""
    import transformers

    tokenizer = make_tokenizer(chat=True)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**sizes, **heads, **options)
    family = name if hasattr(transformers, f"{name}Model") else name.removesuffix("Text")
    torch.manual_seed(0)
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "options", "pooling"),
    [
        ("Gemma3Text", {"sliding_window": 16}, "lasttoken"),
        ("Gemma3Text", {"sliding_window": 16, "use_bidirectional_attention": True}, "mean"),
        ("Phi3", {}, "lasttoken"),
        ("Olmo2", {}, "lasttoken"),
        ("GPTNeoX", {"is_decoder": True}, "lasttoken"),
        ("XLMRoberta", {}, "mean"),
    ],
)
def test_decoders_are_told_by_the_model(
    name: str, options: dict[str, Any], pooling: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ReasonEmbed(save_backbone(tmp_path, name, **options), device="cpu")
    assert model[1].pooling_mode == pooling
    (said,) = [message for message in caplog.messages if "no modules.json" in message]
    assert f"assuming {pooling} pooling" in said


def test_a_decoder_that_cannot_be_asked_is_no_encoder(
    qwen3_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("transformers.models.qwen3.modeling_qwen3.Qwen3Attention.forward", full)
    with pytest.raises(ReasonEmbedError, match=r"Qwen3Model cannot read .*out of memory.*another device"):
        ReasonEmbed(str(qwen3_dir), device="cpu")


@pytest.mark.parametrize("where", ["end", "start"])
@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(
    "kind", ["LlamaTokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizerFast", "Qwen2Tokenizer"]
)
def test_special_tokens_are_those_of_transformers_4(
    where: str, said: bool, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = save_contradiction(tmp_path, where, said, kind)
    model = ReasonEmbed(str(tmp_path), device="cpu")
    ids = model.tokenizer("x")["input_ids"]
    place = -1 if where == "end" else 0
    wanted = model.tokenizer.eos_token_id if where == "end" else model.tokenizer.bos_token_id
    # transformers 4.57.6 obeyed the configuration for Llama and GPT-NeoX, tokenizer.json for all others.
    obeyed = kind in ("LlamaTokenizer", "GPTNeoXTokenizer")
    assert (ids[place] == wanted) == (said if obeyed else not said)
    warned = [message for message in caplog.messages if f"{key}={str(said).lower()}" in message]
    assert len(warned) == 1


def save_contradiction(folder: Path, where: str, said: bool | None, kind: str) -> str:
    """Save a decoder whose tokenizer's two files disagree, about one token only; return the key."""
    key, token = ("add_eos_token", "eos") if where == "end" else ("add_bos_token", "bos")
    save_decoder(folder, "mistral", **({token: True} if not said else {}))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config |= {"tokenizer_class": kind, "eos_token": "<|endoftext|>", "bos_token": "<|begin|>"}
    config |= {"add_bos_token": False, "add_eos_token": False, key: said}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return key


@pytest.mark.parametrize(
    ("template", "said", "expected"),
    [
        ("S $A", {"add_eos_token": True}, "S $A E"),
        ("S M $A", {"add_eos_token": True}, "S M $A E"),
        ("$A M", {"add_bos_token": True, "add_eos_token": True}, "B $A M E"),
        ("B S $A", {"add_bos_token": False}, "S $A"),
        ("S B $A E M", {"add_bos_token": False, "add_eos_token": False}, "S $A M"),
        ("S $A E M", {"add_eos_token": True}, "S $A E M"),
    ],
)
def test_other_special_tokens_stay(
    template: str, said: dict[str, bool], expected: str, tmp_path: Path
) -> None:
    short = {"B": "<|begin|>", "E": "<|endoftext|>", "S": "<|im_start|>", "M": "<|im_end|>", "$A": "$A"}
    save_contradiction(tmp_path, "end", None, "LlamaTokenizer")
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {
        "add_bos_token": "B" in template,
        "add_eos_token": "E" in template,
    }
    file.write_text(json.dumps(config | said))
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    single = " ".join(short[piece] for piece in template.split())
    known = [(token, backend.token_to_id(token)) for token in short.values() if token != "$A"]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=known)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    settle_special_tokens(tokenizer, str(tmp_path), {})
    texts = {"$A": "x"} | {piece: short[piece] for piece in "BESM"}
    wanted = [texts[piece] for piece in expected.split()]
    assert tokenizer.convert_ids_to_tokens(tokenizer("x")["input_ids"]) == wanted
    # What is saved says the same to every other reader.
    tokenizer.save_pretrained(tmp_path / "again")
    again = Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    assert again.encode("x").tokens == wanted


@pytest.mark.parametrize("template", [None, "B $A", "B $A E", "S B $A"])
def test_tokens_go_around_a_template_within_a_sequence(template: str | None) -> None:
    # As Llama 3 has it: one processor for bytes, then perhaps a template.
    short = {"B": "<|begin|>", "E": "<|endoftext|>", "S": "<|im_start|>", "M": "<|im_end|>"}
    tokenizer = make_tokenizer()
    backend = tokenizer.backend_tokenizer
    ids = {piece: backend.token_to_id(token) for piece, token in short.items()}
    parts: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    before, after = (template or "$A").split("$A")
    if template is not None:
        single = " ".join(short.get(piece, piece) for piece in template.split())
        known = [(token, ids[piece]) for piece, token in short.items()]
        parts.append(processors.TemplateProcessing(single=single, special_tokens=known))
    backend.post_processor = processors.Sequence(parts)
    more = {short["M"]: ids["M"], short["S"]: ids["S"]}
    change_post_processor(tokenizer, lambda held: surrounded(held, after=more))
    wanted = [*before.split(), "x", *after.split(), "M", "S"]
    assert backend.encode("x").tokens == [short.get(piece, piece) for piece in wanted]


def test_a_default_of_transformers_4_that_differs_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_contradiction(tmp_path, "end", None, "LlamaTokenizer")
    model = ReasonEmbed(str(tmp_path), device="cpu")
    assert model.tokenizer("x")["input_ids"][-1] == model.tokenizer.eos_token_id
    (said,) = [message for message in caplog.messages if "add_eos_token" in message]
    assert "does not say add_eos_token, for which transformers 4 takes false; <|endoftext|> is added" in said


# peft asks transformers by the older name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_loads_on_its_base(qwen3_dir: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    backbone = AutoModel.from_pretrained(qwen3_dir)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(backbone, config)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    model = ReasonEmbed(str(tmp_path / "adapter"), device="cpu")
    assert model[1].pooling_mode == "lasttoken"
    ids = torch.tensor([make_tokenizer()(QUERY)["input_ids"]])
    with torch.no_grad():
        last = adapted.eval()(input_ids=ids).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(model.encode(QUERY), last / np.linalg.norm(last), atol=1e-5)
    plain = ReasonEmbed(str(qwen3_dir), device="cpu").encode(QUERY)
    assert np.abs(model.encode(QUERY) - plain).max() > 1e-3


def test_an_adapter_without_its_base_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone"), "peft_type": "LORA"}))
    with pytest.raises(ReasonEmbedError, match=r"base model .*gone of the adapter .* does not exist"):
        ReasonEmbed(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"task_type": "SEQ_CLS"}, "adapter of a cross-encoder"),
        ({"base_model_name_or_path": "someone/not-here"}, "base model someone/not-here .* download the base"),
    ],
)
def test_an_adapter_that_cannot_embed_is_refused(
    adapter: dict[str, str], said: str, qwen3_dir: Path, tmp_path: Path
) -> None:
    config = {"base_model_name_or_path": str(qwen3_dir), "peft_type": "LORA"} | adapter
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ReasonEmbedError, match=said):
        ReasonEmbed(str(tmp_path), device="cpu")


def test_a_cross_encoders_adapter_is_refused_as_a_reranker(qwen3_dir: Path, tmp_path: Path) -> None:
    config = {"base_model_name_or_path": str(qwen3_dir), "peft_type": "LORA", "task_type": "SEQ_CLS"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ReasonEmbedError, match="merge it into its base"):
        load_other("local/x", kind="cross-encoder", path=str(tmp_path))
