"""Compression: what is read from K positions equals the masked forward pass; memories on disk; bad input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import save_decoder
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.reasoning.compression import LatentCompressor
from reasonembed_mteb.reasoning.latents import add_latents, find_latents
from reasonembed_mteb.reasoning.masks import KINDS, JointRow, joint_mask, lay_out
from reasonembed_mteb.reasoning.memory import CACHE, HIDDEN, LatentMemory

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 3
TEXTS = ["Why is the sky blue? Rayleigh scattering sends short waves to all sides.", "", "long ones pass"]
QUESTIONS = ["which waves?", "", "Why do long ones pass to the sky?"]
ANSWERS = ["short waves", "blue", "long"]


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def compressor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LatentCompressor:
    root = tmp_path_factory.mktemp("compression")
    add_latents(str(save_decoder(root / "plain", request.param)), COUNT, root / "latent")
    return LatentCompressor.from_pretrained(str(root / "latent"), device="cpu")


@pytest.fixture
def memory(compressor: LatentCompressor) -> LatentMemory:
    return compressor.compress(TEXTS)


def masked_states(compressor: LatentCompressor, text: str, after: list[int]) -> torch.Tensor:
    """Return the last hidden states of text, latents and what follows, in one masked forward pass."""
    ids = compressor.tokenizer(text)["input_ids"]
    # Its kinds, with all that follows as y.
    made = lay_out([JointRow(ids[:-COUNT], answer=after)], compressor.latents.ids, 0, 0)
    with torch.no_grad():
        return compressor.generator.base_model(
            input_ids=made["input_ids"], attention_mask=joint_mask(made[KINDS], torch.float32)
        ).last_hidden_state[0]


def plain(compressor: LatentCompressor, text: str) -> list[int]:
    ids: list[int] = compressor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def reference_loss(compressor: LatentCompressor, states: torch.Tensor, answer: list[int]) -> float:
    """Sum -log of each token's share, of EOS too, the latents left out."""
    logits = compressor.generator.lm_head(states)
    logits[:, list(compressor.latents.ids)] = -torch.inf
    wanted = [*answer, compressor.tokenizer.eos_token_id]
    shares = logits[-len(wanted) :].double().log_softmax(dim=1)
    return -sum(float(shares[number, token]) for number, token in enumerate(wanted))


def test_reading_from_the_cache_equals_the_masked_forward(
    compressor: LatentCompressor, memory: LatentMemory
) -> None:
    found = compressor.answer_losses(memory, QUESTIONS, ANSWERS)
    for number, (text, question, answer) in enumerate(zip(TEXTS, QUESTIONS, ANSWERS, strict=True)):
        ids = plain(compressor, answer)
        states = masked_states(compressor, text, [*plain(compressor, question), *ids])
        with torch.no_grad():
            wanted = reference_loss(compressor, states, ids)
        assert int(found.tokens[number]) == len(ids) + 1
        assert abs(float(found.losses[number]) / wanted - 1) < 1e-6


def test_the_states_themselves_are_equal(compressor: LatentCompressor, memory: LatentMemory) -> None:
    with torch.no_grad():
        rows = [
            plain(compressor, f"{question} {answer}")
            for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
        ]
        _, states = compressor._read(compressor._context(memory), rows)
    for number, row in enumerate(rows):
        wanted = masked_states(compressor, TEXTS[number], row)[-len(row) - 1 :]
        assert float((states[number, -len(row) - 1 :] - wanted).abs().max()) < 1e-6


def test_the_last_state_gives_the_vector_of_plain_encoding(
    compressor: LatentCompressor, memory: LatentMemory
) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(compressor.generator.name_or_path, device="cpu")
    wanted = model.encode(TEXTS, convert_to_tensor=True)
    found = torch.nn.functional.normalize(memory.states[:, -1], dim=1)
    assert float((found - wanted).abs().max()) < 1e-6


