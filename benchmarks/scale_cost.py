"""What a corpus costs: size of its vectors, hours of encoding, time of a search; a table for docs/scale.md.

    python benchmarks/scale_cost.py [--documents N ...] [--tokens-a-second N] [--cards N] ...

Everything that is assumed is an argument. `python benchmarks/store_search.py` measures what the time of a
search rests on.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class Assumptions:
    """What the costs follow from.

    Attributes:
        tokens_a_document: On average.
        dimensions: Of a vector.
        tokens_a_second: That one card (or machine) encodes.
        cards: How many encode.
        card_price: Of an hour of one card.
        scan_a_second: Bytes of vectors that one processor searches in a second, for one batch of queries.
        processors: How many search.
        fetch_a_second: Bytes that one machine reads from storage in a second.
        machines: How many read.
    """

    tokens_a_document: float
    dimensions: int
    tokens_a_second: float
    cards: int
    card_price: float
    scan_a_second: float
    processors: int
    fetch_a_second: float
    machines: int


@dataclass(frozen=True)
class Cost:
    """What a corpus costs.

    Attributes:
        sizes: Bytes of its vectors, by dtype.
        hours: Of encoding, on all cards.
        price: Of encoding.
        search: Seconds of a pass over float16 vectors in memory, for one batch of queries.
        first: Seconds until they have been read from storage.
    """

    sizes: dict[str, float]
    hours: float
    price: float
    search: float
    first: float


def cost(documents: float, given: Assumptions) -> Cost:
    """Work out the cost of a corpus."""
    sizes = {name: documents * given.dimensions * size for name, size in BYTES.items()}
    hours = documents * given.tokens_a_document / given.tokens_a_second / given.cards / 3600
    return Cost(
        sizes=sizes,
        hours=hours,
        price=hours * given.cards * given.card_price,
        search=sizes["float16"] / given.scan_a_second / given.processors,
        first=sizes["float16"] / given.fetch_a_second / given.machines,
    )


def size(count: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Return a time for people."""
    for unit, many in (("s", 60), ("min", 60), ("h", 48)):
        if seconds < many:
            return f"{seconds:.2g} {unit}"
        seconds /= {"s": 60, "min": 60, "h": 24}[unit]
    return f"{seconds:.3g} d"


def table(documents: list[float], given: Assumptions) -> str:
    """Return the table."""
    head = "| documents | float32 | float16 | int8 | encoding | price | search of a batch | read once |"
    lines = [head, "|--:" * 8 + "|"]
    for count in documents:
        one = cost(count, given)
        sizes = " | ".join(size(one.sizes[name]) for name in BYTES)
        lines.append(
            f"| {count:,.0f} | {sizes} | {duration(3600 * one.hours)} | {one.price:,.0f} | "
            f"{duration(one.search)} | {duration(one.first)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=float, nargs="+", default=[1e5, 1e6, 1e8, 1e9])
    parser.add_argument("--tokens-a-document", type=float, default=150)
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--tokens-a-second", type=float, default=100_000)
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--card-price", type=float, default=3.0)
    parser.add_argument("--scan-a-second", type=float, default=1e9)
    parser.add_argument("--processors", type=int, default=64)
    parser.add_argument("--fetch-a-second", type=float, default=1e9)
    parser.add_argument("--machines", type=int, default=8)
    given = vars(parser.parse_args())
    documents = given.pop("documents")
    print(table(documents, Assumptions(**given)))


if __name__ == "__main__":
    main()
