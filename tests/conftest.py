"""Small random decoders with a small tokenizer, built in-process."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

# Before any library asks the hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Test processes side by side would fight over the cores with threads that wait by spinning.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    # Takes the arguments after ``reasonembed``; gives exit status, stdout and stderr.
    Command = Callable[..., tuple[int, str, str]]

CORPUS = (
    "Given a Biology post, retrieve relevant passages that help answer the post. Why is the sky blue? "
    "Instruct: Query: Rayleigh scattering sends short waves to all sides; long ones pass. "
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def make_tokenizer(*, pad: bool = True, chat: bool = False, eos: bool = False, bos: bool = False) -> Any:
    """Train a byte-level BPE tokenizer on a few sentences.

    Args:
        pad: Whether it has a pad token.
        chat: Whether it has a chat template.
        eos: Whether its template appends an EOS token.
        bos: Whether its template puts a BOS token first.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|finetune_right_pad_id|>", "<|begin|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    if eos or bos:
        template = ("<|begin|> " if bos else "") + "$A" + (" <|endoftext|>" if eos else "")
        ids = [(token, tokenizer.token_to_id(token)) for token in ("<|begin|>", "<|endoftext|>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>" if pad else None,
        model_max_length=32768,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def save_decoder(
    folder: Path, family: str = "qwen3", *, headless: bool = False, inner: int = 64, **tokenizer: bool
) -> Path:
    """Save a two-layer random decoder with its tokenizer, as a bare checkpoint.

    Args:
        folder: Where to.
        family: ``qwen2``, ``qwen3``, ``llama`` or ``mistral``.
        headless: Save the backbone alone, which then says ``Qwen3Model``.
        inner: Width between the two products of a layer.
        **tokenizer: What the tokenizer has; see `make_tokenizer`.
    """
    import torch
    import transformers

    name = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mistral": "Mistral"}[family]
    fast = make_tokenizer(**tokenizer)
    sizes = {
        "vocab_size": len(fast),
        "hidden_size": 32,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16384,
    }
    if family == "qwen3":
        sizes["head_dim"] = 8
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes, tie_word_embeddings=False)
    model = getattr(transformers, f"{name}{'Model' if headless else 'ForCausalLM'}")(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def registered() -> None:
    """Let mteb know our tasks, models and benchmarks, as the command does."""
    from reasonembed_mteb import plugin

    plugin.register()


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """Undo what a command does to the process: its arguments, its environment and its loggers."""
    names = (
        "",
        "mteb",
        "sentence_transformers",
        "reasonembed_mteb",
        "reasonembed_mteb.models.instructions",
        "bm25s",
    )
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers]
    environment, arguments = dict(os.environ), sys.argv
    yield
    for logger, (level, disabled, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.disabled, logger.handlers = disabled, handlers
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments


@pytest.fixture
def command(
    undone: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Return a function that runs ``reasonembed`` in the test's folder: exit status, stdout and stderr."""
    from reasonembed_mteb import cli

    del undone
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        sys.argv = ["reasonembed", *arguments]
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def qwen3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bare Qwen3 checkpoint with a chat template and a pad token."""
    return save_decoder(tmp_path_factory.mktemp("models") / "qwen3", chat=True)


def make_encoder(folder: Path) -> Any:
    """Return a two-layer random BERT with mean pooling, as all-MiniLM has.

    Args:
        folder: Where its parts are saved.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    tokenizer = make_tokenizer(bos=True, eos=True)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.model_max_length = 512
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(32, "mean"), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


@pytest.fixture
def encoder(tmp_path: Path) -> Any:
    """Return a model of `make_encoder`."""
    return make_encoder(tmp_path)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a local copy of BRIGHT with two tiny subsets."""
    from evaluation_data import write_subset

    folder = tmp_path / "data"
    write_subset(folder, "biology")
    write_subset(folder, "economics")
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(folder))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small sentence-transformers directory without prompts."""
    from evaluation_data import save_bert

    return save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with prompts of its own."""
    from evaluation_data import BIOLOGY, save_bert

    prompts = {f"{BIOLOGY}-query": "cell ", "query": "leaf ", "document": ""}
    return save_bert(tmp_path_factory.mktemp("models") / "prompted", prompts=prompts)


@pytest.fixture
def bright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a local copy with one subset and one query."""
    from bright_data import DOCUMENTS, example, write

    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(tmp_path))
    rows = [{"id": key, "content": text} for key, text in DOCUMENTS.items()]
    write(tmp_path, "documents/biology-00000-of-00001.parquet", rows)
    write(tmp_path, "examples/biology-00000-of-00001.parquet", [example()])
    return tmp_path


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small cross-encoder directory."""
    from evaluation_data import save_bert

    return save_bert(tmp_path_factory.mktemp("models") / "cross", head=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Run a stand-in of S3 on this machine, and return its address."""
    server = pytest.importorskip("moto.server", reason="needs the extra dev: moto[s3,server]")
    pytest.importorskip("s3fs", reason="needs the extra distributed")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(s3_server: str, undone: None, tmp_path: Path) -> str:
    """Return an empty bucket's address; what S3's client reads of the environment leads to it."""
    import s3fs

    del undone
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys, AWS_ENDPOINT_URL=s3_server)
    s3fs.S3FileSystem.clear_instance_cache()
    # Unique, as the folder is.
    name = "-".join(tmp_path.parts[-2:]).lower().replace("_", "-")[-60:].strip("-")
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
