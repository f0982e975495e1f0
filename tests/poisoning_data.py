"""A small BEIR folder to poison, over the words of a small tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

SENTENCE = (
    "biology post retrieve relevant passages that help answer why is the sky blue query rayleigh scattering "
    "sends short waves all sides long ones pass"
)
WORDS = SENTENCE.split()


def write_beir(folder: Path, *, documents: int = 30, queries: int = 16, words: int = 12) -> Path:
    """Write drawn documents, and queries that hold half of their relevant document's words."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, words)) for _ in range(documents)]
    asked = [" ".join(texts[number].split()[::2]) for number in range(queries)]
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", texts), ("queries", asked)):
        lines = [json.dumps({"_id": f"{name[0]}{n}", "text": text}) + "\n" for n, text in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    labels = "".join(f"q{n}\tc{n}\t1\n" for n in range(queries))
    head = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "test.tsv").write_text(head + labels, encoding="utf-8")
    return folder
