"""Real training on the StackExchange subsets of a BRIGHT-shaped folder: before, InfoNCE, Redapter.

Every subset but one is trained on: the query, the query with its human reasoning, its gold answer as
the positive, and negatives out of the subset's own documents, the best of BM25 and of the model itself.
Documents that are relevant to or excluded for the query, and every answer of the held-out subset, are no
negatives. Each seed is trained once by each loss on the same rows, batches and negatives; then the tasks
of the held-out subset and of another domain are scored by the package's own runner, without an
instruction.

What is done stays in the output folder: a killed run goes on, and several processes may share the work
by `--losses` or `--seeds` (let one mine the rows first, by `--losses` alone). The table is over all that
is there.

    python benchmarks/train_bright_answers.py --data FOLDER --model DIRECTORY --output FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

SUBSETS = ("biology", "earth_science", "economics", "stackoverflow", "sustainable_living")
FAR = "theoremqa_questions"
LOSSES = ("infonce", "redapter")
# The reciprocal rank itself: no corpus here has more documents.
METRICS = {"nDCG@10": "ndcg_at_10", "MRR": "mrr_at_1000"}
# The tasks of BRIGHT's short documents come first in the table.
KIND = "bright"


def task_row(subset: str) -> Any:  # noqa: ANN401
    """Return our task of a subset's passages."""
    from reasonembed_mteb.retrieval.rows import load_rows

    return next(row for row in load_rows() if row.kind == KIND and row.subset == subset)


