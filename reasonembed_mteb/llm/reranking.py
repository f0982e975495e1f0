"""A server's rerank API as a reranker: ``/rerank`` of Jina, Cohere and vLLM, vLLM's ``/score``, TEI's."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.endpoints.endpoint import Endpoint, Reply, unversioned_address, versioned_address
from reasonembed_mteb.endpoints.retries import AttemptError, Service, shown
from reasonembed_mteb.errors import unknown_name
from reasonembed_mteb.files import is_number
from reasonembed_mteb.llm.client import LLMClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from reasonembed_mteb.endpoints.endpoint import Answer
    from reasonembed_mteb.endpoints.limits import Budget, Usage
    from reasonembed_mteb.retrieval.reranker import Pair

logger = logging.getLogger(__name__)

# Documents a request: what TEI takes by default (--max-client-batch-size); the others take more.
DOCUMENTS = 32


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One query and some of its documents.

    Attributes:
        key: The caller's id of the item, unique in a step.
        query: Its text.
        documents: Their texts.
        n_sample: Nothing is sampled.
    """

    key: str
    query: str
    documents: tuple[str, ...]
    n_sample: int = 0


def _rerank_body(endpoint: Endpoint, request: RerankRequest) -> dict[str, Any]:
    body = {"model": endpoint.model, "query": request.query, "documents": list(request.documents)}
    # As many results as documents: some servers give the best few only.
    return _with_extra(endpoint, body | {"top_n": len(request.documents), "return_documents": False})


def _score_body(endpoint: Endpoint, request: RerankRequest) -> dict[str, Any]:
    body = {"model": endpoint.model, "text_1": request.query, "text_2": list(request.documents)}
    return _with_extra(endpoint, body)


def _tei_body(endpoint: Endpoint, request: RerankRequest) -> dict[str, Any]:
    # TEI serves one model, whose name it does not read; it is here for the hash by which answers are kept.
    body = {"model": endpoint.model, "query": request.query, "texts": list(request.documents)}
    return _with_extra(endpoint, body)


def _with_extra(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    filled = body | (endpoint.extra_body or {})
    return {name: value for name, value in filled.items() if value is not None}


def read_relevance(raw: bytes) -> Reply:
    """Read the body of a successful reply of any of the APIs.

    Args:
        raw: ``{"results": [{"index", "relevance_score"}]}``, ``{"data": [{"index", "score"}]}``, or TEI's
            bare list.

    Returns:
        A reply whose text is a JSON list of ``[index, score]``; a score that is no number is left out.

    Raises:
        AttemptError: If it holds no scores.
    """
    try:
        body = json.loads(raw)
        found = body if isinstance(body, list) else body.get("results", body.get("data"))
        scores = [[int(one["index"]), one.get("relevance_score", one.get("score"))] for one in found]
        usage = {} if isinstance(body, list) else body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or usage.get("total_tokens") or 0)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        msg = f"the answer holds no scores: {shown(raw.decode('utf-8', 'replace'))}"
        raise AttemptError(msg, "bad_answer") from error
    return Reply(json.dumps([one for one in scores if is_number(one[1])]), None, tokens)


_PROBE = RerankRequest("probe", "a query", ("a document",))
SERVICES = {
    "rerank": Service("/rerank", read_relevance, _rerank_body, _PROBE),
    "score": Service("/score", read_relevance, _score_body, _PROBE),
    "tei": Service("/rerank", read_relevance, _tei_body, _PROBE),
}


def rerank_endpoint(endpoint: Endpoint, api: str = "rerank") -> Endpoint:
    """Return an endpoint whose address is that of an API.

    Args:
        endpoint: Its address may be given with ``/v1`` or without, or whole (``.../rerank``).
        api: ``rerank``, ``score`` or ``tei``.
    """
    shaped = unversioned_address if api == "tei" else versioned_address
    return replace(endpoint, base_url=shaped(endpoint.base_url, "rerank", "score"))


