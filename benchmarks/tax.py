"""The specialisation tax: what a model gains on reasoning and loses elsewhere, by mix and by merge.

Reasoning data are the subsets of a BRIGHT-shaped folder, general data a BEIR folder, each split by query:
one half is trained on and never scored, the other is scored and never trained on; documents that are relevant
to a scored query are nobody's negatives. A model is trained on the reasoning half alone and with shares of
general rows (`data.mix`), with several seeds; each model that was trained on reasoning alone is merged with
the model that it started from, by several weights. Every model is then scored on both scored halves.

What is done stays in the output folder: a killed run goes on where it was. The table is over what is there.

    python benchmarks/tax.py --data FOLDER --model DIRECTORY --output FOLDER --results tax.json
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import train_bright_answers as bright

SUBSETS = (*bright.SUBSETS, bright.FAR)
GENERAL = "general"
MIXES = (0.0, 0.25, 0.5)
# Of the trained model, beside the one it started from.
WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
METRIC = "ndcg_at_10"
SIDES = ("reasoning", GENERAL)


def halves(queries: list[str]) -> tuple[set[str], set[str]]:
    """Split queries at random: those to train on, those to score."""
    import numpy as np

    order = np.random.default_rng(0).permutation(sorted(queries)).tolist()
    return set(order[: len(order) // 2]), set(order[len(order) // 2 :])


def load(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return each set's texts, labels and halves."""
    from reasonembed_mteb.retrieval.beir import read_folder
    from reasonembed_mteb.retrieval.layouts import load_split
    from reasonembed_mteb.retrieval.sources import read_split, splits_of

    found = {}
    for subset in SUBSETS:
        row = bright.task_row(subset)
        split = load_split(row)
        examples = read_split(row, *splits_of(row)[1], columns=("id", "reasoning"))
        reasoning = dict(zip(examples["id"][:], examples["reasoning"][:], strict=True))
        found[subset] = one_set(split, split["excluded_ids"], reasoning)
    split = read_folder(options.data / "cranfield")
    return found | {GENERAL: smaller(one_set(split, {}, {}), options)}