def written(compressor: LatentCompressor, text: str, question: str, most: int) -> str:
    """Write greedily, by the whole masked forward pass at each token."""
    after, answer = plain(compressor, question), []
    for _ in range(most):
        with torch.no_grad():
            logits = compressor.generator.lm_head(masked_states(compressor, text, after + answer)[-1])
        logits[list(compressor.latents.ids)] = -torch.inf
        token = int(logits.argmax())
        if token == compressor.tokenizer.eos_token_id:
            break
        answer.append(token)
    decoded: str = compressor.tokenizer.decode(answer, skip_special_tokens=True)
    return decoded


@pytest.mark.parametrize("size", [1, 8])
def test_writing_equals_whole_forward_passes(
    size: int, compressor: LatentCompressor, memory: LatentMemory
) -> None:
    found = compressor.generate(memory, QUESTIONS, max_new_tokens=6, batch_size=size)
    assert found == [written(compressor, *pair, 6) for pair in zip(TEXTS, QUESTIONS, strict=True)]
    assert any(found)


def test_writing_stops_at_eos(compressor: LatentCompressor, memory: LatentMemory) -> None:
    eos, head = compressor.tokenizer.eos_token_id, compressor.generator.lm_head
    rows = [row.tolist() for row in head.weight]
    try:
        with torch.no_grad():
            head.weight.zero_()
            # Whatever the state, EOS or the token 300 leads.
            head.weight[eos] = memory.states[0, -1] * 100
        assert compressor.generate(memory.rows(0, 1), "", max_new_tokens=5) == [""]
    finally:
        with torch.no_grad():
            head.weight.copy_(torch.tensor(rows))


def test_the_text_itself_is_read_as_by_an_ordinary_decoder(compressor: LatentCompressor) -> None:
    texts, questions, answers = (list(one) for one in (TEXTS, ["who?", "what?", "why is it"], ANSWERS))
    for tokens in (None, 2, 0):
        found = compressor.answer_losses_from_text(texts, questions, answers, tokens=tokens)
        for number in range(len(texts)):
            ids = plain(compressor, answers[number])
            before = compressor.text_tokens(texts[number])[:tokens]
            row = torch.tensor([[*before, *plain(compressor, questions[number]), *ids]])
            with torch.no_grad():
                states = compressor.generator.base_model(input_ids=row).last_hidden_state[0]
                wanted = reference_loss(compressor, states, ids)
            assert abs(float(found.losses[number]) / wanted - 1) < 1e-6
    # What is read matters.
    assert len(set(compressor.generate_from_text(texts, questions, max_new_tokens=4))) > 1


def test_text_tokens_are_the_text_alone(compressor: LatentCompressor) -> None:
    ids = compressor.text_tokens(TEXTS[0])
    assert not set(ids) & set(compressor.latents.ids)
    assert compressor.tokenizer.decode(ids) == TEXTS[0]


def test_hidden_states_are_read_as_embeddings(compressor: LatentCompressor) -> None:
    memory = compressor.compress(TEXTS, kind=HIDDEN)
    assert (memory.kind, memory.positions) == (HIDDEN, COUNT)
    found = compressor.answer_losses(memory, QUESTIONS, ANSWERS)
    table = compressor.generator.get_input_embeddings()
    for number in (0, 2):
        answer = plain(compressor, ANSWERS[number])
        after = torch.tensor([[*plain(compressor, QUESTIONS[number]), *answer]])
        given = torch.cat([memory.states[number][None], table(after)], dim=1)
        with torch.no_grad():
            states = compressor.generator.base_model(inputs_embeds=given).last_hidden_state[0]
            wanted = reference_loss(compressor, states, answer)
        assert abs(float(found.losses[number]) / wanted - 1) < 1e-6
    assert len(compressor.generate(memory, QUESTIONS, max_new_tokens=3)) == 3


def test_batches_do_not_matter(compressor: LatentCompressor, memory: LatentMemory) -> None:
    alone = compressor.compress(TEXTS, batch_size=1)
    for name in ("keys", "values", "states"):
        assert float((getattr(alone, name) - getattr(memory, name)).abs().max()) < 1e-6
    assert alone.lengths.tolist() == memory.lengths.tolist()


