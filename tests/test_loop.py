"""The encode loop: the same vectors by every option, and what happens when something is wrong."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, save_decoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from reasonembed_mteb import ReasonEmbed
from reasonembed_mteb.encoding import EncodingStats, TextsError, accelerate, encode_stream
from reasonembed_mteb.encoding import loop as engine
from reasonembed_mteb.encoding.loop import TokenBudget, batch_cost, prefetched, token_batches
from reasonembed_mteb.encoding.tokenizing import Tokenizing
from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["x", "The sky. " * 40, "Why is the sky blue?", "", "long waves pass " * 7, "Rayleigh"] * 3
TOLERANCE = 1e-5


@pytest.fixture
def model(qwen3_dir: Path) -> ReasonEmbed:
    """Load the small decoder; each test may change it."""
    return ReasonEmbed(str(qwen3_dir), device="cpu")


def by_library(model: ReasonEmbed, texts: list[str], **options: Any) -> Any:
    """Encode by the library's path."""
    model.attn = "off"
    try:
        return model.encode(texts, **options)
    finally:
        model.attn = "auto"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_embeddings": True},
        {"truncate_dim": 8, "normalize_embeddings": True},
        {"prompt": "Query: "},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"precision": "int8"},
        {"precision": "binary"},
        {"output_value": "token_embeddings"},
        {"output_value": None},
        {"show_progress_bar": True},
    ],
)
@pytest.mark.parametrize("attn", ["packed", "padded"])
def test_options_mean_what_they_mean_to_the_library(
    model: ReasonEmbed, options: dict[str, Any], attn: str
) -> None:
    texts = [text for text in TEXTS if text]
    expected = by_library(model, texts, **options)
    model.attn = attn
    found = model.encode(texts, **options)
    assert type(found) is type(expected)
    if options.get("output_value", "") is None:
        expected = [row["sentence_embedding"] for row in expected]
        found = [row["sentence_embedding"] for row in found]
    for one, other in zip(found, expected, strict=True):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        # int8 buckets come from the vectors' own range.
        tolerance = 1 if options.get("precision") == "int8" else TOLERANCE
        np.testing.assert_allclose(one.float(), other.float(), atol=tolerance, rtol=0)


def test_one_text_no_text_and_empty_texts(model: ReasonEmbed) -> None:
    assert model.encode("Rayleigh").shape == (32,)
    assert model.encode([]).shape == (0,)
    found = model.encode(["", "x", ""])
    assert (found[[0, 2]] == 0).all()
    np.testing.assert_allclose(found[1], model.encode("x"), atol=TOLERANCE)
    assert model.last_token_counts.tolist() == [1]
    assert model.encode(["", ""], truncate_dim=4).tolist() == [[0] * 4] * 2
    # With a prompt, an empty text has the prompt's vector.
    np.testing.assert_allclose(model.encode("", prompt="Query: "), model.encode("Query: "), atol=TOLERANCE)


@pytest.mark.parametrize("wrong", [None, 3, 1.5, b"bytes"])
def test_what_is_no_text_is_named(encoder: SentenceTransformer, wrong: object) -> None:
    accelerate(encoder)
    with pytest.raises(ReasonEmbedError, match=f"input 1 is {type(wrong).__name__}, not text"):
        encoder.encode(["fine", wrong])


@pytest.mark.parametrize("attn", ["packed", "padded"])
@pytest.mark.parametrize("budget", [1, 7, 100])
def test_a_budget_below_one_text_encodes_it_alone(model: ReasonEmbed, attn: str, budget: int) -> None:
    expected = model.encode(TEXTS)
    model.attn, model.batch_tokens = attn, budget
    model.encoding_stats.reset()
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)
    filled = sum(bool(text) for text in TEXTS)
    assert model.encoding_stats.batches == filled or budget > 1


def test_windows_and_what_is_left_of_them(model: ReasonEmbed, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.encode(TEXTS)
    monkeypatch.setattr(engine, "_WINDOW_TEXTS", 4)
    model.batch_tokens = 60
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)
    assert model.last_token_counts.tolist() == [len(model.tokenizer(t)["input_ids"]) for t in TEXTS]


def test_counts_and_figures(model: ReasonEmbed) -> None:
    model.max_seq_length = 20
    model.encode(TEXTS)
    counts = [len(make_tokenizer()(text)["input_ids"]) for text in TEXTS]
    assert model.last_token_counts.dtype == np.int32
    assert model.last_token_counts.tolist() == counts
    stats = model.encoding_stats
    long = sum(count > 20 for count in counts)
    assert (stats.texts, stats.truncated) == (len(TEXTS), long)
    assert long > 0
    assert stats.tokens == sum(min(count, 20) for count in counts)
    assert stats.batches == 1
    assert stats.seconds > 0
    model.encode(TEXTS)
    assert stats.texts == 2 * len(TEXTS)
    stats.reset()
    assert stats == EncodingStats()


