"""Texts that are nearly the same: MinHash (datasketch) for near-duplicates, word runs for leaks."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import xxhash

from reasonembed_mteb.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_WORD = re.compile(r"\w+")
# Words a shingle. Where "words" are this long the script has no spaces, and characters are taken.
_SHINGLE, _LONG_WORD = 3, 15
_PERMUTATIONS = 128


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without signs and spaces; characters where none has spaces.

    Args:
        text: Any text.
    """
    found = _WORD.findall(text.lower())
    joined = sum(map(len, found))
    return list("".join(found)) if found and joined / len(found) > _LONG_WORD else found


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def plain_hash(text: str) -> int:
    """Return a hash that ignores case, signs and spaces.

    Args:
        text: Any text.
    """
    return _hash(" ".join(words(text)))


def _runs(found: list[str], length: int) -> Iterator[str]:
    """Give every run of so many words, or the whole where it is shorter."""
    for start in range(max(1, len(found) - length + 1)):
        yield " ".join(found[start : start + length])


@cache
def _empty() -> Any:  # noqa: ANN401 - datasketch.MinHash
    try:
        from datasketch import MinHash  # type: ignore[import-untyped]
    except ImportError:
        raise missing_extra("datasketch", "synthesis") from None
    # The seed belongs to the result: another one decides borderline pairs otherwise.
    return MinHash(_PERMUTATIONS, seed=1, hashfunc=xxhash.xxh32_intdigest)


def _sketch(text: str) -> Any:  # noqa: ANN401 - datasketch.MinHash
    sketch = _empty().copy()
    sketch.update_batch({run.encode() for run in _runs(words(text), _SHINGLE)})
    return sketch


class NearDuplicates:
    """A growing set of texts in which no two are nearly the same.

    Args:
        threshold: Estimated Jaccard similarity of three-word shingles from which two texts are the same;
            1 finds only texts with the same shingles.
    """

    def __init__(self, threshold: float) -> None:
        """Start with nothing."""
        _empty()
        from datasketch import MinHashLSH

        self.threshold = threshold
        self._sketches: dict[str, Any] = {}
        # Candidates are looked for below the threshold and then compared: no pair above it is missed.
        self._index = MinHashLSH(max(0.1, threshold - 0.15), _PERMUTATIONS)

    def find(self, text: str) -> str | None:
        """Return the key of a text that is nearly this one, or None."""
        return self._find(_sketch(text))

    def _find(self, sketch: Any) -> str | None:  # noqa: ANN401 - datasketch.MinHash
        near = (key for key in sorted(self._index.query(sketch)) if self._similar(sketch, key))
        return next(near, None)

    def _similar(self, sketch: Any, key: str) -> bool:  # noqa: ANN401
        return float(sketch.jaccard(self._sketches[key])) >= self.threshold

    def add(self, key: str, text: str) -> str | None:
        """Add a text, unless one that is nearly the same is there.

        Args:
            key: Its name, used once.
            text: What it is compared by.

        Returns:
            The key of the other one, or None if the text was added.
        """
        sketch = _sketch(text)
        other = self._find(sketch)
        if other is None:
            self._sketches[key] = sketch
            self._index.insert(key, sketch)
        return other


class Leaks:
    """Benchmark queries that no generated query may nearly equal.

    Args:
        queries: The benchmark's.
        similarity: MinHash similarity from which two are the same.
        run: So many words in a row that stand in both make a leak, too.
    """

    def __init__(self, queries: Iterable[str], similarity: float, run: int) -> None:
        """Look the queries through once."""
        self._run = run
        self._near = NearDuplicates(similarity)
        self._runs: set[int] = set()
        for number, query in enumerate(queries):
            if found := words(query):
                self._near.add(str(number), query)
                # A shorter query has one run, itself, which only an equal query meets.
                self._runs.update(map(_hash, _runs(found, run)))

    def has(self, text: str) -> bool:
        """Say whether a text nearly equals a benchmark query.

        Args:
            text: A generated query.
        """
        own = map(_hash, _runs(words(text), self._run))
        return any(one in self._runs for one in own) or self._near.find(text) is not None
