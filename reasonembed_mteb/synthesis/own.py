"""Queries, pairs and labels that a user brings, in place of what the first steps make: read and checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, first_names
from reasonembed_mteb.files import content_hash, is_number, read_json_lines
from reasonembed_mteb.retrieval import beir
from reasonembed_mteb.retrieval.labels import bright_examples, named_documents
from reasonembed_mteb.retrieval.sources import data_files, read_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from reasonembed_mteb.synthesis.config import Config, StartSection, SubsetSection
    from reasonembed_mteb.synthesis.corpus import Corpus
    from reasonembed_mteb.synthesis.shards import Row

logger = logging.getLogger(__name__)

# The highest and lowest label, for what is only known to be relevant or not, and what is neither.
RELEVANT, NOT_RELEVANT, NEITHER = 5, 1, -1
# What people call these in JSON Lines; the first that holds something counts.
_ID = ("id", "_id", "query_id", "qid")
_QUERY = ("query", "text", "question", "anchor")
_POSITIVE = ("pos", "positive", "positives", "gold_ids", "positive_ids")
_NEGATIVE = ("neg", "negative", "negatives", "negative_ids")
_DOCUMENT = ("document_id", "corpus_id", "docid", "doc_id", "document", "passage", "answer")
_PART_OF_TEXT = 40


@dataclass
class OwnQuery:
    """A query that a user brings, with what is known of documents.

    Attributes:
        id: Its id.
        text: The query.
        labels: 1 to 5 by document, -1 for one that counts as neither; in the order of the file.
        candidates: Documents without a label, in the order of the file.
        reasoning_query: The query with its reasoning, where there is one.
        where: File and line, for messages.
    """

    id: str
    text: str
    labels: dict[str, int] = field(default_factory=dict)
    candidates: dict[str, None] = field(default_factory=dict)
    reasoning_query: str | None = None
    where: str = ""

    @property
    def source(self) -> str | None:
        """The most relevant document: a search leaves it out, and other scores are compared with its own."""
        best = max(self.labels.values(), default=NEITHER)
        return next((name for name, label in self.labels.items() if label == best > NOT_RELEVANT), None)


@dataclass(frozen=True)
class OwnData:
    """What a subset begins with.

    Attributes:
        queries: The queries, ids and texts unique.
        fingerprint: Hash of the files and of how they are read.
    """

    queries: tuple[OwnQuery, ...]
    fingerprint: list[Any]


def own_files(subset: SubsetSection, config: Config) -> list[Path]:
    """Return the files that a subset begins with.

    Args:
        subset: With a table ``start``.
        config: The run's, whose folder paths are relative to.

    Raises:
        DataError: If one is missing.
    """
    start = _start(subset)
    path = config.path(start.path)
    if not path.exists():
        msg = (
            f"subset {subset.name}: start.path {path} does not exist; correct it, it is relative to the file"
        )
        raise DataError(msg)
    if start.layout == "jsonl":
        return [path]
    if start.layout == "bright":
        return data_files(path, "examples", start.split or subset.name)
    if start.split is not None:
        return beir.folder_files(path, start.split)
    if (queries := beir.find_file(path / beir.QUERIES)) is None:
        msg = f"subset {subset.name}: {path} has no {beir.QUERIES}; give a BEIR folder, or another layout"
        raise DataError(msg)
    return [queries]


def _start(subset: SubsetSection) -> StartSection:
    assert subset.start is not None
    return subset.start


def read_own(subset: SubsetSection, config: Config, corpus: Corpus) -> OwnData:
    """Read what a subset begins with.

    Args:
        subset: With a table ``start``.
        config: The run's.
        corpus: Where every document has to be.

    Raises:
        DataError: If a file is missing or wrong, or names a document that is not in the corpus; the message
            names the line.
    """
    start, files = _start(subset), own_files(subset, config)
    if start.layout == "jsonl":
        queries = _named_in(corpus, _merged(_json_lines(files[0], start, subset.name)), files[0])
    elif start.layout == "bright":
        queries = _known(corpus, _bright(files), f"{subset.name}, start")
    elif start.split is None:
        queries = [OwnQuery(name, text) for name, text, _ in beir.read_texts(files[0])]
    else:
        queries = _known(corpus, _beir(config.path(start.path), start.split), f"{subset.name}, start")
    if not queries:
        msg = f"subset {subset.name}: {files[0]} holds no query"
        raise DataError(msg)
    return OwnData(tuple(queries), [content_hash(files), start.model_dump(exclude={"path"})])


def _beir(folder: Path, split: str) -> Iterator[OwnQuery]:
    data = beir.read_folder(folder, split)
    texts = dict(zip(data["queries"]["id"][:], data["queries"]["text"][:], strict=True))
    for query, labels in data["relevant_docs"].items():
        if labels:
            yield OwnQuery(query, texts[query], _relevance(labels, data["excluded_ids"].get(query, ())))


def _bright(files: list[Path]) -> Iterator[OwnQuery]:
    rows = read_files(files, ("id", "query", "gold_ids", "excluded_ids"))
    found = bright_examples(rows)
    for query, text in zip(rows["id"][:], rows["query"][:], strict=True):
        yield OwnQuery(query, text, _relevance(found.labels[query], found.excluded.get(query, ())))


def _relevance(labels: Mapping[str, int], excluded: Iterable[str]) -> dict[str, int]:
    """Return labels from 1 to 5 of those that say relevant or not; an excluded document is neither."""
    known = {name: RELEVANT if label > 0 else NOT_RELEVANT for name, label in labels.items()}
    return known | dict.fromkeys(excluded, NEITHER)


def _known(corpus: Corpus, queries: Iterable[OwnQuery], name: str) -> list[OwnQuery]:
    """Leave out labels of documents that are not in the corpus, which the readers have warned of."""
    listed = list(queries)
    there = corpus.holds({document for query in listed for document in query.labels})
    missing = {document for query in listed for document in query.labels} - there
    if missing:
        logger.warning(
            "%s: %d documents are not in the corpus: %s", name, len(missing), first_names(sorted(missing))
        )
    for query in listed:
        query.labels = {document: label for document, label in query.labels.items() if document in there}
    return listed


def _json_lines(file: Path, start: StartSection, subset: str) -> Iterator[OwnQuery]:
    for number, row in read_json_lines(file, "write one query or pair a line, as JSON"):
        where = f"{file}:{number}"
        if not isinstance(row, dict):
            msg = f"{where} is no JSON object; write one query or pair a line"
            raise DataError(msg)
        text = _first(row, _QUERY)
        if not isinstance(text, str) or not text.strip():
            msg = f"{where} has no query (keys: {', '.join(row) or 'none'}); write it as query"
            raise DataError(msg)
        name = _first(row, _ID)
        reasoning = row.get("reasoning_query")
        yield OwnQuery(
            f"{subset}-own-{number}" if name is None else _whole(str(name)),
            _whole(text),
            _labels_of(row, start, where),
            dict.fromkeys(_names(row.get("candidates"), where)),
            _whole(reasoning) if isinstance(reasoning, str) and reasoning.strip() else None,
            where,
        )


def _whole(text: str) -> str:
    """Return a text without halves of character pairs, which JSON can hold and no file of ours."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _first(row: Row, keys: Iterable[str]) -> Any:  # noqa: ANN401 - whatever JSON holds
    found = (row.get(key) for key in keys)
    return next((value for value in found if value not in (None, [], "")), None)


