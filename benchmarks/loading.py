"""Loading and the whole task: a corpus of leetcode's size, and ours end to end against MTEB's own task.

    python benchmarks/loading.py --documents 414000 --queries 142 --exclusions 236     # loading alone
    python benchmarks/loading.py --documents 150000 --end-to-end                       # beside MTEB's task

Data are drawn from a seed and written in BRIGHT's layout. End to end means loading, search, scoring and
writing the result, with instant vectors; each path runs in a fresh process, imports not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TASK, SUBSET = "ReasonEmbedBrightLeetcode", "leetcode"


def write_data(folder: Path, options: argparse.Namespace) -> None:
    """Write a subset in BRIGHT's layout: documents of about 2 kB with distinct first words."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    body = " ".join(f"w{number}" for number in draw.integers(0, 9999, 4000))
    ids = [f"leetcode/document_{i}.txt" for i in range(options.documents)]
    texts = [f"{i} {body[i % 9000 : i % 9000 + options.size]}" for i in range(options.documents)]
    excluded, gold = [], []
    for _ in range(options.queries):
        chosen = draw.choice(options.documents, options.exclusions + 2, replace=False)
        excluded.append([ids[i] for i in chosen[2:]])
        gold.append([ids[i] for i in chosen[:2]])
    examples = {
        "id": [f"q{i}" for i in range(options.queries)],
        "query": [f"query {i}" for i in range(options.queries)],
        "reasoning": [""] * options.queries,
        "excluded_ids": excluded,
        "gold_ids": gold,
        "gold_ids_long": [["N/A"]] * options.queries,
        "gold_answer": [""] * options.queries,
    }
    for config, columns in (("documents", {"id": ids, "content": texts}), ("examples", examples)):
        (folder / config).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / config / f"{SUBSET}-00000-of-00001.parquet")


def instant(dim: int) -> Any:  # noqa: ANN401 - an mteb encoder
    """Return an encoder whose vectors cost nothing: rows of one matrix, by the text's first number."""
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction

    table = np.random.default_rng(1).standard_normal((20_011, dim), dtype=np.float32)

    class Instant(AbsEncoder):
        """An encoder of fixed vectors."""

        mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": "benchmark/instant",
                "revision": "1",
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

        def encode(self, inputs: Any, **_: Any) -> Any:  # noqa: ANN401
            texts = [text for batch in inputs for text in batch["text"]]
            start = int(texts[0].split(" ", 2)[1 if texts[0].startswith("query") else 0])
            first = start % (len(table) - len(texts)) if len(texts) < len(table) else 0
            if first + len(texts) <= len(table):
                return table[first : first + len(texts)]
            return table[np.arange(start, start + len(texts)) % len(table)]

    return Instant()


def peak_mib(*, reset: bool = False) -> float:
    """Return the most memory this process has held (Linux); what a parent held does not count."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load, or run the whole task, in this process."""
    import mteb
    from mteb.cache import ResultCache

    import reasonembed_mteb.retrieval.search  # noqa: F401 - warm
    from reasonembed_mteb import register
    from reasonembed_mteb.retrieval.layouts import load_split

    register()
    task = mteb.get_task(TASK)
    before = peak_mib(reset=True)
    if not options.end_to_end:
        started = time.perf_counter()
        loaded = load_split(task.row)
        took = time.perf_counter() - started
        assert len(loaded["corpus"]) == options.documents
        above = peak_mib() - before
        return {"path": "loading", "wall_s": took, "above_mib": above}
    model = instant(options.dim)
    if path == "mteb":
        task = as_mteb(task)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        result = mteb.evaluate(
            model,
            [task],
            cache=ResultCache(output),
            co2_tracker=False,
            overwrite_strategy="always",
            encode_kwargs={"batch_size": 1024, "show_progress_bar": False},
            show_progress_bar=False,
        )
    took = time.perf_counter() - started
    above = peak_mib() - before
    return {
        "path": path,
        "wall_s": took,
        "above_mib": above,
        "score": result.task_results[0].get_score(),
    }


def as_mteb(task: Any) -> Any:  # noqa: ANN401 - AbsTaskRetrieval
    """Return a task of MTEB's own kind on the same data, exclusions as candidate lists."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class Plain(AbsTaskRetrieval):
        """MTEB's way: every document that is not excluded is a candidate."""

        metadata = task.metadata

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            del num_proc
            split = task.metadata.eval_splits[0]
            import datasets

            folder = Path(os.environ["REASONEMBED_BRIGHT_PATH"])

            def read(config: str) -> Any:  # noqa: ANN401
                file = folder / config / f"{SUBSET}-00000-of-00001.parquet"
                return datasets.Dataset.from_parquet(str(file))

            corpus = read("documents").rename_column("content", "text")
            examples = read("examples")
            ids = corpus["id"][:]
            gold, candidates = {}, {}
            for row in examples:
                gold[row["id"]] = dict.fromkeys(row["gold_ids"], 1)
                out = set(row["excluded_ids"])
                candidates[row["id"]] = [document for document in ids if document not in out]
            queries = examples.select_columns(["id", "query"]).rename_column("query", "text")
            self.dataset = {
                "default": {
                    split: {
                        "corpus": corpus,
                        "queries": queries,
                        "relevant_docs": gold,
                        "top_ranked": candidates,
                    }
                }
            }
            self.data_loaded = True

    return Plain()


def main() -> None:
    """Write the data, run each path in a process of its own, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = (("documents", 414_000), ("queries", 142), ("exclusions", 236), ("size", 2000), ("dim", 1024))
    for name, value in sizes:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--end-to-end", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_data(data, options)
        variables = {"REASONEMBED_BRIGHT_PATH": str(data), "HF_DATASETS_CACHE": f"{folder}/cache"}
        for path in ("ours", "mteb") if options.end_to_end else ("ours",):
            command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--only", path]
            # Twice: the first time converts parquet to Arrow, which both paths keep.
            for _ in range(2):
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, env=os.environ | variables
                )
                if done.returncode:
                    sys.exit(done.stderr)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{options.documents:,} documents of {options.size} bytes, {options.queries} queries")
    for number, row in enumerate(rows):
        cache = "warm" if number % 2 else "cold"
        score = f"  score {row['score']:.5f}" if "score" in row else ""
        print(f"{row['path']:<8} {cache}  {row['wall_s']:8.2f} s  {row['above_mib']:8.0f} MiB above{score}")
    if options.end_to_end:
        print(f"MTEB's task takes {rows[3]['wall_s'] / rows[1]['wall_s']:.1f} times as long, caches warm")


if __name__ == "__main__":
    main()
