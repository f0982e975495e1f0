"""Sending requests at a bounded concurrency, with retries, in a thread with its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import missing_extra
from reasonembed_mteb.synthesis.answers import Outcome
from reasonembed_mteb.synthesis.endpoint import EndpointError
from reasonembed_mteb.synthesis.replies import Trouble, asked_wait, read_reply, refused_request, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from openai import APIStatusError, AsyncOpenAI
    from tenacity import RetryCallState

    from reasonembed_mteb.synthesis.answers import AnswerCache
    from reasonembed_mteb.synthesis.budget import Budget
    from reasonembed_mteb.synthesis.endpoint import Endpoint, Request

logger = logging.getLogger(__name__)

# httpx searches its whole pool on every request; small pools are a fifth faster at 64 connections.
_CONNECTIONS_PER_CLIENT = 8
# Seconds in which finished answers gather for one transaction.
_GATHERING = 0.01
# So many requests that fail by themselves, one after the other, are the endpoint's fault.
_FAILURES_IN_A_ROW = 16
# A request may go through its attempts so often while the endpoint is busy with the others.
_ROUNDS = 10
# Most seconds in which the requests on their way may end after an error.
_GRACE = 30.0
_CONNECT_TIMEOUT = 10.0


@dataclass(eq=False, slots=True)
class Slot:
    """A request on its way.

    Attributes:
        request: The request.
        hash: Its hash.
        outcome: What it came to, once that is on disk.
    """

    request: Request
    hash: bytes
    outcome: Outcome | None = None


@dataclass
class Sent:
    """What was sent and used; the counts of `Usage`."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0


