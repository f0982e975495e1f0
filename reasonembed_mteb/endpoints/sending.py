"""Sending at a bounded concurrency and storing what comes back, in a thread with its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.endpoints.endpoint import EndpointError, Reply
from reasonembed_mteb.endpoints.limits import BudgetExceeded
from reasonembed_mteb.endpoints.retries import Asker, AttemptError

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai import AsyncOpenAI

    from reasonembed_mteb.endpoints.endpoint import Ask, Endpoint
    from reasonembed_mteb.endpoints.limits import Budget, Counts
    from reasonembed_mteb.endpoints.retries import Service

logger = logging.getLogger(__name__)

# Seconds in which finished answers gather for one transaction.
_GATHERING = 0.01
# So many requests that fail by themselves, one after the other, are the endpoint's fault.
_FAILURES_IN_A_ROW = 16
# Most seconds in which requests on their way may end after an error.
_GRACE = 30.0


@dataclass(eq=False, slots=True)
class Slot:
    """A request on its way.

    Attributes:
        request: The request.
        hash: Its hash.
        outcome: What it came to, once that is on disk.
    """

    request: Ask
    hash: bytes
    outcome: Reply | None = None


class Sender:
    """Sends what is submitted and stores what comes back, until it is closed or fails."""

    def __init__(
        self,
        endpoint: Endpoint,
        service: Service,
        store: Callable[[list[tuple[bytes, Reply]]], None],
        budget: Budget | None,
        counts: Counts,
        *,
        known: Callable[[], bool],
    ) -> None:
        """Make the clients and start the thread.

        Args:
            endpoint: Whom to ask.
            service: What it is asked for.
            store: Keeps replies by the hashes of their requests.
            budget: What may be spent.
            counts: What to add to.
            known: Whether an answer has been found on disk, so that the endpoint is known to work.

        Raises:
            MissingExtraError: If openai or tenacity is not installed.
            EndpointError: If the key cannot be one.
        """
        self._endpoint, self._store_all, self._budget = endpoint, store, budget
        self._counts, self._known, self._service = counts, known, service
        self._asker = Asker(endpoint, service, counts)
        self._failure: BaseException | None = None
        self._ended = False
        self._news = threading.Condition()
        # Only the loop's thread touches these.
        self._queue: asyncio.Queue[Slot] = asyncio.Queue()
        self._done: list[tuple[Slot, Reply]] = []
        self._doubtful: list[tuple[Slot, AttemptError]] = []
        self._probe: asyncio.Task[bool] | None = None
        self._open = 0
        self._workers: list[asyncio.Task[None]] = []
        self._storing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._end_by = 0.0
        self._disk = ThreadPoolExecutor(1, "answers")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="llm-client", daemon=True)
        self._thread.start()

    # What the caller's thread does.

    def submit(self, slots: list[Slot]) -> None:
        """Send these, as soon as there is room."""
        self._loop.call_soon_threadsafe(self._accept, slots)

    def wait(self, slot: Slot) -> Reply:
        """Wait for a slot's outcome.

        Raises:
            BaseException: What ended the sender, if it ended without that outcome.
        """
        with self._news:
            self._news.wait_for(lambda: slot.outcome is not None or self._ended)
        if slot.outcome is None:
            assert self._failure is not None
            raise self._failure
        return slot.outcome

    def close(self) -> None:
        """Store what has come back, break off the rest, end the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._disk.shutdown()

    # What the loop's thread does.

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        clients = self._asker.clients
        for number in range(self._endpoint.concurrency):
            self._workers.append(self._loop.create_task(self._work(clients[number % len(clients)])))
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _accept(self, slots: list[Slot]) -> None:
        self._open += len(slots)
        for slot in slots:
            self._queue.put_nowait(slot)

    async def _work(self, client: AsyncOpenAI) -> None:
        """Answer one slot after the other."""
        while self._failure is None:
            slot = await self._queue.get()
            try:
                outcome = await self._answer(client, slot.request)
            except AttemptError as error:
                await self._tell_doubt(client, slot, error)
            except Exception as error:
                self._fail(error)
            else:
                self._keep(slot, outcome)
                # Those that failed by themselves waited for such a sign of life.
                self._settle()

    async def _tell_doubt(self, client: AsyncOpenAI, slot: Slot, error: AttemptError) -> None:
        try:
            await self._doubt(client, slot, error)
        except Exception as worse:
            # The endpoint is down, or the budget is spent.
            self._fail(worse)

    async def _answer(self, client: AsyncOpenAI, request: Ask) -> Reply:
        """Send a request and book what it used; see `Asker.ask`.

        Raises:
            BudgetExceeded: If nothing more may be sent.
        """
        body = self._service.body(self._endpoint, request)
        most = await self._let_through(body)
        outcome = None
        try:
            outcome = await self._asker.ask(client, body)
        finally:
            self._book(outcome, most)
        return outcome

    async def _let_through(self, body: dict[str, Any]) -> float:
        """Wait until the budget lets a request through; return what it reserves for it."""
        if self._budget is None:
            return 0.0
        most = self._endpoint.most_cost(body) if self._budget.strict else 0.0
        while not self._budget.reserve(most):
            await asyncio.sleep(_GATHERING)
        return most

    def _book(self, outcome: Reply | None, most: float) -> None:
        """Count what a request used; None where it was not answered."""
        used = (outcome.prompt_tokens, outcome.completion_tokens) if outcome else (0, 0)
        self._counts.prompt_tokens += used[0]
        self._counts.completion_tokens += used[1]
        self._counts.uncounted += outcome is not None and outcome.uncounted
        if self._budget is None:
            return
        if outcome is None:
            self._budget.settle(most=most)
            return
        cost = self._endpoint.cost(*used)
        if outcome.uncounted and self._budget.strict:
            # Never passed: what is not known may have been all of it.
            cost = most
        elif outcome.uncounted:
            logger.warning("The endpoint counts no tokens: the budget cannot see what is spent.")
        self._budget.settle(sum(used), cost, most)

    async def _doubt(self, client: AsyncOpenAI, slot: Slot, error: AttemptError) -> None:
        """Take a request that failed by itself: final only if the endpoint answers others."""
        if self._failure is not None:
            return
        self._doubtful.append((slot, error))
        count = len(self._doubtful)
        if count < _FAILURES_IN_A_ROW and count < self._open:
            return
        # Requests that always fail gather at the end of a run, and are alone in the next one. Answers from
        # before do not tell them from an endpoint that has died since.
        answered = bool(self._counts.requests) or self._known()
        if answered and await self._lives(client):
            self._settle()
        else:
            self._give_up(f"{error}, and so {count} requests in a row" if count > 1 else str(error))

    async def _lives(self, client: AsyncOpenAI) -> bool:
        """Ask for something that no endpoint in order fails at."""
        if self._probe is None:
            self._probe = self._loop.create_task(self._ask_probe(client))
        try:
            # Several may wait for the same one.
            return await self._probe
        finally:
            self._probe = None

    async def _ask_probe(self, client: AsyncOpenAI) -> bool:
        try:
            await self._answer(client, self._service.probe)
        except AttemptError:
            return False
        return True

    def _give_up(self, why: str) -> None:
        if self._failure is None:
            self._fail(EndpointError(self._asker.told(why)))

    def _settle(self) -> None:
        """Make doubtful failures final."""
        for slot, error in self._doubtful:
            logger.warning("No answer for %r: the endpoint %s", slot.request.key, error)
            self._keep(slot, Reply(None, error.error))
        self._doubtful.clear()

    def _keep(self, slot: Slot, outcome: Reply) -> None:
        """Store an outcome with the next transaction."""
        self._open -= 1
        self._counts.requests += 1
        self._done.append((slot, outcome))
        if self._storing is None:
            self._storing = self._loop.create_task(self._store())

    async def _store(self) -> None:
        """Store what is done, then hand it out, until nothing is left."""
        try:
            while self._done:
                await asyncio.sleep(_GATHERING)
                done, self._done = self._done, []
                rows = [(slot.hash, outcome) for slot, outcome in done]
                await self._loop.run_in_executor(self._disk, self._store_all, rows)
                with self._news:
                    for slot, outcome in done:
                        slot.outcome = outcome
                    self._news.notify_all()
        except Exception as error:
            self._fail(error)
        finally:
            self._storing = None

    def _fail(self, error: BaseException) -> None:
        """Send nothing more; end once what is on its way has come back."""
        if self._failure is None:
            self._failure = error
            self._doubtful.clear()
            self._asker.stopping = True
            paid = isinstance(error, BudgetExceeded)
            self._start_ending(self._endpoint.timeout if paid else min(_GRACE, self._endpoint.timeout))

    def _start_ending(self, grace: float) -> asyncio.Task[None]:
        self._end_by = time.monotonic() + grace
        if self._ending is None:
            self._ending = self._loop.create_task(self._end())
        return self._ending

    async def _close(self) -> None:
        await self._start_ending(0.0)

    async def _end(self) -> None:
        """Wait for what is on its way, store it and release everything."""
        while self._asker.on_their_way and time.monotonic() < self._end_by:
            await asyncio.sleep(_GATHERING)
        for worker in self._workers:
            worker.cancel()
        for worker in self._workers:
            with contextlib.suppress(asyncio.CancelledError):
                await worker
        while self._storing is not None:
            await asyncio.wait([self._storing])
        for client in self._asker.clients:
            # All is stored by now; whoever waits must hear of the end all the same.
            with contextlib.suppress(Exception):
                await client.close()
        with self._news:
            self._ended = True
            self._news.notify_all()
