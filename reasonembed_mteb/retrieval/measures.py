"""Measures beyond MTEB's: alpha-nDCG and coverage over nuggets or weighted aspects, pairwise preference.

A nugget (FreshStack) or aspect (BRIGHT-Pro) is a part of what a query asks for, and the documents that
support it. Documents better and worse than each other (CoQuIR) are compared by rank.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

# What `query_measures` computes, as a table spells it.
MEASURE = re.compile(r"(alpha_ndcg|coverage|recall|mrr)_at_([1-9]\d*)|ppa|mrs")
EXAMPLES = ("alpha_ndcg_at_10", "coverage_at_20", "recall_at_50", "mrr_at_10", "ppa", "mrs")
# Clarke et al. (SIGIR 2008), and the default of trec_eval's ndeval.
ALPHA = 0.5
# How deep CoQuIR looks for the documents that it compares.
PREFERENCE_DEPTH = 200


@dataclass(frozen=True)
class Judged:
    """What is known of one query beyond its labels.

    Attributes:
        nuggets: The documents that support each nugget, by nugget id; a nugget may have none.
        weights: Weight of each nugget; empty for 1 each.
        whole: What the weights of all that a query asks for add up to; None for those of ``nuggets``.
        worse: Documents that must rank below the relevant ones.
    """

    nuggets: Mapping[str, Collection[str]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    whole: float | None = None
    worse: Collection[str] = ()


def alpha_ndcg(
    ranked: Sequence[str],
    nuggets: Mapping[str, Collection[str]],
    cut: int,
    *,
    weights: Mapping[str, float] | None = None,
    alpha: float = ALPHA,
) -> float:
    """Return alpha-nDCG@cut of one ranking.

    A document at rank r gains, for each nugget that it supports, the nugget's weight times
    ``(1 - alpha) ** n``, n being how many documents above it support that nugget, over ``log2(r + 1)``. The
    ideal ranking takes at each rank the document that gains most, as ndeval does (finding the best ranking
    is NP-hard); of several, the one whose id is greatest.

    Args:
        ranked: Document ids, best first.
        nuggets: The documents that support each nugget, by nugget id.
        cut: How many documents count.
        weights: Weight of each nugget; None for 1 each.
        alpha: How much a nugget loses each time it is found again, in ``[0, 1]``.

    Returns:
        A value in ``[0, 1]``; more than 1 where a ranking beats the greedy ideal; 0 where no document
        supports any nugget.
    """
    supports = _supports(nuggets)
    weighed = {nugget: 1.0 if weights is None else weights[nugget] for nugget in nuggets}
    ideal = _gain(_ideal(supports, weighed, cut, alpha), supports, weighed, alpha)
    return _gain(ranked[:cut], supports, weighed, alpha) / ideal if ideal else 0.0


def _supports(nuggets: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Return the nuggets that each document supports."""
    found: dict[str, list[str]] = {}
    for nugget, documents in nuggets.items():
        for document in dict.fromkeys(documents):
            found.setdefault(document, []).append(nugget)
    return found


def _ideal(
    supports: Mapping[str, Sequence[str]], weights: Mapping[str, float], cut: int, alpha: float
) -> list[str]:
    worth = dict(weights)
    left = set(supports)
    chosen: list[str] = []
    while left and len(chosen) < cut:
        best = max(left, key=lambda document: (math.fsum(worth[n] for n in supports[document]), document))
        left.remove(best)
        chosen.append(best)
        for nugget in supports[best]:
            worth[nugget] *= 1 - alpha
    return chosen


def _gain(
    ranked: Sequence[str], supports: Mapping[str, Sequence[str]], weights: Mapping[str, float], alpha: float
) -> float:
    worth = dict(weights)
    gains = []
    for rank, document in enumerate(ranked, 1):
        found = supports.get(document, ())
        gains.append(math.fsum(worth[nugget] for nugget in found) / math.log2(rank + 1))
        for nugget in found:
            worth[nugget] *= 1 - alpha
    return math.fsum(gains)


