"""Which rows form a batch, and which documents form a row's group: by seed, epoch and row alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xxhash
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.training.schema import SubsetMix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from datasets import Dataset
    from torch.utils.data import ConcatDataset

T = TypeVar("T")
# The column that tells a row's later passes within an epoch from its first.
PASS = "pass"


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


def mixed_rows(rows: Mapping[str, int], mix: Mapping[str, SubsetMix]) -> dict[str, int]:
    """Return how many rows an epoch takes of each subset; a row that comes twice counts twice.

    Repeats and caps say what a subset offers. Weights say its share: the epoch is the longest in which the
    shares hold and no subset gives more than it offers. Where some subsets have no weight, the others'
    weights are shares of the whole epoch, and those without divide what is left by what they offer.

    Args:
        rows: Rows by subset.
        mix: What is asked of single subsets.

    Raises:
        UnknownNameError: If there is no subset of a name; the nearest is named.
        ReasonEmbedError: If the weights leave nothing for the subsets without.
    """
    for name in mix:
        if name not in rows:
            raise unknown_name("subset", name, rows)
    parts = {name: mix.get(name, SubsetMix()) for name in rows}
    offered = {name: _offered(count, parts[name]) for name, count in rows.items()}
    shares = _shares({name: part.weight for name, part in parts.items()}, offered)
    if not shares:
        return offered
    # A share's own rounding must not lower the epoch by a row.
    total = min(offered[name] / share for name, share in shares.items()) + 1e-9
    return {name: max(1, int(total * share + 1e-9)) for name, share in shares.items()}


def _offered(rows: int, part: SubsetMix) -> int:
    found = max(1, round(rows * part.repeats))
    return min(found, part.cap) if part.cap else found


def _shares(weights: Mapping[str, float], offered: Mapping[str, int]) -> dict[str, float]:
    """Return each subset's share of an epoch; nothing where no subset has a weight."""
    given, rest = sum(weights.values()), [name for name in weights if not weights[name]]
    if not given:
        return {}
    if not rest:
        return {name: weight / given for name, weight in weights.items()}
    if given >= 1:
        msg = (
            f"data.mix: the weights sum to {given:g} and leave nothing for {', '.join(rest)}: give every "
            "subset a weight, or weights below 1 in all"
        )
        raise ReasonEmbedError(msg)
    left = (1 - given) / sum(offered[name] for name in rest)
    return {name: weight or left * offered[name] for name, weight in weights.items()}


def repeated(rows: Dataset, passes: int) -> Dataset:
    """Return a subset's rows as often as an epoch goes through them; the texts are not copied.

    Args:
        rows: The subset.
        passes: At least 1; each later one has its number in the column ``pass``, by which a row draws other
            documents each time.
    """
    if passes == 1:
        return rows
    from datasets import concatenate_datasets

    return concatenate_datasets([rows.add_column(PASS, [number] * len(rows)) for number in range(passes)])


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
        mixed: Rows of an epoch where that is not all of them once; see `mixed_rows`.
    """

    name: str
    rows: int
    queries: int
    world_size: int = 1
    drop_last: bool = True
    multiple: int = 1
    mixed: int | None = None

    @property
    def taken(self) -> int:
        """Rows of an epoch; a row that comes twice counts twice."""
        return self.rows if self.mixed is None else self.mixed

    @property
    def passes(self) -> int:
        """How often an epoch goes through the rows, the last time perhaps not to the end."""
        return max(1, math.ceil(self.taken / self.rows)) if self.rows else 1

    @property
    def joined(self) -> int:
        """Queries of a global batch."""
        return self.queries * self.world_size

    @property
    def last(self) -> int:
        """Queries a process in the smaller last batch; 0 for none."""
        multiple = math.lcm(self.multiple, self.world_size)
        return 0 if self.drop_last else self.taken % self.joined // multiple * multiple // self.world_size

    @property
    def batches(self) -> int:
        """Global batches of an epoch."""
        return self.taken // self.joined + (self.last > 0)

    @property
    def seen(self) -> int:
        """Rows of an epoch that fill batches."""
        return self.taken // self.joined * self.joined + self.last * self.world_size

    @property
    def left_out(self) -> int:
        """Rows that an epoch does not see; others in each epoch."""
        return max(0, self.rows - self.seen)


class SubsetBatchSampler(MultiDatasetDefaultBatchSampler):
    """Batches of one subset each; the processes' batches of a step belong to the same subset.

    The list holds ``world_size`` batches for each step, the first process' first: accelerate hands them
    out in turn. Joined, they are the batch that one process alone would have.
    """

    def __init__(self, dataset: ConcatDataset[Any], plans: Sequence[SubsetPlan], seed: int) -> None:
        """Plan the batches.

        Args:
            dataset: The subsets, one after the other, each as often as its plan's passes (`repeated`).
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
            order = self._order(plan) + offset
            for start in range(0, plan.batches * plan.joined, plan.joined):
                joined = order[start : start + plan.joined]
                size = plan.queries if len(joined) == plan.joined else plan.last
                steps.append([joined[k * size : (k + 1) * size].tolist() for k in range(plan.world_size)])
            offset += plan.rows * plan.passes
        return steps

    def _order(self, plan: SubsetPlan) -> np.ndarray:
        """Return an epoch's rows of a subset ``(taken,)``: none comes again before all have come."""
        orders = [
            # The first pass draws what a subset without a mix draws.
            generator(self.seed, self.epoch, "rows", plan.name, *([number] if number else [])).permutation(
                plan.rows
            )
            + number * plan.rows
            for number in range(plan.passes)
        ]
        return np.concatenate(orders)[: plan.taken]

    def __len__(self) -> int:
        """Return the batches of all processes."""
        return sum(plan.batches * plan.world_size for plan in self.plans)


class _Empty:
    batch_size = 1
    drop_last = True
