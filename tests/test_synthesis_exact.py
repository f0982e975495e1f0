"""Scores in whole numbers: one number whatever the order of the sum, the block and the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reasonembed_mteb.synthesis.exact import ExactSimilarity, whole_numbers


def vectors(dimensions: int, count: int = 70, seed: int = 0) -> Any:
    draw = np.random.default_rng(seed)
    made = draw.standard_normal((count, dimensions)).astype(np.float32)
    # Lengths far apart, and one component that outweighs the others, as decoders have.
    made *= np.exp2(draw.integers(-20, 20, size=(count, 1))).astype(np.float32)
    made[::3, 0] *= 100
    return made


@pytest.mark.parametrize("function", ["cosine", "dot"])
@pytest.mark.parametrize("dimensions", [1, 3, 384, 1000, 4096])
def test_order_and_blocks_change_no_bit(function: str, dimensions: int) -> None:
    queries, documents = vectors(dimensions, 9), vectors(dimensions, seed=1)
    whole = ExactSimilarity(function, queries).scores(documents)
    blocks = [
        ExactSimilarity(function, queries).scores(documents[start : start + 7]) for start in range(0, 70, 7)
    ]
    assert np.array_equal(np.concatenate(blocks, axis=1), whole)
    single = [ExactSimilarity(function, query[None]).scores(documents)[0] for query in queries]
    assert np.array_equal(np.array(single), whole)
    # Another order of the components is another order of the sum.
    order = np.random.default_rng(2).permutation(dimensions)
    assert np.array_equal(ExactSimilarity(function, queries[:, order]).scores(documents[:, order]), whole)


@pytest.mark.parametrize("dimensions", [1, 50, 1024, 4096, 5000])
def test_every_sum_has_a_place_in_a_float64(dimensions: int) -> None:
    # All components as large as they can be: no partial sum is larger than this one.
    high, low, _ = whole_numbers(np.full((1, dimensions), 1 - 2.0**-30))
    assert sum(int(one) ** 2 for one in high[0]) <= 2**53
    high, low, exponents = whole_numbers(vectors(dimensions, 3))
    assert max(int(one) for one in np.abs(low).max(axis=1)) <= np.abs(high).max()
    bits = int(np.log2(2.0**53 / dimensions)) // 2
    found = np.ldexp(high + np.ldexp(low, -bits), exponents[:, None])
    assert np.allclose(found, vectors(dimensions, 3), rtol=0, atol=1e-9 * np.abs(found).max())


@pytest.mark.parametrize("dimensions", [3, 384, 4096])
def test_they_are_as_near_as_float32_is(dimensions: int) -> None:
    queries, documents = vectors(dimensions, 9).astype(np.float64), vectors(dimensions, seed=1)
    right = documents.astype(np.float64)
    expected = queries @ right.T
    expected /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    assert np.abs(ExactSimilarity("cosine", queries).scores(documents) - expected).max() < 6e-8


def test_no_vector_and_no_number() -> None:
    empty = ExactSimilarity("cosine", np.zeros((1, 4))).scores(np.ones((2, 4)))
    assert empty.tolist() == [[0.0, 0.0]]
    with np.errstate(invalid="ignore"):
        broken = ExactSimilarity("cosine", np.ones((1, 2))).scores(np.array([[np.nan, 1.0], [np.inf, 1.0]]))
    assert not np.isfinite(broken).any()