def _names(given: Any, where: str) -> list[str]:  # noqa: ANN401 - whatever JSON holds
    """Return documents that a cell names: one, or a list; of a mined candidate its id."""
    listed = given if isinstance(given, list) else [] if given is None else [given]
    names = [one[0] if isinstance(one, list) and one else one for one in listed]
    names = [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in names]
    if wrong := [one for one in names if not isinstance(one, str)]:
        msg = f"{where}: {wrong[0]!r} names no document; write its id or its text as a string"
        raise DataError(msg)
    return named_documents(names)


def _labels_of(row: Row, start: StartSection, where: str) -> dict[str, int]:
    # A document beside a query is one of a pair, unless a label says what it is.
    alone = () if {"label", "labels"} & row.keys() else _DOCUMENT
    labels = dict.fromkeys(_names(_first(row, (*_POSITIVE, *alone)), where), RELEVANT)
    labels |= {name: NOT_RELEVANT for name in _names(_first(row, _NEGATIVE), where) if name not in labels}
    given = row.get("labels")
    if isinstance(given, list):
        documents = _names(row.get("documents"), where)
        if len(documents) != len(given):
            msg = f"{where}: {len(documents)} documents and {len(given)} labels; write one label a document"
            raise DataError(msg)
        given = dict(zip(documents, given, strict=True))
    if row.get("label") is not None:
        given = dict.fromkeys(_names(_first(row, _DOCUMENT), where), row["label"])
    if given is not None and not isinstance(given, dict):
        msg = f"{where}: labels is {type(given).__name__}; write an object of documents and their labels"
        raise DataError(msg)
    labels |= {name: _label(label, start, where) for name, label in (given or {}).items()}
    return labels | dict.fromkeys(_names(row.get("excluded_ids"), where), NEITHER)


