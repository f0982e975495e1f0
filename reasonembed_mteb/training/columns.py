"""Which column of a batch is what: by name where columns have names, by place where they have none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Sequence

REASONING_QUERY = "reasoning_query"
# Words that tell a column's role, as sentence-transformers' own data sets and ours use them.
_QUERY = frozenset({"query", "queries", "anchor", "question", "questions", "post"})
_POSITIVE = frozenset({"positive", "positives", "pos", "answer", "answers", "response", "entailment", "gold"})
_NEGATIVE = frozenset({"negative", "negatives", "neg", "negs", "contradiction", "irrelevant", "wrong"})
_DOCUMENT = frozenset(
    f"{word}{end}"
    for word in ("document", "doc", "passage", "text", "context", "candidate", "paragraph")
    for end in ("", "s")
)
_ID = frozenset({"id", "ids", "idx"})
# The reasoning query by another name, or the reasoning without its query.
_MAYBE = frozenset({"reasoning", "reason", "rewrite", "rewritten", "thought", "thoughts"})


class LossError(ReasonEmbedError, ValueError):
    """A setting of a loss, or a batch, that it cannot work with."""


@dataclass(frozen=True)
class Roles:
    """Where in a batch each role's column stands.

    Attributes:
        query: Place of the queries.
        reasoning: Place of the reasoning queries; None where there are none, or none are wanted.
        documents: Places of the documents, the positive's first.
    """

    query: int
    reasoning: int | None
    documents: tuple[int, ...]


def roles_by_place(columns: int, *, reasoning: bool) -> Roles:
    """Return the roles of columns without names.

    Args:
        columns: How many there are.
        reasoning: Whether three or more have the reasoning query second. False: all after the first are
            documents.

    Raises:
        LossError: If there are fewer than two columns.
    """
    if columns < 2:
        msg = (
            f"{columns} column(s) given; allowed are (query, reasoning_query, documents...) and "
            "(query, documents): add the missing columns to the data set"
        )
        raise LossError(msg)
    second = reasoning and columns > 2
    return Roles(0, 1 if second else None, tuple(range(2 if second else 1, columns)))


def roles_by_name(names: Sequence[str], *, reasoning: bool) -> Roles:
    """Return the roles of columns that have names, in whatever order they stand.

    The reasoning query is the column ``reasoning_query``, and no other. The query is the one named so
    (``query``, ``anchor``, ``question``), else the first; the positive is the one named so, else the first
    document.

    Args:
        names: Of the columns, in their order, without labels.
        reasoning: Whether reasoning queries are wanted; a column of them is left out otherwise.

    Raises:
        LossError: If the names leave open which column is what.
    """
    kinds = {place: _kind(name) for place, name in enumerate(names)}
    if "id" in kinds.values():
        raise _unclear(names, f"{_named(names, kinds, 'id')} hold(s) ids, not texts")
    second = _only(names, kinds, "reasoning")
    rest = [place for place in kinds if place != second]
    if second is None and (
        "maybe" in kinds.values() or (reasoning and len(rest) > 2 and "" in kinds.values())
    ):
        said = _named(names, kinds, "maybe") or _named(names, kinds, "")
        raise _unclear(names, f"{said} may be the reasoning query or a document")
    query = _only(names, kinds, "query")
    query = rest[0] if query is None and rest else query
    documents = [place for place in rest if place != query]
    if query is None or not documents or kinds[query] in ("positive", "negative", "maybe"):
        raise _unclear(names, "a row needs a query and at least one document")
    if reasoning:
        _refuse_mixture(names, kinds, documents)
        if second is None:
            _refuse_beside_positive(names, kinds, documents)
    return Roles(query, second if reasoning else None, _positive_first(names, kinds, documents))


def _kind(name: str) -> str:
    """Return what a name's words say: a role, ``id``, ``maybe`` a reasoning query, or nothing."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    if words == REASONING_QUERY.split("_"):
        return "reasoning"
    if _MAYBE.intersection(words):
        return "maybe"
    kinds = {"id": _ID, "negative": _NEGATIVE, "positive": _POSITIVE, "document": _DOCUMENT, "query": _QUERY}
    return next((kind for kind, known in kinds.items() if known.intersection(words)), "")


def _only(names: Sequence[str], kinds: dict[int, str], kind: str) -> int | None:
    """Return the one column of a kind, or None without any."""
    found = [place for place, own in kinds.items() if own == kind]
    if len(found) > 1:
        raise _unclear(names, f"{_named(names, kinds, kind)} are each named as the {kind}, and a row has one")
    return found[0] if found else None


def _refuse_mixture(names: Sequence[str], kinds: dict[int, str], documents: list[int]) -> None:
    """Refuse names of which only some say that they are documents: the others might be anything."""
    silent = [repr(names[place]) for place in documents if kinds[place] in ("", "maybe")]
    if 0 < len(silent) < len(documents):
        raise _unclear(names, f"{', '.join(silent)} may be a document or something else")


def _refuse_beside_positive(names: Sequence[str], kinds: dict[int, str], documents: list[int]) -> None:
    """Refuse, beside a positive, documents that no word calls negatives: they may be its context."""
    if {"positive", "document"} <= {kinds[place] for place in documents}:
        of_kind = {place: kinds[place] for place in documents}
        positive, others = (_named(names, of_kind, kind) for kind in ("positive", "document"))
        raise _unclear(
            names, f"{positive} is the positive by its name, {others} may be a negative or its own"
        )


def _positive_first(names: Sequence[str], kinds: dict[int, str], documents: list[int]) -> tuple[int, ...]:
    positive = _only(names, kinds, "positive")
    first = documents[0] if positive is None else positive
    if kinds[first] == "negative":
        raise _unclear(names, f"the first document is {names[first]!r}, and none is named 'positive'")
    return first, *(place for place in documents if place != first)


def _named(names: Sequence[str], kinds: dict[int, str], kind: str) -> str:
    return ", ".join(repr(names[place]) for place, own in kinds.items() if own == kind)


def _unclear(names: Sequence[str], reason: str) -> LossError:
    msg = (
        f"the columns ({', '.join(names)}) leave open which is what: {reason}; name them "
        "(query, reasoning_query, positive, negative, ...) and remove others, or give start_step=None for "
        "plain InfoNCE over (query, positive, negative, ...)"
    )
    return LossError(msg)
