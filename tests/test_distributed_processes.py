"""Work in plain processes: every item once, a worker's error as it is, one that is killed, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.distributed.processes import Processes
from reasonembed_mteb.errors import DataError, ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

# Workers import the file that holds the function, so that it can be slow.
DRIVER = """
import sys, time
from pathlib import Path
from reasonembed_mteb.distributed.processes import Processes

time.sleep({imports} if __name__ == "__mp_main__" else 0)

def slow(seconds):
    Path("working").touch()
    time.sleep(seconds)
    return seconds

def make():
    return slow

def items(_):
    for _ in range(9):
        Path("begun").touch()
        yield 60.0

if __name__ == "__main__":
    try:
        list(Processes(2, 1).work([0], items, make))
    except KeyboardInterrupt:
        sys.exit(130)
"""


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


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_workers_own_error_reaches_the_caller(workers: int) -> None:
    with pytest.raises(DataError, match=r"^not 12$"):
        list(Processes(workers, 1).work([0, 1, 2], numbers, refusing))


@pytest.mark.slow
def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(
        ReasonEmbedError, match=r"a worker process was killed.*goes on where this one stopped"
    ):
        list(Processes(2, 1).work([0, 1, 2], numbers, dying))


@pytest.mark.slow
@pytest.mark.parametrize(("imports", "when"), [(0.0, "working"), (30.0, "begun")])
def test_an_interrupt_ends_all_processes_at_once_and_quietly(
    tmp_path: Path, imports: float, when: str
) -> None:
    """A terminal interrupts the whole group: workers that work, and workers that still import."""
    (tmp_path / "driver.py").write_text(DRIVER.format(imports=imports))
    driver = subprocess.Popen(
        [sys.executable, "driver.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until = time.monotonic() + 60
        while not (tmp_path / when).exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1)  # for the workers to be there
        os.killpg(driver.pid, signal.SIGINT)
        # Read to its end, which comes when the last process has gone.
        _, err = driver.communicate(timeout=20)
    finally:
        driver.kill()
    assert driver.returncode == 130
    assert err == ""
