"""Which column is what: by name, by place, or refused."""

from __future__ import annotations

import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training.columns import roles_by_name, roles_by_place


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (("query", "reasoning_query", "positive"), (0, 1, (2,))),
        (("query", "positive", "negative", "reasoning_query"), (0, 3, (1, 2))),
        (("reasoning_query", "positive", "query", "negative"), (2, 0, (1, 3))),
        (("query", "negative_1", "negative_2", "positive", "reasoning_query"), (0, 4, (3, 1, 2))),
        (("anchor", "Reasoning-Query", "documents"), (0, 1, (2,))),
        (("question", "reasoningQuery", "answer", "wrong_answer"), (0, 1, (2, 3))),
        (("query", "positive", "negative"), (0, None, (1, 2))),
        (("query", "negative", "positive"), (0, None, (2, 1))),
        (("positive", "query"), (1, None, (0,))),
        (("anchor", "entailment", "contradiction"), (0, None, (1, 2))),
        # As sentence-transformers does, which goes by place.
        (("premise", "hypothesis"), (0, None, (1,))),
        (("query", "reasoning_query", "positive", "passage"), (0, 1, (2, 3))),
        (("query", "positive_passage", "negative_passage"), (0, None, (1, 2))),
        (("a", "b"), (0, None, (1,))),
        (("a", "reasoning_query", "b", "c"), (0, 1, (2, 3))),
        (("a", "reasoning_query", "positive"), (0, 1, (2,))),
        (("query", "reasoning_query", "document_1", "document_2"), (0, 1, (2, 3))),
    ],
)
def test_names_tell_roles(names: tuple[str, ...], roles: tuple[int, int | None, tuple[int, ...]]) -> None:
    found = roles_by_name(names, reasoning=True)
    assert (found.query, found.reasoning, found.documents) == roles
    # Where none are wanted, the reasoning query is no document either.
    plain = roles_by_name(names, reasoning=False)
    assert (plain.query, plain.reasoning, plain.documents) == (roles[0], None, roles[2])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("query", "rewritten_query", "positive"),
            "'rewritten_query' may be the reasoning query or a document",
        ),
        (("query", "positive", "negative", "reasoning"), "'reasoning' may be the reasoning query"),
        (("sentence_0", "sentence_1", "sentence_2"), "'sentence_0', 'sentence_1', 'sentence_2' may be"),
        (
            ("query", "answer", "context"),
            "'answer' is the positive by its name, 'context' may be a negative",
        ),
        (("query", "passage", "positive"), "'positive' is the positive by its name, 'passage' may be"),
        (("premise", "hypothesis", "contradiction"), "'premise', 'hypothesis' may be the reasoning query"),
        (("query", "thoughts"), "'thoughts' may be the reasoning query"),
        (("query", "reasoning_query"), "at least one document"),
        (("reasoning_query",), "a row needs a query"),
        (("positive", "reasoning_query", "negative"), "a row needs a query"),
        (("query", "reasoning_query", "negative"), "the first document is 'negative'"),
        (("query", "reasoning_query", "positive_1", "positive_2"), "each named as the positive"),
        (("query", "question", "reasoning_query", "positive"), "each named as the query"),
        (("query", "reasoning_query", "reasoningQuery", "positive"), "each named as the reasoning"),
        (("query_id", "query", "reasoning_query", "positive"), r"'query_id' hold\(s\) ids"),
        (("query", "reasoning_query", "positive", "domain"), "'domain' may be a document or something else"),
    ],
)
def test_names_that_leave_it_open_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ReasonEmbedError, match=message) as caught:
        roles_by_name(names, reasoning=True)
    assert "name them (query, reasoning_query, positive, negative, ...)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_reasoning_all_after_the_query_are_documents() -> None:
    for names in (("sentence_0", "sentence_1", "sentence_2"), ("query", "positive", "distractor")):
        assert roles_by_name(names, reasoning=False).documents == (1, 2)
    with pytest.raises(ReasonEmbedError, match="'reasoning' may be the reasoning query"):
        roles_by_name(("query", "positive", "reasoning"), reasoning=False)


def test_places_tell_roles_where_there_are_no_names() -> None:
    assert roles_by_place(4, reasoning=True).documents == (2, 3)
    assert roles_by_place(4, reasoning=False).documents == (1, 2, 3)
    assert roles_by_place(2, reasoning=True).reasoning is None
