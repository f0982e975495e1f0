"""A task's data, checked: corpus, queries, labels and exclusions in MTEB's own shape."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval.sources import read_split, splits_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datasets import Dataset

    from reasonembed_mteb.retrieval.rows import TaskRow

logger = logging.getLogger(__name__)

# Both spellings of "no document" occur in BRIGHT.
_NONE: tuple[list[str], ...] = (["N/A"], [])
# A score on broken data is worse than none.
MAX_MISSING_GOLD = 0.05
_NAMED = 5

Labels = dict[str, dict[str, int]]
Exclusions = dict[str, list[str]]


def load_split(row: TaskRow) -> dict[str, Any]:
    """Load and check one task's data.

    Args:
        row: The task.

    Returns:
        MTEB's ``RetrievalSplitData`` (``corpus`` and ``queries`` with columns ``id`` and ``text``,
        ``relevant_docs``, ``top_ranked=None``) with one key more: ``excluded_ids``, the documents that
        do not count, by query; queries without any are left out.

    Raises:
        DataError: If data is missing or damaged, or too much of the gold is not in the corpus.
    """
    corpus, queries, labels, excluded = _load_r2med(row) if row.layout == "r2med" else _load_bright(row)
    corpus = last_of_each_id(corpus, row.name)
    # `[:]` reads a column at once; iterating over it reads row by row.
    known = set(corpus["id"][:])
    _check_gold(labels, known, row.name)
    excluded = _known_exclusions(excluded, known, row.name)
    _drop_excluded_gold(labels, excluded, row.name)
    _warn_empty_queries(queries, row.name)
    return {
        "corpus": corpus,
        "queries": queries,
        "relevant_docs": labels,
        "top_ranked": None,
        "excluded_ids": excluded,
    }


def _load_bright(row: TaskRow) -> tuple[Dataset, Dataset, Labels, Exclusions]:
    documents, examples = splits_of(row)
    corpus = read_split(row, *documents, columns=("id", row.document_column))
    excluded_columns = (row.excluded_column,) if row.excluded_column else ()
    columns = ("id", row.query_column, row.gold_column, *excluded_columns)
    rows = read_split(row, *examples, columns=columns)
    ids = rows["id"][:]
    labels = {
        query: dict.fromkeys([] if gold in _NONE else gold, 1)
        for query, gold in zip(ids, rows[row.gold_column][:], strict=True)
    }
    excluded = {
        query: list(dict.fromkeys(names))
        for column in excluded_columns
        for query, names in zip(ids, rows[column][:], strict=True)
        if names not in _NONE
    }
    return _texts(corpus, row.document_column), _texts(rows, row.query_column), labels, excluded


def _texts(data: Dataset, column: str) -> Dataset:
    """Return ids and texts by MTEB's names."""
    kept: Dataset = data.select_columns(["id", column])
    return kept if column == "text" else kept.rename_column(column, "text")


def _load_r2med(row: TaskRow) -> tuple[Dataset, Dataset, Labels, Exclusions]:
    corpus_split, query_split, label_split = splits_of(row)
    corpus = _texts(read_split(row, *corpus_split, columns=("id", row.document_column)), row.document_column)
    queries = _texts(read_split(row, *query_split, columns=("id", row.query_column)), row.query_column)
    pairs = read_split(row, *label_split, columns=("q_id", "p_id", "score"))
    labels: Labels = {query: {} for query in queries["id"][:]}
    for query, document, score in zip(*(pairs[name][:] for name in ("q_id", "p_id", "score")), strict=True):
        labels.setdefault(query, {})[document] = int(score)
    return corpus, queries, labels, {}


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


def _check_gold(labels: Labels, known: set[str], name: str) -> None:
    wanted = {document for gold in labels.values() for document in gold}
    missing = sorted(wanted - known)
    if not missing:
        return
    if len(missing) > MAX_MISSING_GOLD * len(wanted):
        msg = (
            f"{name}: {len(missing)} of {len(wanted)} relevant documents are not in the corpus "
            f"({_some(missing)}); more than {MAX_MISSING_GOLD:.0%} means that corpus and labels do not "
            "belong together: download both again"
        )
        raise DataError(msg)
    # They stay in the labels: the official scorer keeps them in the ideal ranking.
    logger.warning(
        "%s: %d relevant documents are not in the corpus and cannot be found: %s",
        name,
        len(missing),
        _some(missing),
    )


def _known_exclusions(excluded: Exclusions, known: set[str], name: str) -> Exclusions:
    """Drop excluded ids that are not in the corpus; they exclude nothing."""
    kept = {query: [d for d in documents if d in known] for query, documents in excluded.items()}
    unknown = sum(map(len, excluded.values())) - sum(map(len, kept.values()))
    if unknown:
        logger.warning("%s: %d excluded document ids are not in the corpus", name, unknown)
    return {query: documents for query, documents in kept.items() if documents}


def _drop_excluded_gold(labels: Labels, excluded: Exclusions, name: str) -> None:
    """Take excluded documents out of the labels: what may not be found must not enter recall."""
    both = [(q, d) for q, documents in excluded.items() for d in documents if d in labels.get(q, {})]
    for query, document in both:
        del labels[query][document]
    if both:
        logger.warning(
            "%s: %d documents are both relevant and excluded; they count as excluded", name, len(both)
        )


def _warn_empty_queries(queries: Dataset, name: str) -> None:
    empty = [q for q, text in zip(queries["id"][:], queries["text"][:], strict=True) if not text.strip()]
    if empty:
        logger.warning("%s: %d queries are empty: %s", name, len(empty), _some(empty))


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
