"""What a start costs: the start-up hook, the import and the command, beside mteb's own.

    python benchmarks/startup.py [--repeats 20]
    git archive COMMIT | tar x -C FOLDER; python benchmarks/startup.py --beside FOLDER --repeats 11

Each figure is the least of several fresh processes, in milliseconds, since a busy machine only adds to it.
The hook is what every start of Python in the environment pays; it is taken inside the process. With
``--beside`` two states of this package take turns, and medians of processor time and wall time are shown.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# `-S` leaves out what Python's own start has loaded by then: without it, that would count as the hook's.
HOOK = """
import site, time
started = time.perf_counter()
import reasonembed_mteb._startup
reasonembed_mteb._startup.install()
print(time.perf_counter() - started)
"""


def wall(command: list[str], repeats: int) -> float:
    """Return the least wall time of a command in milliseconds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)


def hook(repeats: int) -> float:
    """Return the least time of the start-up hook in milliseconds; ``-S`` keeps it from having run before."""
    roots = [path for path in sys.path if path] + [str(ROOT)]
    code = f"import sys; sys.path[:] = {roots!r}\n{HOOK}"
    command = [sys.executable, "-S", "-c", code]
    found = [subprocess.run(command, capture_output=True, check=True, text=True) for _ in range(repeats)]
    return 1000 * min(float(one.stdout) for one in found)


def timed(command: list[str], checkout: Path) -> tuple[float, float]:
    """Return what a command takes with one state of the package: processor seconds, and by the clock."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, capture_output=True, check=True, env=environment, cwd=checkout)
    after, wall_time = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_time


def beside(other: Path, repeats: int) -> None:
    """Print what mteb's import and its list of benchmarks take, with this state and another."""
    commands = {
        "import mteb": [sys.executable, "-c", "import mteb"],
        "mteb available-benchmarks": [str(Path(sys.executable).parent / "mteb"), "available-benchmarks"],
    }
    print(f"{'':<28}{'':<11}{'other s':>9}{'this s':>9}{'more s':>9}")
    for name, command in commands.items():
        found: dict[Path, list[tuple[float, float]]] = {other: [], ROOT: []}
        for _ in range(repeats):
            for checkout, many in found.items():
                many.append(timed(command, checkout))
        for place, clock in enumerate(("processor", "wall")):
            theirs, ours = (statistics.median(one[place] for one in many) for many in found.values())
            print(f"{name:<28}{clock:<11}{theirs:>9.2f}{ours:>9.2f}{ours - theirs:>9.2f}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--beside", type=Path, help="another checkout of this package")
    options = parser.parse_args()
    repeats = options.repeats
    if options.beside is not None:
        beside(options.beside.resolve(), repeats)
        return
    scripts = Path(sys.executable).parent
    bare = wall([sys.executable, "-S", "-c", "pass"], repeats)
    figures = {
        "the start-up hook": hook(repeats),
        "import reasonembed_mteb": wall([sys.executable, "-c", "import reasonembed_mteb"], repeats) - bare,
        "reasonembed --help": wall([str(scripts / "reasonembed"), "--help"], repeats),
        "mteb --help": wall([str(scripts / "mteb"), "--help"], max(1, repeats // 5)),
    }
    for name, value in figures.items():
        print(f"{name:<26}{value:>10.1f} ms")


if __name__ == "__main__":
    main()
