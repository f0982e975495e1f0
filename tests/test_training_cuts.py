"""How much of the reasoning is cut away, and by which length."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_data import checked_rows

from reasonembed_mteb.training.cuts import (
    cut_share,
    mean_cut,
    position_limit,
    row_cuts,
    token_counts,
    warn_of_cuts,
)

if TYPE_CHECKING:
    from pathlib import Path


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("full", "before", "limit", "share"),
    [
        (100, 20, 100, 0),
        (100, 20, 60, 0.5),
        (100, 20, 20, 1),
        (100, 20, 8, 1),
        (20, 20, 10, 1),
        (9, 2, 99, 0),
    ],
)
def test_the_share_is_of_the_reasoning_alone(full: int, before: int, limit: int, share: float) -> None:
    assert cut_share(full, before, limit) == share


def test_rows_lose_what_does_not_fit() -> None:
    rows = [
        {"query": "a b c", "reasoning": "a b c d e f g"},
        {"query": "a b c", "reasoning": None},
        # It does not repeat its query: all of it is reasoning.
        {"query": "x y", "reasoning": "d e f g h i j k"},
    ]
    assert row_cuts(rows, ["p ", "p ", ""], 6, words) == [0.5, 0.25]
    assert row_cuts(rows[1:2], ["p "], 6, words) == []
    assert mean_cut([0.5, 0.25]) == 0.375
    assert math.isnan(mean_cut([]))


def test_more_than_a_tenth_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_cuts({"biology": 0.1, "pony": math.nan}, 512)
    assert not caplog.records
    warn_of_cuts({"biology": 0.47, "pony": 0.1, "aops": 0.58}, 512)
    (record,) = caplog.records
    assert "47% (biology), 58% (aops) of the reasoning is cut away at 512 tokens" in record.getMessage()
    assert "raise data.reasoning_tokens" in record.getMessage()


def test_tokens_are_counted_padded_and_packed() -> None:
    assert token_counts({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}) == [2, 3]
    assert token_counts({"cu_seq_lens_q": torch.tensor([0, 2, 5])}) == [2, 3]


def test_no_model_is_given_more_than_it_takes(encoder: Any) -> None:
    from transformers import BertConfig, Qwen3Config, RobertaConfig, RobertaModel

    assert position_limit(encoder.transformers_model) == 512
    assert position_limit(BertConfig(max_position_embeddings=128)) == 128
    assert position_limit(Qwen3Config(max_position_embeddings=40960)) == 40960
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    # Two of its positions are the padding's.
    roberta = RobertaModel(RobertaConfig(vocab_size=9, max_position_embeddings=66, pad_token_id=1, **sizes))
    assert position_limit(roberta) == 64


def test_the_default_chain_loses_nothing(encoder: Any, qwen3_dir: Path, caplog: Any) -> None:
    from reasonembed_mteb.training.recipes import load_recipe

    # ReMixer's longest: a query of 1,000 words and 400 words of reasoning, at 2.8 tokens a word, and the
    # instruction. Nothing of it is lost in any recipe for a decoder.
    longest = round(2.8 * 1400) + 64
    from reasonembed_mteb.synthesis.config import ReasonSection

    for name in ("qwen3-8b", "qwen3-4b", "llama-3.1-8b"):
        recipe = load_recipe(name)
        # Where it counts tokens, it counts up to what training takes.
        assert recipe.data.reasoning_limit == ReasonSection(endpoint="x").train_tokens
        assert recipe.data.query_tokens == 512
        assert cut_share(longest, 64 + round(2.8 * 1000), recipe.data.reasoning_limit) == 0
    # And a longer query never cuts its own reasoning query shorter.
    assert load_recipe("qwen3-8b", ["data.query_tokens=8192"]).data.reasoning_limit == 8192


def test_a_batch_says_what_it_cut(qwen3_dir: Path) -> None:
    from reasonembed_mteb.models.reason_embed import ReasonEmbed
    from reasonembed_mteb.training.collator import GroupCollator

    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    rows = checked_rows(3)
    for row in rows:
        row["reasoning"] = f"{row['query']} " + "why the sky is blue " * 8
    rows[2]["reasoning"] = None
    options = {"preprocess_fn": model.preprocess, "groups": {"biology": 2}, "query_tokens": 24}
    whole = GroupCollator(**options, reasoning_tokens=512)
    batch = whole(rows)
    assert batch["reasoning_cut"] == 0
    assert batch["query_input_ids"].shape[1] <= 24 < batch["reasoning_query_input_ids"].shape[1]
    # As the recipes did before: at the query's own length most of the reasoning is gone.
    short = GroupCollator(**options)
    cut = short(rows)["reasoning_cut"]
    assert cut == pytest.approx(mean_cut(short.cuts(rows)))
    assert 0.5 < cut <= 1
    assert math.isnan(short([row | {"reasoning": None} for row in rows])["reasoning_cut"])


def test_a_longer_text_than_the_positions_is_cut_and_not_refused(encoder: Any) -> None:
    from reasonembed_mteb.training.building import make_collator
    from reasonembed_mteb.training.plan import TrainingPlan
    from reasonembed_mteb.training.recipes import check_recipe

    recipe = check_recipe({"model": {"name": "x"}, "lora": {"rank": 0}, "data": {"query_tokens": 64}}, "x")
    collator = make_collator(encoder, recipe, TrainingPlan([], {"biology": 2}, {}, 1, 1, 1))
    assert (collator.query_tokens, collator.reasoning_limit, collator.document_tokens) == (64, 512, 512)
    rows = checked_rows(1)
    rows[0]["reasoning"] = "blue " * 900
    batch = collator(rows)
    assert batch["reasoning_query_input_ids"].shape[1] == 512
    assert 0.1 < batch["reasoning_cut"] < 1