def smaller(one: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Keep some queries of each half, and as many documents with every relevant one among them."""
    import numpy as np

    for half in ("training", "scored"):
        one[half] = set(sorted(one[half])[: options.general_queries])
    kept = {name for query in one["training"] | one["scored"] for name in one["labels"][query]}
    order = np.random.default_rng(0).permutation(list(one["texts"])).tolist()
    kept |= set([name for name in order if name not in kept][: max(0, options.general_documents - len(kept))])
    one["texts"] = {name: text for name, text in one["texts"].items() if name in kept}
    return one


def one_set(split: Any, excluded: Any, reasoning: dict[str, str]) -> dict[str, Any]:  # noqa: ANN401
    """Return what is needed of a set."""
    queries = dict(zip(split["queries"]["id"][:], split["queries"]["text"][:], strict=True))
    corpus = split["corpus"]
    titles = corpus["title"][:] if "title" in corpus.column_names else [""] * len(corpus)
    texts = {
        name: f"{title} {text}".strip()
        for name, title, text in zip(corpus["id"][:], titles, corpus["text"][:], strict=True)
    }
    labels = {query: gold for query, gold in split["relevant_docs"].items() if any(gold.values())}
    training, scored = halves(list(labels))
    return {
        "queries": queries,
        "texts": texts,
        "labels": labels,
        "excluded": {query: set(names) for query, names in excluded.items()},
        "reasoning": reasoning,
        "training": training,
        "scored": scored,
    }


def mine(sets: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Write one file of training rows for each set."""
    from reasonembed_mteb.files import json_line, write_whole

    files = {name: options.output / "rows" / f"{name}.jsonl" for name in sets}
    if all(file.is_file() for file in files.values()):
        return
    model = load_model(options.model, options)
    vectors = encode(model, sets)
    for name, one in sets.items():
        file = files[name]
        ranked = rank(model, one, vectors, one["training"])
        rows = mine_set(one, ranked, options.depth)[: None if name == GENERAL else options.rows]
        write_whole(file, "".join(map(json_line, rows)))
        print(f"{name}: {len(rows)} rows, {len(one['scored'])} queries scored")


def mine_set(one: dict[str, Any], ranked: dict[str, dict[str, float]], depth: int) -> list[dict[str, Any]]:
    """Return a set's rows: negatives are the first documents of BM25 and of the model that may be."""
    barred = {name for query in one["scored"] for name, label in one["labels"][query].items() if label}
    names = sorted(one["training"])
    texts = [one["queries"][name] for name in names]
    found = [
        bright.bm25(texts, one["texts"], len(one["texts"])),
        [sorted(ranked[name], key=ranked[name].__getitem__, reverse=True) for name in names],
    ]
    rows = []
    for place, name in enumerate(names):
        gold = [document for document, label in one["labels"][name].items() if label]
        refused = barred | set(gold) | one["excluded"].get(name, set())
        best = [[d for d in way[place] if d not in refused][:depth] for way in found]
        reasoning = (one["reasoning"].get(name) or "").strip()
        query = one["queries"][name]
        row = {"query": query, "pos": [one["texts"][document] for document in gold]}
        row["reasoning_query"] = f"{query}\n{reasoning}" if reasoning else None
        row["neg"] = [one["texts"][document] for document in dict.fromkeys(d for part in best for d in part)]
        rows.append(row)
    return rows


def load_model(folder: Path, options: argparse.Namespace) -> Any:  # noqa: ANN401
    """Load a model as it is scored."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = options.scored_tokens
    return model


def encode(model: Any, sets: dict[str, dict[str, Any]]) -> dict[str, Any]:  # noqa: ANN401
    """Return the vector of every document by its text; subsets share documents, which are encoded once."""
    texts = sorted({text for one in sets.values() for text in one["texts"].values()})
    vectors = model.encode_document(texts, batch_size=16, convert_to_tensor=True, show_progress_bar=False)
    return dict(zip(texts, vectors, strict=True))


def train(mix: float, seed: int, options: argparse.Namespace) -> Path:
    """Train with a share of general rows, or go on, and return the model."""
    from reasonembed_mteb.training.recipes import load_recipe
    from reasonembed_mteb.training.run import train as run

    changes: dict[str, Any] = {
        "model.name": str(options.model),
        "loss.start_step": options.start_step,
        "data.document_tokens": options.tokens,
        "data.query_tokens": options.query_tokens,
        "batch.group": options.group,
        "batch.queries": options.queries,
        "training.epochs": options.epochs,
        "training.learning_rate": options.learning_rate,
        "training.seed": seed,
    }
    if mix:
        # The same reasoning rows in every mix; general rows come again as often as their share needs.
        changes |= {f"data.mix.{GENERAL}.weight": mix, f"data.mix.{GENERAL}.repeats": 50}
    subsets = [*SUBSETS, GENERAL] if mix else SUBSETS
    output: Path = options.output / "runs" / f"mix-{mix:g}-{seed}"
    if (output / "model").is_dir():
        return output / "model"
    done = run(
        load_recipe("minilm-demo", [f"{key}={json.dumps(value)}" for key, value in changes.items()]),
        [options.output / "rows" / f"{name}.jsonl" for name in subsets],
        output,
        resume=output.exists(),
        cache=options.output / "cache",
        say=print,
    )
    return done.model


def merged(method: str, weight: float, seed: int, options: argparse.Namespace) -> Path:
    """Merge the model that was trained on reasoning alone with the one that it started from."""
    from reasonembed_mteb.training.merging import merge

    output: Path = options.output / "merged" / f"{method}-{weight:g}-{seed}"
    if not output.is_dir():
        trained = train(0.0, seed, options)
        merge([str(options.model), str(trained)], [1 - weight, weight], output, method=method)
    return output


def score(model: Path, sets: dict[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Return nDCG@10 of each set's scored queries."""
    from reasonembed_mteb.evaluation.score_run import Judgements, score_run

    loaded = load_model(model, options)
    vectors = encode(loaded, sets)
    found = {}
    for name, one in sets.items():
        run = rank(loaded, one, vectors, one["scored"])
        labels = {query: dict(one["labels"][query]) for query in one["scored"]}
        scores = score_run(run, Judgements(name, labels, one["excluded"])).per_query
        found[name] = {query: row[METRIC] for query, row in scores.items()}
    return found


def rank(
    model: Any,  # noqa: ANN401
    one: dict[str, Any],
    vectors: dict[str, Any],
    wanted: set[str],
) -> dict[str, dict[str, float]]:
    """Return the score of every document for each wanted query."""
    import torch

    names = sorted(wanted)
    texts = [one["queries"][name] for name in names]
    queries = model.encode_query(texts, batch_size=16, convert_to_tensor=True, show_progress_bar=False)
    documents = torch.stack([vectors[text] for text in one["texts"].values()])
    table = model.similarity(queries, documents).tolist()
    return {name: dict(zip(one["texts"], row, strict=True)) for name, row in zip(names, table, strict=True)}


def arms(options: argparse.Namespace) -> list[tuple[str, float, int]]:
    """Return what is scored: the start, the mixes, the merges; trained models first."""
    found = [("start", 0.0, 0)]
    found += [("mix", mix, seed) for seed in options.seeds for mix in MIXES]
    found += [("linear", weight, seed) for seed in options.seeds for weight in WEIGHTS]
    return found + [("spherical", 0.5, seed) for seed in options.seeds]


def work(options: argparse.Namespace) -> None:
    """Do what is not done yet."""
    from reasonembed_mteb.files import json_text, write_whole

    sets = load(options)
    mine(sets, options)
    for arm, value, seed in arms(options):
        file = options.output / "done" / f"{arm}-{value:g}-{seed}.json"
        if file.is_file() or arm not in options.arms:
            continue
        if arm == "start":
            model = options.model
        elif arm == "mix":
            model = train(value, seed, options)
        else:
            model = merged(arm, value, seed, options)
        one = {"arm": arm, "value": value, "seed": seed, "scores": score(model, sets, options)}
        write_whole(file, json_text(one))
        print(f"{arm} {value:g}, seed {seed}: " + ", ".join(f"{s} {100 * side(one, s):.2f}" for s in SIDES))


def side(one: dict[str, Any], name: str) -> float:
    """Return the mean over a side's queries."""
    return mean(by_query([one], name).values())


def by_query(runs: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Return a side's scores by query, each averaged over the runs."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in runs:
        for subset in [GENERAL] if name == GENERAL else SUBSETS:
            for query, value in one["scores"][subset].items():
                found[f"{subset}/{query}"].append(value)
    return {query: mean(values) for query, values in found.items()}


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Return each arm's scores and its differences from the start in percent, with intervals over queries."""
    from reasonembed_mteb.files import package_versions
    from reasonembed_mteb.reporting.bootstrap import bootstrap_interval

    found: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for arm, value, seed in arms(options):
        file = options.output / "done" / f"{arm}-{value:g}-{seed}.json"
        if file.is_file():
            found[arm, value].append(json.loads(file.read_text(encoding="utf-8")))
    if ("start", 0.0) not in found:
        raise SystemExit("the start is not scored yet: run --arms start first")
    rows = []
    for (arm, value), runs in found.items():
        row: dict[str, Any] = {"arm": arm, "value": value, "seeds": len(runs)}
        for name in SIDES:
            scores, before = by_query(runs, name), by_query(found["start", 0.0], name)
            gaps = [100 * (scores[query] - before[query]) for query in scores]
            interval = bootstrap_interval(gaps)
            seeds = [100 * side(one, name) for one in runs]
            row[name] = {
                "score": mean(seeds),
                "over_seeds": stdev(seeds) if len(seeds) > 1 else None,
                "queries": len(gaps),
                "difference": mean(gaps),
                "interval": [interval.low, interval.high],
            }
        rows.append(row)
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    settings.pop("arms")
    return {"metric": "nDCG@10, %", "settings": settings, "versions": package_versions(), "rows": rows}


def show(found: dict[str, Any]) -> None:
    """Print the report as a Markdown table."""
    print("| | seeds | reasoning | - start | 95 % | general | - start | 95 % |")
    print("|---|---|---|---|---|---|---|---|")
    for row in found["rows"]:
        cells = [f"{row['arm']} {row['value']:g}", str(row["seeds"])]
        for name in SIDES:
            one = row[name]
            spread = f" ± {one['over_seeds']:.2f}" if one["over_seeds"] is not None else ""
            low, high = one["interval"]
            cells += [
                f"{one['score']:.2f}{spread}",
                f"{one['difference']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
            ]
        print("| " + " | ".join(cells) + " |")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with bright_answers (BRIGHT's layout) and cranfield (BEIR)",
    )
    parser.add_argument("--model", type=Path, required=True, help="directory of all-MiniLM-L6-v2")
    parser.add_argument("--output", type=Path, required=True, help="folder for rows, runs and scores")
    parser.add_argument("--results", type=Path, help="JSON of the report")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    kinds = ["start", "mix", "linear", "spherical"]
    parser.add_argument(
        "--arms",
        nargs="*",
        default=kinds,
        choices=kinds,
        help="what is trained and scored; none for the table alone",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--depth", type=int, default=5, help="negatives a query from each retriever, at most")
    parser.add_argument("--tokens", type=int, default=64, help="of a document, in training")
    parser.add_argument(
        "--query-tokens", type=int, default=64, help="of a query with its reasoning, in training"
    )
    parser.add_argument("--scored-tokens", type=int, default=64, help="of any text that is scored")
    parser.add_argument("--rows", type=int, default=30, help="of a reasoning subset to train on, at most")
    parser.add_argument("--general-queries", type=int, default=60, help="of each half, at most")
    parser.add_argument("--general-documents", type=int, default=700, help="at least; relevant ones are kept")
    parser.add_argument("--group", type=int, default=2, help="documents a query")
    parser.add_argument("--queries", type=int, default=8, help="a batch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--start-step", type=int, default=5, help="first step that Redapter weighs")
    return parser.parse_args()


def main() -> None:
    """Work, then print the table."""
    options = parse()
    os.environ["REASONEMBED_BRIGHT_PATH"] = str(options.data / "bright_answers")
    if options.arms:
        import torch

        torch.set_num_threads(options.threads)
        work(options)
    found = report(options)
    show(found)
    if options.results:
        from reasonembed_mteb.files import json_text, write_whole

        write_whole(options.results, json_text(found))


if __name__ == "__main__":
    main()
