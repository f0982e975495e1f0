"""Labels and exclusions: how BRIGHT writes them, and the rules that all data obey, whatever the layout."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import DataError, first_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from datasets import Dataset

logger = logging.getLogger(__name__)

# What BRIGHT writes in place of an id where there is no document; it also leaves lists empty.
_NO_DOCUMENT = "N/A"
# From this share of labels that name nothing on, a score on the data is worse than none.
MANY_MISSING = 0.05

Labels = dict[str, dict[str, int]]
Exclusions = dict[str, list[str]]


@dataclass(frozen=True)
class Examples:
    """What BRIGHT's ``examples`` say of each query.

    Attributes:
        labels: The relevant documents, each labelled 1, by query id.
        excluded: The documents that do not count, by query id; queries without any are left out.
    """

    labels: Labels
    excluded: Exclusions


def bright_examples(
    rows: Dataset, gold_column: str = "gold_ids", excluded_column: str = "excluded_ids"
) -> Examples:
    """Read BRIGHT's examples.

    Args:
        rows: Data set with columns ``id``, the gold's and that of the exclusions.
        gold_column: ``gold_ids``, or ``gold_ids_long`` for whole pages.
        excluded_column: Column of the documents that do not count; empty for none.
    """
    ids, gold = (rows[name][:] for name in ("id", gold_column))
    excluded = rows[excluded_column][:] if excluded_column else [None] * len(ids)
    # JSON may hold numbers.
    ids = list(map(str, ids))
    labels = {query: dict.fromkeys(named_documents(names), 1) for query, names in zip(ids, gold, strict=True)}
    out = {query: named_documents(names) for query, names in zip(ids, excluded, strict=True)}
    return Examples(labels, {query: names for query, names in out.items() if names})


def named_documents(names: Iterable[str | int | None] | str | int | None) -> list[str]:
    """Return the documents that a list of BRIGHT names, each once; ``["N/A"]``, ``[]`` and None name none.

    Args:
        names: A cell of ``gold_ids`` or ``excluded_ids``; one document may stand there by itself.
    """
    listed = [names] if isinstance(names, (str, int)) else names or ()
    return [str(name) for name in dict.fromkeys(listed) if name not in (None, "", _NO_DOCUMENT)]


def apply_rules(
    labels: Labels, excluded: Exclusions, queries: Collection[str], documents: set[str], name: str
) -> tuple[Labels, Exclusions]:
    """Apply the rules for labels that do not fit; each is counted in a warning.

    Labels of unknown queries are left out. Relevant documents that are not in the corpus stay, as in the
    official scorers, where they belong to the ideal ranking. A negative label means not relevant. Exclusions
    of what is not there exclude nothing. What is both relevant and excluded counts as excluded.

    Args:
        labels: Labels by query and document id; not changed.
        excluded: Documents that do not count, by query id.
        queries: Ids of the queries.
        documents: Ids of the documents.
        name: What the data are called, for the messages.

    Returns:
        Labels and exclusions that follow the rules.

    Raises:
        DataError: If 5 % or more of the labels name no query, or of the relevant ones no document.
    """
    labels = _asked_labels(labels, set(queries), name)
    check_relevant_documents(labels, documents, name)
    labels = negative_as_not_relevant(labels, name)
    excluded = _known_exclusions(excluded, set(queries), documents, name)
    return without_excluded(labels, excluded, name), excluded


def last_of_each_id(corpus: Dataset, name: str) -> Dataset:
    """Keep the last row of each document id, as a dictionary would, in the order of first appearance.

    Args:
        corpus: Data set with a column ``id``.
        name: The task's name, for the warning.
    """
    ids = corpus["id"][:]
    last = {document: index for index, document in enumerate(ids)}
    if len(last) == len(ids):
        return corpus
    logger.warning(
        "%s: %d documents repeat the id of another; the last one counts", name, len(ids) - len(last)
    )
    return corpus.select(list(last.values()))


def _asked_labels(labels: Labels, queries: set[str], name: str) -> Labels:
    unknown = [query for query in labels if query not in queries]
    lost, every = sum(len(labels[query]) for query in unknown), sum(map(len, labels.values()))
    if unknown and lost >= MANY_MISSING * every:
        msg = (
            f"{name}: {lost} of {every} labels are for queries that are not among the queries "
            f"({first_names(unknown)}; queries are called {first_names(queries, 2)}); {MANY_MISSING:.0%} or "
            "more means that queries and labels do not belong together: give those that do"
        )
        raise DataError(msg)
    if unknown:
        logger.warning(
            "%s: %d labels of queries that are not among the queries are left out: %s",
            name,
            lost,
            first_names(unknown),
        )
    return {query: dict(found) for query, found in labels.items() if query in queries}


def check_relevant_documents(labels: Labels, documents: set[str], name: str) -> None:
    """Warn of relevant documents that are not in the corpus, and refuse data with many of them.

    Args:
        labels: Labels by query and document id.
        documents: Ids of the documents.
        name: What the data are called, for the messages.

    Raises:
        DataError: If 5 % or more of the relevant labels name no document.
    """
    relevant = [document for found in labels.values() for document, label in found.items() if label > 0]
    missing = [document for document in relevant if document not in documents]
    if not missing:
        return
    if len(missing) >= MANY_MISSING * len(relevant):
        msg = (
            f"{name}: {len(missing)} of {len(relevant)} relevant documents are not in the corpus "
            f"({first_names(dict.fromkeys(missing))}); {MANY_MISSING:.0%} or more means that corpus and "
            "labels do not belong together: give those that do, or download both again"
        )
        raise DataError(msg)
    # They stay in the labels: the official scorer keeps them in the ideal ranking.
    logger.warning(
        "%s: %d relevant documents are not in the corpus and cannot be found: %s",
        name,
        len(missing),
        first_names(dict.fromkeys(missing)),
    )


def negative_as_not_relevant(labels: Labels, name: str) -> Labels:
    """Return labels in which negative ones are 0, as trec_eval and BEIR take them.

    Args:
        labels: Labels by query and document id.
        name: What the data are called, for the warning.
    """
    negative = sum(label < 0 for found in labels.values() for label in found.values())
    if not negative:
        return labels
    logger.warning("%s: %d negative labels count as not relevant", name, negative)
    return {q: {d: max(label, 0) for d, label in found.items()} for q, found in labels.items()}


def _known_exclusions(excluded: Exclusions, queries: set[str], documents: set[str], name: str) -> Exclusions:
    """Drop excluded ids that are not in the corpus; they exclude nothing."""
    kept = {q: [d for d in names if d in documents] for q, names in excluded.items() if q in queries}
    unknown = sum(map(len, excluded.values())) - sum(map(len, kept.values()))
    if unknown:
        logger.warning("%s: %d excluded document ids are not in the corpus", name, unknown)
    return {query: names for query, names in kept.items() if names}


def without_excluded(labels: Labels, excluded: Exclusions, name: str) -> Labels:
    """Return labels without the excluded documents: what may not be found must not enter recall.

    Args:
        labels: Labels by query and document id.
        excluded: Documents that do not count, by query id.
        name: What the data are called, for the warning.
    """
    out = {query: set(names) for query, names in excluded.items()}
    kept = {q: {d: v for d, v in found.items() if d not in out.get(q, ())} for q, found in labels.items()}
    both = sum(map(len, labels.values())) - sum(map(len, kept.values()))
    if both:
        logger.warning("%s: %d documents are both relevant and excluded; they count as excluded", name, both)
    return kept


def own_ids(labels: Labels, queries: Iterable[str], documents: set[str], name: str) -> Exclusions:
    """Return BEIR's rule as exclusions: the document with a query's own id does not count for it.

    The rule is for data whose queries are documents themselves (ArguAna, Quora). Where queries and documents
    are numbered each on their own, some of them share a number by chance. One document that is relevant for
    the query of the same id shows that: the rule then holds for none.

    Args:
        labels: Labels by query and document id.
        queries: Ids of the queries.
        documents: Ids of the documents.
        name: What the data are called, for the warnings.
    """
    own = [query for query in queries if query in documents]
    relevant = [query for query in own if labels.get(query, {}).get(query, 0) > 0]
    if relevant:
        logger.warning(
            "%s: %d queries have the id of a document that is relevant for them (%s), so queries and "
            "documents are numbered apart: BEIR's rule that a query's own id does not count is off",
            name,
            len(relevant),
            first_names(relevant),
        )
        return {}
    if own:
        logger.warning(
            "%s: %d queries have the id of a document (%s); by BEIR's own id rule it does not count there. "
            "If they only share a number, write an excluded.tsv with nothing but its header",
            name,
            len(own),
            first_names(own),
        )
    return {query: [query] for query in own}


def warn_of_empty_queries(queries: Dataset, name: str) -> None:
    """Warn of queries without a text.

    Args:
        queries: Data set with columns ``id`` and ``text``.
        name: What the data are called.
    """
    empty = [q for q, text in zip(queries["id"][:], queries["text"][:], strict=True) if not text.strip()]
    if empty:
        logger.warning("%s: %d queries are empty: %s", name, len(empty), first_names(empty))
