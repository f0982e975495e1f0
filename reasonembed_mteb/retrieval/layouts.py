"""Readers of the layouts that task tables name: from a row to texts, labels, exclusions and judgements.

Every reader gives the same parts (`TaskData`), and one set of rules is applied to all of them
(`reasonembed_mteb.retrieval.labels`).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, first_names, unknown_name
from reasonembed_mteb.retrieval.labels import (
    apply_rules,
    bright_examples,
    last_of_each_id,
    named_documents,
    warn_of_empty_queries,
)
from reasonembed_mteb.retrieval.measures import Judged
from reasonembed_mteb.retrieval.sources import Source, place_of, read_split, splits_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from datasets import Dataset

    from reasonembed_mteb.retrieval.labels import Exclusions, Labels
    from reasonembed_mteb.retrieval.rows import TaskRow

logger = logging.getLogger(__name__)

_RELOAD = "download the data again"
# AbsTaskRetrieval's own name for the only subset of a task.
ONE_POOL = "default"


@dataclass(frozen=True)
class TaskLabels:
    """What is known of a task's queries.

    Attributes:
        labels: Labels by query and document id; a query may have none.
        excluded: The documents that do not count, by query id; queries without any are left out.
        judged: Further judgements by query id; empty for most layouts.
    """

    labels: Labels
    excluded: Exclusions = field(default_factory=dict)
    judged: dict[str, Judged] = field(default_factory=dict)


def load_data(row: TaskRow) -> dict[str, dict[str, Any]]:
    """Load and check a task's data.

    Args:
        row: The task.

    Returns:
        By pool (``default`` where there is one): MTEB's ``RetrievalSplitData`` (``corpus`` with columns
        ``id``, ``text`` and perhaps ``title``, ``queries`` with ``id`` and ``text``, ``relevant_docs``,
        ``top_ranked=None``) with two keys more: ``excluded_ids``, the documents that do not count, by query,
        and ``judged``, what the row's measures need, by query.

    Raises:
        DataError: If data is missing or damaged, or too much of the gold is not in the corpus.
    """
    corpus, queries, found = load_corpus(row), load_queries(row), load_labels(row)
    if not row.pools:
        loaded = {ONE_POOL: _checked(row, row.name, corpus, queries, found)}
    else:
        parts = _in_pools(row, corpus, queries, found)
        loaded = {pool: _checked(row, f"{row.name}, {pool}", *part) for pool, part in parts}
    _warn_of_other_counts(row, loaded)
    return loaded


def load_split(row: TaskRow) -> dict[str, Any]:
    """Load and check the data of a task with one pool; see `load_data`.

    Args:
        row: The task.

    Raises:
        DataError: If data is missing or damaged, too much of the gold is not in the corpus, or the task has
            several pools.
    """
    loaded = load_data(row)
    if list(loaded) != [ONE_POOL]:
        msg = f"{row.name} has the pools {', '.join(loaded)}: read them one by one"
        raise DataError(msg)
    return loaded[ONE_POOL]


def _checked(row: TaskRow, name: str, corpus: Dataset, queries: Dataset, found: TaskLabels) -> dict[str, Any]:
    corpus = last_of_each_id(corpus, name)
    # `[:]` reads a column at once; iterating over it reads row by row.
    known = set(corpus["id"][:])
    labels, excluded = apply_rules(found.labels, found.excluded, queries["id"][:], known, name)
    if not any(label > 0 for gold in labels.values() for label in gold.values()):
        msg = f"{name}: no query has a relevant document here, so that nothing can be scored; {_RELOAD}"
        raise DataError(msg)
    warn_of_empty_queries(queries, name)
    return {
        "corpus": corpus,
        "queries": queries,
        "relevant_docs": labels,
        "top_ranked": None,
        "excluded_ids": excluded,
        "judged": found.judged,
    }


def _warn_of_other_counts(row: TaskRow, loaded: Mapping[str, Mapping[str, Any]]) -> None:
    """Say where the data have other sizes than the table: another version, or half a download."""
    asked = {query for part in loaded.values() for query, gold in part["relevant_docs"].items() if gold}
    counts = {"documents": sum(len(part["corpus"]) for part in loaded.values()), "queries": len(asked)}
    for what, expected in (("queries", row.queries), ("documents", row.documents)):
        if expected and counts[what] != expected:
            logger.warning(
                "%s: the data have %s %s, and %s has %s: is it another version of the data set?",
                *(row.name, f"{counts[what]:,}", what, row.table, f"{expected:,}"),
            )


def load_corpus(row: TaskRow) -> Dataset:
    """Return the ids and texts of a task's documents, and their titles where there are some.

    Args:
        row: The task.

    Raises:
        DataError: If data is missing or damaged.
    """
    # Titles stay a column: MTEB puts them before the text, and so does our search.
    return _texts(row, splits_of(row)["corpus"], row.document_column, title=row.title_column)


def load_queries(row: TaskRow) -> Dataset:
    """Return the ids and texts of a task's queries.

    Args:
        row: The task.

    Raises:
        DataError: If data is missing or damaged.
    """
    part = splits_of(row)["queries"]
    if row.layout == "bar_exam":
        return _numbered_questions(row, part)
    queries = _texts(row, part, row.query_column, id_column=_QUERY_IDS.get(row.layout, ""))
    if not row.query_title_column:
        return queries
    titles = read_split(row, part, columns=(row.query_title_column,))[row.query_title_column][:]
    return _dataset(queries["id"][:], _joined(titles, queries["text"][:]))


def check_rewriting(name: str) -> None:
    """Refuse a name that is none of BRIGHT's rewritings of its queries.

    Args:
        name: Such as ``gpt4_reason``.

    Raises:
        UnknownNameError: If there is no such rewriting; the nearest is named.
    """
    from reasonembed_mteb.retrieval.rows import load_rows

    known = dict.fromkeys(row.rewritten for row in load_rows() if row.is_rewritten)
    if name not in known:
        raise unknown_name("rewriting", name, known)


def rewritten_row(task: str, name: str) -> TaskRow:
    """Return the row whose queries are a task's, rewritten.

    Args:
        task: MTEB task name; empty outside one.
        name: Of the rewriting, such as ``gpt4_reason``.

    Raises:
        UnknownNameError: If there is no such rewriting; the nearest is named.
        DataError: If the task has none.
    """
    from reasonembed_mteb.retrieval.rows import load_rows, row_of_task

    check_rewriting(name)
    own = row_of_task(task)
    for row in load_rows():
        if own is not None and (row.kind, row.subset, row.rewritten) == (own.kind, own.subset, name):
            return row
    asked = task or "a query outside a task"
    msg = f"{asked} has no queries rewritten by {name}: give a task of BRIGHT, of its short documents"
    raise DataError(msg)


def rewritten_queries(task: str, name: str) -> dict[str, str]:
    """Return a task's queries as they were rewritten, by their ids.

    Args:
        task: See `rewritten_row`.
        name: Likewise.

    Raises:
        UnknownNameError: If there is no such rewriting.
        DataError: If the task has none, or the data is missing or damaged.
    """
    queries = load_queries(rewritten_row(task, name))
    return dict(zip(queries["id"][:], queries["text"][:], strict=True))


# Where queries' ids stand in another column than documents'.
_QUERY_IDS = {"freshstack": "query_id", "coquir": "id"}


def _texts(row: TaskRow, source: Source, column: str, *, id_column: str = "", title: str = "") -> Dataset:
    """Return ids and texts by MTEB's names."""
    from datasets import Value

    ids = id_column or row.id_column
    # MIRB and BEIR leave titles out where there are none.
    data: Any = read_split(row, source, columns=(ids, column), optional=(title,) if title else ())
    for name, ours in ((ids, "id"), (column, "text"), (title, "title")):
        if name in data.column_names and name != ours:
            data = data.rename_column(name, ours)
    # Numbers in JSON.
    if data.features["id"].dtype != "string":
        data = data.cast_column("id", Value("string"))
    found: Dataset = _without_nulls(row, source, data)
    return found