@pytest.mark.parametrize(
    "kind", [{}, {"eos": True}, {"bos": True}, {"bos": True, "eos": True}, {"left_cut": True}]
)
def test_long_texts_are_cut_as_the_tokenizer_cuts(kind: dict[str, bool], tmp_path: Path) -> None:
    left_cut = kind.pop("left_cut", False)
    loaded = ReasonEmbed(str(save_decoder(tmp_path, "llama", **kind)), device="cpu")
    if left_cut:
        loaded.tokenizer.truncation_side = "left"
    for limit in (3, 9, 50):
        loaded.max_seq_length = limit
        for prompt in (None, "Query: "):
            rows = Tokenizing(loaded[0], prompt)(TEXTS)
            expected = loaded.tokenizer([(prompt or "") + text for text in TEXTS], truncation=True)
            assert [row.tolist() for row in rows.ids] == expected["input_ids"]


@pytest.mark.parametrize("attn", ["auto", "off"])
def test_a_length_without_room_for_a_text_is_refused(encoder: SentenceTransformer, attn: str) -> None:
    fast = accelerate(encoder, attn=attn)
    # A BOS and an EOS token stand around each text.
    for length in (0, 1, 2):
        fast.max_seq_length = length
        with pytest.raises(ReasonEmbedError, match=rf"max_seq_length is {length}, .* 2 special .* give 3"):
            fast.encode(["Why is the sky blue?", "red"])
    fast.max_seq_length = 3
    first, second = fast.encode(["Why is the sky blue?", "red"])
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("attn", ["auto", "off"])
def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(encoder: SentenceTransformer, attn: str) -> None:
    fast = accelerate(encoder, attn=attn)
    prompt = "Instruct: sky\nQuery: "
    before = len(fast.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    fast.max_seq_length = 2 + before
    with pytest.raises(
        ReasonEmbedError, match=rf"and the {before} of the prompt 'Instruct: .* give {before + 3}"
    ):
        fast.encode(["blue", "red"], prompt=prompt)
    fast.encode(["blue", "red"])
    fast.max_seq_length = 3 + before
    first, second = fast.encode(["blue", "red"], prompt=prompt)
    assert not np.array_equal(first, second)


def test_a_tokenizer_without_a_pad_token(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, "llama", pad=False, headless=True)
    text_only = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    transformer = Transformer(str(folder), modality_config=text_only, module_output_name="token_embeddings")
    plain = SentenceTransformer(modules=[transformer, Pooling(32, "lasttoken"), Normalize()], device="cpu")
    texts = [text for text in TEXTS if text]
    transformer.tokenizer.pad_token = "<|endoftext|>"
    expected = plain.encode(texts, batch_size=1)
    transformer.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad"):
        plain.encode(texts)
    for attn in ("packed", "padded"):
        accelerate(plain, attn=attn)
        np.testing.assert_allclose(plain.encode(texts), expected, atol=TOLERANCE, rtol=0)


def test_an_encoder_takes_the_padded_path(encoder: SentenceTransformer) -> None:
    expected = encoder.encode(TEXTS)
    assert accelerate(encoder, batch_tokens=200) is encoder
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)
    assert encoder.encoding_stats.batches > 1
    assert encoder.last_token_counts[3] == 2


def test_wrong_options_are_named(model: ReasonEmbed, encoder: SentenceTransformer) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'packed'"):
        accelerate(encoder, attn="pakced")
    with pytest.raises(ReasonEmbedError, match="batch_tokens is 0"):
        accelerate(encoder, batch_tokens=0)
    with pytest.raises(UnknownNameError, match="compile option 'onn'"):
        accelerate(encoder, compile="onn")
    with pytest.raises(ReasonEmbedError, match="takes a SentenceTransformer, not str"):
        accelerate("model")  # type: ignore[arg-type]
    model.attn = "flash"
    with pytest.raises(ReasonEmbedError, match="needs flash-attn and a CUDA device"):
        model.encode(TEXTS)