def test_a_long_text_is_cut_and_keeps_its_latents(compressor: LatentCompressor) -> None:
    short = LatentCompressor(compressor.generator, compressor.tokenizer, max_tokens=10)
    memory = short.compress(["blue " * 100])
    assert memory.lengths.tolist() == [10]
    assert memory.positions == COUNT


@pytest.mark.parametrize("length", [0, 2, COUNT])
def test_a_length_without_room_for_a_text_is_refused(compressor: LatentCompressor, length: int) -> None:
    with pytest.raises(ReasonEmbedError, match=rf"max_tokens is {length}, .* beside the {COUNT} special"):
        LatentCompressor(compressor.generator, compressor.tokenizer, max_tokens=length)


# Memories.


def test_a_memory_is_the_same_after_saving(
    compressor: LatentCompressor, memory: LatentMemory, tmp_path: Path
) -> None:
    memory.save(tmp_path / "one.safetensors")
    again = LatentMemory.load(tmp_path / "one.safetensors")
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert (again.kind, again.model) == (CACHE, compressor.model_hash)
    assert all(
        torch.equal(getattr(again, name), getattr(memory, name)) for name in ("keys", "values", "states")
    )
    found, wanted = (compressor.answer_losses(one, QUESTIONS, ANSWERS).losses for one in (again, memory))
    assert torch.equal(found, wanted)


def test_the_size_is_stated(memory: LatentMemory, tmp_path: Path) -> None:
    config = (2, 2, 8)
    numbers = COUNT * config[0] * 2 * config[1] * config[2]
    # The last state and the length come on top.
    assert memory.bytes_per_text == 4 * (numbers + 32) + 8
    assert "2 layers x 2 x 2 heads x 8" in memory.describe()
    assert f"{memory.bytes_per_text:,} bytes a text" in memory.describe()
    memory.save(tmp_path / "one.safetensors")
    assert (tmp_path / "one.safetensors").stat().st_size < 3 * memory.bytes_per_text + 2048


def test_fewer_positions_are_the_last_ones(compressor: LatentCompressor, memory: LatentMemory) -> None:
    one = memory.last(1)
    assert one.positions == 1
    assert torch.equal(one.keys, memory.keys[:, :, :, -1:])
    assert one.bytes_per_text < memory.bytes_per_text
    assert len(compressor.generate(one, "which?", max_new_tokens=2)) == 3
    assert torch.equal(memory.last(COUNT).values, memory.values)
    for count in (0, COUNT + 1):
        with pytest.raises(ReasonEmbedError, match=f"{count} positions asked for; the memory has {COUNT}"):
            memory.last(count)


def _with_metadata(text: str) -> bytes:
    from safetensors.torch import save

    return save({}, metadata={"memory": text})


@pytest.mark.parametrize("text", ["[]", "{", '{"format": "other"}'])
def test_metadata_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "memory.safetensors"
    file.write_bytes(_with_metadata(text))
    with pytest.raises(DataError, match=r"memory\.safetensors"):
        LatentMemory.load(file)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_memory_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "memory.safetensors"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"memory\.safetensors"):
        LatentMemory.load(file)
    with pytest.raises(DataError, match="cannot read the memory"):
        LatentMemory.load(tmp_path / "absent")


# Bad input.


def test_another_models_memory_is_refused(
    compressor: LatentCompressor, memory: LatentMemory, tmp_path: Path
) -> None:
    table = compressor.generator.get_input_embeddings().weight
    other = AutoModelForCausalLM.from_pretrained(compressor.generator.name_or_path)
    with torch.no_grad():
        other.get_input_embeddings().weight[5, 0] += table.abs().max()
    reader = LatentCompressor(other, compressor.tokenizer)
    with pytest.raises(ReasonEmbedError, match="made by another model"):
        reader.generate(memory, "which?")


