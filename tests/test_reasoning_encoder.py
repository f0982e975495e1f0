"""Reason, then embed: which tokens are read, what is kept, and what survives a kill."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import make_encoder, save_decoder

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.reasoning.encoder import ReasoningEncoder
from reasonembed_mteb.reasoning.generation import Decoding, Generation, row_vectors
from reasonembed_mteb.reasoning.latents import add_latents, find_latents
from reasonembed_mteb.reasoning.reasoner import PROMPT, SelfReasoning
from reasonembed_mteb.reasoning.sources import ReasoningFile

if TYPE_CHECKING:
    from pathlib import Path

INSTRUCTION = "Given a Biology post, retrieve relevant passages that help answer the post."
QUERIES = ["Why is the sky blue?", "leaf", "Why is the sky blue?", "Rayleigh scattering " * 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with latents whose texts begin with BOS and end some reasonings early."""
    made = tmp_path_factory.mktemp("encoder")
    add_latents(str(save_decoder(made / "bare", "qwen2", bos=True)), 2, made / "model")
    return made / "model"


def load(folder: Path, store: Path, tokens: int = 8, **options: Any) -> ReasoningEncoder:
    model = ReasonEmbed(str(folder), device="cpu")
    return ReasoningEncoder.of_itself(model, str(folder), Decoding(tokens), store, **options)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_vector_is_read_after_prompt_reasoning_and_latents(
    batch_size: int, folder: Path, tmp_path: Path
) -> None:
    encoder = load(folder, tmp_path, batch_size=batch_size)
    vectors = encoder.encode_query(QUERIES, task="biology")
    tokenizer = encoder.model.tokenizer
    reasonings = [one for _, one in encoder.figures["ReasonEmbedBrightBiology"].reasonings]
    rows = [
        [
            4,
            *tokenizer(f"Instruct: {INSTRUCTION}\nQuery: {text}", add_special_tokens=False)["input_ids"],
            *tokenizer("\nReasoning: ", add_special_tokens=False)["input_ids"],
            *one.ids,
            *find_latents(tokenizer).ids,
        ]
        for text, one in zip(QUERIES, reasonings, strict=True)
    ]
    whole = row_vectors(encoder.model, rows).numpy()
    assert np.abs(vectors - whole).max() < 1e-6
    # Reasoning changes what is read, and equal queries are alike.
    plain = encoder.model.encode_query(QUERIES, task="biology")
    assert np.abs(vectors - plain).max(axis=1).min() > 1e-3
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert [one.tokens for one in reasonings] == [len(one.ids) + (one.stop == "end") for one in reasonings]
    assert reasonings[1].prompt_tokens == len(rows[1]) - len(reasonings[1].ids) - 2
    assert all(one.seconds > 0 for one in reasonings)


