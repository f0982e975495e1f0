"""Exact search of a large store on this machine: time a query, memory, equality with brute force, and fsspec.

    python benchmarks/store_search.py [--vectors 10000000] [--dimensions 256] [--dtype int8 float16]

Makes a store of random vectors by the store's own writer (once; it is kept where `--folder` names one), then
searches it in a process of its own, which reports its memory: anonymous pages, and mapped ones apart. A
sample of the answer is compared with brute force in float64. Last, the same blocks are read mapped and by
fsspec, in turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from reasonembed_mteb.distributed.processes import Processes
from reasonembed_mteb.distributed.search import SearchQueries, groups, search_corpus, search_group
from reasonembed_mteb.store.corpora import CorpusFolder, EncodedBlock, open_stored, read_block, write_corpus
from reasonembed_mteb.store.places import Place

# Of a block, as `reasonembed encode` writes them at most.
ROWS = 1 << 13


def make(folder: Path, vectors: int, dimensions: int, dtype: str) -> None:
    """Write a store of random vectors, unless it is there."""
    if list(folder.glob("*/manifest-made.json")):
        return
    model = CorpusFolder(Place(folder), {"name": "random", "count": vectors}, dtype)
    model.prepare()
    files = []
    for number, start in enumerate(range(0, vectors, ROWS)):
        count = min(ROWS, vectors - start)
        generator = torch.Generator().manual_seed(number)
        made = torch.nn.functional.normalize(torch.randn(count, dimensions, generator=generator))
        ids = [f"d{place}" for place in range(start, start + count)]
        keys = np.zeros((count, 2), dtype=np.uint64)
        block = EncodedBlock(ids, keys, np.zeros(count, dtype=np.int32), made)
        files.append(model.write(f"{number:032x}", block))
    write_corpus(model.place, "made", files, dimensions, {}, complete=True)


def memory() -> dict[str, float]:
    """Return the largest and the present memory of this process in MB, by kind."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    held = [line.replace(":", " ").split() for line in lines if line.startswith("Rss")]
    return {name: round(int(kilobytes) * 1.024e-3) for name, kilobytes, _ in held}


def ask(dimensions: int, count: int) -> SearchQueries:
    """Return random queries."""
    vectors = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(1 << 30))
    return SearchQueries(tuple(f"q{n}" for n in range(count)), vectors, {}, "cosine")


def search(folder: Path, dimensions: int, count: int, k: int, threads: int) -> dict[str, object]:
    """Search in this process; look at the memory all the while."""
    from threading import Event, Thread

    corpus, queries = open_stored(Place(folder)), ask(dimensions, count)
    most, ended = [0.0], Event()

    def watch() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], memory()["RssAnon"])

    watcher = Thread(target=watch)
    watcher.start()
    seconds, used = time.perf_counter(), time.process_time()
    found = search_corpus(corpus, queries, k, Processes(1, threads))
    seconds, used = time.perf_counter() - seconds, time.process_time() - used
    ended.set()
    watcher.join()
    return {
        "queries": count,
        "seconds": round(seconds, 2),
        "processor_seconds": round(used, 2),
        "seconds_a_query": round(seconds / count, 4),
        "anonymous_mb": most[0],
        "mapped_mb": memory()["RssFile"],
        "same_as_brute_force": same(folder, queries, found, k),
    }


def same(folder: Path, queries: SearchQueries, found: dict[str, dict[str, float]], k: int) -> bool:
    """Compare two queries with a ranking of every vector in float64."""
    corpus = open_stored(Place(folder))
    asked = torch.nn.functional.normalize(queries.vectors[:2].double())
    best: list[list[tuple[float, str]]] = [[], []]
    for one in corpus.blocks:
        data = read_block(corpus.folder, one)
        for start in range(0, one.rows, 8192):
            stop = min(start + 8192, one.rows)
            scores = asked @ torch.nn.functional.normalize(data.full(start, stop).double()).T
            for row, held in enumerate(best[: len(asked)]):
                top = torch.topk(scores[row], min(k, stop - start))
                names = [data.ids[start + column].as_py() for column in top.indices.tolist()]
                held += zip(top.values.tolist(), names, strict=True)
                held.sort(reverse=True)
                del held[k:]
    for row, held in enumerate(best[: len(asked)]):
        ours = found[queries.ids[row]]
        if list(ours) != [name for _, name in held]:
            # float32 may order what differs by less than it tells apart.
            wrong = [(a, b) for a, (_, b) in zip(ours, held, strict=True) if a != b]
            exact = {name: score for score, name in held}
            if any(abs(exact.get(a, 9) - exact.get(b, -9)) > 1e-6 for a, b in wrong):
                return False
    return True


def reading(folder: Path, dimensions: int, rounds: int, threads: int) -> dict[str, float]:
    """Compare a search of mapped blocks with one of blocks read by fsspec, in turn."""
    corpus, queries = open_stored(Place(folder)), ask(dimensions, 1)
    part = groups(corpus)[:2]
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(rounds):
        for mapped in (True, False):
            start, used = time.perf_counter(), time.process_time()
            for group in part:
                search_group(queries, 10, threads, mapped, group)
            times[mapped].append((time.perf_counter() - start, time.process_time() - used))
    wall, cpu = ({mapped: min(one[i] for one in held) for mapped, held in times.items()} for i in (0, 1))
    return {
        "mapped_seconds": round(wall[True], 3),
        "fsspec_seconds": round(wall[False], 3),
        "fsspec_to_mapped": round(wall[False] / wall[True], 2),
        "fsspec_to_mapped_processor": round(cpu[False] / cpu[True], 2),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=10_000_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--dtype", nargs="+", default=["int8", "float16"])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(
            json.dumps(
                search(Path(given.only), given.dimensions, given.queries[0], given.top_k, given.threads)
            )
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        for dtype in given.dtype:
            folder = (given.folder or Path(temporary)) / f"{dtype}-{given.vectors}-{given.dimensions}"
            make(folder, given.vectors, given.dimensions, dtype)
            for count in given.queries:
                arguments = ["--only", str(folder), "--queries", str(count), "--top-k", str(given.top_k)]
                arguments += ["--dimensions", str(given.dimensions), "--threads", str(given.threads)]
                done = subprocess.run(
                    [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False
                )
                print(dtype, done.stdout.strip() or done.stderr)
            print(dtype, json.dumps(reading(folder, given.dimensions, given.rounds, given.threads)))


if __name__ == "__main__":
    main()
