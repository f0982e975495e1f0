"""A report over 50 models and 28 tasks, or over a suite: time, memory, size of the page.

Results are drawn from a seed in MTEB's own layout, with the scores by query that `reasonembed run` keeps;
every command runs in a fresh process, imports included. Prints one line a command.

    python benchmarks/report.py --models 50 --hits 100
    python benchmarks/report.py --models 3 --suite "RIR(ReasonEmbed)"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Queries of BRIGHT's twelve subsets (arXiv 2407.12883, table 1) and of R2MED's eight.
QUERIES = {
    "biology": 103, "earth_science": 116, "economics": 103, "psychology": 101, "robotics": 101,
    "stackoverflow": 117, "sustainable_living": 108, "leetcode": 142, "pony": 112, "aops": 111,
    "theoremqa_questions": 194, "theoremqa_theorems": 76, "Biology": 103, "Bioinformatics": 77,
    "Medical-Sciences": 88, "MedXpertQA-Exam": 97, "MedQA-Diag": 118, "PMC-Treatment": 150,
    "PMC-Clinical": 114, "IIYi-Clinical": 129,
}  # fmt: skip
BENCHMARKS = ("BRIGHT(ReasonEmbed)", "BRIGHT-long(ReasonEmbed)", "R2MED(ReasonEmbed)")
CHECKPOINTS = (
    "hanhainebula/reason-embed-qwen3-8b-0928",
    "hanhainebula/reason-embed-qwen3-4b-0928",
    "hanhainebula/reason-embed-llama-3.1-8b-0928",
    "hanhainebula/reason-embed-basic-qwen3-8b-0928",
)
# Of one task; MIRB's largest has 25,116.
MOST_QUERIES = 500
# What must hold.
SECONDS, MEGABYTES, PAGE_BYTES = 15, 2_000, 5_000_000


def make_results(folder: Path, models: int, hits: int, suite: str | None = None, seed: int = 0) -> int:
    """Write results, records and scores by query of many models; return how many results.

    Args:
        folder: Output folder.
        models: How many; the first are named as published ones.
        hits: Documents kept a query.
        suite: Its tasks, in place of those of `BENCHMARKS`.
        seed: Of every score.
    """
    import numpy as np

    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.retrieval.rows import benchmark_rows

    register()
    draw = np.random.default_rng(seed)
    tasks = [row for name in ([suite] if suite else BENCHMARKS) for row in benchmark_rows(name)]
    names = [*CHECKPOINTS, *(f"synthetic/retriever-with-a-long-name-{i:02d}" for i in range(models))][:models]
    hardness = {row.name: 0.9 * draw.standard_normal(queries_of(row)) for row in tasks}
    level = {row.name: draw.normal(0.3, 0.8) for row in tasks}
    for place, name in enumerate(names):
        skill = 0.7 - 0.04 * place + 0.1 * draw.standard_normal()
        place_of = Path(name.replace("/", "__"), f"{place:040x}")
        size = int(draw.choice([384, 768, 1024, 2560, 4096]))
        meta = {"name": name, "revision": f"{place:040x}", "embed_dim": size, "experiment_kwargs": None}
        _write(folder / "results" / place_of / "model_meta.json", meta)
        for row in tasks:
            noise = draw.standard_normal(queries_of(row))
            logits = skill - level[row.name] + hardness[row.name] + noise - 0.7
            scores = np.round(1 / (1 + np.exp(-2 * logits)), 4)
            _write_task(folder, place_of, row, scores, size, hits, draw)
    return len(names) * len(tasks)


def queries_of(row: Any) -> int:  # noqa: ANN401 - TaskRow
    """Return how many queries are drawn for a task."""
    return QUERIES.get(row.subset) or min(row.queries or 100, MOST_QUERIES)


def _write_task(
    folder: Path,
    place: Path,
    row: Any,  # noqa: ANN401 - TaskRow
    scores: Any,  # noqa: ANN401 - array
    size: int,
    hits: int,
    draw: Any,  # noqa: ANN401 - Generator
) -> None:
    import mteb

    from reasonembed_mteb.evaluation.scores import write_scores

    task = mteb.get_task(row.name)
    metrics = [f"{name}_at_{k}" for name in ("ndcg", "recall", "map", "mrr") for k in (1, 10, 100, 1000)]
    metrics += [name for name in (row.main_score, *row.measures) if name not in metrics]
    score = round(float(scores.mean()), 5)
    entry = dict.fromkeys(metrics, score) | {"main_score": score, "languages": ["eng-Latn"]}
    content = {
        "dataset_revision": row.revision,
        "task_name": row.name,
        "mteb_version": "2.26.24",
        "scores": {
            split: [entry | {"hf_subset": subset} for subset in task.hf_subsets] for split in task.eval_splits
        },
        "evaluation_time": 12.5,
        "kg_co2_emissions": None,
    }
    file = folder / "results" / place / f"{row.name}.json"
    _write(file, content)
    tokens = int(draw.integers(10**6, 10**7))
    seconds = size * tokens / 1e9 * float(draw.uniform(0.5, 2))
    cost = {"seconds": seconds, "tokens": tokens, "truncated": 3, "dimensions": size, "device_name": "H200"}
    record = {"causes": {}, "cost": cost, "result": hashlib.sha256(file.read_bytes()).hexdigest()}
    _write(folder / "records" / place / f"{row.name}.json", record)
    queries = [
        {
            "split": task.eval_splits[0],
            "subset": task.hf_subsets[0],
            "query_id": str(query),
            "gold_ids": [f"document {query}"],
            "document_ids": [f"document {query + hit}" for hit in range(hits)],
            "scores": [1 - hit / hits for hit in range(hits)],
        }
        | dict.fromkeys(metrics, value)
        for query, value in enumerate(scores.tolist())
    ]
    write_scores(folder / "records" / place / f"{row.name}.parquet", {"main_score": row.main_score}, queries)


def _write(file: Path, content: Any) -> None:  # noqa: ANN401 - plain data
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def measure(*arguments: str) -> tuple[float, float, float]:
    """Run ``reasonembed`` in a fresh process; return seconds, CPU seconds and peak memory in MB."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "reasonembed_mteb", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"reasonembed {' '.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}")
    cpu = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - start, cpu, usage.ru_maxrss / 1000


