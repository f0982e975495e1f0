"""Batches and groups: one subset a batch, the same rows on any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import ConcatDataset

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.training.sampling import (
    SubsetBatchSampler,
    SubsetPlan,
    draw_group,
    generator,
    mixed_rows,
    repeated,
)
from reasonembed_mteb.training.schema import SubsetMix

SIZES = {"biology": 45, "leetcode": 50, "pony": 9}
JOINED = {"biology": 12, "leetcode": 24, "pony": 6}


def sampler(world: int = 1, *, epoch: int = 0, drop_last: bool = True, seed: int = 3) -> SubsetBatchSampler:
    plans = [
        SubsetPlan(name, rows, JOINED[name] // world, world, drop_last, multiple=6)
        for name, rows in SIZES.items()
    ]
    made = SubsetBatchSampler(ConcatDataset([list(range(n)) for n in SIZES.values()]), plans, seed)
    made.set_epoch(epoch)
    return made


def subset_of(row: int) -> str:
    bounds = np.cumsum(list(SIZES.values()))
    return list(SIZES)[int(np.searchsorted(bounds, row, side="right"))]


def shards(made: SubsetBatchSampler, world: int) -> list[list[list[int]]]:
    """Hand the batches out as accelerate does."""
    return [
        list(BatchSamplerShard(made, num_processes=world, process_index=rank, even_batches=False))
        for rank in range(world)
    ]


def test_a_batch_holds_one_subset_of_its_own_size() -> None:
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 45 // 12 + 50 // 24 + 9 // 6
    for batch in batches:
        (name,) = {subset_of(row) for row in batch}
        assert len(batch) == JOINED[name]
    rows = [row for batch in batches for row in batch]
    assert len(rows) == len(set(rows))
    # Not one subset after the other.
    order = [subset_of(batch[0]) for batch in batches]
    assert order != sorted(order)


@pytest.mark.parametrize("world", [2, 3, 6])
@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_share_the_batch_that_one_would_have(world: int, drop_last: bool) -> None:
    alone = list(sampler(drop_last=drop_last))
    parts = shards(sampler(world, drop_last=drop_last), world)
    # The trap: where the sampler has a batch size, accelerate silently drops most steps.
    assert [len(part) for part in parts] == [len(parts[0])] * world
    joined = [[row for batch in step for row in batch] for step in zip(*parts, strict=True)]
    assert joined == alone
    # Of biology's 45 rows the last batch takes 6.
    assert (6 in {len(batch) for batch in alone if subset_of(batch[0]) == "biology"}) is not drop_last


@pytest.mark.parametrize("world", [2, 3])
def test_all_processes_have_one_subset_and_one_size_at_a_step(world: int) -> None:
    for step in zip(*shards(sampler(world, drop_last=False), world), strict=True):
        assert len({subset_of(row) for batch in step for row in batch}) == 1
        assert len({len(batch) for batch in step}) == 1


def test_epochs_and_seeds_differ_and_repeat() -> None:
    assert list(sampler(epoch=1)) == list(sampler(epoch=1))
    assert list(sampler(epoch=1)) != list(sampler(epoch=0))
    assert list(sampler(seed=4)) != list(sampler(seed=3))


def test_plans_count_what_an_epoch_takes() -> None:
    for drop_last in (True, False):
        made = sampler(2, drop_last=drop_last)
        seen = sum(len(batch) for batch in made)
        assert seen == sum(plan.rows - plan.left_out for plan in made.plans)
        assert len(list(made)) == len(made)
    assert SubsetPlan("a", 5, 4, 2).batches == 0
    assert SubsetPlan("a", 5, 4, 2, drop_last=False).left_out == 1
    assert SubsetPlan("a", 1, 4, 2, drop_last=False).batches == 0


def draw(group: int, positives: int = 3, negatives: int = 5, **places: Any) -> tuple[list[str], int]:
    random = generator(places.get("seed", 1), places.get("epoch", 0), "group", "a", places.get("row", 0))
    return draw_group([f"p{i}" for i in range(positives)], [f"n{i}" for i in range(negatives)], group, random)


def test_a_group_is_one_positive_and_different_negatives() -> None:
    found, repeats = draw(4)
    assert found[0][0] == "p"
    assert [text[0] for text in found[1:]] == ["n"] * 3
    assert len(set(found)) == 4
    assert repeats == 0
    assert draw(4) == (found, 0)


def test_groups_change_with_row_epoch_and_seed() -> None:
    assert len({tuple(draw(4, row=row)[0]) for row in range(20)}) > 10
    assert len({tuple(draw(4, epoch=epoch)[0]) for epoch in range(20)}) > 10
    assert len({tuple(draw(4, seed=seed)[0]) for seed in range(20)}) > 10
    # Every positive and every negative has its turn.
    assert {draw(2, row=row)[0][0] for row in range(60)} == {"p0", "p1", "p2"}
    assert {draw(2, row=row)[0][1] for row in range(60)} == {f"n{i}" for i in range(5)}


def test_too_few_negatives_are_repeated_evenly_and_counted() -> None:
    found, repeats = draw(13, negatives=5)
    assert len(found) == 13
    assert repeats == 7
    counts = sorted(found.count(f"n{i}") for i in range(5))
    assert counts == [2, 2, 2, 3, 3]
    assert draw(1)[0] == draw(1)[0][:1]


MIX_SIZES = {"biology": 400, "pony": 100, "general": 5000}


@pytest.mark.parametrize(
    ("mix", "taken"),
    [
        ({}, MIX_SIZES),
        ({"general": {"cap": 200}}, MIX_SIZES | {"general": 200}),
        ({"pony": {"repeats": 3}, "biology": {"repeats": 0.5}}, MIX_SIZES | {"pony": 300, "biology": 200}),
        ({"pony": {"repeats": 3, "cap": 250}}, MIX_SIZES | {"pony": 250}),
        # 30 % general: the others give all they have, in their own proportion.
        ({"general": {"weight": 0.3}}, {"biology": 400, "pony": 100, "general": 214}),
        # General data that is short of its share holds the others back ...
        ({"general": {"weight": 0.5, "cap": 100}}, {"biology": 80, "pony": 20, "general": 100}),
        # ... unless it may come again.
        (
            {"general": {"weight": 0.5, "cap": 0, "repeats": 0.02}},
            {"biology": 80, "pony": 20, "general": 100},
        ),
        # Weights of all subsets are relative, whatever they sum to.
        (
            {"biology": {"weight": 2}, "pony": {"weight": 1}, "general": {"weight": 1}},
            {"biology": 200, "pony": 100, "general": 100},
        ),
        ({"pony": {"repeats": 0.001}}, MIX_SIZES | {"pony": 1}),
    ],
)
def test_a_mix_says_what_an_epoch_takes(mix: dict[str, dict[str, float]], taken: dict[str, int]) -> None:
    parts = {name: SubsetMix.model_validate(part) for name, part in mix.items()}
    assert mixed_rows(MIX_SIZES, parts) == taken


def test_the_shares_are_those_asked_for() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = {name: int(random.integers(50, 5000)) for name in "abc"}
        weights = random.dirichlet(np.ones(3))
        mix = {n: SubsetMix(weight=float(w), repeats=2) for n, w in zip("abc", weights, strict=True)}
        taken = mixed_rows(sizes, mix)
        total = sum(taken.values())
        for name, weight in zip("abc", weights, strict=True):
            assert abs(taken[name] - total * weight) <= 2
            assert taken[name] <= 2 * sizes[name]


def test_a_mix_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'general'"):
        mixed_rows(MIX_SIZES, {"genral": SubsetMix(weight=0.3)})
    for weight in (1.0, 2.5):
        with pytest.raises(ReasonEmbedError, match=f"sum to {weight:g} and leave nothing for biology, pony"):
            mixed_rows(MIX_SIZES, {"general": SubsetMix(weight=weight)})


def mixed_sampler(taken: int, epoch: int = 0, world: int = 1) -> SubsetBatchSampler:
    plans = [
        SubsetPlan("a", 10, 4 // world, world, False, 2, taken),
        SubsetPlan("b", 8, 4 // world, world, False, 2),
    ]
    rows = ConcatDataset([list(range(10 * plans[0].passes)), list(range(8))])
    made = SubsetBatchSampler(rows, plans, 3)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("taken", [4, 10, 12, 28])
def test_a_mixed_subset_comes_as_often_as_planned(taken: int) -> None:
    made = mixed_sampler(taken)
    passes = made.plans[0].passes
    found = [row for batch in made for row in batch if row < 10 * passes]
    assert len(found) == made.plans[0].seen == taken
    assert len(set(found)) == taken
    # No row comes again before all have come.
    times = np.bincount([row % 10 for row in found], minlength=10)
    assert times.max() - times.min() <= 1
    # The other subset is as it was.
    assert sorted(row - 10 * passes for batch in made for row in batch if row >= 10 * passes) == list(
        range(8)
    )
    joined = [
        row for step in zip(*shards(mixed_sampler(taken, world=2), 2), strict=True) for b in step for row in b
    ]
    assert joined == [row for batch in made for row in batch]


def test_capped_rows_are_others_in_each_epoch() -> None:
    seen = {row for epoch in range(12) for batch in mixed_sampler(4, epoch) for row in batch if row < 10}
    assert seen == set(range(10))


def test_a_row_that_comes_again_is_told_from_its_first_time() -> None:
    from datasets import Dataset

    rows = Dataset.from_list([{"row": number, "query": f"q{number}"} for number in range(3)])
    assert repeated(rows, 1) is rows
    twice = repeated(rows, 2)
    assert [(row["row"], row["pass"]) for row in twice] == [(n, k) for k in range(2) for n in range(3)]
