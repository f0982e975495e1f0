"""Work in plain processes: Ctrl-C reaches all of them, and is nobody's traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.distributed.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable
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


def _double() -> Callable[[int], int]:
    return lambda number: 2 * number


def _three(start: int) -> range:
    return range(start, start + 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_worked_on_once(workers: int) -> None:
    found = Processes(workers, 1).work([0, 10], _three, _double)
    assert sorted(found) == [0, 2, 4, 20, 22, 24]


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
