"""The joint loss against a reference in fp64: row by row, with masks and sums by loops."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joint_ranks
import pytest
import torch
from conftest import save_decoder
from loss_reference import Settings, redapter
from torch import Tensor, nn

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.reasoning import joint as module
from reasonembed_mteb.reasoning.joint import CachedJointLoss, JointLoss, row_losses
from reasonembed_mteb.reasoning.latents import add_latents, find_latents
from reasonembed_mteb.reasoning.masks import (
    COMPRESSION,
    GENERATION,
    KINDS,
    NOTHING,
    SOURCE,
    TARGET,
    JointRow,
    joint_mask,
    lay_out,
)
from reasonembed_mteb.training import CachedRedapterLoss, RedapterLoss

if TYPE_CHECKING:
    from collections.abc import Callable

EOS, PAD, COUNT = 2, 0, 3
# Prompt and x, with or without targets: every kind of row.
ROWS = (
    JointRow([300, 301, 302, 303, 304], written=3, question=[310], answer=[311, 312]),
    JointRow([305, 306], answer=[313, 314, 315], answer_ends=False),
    JointRow([307, 308, 309, 310], written=1),
    JointRow([311]),
)
WEIGHTS = {"generation_weight": 0.7, "representation_weight": 1.3, "compression_weight": 0.4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a decoder with latent tokens and an untied head."""
    root = tmp_path_factory.mktemp("joint")
    add_latents(str(save_decoder(root / "plain")), COUNT, root / "latent")
    return root / "latent"


@pytest.fixture
def model(folder: Path) -> Any:
    return load(folder)


def load(folder: Path) -> Any:
    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    loaded = ReasonEmbed(str(folder), device="cpu").double()
    return loaded.train()


def batch(model: Any, rows: tuple[JointRow, ...] = ROWS, group: int = 2) -> list[dict[str, Any]]:
    """Return columns: laid-out queries, reasoning queries, packed documents."""
    latents = find_latents(model.tokenizer).ids
    reasoning = [f"because of light {number}" for number in range(len(rows))]
    documents = [f"wave {number} " * (1 + number % 3) for number in range(len(rows) * group)]
    return [
        lay_out(rows, latents, EOS, PAD),
        dict(model.preprocess(reasoning)),
        dict(model.preprocess(documents)),
    ]


# The reference: row by row, nothing padded, masks and sums by loops.


