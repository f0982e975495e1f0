"""Joint rows: their layout, their attention mask, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import save_decoder

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.reasoning.masks import (
    COMPRESSION,
    GENERATION,
    KINDS,
    LATENT,
    NOTHING,
    PADDING,
    SOURCE,
    TARGET,
    JointRow,
    attending_jointly,
    check_backbone,
    check_window,
    joint_mask,
    lay_out,
)

if TYPE_CHECKING:
    from pathlib import Path

_ = NOTHING
LATENTS, EOS, PAD = (90, 91), 99, 0


def test_a_row_is_laid_out_with_its_labels() -> None:
    rows = [
        JointRow([1, 2, 3, 4], written=2, question=[5], answer=[6, 7]),
        JointRow([1, 2], answer=[8], answer_ends=False),
        JointRow([3]),
    ]
    made = lay_out(rows, LATENTS, EOS, PAD)
    assert made["input_ids"].tolist() == [
        [1, 2, 3, 4, 90, 91, 5, 6, 7],
        [1, 2, 90, 91, 8, 0, 0, 0, 0],
        [3, 90, 91, 0, 0, 0, 0, 0, 0],
    ]
    assert made[KINDS].tolist() == [
        [SOURCE] * 4 + [LATENT] * 2 + [TARGET] * 3,
        [SOURCE] * 2 + [LATENT] * 2 + [TARGET] + [PADDING] * 4,
        [SOURCE] + [LATENT] * 2 + [PADDING] * 6,
    ]
    # The token before the first written one predicts it; the last written one predicts EOS.
    assert made[GENERATION].tolist() == [[_, 3, 4, 99, *[_] * 5], [_] * 9, [_] * 9]
    # The question is given; the last latent predicts where there is none.
    assert made[COMPRESSION].tolist() == [
        [*[_] * 6, 6, 7, 99],
        [_, _, _, 8, *[_] * 5],
        [_] * 9,
    ]
    assert made["attention_mask"].tolist() == (made[KINDS] != PADDING).long().tolist()


def test_the_first_token_of_a_row_is_predicted_by_nothing() -> None:
    made = lay_out([JointRow([1, 2], written=2)], LATENTS, EOS, PAD)
    assert made[GENERATION].tolist() == [[2, 99, _, _]]


def test_an_end_of_text_stands_between_text_and_latents() -> None:
    made = lay_out([JointRow([1, 2, 3], written=2, ending=[EOS], answer=[4])], LATENTS, EOS, PAD)
    assert made["input_ids"].tolist() == [[1, 2, 3, 99, 90, 91, 4]]
    assert made[KINDS].tolist() == [[SOURCE] * 4 + [LATENT] * 2 + [TARGET]]
    assert made[GENERATION].tolist() == [[2, 3, 99, _, _, _, _]]


def test_an_answer_of_a_question_alone_is_no_target() -> None:
    made = lay_out([JointRow([1], question=[5, 6])], LATENTS, EOS, PAD)
    assert made["input_ids"].tolist() == [[1, 90, 91]]


def test_targets_that_hold_a_latent_are_refused() -> None:
    # Beside the latents of every row, and within a query, one may stand.
    lay_out([JointRow([1, LATENTS[0], 2], written=1, question=[5], answer=[6])], LATENTS, EOS, PAD)
    for row in (
        JointRow([1, LATENTS[0]], written=1),
        JointRow([1], answer=[4, LATENTS[1]]),
        JointRow([1], question=[LATENTS[1]], answer=[4]),
    ):
        with pytest.raises(ReasonEmbedError, match=r"row 1 of the batch: .* holds a latent token"):
            lay_out([JointRow([1]), row], LATENTS, EOS, PAD)


def test_who_sees_whom() -> None:
    kinds = torch.tensor([[SOURCE, LATENT, LATENT, TARGET, TARGET, PADDING]])
    mask = joint_mask(kinds, torch.float64)
    assert mask.shape == (1, 1, 6, 6)
    seen = (mask[0, 0] == 0).int().tolist()
    assert seen[:5] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
    ]
    # Padding sees itself, so that no row of the mask is empty; nothing else sees it.
    assert all(row[5] == (number == 5) for number, row in enumerate(seen))


def test_rows_of_padding_alone_are_no_nan(qwen3: Any) -> None:
    features = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [0, 0, 0, 0]]),
        KINDS: torch.tensor([[1, 2, 3, 3], [1, 2, 0, 0], [0, 0, 0, 0]]),
    }
    features |= {name: torch.full((3, 4), _) for name in (GENERATION, COMPRESSION)}
    for attention in ("sdpa", "eager"):
        qwen3[0].auto_model.set_attn_implementation(attention)
        with attending_jointly(qwen3[0]), torch.no_grad():
            made = qwen3(dict(features))
        assert bool(made["token_embeddings"].isfinite().all())
        assert made["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
        assert KINDS in made
    qwen3[0].auto_model.set_attn_implementation("sdpa")


def test_rows_without_a_layout_pass_as_ever(qwen3: Any) -> None:
    texts = ["why is the sky blue", "short"]
    plain = qwen3.encode(texts, convert_to_tensor=True)
    with attending_jointly(qwen3[0]):
        assert torch.equal(qwen3.encode(texts, convert_to_tensor=True), plain)
    # Nothing of it stays on the model.
    assert not qwen3[0]._forward_hooks
    assert not qwen3[0]._forward_pre_hooks


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    folder: Path = save_decoder(tmp_path_factory.mktemp("masks") / "qwen3")
    return ReasonEmbed(str(folder), device="cpu")


def test_an_encoder_is_refused(encoder: Any) -> None:
    with pytest.raises(ReasonEmbedError, match="a bert is no decoder"):
        check_backbone(encoder[0].auto_model)


def test_attention_without_masks_by_pairs_is_refused(qwen3: Any) -> None:
    backbone = qwen3[0].auto_model
    before = backbone.config._attn_implementation
    backbone.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ReasonEmbedError, match=r"flash_attention_2.*sdpa and eager"):
        check_backbone(backbone)
    backbone.config._attn_implementation = before
    check_backbone(backbone)


@pytest.mark.parametrize(
    ("window", "kinds", "refused"),
    [
        (None, None, False),
        (8, None, True),
        (9, None, False),
        (8, ["full_attention"], False),
        (8, ["full_attention", "sliding_attention"], True),
    ],
)
def test_rows_beyond_a_sliding_window_are_refused(
    window: int | None, kinds: list[str] | None, refused: bool
) -> None:
    config = SimpleNamespace(sliding_window=window, layer_types=kinds)
    if refused:
        with pytest.raises(ReasonEmbedError, match=r"9 tokens .* sliding window of 8"):
            check_window(config, 9)
    else:
        check_window(config, 9)