def write(file: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    from reasonembed_mteb.files import write_whole

    write_whole(file, json.dumps(value, indent=1))


def mine(options: argparse.Namespace) -> None:
    """Write one file of rows for each training subset."""
    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.retrieval.layouts import load_split

    held = task_row(options.held_out)
    answers = {name for gold in load_split(held)["relevant_docs"].values() for name in gold}
    model = None
    for subset in SUBSETS:
        file = options.output / "rows" / f"{subset}.jsonl"
        if subset == options.held_out or file.is_file():
            continue
        model = model or SentenceTransformer(options.model, device="cpu")
        rows = mine_subset(task_row(subset), answers, model, options.depth)
        from reasonembed_mteb.files import write_whole

        write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
        print(f"{subset}: {len(rows)} rows, {mean(len(row['neg']) for row in rows):.1f} negatives each")


def mine_subset(row: Any, barred: set[str], model: Any, depth: int) -> list[dict[str, Any]]:  # noqa: ANN401
    """Return a subset's rows: negatives are the first documents of BM25 and of the model that may be."""
    from reasonembed_mteb.retrieval.layouts import load_split
    from reasonembed_mteb.retrieval.sources import read_split, splits_of

    split = load_split(row)
    texts = dict(zip(split["corpus"]["id"][:], split["corpus"]["text"][:], strict=True))
    examples = read_split(row, splits_of(row)["queries"], columns=("id", "query", "reasoning"))
    ranked = [
        bm25(examples["query"][:], texts, len(texts)),
        dense(examples["query"][:], texts, len(texts), model),
    ]
    rows = []
    for place, (query, text, reasoning) in enumerate(
        zip(*(examples[name][:] for name in ("id", "query", "reasoning")), strict=True)
    ):
        gold = split["relevant_docs"][query]
        refused = barred | set(gold) | set(split["excluded_ids"].get(query, ()))
        found = [[name for name in one[place] if name not in refused][:depth] for one in ranked]
        rows.append(
            {
                "query": text,
                "reasoning_query": f"{text}\n{reasoning}" if reasoning.strip() else None,
                "pos": [texts[name] for name in gold],
                "neg": [texts[name] for name in dict.fromkeys(chain.from_iterable(found))],
            }
        )
    return rows


def bm25(queries: list[str], texts: dict[str, str], top: int) -> list[list[str]]:
    """Rank documents by bm25s, with its defaults and English stop words."""
    import bm25s

    index = bm25s.BM25()
    index.index(
        bm25s.tokenize(list(texts.values()), stopwords="en", show_progress=False), show_progress=False
    )
    words = bm25s.tokenize(queries, stopwords="en", show_progress=False)
    found, _ = index.retrieve(words, k=top, show_progress=False)
    names = list(texts)
    return [[names[place] for place in row] for row in found.tolist()]


def dense(queries: list[str], texts: dict[str, str], top: int, model: Any) -> list[list[str]]:  # noqa: ANN401
    """Rank documents by the model that training starts from."""
    from sentence_transformers.util import semantic_search

    documents = model.encode_document(list(texts.values()), convert_to_tensor=True)
    found = semantic_search(model.encode_query(queries, convert_to_tensor=True), documents, top_k=top)
    names = list(texts)
    return [[names[int(hit["corpus_id"])] for hit in hits] for hits in found]


def recipe_of(loss: str, seed: int, options: argparse.Namespace) -> Any:  # noqa: ANN401
    """Return the demo recipe with this experiment's changes."""
    from reasonembed_mteb.training.recipes import load_recipe

    changes = {
        "model.name": options.model,
        "loss.kind": loss,
        "loss.start_step": options.start_step,
        "data.document_tokens": options.tokens,
        "data.query_tokens": options.query_tokens,
        "data.reasoning_tokens": options.query_tokens,
        "batch.group": options.group,
        "batch.queries": options.queries,
        "training.epochs": options.epochs,
        "training.learning_rate": options.learning_rate,
        "training.seed": seed,
    }
    return load_recipe("minilm-demo", [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def train(loss: str, seed: int, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Train, or go on, and return the model and what the training took."""
    from reasonembed_mteb.training.metrics import read_metrics
    from reasonembed_mteb.training.run import train as run

    output = options.output / "runs" / f"{loss}-{seed}"
    started = time.perf_counter()
    done = run(
        recipe_of(loss, seed, options),
        [options.output / "rows"],
        output,
        resume=output.exists(),
        cache=options.output / "cache" / loss,
        say=print,
    )
    rows = read_metrics(output)
    weighted = [row for row in rows if row["ri_mean"] == row["ri_mean"]]
    facts = {"steps": done.steps, "seconds": time.perf_counter() - started}
    facts["loss_first"] = mean(row["loss_unweighted"] for row in rows[:10])
    facts["loss_last"] = mean(row["loss_unweighted"] for row in rows[-10:])
    for name in ("ri_mean", "ri_median", "ri_clipped") if weighted else ():
        facts[name] = mean(row[name] for row in weighted)
    return done.model, facts


def score(model: Path | str, name: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return each metric of each subset by query."""
    from reasonembed_mteb.evaluation.resolving import resolve_models, resolve_tasks
    from reasonembed_mteb.evaluation.runner import RunOptions, run
    from reasonembed_mteb.evaluation.scores import read_scores
    from reasonembed_mteb.plugin import register

    register()
    output = options.output / "scores" / name
    names = {subset: task_row(subset).name for subset in (options.held_out, FAR)}
    outcomes = run(
        resolve_models([str(model)], no_instruction=True),
        resolve_tasks([], list(names.values())),
        RunOptions(output=output, batch_size=16, device="cpu", progress=False),
        print,
    )
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise SystemExit("; ".join(failed))
    found: dict[str, dict[str, Any]] = {}
    for subset, task in names.items():
        (file,) = output.rglob(f"{task}.parquet")
        found[subset] = {metric: read_scores(file).metric(key) for metric, key in METRICS.items()}
    return found


def work(options: argparse.Namespace) -> None:
    """Do what is not done yet: mine, score the model as it is, then train and score."""
    mine(options)
    arms = [("before", 0)] + [(loss, seed) for seed in options.seeds for loss in options.losses]
    for arm, seed in arms:
        file = options.output / "done" / f"{arm}-{seed}.json"
        if file.is_file():
            continue
        model, facts = (options.model, {}) if arm == "before" else train(arm, seed, options)
        write(
            file, {"arm": arm, "seed": seed, "facts": facts, "scores": score(model, f"{arm}-{seed}", options)}
        )


def report(options: argparse.Namespace) -> None:
    """Print a table of the arms and one of the differences, as Markdown."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in sorted((options.output / "done").glob("*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        found[one["arm"]].append(one)
    subsets = (options.held_out, FAR)
    cells = [(subset, metric) for subset in subsets for metric in METRICS]
    print("| | seeds |" + "".join(f" {subset} {metric} |" for subset, metric in cells))
    print("|---|---|" + "---|" * len(cells))
    for arm in ("before", *LOSSES):
        values = [[100 * mean(one["scores"][s][m].values()) for one in found[arm]] for s, m in cells]
        if found[arm]:
            print(f"| {arm} | {len(found[arm])} | " + " | ".join(map(spread, values)) + " |")
    print("\n| pair | subset | metric | difference | 95 % | p | better | equal | worse |")
    print("|---|---|---|---|---|---|---|---|---|")
    for one, other in (("infonce", "before"), ("redapter", "before"), ("redapter", "infonce")):
        for subset, metric in cells:
            if found[one] and found[other]:
                print(difference(one, other, found, subset, metric))
    for arm in LOSSES:
        for one in found[arm]:
            print(f"{arm} {one['seed']}: " + ", ".join(f"{k} {v:.4g}" for k, v in one["facts"].items()))


def spread(values: list[float]) -> str:
    """Write a mean with its standard deviation over seeds, where there are several."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def difference(one: str, other: str, found: dict[str, list[dict[str, Any]]], subset: str, metric: str) -> str:
    """Compare two arms query by query, each query's score averaged over the seeds."""
    from reasonembed_mteb.reporting.bootstrap import bootstrap_interval
    from reasonembed_mteb.reporting.significance import paired_test

    first, second = (by_query(found[arm], subset, metric) for arm in (one, other))
    gaps = {query: 100 * (first[query] - second[query]) for query in first}
    interval = bootstrap_interval(list(gaps.values()))
    tested = paired_test(first, second)
    better, worse = sum(gap > 1e-9 for gap in gaps.values()), sum(gap < -1e-9 for gap in gaps.values())
    return (
        f"| {one} - {other} | {subset} | {metric} | {mean(gaps.values()):+.2f} | "
        f"{interval.low:+.2f} to {interval.high:+.2f} | {tested.pvalue:.3f} | "
        f"{better} | {len(gaps) - better - worse} | {worse} |"
    )


def by_query(runs: list[dict[str, Any]], subset: str, metric: str) -> dict[str, float]:
    """Average each query's score over the seeds."""
    scores = [run["scores"][subset][metric] for run in runs]
    return {query: mean(one[query] for one in scores) for query in scores[0]}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder in BRIGHT's hub layout")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="name or directory")
    parser.add_argument("--output", type=Path, required=True, help="folder for rows, runs and scores")
    parser.add_argument("--held-out", default="sustainable_living", choices=SUBSETS)
    parser.add_argument("--losses", nargs="*", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--depth", type=int, default=10, help="negatives a query from each retriever, at most"
    )
    parser.add_argument("--tokens", type=int, default=128, help="of a document, in training")
    parser.add_argument("--query-tokens", type=int, default=256, help="of a query with its reasoning")
    parser.add_argument("--group", type=int, default=4, help="documents a query")
    parser.add_argument("--queries", type=int, default=16, help="a batch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--start-step", type=int, default=10, help="first step that Redapter weighs")
    return parser.parse_args()


def main() -> None:
    """Work, then print the tables."""
    options = parse()
    os.environ["REASONEMBED_BRIGHT_PATH"] = str(options.data)
    work(options)
    report(options)


if __name__ == "__main__":
    main()
