"""Varying queries: processor time of each variation on one core, and the shares that it changes.

Queries are drawn from a seed, as long as BRIGHT's (a median of 110 words, one in seven with code), or
are those of a task, over and over. Prints one table; `--json` prints the rows.

    python benchmarks/variations.py --queries 100000
    python benchmarks/variations.py --queries 100000 -t ReasonEmbedBrightBiology
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if TYPE_CHECKING:
    from reasonembed_mteb.robustness.wordnet import WordNet

CODE = "```\nfor item in items:\n    total += item.price\n```"


def drawn_queries(count: int, seed: int, source: WordNet) -> list[str]:
    """Draw queries of WordNet's words and stop words, some with code, all different."""
    from reasonembed_mteb.robustness.words import STOP_WORDS

    draw = np.random.default_rng(seed)
    content = np.array(sorted(source.lemmas()))
    draw.shuffle(content)
    frequent = np.concatenate([np.array(sorted(STOP_WORDS)), content])
    # Ranks by Zipf's law: about two of five words are stop words, as in English.
    ends = np.cumsum(1.0 / np.arange(1, len(frequent) + 1))
    queries = []
    for number in range(count):
        length = max(3, int(draw.lognormal(np.log(110), 0.6)))
        words = frequent[np.searchsorted(ends, draw.random(length) * ends[-1], side="right")]
        lines = [" ".join(words[start : start + 15]).capitalize() + "." for start in range(0, len(words), 15)]
        queries.append("\n".join([f"Question {number}?", *lines, *([CODE] if number % 7 == 0 else [])]))
    return queries


def task_queries(count: int, name: str) -> list[str]:
    """Take the queries of a task, over and over."""
    import mteb

    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.robustness.tasks import query_texts

    register()
    task: Any = mteb.get_task(name)
    task.load_data()
    return list(islice(cycle(list(query_texts(task))), count))


def measured(texts: list[str], source: WordNet, share: float) -> list[dict[str, Any]]:
    """Vary all texts by every kind, and measure."""
    from reasonembed_mteb.robustness.tasks import count_varied
    from reasonembed_mteb.robustness.variations import DRAWN, KINDS, Variation

    rows = []
    for kind in KINDS:
        if kind == "paraphrase":
            continue
        one = Variation(kind, 5 if kind in DRAWN else None, share, synonyms=source)
        started = time.process_time()
        varied = [one.vary(text) for text in texts]
        seconds = time.process_time() - started
        counts = count_varied(texts, varied)
        rows.append(
            {
                "variation": one.label,
                "processor_seconds": round(seconds, 1),
                "changed_queries": counts.changed_queries / counts.queries,
                "changed_words": counts.changed_words / counts.words,
                "eligible_words": counts.eligible_words / counts.words,
                "kept": counts.kept,
            }
        )
    return rows


def main() -> None:
    """Parse, measure, print."""
    from reasonembed_mteb.robustness.wordnet import read_wordnet

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("-t", "--task", help="take this task's queries instead of drawn ones")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--wordnet", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.process_time()
    source = read_wordnet(options.wordnet)
    reading = time.process_time() - started
    texts = (
        task_queries(options.queries, options.task)
        if options.task
        else drawn_queries(options.queries, options.seed, source)
    )
    rows = measured(texts, source, options.share)
    if options.json:
        print(json.dumps({"queries": len(texts), "reading_wordnet": reading, "rows": rows}, indent=1))
        return
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{len(texts):,} queries of {words:.0f} words on average; WordNet read in {reading:.1f} s\n")
    print(f"{'variation':16} {'processor s':>12} {'queries':>9} {'words':>9} {'eligible':>9}")
    for row in rows:
        shares = [100 * row[name] for name in ("changed_queries", "changed_words", "eligible_words")]
        print(
            f"{row['variation']:16} {row['processor_seconds']:12.1f} "
            + " ".join(f"{s:8.1f}%" for s in shares)
        )


if __name__ == "__main__":
    main()
