"""How often poisoned passages are found: the search by gradient beside plain attacks, on held-out queries.

The StackExchange subsets of a BRIGHT-shaped folder are one corpus with all their queries. By the seed, half
of the queries make the passages and the other half is attacked. The search must beat the best plain attack
by `--margin` at ASR@20 with decoded text, or the command fails.

    python benchmarks/poisoning.py --data FOLDER --model DIRECTORY --output FOLDER --results poisoning.json
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import train_bright_answers as bright

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DEPTH = 20


def joined_folder(options: argparse.Namespace) -> Path:
    """Write the subsets as one BEIR folder; query ids begin with their subset."""
    from datasets import Dataset

    from reasonembed_mteb.retrieval.beir import write_folder
    from reasonembed_mteb.retrieval.layouts import load_split

    folder = options.output / "data"
    if (folder / "corpus.jsonl").is_file():
        return folder
    splits = {subset: load_split(bright.task_row(subset)) for subset in bright.SUBSETS}
    documents: dict[str, str] = {}
    for split in splits.values():
        documents |= dict(zip(split["corpus"]["id"][:], split["corpus"]["text"][:], strict=True))
    queries = {
        f"{subset}-{name}": text
        for subset, split in splits.items()
        for name, text in zip(split["queries"]["id"][:], split["queries"]["text"][:], strict=True)
    }
    data = {
        "corpus": columns(Dataset, documents),
        "queries": columns(Dataset, queries),
        "relevant_docs": prefixed(splits, "relevant_docs"),
        "excluded_ids": prefixed(splits, "excluded_ids"),
    }
    write_folder(data, folder, "BRIGHT's StackExchange subsets")
    return folder


def columns(kind: Any, texts: dict[str, str]) -> Any:  # noqa: ANN401
    """Return texts by id as a data set."""
    return kind.from_dict({"id": list(texts), "text": list(texts.values())})


def prefixed(splits: dict[str, Any], part: str) -> dict[str, Any]:
    """Return what every subset says by query."""
    pairs = (
        ((f"{subset}-{query}", held) for query, held in split[part].items())
        for subset, split in splits.items()
    )
    return dict(chain.from_iterable(pairs))


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Attack, and return what was measured with the margin over the best plain attack."""
    from reasonembed_mteb.evaluation.resolving import resolve_model
    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.reporting.formats import as_table
    from reasonembed_mteb.reporting.poisoning import poisoning_grid
    from reasonembed_mteb.retrieval.beir_task import beir_task
    from reasonembed_mteb.robustness.attacks import GRADIENT
    from reasonembed_mteb.robustness.corpus_attack import PoisoningOptions, poison_corpus
    from reasonembed_mteb.robustness.poisoning import AttackSize

    register()
    size = AttackSize(
        passages=options.passages,
        iterations=options.iterations,
        candidates=options.candidates,
        start=options.start,
        seed=options.seed,
    )
    wanted = PoisoningOptions(
        output=options.output, size=size, store=options.output / "vectors", progress=True
    )
    task = beir_task(joined_folder(options), name="BrightStackExchange")
    began = time.process_time()
    record = poison_corpus(resolve_model(str(options.model)), task, wanted, say=print)
    print(as_table(poisoning_grid([record])))
    rates = {one.attack: one.asr[DEPTH] for one in record.outcomes if one.fed == "text"}
    margin = rates.pop(GRADIENT) - max(rates.values())
    found = asdict(record) | {"margin": margin, "processor_seconds": time.process_time() - began}
    print(f"ASR@{DEPTH} of the search's text less that of the best plain attack: {margin:+.3f}")
    return found


def main() -> None:
    """Attack once, and fail where the search does not beat the plain attacks."""
    from reasonembed_mteb.files import json_text, write_whole

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder in BRIGHT's layout")
    parser.add_argument(
        "--model", type=Path, required=True, help="model directory, such as all-MiniLM-L6-v2's"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for data, vectors and passages")
    parser.add_argument("--results", type=Path, help="JSON to write")
    parser.add_argument("--passages", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--start", default="relevant")
    parser.add_argument("--seed", type=int, default=1999)
    parser.add_argument("--margin", type=float, default=0.1)
    options = parser.parse_args()
    os.environ["REASONEMBED_BRIGHT_PATH"] = str(options.data)
    found = work(options)
    if options.results is not None:
        write_whole(options.results, json_text(found))
    if found["margin"] < options.margin:
        raise SystemExit(f"the margin is below {options.margin}")


if __name__ == "__main__":
    main()
