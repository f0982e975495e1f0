"""Time `reasonembed score` on 12 runs, one a subset of BRIGHT: 1,384 queries, 1,000 documents each.

Labels and runs are drawn from a seed in BRIGHT's sizes; the command runs in a fresh process, its start and
imports on the clock.

    python benchmarks/score.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from reasonembed_mteb.retrieval.trec import write_run

# Queries, labels and documents by subset: BRIGHT's own.
SIZES = {
    "biology": (103, 372, 57_359),
    "earth_science": (116, 585, 121_249),
    "economics": (103, 800, 50_220),
    "psychology": (101, 692, 52_835),
    "robotics": (101, 520, 61_961),
    "stackoverflow": (117, 478, 107_081),
    "sustainable_living": (108, 576, 60_792),
    "leetcode": (142, 262, 413_932),
    "pony": (112, 2_219, 7_894),
    "aops": (111, 524, 188_002),
    "theoremqa_questions": (194, 439, 188_002),
    "theoremqa_theorems": (76, 151, 23_839),
}
EXCLUDED = {"leetcode": 236, "aops": 5_610, "theoremqa_questions": 3_126}


def write_case(folder: Path, subset: str, depth: int, suffix: str, draw: np.random.Generator) -> list[str]:
    """Write one subset's labels, exclusions and run; return the command's arguments for it."""
    queries, labels, documents = SIZES[subset]
    gold, run, out = [], {}, []
    for query in range(queries):
        found = draw.choice(documents, depth, replace=False)
        scores = draw.random(depth).astype(np.float32)
        run[str(query)] = {f"{subset}/document {d}.txt": float(s) for d, s in zip(found, scores, strict=True)}
        known = draw.choice(found, max(1, labels // queries), replace=False)
        gold += [f"{query} 0 {subset}/document {d}.txt 1\n" for d in known]
        barred = draw.choice(documents, EXCLUDED.get(subset, 0), replace=False)
        out += [f"{query} {subset}/document {d}.txt\n" for d in barred if d not in known]
    write_run(folder / f"{subset}.run{suffix}", run, "drawn")
    (folder / f"{subset}.qrels").write_text("".join(gold), encoding="utf-8")
    (folder / f"{subset}.out").write_text("".join(out), encoding="utf-8")
    return ["--qrels", str(folder / f"{subset}.qrels"), "--exclude", str(folder / f"{subset}.out")]


def main() -> None:
    """Write the runs, score them, print the time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--depth", type=int, default=1000, help="documents a query")
    parser.add_argument("--gz", action="store_true", help="gzipped runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = np.random.default_rng(options.seed)
    suffix = ".gz" if options.gz else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = [a for subset in SIZES for a in write_case(folder, subset, options.depth, suffix, draw)]
        runs = [str(folder / f"{subset}.run{suffix}") for subset in SIZES]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "reasonembed_mteb", "score", *runs, *labels], check=True)
        print(
            f"{len(runs)} runs, {sum(q for q, *_ in SIZES.values()):,} queries, {options.depth:,} documents"
        )
        print(f"each: {time.perf_counter() - start:.1f} s with start and imports")


if __name__ == "__main__":
    main()
