"""The one LLM client: many requests to an OpenAI-compatible endpoint, each paid for once."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

from reasonembed_mteb.endpoints.endpoint import Answer, Endpoint, EndpointError, Request, request_hash
from reasonembed_mteb.endpoints.limits import Budget, BudgetExceeded, Counts, Usage
from reasonembed_mteb.endpoints.sending import Sender, Slot
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.llm.cache import AnswerCache, KeepsAnswers
from reasonembed_mteb.llm.replies import CHAT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from reasonembed_mteb.endpoints.endpoint import Ask, Reply
    from reasonembed_mteb.endpoints.retries import Service

__all__ = [
    "Answer",
    "Budget",
    "BudgetExceeded",
    "Endpoint",
    "EndpointError",
    "LLMClient",
    "Request",
    "Usage",
]

# Requests taken at a time: looked up in one query, sent by one wake-up of the loop.
_PART = 64
# Requests ahead of the oldest unanswered one, per concurrent request: a slow answer stops few others.
_AHEAD = 16


class LLMClient(KeepsAnswers):
    """Asks an endpoint and keeps every answer on disk.

    Example:
        >>> from pathlib import Path
        >>> from reasonembed_mteb.llm.client import Endpoint, LLMClient, Request
        >>> endpoint = Endpoint("http://localhost:8000/v1", "Qwen/Qwen2.5-72B-Instruct")
        >>> chat = ({"role": "user", "content": "Why is the sky blue?"},)
        >>> requests = [Request("1", chat, temperature=0.7, top_p=0.8, max_tokens=256, seed=0)]
        >>> with LLMClient(endpoint, Path("work/answers")) as client:
        ...     for answer in client.run(requests, total=len(requests), description="Generating"):
        ...         print(answer.key, answer.text)
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache_folder: Path,
        budget: Budget | None = None,
        *,
        service: Service = CHAT,
        retry_errors: bool = False,
        show_progress: bool | None = None,
    ) -> None:
        """Open the answers on disk; the endpoint is not contacted yet.

        Args:
            endpoint: Whom to ask.
            cache_folder: Where answers are kept. One folder may serve several clients and processes.
            budget: What may be spent; clients may share it.
            service: What the endpoint is asked for.
            retry_errors: Ask again for answers that are on disk as errors.
            show_progress: Whether a bar is shown; None shows it on a terminal.

        Raises:
            ReasonEmbedError: If the folder cannot be used, or a cost limit is set without prices.
        """
        if budget is not None and budget.max_cost is not None and endpoint.cost(0, 0) is None:
            msg = f"a cost budget needs the prices of {endpoint.model!r}: set price_in and price_out"
            raise ReasonEmbedError(msg)
        self.endpoint, self.budget, self._service = endpoint, budget, service
        self._cache = AnswerCache(cache_folder, retry_errors=retry_errors)
        self._bar_off = None if show_progress is None else not show_progress
        self._counts = Counts()
        self._flows: set[_Flow] = set()

    def close(self) -> None:
        """End runs that were left half-way, and close the answers on disk."""
        for flow in list(self._flows):
            flow.close()
        super().close()

    @property
    def usage(self) -> Usage:
        """What this client has used so far."""
        counts = self._counts
        return Usage(
            **asdict(counts), cost=self.endpoint.cost(counts.prompt_tokens, counts.completion_tokens)
        )

    def planned(self, requests: Sequence[Ask]) -> tuple[int, float | None]:
        """Say what requests would cost, without sending any.

        Args:
            requests: What would be asked.

        Returns:
            How many of them have an answer on disk, and the most that the others can cost; None without
            prices.
        """
        bodies = [self._service.body(self.endpoint, one) for one in requests]
        hashes = [request_hash(body, one.n_sample) for body, one in zip(bodies, requests, strict=True)]
        found = self._cache.find(list(dict.fromkeys(hashes)))
        # Equal requests are sent once.
        new = {key: body for key, body in zip(hashes, bodies, strict=True) if key not in found}
        priced = self.endpoint.cost(0, 0) is not None
        most = sum(map(self.endpoint.most_cost, new.values())) if priced else None
        return sum(key in found for key in hashes), most

    def run(
        self,
        requests: Iterable[Ask],
        *,
        total: int | None = None,
        description: str,
        ahead: int | None = None,
    ) -> Iterator[Answer]:
        """Answer requests in their order; a bounded number is held in memory at a time.

        An answer is on disk before it is handed out. Equal requests are sent once.

        Args:
            requests: What to ask; taken one part after another, in the caller's thread.
            total: How many there are, for the progress bar.
            description: What is being done, for the progress bar.
            ahead: Most requests that are taken before the oldest of them is handed out, for requests that
                are made of earlier answers; None for as many as keep the endpoint busy.

        Yields:
            The answers.

        Raises:
            EndpointError: If the endpoint cannot be used. What was answered is kept.
            BudgetExceeded: If the budget is spent. What was on its way is waited for and kept.
            ReasonEmbedError: If answers cannot be stored.
        """
        from tqdm.auto import tqdm

        flow = _Flow(requests, self.endpoint, self._service, self._cache, self.budget, self._counts, ahead)
        bar = tqdm(total=total, desc=description, unit="answer", disable=self._bar_off)
        # A caller that fails between two answers may never come back here.
        self._flows.add(flow)
        try:
            for answer in flow:
                bar.update()
                yield answer
        finally:
            bar.close()
            flow.close()
            self._flows.discard(flow)


