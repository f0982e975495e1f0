"""A language model as a reranker, pair by pair: grades from 0 to 5, expected by their log-probabilities."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.endpoints.endpoint import Reply, Request
from reasonembed_mteb.endpoints.retries import AttemptError, Service
from reasonembed_mteb.llm.replies import read_reply
from reasonembed_mteb.llm.templates import without_thought

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.endpoints.endpoint import Answer, Endpoint
    from reasonembed_mteb.endpoints.limits import Usage
    from reasonembed_mteb.llm.templates import ChatTemplate
    from reasonembed_mteb.retrieval.reranker import Pair

logger = logging.getLogger(__name__)

GRADES = tuple("012345")
# Where an answer begins with its grade; a number in the middle of a sentence is none.
_GRADE = re.compile(r"\W{0,8}(?:(?:grade|score|relevance)\W{1,8})?([0-5])(?!\d|[.,]\d|\s*/)", re.IGNORECASE)
# What the endpoints give at most (platform.openai.com/docs/api-reference/chat: 20).
_CANDIDATES = 20


def _graded_body(endpoint: Endpoint, request: Request) -> dict[str, Any]:
    body = endpoint.body(request)
    asked = {"logprobs": True, "top_logprobs": _CANDIDATES}
    return {name: value for name, value in (asked | body).items() if value is not None}


def read_graded(raw: bytes) -> Reply:
    """Read the body of a successful reply with log-probabilities, or without.

    Args:
        raw: A chat completion.

    Returns:
        A reply whose text is JSON: ``text``, and ``top``, the log-probability of each grade where the answer
        gives its own. An answer that is cut after its grade is a whole one.

    Raises:
        AttemptError: If it is no chat completion.
    """
    reply = read_reply(raw)
    if reply.text is None:
        return reply
    content = (json.loads(raw)["choices"][0].get("logprobs") or {}).get("content") or []
    try:
        top = _grade_candidates(reply.text, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = f"the log-probabilities cannot be read ({type(error).__name__})"
        raise AttemptError(msg, "bad_answer") from error
    failed = reply.error if written_grade(reply.text) is None else None
    text = json.dumps({"text": reply.text, "top": top}, ensure_ascii=False)
    return Reply(text, failed, reply.prompt_tokens, reply.completion_tokens)


def _grade_candidates(text: str, content: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the log-probabilities of the grades at the place where the answer gives its own."""
    place = _place(text)
    position = 0
    for token in content:
        written = str(token["token"])
        if place is not None and position <= place < position + len(written):
            found: dict[str, list[float]] = {}
            for one in token["top_logprobs"]:
                if str(one["token"]).strip() in GRADES:
                    found.setdefault(str(one["token"]).strip(), []).append(float(one["logprob"]))
            # A grade with a space before it and one without are the same.
            return {grade: _log_sum(values) for grade, values in sorted(found.items())}
        position += len(written)
    return {}


def _log_sum(values: Sequence[float]) -> float:
    largest = max(values)
    if math.isinf(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def _place(text: str) -> int | None:
    """Return where in an answer its grade stands."""
    said = without_thought(text)
    match = _GRADE.match(said)
    if match is None:
        return None
    return text.rindex(said) + match.start(1)


def written_grade(text: str) -> int | None:
    """Return the grade that an answer begins with, or None.

    Args:
        text: The answer; what a thinking model wrote before ``</think>`` does not count.
    """
    match = _GRADE.match(without_thought(text))
    return int(match[1]) if match else None


def expected_grade(top: Mapping[str, float]) -> float:
    """Return the mean grade by the grades' probabilities among themselves.

    Args:
        top: Log-probability by grade; a grade that is missing has none.
    """
    largest = max(top.values())
    weights = {int(grade): math.exp(value - largest) for grade, value in top.items()}
    return math.fsum(grade * weight for grade, weight in weights.items()) / math.fsum(weights.values())


_PROBE = Request("probe", ({"role": "user", "content": "Say 1."},), 0.0, 1.0, 16, None)
GRADED = Service("/chat/completions", read_graded, _graded_body, _PROBE)


class GradeReranker:
    """Scores pairs by the grade that a language model gives; see `reasonembed_mteb.retrieval.reranker`.

    Where the endpoint gives log-probabilities the score is the expected grade, else the grade as written. A
    pair whose answer holds none gets NaN.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - an LLMClient, or what answers like one
        template: ChatTemplate,
        *,
        sampling: tuple[float, float, int | None, int | None] = (0.0, 1.0, 16, None),
        words: int | None = None,
    ) -> None:
        """Keep what is asked, and of whom.

        Args:
            client: Asks the endpoint and keeps its answers; with the service `GRADED` it asks for
                log-probabilities, which some endpoints refuse.
            template: With ``$query`` and ``$document``.
            sampling: Temperature, top_p, longest answer in tokens, and seed.
            words: Documents are cut after so many; None leaves them whole.
        """
        self._client, self._template, self._sampling, self._words = client, template, sampling, words
        # How many pairs were graded by what, and how many were not, by reason.
        self.counts: Counter[str] = Counter()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the grades; not the address, since a model may move to another server."""
        return {
            "kind": "grades",
            "name": self._client.endpoint.model,
            "extra_body": self._client.endpoint.extra_body,
            "template": self._template.hash,
            "sampling": list(self._sampling),
            "words": self._words,
        }

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        used: Usage = self._client.usage
        return used

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the grade of each pair, ``(N,)``: 0 to 5, NaN without one.

        Args:
            pairs: Query and document.

        Raises:
            EndpointError: If the endpoint cannot be used. What was answered is kept.
            BudgetExceeded: If the budget is spent.
        """
        answers = self._client.run(self._requests(pairs), total=len(pairs), description="Grading")
        return np.array([self._grade(answer) for answer in answers], dtype=np.float64)

    def _requests(self, pairs: Sequence[Pair]) -> Iterator[Request]:
        for place, (query, document) in enumerate(pairs):
            messages = self._template.messages(query=query, document=first_words(document, self._words))
            yield Request(f"grade/{place}", messages, *self._sampling)

    def _grade(self, answer: Answer) -> float:
        if answer.text is None or answer.error not in (None, "length"):
            self.counts[f"no grade: {answer.error or 'bad_answer'}"] += 1
            return math.nan
        text, top = _said(answer.text)
        if top:
            self.counts["expected grades"] += 1
            return expected_grade(top)
        grade = written_grade(text)
        self.counts["no grade: unreadable" if grade is None else "written grades"] += 1
        return math.nan if grade is None else float(grade)


def _said(kept: str) -> tuple[str, dict[str, float]]:
    """Return an answer's text and log-probabilities; a plain answer to the same request has none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(kept)
        return str(said["text"]), dict(said["top"])
    return kept, {}


def first_words(text: str, words: int | None) -> str:
    """Return a text cut after so many words, its spaces as they were.

    Args:
        text: Any.
        words: None for the whole text.
    """
    if words is None:
        return text
    for count, match in enumerate(re.finditer(r"\S+", text), 1):
        if count == words:
            return text[: match.end()]
    return text