def test_nothing_is_generated_twice(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = Generation.run

    def counted(self: Generation, prompts: Any, *rest: Any) -> Any:
        seen.append(len(prompts))
        return run(self, prompts, *rest)

    monkeypatch.setattr(Generation, "run", counted)
    first = load(folder, tmp_path).encode_query(QUERIES)
    assert sum(seen) == 3
    again = load(folder, tmp_path).encode_query(QUERIES[::-1])
    np.testing.assert_array_equal(again, first[::-1])
    assert sum(seen) == 3
    # Another instruction, another decoding and another prompt are other reasonings.
    load(folder, tmp_path, tokens=7, prompt="{query}\nThought: ").encode_query(QUERIES[:1], task="biology")
    assert sum(seen) == 4


@pytest.mark.slow
def test_another_head_reasons_anew(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    other = tmp_path / "other"
    ReasonEmbed(str(folder), device="cpu").save_pretrained(str(other))
    generator = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        generator.lm_head.weight.neg_()
    from reasonembed_mteb.reasoning.heads import keep_head

    keep_head(other, generator)
    vectors = [load(one, tmp_path / "store").encode_query(QUERIES[:1]) for one in (folder, other)]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_long_query_is_cut_and_its_prompt_and_ending_stay(folder: Path, tmp_path: Path) -> None:
    model = ReasonEmbed(str(folder), device="cpu")
    model.max_seq_length = 60
    encoder = ReasoningEncoder.of_itself(model, str(folder), Decoding(8), tmp_path)
    encoder.encode_query(["Why is the sky blue? " * 40])
    (_, one), *_ = encoder.figures[""].reasonings
    assert one.prompt_tokens == 60 - 8 - 2


def test_an_instruction_that_leaves_no_room_for_its_query(folder: Path, tmp_path: Path) -> None:
    model = ReasonEmbed(str(folder), device="cpu")
    model.max_seq_length = 40
    encoder = ReasoningEncoder.of_itself(model, str(folder), Decoding(8), tmp_path)
    encoder.encode_query(QUERIES[:1], instruction="Find")
    with pytest.raises(
        ReasonEmbedError, match=r"the instruction 'Instruct: Find Find .* has \d+ tokens, and"
    ):
        encoder.encode_query(QUERIES[:1], instruction="Find " * 40)


def test_documents_are_embedded_as_ever(folder: Path, tmp_path: Path) -> None:
    encoder = load(folder, tmp_path)
    np.testing.assert_array_equal(encoder.encode_document(QUERIES), encoder.model.encode_document(QUERIES))


def test_an_mteb_encoder(folder: Path, tmp_path: Path) -> None:
    from mteb.models import EncoderProtocol
    from mteb.types import PromptType

    from reasonembed_mteb.retrieval.search import column_loader, search_metadata

    encoder = load(folder, tmp_path)
    assert isinstance(encoder, EncoderProtocol)
    task = search_metadata("ReasonEmbedBrightBiology", "unused")
    call: dict[str, Any] = {"task_metadata": task, "hf_split": "x", "hf_subset": "default"}
    loader = column_loader({"id": ["a", "b"], "text": QUERIES[:2]}, 1)
    queries = encoder.encode(loader, prompt_type=PromptType.query, **call)
    assert np.abs(np.asarray(queries) - encoder.encode_query(QUERIES[:2], task="biology")).max() < 1e-7
    assert [name for name, _ in encoder.figures[task.name].reasonings[:2]] == ["a", "b"]
    for side in (PromptType.document, None):
        found = encoder.encode(loader, prompt_type=side, **call)
        plain = encoder.base.encode(loader, prompt_type=side, **call)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(plain))


def test_shortened_vectors(folder: Path, tmp_path: Path) -> None:
    encoder = load(folder, tmp_path)
    whole = encoder.encode_query(QUERIES)
    encoder.model.truncate_dim = 8
    np.testing.assert_array_equal(encoder.encode_query(QUERIES), whole[:, :8])


def given(tmp_path: Path, *texts: str) -> ReasoningFile:
    file = tmp_path / "given.jsonl"
    rows = [
        json.dumps({"query": query, "reasoning": text}) for query, text in zip(QUERIES, texts, strict=False)
    ]
    file.write_text("\n".join(rows), encoding="utf-8")
    return ReasoningFile(file)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_reasonings_that_are_given(kind: str, folder: Path, tmp_path: Path) -> None:
    model = ReasonEmbed(str(folder), device="cpu") if kind == "decoder" else make_encoder(tmp_path / "parts")
    source = given(tmp_path, "since light scatters", "it is green")
    encoder = ReasoningEncoder(ProtocolEncoder(model), source, prompt="{query} <think> ")
    found = encoder.encode_query(QUERIES[:2], instruction="Find it.")
    prefix = "Instruct: Find it.\nQuery: "
    joined = [
        f"{prefix}{QUERIES[0]} <think> since light scatters",
        f"{prefix}{QUERIES[1]} <think> it is green",
    ]
    assert np.abs(found - model.encode(joined, prompt="")).max() < 1e-6
    assert encoder.figures[""].stops == {"given": 2}


def test_a_given_reasoning_longer_than_the_context(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ReasonEmbed(str(folder), device="cpu")
    model.max_seq_length = 40
    encoder = ReasoningEncoder(ProtocolEncoder(model), given(tmp_path, "since light scatters " * 30, "short"))
    with caplog.at_level(logging.WARNING):
        found = encoder.encode_query(QUERIES[:2])
    assert "1 of 2 reasonings were cut" in caplog.text
    assert encoder.figures[""].cut == 1
    joined = PROMPT.replace("{query}", QUERIES[0]) + "since light scatters " * 30
    assert np.abs(found[0] - model.encode(joined, prompt="")).max() < 1e-6


def test_a_reasoning_longer_than_the_context(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match=r"8,192 reasoning tokens and .* leave no room"):
        load(folder, tmp_path, tokens=8192)


def test_models_that_cannot_reason(folder: Path, tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "parts")
    with pytest.raises(ReasonEmbedError, match="bert is no decoder"):
        SelfReasoning(encoder, "bert", Decoding(4), tmp_path)
    headless = save_decoder(tmp_path / "headless", headless=True)
    with pytest.raises(ReasonEmbedError, match="has no language-model head"):
        load(headless, tmp_path)
    with pytest.raises(ReasonEmbedError, match="holds no SentenceTransformer"):
        ReasoningEncoder(object(), given(tmp_path, "x"))


def test_bad_options(folder: Path, tmp_path: Path) -> None:
    encoder = load(folder, tmp_path)
    with pytest.raises(ReasonEmbedError, match="0 queries at a time"):
        SelfReasoning(encoder.model, "x", Decoding(4), tmp_path, batch_size=0)
    with pytest.raises(ReasonEmbedError, match="once, where the query goes"):
        SelfReasoning(encoder.model, "x", Decoding(4), tmp_path, prompt="no place")
    with pytest.raises(ReasonEmbedError, match="task= or instruction="):
        encoder.encode_query(QUERIES, task="biology", instruction="x")
    with pytest.raises(UnknownNameError, match="did you mean 'biology'"):
        encoder.encode_query(QUERIES, task="biologie")
    assert encoder.encode_query([]).shape == (0, 32)


CHILD = """
import hashlib, os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.reasoning.reasoner import SelfReasoning
from reasonembed_mteb.reasoning.generation import Decoding
from reasonembed_mteb.reasoning.store import ReasoningStore

folder, work, kills, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
words = "sky blue leaf red salt sun why how light wave long short".split()
draw = random.Random(5)
texts = [" ".join(draw.choices(words, k=draw.randint(2, 9))) + f" {i}" for i in range(count)]
model = ReasonEmbed(folder, device="cpu")

def reason(store, log=None):
    own = SelfReasoning(model, folder, Decoding(3), store, batch_size=16)
    generate = own._generate
    def logged(keys, prompts):
        if log is not None:
            with log.open("a") as stream:
                stream.write("".join(key.hex() + "\\n" for key in keys))
            # No machine is so fast that all is done before the last kill.
            time.sleep(0.02)
        return generate(keys, prompts)
    own._generate = logged
    return own.reasonings(texts, 8192)

def stored(store):
    with ReasoningStore(store) as held:
        return {row[0].hex() for row in held._cache._connection.execute("SELECT hash FROM answers")}

def digest(found):
    state = hashlib.sha256()
    for one in found:
        state.update(repr((one.text, one.stop, one.tokens, one.prompt_tokens, one.ids)).encode())
        state.update(one.vector.tobytes())
    return state.hexdigest()

straight = digest(reason(work / "straight"))
done, stopped = set(), 0
for kill in range(kills):
    log = work / f"log{kill}"
    pid = os.fork()
    if pid == 0:
        reason(work / "killed", log)
        os._exit(0)
    # From before its first batch to its second or so, at any moment of it.
    wanted, until = 16 * draw.randint(0, 2), time.perf_counter() + 60
    while time.perf_counter() < until and len(log.read_text().split() if log.exists() else "") < wanted:
        time.sleep(0.002)
    time.sleep(draw.uniform(0.0, 0.05))
    os.kill(pid, signal.SIGKILL)
    stopped += os.waitpid(pid, 0)[1] == signal.SIGKILL
    asked = log.read_text().split() if log.exists() else []
    assert not done & set(asked), "a stored reasoning was generated again"
    now = stored(work / "killed")
    assert done <= now
    done = now
assert stopped == kills, stopped
assert 0 < len(done) < count, len(done)
last = work / "last"
resumed = digest(reason(work / "killed", last))
assert not done & set(last.read_text().split())
assert len(stored(work / "killed")) == count
print(resumed == straight, len(done))
"""


@pytest.mark.slow
def test_a_thousand_queries_survive_twenty_kills(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), str(tmp_path), "20", "1000"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2] == "True"