def _label(label: Any, start: StartSection, where: str) -> int:  # noqa: ANN401 - whatever JSON holds
    if isinstance(label, str) and label.strip().lstrip("-").isdecimal():
        label = int(label)
    whole = is_number(label) and label == int(label)
    if whole and start.scale == "relevance":
        return RELEVANT if label > 0 else NOT_RELEVANT
    if not whole or not (NOT_RELEVANT <= label <= RELEVANT or label == NEITHER):
        msg = (
            f"{where}: label {label!r} is not one of 1 to 5 (-1 for neither); correct it, or write "
            "scale = 'relevance' where above 0 means relevant"
        )
        raise DataError(msg)
    return int(label)


def _merged(rows: Iterable[OwnQuery]) -> list[OwnQuery]:
    """Join the lines of one query: pairs are often written one a line."""
    by_text: dict[str, OwnQuery] = {}
    by_id: dict[str, OwnQuery] = {}
    for row in rows:
        known = by_text.setdefault(row.text, row)
        if by_id.setdefault(row.id, known).text != row.text:
            msg = f"{row.where}: the id {row.id!r} is also that of another query ({by_id[row.id].where})"
            raise DataError(msg)
        for name, label in row.labels.items():
            if known.labels.setdefault(name, label) != label:
                msg = f"{row.where}: two labels for one query and document ({name[:_PART_OF_TEXT]}); keep one"
                raise DataError(msg)
        known.candidates |= row.candidates
        known.reasoning_query = known.reasoning_query or row.reasoning_query
    return list(by_text.values())


def _named_in(corpus: Corpus, queries: list[OwnQuery], file: Path) -> list[OwnQuery]:
    """Return queries whose documents are ids of the corpus; texts become the ids of their documents."""
    names = {name: query.where for query in queries for name in [*query.labels, *query.candidates]}
    ids = dict.fromkeys(corpus.holds(names))
    found = {name: name for name in ids} | corpus.names_of(names.keys() - ids.keys())
    if missing := [name for name in names if name not in found]:
        msg = (
            f"{names[missing[0]]}: {missing[0][:_PART_OF_TEXT]!r} is neither an id nor a text of the corpus"
            f"{f', and so are {len(missing) - 1:,} more of {file.name}' if len(missing) > 1 else ''}; add it "
            "to the corpus, or correct it"
        )
        raise DataError(msg)
    for query in queries:
        query.labels = {found[name]: label for name, label in query.labels.items()}
        query.candidates = {found[name]: None for name in query.candidates if found[name] not in query.labels}
    return queries