def coverage(
    ranked: Sequence[str],
    nuggets: Mapping[str, Collection[str]],
    cut: int,
    *,
    weights: Mapping[str, float] | None = None,
    whole: float | None = None,
) -> float:
    """Return the share of nuggets, by weight, that the first documents support; BRIGHT-Pro's A-Recall.

    Args:
        ranked: Document ids, best first.
        nuggets: The documents that support each nugget, by nugget id.
        cut: How many documents count.
        weights: Weight of each nugget; None for 1 each.
        whole: The sum of weights that counts as all; None for that of the nuggets.

    Returns:
        A value in ``[0, 1]``; 0 where there is no nugget.
    """
    top = set(ranked[:cut])
    weighed = {nugget: 1.0 if weights is None else weights[nugget] for nugget in nuggets}
    total = math.fsum(weighed.values()) if whole is None else whole
    found = math.fsum(weighed[nugget] for nugget, documents in nuggets.items() if top.intersection(documents))
    return found / total if total else 0.0


def preference_accuracy(ranked: Sequence[str], better: Collection[str], worse: Collection[str]) -> float:
    """Return CoQuIR's PPA: the share of pairs in which the better document ranks above the worse one.

    Documents that are not ranked share the place after the last, so that a pair of them counts as lost.

    Args:
        ranked: Document ids, best first.
        better: At least one.
        worse: At least one.
    """
    ranks = _ranks(ranked)
    pairs = [(ranks.get(a, len(ranked)), ranks.get(b, len(ranked))) for a in better for b in worse]
    return sum(first < second for first, second in pairs) / len(pairs)


def margin_score(ranked: Sequence[str], better: Collection[str], worse: Collection[str]) -> float:
    """Return CoQuIR's MRS: the mean difference of reciprocal ranks over all pairs, in ``[-1, 1]``.

    Args:
        ranked: Document ids, best first.
        better: At least one.
        worse: At least one.
    """
    ranks = _ranks(ranked)
    first = [1 / (1 + ranks.get(document, len(ranked))) for document in better]
    second = [1 / (1 + ranks.get(document, len(ranked))) for document in worse]
    return math.fsum(first) / len(first) - math.fsum(second) / len(second)


def _ranks(ranked: Sequence[str]) -> dict[str, int]:
    return {document: place for place, document in enumerate(ranked)}


def query_measures(
    names: Sequence[str], ranked: Sequence[str], labels: Mapping[str, int], judged: Judged
) -> dict[str, float]:
    """Return a query's measures by name; those that it has no judgements for are left out.

    Args:
        names: Such as those of `EXAMPLES`.
        ranked: Document ids, best first.
        labels: The query's labels by document id; relevant from 1 on.
        judged: What else is known of the query.
    """
    relevant = [document for document, label in labels.items() if label > 0]
    found: dict[str, float] = {}
    for name in names:
        measure, _, cut = name.rpartition("_at_")
        weights = judged.weights or None
        if measure == "alpha_ndcg" and judged.nuggets:
            found[name] = alpha_ndcg(ranked, judged.nuggets, int(cut), weights=weights)
        elif measure == "coverage" and judged.nuggets:
            found[name] = coverage(ranked, judged.nuggets, int(cut), weights=weights, whole=judged.whole)
        elif measure == "recall" and relevant:
            found[name] = len(set(ranked[: int(cut)]).intersection(relevant)) / len(relevant)
        elif measure == "mrr" and relevant:
            ranks = _ranks(ranked[: int(cut)])
            found[name] = max((1 / (1 + ranks[one]) for one in relevant if one in ranks), default=0.0)
        elif name in ("ppa", "mrs") and relevant and judged.worse:
            compare = preference_accuracy if name == "ppa" else margin_score
            found[name] = compare(ranked[:PREFERENCE_DEPTH], relevant, judged.worse)
    return found
