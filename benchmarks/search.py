"""Excluding documents exactly: ours against over-fetching and MTEB's candidate lists, on the same vectors.

Each path runs in a fresh process, with imports and the corpus' Arrow table warm before the clock starts.
Vectors are drawn from a seed, so that encoding costs nothing. Prints one table; `--json` prints the rows.

    python benchmarks/search.py --documents 150000 --dim 4096 --queries 100 --exclusions 30
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

PATHS = ("ours", "overfetch", "mteb")


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Draw vectors, exclusions and labels; everything that is not the search."""
    import numpy as np
    from datasets import Dataset
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction

    draw = np.random.default_rng(options.seed)
    documents = np.empty((options.documents, options.dim), dtype=np.float32)
    for row in documents:
        draw.standard_normal(dtype=np.float32, out=row)
    queries = draw.standard_normal((options.queries, options.dim), dtype=np.float32)
    # Gold and near documents are excluded too, as in BRIGHT: draw around each query.
    ids = [f"document {i}" for i in range(options.documents)]
    excluded, gold = {}, {}
    for i in range(options.queries):
        chosen = draw.choice(options.documents, options.exclusions + 5, replace=False)
        excluded[f"q{i}"] = [ids[j] for j in chosen[: options.exclusions]]
        gold[f"q{i}"] = {ids[j]: 1 for j in chosen[options.exclusions :]}
        documents[chosen] += 0.05 * queries[i]

    class Instant(AbsEncoder):
        """An encoder whose texts are row numbers."""

        mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": "benchmark/instant",
                "revision": "1",
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

        def encode(self, inputs: Any, *, prompt_type: Any, **_: Any) -> Any:  # noqa: ANN401
            rows = [int(text) for batch in inputs for text in batch["text"]]
            # Texts come in the corpus' order: a slice, which copies nothing for any of the paths.
            assert rows == list(range(rows[0], rows[-1] + 1))
            return (queries if prompt_type.value == "query" else documents)[rows[0] : rows[-1] + 1]

    return {
        "model": Instant(),
        "excluded": excluded,
        "gold": gold,
        "ids": ids,
        "corpus": Dataset.from_dict({"id": ids, "text": [str(i) for i in range(options.documents)]}),
        "queries": Dataset.from_dict({"id": list(gold), "text": [str(i) for i in range(options.queries)]}),
    }


def search(path: str, case: dict[str, Any], top_k: int) -> dict[str, dict[str, float]]:
    """Search by one path."""
    import mteb
    from mteb.models import SearchEncoderWrapper

    from reasonembed_mteb.retrieval.search import excluding_search

    kwargs = {
        "task_metadata": mteb.get_task("NFCorpus").metadata,
        "hf_split": "test",
        "hf_subset": "default",
        "encode_kwargs": {"show_progress_bar": False, "batch_size": 1024},
        "num_proc": None,
    }
    excluded = {query: set(documents) for query, documents in case["excluded"].items()}
    if path == "ours":
        model: Any = excluding_search(case["model"], case["excluded"])
    else:
        model = SearchEncoderWrapper(case["model"])
    model.index(case["corpus"], **kwargs)
    if path == "mteb":
        left = {q: [d for d in case["ids"] if d not in out] for q, out in excluded.items()}
        found: dict[str, dict[str, float]] = model.search(
            case["queries"], top_k=top_k, top_ranked=left, **kwargs
        )
        return found
    extra = max(map(len, excluded.values()), default=0) if path == "overfetch" else 0
    found = model.search(case["queries"], top_k=top_k + extra, **kwargs)
    if path == "ours":
        return found
    kept = {q: [(s, d) for d, s in scores.items() if d not in excluded[q]] for q, scores in found.items()}
    return {q: {d: s for s, d in sorted(pairs, reverse=True)[:top_k]} for q, pairs in kept.items()}


def measure(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one path in this process and report time, memory and metrics."""
    import mteb  # noqa: F401 - warm before the clock starts
    import pytrec_eval

    import reasonembed_mteb.retrieval.search  # noqa: F401

    case = prepare(options)
    small = argparse.Namespace(
        **(vars(options) | {"documents": 2000, "exclusions": min(10, options.exclusions)})
    )
    search(path, prepare(small), options.top_k)
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    found = search(path, case, options.top_k)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    evaluator = pytrec_eval.RelevanceEvaluator(
        case["gold"], {"ndcg_cut.10", "recall.100", "recall.1000", "map"}
    )
    rows = evaluator.evaluate(found).values()
    return {
        "path": path,
        "wall_s": wall,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        # KiB on Linux: what the search needed beyond the peak that came before it.
        "above_mib": (after.ru_maxrss - before.ru_maxrss) / 1024,
        "metrics": {name: sum(row[name] for row in rows) / len(rows) for name in next(iter(rows))},
    }


def main() -> None:
    """Run every path in a process of its own and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("documents", 150_000), ("dim", 4096), ("queries", 100), ("exclusions", 30)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--top-k", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=PATHS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    rows = []
    for path in options.paths:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--only", path],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    ours = rows[0]
    size = f"{options.documents} documents x {options.dim}, {options.queries} queries"
    print(f"{size}, {options.exclusions} excluded each")
    print(f"{'path':<10} {'wall s':>8} {'CPU s':>8} {'MiB above':>10} {'times ours':>11}  equal to 5 digits")
    for row in rows:
        same = all(abs(row["metrics"][name] - value) < 5e-6 for name, value in ours["metrics"].items())
        ratio = row["wall_s"] / ours["wall_s"]
        print(
            f"{row['path']:<10} {row['wall_s']:8.2f} {row['cpu_s']:8.2f} {row['above_mib']:10.0f} "
            f"{ratio:11.1f}  {same}"
        )


if __name__ == "__main__":
    main()
