"""Which rows form a batch, and which documents form a row's group: by seed, epoch and row alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xxhash
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.utils.data import ConcatDataset

T = TypeVar("T")


def generator(seed: int, epoch: int, *parts: str | int) -> np.random.Generator:
    """Return the random generator of one place in a run; the same in every process and after every resume.

    Args:
        seed: The run's seed.
        epoch: Epoch, from 0.
        *parts: What it is for: a subset, a row.
    """
    numbers = [part if isinstance(part, int) else xxhash.xxh32_intdigest(part.encode()) for part in parts]
    return np.random.default_rng([seed, epoch, *numbers])


def draw_group(
    positives: Sequence[T], negatives: Sequence[T], group: int, random: np.random.Generator
) -> tuple[list[T], int]:
    """Draw one positive and ``group - 1`` negatives.

    Too few negatives are repeated, each as often as the others as far as possible.

    Args:
        positives: At least one.
        negatives: At least one, if the group has more than one document.
        group: Documents wanted.
        random: The row's generator.

    Returns:
        The documents, the positive first, and how many of them repeat another.
    """
    chosen = [positives[int(random.integers(len(positives)))]]
    wanted = group - 1
    order: list[int] = []
    while len(order) < wanted:
        order += random.permutation(len(negatives)).tolist()
    chosen += [negatives[index] for index in order[:wanted]]
    return chosen, max(0, wanted - len(negatives))


@dataclass(frozen=True)
class SubsetPlan:
    """What an epoch takes of a subset.

    Attributes:
        name: The subset.
        rows: Its rows.
        queries: Queries a process and batch.
        world_size: Processes.
        drop_last: Whether rows that do not fill a global batch are left out.
        multiple: What the size of a smaller last batch is a multiple of: all numbers of processes that
            divide it have the same batches. At least ``world_size`` counts.
    """

    name: str
    rows: int
    queries: int
    world_size: int = 1
    drop_last: bool = True
    multiple: int = 1

    @property
    def joined(self) -> int:
        """Queries of a global batch."""
        return self.queries * self.world_size

    @property
    def last(self) -> int:
        """Queries a process in the smaller last batch; 0 for none."""
        multiple = math.lcm(self.multiple, self.world_size)
        return 0 if self.drop_last else self.rows % self.joined // multiple * multiple // self.world_size

    @property
    def batches(self) -> int:
        """Global batches of an epoch."""
        return self.rows // self.joined + (self.last > 0)

    @property
    def left_out(self) -> int:
        """Rows that an epoch does not see; others in each epoch."""
        return self.rows - (self.rows // self.joined) * self.joined - self.last * self.world_size


class SubsetBatchSampler(MultiDatasetDefaultBatchSampler):
    """Batches of one subset each; the processes' batches of a step belong to the same subset.

    The list holds ``world_size`` batches for each step, the first process' first: accelerate hands them
    out in turn. Joined, they are the batch that one process alone would have.
    """

    def __init__(self, dataset: ConcatDataset[Any], plans: Sequence[SubsetPlan], seed: int) -> None:
        """Plan the batches.

        Args:
            dataset: The subsets, one after the other.
            plans: One for each subset, in the same order.
            seed: The run's seed.
        """
        # The parent wants the samplers that the library makes for each subset; none of them is used.
        super().__init__(dataset, [_Empty()] * len(plans), seed=seed)  # type: ignore[list-item]
        # Where this is a number, accelerate drops every step whose last batch is not of that size.
        self.batch_size = None  # type: ignore[assignment]
        self.drop_last = True
        self.plans = list(plans)
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the epoch's batches of row numbers."""
        steps = self._steps()
        for index in generator(self.seed, self.epoch, "steps").permutation(len(steps)):
            yield from steps[int(index)]

    def _steps(self) -> list[list[list[int]]]:
        """Return for each step the batch of every process."""
        steps, offset = [], 0
        for plan in self.plans:
            order = generator(self.seed, self.epoch, "rows", plan.name).permutation(plan.rows) + offset
            for start in range(0, plan.batches * plan.joined, plan.joined):
                joined = order[start : start + plan.joined]
                size = plan.queries if len(joined) == plan.joined else plan.last
                steps.append([joined[k * size : (k + 1) * size].tolist() for k in range(plan.world_size)])
            offset += plan.rows
        return steps

    def __len__(self) -> int:
        """Return the batches of all processes."""
        return sum(plan.batches * plan.world_size for plan in self.plans)


class _Empty:
    batch_size = 1
    drop_last = True