class Sender:
    """Sends what is submitted and stores what comes back, until it is closed or fails.

    `wait` wakes when a slot has its outcome, or when the sender has ended by `failure`.
    """

    def __init__(
        self, endpoint: Endpoint, cache: AnswerCache, budget: Budget | None, sent: Sent, *, known: Callable[[], bool]
    ) -> None:
        """Make the clients and start the thread.

        Args:
            endpoint: Whom to ask.
            cache: Where answers go.
            budget: What may be spent.
            sent: Counts to add to.
            known: Whether an answer of this endpoint has been found on disk.

        Raises:
            MissingExtraError: If openai or tenacity is not installed.
            EndpointError: If the key cannot be one.
        """
        self._endpoint, self._cache, self._budget, self._sent, self._known = endpoint, cache, budget, sent, known
        self._key = endpoint.key()
        self._clients = self._make_clients()
        self.failure: BaseException | None = None
        self._ended = False
        self._news = threading.Condition()
        # Only the loop's thread touches what follows.
        self._queue: asyncio.Queue[Slot] = asyncio.Queue()
        self._done: list[tuple[Slot, Outcome]] = []
        self._doubtful: list[tuple[Slot, Trouble]] = []
        self._open = self._on_their_way = 0
        self._last_answer = float("-inf")
        self._flushing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._disk = ThreadPoolExecutor(1, "answers")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="llm-client", daemon=True)
        self._thread.start()

    def _make_clients(self) -> list[AsyncOpenAI]:
        try:
            import tenacity  # noqa: F401
            from openai import AsyncOpenAI, Timeout
        except ImportError as error:
            raise missing_extra(error.name or "openai", "synthesis") from error
        timeout = Timeout(self._endpoint.timeout, connect=min(self._endpoint.timeout, _CONNECT_TIMEOUT))
        return [
            # A local server wants no key, the library wants one.
            AsyncOpenAI(
                base_url=self._endpoint.base_url, api_key=self._key or "none", max_retries=0, timeout=timeout
            )
            for _ in range(-(-self._endpoint.concurrency // _CONNECTIONS_PER_CLIENT))
        ]

    # What the caller's thread does.

    def submit(self, slots: list[Slot]) -> None:
        """Send these, as soon as there is room."""
        if slots:
            self._loop.call_soon_threadsafe(self._accept, slots)

    def wait(self, slot: Slot) -> Outcome:
        """Wait for a slot's outcome.

        Raises:
            BaseException: What ended the sender, if it ended before the outcome was there.
        """
        with self._news:
            self._news.wait_for(lambda: slot.outcome is not None or self._ended)
        if slot.outcome is None:
            assert self.failure is not None
            raise self.failure
        return slot.outcome

    def close(self) -> None:
        """Store what has come back, break off the rest, end the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(0.0), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._disk.shutdown()

    # What the loop's thread does.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        for number in range(self._endpoint.concurrency):
            client = self._clients[number % len(self._clients)]
            self._workers.append(self._loop.create_task(self._work(client)))
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _accept(self, slots: list[Slot]) -> None:
        self._open += len(slots)
        for slot in slots:
            self._queue.put_nowait(slot)

    async def _work(self, client: AsyncOpenAI) -> None:
        """Answer one slot after the other."""
        while self.failure is None:
            slot = await self._queue.get()
            try:
                outcome = await self._answer(client, slot.request)
            except Trouble as trouble:
                self._doubt(slot, trouble)
            except Exception as error:
                self._fail(error)
            else:
                self._finish(slot, outcome)

    async def _answer(self, client: AsyncOpenAI, request: Request) -> Outcome:
        """Send a request until it is answered or its attempts are used up.

        Raises:
            Trouble: What the last attempt met.
            EndpointError: If the endpoint cannot be used.
            BudgetExceeded: If nothing more may be sent.
        """
        body = self._endpoint.body(request)
        if self._budget is not None:
            self._budget.reserve()
        outcome = None
        try:
            outcome = await self._retrying(lambda: self._attempt(client, body))
        finally:
            self._book(outcome)
        return outcome

    def _book(self, outcome: Outcome | None) -> None:
        """Count what a request used; None where it was not answered."""
        if outcome is None:
            if self._budget is not None:
                self._budget.settle()
            return
        used = outcome.prompt_tokens, outcome.completion_tokens
        self._sent.prompt_tokens += used[0]
        self._sent.completion_tokens += used[1]
        if self._budget is not None:
            if not any(used) and outcome.error in (None, "length"):
                logger.warning("The endpoint counts no tokens: the budget cannot see what is spent.")
            self._budget.settle(sum(used), self._endpoint.cost(*used))

    async def _retrying(self, attempt: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        """Attempt until it works, with the waits that the endpoint asks for or longer and longer ones."""
        try:
            return await attempt()
        except Trouble as trouble:
            if not trouble.passing or self._endpoint.max_attempts == 1:
                raise self._last_word(trouble) from None
            first = trouble
        return await self._again(first, attempt)

    async def _again(self, first: Trouble, attempt: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        """Go on after a failed attempt.

        The first attempt stands outside, since tenacity's machinery costs a tenth of a request's time.
        """
        from tenacity import AsyncRetrying, retry_if_exception

        started = time.monotonic()
        before: Trouble | None = first

        async def once() -> Outcome:
            nonlocal before
            if before is not None:
                trouble, before = before, None
                raise trouble
            self._sent.retries += 1
            return await attempt()

        def stop(state: RetryCallState) -> bool:
            nonlocal started
            used_up = state.attempt_number % self._endpoint.max_attempts == 0
            if not used_up or self.failure is not None:
                return self.failure is not None
            rounds = state.attempt_number // self._endpoint.max_attempts
            if not _trouble(state).down or self._last_answer < started or rounds >= _ROUNDS:
                return True
            # The others are answered: the endpoint is busy, not gone.
            started = time.monotonic()
            return False

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, Trouble) and error.passing),
            stop=stop,
            wait=self._pause,
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            return await retrying(once)
        except Trouble as trouble:
            raise self._last_word(trouble) from None

    def _pause(self, state: RetryCallState) -> float:
        """Return the seconds until the next attempt."""
        from tenacity import wait_exponential_jitter

        asked = _trouble(state).wait
        if asked is not None:
            return asked
        backoff = self._endpoint.backoff
        return wait_exponential_jitter(initial=backoff, max=self._endpoint.longest_wait, jitter=backoff / 2)(state)

    def _last_word(self, trouble: Trouble) -> Exception:
        """Return what a request's last trouble is to its caller."""
        if not trouble.down:
            return trouble
        return EndpointError(self._told(f"{trouble}, on {self._endpoint.max_attempts} attempts"))

    async def _attempt(self, client: AsyncOpenAI, body: dict[str, Any]) -> Outcome:
        """Send a request once.

        Raises:
            Trouble: If it was not answered.
            EndpointError: If no request would be.
        """
        from openai import APIConnectionError, APIStatusError

        self._on_their_way += 1
        try:
            # Bytes, for the library's own parsing into models takes as long again.
            return read_reply(await client.post("/chat/completions", cast_to=bytes, body=body))
        except APIStatusError as error:
            return self._status(error)
        except APIConnectionError as error:
            raise _broken(error, self._endpoint.timeout) from error
        except UnicodeEncodeError as error:
            msg = f"the request holds what is no text: {error}"
            raise Trouble(msg, "rejected", passing=False) from error
        finally:
            self._on_their_way -= 1

    def _status(self, error: APIStatusError) -> Outcome:
        """Read a reply that is no success; see `_attempt`."""
        status, message = error.status_code, self._without_key(shown(error.message))
        code = f"{error.code or ''} {error.type or ''}"
        if outcome := refused_request(status, message, code):
            return outcome
        if status in (401, 403):
            raise EndpointError(self._told(f"refuses the key ({status}): {self._advice()}"))
        if status in (404, 405) or "insufficient_quota" in code:
            raise EndpointError(self._told(f"cannot serve the model {self._endpoint.model!r}: {message}"))
        if status in (408, 409, 425, 429, 502, 503, 504, 529):
            wait = asked_wait(error.response.headers)
            if wait is not None and wait > self._endpoint.longest_wait:
                msg = f"asks to wait {wait:,.0f} s, longest_wait is {self._endpoint.longest_wait:,.0f} s: {message}"
                raise EndpointError(self._told(msg)) from error
            raise Trouble(f"is not ready ({status}): {message}", "server_error", down=True, wait=wait) from error
        if status >= 500:
            raise Trouble(f"fails ({status}): {message}", "server_error") from error
        raise Trouble(f"rejects the request ({status}): {message}", "rejected", passing=False) from error

    def _advice(self) -> str:
        name = self._endpoint.api_key_env
        return f"set {name} to a key of this endpoint" if self._key else f"{name} is not set"

    def _without_key(self, message: str) -> str:
        return message.replace(self._key, "***") if self._key else message

    def _told(self, what: str) -> str:
        return f"{self._endpoint.shown_url} {what}. What was answered is kept: run again to go on"

    def _finish(self, slot: Slot, outcome: Outcome) -> None:
        """Take an outcome, and with it those that had to wait for a sign of life."""
        self._last_answer = time.monotonic()
        self._keep(slot, outcome)
        self._settle()

    def _doubt(self, slot: Slot, trouble: Trouble) -> None:
        """Take a request that failed by itself: final only if the endpoint still answers others."""
        self._doubtful.append((slot, trouble))
        if len(self._doubtful) >= _FAILURES_IN_A_ROW:
            count = len(self._doubtful)
            self._fail(EndpointError(self._told(f"{trouble}, and so {count} requests in a row")))
        elif self._open == len(self._doubtful):
            if self._last_answer > float("-inf") or self._known():
                self._settle()
            else:
                self._fail(EndpointError(self._told(str(trouble))))

    def _settle(self) -> None:
        for slot, trouble in self._doubtful:
            logger.warning("Request %s: %s: %s", slot.request.key, trouble.error, trouble)
            self._keep(slot, Outcome(None, trouble.error))
        self._doubtful.clear()

    def _keep(self, slot: Slot, outcome: Outcome) -> None:
        self._open -= 1
        self._sent.requests += 1
        self._done.append((slot, outcome))
        if self._flushing is None:
            self._flushing = self._loop.create_task(self._flush())

    async def _flush(self) -> None:
        """Store what is done, then hand it out."""
        await asyncio.sleep(_GATHERING)
        done, self._done = self._done, []
        stored = [(slot.hash, outcome) for slot, outcome in done]
        try:
            await self._loop.run_in_executor(self._disk, self._cache.add, stored)
        except Exception as error:
            self._fail(error)
            return
        finally:
            self._flushing = None
        with self._news:
            for slot, outcome in done:
                slot.outcome = outcome
            self._news.notify_all()
        if self._done and self._flushing is None:
            self._flushing = self._loop.create_task(self._flush())

    def _fail(self, error: BaseException) -> None:
        """Send nothing more; end once what is on its way has come back."""
        if self.failure is None:
            self.failure = error
            # The name keeps the task from being collected.
            self._ending = self._loop.create_task(self._end(min(_GRACE, self._endpoint.timeout)))

    async def _end(self, grace: float) -> None:
        """Wait for what is on its way, store it and release everything."""
        if self._ended:
            return
        until = time.monotonic() + grace
        while self._on_their_way and time.monotonic() < until:
            await asyncio.sleep(_GATHERING)
        await _cancel(self._workers)
        while self._flushing is not None:
            await asyncio.wait([self._flushing])
        for client in self._clients:
            await client.close()
        with self._news:
            self._ended = True
            self._news.notify_all()


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _trouble(state: RetryCallState) -> Trouble:
    """Return what the attempt that has just ended met."""
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Trouble)
    return error


def _broken(error: Exception, timeout: float) -> Trouble:
    """Read an attempt that got no reply."""
    from openai import APITimeoutError

    # By name: the library's HTTP package goes by more than one.
    cause = type(error.__cause__).__name__
    reason = shown(str(error.__cause__ or error)) or cause
    if cause in ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"):
        return Trouble(f"cannot be reached ({reason})", "server_error", down=True)
    if isinstance(error, APITimeoutError):
        return Trouble(f"does not answer within {timeout:g} s", "timeout")
    return Trouble(f"breaks off its answers ({reason})", "bad_answer")
