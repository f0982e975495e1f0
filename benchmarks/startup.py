"""What a start costs: the start-up hook, the import and the command, beside mteb's own.

    python benchmarks/startup.py [--repeats 20]

Each figure is the least of several fresh processes, in milliseconds, since a busy machine only adds to it.
The hook is what every start of Python in the environment pays; it is taken inside the process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

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
    roots = [path for path in sys.path if path] + [str(Path(__file__).resolve().parents[1])]
    code = f"import sys; sys.path[:] = {roots!r}\n{HOOK}"
    command = [sys.executable, "-S", "-c", code]
    found = [subprocess.run(command, capture_output=True, check=True, text=True) for _ in range(repeats)]
    return 1000 * min(float(one.stdout) for one in found)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
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
