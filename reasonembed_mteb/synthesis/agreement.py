"""How far two annotators agree: Cohen's kappa, weighted, and what it means for positives and negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import read_json_lines
from reasonembed_mteb.synthesis.annotate import UNJUDGED, labelled, second_labelled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from reasonembed_mteb.synthesis.config import SubsetSection
    from reasonembed_mteb.synthesis.shards import Row
    from reasonembed_mteb.synthesis.step import Run

LABELS = (1, 2, 3, 4, 5)
Pair = tuple[str, str]


@dataclass(frozen=True)
class Agreement:
    """What two annotators' labels of the same pairs have in common.

    Attributes:
        pairs: Pairs that both judged.
        unjudged: Pairs that one of them did not judge.
        linear: Kappa with weights that grow with the difference; NaN where it has no meaning.
        quadratic: Kappa with weights that grow with its square; likewise.
        exact: Share of equal labels.
        within_one: Share of labels at most one apart.
        same_side: Share of pairs that both call positive, or both do not.
        table: ``(5, 5)`` counts, the first annotator down, the second across.
    """

    pairs: int
    unjudged: int
    linear: float
    quadratic: float
    exact: float
    within_one: float
    same_side: float
    table: tuple[tuple[int, ...], ...]


def compare_labels(first: Sequence[int], second: Sequence[int], positive_from: int = 3) -> Agreement:
    """Compare two annotators.

    Args:
        first: One label a pair, 1 to 5, or -1 for none.
        second: The other's, in the same order.
        positive_from: Lowest label of a positive.

    Returns:
        The agreement over the pairs that both judged.

    Raises:
        DataError: If the two differ in length, or no pair is judged by both.
    """
    if len(first) != len(second):
        msg = f"{len(first)} labels against {len(second)}: give one a pair, in the same order"
        raise DataError(msg)
    pairs = np.array([first, second], dtype=np.int64).reshape(2, -1)
    one, two = pairs[:, (pairs != UNJUDGED).all(axis=0)]
    if not len(one):
        msg = f"none of {len(first)} pairs was judged by both annotators; give labels of the same pairs"
        raise DataError(msg)
    table = np.zeros((5, 5), dtype=np.int64)
    np.add.at(table, (one - 1, two - 1), 1)
    side = (one >= positive_from) == (two >= positive_from)
    return Agreement(
        pairs=len(one),
        unjudged=len(first) - len(one),
        linear=_kappa(one, two, "linear"),
        quadratic=_kappa(one, two, "quadratic"),
        exact=float((one == two).mean()),
        within_one=float((abs(one - two) <= 1).mean()),
        same_side=float(side.mean()),
        table=tuple(map(tuple, table.tolist())),
    )


def _kappa(one: Any, two: Any, weights: str) -> float:  # noqa: ANN401 - arrays
    from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]

    if (one == one[0]).all() and (two == one[0]).all():
        # Both always give one label: chance explains everything, and 0 / 0 is left.
        return float("nan")
    return float(cohen_kappa_score(one, two, labels=list(LABELS), weights=weights))


def read_gold_labels(file: Path) -> dict[Pair, int]:
    """Read a gold file.

    Args:
        file: JSON Lines with query_id, document_id and label (1 to 5).

    Raises:
        DataError: If a line is wrong; the message names it.
    """
    found: dict[Pair, int] = {}
    for number, row in read_json_lines(file):
        try:
            pair, label = (str(row["query_id"]), str(row["document_id"])), row["label"]
        except (KeyError, TypeError) as error:
            msg = f"{file}:{number}: a line needs query_id, document_id and label ({error!r})"
            raise DataError(msg) from error
        if isinstance(label, bool) or label not in LABELS:
            msg = f"{file}:{number}: label {label!r} is not one of 1 to 5; correct that line"
            raise DataError(msg)
        if found.setdefault(pair, label) != label:
            msg = f"{file}:{number}: query {pair[0]} and document {pair[1]} have two labels; keep one"
            raise DataError(msg)
    return found


def _by_pair(rows: Iterable[Row]) -> dict[Pair, int]:
    return {
        (row["id"], document): label
        for row in rows
        for document, label in zip(row["documents"], row["labels"], strict=True)
    }


def _compare(ours: Mapping[Pair, int], other: Mapping[Pair, int], positive_from: int) -> Agreement | None:
    shared = sorted(ours.keys() & other.keys())
    if not any(ours[pair] != UNJUDGED and other[pair] != UNJUDGED for pair in shared):
        return None
    return compare_labels([ours[pair] for pair in shared], [other[pair] for pair in shared], positive_from)


def agreements(run: Run, subset: SubsetSection) -> dict[str, Agreement]:
    """Compare a subset's labels with those of the second annotator and of the gold file, where given.

    Args:
        run: The run; annotated.
        subset: One whose labels are there.

    Returns:
        Agreement by ``second annotator`` and ``gold file``; one without a common pair is left out.
    """
    section, found = run.config.annotate, {}
    others: dict[str, Mapping[Pair, int]] = {}
    second = second_labelled(run, subset)
    if second is not None and second.note is not None:
        others["second annotator"] = _by_pair(second.rows())
    if section.gold is not None:
        others["gold file"] = read_gold_labels(run.config.path(section.gold))
    for name, labels in others.items():
        queries = {query for query, _ in labels}
        ours = _by_pair(row for row in labelled(run, subset).rows() if row["id"] in queries)
        if (agreement := _compare(ours, labels, run.config.format.positive_from)) is not None:
            found[name] = agreement
    return found