class _Flow:
    """The requests of one run between being taken and being handed out."""

    def __init__(
        self,
        requests: Iterable[Ask],
        endpoint: Endpoint,
        service: Service,
        cache: AnswerCache,
        budget: Budget | None,
        counts: Counts,
        ahead: int | None,
    ) -> None:
        self._requests = iter(requests)
        self._endpoint, self._service = endpoint, service
        self._cache, self._budget, self._counts = cache, budget, counts
        self._window: deque[tuple[str, Slot, bool]] = deque()
        most = max(_AHEAD * endpoint.concurrency, 4 * _PART)
        self._most = most if ahead is None else min(most, max(ahead, 1))
        # Small beside what may be taken, so that the endpoint is kept busy.
        self._part = _PART if ahead is None else min(_PART, max(ahead // 8, 1))
        self._slots: dict[bytes, Slot] = {}
        self._sender: Sender | None = None
        self._more, self._known = True, False

    def __iter__(self) -> Iterator[Answer]:
        """Yield the answers in order."""
        while self._fill() or self._window:
            key, slot, cached = self._window.popleft()
            outcome = slot.outcome or self._wait(slot)
            if self._slots.get(slot.hash) is slot:
                del self._slots[slot.hash]
            used = outcome.prompt_tokens, outcome.completion_tokens
            if cached:
                self._counts.cached += 1
                self._counts.cached_prompt_tokens += used[0]
                self._counts.cached_completion_tokens += used[1]
                self._counts.uncounted += outcome.uncounted
            yield Answer(key, outcome.text, outcome.error, *used, cached)

    def _wait(self, slot: Slot) -> Reply:
        assert self._sender is not None
        return self._sender.wait(slot)

    def _fill(self) -> bool:
        """Take requests until the window is full; return whether there may be more."""
        while self._more and len(self._window) <= self._most - self._part:
            part = list(islice(self._requests, self._part))
            self._more = len(part) == self._part
            self._take(part)
        return self._more

    def _take(self, part: list[Ask]) -> None:
        """Look a part up, and send what is new."""
        bodies = (self._service.body(self._endpoint, request) for request in part)
        hashes = [request_hash(body, ask.n_sample) for body, ask in zip(bodies, part, strict=True)]
        found = self._cache.find([h for h in dict.fromkeys(hashes) if h not in self._slots])
        self._known = self._known or bool(found)
        new = []
        for request, key in zip(part, hashes, strict=True):
            slot = self._slots.get(key)
            cached = slot is not None or key in found
            if slot is None:
                slot = self._slots[key] = Slot(request, key, found.get(key))
                if slot.outcome is None:
                    new.append(slot)
            self._window.append((request.key, slot, cached))
        if new:
            self._started().submit(new)

    def _started(self) -> Sender:
        """Return the sender; without anything to send, neither openai nor a key is needed."""
        if self._sender is None:
            self._sender = Sender(
                self._endpoint,
                self._service,
                self._cache.add,
                self._budget,
                self._counts,
                known=lambda: self._known,
            )
        return self._sender

    def close(self) -> None:
        """End the sender; a second time there is none."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.close()
