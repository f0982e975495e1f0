"""A plan says what would be trained, and what would be lost."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
from training_data import make_rows, tiny_recipe, write_rows

from reasonembed_mteb.training.data import load_training_data
from reasonembed_mteb.training.plan import SMALL_BATCH, TrainingPlan, measure, plan_training
from reasonembed_mteb.training.recipes import check_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from reasonembed_mteb.training.data import TrainingData


def planned(tmp_path: Path, rows: list[dict[str, Any]], /, **sections: Any) -> TrainingPlan:
    return plan_training(check_recipe(tiny_recipe("x", **sections), "x"), read(tmp_path, rows))


def read(tmp_path: Path, rows: list[dict[str, Any]]) -> TrainingData:
    return load_training_data([write_rows(tmp_path / "biology.jsonl", rows)], cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("start", "weighted", "warned"),
    [(100, 0, True), (5, 0, True), (4, 1, True), (2, 3, False), (0.2, 4, False), (0, 5, False)],
)
def test_a_run_shorter_than_its_start_is_named(
    start: float, weighted: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        plan = planned(tmp_path, make_rows(20), loss={"start_step": start})
    assert (plan.steps, plan.weighted_steps) == (5, weighted)
    said = [record.getMessage() for record in caplog.records]
    assert bool(said) == warned
    if warned:
        assert f"{weighted} of 5 steps are weighted" in said[0]
        assert "--set loss.start_step=0.1" in said[0]


def test_infonce_weighs_nothing_and_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plan = planned(tmp_path, make_rows(20), loss={"kind": "infonce"})
    assert (plan.start_step, plan.weighted_steps) == (None, 0)
    assert not caplog.records


def test_rows_decide_what_the_recipe_leaves_open(tmp_path: Path) -> None:
    rows = [row | {"train_group_size": 5, "batch_size": 3} for row in make_rows(9)]
    # The tiny recipe has a shape of its own.
    plan = planned(tmp_path, rows)
    assert (plan.groups["biology"], plan.subsets[0].queries) == (3, 4)
    assert plan.notes == [
        "biology: the rows say train_group_size=5, the recipe 3, batch_size=3, the recipe 4",
    ]
    plan = planned(tmp_path, rows, batch={"group": None, "queries": None})
    assert (plan.groups["biology"], plan.subsets[0].queries) == (5, 3)
    assert plan.notes == ["biology: the rows say train_group_size=5, batch_size=3"]
    assert plan.batches == 3
    own = {"group": None, "queries": None, "subsets": {"biology": {"queries": 2}}}
    plan = planned(tmp_path, rows, batch=own)
    assert (plan.groups["biology"], plan.subsets[0].queries) == (5, 2)


def test_rows_that_disagree_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows(9)
    rows[4]["batch_size"] = 3
    with caplog.at_level(logging.WARNING):
        planned(tmp_path, rows, loss={"start_step": 0})
    (record,) = caplog.records
    assert "biology: its rows have different values of batch_size; the first one's, 4" in record.getMessage()


def test_a_plan_measures_the_reasoning_that_is_cut(
    qwen3_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row | {"reasoning_query": f"{row['query']} {'why the sky ' * 20}"} for row in make_rows(8)]
    data = read(tmp_path, rows)
    figures = {}
    for tokens in (64, 512):
        recipe = check_recipe(tiny_recipe(qwen3_dir, data={"reasoning_tokens": tokens}), "x")
        plan = plan_training(recipe, data)
        caplog.clear()
        measure(plan, recipe, data)
        figures[tokens] = plan.tokens["biology"].reasoning_cut
        assert any("reasoning is cut away at 64 tokens" in r.getMessage() for r in caplog.records) == (
            tokens == 64
        )
    assert figures[512] == 0
    assert figures[64] > 0.3
    recipe = check_recipe(tiny_recipe(qwen3_dir, loss={"kind": "infonce"}), "x")
    measure(plan, recipe, data)
    assert math.isnan(plan.tokens["biology"].reasoning_cut)


def test_mini_batches_that_fit() -> None:
    memory = {"weights": 4.0, "optimizer": 2.0, "activations": 30.0, "total": 36.0}
    plan = TrainingPlan([], {}, {}, 1, 1, 1, memory=memory, token_memory=1e-3)
    assert plan.cached_memory(1000) == 7.0
    # 0.8 of 20 GiB less 6 of the model: 10,000 tokens, rounded down to a multiple of 256.
    assert plan.fitting_tokens(20) == 9984
    assert plan.fitting_tokens(7) == 0
    assert plan.fitting_tokens(1000) == 8 * SMALL_BATCH


def test_quantised_weights_and_small_moments_are_counted() -> None:
    from transformers import Qwen3Config

    from reasonembed_mteb.training.plan import SubsetTokens, estimate_memory
    from reasonembed_mteb.training.recipes import load_recipe
    from reasonembed_mteb.training.sampling import SubsetPlan

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    config = Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=99)
    tokens = {"biology": SubsetTokens(9, 9, 9, 0.0)}
    plan = TrainingPlan([SubsetPlan("biology", 8, 8, 1)], {"biology": 2}, {}, 1, 1, 1, tokens)
    whole = estimate_memory(plan, load_recipe("qwen3-8b"), config)
    small = estimate_memory(
        plan, load_recipe("qwen3-8b", ["lora.quantize=true", "training.optimizer=adamw_8bit"]), config
    )
    assert small["weights"] == pytest.approx(whole["weights"] * 0.52 / 2)
    assert small["optimizer"] == pytest.approx(whole["optimizer"] * 10 / 16)
    assert small["activations"] == whole["activations"]
    half = estimate_memory(plan, load_recipe("qwen3-8b", ["training.precision=fp16"]), config)
    assert half == whole
