"""Reasonings that were written elsewhere: in a file, in BRIGHT's rewritten queries, by a server's model."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.errors import DataError, ReasonEmbedError, first_names
from reasonembed_mteb.evaluation.reasoning_record import ENDED, FULL
from reasonembed_mteb.files import bytes_hash, fingerprint, read_json_lines
from reasonembed_mteb.reasoning.store import Reasoning
from reasonembed_mteb.retrieval.layouts import check_rewriting, rewritten_queries

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reasonembed_mteb.endpoints.endpoint import Endpoint
    from reasonembed_mteb.llm.client import LLMClient
    from reasonembed_mteb.reasoning.generation import Decoding

# Where the query stands in a prompt.
PLACE_OF_QUERY = "{query}"
# What a server's model is asked. Our own wording.
QUESTION = (
    "{query}\n\nThink step by step: what is being asked, what knowledge is needed, and what would a document "
    "say that answers it? Write your reasoning, not a list of documents."
)
_GIVEN = "given"
# A server's error that leaves the part of an answer that fitted.
_CUT = "length"


@dataclass(frozen=True)
class Query:
    """A query to be reasoned about.

    Attributes:
        text: As the task has it.
        id: Its id there; empty where it has none.
        task: MTEB name of the task; empty outside one.
    """

    text: str
    id: str = ""
    task: str = ""

    @property
    def shown(self) -> str:
        """What a message calls it."""
        return self.id or repr(self.text[:60])


class ReasoningSource(Protocol):
    """Whoever wrote reasonings for queries."""

    @property
    def name(self) -> str:
        """Short, for the model's name in results."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the reasonings, as JSON; part of the model's revision."""

    def reasonings(self, queries: Sequence[Query]) -> list[Reasoning]:
        """Return one reasoning for each query, in order."""

    def planned(self, queries: Sequence[Query]) -> tuple[int | None, float | None]:
        """Say how many queries have a reasoning, and the most that the others cost; ask and fetch nothing.

        Args:
            queries: Those of a task.

        Returns:
            None for what is not known, or has no price.
        """


def check_prompt(template: str) -> str:
    """Return a template, which must say once where the query goes.

    Args:
        template: Text with ``{query}``.

    Raises:
        ReasonEmbedError: If it does not.
    """
    if template.count(PLACE_OF_QUERY) != 1:
        msg = f"the prompt {template!r} must hold '{PLACE_OF_QUERY}' once, where the query goes"
        raise ReasonEmbedError(msg)
    return template


class ReasoningFile:
    """Reasonings in JSON Lines: ``reasoning``, and ``query`` (its whole text) or ``id`` (and ``task``)."""

    def __init__(self, file: Path) -> None:
        """Read the file.

        Args:
            file: JSON Lines; further keys are passed over, so that a run's own file can be given.

        Raises:
            DataError: If it cannot be read, a row lacks a key, or two rows say different things of one query.
        """
        self._file = file
        self._known: dict[tuple[str, str, str], str] = {}
        # Tasks whose queries were found by an id that names no task.
        self._bare_ids: set[str] = set()
        for number, row in read_json_lines(file):
            self._take(number, row)
        self._hash = bytes_hash(file.read_bytes())

    def _take(self, number: int, row: Any) -> None:  # noqa: ANN401 - any JSON
        held = row if isinstance(row, dict) else {}
        values = [held.get(name, "") for name in ("task", "id", "query", "reasoning")]
        if not all(isinstance(one, str) for one in values) or not values[3] or not (values[1] or values[2]):
            msg = f"{self._file}:{number}: write texts for reasoning and for query or id (and task)"
            raise DataError(msg)
        task, name, query, reasoning = values
        # An id counts within its task; a text is the same anywhere.
        for key in ((task, name, ""), ("", "", query)):
            if any(key[1:]) and self._known.setdefault(key, reasoning) != reasoning:
                msg = f"{self._file}:{number}: another reasoning of {name or query[:60]!r}: leave one of them"
                raise DataError(msg)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self._file.name.partition(".")[0]

    @property
    def identity(self) -> dict[str, Any]:
        """The file's content."""
        return {"file": self._hash}

    def reasonings(self, queries: Sequence[Query]) -> list[Reasoning]:
        """Return one reasoning for each query.

        Args:
            queries: Found by task and id, by text, or by id alone, in this order.

        Raises:
            DataError: If any has none, or ids alone are asked for by two tasks.
        """
        found = [self._find(one) for one in queries]
        missing = [one.shown for one, text in zip(queries, found, strict=True) if text is None]
        if missing:
            msg = (
                f"{self._file} has no reasoning for {len(missing):,} of {len(queries):,} queries "
                f"({first_names(missing)}): add a line for each, with query or id"
            )
            raise DataError(msg)
        return [Reasoning(text, _GIVEN) for text in found if text is not None]

    def planned(self, queries: Sequence[Query]) -> tuple[int | None, float | None]:
        """Say how many queries the file has a reasoning for; see `ReasoningSource`."""
        return sum(self._find(one) is not None for one in queries), None

    def _find(self, query: Query) -> str | None:
        for key in ((query.task, query.id, ""), ("", "", query.text)):
            if any(key[1:]) and key in self._known:
                return self._known[key]
        found = self._known.get(("", query.id, "")) if query.id else None
        if found is not None:
            self._bare_ids.add(query.task)
        if len(self._bare_ids) > 1:
            tasks = " and ".join(sorted(self._bare_ids))
            msg = (
                f"{self._file} names queries by id alone, and {tasks} may have the same ids: "
                "write the task, or the query's text, into each line"
            )
            raise DataError(msg)
        return found


