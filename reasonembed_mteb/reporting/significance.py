"""Whether a difference is real: paired randomisation tests, Holm's correction, letters for a table.

The test flips the sign of each query's difference at random (Fisher's randomisation test; Smucker et al.,
CIKM 2007, recommend it for retrieval). One pair is scipy's own `permutation_test`; `compare_models` gives
every pair of many models the same flips, so that they cost one matrix product together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.reporting.bootstrap import RESAMPLES, score_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Scores = Mapping[str, float]
    Floats = NDArray[np.float64]

ALPHA = 0.05
# Rows of signs at a time: they and 50 models' sums stay in the processor's cache.
_BLOCK = 1024
# Sums of the same numbers in another order differ by this much, relative to the largest possible sum.
_ROUNDING = 1e-12
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class PairedTest:
    """Two models over the same queries.

    Attributes:
        difference: Mean of the first less that of the second.
        pvalue: Two-sided; of a larger difference if the models were exchangeable on every query.
        queries: How many.
        is_exact: Every flip was tried, instead of a random sample.
    """

    difference: float
    pvalue: float
    queries: int
    is_exact: bool


@dataclass(frozen=True)
class Comparison:
    """Every pair of models over the same queries, the best mean first.

    Attributes:
        models: ``M`` names.
        means: ``(M,)``.
        pvalues: ``(M, M)``, not corrected; 1 on the diagonal.
        adjusted: ``(M, M)``, after Holm's correction over all pairs.
        queries: How many.
    """

    models: tuple[str, ...]
    means: Floats
    pvalues: Floats
    adjusted: Floats
    queries: int

    def pair(self, first: str, second: str) -> tuple[float, float]:
        """Return the p-value of two models, before and after correction.

        Args:
            first: A model.
            second: Another.
        """
        place = self.models.index(first), self.models.index(second)
        return float(self.pvalues[place]), float(self.adjusted[place])


@dataclass(frozen=True)
class Marks:
    """What a table shows of the tests, besides the scores.

    Attributes:
        letters: By model: two models without a common letter differ significantly, and no others.
        beats: By model, those it is significantly better than, best first.
        top: Models that are not significantly worse than the best one, which is among them.
        comparison: The tests.
        alpha: Level after correction.
    """

    letters: dict[str, str]
    beats: dict[str, tuple[str, ...]]
    top: frozenset[str]
    comparison: Comparison
    alpha: float


def paired_test(first: Scores, second: Scores, *, resamples: int = RESAMPLES, seed: int = 0) -> PairedTest:
    """Test whether two models differ over the same queries.

    Args:
        first: Scores by query id.
        second: Scores by query id.
        resamples: Random flips; all ``2^Q`` are tried instead where they are no more than that.
        seed: Of the flips.

    Raises:
        DataError: If the queries differ, or a score is not finite.
    """
    from scipy.stats import permutation_test  # type: ignore[import-untyped]

    one, other = score_matrix({"the first": first, "the second": second})
    differences = one - other
    is_exact = 2 ** len(differences) <= resamples
    pvalue = 1.0
    # scipy wants two observations; the flip of a single one always gives the same size.
    if len(differences) > 1:
        tested = permutation_test(
            (differences,),
            _size_of_mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, 4_000_000 // len(differences)),
            alternative="greater",
            rng=seed,
        )
        pvalue = float(tested.pvalue)
    return PairedTest(float(differences.mean()), pvalue, len(differences), is_exact)


def _size_of_mean(differences: Floats, axis: int) -> Any:  # noqa: ANN401 - array or scalar
    return np.abs(differences.mean(axis=axis))


def _flips(queries: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks ``(B, Q)`` of signs: every pattern where there are few, else random ones."""
    if 2**queries <= resamples:
        for start in range(0, 2**queries, _BLOCK):
            numbers = np.arange(start, min(start + _BLOCK, 2**queries))[:, None]
            yield np.where((numbers >> np.arange(queries)) & 1, -1.0, 1.0)
        return
    draw = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        size = (min(_BLOCK, resamples - start), math.ceil(queries / 8))
        bits = np.unpackbits(draw.integers(0, 256, size, dtype=np.uint8), axis=1, count=queries)
        yield np.where(bits, -1.0, 1.0)


