"""Reasoning on the model's own cache: against plain forward passes, alone and in batches, to the token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import save_decoder

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation.reasoning_record import ENDED, FULL
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.reasoning.generation import (
    Decoding,
    Generation,
    _Drawn,
    row_vectors,
)
from reasonembed_mteb.reasoning.heads import load_generator
from reasonembed_mteb.reasoning.latents import add_latents, find_latents
from reasonembed_mteb.reasoning.reasoner import SelfReasoning

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = ("Why is the sky", "a", "Why do leaves fall in autumn, and not in spring as they do elsewhere?")
SEEDS = (11, 12, 13)
FAMILIES = ("qwen2", "qwen3", "llama", "mistral")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model with latents of each family."""
    folder = tmp_path_factory.mktemp("generation")
    for family in FAMILIES:
        add_latents(str(save_decoder(folder / f"{family}-bare", family)), 2, folder / family)
    return folder


def load(folder: Path) -> tuple[ReasonEmbed, Generation, list[list[int]], list[int]]:
    """Load a model, its generation, the prompts' ids and the ending."""
    model = ReasonEmbed(str(folder), device="cpu")
    ending = list(find_latents(model.tokenizer).ids)
    generation = Generation(model, load_generator(str(folder)), ending)
    prompts = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    return model, generation, prompts, ending