def test_wrong_numbers_and_kinds_are_refused(compressor: LatentCompressor, memory: LatentMemory) -> None:
    with pytest.raises(ReasonEmbedError, match="2 questions for 3 texts"):
        compressor.generate(memory, ["a", "b"])
    with pytest.raises(ReasonEmbedError, match="did you mean 'hidden'"):
        compressor.compress(TEXTS, kind="hiden")
    for none in ([], "a text"):
        with pytest.raises(ReasonEmbedError, match="at least one text"):
            compressor.compress(none)
    with pytest.raises(ReasonEmbedError, match="nothing to predict an answer from"):
        compressor.answer_losses_from_text(["a"], [""], ["b"], tokens=0)


def test_columns_that_do_not_fit_are_refused(compressor: LatentCompressor, memory: LatentMemory) -> None:
    three, two = TEXTS, ["a", "b"]
    calls: dict[str, Any] = {
        "2 questions for 3 texts": lambda: compressor.generate_from_text(three, two),
        "3 questions for 2 texts": lambda: compressor.generate_from_text(two, three),
        "2 answers for 3 texts": lambda: compressor.answer_losses(memory, QUESTIONS, two),
        "4 answers for 3 texts": lambda: compressor.answer_losses(memory, QUESTIONS, two + two),
        "answers is one text: give a list of 3": lambda: compressor.answer_losses(memory, QUESTIONS, "xyz"),
        "texts is one text": lambda: compressor.generate_from_text("abc", three),
        "questions is one text": lambda: compressor.answer_losses_from_text(three, "abc", three),
        "2 questions for 3 .*": lambda: compressor.answer_losses_from_text(three, two, three),
        r"answers\[1\] is NoneType": lambda: compressor.answer_losses(memory, QUESTIONS, ["a", None, "c"]),
        "batch_size is 0": lambda: compressor.compress(three, batch_size=0),
        "batch_size is -1": lambda: compressor.generate(memory, "which?", batch_size=-1),
        "batch_size is 0: give 1": lambda: compressor.answer_losses(memory, three, three, batch_size=0),
    }
    for message, call in calls.items():
        with pytest.raises(ReasonEmbedError, match=message):
            call()
    assert compressor.generate_from_text([], []) == []
    assert not len(compressor.answer_losses_from_text([], [], []).losses)


def test_a_latents_name_within_a_text_is_refused(compressor: LatentCompressor, memory: LatentMemory) -> None:
    named = ["a", "<|latent_1|>", "c"]
    calls: dict[str, Any] = {
        "texts": lambda: compressor.compress(named),
        "questions": lambda: compressor.generate(memory, named),
        "answers": lambda: compressor.answer_losses(memory, QUESTIONS, named),
    }
    for name, call in calls.items():
        with pytest.raises(
            ReasonEmbedError, match=rf"{name}\[1\] holds <\|latent_1\|>, the name of a latent"
        ):
            call()
    with pytest.raises(ReasonEmbedError, match=r"texts\[1\] holds"):
        compressor.generate_from_text(named, QUESTIONS)


def test_models_that_cannot_compress_are_refused(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "plain")
    generator, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert not find_latents(tokenizer).count
    with pytest.raises(ReasonEmbedError, match="no latent tokens"):
        LatentCompressor(generator, tokenizer)
    headless = save_decoder(tmp_path / "headless", headless=True)
    with pytest.raises(ReasonEmbedError, match="no language-model head"):
        LatentCompressor.from_pretrained(str(headless))


def test_an_encoder_is_refused(bert: Path) -> None:
    with pytest.raises(ReasonEmbedError, match=r"no decoder|no latent tokens|no language-model head"):
        LatentCompressor.from_pretrained(str(bert))


def test_kinds_of_rows_are_those_of_training(compressor: LatentCompressor) -> None:
    ids: Any = compressor.tokenizer(TEXTS[0])["input_ids"]
    assert tuple(ids[-COUNT:]) == compressor.latents.ids