def _without_nulls(row: TaskRow, source: Source, data: Dataset) -> Dataset:
    """Return texts in which a missing one is an empty one; refuse missing ids."""
    if missing := data.data.column("id").null_count:
        msg = f"{place_of(row, source)}: {missing:,} rows have no id; {_RELOAD}"
        raise DataError(msg)
    counts = {name: data.data.column(name).null_count for name in data.column_names}
    if missing := counts["text"]:
        logger.warning(
            "%s: %s rows of %s have no text; they count as empty",
            *(row.name, f"{missing:,}", place_of(row, source)),
        )
    # MTEB measures titles, which may be missing here and there.
    lacking = [name for name, count in counts.items() if count]
    filled: Dataset = data.map(partial(_fill, lacking), batched=True) if lacking else data
    return filled


def _fill(columns: Sequence[str], batch: dict[str, list[str | None]]) -> dict[str, list[str]]:
    return {name: [text or "" for text in batch[name]] for name in columns}


def _joined(titles: Sequence[str | None], texts: Sequence[str | None]) -> list[str]:
    return [f"{title or ''} {text or ''}".strip() for title, text in zip(titles, texts, strict=True)]


def _dataset(ids: list[str], texts: list[str]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict({"id": ids, "text": texts})


def load_labels(row: TaskRow) -> TaskLabels:
    """Load what is known of a task's queries as it stands; its corpus is not read.

    Args:
        row: The task.

    Raises:
        DataError: If data is missing or damaged.
    """
    read = _LABELS.get(row.layout, _labels_in_rows)
    return read(row)


def _labels_in_examples(row: TaskRow) -> TaskLabels:
    """BRIGHT: each query with its gold, and the documents that do not count."""
    excluded = (row.excluded_column,) if row.excluded_column else ()
    columns = (row.id_column, row.gold_column, *excluded)
    rows: Any = read_split(row, splits_of(row)["queries"], columns=columns)
    rows = rows if row.id_column == "id" else rows.rename_column(row.id_column, "id")
    found = bright_examples(rows, row.gold_column, row.excluded_column)
    judged = _weighted_aspects(row, found.labels) if row.aspects_config else {}
    return TaskLabels(found.labels, found.excluded, judged)


# How BRIGHT-Pro numbers the aspects of a query, after what they share.
_ASPECT_NUMBER = re.compile(r"-(?:a|aspect-)\d+$")


def _weighted_aspects(row: TaskRow, labels: Labels) -> dict[str, Judged]:
    """BRIGHT-Pro: each query's aspects with the gold documents that support them, weights adding up to 1.

    As the official code has it (yale-nlp/Bright-Pro, bright_pro_data.py): a document stands for the last
    aspect that names it, and a query's aspects are those of its gold documents.
    """
    names = ("id", "supporting_docs", "weight")
    data = read_split(row, splits_of(row)["aspects"], columns=names)
    weights: dict[str, float] = {}
    stands_for: dict[str, str] = {}
    sums: dict[str, float] = {}
    for aspect, documents, weight in zip(*(data[name][:] for name in names), strict=True):
        weights[str(aspect)] = float(weight)
        query = _ASPECT_NUMBER.sub("", str(aspect))
        sums[query] = sums.get(query, 0.0) + float(weight)
        stands_for.update(dict.fromkeys(map(str, documents or ()), str(aspect)))
    judged = {}
    for query, gold in labels.items():
        nuggets: dict[str, list[str]] = {}
        for document, label in gold.items():
            if label > 0 and document in stands_for:
                nuggets.setdefault(stands_for[document], []).append(document)
        shares = {name: weights[name] / (sums[_ASPECT_NUMBER.sub("", name)] or 1.0) for name in nuggets}
        judged[query] = Judged(nuggets, shares, whole=1.0)
    _warn_of_lost_aspects(row, labels, judged)
    return judged


def _warn_of_lost_aspects(row: TaskRow, labels: Labels, judged: Mapping[str, Judged]) -> None:
    bare = [query for query, one in judged.items() if labels[query] and not one.nuggets]
    if bare:
        logger.warning(
            "%s: no aspect names a gold document of %s queries (%s): they are left out of the aspects' "
            "measures",
            *(row.name, f"{len(bare):,}", first_names(bare)),
        )


def _labels_in_rows(row: TaskRow) -> TaskLabels:
    """R2MED, MathNet, MIRB: one row a label; perhaps a config of the documents that do not count."""
    parts = splits_of(row)
    ids = read_split(row, parts["queries"], columns=(row.id_column,))[row.id_column][:]
    labels: Labels = {str(query): {} for query in ids}
    data = read_split(row, parts["labels"], columns=row.label_columns)
    columns = (data[name][:] for name in row.label_columns)
    for number, (query, document, score) in enumerate(zip(*columns, strict=True), 1):
        label = _whole_number(score)
        if label is None:
            msg = (
                f"{place_of(row, parts['labels'])}, row {number}: the label of query {query!r}, document "
                f"{document!r} is {score!r}; labels are whole numbers, and 0 is not relevant: {_RELOAD}"
            )
            raise DataError(msg)
        labels.setdefault(str(query), {})[str(document)] = label
    if "excluded" not in parts:
        return TaskLabels(labels)
    names = ("query-id", "excluded-ids")
    out = read_split(row, parts["excluded"], columns=names)
    excluded: Exclusions = {}
    for query, listed in zip(*(out[name][:] for name in names), strict=True):
        excluded.setdefault(str(query), []).extend(named_documents(listed))
    return TaskLabels(labels, {query: listed for query, listed in excluded.items() if listed})


def _whole_number(score: object) -> int | None:
    """Return a label, which may be written as text or as ``1.0``; None for anything else."""
    try:
        value = float(str(score))
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _own_document(row: TaskRow) -> TaskLabels:
    """ImpliRet: a query's document is that of its own row."""
    ids = read_split(row, splits_of(row)["queries"], columns=(row.id_column,))[row.id_column][:]
    return TaskLabels({str(name): {str(name): 1} for name in ids})


def _nuggets(row: TaskRow) -> TaskLabels:
    """FreshStack: a document's label is the number of a query's nuggets that it supports, 0 if judged so.

    A query's nuggets are those whose id begins with the query's, as the official code has it
    (fresh-stack/freshstack, datasets/util.py): where one query's id begins another's, it gets both's.
    """
    data = read_split(row, splits_of(row)["queries"], columns=("query_id", row.gold_column))
    support: dict[str, dict[str, int]] = {}
    for nuggets in data[row.gold_column][:]:
        for nugget in nuggets or ():
            marks = support.setdefault(str(nugget["_id"]), {})
            marks.update(dict.fromkeys(nugget["relevant_corpus_ids"] or (), 1))
            marks.update(dict.fromkeys(nugget["non_relevant_corpus_ids"] or (), 0))
    labels: Labels = {}
    judged: dict[str, Judged] = {}
    for query in map(str, data["query_id"][:]):
        own = {name: marks for name, marks in support.items() if name.startswith(query)}
        _warn_of_foreign_nuggets(row, query, own)
        labels[query] = {}
        for marks in own.values():
            for document, mark in marks.items():
                labels[query][document] = labels[query].get(document, 0) + mark
        judged[query] = Judged({n: [d for d, mark in marks.items() if mark] for n, marks in own.items()})
    _warn_of_nobodys_nuggets(row, labels, support)
    return TaskLabels(labels, {}, judged)


def _warn_of_foreign_nuggets(row: TaskRow, query: str, nuggets: Mapping[str, object]) -> None:
    foreign = [name for name in nuggets if name.split("_")[0] != query]
    if foreign:
        logger.warning(
            "%s: query %s gets nuggets of another query, %s, since their ids begin with its own: the "
            "official scorer does so",
            *(row.name, query, first_names(foreign)),
        )


def _warn_of_nobodys_nuggets(row: TaskRow, queries: Collection[str], nuggets: Collection[str]) -> None:
    # `startswith` takes a tuple.
    starts = tuple(queries)
    nobodys = [name for name in nuggets if not name.startswith(starts)]
    if nobodys:
        logger.warning(
            "%s: %s nuggets belong to no query, since their ids begin with none's, and are left out: %s",
            *(row.name, f"{len(nobodys):,}", first_names(nobodys)),
        )


def _better_and_worse(row: TaskRow) -> TaskLabels:
    """CoQuIR: the documents that answer a query, and worse versions of them."""
    names = ("qid", "pos-docids", "neg-docids")
    data = read_split(row, splits_of(row)["labels"], columns=names)
    labels: Labels = {}
    judged: dict[str, Judged] = {}
    for query, better, worse in zip(*(data[name][:] for name in names), strict=True):
        # A query may have several rows.
        labels.setdefault(str(query), {}).update(dict.fromkeys(named_documents(better), 1))
        before = judged.get(str(query), Judged()).worse
        judged[str(query)] = Judged(worse=tuple(dict.fromkeys((*before, *named_documents(worse)))))
    return TaskLabels(labels, {}, judged)


def _deciding_passage(row: TaskRow) -> TaskLabels:
    """Bar Exam QA: the passage that decides each question."""
    part = splits_of(row)["queries"]
    gold = read_split(row, part, columns=(row.gold_column,))[row.gold_column][:]
    labels = {_question_id(place): dict.fromkeys(named_documents(name), 1) for place, name in enumerate(gold)}
    without = [question for question, names in labels.items() if not names]
    if without:
        logger.warning(
            "%s: %s questions name no passage and are left out (%s, counted from 0 over the files of %s)",
            *(row.name, f"{len(without):,}", first_names(without), part.label),
        )
    return TaskLabels(labels)


def _numbered_questions(row: TaskRow, part: Source) -> Dataset:
    columns = (row.query_title_column, row.query_column)
    data = read_split(row, part, columns=columns)
    texts = _joined(*(data[name][:] for name in columns))
    return _dataset([_question_id(number) for number in range(len(texts))], texts)


def _question_id(number: int) -> str:
    return f"question-{number}"


_LABELS: dict[str, Callable[[TaskRow], TaskLabels]] = {
    "bright": _labels_in_examples,
    "impliret": _own_document,
    "freshstack": _nuggets,
    "coquir": _better_and_worse,
    "bar_exam": _deciding_passage,
}


def _in_pools(
    row: TaskRow, corpus: Dataset, queries: Dataset, found: TaskLabels
) -> Iterator[tuple[str, tuple[Dataset, Dataset, TaskLabels]]]:
    """Yield each pool's part: its documents, and the queries that have an answer among them."""
    places: dict[str, list[int]] = {pool: [] for pool in row.pools}
    for place, document in enumerate(corpus["id"][:]):
        places.setdefault(_pool_of(document, row), []).append(place)
    strange = [pool for pool in places if pool not in row.pools]
    missing = [pool for pool in row.pools if not places[pool]]
    if strange or missing:
        problem = f"has documents of {first_names(strange)}" if strange else f"lacks {first_names(missing)}"
        pools = ", ".join(row.pools)
        msg = f"{row.name}: the corpus {problem}, and {row.table} has the pools {pools}: download it again"
        raise DataError(msg)
    query_ids = queries["id"][:]
    for pool in row.pools:
        part = labels_of_pool(row, found, pool)
        own = [place for place, query in enumerate(query_ids) if query in part.labels]
        yield pool, (corpus.select(places[pool]), queries.select(own), part)


def labels_of_pool(row: TaskRow, found: TaskLabels, pool: str) -> TaskLabels:
    """Return what is known of the queries that have an answer in a pool, by its documents.

    Args:
        row: A task with pools.
        found: Its labels.
        pool: One of them.

    Raises:
        UnknownNameError: If the task has no such pool; the nearest is named.
    """
    if pool not in row.pools:
        raise unknown_name(f"pool of {row.name}", pool, row.pools)
    labels = {query: _of_pool(gold, pool, row) for query, gold in found.labels.items()}
    labels = {query: gold for query, gold in labels.items() if gold}
    judged = {
        query: Judged(worse=tuple(_of_pool(dict.fromkeys(one.worse, 1), pool, row)))
        for query, one in found.judged.items()
        if query in labels
    }
    return TaskLabels(labels, {}, judged)


def _of_pool(labels: Mapping[str, int], pool: str, row: TaskRow) -> dict[str, int]:
    return {document: label for document, label in labels.items() if _pool_of(document, row) == pool}


def _pool_of(document: str, row: TaskRow) -> str:
    """Return the pool that a document's id names."""
    parts = document.split("-")
    try:
        return parts[row.pool_part].lower()
    except IndexError:
        msg = (
            f"{row.name}: document id {document!r} names no pool, such as {row.pools[0]}; download the data "
            "again"
        )
        raise DataError(msg) from None