def hidden_states(backbone: Any, row: JointRow, latents: tuple[int, ...]) -> tuple[Tensor, int]:
    """Return the hidden states ``(T, D)`` of one row, and the place of its last latent."""
    before = [*row.source, *latents]
    after = [*row.question, *row.answer] if row.answer else []
    ids = before + after
    mask = torch.full((1, 1, len(ids), len(ids)), torch.finfo(torch.float64).min, dtype=torch.float64)
    for i in range(len(ids)):
        for j in range(i + 1):
            if i < len(before) or j >= len(row.source):
                mask[0, 0, i, j] = 0
    made = backbone(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
    return made, len(before) - 1


def cross_entropy(hidden: Tensor, head: nn.Module, token: int, latents: tuple[int, ...]) -> Tensor:
    """Return -log of a token's share of all words."""
    scores = head(hidden)
    words = torch.stack([scores[number] for number in range(len(scores)) if number not in latents])
    return torch.log(torch.exp(words - words.max().detach()).sum()) + words.max().detach() - scores[token]


def reference(model: Any, head: nn.Module, rows: tuple[JointRow, ...], weighted: bool) -> dict[str, Tensor]:
    backbone, latents = model[0].auto_model, find_latents(model.tokenizer).ids
    generation, compression, vectors = [], [], []
    for row in rows:
        hidden, last = hidden_states(backbone, row, latents)
        vectors.append(hidden[last])
        if row.written:
            first = len(row.source) - row.written
            wanted = [*row.source[first:], *([EOS] if row.generation_ends else [])]
            for number, token in enumerate(wanted):
                generation.append(cross_entropy(hidden[first - 1 + number], head, token, latents))
        if row.answer:
            first = last + 1 + len(row.question)
            wanted = [*row.answer, *([EOS] if row.answer_ends else [])]
            for number, token in enumerate(wanted):
                compression.append(cross_entropy(hidden[first - 1 + number], head, token, latents))
    columns = batch(model, rows)
    reasoning = [vector.detach() for vector in model(columns[1])["sentence_embedding"]]
    documents = list(model(columns[2])["sentence_embedding"])
    groups = [documents[2 * number : 2 * number + 2] for number in range(len(rows))]
    loss, _ = redapter(vectors, reasoning, groups, Settings(weighted=weighted))
    nothing = torch.zeros((), dtype=torch.float64)
    return {
        "generation": torch.stack(generation).mean() if generation else nothing,
        "representation": loss,
        "compression": torch.stack(compression).mean() if compression else nothing,
    }


def gradients(model: Any, loss: Tensor, head: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    head.zero_grad()
    loss.backward()
    named = [*model.named_parameters(), *((f"head.{name}", one) for name, one in head.named_parameters())]
    return {name: one.grad.clone() for name, one in named if one.grad is not None}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert found.keys() == wanted.keys()
    assert max(float(one.abs().max()) for one in wanted.values()) > 1e-3
    for name, one in wanted.items():
        assert float((found[name] - one).abs().max()) < tolerance, name


def trained_head(loss: Any) -> Any:
    loss.head.requires_grad_(True)
    return loss.head.double()


@pytest.mark.parametrize("term", ["generation", "representation", "compression", "all"])
@pytest.mark.parametrize("kind", [JointLoss, CachedJointLoss])
def test_each_term_and_its_gradient_equal_the_reference(
    kind: Callable[..., Any], term: str, model: Any
) -> None:
    weights = {
        name: weight if name.startswith(term) or term == "all" else 0.0 for name, weight in WEIGHTS.items()
    }
    options = {"mini_batch_size": 3} if kind is CachedJointLoss else {}
    loss = kind(model, start_step=0, **weights, **options)
    head = trained_head(loss)
    value = loss(batch(model))
    found = gradients(model, value, head)
    terms = reference(model, head, ROWS, weighted=True)
    wanted = sum(
        (weights[f"{name}_weight"] * one for name, one in terms.items()), torch.zeros((), dtype=torch.float64)
    )
    assert abs(float(value.detach() - wanted.detach())) < 1e-9
    assert abs(float(loss.metrics["loss"]) - float(wanted.detach())) < 1e-9
    expected = gradients(model, wanted, head)
    if term == "representation":
        # The head takes no part.
        assert not any(float(one.abs().max()) for name, one in found.items() if name.startswith("head"))
        found = {name: one for name, one in found.items() if not name.startswith("head")}
        expected = {name: one for name, one in expected.items() if not name.startswith("head")}
    close(found, expected)


def test_the_terms_are_counted_and_reported(model: Any) -> None:
    loss = JointLoss(model, start_step=None, **WEIGHTS)
    loss.head.double()
    columns = batch(model)
    loss([columns[0], columns[2]])
    terms = reference(model, loss.head, ROWS, weighted=False)
    for name, one in terms.items():
        assert abs(float(loss.metrics[f"loss_{name}"]) - float(one.detach())) < 1e-9
    assert float(loss.metrics["rows_with_generation"]) == 2
    assert float(loss.metrics["rows_with_compression"]) == 2


def test_rows_without_targets_add_nothing(model: Any) -> None:
    rows = (JointRow([300, 301]), JointRow([302, 303, 304]))
    loss = JointLoss(model, start_step=None)
    loss.head.double()
    columns = batch(model, rows)
    found = loss([columns[0], columns[2]])
    wanted = reference(model, loss.head, rows, weighted=False)["representation"]
    assert abs(float(found.detach() - wanted.detach())) < 1e-9
    assert math.isnan(float(loss.metrics["loss_generation"]))
    assert float(loss.metrics["rows_with_compression"]) == 0
    gradients(model, found, loss.head)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kinds", [(JointLoss, RedapterLoss), (CachedJointLoss, CachedRedapterLoss)])
def test_without_the_two_weights_it_is_redapter(kinds: tuple[Any, Any], weighted: bool, model: Any) -> None:
    joint, plain = kinds
    step = 0 if weighted else None
    texts = ["why is the sky blue", "why do leaves fall", "what"]
    columns = [texts, [f"{one} light" for one in texts], [f"wave {n}" for n in range(6)]]
    if not weighted:
        del columns[1]
    made = [dict(model.preprocess(column)) for column in columns]
    ours = joint(model, start_step=step, generation_weight=0.0, compression_weight=0.0)
    found = ours([dict(one) for one in made])
    grads = gradients(model, found, nn.Identity())
    wanted = plain(model, start_step=step)([dict(one) for one in made])
    assert torch.equal(found.detach(), wanted.detach())
    expected = gradients(model, wanted, nn.Identity())
    assert all(torch.equal(grads[name], one) for name, one in expected.items())


def test_the_last_latent_is_what_plain_encoding_gives(folder: Path) -> None:
    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    model = ReasonEmbed(str(folder), device="cpu")
    latents = find_latents(model.tokenizer).ids
    texts = ["why is the sky blue", "leaves", ""]
    tokens = [model.tokenizer(text)["input_ids"] for text in texts]
    assert all(tuple(ids[-COUNT:]) == latents for ids in tokens)
    rows = [JointRow(ids[:-COUNT], answer=[300 + n, 301]) for n, ids in enumerate(tokens)]
    loss = JointLoss(model)
    with torch.no_grad(), loss._laid_out():
        made = model(lay_out(rows, latents, EOS, PAD))["sentence_embedding"]
    plain = model.encode(texts, convert_to_tensor=True)
    assert float((made[:, : plain.shape[1]] - plain).abs().max()) < 1e-6


def test_logits_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, 11, (3, 5))
    labels[0, :3] = NOTHING
    head, left_out = nn.Linear(8, 11, bias=False, dtype=torch.float64), torch.tensor([4])
    whole, counts = row_losses(hidden, labels, head, left_out)
    monkeypatch.setattr(module, "CHUNK", 2)
    parts, same = row_losses(hidden, labels, head, left_out)
    assert counts.tolist() == same.tolist() == [2, 5, 5]
    assert torch.allclose(parts, whole, atol=1e-12)
    one, other = (torch.autograd.grad(found.sum(), hidden)[0] for found in (whole, parts))
    assert torch.allclose(one, other, atol=1e-12)
    assert not bool(one[labels == NOTHING].any())


def test_a_tied_head_is_the_embeddings_own(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_decoder(tmp_path / "plain")
    held = AutoModelForCausalLM.from_pretrained(folder)
    held.config.tie_word_embeddings = True
    held.lm_head.weight = held.get_input_embeddings().weight
    held.save_pretrained(folder)
    add_latents(str(folder), 1, tmp_path / "latent")
    model = load(tmp_path / "latent")
    loss = JointLoss(model)
    assert loss.head.weight is model[0].auto_model.embed_tokens.weight
    # Once in the optimiser, not twice.
    names = [name for name, _ in loss.named_parameters()]
    assert sum("embed_tokens" in name or "head" in name for name in names) == 1


# Bad input.


def test_a_model_without_latents_is_refused(qwen3_dir: Path) -> None:
    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    with pytest.raises(ReasonEmbedError, match=r"no latent tokens: .*latents add"):
        JointLoss(ReasonEmbed(str(qwen3_dir), device="cpu"))


def test_an_encoder_is_refused(encoder: Any) -> None:
    with pytest.raises(ReasonEmbedError, match="is no decoder"):
        JointLoss(encoder)


def test_a_backbone_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "plain", headless=True)
    add_latents(str(folder), 1, tmp_path / "latent")
    with pytest.raises(ReasonEmbedError, match="no language-model head"):
        JointLoss(load(tmp_path / "latent"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"generation_weight": -1.0}, "generation_weight=-1.0; allowed is 0"),
        ({"compression_weight": math.nan}, "compression_weight=nan"),
        ({"representation_weight": math.inf}, "representation_weight=inf"),
        (dict.fromkeys(WEIGHTS, 0.0), "all three weights are 0"),
    ],
)
def test_weights_out_of_range_are_refused(weights: dict[str, float], message: str, model: Any) -> None:
    with pytest.raises(ReasonEmbedError, match=message):
        JointLoss(model, **weights)