class Small:
    """A backbone's forward that runs out of memory above so many cells."""

    def __init__(self, backbone: Any, most: int) -> None:
        """Wrap a backbone's forward."""
        self.forward = backbone.forward
        self.most = most

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward pass, or fail."""
        if kwargs["input_ids"].numel() > self.most:
            msg = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
            raise RuntimeError(msg)
        return self.forward(*args, **kwargs)


@pytest.mark.parametrize("attn", ["packed", "padded"])
def test_out_of_memory_halves_the_budget(
    model: ReasonEmbed, attn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.encode(TEXTS)
    model.attn, model.batch_tokens = attn, 1600
    backbone = model[0].auto_model
    monkeypatch.setattr(backbone, "forward", Small(backbone, 450))
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)
    said = [message for message in caplog.messages if "out of memory" in message]
    assert 1 <= len(said) <= 3
    # The next call starts with what fitted.
    caplog.clear()
    model.encode(TEXTS)
    assert caplog.messages == []


def test_a_text_that_does_not_fit_alone_is_named(model: ReasonEmbed, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = model[0].auto_model
    monkeypatch.setattr(backbone, "forward", Small(backbone, 100))
    tokens = len(model.tokenizer("The sky. " * 40)["input_ids"])
    with pytest.raises(TextsError, match=rf"at position\(s\) 1 \({tokens} tokens\) cannot be encoded"):
        model.encode(TEXTS[:4])


def test_other_errors_are_not_swallowed(model: ReasonEmbed, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        msg = "something else"
        raise RuntimeError(msg)

    monkeypatch.setattr(model[0].auto_model, "forward", fail)
    with pytest.raises(RuntimeError, match="something else"):
        model.encode(TEXTS)


@pytest.mark.parametrize("to_tensor", [False, True])
def test_vectors_that_are_not_finite_are_named(model: ReasonEmbed, to_tensor: bool) -> None:
    (broken,) = model.tokenizer("Z")["input_ids"]
    with torch.no_grad():
        model[0].auto_model.embed_tokens.weight[broken] = float("nan")
    texts = [*TEXTS[:5], "Z", "x", "xZ"]
    with pytest.raises(TextsError, match=r"2 text\(s\) at position\(s\) 5, 7 have vectors that are NaN"):
        model.encode(texts, convert_to_tensor=to_tensor)
    stream = encode_stream(model, texts, chunk=3)
    assert len(next(stream)) == 3
    with pytest.raises(TextsError, match=r"position\(s\) 5 "):
        next(stream)


def test_streams_are_the_same_vectors(model: ReasonEmbed) -> None:
    parts = list(encode_stream(model, iter(TEXTS), chunk=4, prompt="Query: "))
    assert [len(part) for part in parts] == [4, 4, 4, 4, 2]
    expected = model.encode(TEXTS, prompt="Query: ")
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=TOLERANCE, rtol=0)
    with pytest.raises(ReasonEmbedError, match="chunk is 0"):
        next(encode_stream(model, TEXTS, chunk=0))


class Custom(SentenceTransformer):
    """A user's own subclass."""

    def greet(self) -> str:
        """Return a word."""
        return "hello"


def test_a_subclass_stays_itself_and_can_be_pickled(qwen3_dir: Path) -> None:
    parts = list(ReasonEmbed(str(qwen3_dir), device="cpu"))
    custom = accelerate(Custom(modules=parts, device="cpu"), batch_tokens=99)
    assert isinstance(custom, Custom)
    copy = pickle.loads(pickle.dumps(custom))
    assert copy.greet() == "hello"
    assert copy.batch_tokens == 99
    texts = [text for text in TEXTS if text]
    np.testing.assert_allclose(copy.encode(texts), custom.encode(texts), atol=TOLERANCE, rtol=0)
    assert copy.encoding_stats.texts == len(texts)
    assert type(copy).__mro__[1:3] == type(custom).__mro__[1:3]


@pytest.mark.slow
def test_two_processes_give_the_same_vectors_counts_and_errors(model: ReasonEmbed) -> None:
    expected = model.encode(TEXTS)
    counts = model.last_token_counts.tolist()
    model.encoding_stats.reset()
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        found = model.encode(TEXTS, pool=pool, chunk_size=4)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
        assert model.last_token_counts.tolist() == counts
        assert model.encoding_stats.texts == len(TEXTS)
        assert model.encoding_stats.tokens == sum(counts)
        with torch.no_grad():
            model[0].auto_model.embed_tokens.weight[model.tokenizer("Z")["input_ids"][0]] = float("nan")
        with pytest.raises(TextsError, match=r"position\(s\) 9 have vectors that are NaN"):
            model.encode(["x"] * 9 + ["Z"], pool=pool, chunk_size=4)
    finally:
        model.stop_multi_process_pool(pool)


MILLION = """
import sys, torch, numpy as np
from reasonembed_mteb import ReasonEmbed
from reasonembed_mteb.encoding import encode_stream

class Instant(torch.nn.Module):
    def __init__(self, own):
        super().__init__()
        self.config, self.table = own.config, torch.nn.Embedding(len(model.tokenizer), 384)
    device = torch.device("cpu")
    def forward(self, input_ids, **_):
        from transformers.modeling_outputs import BaseModelOutput
        return BaseModelOutput(self.table(input_ids))

torch.set_num_threads(1)
model = ReasonEmbed(sys.argv[1], device="cpu")
model[0].model = Instant(model[0].auto_model)
model[1].embedding_dimension = model[1].pooling_output_dimension = 384
texts = (f"Why is the sky blue {i}?" for i in range(int(sys.argv[2])))
total = 0
with open(sys.argv[3], "wb") as disk:
    for vectors in encode_stream(model, texts):
        disk.write(vectors.astype(np.float16).tobytes())
        total += len(vectors)
# Not by getrusage, whose peak is inherited from the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(total, int(peak) // 1024)
"""