class EndpointReranker:
    """Scores pairs by a server; see `reasonembed_mteb.retrieval.reranker`.

    Answers are kept, and none is paid for twice. A request that the server refuses, as for one document that
    is too long, is taken apart, so that it costs that document's score alone.

    Example:
        >>> from pathlib import Path
        >>> from reasonembed_mteb.endpoints.endpoint import Endpoint
        >>> from reasonembed_mteb.llm.reranking import EndpointReranker
        >>> endpoint = Endpoint("http://localhost:8000/v1", "BAAI/bge-reranker-v2-m3")
        >>> with EndpointReranker(endpoint, Path("work/answers")) as reranker:  # doctest: +SKIP
        ...     reranker.score([("why is the sky blue?", "Short waves are scattered.")])
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache_folder: Path,
        *,
        api: str = "rerank",
        instruction: str | None = None,
        documents: int = DOCUMENTS,
        budget: Budget | None = None,
        retry_errors: bool = False,
    ) -> None:
        """Open the answers on disk; the endpoint is not contacted yet.

        Args:
            endpoint: Whom to ask. What cuts long texts goes into its ``extra_body``: ``{"truncate": True}``
                for TEI, ``{"truncate_prompt_tokens": 8192}`` for vLLM.
            cache_folder: Where answers are kept.
            api: ``rerank`` (Jina, Cohere, vLLM), ``score`` (vLLM) or ``tei``.
            instruction: Put before each query as it stands.
            documents: Documents a request, at most.
            budget: What may be spent.
            retry_errors: Ask again for answers that are on disk as errors.

        Raises:
            UnknownNameError: If there is no such API.
        """
        if api not in SERVICES:
            raise unknown_name("rerank API", api, SERVICES)
        self._endpoint = rerank_endpoint(endpoint, api)
        self._api, self._instruction, self._documents = api, instruction or "", documents
        self._client = LLMClient(
            self._endpoint,
            cache_folder,
            budget,
            service=SERVICES[api],
            retry_errors=retry_errors,
            show_progress=False,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the scores; not the address, since a model may move to another server."""
        return {
            "kind": "endpoint",
            "name": self._endpoint.model,
            "api": self._api,
            "instruction": self._instruction,
            "extra_body": self._endpoint.extra_body,
        }

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        return self._client.usage

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the server's score of each pair, ``(N,)``; NaN where it gives none.

        Args:
            pairs: Query and document.

        Raises:
            EndpointError: If the endpoint cannot be used. What was answered is kept.
            BudgetExceeded: If the budget is spent.
        """
        scores = np.full(len(pairs), np.nan)
        reasons: Counter[str] = Counter()
        alone = self._ask(pairs, list(_groups(pairs, self._documents)), scores)
        # A group that failed as a whole may hold one document that no server takes.
        left = [range(place, place + 1) for group, _ in alone for place in group if np.isnan(scores[place])]
        for group, why in self._ask(pairs, left, scores):
            reasons[why] += len(group)
        if reasons:
            logger.warning("%s gives no score for some pairs: %s", self._endpoint.model, dict(reasons))
        return scores

    def _ask(
        self, pairs: Sequence[Pair], groups: Sequence[range], scores: NDArray[np.float64]
    ) -> list[tuple[range, str]]:
        """Fill in the scores of groups; return the groups that have some missing, and why."""
        requests = (self._request(pairs, group) for group in groups)
        answers = self._client.run(requests, total=len(groups), description="Reranking")
        failed = []
        for group, answer in zip(groups, answers, strict=True):
            for index, score in _scores(answer):
                if 0 <= index < len(group):
                    scores[group[index]] = score
            if np.isnan(scores[group.start : group.stop]).any():
                failed.append((group, answer.error or "left out"))
        return failed

    def _request(self, pairs: Sequence[Pair], group: range) -> RerankRequest:
        query = self._instruction + pairs[group.start][0]
        return RerankRequest(f"pair {group.start}", query, tuple(pairs[place][1] for place in group))

    def close(self) -> None:
        """Close the answers on disk."""
        self._client.close()

    def __enter__(self) -> EndpointReranker:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the answers on disk."""
        self.close()


def _groups(pairs: Sequence[Pair], most: int) -> Iterator[range]:
    """Yield ranges of neighbouring pairs of one query."""
    start = 0
    for place in range(1, len(pairs) + 1):
        full = place - start == most
        if place == len(pairs) or full or pairs[place][0] != pairs[start][0]:
            yield range(start, place)
            start = place


def _scores(answer: Answer) -> list[tuple[int, float]]:
    return [] if answer.text is None or answer.error else [tuple(one) for one in json.loads(answer.text)]