def main() -> None:
    """Make results, report on them, print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--hits", type=int, default=100, help="documents kept a query")
    parser.add_argument("--suite", help="its tasks, not BRIGHT's and R2MED's")
    parser.add_argument("--folder", type=Path, help="keep the results here; those that are there are used")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "results").is_dir():
            print(f"{make_results(folder, options.models, options.hits, options.suite):,} results made")
        page = Path(temporary) / "report.html"
        commands = {
            "table": ("--format", "table"),
            "table, published, significance": ("--published", "--significance"),
            "page": ("--format", "html", "--output", str(page)),
            "page, significance": (
                "--format",
                "html",
                "--significance",
                "--overwrite",
                "--output",
                str(page),
            ),
        }
        for name, arguments in commands.items():
            seconds, cpu, megabytes = measure("report", str(folder), *arguments)
            # A busy machine adds to the one, work on several threads to the other.
            fits = min(seconds, cpu) < SECONDS and megabytes < MEGABYTES
            over = "" if fits else "  OVER THE LIMIT"
            print(f"{name:32} {seconds:6.1f} s {cpu:6.1f} s CPU {megabytes:8,.0f} MB{over}")
        size = page.stat().st_size
        print(
            f"{'size of the page':32} {size / 1e6:6.2f} MB {'' if size < PAGE_BYTES else '  OVER THE LIMIT'}"
        )


if __name__ == "__main__":
    main()