@pytest.mark.slow
def test_a_million_texts_fit_in_memory(qwen3_dir: Path, tmp_path: Path) -> None:
    count = 1_000_000
    command = [sys.executable, "-c", MILLION, str(qwen3_dir), str(count), str(tmp_path / "vectors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    total, mib = map(int, done.stdout.split())
    assert total == count
    assert (tmp_path / "vectors").stat().st_size == count * 384 * 2
    assert mib < 4096


@pytest.mark.slow
def test_several_devices_keep_their_processes_until_the_length_changes(qwen3_dir: Path) -> None:
    texts = [f"{'why is the sky blue ' * (1 + i % 7)}{i}" for i in range(12)]
    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    want = model.encode_document(texts)
    model.max_seq_length = 8
    cut = model.encode_document(texts)
    assert np.abs(want - cut).max() > 1e-3
    model.use_devices(["cpu", "cpu"])
    np.testing.assert_allclose(model.encode_document(texts), cut, atol=1e-6)
    kept = model._kept_pool
    np.testing.assert_allclose(model.encode_document(texts[:5]), cut[:5], atol=1e-6)
    assert model._kept_pool is kept
    model.max_seq_length = 4096
    np.testing.assert_allclose(model.encode_document(texts), want, atol=1e-6)
    assert model._kept_pool is not kept
    model.use_devices(None)
    assert model._kept_pool is None


def test_a_worker_that_misses_the_signal_is_killed(qwen3_dir: Path) -> None:
    heeds, misses = (
        MagicMock(**{"is_alive.return_value": False}),
        MagicMock(**{"is_alive.return_value": True}),
    )
    pool = {"processes": [heeds, misses], "input": MagicMock(), "output": MagicMock()}
    ReasonEmbed(str(qwen3_dir), device="cpu").stop_multi_process_pool(pool)
    heeds.kill.assert_not_called()
    misses.kill.assert_called_once_with()
    for process in (heeds, misses):
        process.terminate.assert_called()
        process.close.assert_called_once_with()


LENGTHS = np.random.default_rng(0).lognormal(5, 1, 500).astype(np.int64) + 1


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("budget", [1, 300, 4096])
def test_every_text_once_under_the_budget_longest_first(budget: int, padded: bool) -> None:
    batches = list(token_batches(LENGTHS, budget, padded=padded))
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    longest = [LENGTHS[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or batch_cost(LENGTHS[batch], padded=padded) <= budget
    # A budget that holds many texts is used.
    costs = [batch_cost(LENGTHS[batch], padded=padded) for batch in batches[:-1]]
    assert budget < 4096 or np.mean(costs) > 0.75 * budget


def test_no_text_no_batch() -> None:
    assert list(token_batches(np.zeros(0, dtype=np.int64), 10, padded=True)) == []


def test_a_budget_halves_below_what_did_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    budget = TokenBudget(1000)
    budget.halve(spent=600)
    assert budget.tokens == 300
    budget.halve(spent=5000)
    assert budget.tokens == 150
    assert caplog.messages == [
        "out of memory: going on with 300 tokens a batch",
        "out of memory: going on with 150 tokens a batch",
    ]


def test_prefetching_runs_elsewhere_and_keeps_order() -> None:
    threads = set()

    def numbers() -> object:
        for number in range(50):
            threads.add(threading.get_ident())
            yield number

    assert list(prefetched(iter(numbers()))) == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_prefetching_passes_errors_on_and_stops_when_left() -> None:
    made = []

    def numbers() -> object:
        for number in range(50):
            made.append(number)
            if number == 20:
                msg = "twenty"
                raise ValueError(msg)
            yield number

    running = prefetched(iter(numbers()), depth=3)
    assert next(running) == 0
    running.close()
    assert len(made) < 10
    made.clear()
    with pytest.raises(ValueError, match="twenty"):
        list(prefetched(iter(numbers())))


STOPPED = """
import sys
from reasonembed_mteb import ReasonEmbed

if __name__ == "__main__":
    model = ReasonEmbed(sys.argv[1], device="cpu")
    model.use_devices(["cpu"])
    print(model.encode_document(["a"]).shape)
    model.use_devices(None)
"""


@pytest.mark.slow
def test_stopped_processes_leave_nothing_behind(qwen3_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(qwen3_dir)], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout == "(1, 32)\n"
    # As of semaphores that Python's tracker found still there.
    assert "leaked" not in done.stderr
