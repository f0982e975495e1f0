"""Scoring pairs by any reranker: parts, what is kept of them, and scores that are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval import reranker
from reasonembed_mteb.retrieval.reranker import score_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reasonembed_mteb.retrieval.reranker import Pair

PAIRS = [("q", "d" * length) for length in range(7)]


class Lengths:
    """Scores a pair by the length of its document."""

    def __init__(self, **other: float) -> None:
        self.asked: list[int] = []
        self.other = other

    @property
    def identity(self) -> dict[str, Any]:
        """Name it."""
        return {"name": "test/lengths", "other": {name: str(value) for name, value in self.other.items()}}

    def score(self, pairs: Sequence[Pair]) -> Any:
        """Measure the documents."""
        self.asked.append(len(pairs))
        return np.array([self.other.get(document, len(document)) for _, document in pairs], dtype=np.float32)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranker, "PART", 3)


def test_parts_are_joined_in_order() -> None:
    lengths = Lengths()
    assert score_pairs(lengths, PAIRS).tolist() == list(range(7))
    assert lengths.asked == [3, 3, 1]
    assert score_pairs(lengths, []).shape == (0,)


def test_a_killed_run_goes_on_with_the_next_part(tmp_path: Path) -> None:
    first = Lengths()
    score_pairs(first, PAIRS[:5], folder=tmp_path)
    second = Lengths()
    # The first part is the same; the second has another pair in it.
    assert score_pairs(second, PAIRS, folder=tmp_path).tolist() == list(range(7))
    assert second.asked == [3, 1]
    # Another reranker finds nothing, a damaged file is no file, and nothing else is left in the folder.
    other = Lengths(dd=0.5)
    assert score_pairs(other, PAIRS[:3], folder=tmp_path).tolist() == [0, 1, 0.5]
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    again = Lengths()
    assert score_pairs(again, PAIRS, folder=tmp_path).tolist() == list(range(7))
    assert again.asked == [3, 3, 1]
    assert {file.suffix for file in tmp_path.iterdir()} == {".npy"}


def test_nan_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    broken = Lengths(dddd=float("nan"))
    with pytest.raises(
        DataError, match=r"test/lengths gives no finite score for 1 of 3 pairs \(queries 'q'\)"
    ):
        score_pairs(broken, PAIRS)
    scores = score_pairs(broken, PAIRS, folder=tmp_path, keep_unscored=True)
    assert np.isnan(scores).tolist() == [False] * 4 + [True] + [False] * 2
    # A part with a pair that failed is asked for again.
    again = Lengths(dddd=float("nan"))
    score_pairs(again, PAIRS, folder=tmp_path, keep_unscored=True)
    assert again.asked == [3]
    with pytest.raises(DataError, match="no finite score"):
        score_pairs(Lengths(d=float("inf")), PAIRS, keep_unscored=True)


def test_one_score_a_pair() -> None:
    class Two(Lengths):
        def score(self, pairs: Sequence[Pair]) -> Any:
            return np.zeros((len(pairs), 2), dtype=np.float32)

    with pytest.raises(DataError, match=r"shape \(3, 2\) for 3 pairs"):
        score_pairs(Two(), PAIRS)
