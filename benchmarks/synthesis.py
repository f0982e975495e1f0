"""The LLM client against a server with a fixed latency: requests per second, processor time, memory.

The server is `tests/stub_server.py` in a process of its own and answers after the latency. The client runs in
this process, twice: the second time every answer is on disk. The ideal is what the latency alone allows,
concurrency / latency; it needs about one processor core for the client and a quarter for the server.

    python benchmarks/synthesis.py                                      # 10,000 requests, 64 at a time, 50 ms
    python benchmarks/synthesis.py --requests 100000 --latency 0        # memory
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.llm.client import Endpoint, LLMClient, Request

if TYPE_CHECKING:
    from collections.abc import Iterator


def peak_kib() -> int:
    """Return the most memory that this process has had; getrusage's is inherited from its parent."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


SERVER = Path(__file__).parents[1] / "tests" / "stub_server.py"


@contextmanager
def server(latency: float) -> Iterator[str]:
    """Start the server and yield its address."""
    command = [sys.executable, str(SERVER), "--delay", str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def requests(count: int, size: int) -> Iterator[Request]:
    """Yield requests with a document of so many characters, each another."""
    text = "reason " * (size // 7 + 1)
    for number in range(count):
        document = f"{number} {text}"[:size]
        yield Request(str(number), ({"role": "user", "content": document},), 1.0, 0.6, 512, 42)


def timed(client: LLMClient, options: argparse.Namespace) -> dict[str, float]:
    """Run all requests once."""
    wall, processor = time.perf_counter(), time.process_time()
    asked = requests(options.requests, options.size)
    answered = sum(a.error is None for a in client.run(asked, description="Benchmark"))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    assert answered == options.requests
    return {
        "seconds": wall,
        "per_second": answered / wall,
        "cpu_ms_per_request": 1e3 * processor / answered,
        "peak_mib": peak_kib() / 1024,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time a run and its repetition from disk."""
    with server(options.latency) as url, tempfile.TemporaryDirectory() as folder:
        endpoint = Endpoint(url, "stub", concurrency=options.concurrency)
        with LLMClient(endpoint, Path(folder), show_progress=False) as client:
            sent, from_disk = timed(client, options), timed(client, options)
            stored = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
    ideal = options.concurrency / options.latency if options.latency else None
    return {
        **sent,
        "ideal_per_second": ideal,
        "share_of_ideal": sent["per_second"] / ideal if ideal else None,
        "from_disk_per_second": from_disk["per_second"],
        "stored_mib": stored,
        "backend": "aiohttp" if importlib.util.find_spec("aiohttp") else "httpx",
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before the server answers")
    parser.add_argument("--size", type=int, default=2_000, help="characters of a prompt")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    figures = measure(options)
    if options.json:
        print(json.dumps({**vars(options), **figures}))
        return
    for name, value in figures.items():
        print(f"{name:22}", f"{value:,.3f}" if isinstance(value, float) else value)


if __name__ == "__main__":
    main()