def by_hand(folder: Path, prompt: list[int], count: int, ending: list[int]) -> tuple[list[int], Any]:
    """Take the likeliest token after the whole text, again and again, in double precision; then read it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ends = {2}
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            logits = model(torch.tensor([ids])).logits[0, -1]
            logits[ending] = -math.inf
            token = int(logits.argmax())
            if token in ends:
                break
            ids.append(token)
        hidden = model.model(torch.tensor([[*ids, *ending]])).last_hidden_state[0, -1]
    return ids[len(prompt) :], (hidden / hidden.norm()).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_gives_what_whole_texts_give(family: str, made: Path) -> None:
    _, generation, prompts, ending = load(made / family)
    found = generation.run(prompts, Decoding(12), SEEDS)
    for prompt, one in zip(prompts, found, strict=True):
        ids, vector = by_hand(made / family, prompt, 12, ending)
        assert list(one.ids) == ids
        assert one.stop == (FULL if len(ids) == 12 else ENDED)
        assert one.tokens == min(len(ids) + 1, 12)
        assert np.abs(one.vector.numpy() - vector).max() < 1e-6
    if family == "qwen2":
        # Both ways of ending, and rows of other lengths beside each other.
        assert {one.stop for one in found} == {ENDED, FULL}
        assert len({len(one.ids) for one in found}) == 3


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_row_is_the_same_alone_and_in_a_batch(temperature: float, made: Path) -> None:
    model, generation, prompts, ending = load(made / "qwen2")
    decoding = Decoding(12, temperature=temperature, top_p=0.9)
    together = generation.run(prompts, decoding, SEEDS)
    alone = [generation.run([one], decoding, [seed])[0] for one, seed in zip(prompts, SEEDS, strict=True)]
    assert [one.ids for one in together] == [one.ids for one in alone]
    rows = [[*prompt, *one.ids, *ending] for prompt, one in zip(prompts, alone, strict=True)]
    whole = row_vectors(model, rows)
    for batch in (together, alone):
        assert (torch.stack([one.vector for one in batch]) - whole).abs().max() < 1e-6


def test_a_latent_is_never_written(made: Path) -> None:
    model, generation, prompts, ending = load(made / "qwen3")
    head: Any = generation.generator.get_output_embeddings()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        last = model[0].auto_model(torch.tensor([prompts[0]])).last_hidden_state[0, -1]
        head.weight[ending[0]] = 100 * last
        assert int(head(last).argmax()) == ending[0]
    for temperature in (0.0, 1.0):
        (found,) = generation.run(prompts[:1], Decoding(4, temperature), SEEDS[:1])
        assert found.ids
        assert not set(found.ids) & set(ending)


def test_a_draw_has_its_seed(made: Path) -> None:
    _, generation, prompts, _ = load(made / "qwen3")
    decoding = Decoding(6, temperature=3.0)
    first, again, other = (generation.run(prompts[:1], decoding, [seed])[0].ids for seed in (1, 1, 2))
    assert first == again != other


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    seeds = range(4000)
    scores = probabilities.log().expand(len(seeds), 4)
    drawn = _Drawn(list(seeds))(torch.empty(0), scores).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=4) / len(seeds)
    # Four standard deviations.
    assert ((shares - probabilities).abs() < 4 * (probabilities * (1 - probabilities) / 4000).sqrt()).all()


def test_the_checkpoints_own_sampling_stays_out(made: Path) -> None:
    model, generation, prompts, ending = load(made / "qwen3")
    plain = [one.ids for one in generation.run(prompts, Decoding(8), SEEDS)]
    odd = load_generator(str(made / "qwen3"))
    odd.generation_config.repetition_penalty = 9.0  # type: ignore[union-attr]
    odd.generation_config.do_sample = True  # type: ignore[union-attr]
    other = Generation(model, odd, ending).run(prompts, Decoding(8), SEEDS)
    assert [one.ids for one in other] == plain


def test_a_window_shorter_than_the_text(tmp_path: Path) -> None:
    from transformers import AutoConfig

    bare = save_decoder(tmp_path / "bare", "mistral")
    config = AutoConfig.from_pretrained(bare)
    config.sliding_window = 8
    config.save_pretrained(bare)
    add_latents(str(bare), 2, tmp_path / "made")
    _, generation, prompts, ending = load(tmp_path / "made")
    for prompt, one in zip(prompts, generation.run(prompts, Decoding(10), SEEDS), strict=True):
        ids, vector = by_hand(tmp_path / "made", prompt, 10, ending)
        assert list(one.ids) == ids
        assert np.abs(one.vector.numpy() - vector).max() < 1e-6


def test_without_an_ending_the_last_token_is_read(made: Path) -> None:
    model = ReasonEmbed(str(made / "qwen2-bare"), device="cpu")
    generation = Generation(model, load_generator(str(made / "qwen2-bare")), [])
    prompts = [model.tokenizer(text)["input_ids"] for text in PROMPTS]
    found = generation.run(prompts, Decoding(12), SEEDS)
    whole = row_vectors(model, [[*prompt, *one.ids] for prompt, one in zip(prompts, found, strict=True)])
    assert (torch.stack([one.vector for one in found]) - whole).abs().max() < 1e-6


def test_there_is_one_copy_of_the_backbone(made: Path) -> None:
    model, generation, _, _ = load(made / "qwen3")
    assert generation.generator.base_model is model[0].auto_model


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 0}, "0 reasoning tokens: give at least 1"),
        ({"max_tokens": -3}, "-3 reasoning tokens"),
        ({"max_tokens": 4, "temperature": -0.1}, "the temperature is -0.1"),
        ({"max_tokens": 4, "temperature": math.nan}, "the temperature is nan"),
        ({"max_tokens": 4, "top_p": 0.0}, "top_p is 0.0"),
        ({"max_tokens": 4, "top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_a_decoding_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ReasonEmbedError, match=said):
        Decoding(**options).check()


def test_a_backbone_without_a_head(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "headless", headless=True)
    with pytest.raises(ReasonEmbedError, match="has no language-model head"):
        load_generator(str(folder))


def test_a_head_needs_no_accelerate(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import accelerate

    monkeypatch.setattr(accelerate, "is_accelerate_available", lambda *_: False)
    model = ReasonEmbed(str(made / "qwen3"), device="cpu")
    SelfReasoning(model, str(made / "qwen3"), Decoding(4), tmp_path / "kept").close()
    add_latents(str(made / "qwen3-bare"), 1, tmp_path / "again")
