"""What every reranker is, and how pairs are scored by it: in parts that are kept, NaN refused."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from reasonembed_mteb.errors import DataError, first_names
from reasonembed_mteb.files import fingerprint, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Scores = NDArray[np.floating[Any]]

# Pairs scored together. A model batches them by length, and its last digits hang on the batches: parts that
# are the same every time give the same scores every time.
PART = 1024
_NAMED = 3

Pair = tuple[str, str]


class Reranker(Protocol):
    """Scores how well documents serve queries, each pair by itself; a higher score is a better document.

    Implementations: `CrossEncoderReranker` (a model in this process), `EndpointReranker` (a server's rerank
    API), `GradingReranker` (a language model that grades from 1 to 5), `GradeReranker` (from 0 to 5, expected
    by log-probabilities), `LoadedReranker` (a cross-encoder that MTEB loads).
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides a pair's score, as JSON can hold it."""

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Return a score for each pair, ``(N,)``.

        Args:
            pairs: Query and document.

        Returns:
            Finite numbers; NaN where there is no score for that pair alone, as where a server refuses it.
        """


class PairSource(Protocol):
    """Pairs that need not be in memory; a list is one."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, part: slice, /) -> Sequence[Pair]:
        """Return some of them."""


def score_pairs(
    reranker: Reranker,
    pairs: PairSource,
    *,
    folder: Path | None = None,
    keep_unscored: bool = False,
    show_progress: bool = False,
) -> Scores:
    """Score pairs part by part.

    Args:
        reranker: What scores them.
        pairs: Query and document.
        folder: Where finished parts are kept, by what decides them; a killed run goes on from there.
        keep_unscored: Leave NaN where a pair got no score, instead of stopping.
        show_progress: Whether a bar is shown.

    Returns:
        Scores, ``(N,)``.

    Raises:
        DataError: If a score is infinite, a pair got none, or there are more or fewer scores than pairs.
    """
    from tqdm.auto import tqdm

    starts = range(0, len(pairs), PART)
    bar = tqdm(total=len(pairs), desc="Reranking", unit="pair", disable=not show_progress)
    found: list[Scores] = []
    with bar:
        for start in starts:
            part = pairs[start : start + PART]
            found.append(_part(reranker, part, folder))
            bar.update(len(part))
            _check(reranker, part, found[-1], keep_unscored)
    return np.concatenate(found) if found else np.empty(0, dtype=np.float32)


def _part(reranker: Reranker, pairs: Sequence[Pair], folder: Path | None) -> Scores:
    """Score one part, or read what was kept of it."""
    if folder is None:
        return reranker.score(pairs)
    file = folder / f"{fingerprint(reranker.identity, list(pairs))}.npy"
    kept = _read(file, len(pairs))
    if kept is not None:
        return kept
    scores = np.asarray(reranker.score(pairs))
    # What failed this time may not fail the next.
    if scores.shape == (len(pairs),) and np.isfinite(scores).all():
        content = io.BytesIO()
        np.save(content, scores, allow_pickle=False)
        write_whole(file, content.getvalue())
    return scores


def _read(file: Path, count: int) -> Scores | None:
    """Return the scores in a file, None where it is missing or damaged."""
    try:
        kept: Scores = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept if kept.shape == (count,) and kept.dtype.kind == "f" else None


def _check(reranker: Reranker, pairs: Sequence[Pair], scores: Scores, keep_unscored: bool) -> None:
    name = reranker.identity.get("name", type(reranker).__name__)
    if scores.shape != (len(pairs),):
        msg = f"{name} gives scores of shape {scores.shape} for {len(pairs)} pairs; one a pair is needed"
        raise DataError(msg)
    wrong = np.isinf(scores) if keep_unscored else ~np.isfinite(scores)
    if wrong.any():
        places = np.flatnonzero(wrong).tolist()
        shown = first_names((repr(pairs[place][0][:40]) for place in places), _NAMED)
        msg = (
            f"{name} gives no finite score for {len(places)} of {len(pairs)} pairs (queries {shown}); try "
            "another dtype or a shorter length, or look at what the server answers"
        )
        raise DataError(msg)
