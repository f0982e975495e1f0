"""Work in plain processes: every item once, a worker's own error as it is, a killed worker in one line."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.distributed.processes import Processes
from reasonembed_mteb.errors import DataError, ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def numbers(source: int) -> Iterable[int]:
    return range(10 * source, 10 * source + 5)


def squares() -> Callable[[int], tuple[int, int]]:
    return lambda number: (number * number, os.getpid())


def refusing() -> Callable[[int], int]:
    def refuse(number: int) -> int:
        if number == 12:
            msg = f"not {number}"
            raise DataError(msg)
        return number

    return refuse


def dying() -> Callable[[int], int]:
    def die(number: int) -> int:
        if number == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return die


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_worked_on_once(workers: int) -> None:
    found = list(Processes(workers, 1).work([0, 1, 2], numbers, squares))
    assert sorted(square for square, _ in found) == [n * n for source in range(3) for n in numbers(source)]
    # One worker is this process, so that nothing has to be started.
    assert (os.getpid() in {process for _, process in found}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_workers_own_error_reaches_the_caller(workers: int) -> None:
    with pytest.raises(DataError, match=r"^not 12$"):
        list(Processes(workers, 1).work([0, 1, 2], numbers, refusing))


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(
        ReasonEmbedError, match=r"a worker process was killed.*goes on where this one stopped"
    ):
        list(Processes(2, 1).work([0, 1, 2], numbers, dying))
