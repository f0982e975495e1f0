"""Synthetic training rows, and a tiny recipe to train on them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["sky", "blue", "cat", "purr", "bone", "light", "wave", "sun", "rain", "leaf", "root", "salt"]
# Stands in every text, so that a test can look for training text where none may be.
MARK = "zebrafinch"


def text(random: np.random.Generator, words: int) -> str:
    """Draw some words."""
    return " ".join([MARK, *random.choice(WORDS, words)])


def make_rows(count: int, seed: int = 0, negatives: int = 5) -> list[dict[str, Any]]:
    """Draw rows as reason-embed-data has them."""
    random = np.random.default_rng(seed)
    return [
        {
            "prompt": "Given a post, retrieve passages.",
            "query": f"{text(random, 3)} {seed} {index}",
            "reasoning_query": text(random, 6),
            "pos": [f"{text(random, 5)} p{seed} {index} {n}" for n in range(2)],
            "neg": [f"{text(random, 5)} n{seed} {index} {n}" for n in range(negatives)],
            "train_group_size": 4,
            "batch_size": 4,
        }
        for index in range(count)
    ]


def checked_rows(count: int = 4, subset: str = "biology", **fields: Any) -> list[dict[str, Any]]:
    """Return rows as `TrainingData` holds them."""
    return [
        {
            "subset": subset,
            "row": index,
            "query": row["query"],
            "reasoning": row["reasoning_query"],
            "instruction": row["prompt"],
            "positives": row["pos"],
            "negatives": row["neg"],
        }
        | fields
        for index, row in enumerate(make_rows(count))
    ]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_folder(folder: Path, **sizes: int) -> Path:
    """Write one file a subset."""
    for seed, (name, count) in enumerate(sizes.items()):
        write_rows(folder / f"{name}-formatted.jsonl", make_rows(count, seed))
    return folder


def tiny_recipe(model: Path | str, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's content for a tiny decoder."""
    content: dict[str, Any] = {
        "name": "tiny",
        "model": {"name": str(model)},
        "lora": {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"], "dropout": 0.1},
        "loss": {"start_step": 3},
        "data": {"query_tokens": 24, "document_tokens": 24},
        "batch": {"devices": 1, "group": 3, "queries": 4, "subsets": {"pony": {"group": 4, "queries": 2}}},
        "training": {
            "learning_rate": 1e-2,
            "precision": "fp32",
            "checkpointing": False,
            "log_steps": 2,
            "save_steps": 3,
        },
    }
    for name, values in sections.items():
        content[name] = content.get(name, {}) | values
    return content