class RewrittenQueries:
    """BRIGHT's queries as language models rewrote them, taken as reasonings of the original ones."""

    def __init__(self, kind: str) -> None:
        """Choose the rewriting.

        Args:
            kind: Such as ``gpt4_reason``.

        Raises:
            UnknownNameError: If no table has it; the nearest is named.
        """
        check_rewriting(kind)
        self._kind = kind
        self._loaded: dict[str, dict[str, str]] = {}

    @property
    def name(self) -> str:
        """The rewriting."""
        return self._kind

    @property
    def identity(self) -> dict[str, Any]:
        """The rewriting; its data's revision belongs to the task."""
        return {"rewritten": self._kind}

    def reasonings(self, queries: Sequence[Query]) -> list[Reasoning]:
        """Return one reasoning for each query.

        Args:
            queries: Of tasks whose table has the rewriting, with their ids.

        Raises:
            DataError: If the rewriting lacks a query.
            ReasonEmbedError: If a task has no such rewriting.
        """
        found = [self._texts(one.task).get(one.id) for one in queries]
        missing = [one.shown for one, text in zip(queries, found, strict=True) if text is None]
        if missing:
            msg = f"{self._kind} lacks {len(missing):,} of {len(queries):,} queries ({first_names(missing)})"
            raise DataError(msg)
        return [Reasoning(text, _GIVEN) for text in found if text is not None]

    def planned(self, queries: Sequence[Query]) -> tuple[int | None, float | None]:
        """Say nothing: its data may not be here; see `ReasoningSource`."""
        del queries
        return None, None

    def _texts(self, task: str) -> dict[str, str]:
        if task not in self._loaded:
            self._loaded[task] = rewritten_queries(task, self._kind)
        return self._loaded[task]


class AskedReasonings:
    """Reasonings by a model on an OpenAI-compatible server; every answer is kept on disk."""

    def __init__(self, client: LLMClient, decoding: Decoding, question: str = QUESTION) -> None:
        """Prepare.

        Args:
            client: Whom to ask; the caller closes it.
            decoding: How the server's model is to choose tokens.
            question: What it is asked, with ``{query}``.

        Raises:
            ReasonEmbedError: If the question has no place for the query.
        """
        decoding.check()
        self._client, self._decoding, self._question = client, decoding, check_prompt(question)

    @property
    def endpoint(self) -> Endpoint:
        """Who is asked."""
        return self._client.endpoint

    @property
    def question_length(self) -> int:
        """Characters of the question around a query."""
        return len(self._question) - len(PLACE_OF_QUERY)

    @property
    def name(self) -> str:
        """The model's name there, and the most tokens it may write."""
        return f"{self._client.endpoint.model.rsplit('/', 1)[-1]}-{self._decoding.max_tokens}"

    @property
    def identity(self) -> dict[str, Any]:
        """Model, question and decoding."""
        asked = fingerprint(self._question)
        return {"asked": self._client.endpoint.model, "question": asked, "decoding": asdict(self._decoding)}

    def reasonings(self, queries: Sequence[Query]) -> list[Reasoning]:
        """Ask for each query's reasoning, without its instruction.

        Args:
            queries: Equal ones are asked once.

        Raises:
            EndpointError: If the server cannot be used.
            BudgetExceeded: If the budget is spent; what was answered is kept.
            ReasonEmbedError: If the server has no answer to a query.
        """
        started = time.perf_counter()
        requests = [self._request(place, one) for place, one in enumerate(queries)]
        answers = list(self._client.run(requests, total=len(requests), description="Reasoning"))
        bad = [
            f"{queries[int(one.key)].shown} ({one.error})"
            for one in answers
            if one.text is None or one.error not in (None, _CUT)
        ]
        if bad:
            msg = (
                f"{self._client.endpoint.model} wrote no reasoning for {len(bad):,} of {len(queries):,} "
                f"queries: {first_names(bad)}; what it wrote is kept: run again with --retry-errors"
            )
            raise ReasonEmbedError(msg)
        seconds = (time.perf_counter() - started) / max(len(answers), 1)
        return [
            Reasoning(
                str(one.text), FULL if one.error else ENDED, one.completion_tokens, one.prompt_tokens, seconds
            )
            for one in answers
        ]

    def planned(self, queries: Sequence[Query]) -> tuple[int | None, float | None]:
        """Say how many queries are answered, and the price of the others at most; see `ReasoningSource`."""
        return self._client.planned([self._request(place, one) for place, one in enumerate(queries)])

    def _request(self, place: int, query: Query) -> Request:
        chosen = self._decoding
        text = self._question.replace(PLACE_OF_QUERY, query.text)
        return Request(
            str(place),
            ({"role": "user", "content": text},),
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            max_tokens=chosen.max_tokens,
            seed=chosen.seed,
        )