def pairwise_pvalues(scores: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the two-sided p-values of every pair of rows.

    The sum of a pair's flipped differences is the difference of two flipped sums, so the flips of all
    pairs cost one product of ``(B, Q)`` and ``(Q, M)``.

    Args:
        scores: ``(M, Q)``: models by queries.
        resamples: Random flips; all ``2^Q`` are tried instead where they are no more than that.
        seed: Of the flips.

    Returns:
        ``(M, M)``, symmetric, 1 on the diagonal.
    """
    models, queries = scores.shape
    sums = scores.sum(axis=1)
    slack = _ROUNDING * max(1.0, float(np.abs(scores).sum(axis=1).max(initial=0.0)))
    observed = np.abs(sums[:, None] - sums[None, :]) - slack
    reached = np.zeros((models, models), dtype=np.int64)
    for signs in _flips(queries, resamples, seed):
        flipped = scores @ signs.T
        for row in range(models - 1):
            sizes = flipped[row + 1 :] - flipped[row]
            np.abs(sizes, out=sizes)
            reached[row, row + 1 :] += np.count_nonzero(sizes >= observed[row, row + 1 :, None], axis=1)
    # Of random signs the observed ones are one more sample: a p-value of 0 would claim too much.
    is_exact = 2**queries <= resamples
    pvalues = reached / 2**queries if is_exact else (reached + 1) / (resamples + 1)
    upper = np.triu(pvalues, 1)
    return upper + upper.T + np.eye(models)


def holm(pvalues: Sequence[float] | Floats) -> Floats:
    """Correct p-values for their number by Holm's step-down method, which scipy does not have.

    Args:
        pvalues: ``(P,)``.

    Returns:
        ``(P,)``, in the same order.
    """
    values = np.asarray(pvalues, dtype=float)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def compare_models(
    scores_by_model: Mapping[str, Scores],
    *,
    resamples: int | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Comparison:
    """Test every pair of models over the same queries.

    Args:
        scores_by_model: Scores by model and query id.
        resamples: Random flips. Default: enough for the least possible p-value to be half of what
            Holm's correction asks of the smallest one.
        alpha: Level that the default aims at.
        seed: Of the flips.

    Raises:
        DataError: If the models were scored over different queries, or a score is not finite.
    """
    matrix = score_matrix(scores_by_model)
    names = np.array(list(scores_by_model), dtype=object)
    # Models that tie keep the order they were given in.
    order = np.argsort(-matrix.mean(axis=1), kind="stable")
    matrix = matrix[order]
    upper = np.triu_indices(len(names), 1)
    if resamples is None:
        resamples = max(RESAMPLES, math.ceil(2 * len(upper[0]) / alpha))
    pvalues = pairwise_pvalues(matrix, resamples=resamples, seed=seed)
    adjusted = np.eye(len(names))
    adjusted[upper] = holm(pvalues[upper])
    adjusted.T[upper] = adjusted[upper]
    return Comparison(tuple(names[order]), matrix.mean(axis=1), pvalues, adjusted, matrix.shape[1])


def significance_marks(
    scores_by_model: Mapping[str, Scores],
    *,
    resamples: int | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Marks:
    """Return letters and marks for a table of models over the same queries.

    Args:
        scores_by_model: Scores by model and query id.
        resamples: See `compare_models`.
        alpha: Level after Holm's correction over all pairs.
        seed: Of the flips.

    Raises:
        DataError: If the models were scored over different queries, or a score is not finite.
    """
    tested = compare_models(scores_by_model, resamples=resamples, alpha=alpha, seed=seed)
    differ = tested.adjusted <= alpha
    names = tested.models
    return Marks(
        letters=dict(zip(names, _letter_display(differ), strict=True)),
        beats={
            name: tuple(names[other] for other in range(row + 1, len(names)) if differ[row, other])
            for row, name in enumerate(names)
        },
        top=frozenset(name for name, worse in zip(names, differ[0], strict=True) if not worse),
        comparison=tested,
        alpha=alpha,
    )


def _letter_display(differ: NDArray[np.bool_]) -> list[str]:
    """Give models that do not differ a common letter, by insertion and absorption (Piepho 2004).

    Args:
        differ: ``(M, M)``.

    Returns:
        The letters of each model.
    """
    count = len(differ)
    # A group is a set of models, one bit each.
    groups = [(1 << count) - 1]
    for first, second in np.argwhere(np.triu(differ, 1)).tolist():
        both = (1 << first) | (1 << second)
        split = [group for group in groups if group & both == both]
        groups = [group for group in groups if group & both != both]
        for part in (group & ~(1 << model) for group in split for model in (first, second)):
            if not any(part & other == part for other in groups):
                groups.append(part)
    # The group of the best model gets the first letter.
    members = sorted([model for model in range(count) if group >> model & 1] for group in groups)
    return [
        "".join(_letter(place) for place, group in enumerate(members) if m in group) for m in range(count)
    ]


def _letter(place: int) -> str:
    repeat, letter = divmod(place, len(_LETTERS))
    return _LETTERS[letter] + (str(repeat + 1) if repeat else "")
