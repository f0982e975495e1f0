"""Joint training through K latents and what they keep, on a tiny decoder: a check of the mechanism alone.

Texts are words drawn at random. A model is trained by a recipe, on one budget for each K, to find a text's
reordered twin, to write its last words (half of the rows), and to repeat it from its latents. Texts that were
never trained on are then compressed, and repeated from the memory, the whole text, its first K words, and
nothing.

    python benchmarks/compression.py --output FOLDER --results benchmarks/results/compression.json
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from latents import save_decoder

NOTE = "a tiny decoder and synthetic texts: a check of the mechanism, not a result"
WORDS, LENGTH = 32, 6
QUESTION = "repeat"


def write_data(folder: Path, options: argparse.Namespace) -> list[str]:
    """Write training rows and questions; return what every word occurs in."""
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(WORDS)]

    def text() -> list[str]:
        return [str(word) for word in random.choice(words, LENGTH)]

    rows = []
    for number in range(options.rows):
        held = text()
        rows.append(
            {
                "query": " ".join(held),
                "pos": [" ".join(random.permutation(held))],
                "neg": [" ".join(text()) for _ in range(2)],
                "generation_target": " ".join(held[-2:]) if number % 2 else None,
                "compression_question": QUESTION,
                "compression_target": " ".join(held),
            }
        )
    folder.mkdir(parents=True)
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [
        {"text": one, "question": QUESTION, "answer": one} for one in (" ".join(text()) for _ in range(64))
    ]
    (folder / "questions.jsonl.txt").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return [*words, QUESTION]


def recipe(model: Path, options: argparse.Namespace) -> Any:  # noqa: ANN401 - a Recipe
    """Return the recipe, the same for every number of latents but for the model."""
    import reasonembed_mteb.reasoning.training  # noqa: F401 - registers the kind
    from reasonembed_mteb.training.recipes import check_recipe

    content = {
        "name": "compression",
        "model": {"name": str(model), "template": ""},
        "latent": {"train": "all"},
        "lora": {"rank": 0},
        "loss": {"kind": "infonce", "temperature": 0.05},
        "data": {"query_tokens": 48, "document_tokens": 48},
        "batch": {"devices": 1, "group": 2, "queries": 64},
        "training": {
            "epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "precision": "fp32",
            "checkpointing": False,
            "seed": options.seed,
        },
    }
    return check_recipe(content, "compression")


def trained(count: int, output: Path, options: argparse.Namespace) -> Path:
    """Return the folder of a trained model with so many latents; a run that was cut off goes on."""
    from reasonembed_mteb.reasoning.latents import add_latents
    from reasonembed_mteb.training.run import train

    start, run = output / f"start-{count}", output / f"latents-{count}"
    if not start.is_dir():
        add_latents(str(output / "bare"), count, start)
    if not (run / "model").is_dir():
        data = [output / "data" / "words.jsonl"]
        train(recipe(start, options), data, run, resume=run.is_dir(), cache=output / "rows")
    return run / "model"


def main() -> None:
    """Train, measure, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rows", type=int, default=9600)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    output = options.output.resolve()
    if not (output / "bare").is_dir():
        save_decoder(output / "bare", write_data(output / "data", options))
    from reasonembed_mteb.reasoning.compress_eval import CompressionOptions, measured_runs, read_examples
    from reasonembed_mteb.reporting.compression import compression_chapter
    from reasonembed_mteb.reporting.formats import as_markdown

    models = [str(trained(count, output, options)) for count in options.counts]
    file = output / "data" / "questions.jsonl.txt"
    asked = CompressionOptions(max_new_tokens=LENGTH + 2, reasoning_tokens=16, note=NOTE)
    runs = measured_runs(
        models, read_examples(file), file, asked, output / "results", device="cpu", say=print
    )
    print(*map(as_markdown, compression_chapter(runs).grids), NOTE, sep="\n")
    if options.results is not None:
        chosen = {key: value for key, value in vars(options).items() if key not in ("output", "results")}
        content = {"note": NOTE, "options": chosen, "runs": [asdict(run) for run in runs]}
        options.results.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