def test_a_layout_in_another_column_is_refused(model: Any) -> None:
    columns = batch(model)
    with pytest.raises(ReasonEmbedError, match="column 1 is laid out"):
        JointLoss(model, start_step=None)([columns[2], columns[0]])


def test_settings_are_named_for_the_card(model: Any) -> None:
    settings = JointLoss(model, **WEIGHTS).get_config_dict()
    assert WEIGHTS.items() <= settings.items()
    assert "temperature" in settings


def test_labels_are_left_as_they_were(model: Any) -> None:
    columns = batch(model)
    before = {name: value.clone() for name, value in columns[0].items()}
    loss = JointLoss(model, start_step=None, generation_weight=0.0)
    loss.head.double()
    loss([columns[0], columns[2]])
    assert columns[0].keys() >= {KINDS, GENERATION, COMPRESSION}
    assert all(torch.equal(columns[0][name], value) for name, value in before.items())


# Several processes.


@pytest.mark.slow
def test_two_processes_train_as_one_does(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("joint_ranks.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path), str(folder)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for cached in (False, True):
        loss, model = joint_ranks.build(str(folder), cached=cached)
        wanted = joint_ranks.run(loss, model, joint_ranks.share(model, 0, 1))
        mine = [one[cached] for one in found]
        assert float(sum(one["loss"] for one in mine) / 2 - wanted["loss"]) == pytest.approx(0, abs=1e-9)
        for one in mine:
            close(one["grads"], wanted["grads"])
            for name, value in wanted["metrics"].items():
                assert float(one["metrics"][name]) == pytest.approx(float(value), abs=1e-9), name


# The copy task: does what is read from K latents rise with K, and is it chance without any?

SYMBOLS, ALPHABET, WIDTH, STEPS, ROWS_A_STEP = 8, 32, 64, 600, 64


def copy_accuracy(count: int) -> float:
    """Train a small decoder to repeat symbols through K latents; return its teacher-forced accuracy."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    start, eos = ALPHABET, ALPHABET + 1
    latents = list(range(ALPHABET + 2, ALPHABET + 2 + count))
    config = Qwen3Config(
        vocab_size=ALPHABET + 2 + max(count, 1),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=WIDTH // 4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model, drawn = Qwen3ForCausalLM(config), torch.Generator().manual_seed(0)
    # A given token begins y: else the last source token, which sees the text, would predict its first.
    row = JointRow([0] * SYMBOLS, question=[start], answer=[0] * SYMBOLS, answer_ends=False)
    layout = lay_out([row] * ROWS_A_STEP, latents, eos, 0)
    mask, wanted = joint_mask(layout[KINDS], torch.float32), layout[COMPRESSION] != NOTHING
    source, target = layout[KINDS] == SOURCE, layout[KINDS] == TARGET
    target[:, SYMBOLS + count] = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)

    def states() -> tuple[Tensor, Tensor]:
        text = torch.randint(0, ALPHABET, (ROWS_A_STEP, SYMBOLS), generator=drawn)
        ids, labels = layout["input_ids"].clone(), layout[COMPRESSION].clone()
        for places in (source, target):
            ids[places] = text.flatten()
        labels[wanted] = text.flatten()
        return model.model(input_ids=ids, attention_mask=mask).last_hidden_state, labels

    for _ in range(STEPS):
        sums, counts = row_losses(*states(), model.lm_head)
        optimizer.zero_grad()
        (sums.sum() / counts.sum()).backward()
        optimizer.step()
        schedule.step()
    hits = []
    with torch.no_grad():
        for _ in range(8):
            hidden, labels = states()
            hits.append((model.lm_head(hidden[wanted]).argmax(dim=1) == labels[wanted]).double().mean())
    return float(torch.stack(hits).mean())


@pytest.mark.slow
def test_a_text_is_copied_through_its_latents() -> None:
    none, one, four = (copy_accuracy(count) for count in (0, 1, 4))
    assert none < 2 / ALPHABET
    assert one > 0.9
    assert four > max(one - 0.01, 0.99)
