"""Work in plain processes on one machine; Ray is not imported."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain
from multiprocessing import active_children, get_context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

Source = TypeVar("Source")
Item = TypeVar("Item")
Result = TypeVar("Result")

# Items that wait for each worker, so that none waits for its next.
_AHEAD = 2
# Seconds within which Ctrl-C is heard.
_HEARS_WITHIN = 0.5


class Machines(Protocol):
    """Where work is done; what comes out does not depend on it, but for the order."""

    workers: int
    threads: int

    def work(
        self,
        sources: Sequence[Source],
        produce: Callable[[Source], Iterable[Item]],
        make: Callable[[], Callable[[Item], Result]],
    ) -> Iterator[Result]:
        """Apply a function to the items of all sources.

        Args:
            sources: Each is read by one machine.
            produce: Reads a source's items.
            make: Called once on each worker; returns the function.

        Yields:
            One result an item, in no particular order.
        """
        ...

    def read(self, sources: Sequence[Source], function: Callable[[Source], Result]) -> Iterator[Result]:
        """Apply a function that reads to each source.

        Args:
            sources: Each is read by one machine.
            function: Reads one; it takes hardly any processor time.

        Yields:
            One result a source, in no particular order.
        """
        ...

    def compute(self, sources: Sequence[Source], function: Callable[[Source], Result]) -> Iterator[Result]:
        """Apply a function that computes to each source.

        Args:
            sources: Each is computed by one machine, with as many threads as a worker has.
            function: Computes one.

        Yields:
            One result a source, in no particular order.
        """
        ...

    def __enter__(self) -> Machines:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; nothing is left running."""
        ...


class Processes:
    """Workers that are processes of this machine, or this process where there is one.

    Args:
        workers: How many.
        threads: Of each.
    """

    def __init__(self, workers: int, threads: int) -> None:
        """Start nothing yet."""
        self.workers, self.threads = workers, threads

    def __enter__(self) -> Processes:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def work(
        self,
        sources: Sequence[Source],
        produce: Callable[[Source], Iterable[Item]],
        make: Callable[[], Callable[[Item], Result]],
    ) -> Iterator[Result]:
        """See `Machines.work`; sources are read by this process.

        Raises:
            ReasonEmbedError: If a worker was killed.
        """
        yield from self._apply(chain.from_iterable(map(produce, sources)), make)

    def read(self, sources: Sequence[Source], function: Callable[[Source], Result]) -> Iterator[Result]:
        """See `Machines.read`.

        Raises:
            ReasonEmbedError: If a worker was killed.
        """
        if len(sources) < self.workers:
            # A process takes longer to start than a slice to read.
            yield from map(function, sources)
            return
        yield from self._apply(iter(sources), partial(_given, function))

    def compute(self, sources: Sequence[Source], function: Callable[[Source], Result]) -> Iterator[Result]:
        """See `Machines.compute`.

        Raises:
            ReasonEmbedError: If a worker was killed.
        """
        yield from self.read(sources, function)

    def _apply(self, items: Iterator[Item], make: Callable[[], Callable[[Item], Result]]) -> Iterator[Result]:
        if self.workers == 1:
            function = make()
            for item in items:
                yield function(item)
            return
        others = set(active_children())
        # Forked, a worker would share locks of threads that it does not have.
        with ProcessPoolExecutor(self.workers, get_context("spawn"), _start, (make,)) as pool:
            try:
                yield from _results(pool, items, self.workers * _AHEAD)
            except BrokenProcessPool as error:
                msg = (
                    "a worker process was killed, for want of memory perhaps: give fewer --workers, and run "
                    "the same command again, which goes on where this one stopped"
                )
                raise ReasonEmbedError(msg) from error
            except KeyboardInterrupt:
                # They are deaf to it, and would first finish what they are at.
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in set(active_children()) - others:
                    worker.terminate()
                raise
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C back; a process that is started meanwhile is deaf to it for good.

    A terminal interrupts all processes, and a worker that is still importing would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        # Windows has no masks.
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _results(pool: ProcessPoolExecutor, items: Iterator[Any], ahead: int) -> Iterator[Any]:
    waiting: set[Future[Any]] = set()
    done: deque[Future[Any]] = deque()
    for item in items:
        with _without_interrupts():  # a worker starts where none is idle
            waiting.add(pool.submit(_call, item))
        if len(waiting) < ahead:
            continue
        finished, waiting = _first(waiting)
        done.extend(finished)
        while done:
            yield done.popleft().result()
    while waiting:
        finished, waiting = _first(waiting)
        for one in finished:
            yield one.result()


def _first(waiting: set[Future[Any]]) -> tuple[set[Future[Any]], set[Future[Any]]]:
    """Return what is done and what is not, as soon as one is done."""
    while True:
        # A signal that another thread of this process took does not end a wait without an end.
        finished, left = wait(waiting, _HEARS_WITHIN, FIRST_COMPLETED)
        if finished:
            return finished, left


def _given(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    return function


# Of a worker: how its function is made, the function once it is, and whether it was told to end.
_made: dict[str, Any] = {}


def _start(make: Callable[[], Any]) -> None:
    # One process shows how far all are; what libraries want of their callers is said there.
    os.environ["TQDM_DISABLE"] = "1"
    warnings.filterwarnings("ignore", category=FutureWarning)
    _made["make"] = make
    # Ended by the signal alone, a worker leaves its semaphores behind.
    signal.signal(signal.SIGTERM, _leave)


def _leave(*_: object) -> None:
    # The pool catches this where an item is worked on; those that wait already are then passed over.
    _made["leaving"] = True
    sys.exit(0)


def _call(item: Any) -> Any:  # noqa: ANN401 - the pool's
    if "leaving" in _made:
        sys.exit(0)
    # Made here and not before, so that its errors reach the caller.
    if "function" not in _made:
        _made["function"] = _made["make"]()
    return _made["function"](item)
