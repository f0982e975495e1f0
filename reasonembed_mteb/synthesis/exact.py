"""Scores that are the same number on every machine, for the same vectors.

A sum of floats depends on its order, and a matrix product's order depends on the processor, the number of
threads and the shape of the matrices. Sums of whole numbers do not: vectors are therefore written as whole
numbers so small that every product and every partial sum of a dot product has a place in 53 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Bits of a float64 that hold a whole number exactly.
_MANTISSA = 53


def whole_numbers(vectors: Any) -> tuple[Floats, Floats, NDArray[np.int64]]:  # noqa: ANN401 - an array
    """Write vectors as whole numbers, each vector by a power of two of its own.

    A number has two parts of ``b`` bits, with ``2 b + log2(dim)`` at most 53: 20 bits with 4,096 dimensions.
    Both together hold all that a float32 has, save in components far below the largest one.

    Args:
        vectors: ``(N, dim)``.

    Returns:
        High and low parts ``(N, dim)``, whole numbers as floats, and exponents ``(N,)``: a vector is about
        ``(high + low / 2 ** b) * 2 ** exponent``.
    """
    values = np.asarray(vectors, dtype=np.float64)
    bits = _bits(values.shape[1])
    largest = np.abs(values).max(axis=1, initial=0.0)
    exponents = np.frexp(largest)[1].astype(np.int64) - bits
    scaled = np.ldexp(values, -exponents[:, None])
    high = np.rint(scaled)
    return high, np.rint(np.ldexp(scaled - high, bits)), exponents


def _bits(dimensions: int) -> int:
    return (_MANTISSA - max(0, dimensions - 1).bit_length()) // 2


class ExactSimilarity:
    """Cosine or dot product of all queries with one block of documents after the other.

    Args:
        function: ``cosine`` or ``dot``.
        queries: ``(Q, dim)``.
    """

    def __init__(self, function: str, queries: Any) -> None:  # noqa: ANN401 - an array
        """Round the queries once."""
        self._cosine = function == "cosine"
        self._high, self._low, self._exponents = whole_numbers(queries)
        self._bits = _bits(self._high.shape[1])

    def scores(self, documents: Any) -> NDArray[np.float32]:  # noqa: ANN401 - an array
        """Return ``(Q, C)``; NaN or infinite where a vector is.

        Args:
            documents: ``(C, dim)``.
        """
        high, low, exponents = whole_numbers(documents)
        # Each product is exact; the additions after it are of single numbers, in this order.
        products = np.ldexp(self._high @ low.T + self._low @ high.T, -self._bits) + self._high @ high.T
        if self._cosine:
            # The powers of two cancel out. A vector without length scores 0.
            products /= np.maximum(self._norms(self._high, self._low), 1.0)[:, None]
            products /= np.maximum(self._norms(high, low), 1.0)
        else:
            products = np.ldexp(products, self._exponents[:, None] + exponents)
        return products.astype(np.float32)

    def _norms(self, high: Floats, low: Floats) -> Floats:
        mixed = np.ldexp(np.einsum("ij,ij->i", high, low), 1 - self._bits)
        norms: Floats = np.sqrt(mixed + np.einsum("ij,ij->i", high, high))
        return norms
