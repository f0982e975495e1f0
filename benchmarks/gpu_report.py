"""What benchmarks/gpu.py measured: one file of results a card, its tables, and their section of a page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import encode

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
WAYS = encode.WAYS | {"vllm": "vLLM's pooling"}
TRAINED = {
    "reference": "FlagEmbedding's scheme: sub-batches of 4, padded",
    "ours": "ours, padded",
    "packed": "ours, packed",
    "cached-packed": "ours, cached gradients, packed",
}


@dataclass
class Report:
    """What was measured; one file of results.

    Attributes:
        card: Name of the device.
        complete: Whether every part that was planned was run or left out for lack of time.
        minutes: What was given.
        seconds: What was taken.
        tiny: Whether tiny models stood in for those of the title, as on a machine without a card.
        date: UTC, ISO 8601.
        versions: Of packages.
        ceiling: FLOP/s of one large product in the weights' precision.
        correctness: A row a size and way.
        encoding: A row a size and way.
        search: A row a path.
        training: A row a size and way.
        memory: A row: what happened where memory ran out.
        left_out: Parts for which no time was left.
        failed: Parts that ended with an error, and the error.
    """

    card: str
    complete: bool = False
    minutes: float = 0.0
    seconds: float = 0.0
    tiny: bool = False
    date: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    ceiling: float = 0.0
    correctness: list[dict[str, Any]] = field(default_factory=list)
    encoding: list[dict[str, Any]] = field(default_factory=list)
    search: list[dict[str, Any]] = field(default_factory=list)
    training: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(report: dict[str, Any]) -> str:
    """Return a file of results as text."""
    found = [f"### {report['card']}", summary(report)]
    makers = (correctness_table, encoding_table, search_table, training_table, memory_table)
    found += [text for maker in makers if (text := maker(report))]
    if report["left_out"]:
        found.append("Left out for lack of time: " + ", ".join(report["left_out"]) + ".")
    found += [f"Failed: {name} ({why})." for name, why in report["failed"].items()]
    return "\n\n".join(found)


def summary(report: dict[str, Any]) -> str:
    """Say what was run, and whether all of it."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    whole = "" if report["complete"] else " The run was cut short: what follows is what it had measured."
    stand_in = " Tiny models stood in for those of the title." if report["tiny"] else ""
    return (
        f"`python benchmarks/gpu.py --minutes {report['minutes']:g}` on {report['date'][:10]}: random "
        f"weights, BRIGHT's lengths, {report['seconds']:,.0f} s in all; a large matrix product reaches "
        f"{report['ceiling'] / 1e12:,.2f} TFLOP/s. {versions}.{whole}{stand_in}"
    )


def correctness_table(report: dict[str, Any]) -> str:
    """Return the table of vectors and rankings against the fp32 reference."""
    rows = [
        [
            row["size"],
            row["way"],
            f"{row['least_cosine']:.6f}",
            f"{row['least_cosine_long']:.6f}",
            f"{row['first_difference']} / {row['median_first_difference']:.0f}",
            f"{100 * row['top_10_kept']:.1f} %",
        ]
        for row in report["correctness"]
    ]
    if not rows:
        return ""
    first = report["correctness"][0]
    said = (
        f"Against fp32, padded: {first['documents']:,} documents cut at {first['max_tokens']} tokens, "
        f"{first['queries']} queries, top 100."
    )
    head = [
        "size",
        "way",
        "least cosine",
        "least cosine, long texts",
        "first other rank: least / median",
        "top 10 kept",
    ]
    return f"{said}\n\n{table(head, rows)}"


def encoding_table(report: dict[str, Any]) -> str:
    """Return the table of encoding."""
    rows = [
        [
            row["size"],
            WAYS[row["way"]],
            f"{row['documents']:,}",
            f"{row['tokens_a_second']:,.0f}",
            f"{100 * row['share']:.0f} %",
            f"{row['peak_mib'] / 1024:,.1f}",
            f"{row['warm_up']:.0f}",
        ]
        for row in report["encoding"]
    ]
    head = ["size", "way", "documents", "tokens/s", "share of the ceiling", "peak GiB", "warm-up s"]
    return table(head, rows) if rows else ""


def search_table(report: dict[str, Any]) -> str:
    """Return the table of search."""
    rows = [
        [
            f"{row['documents']:,} x {row['dim']:,}",
            f"{row['exclusions']:,}",
            row["path"],
            f"{row['wall_s']:.2f}",
        ]
        for row in report["search"]
    ]
    return table(["vectors", "exclusions a query", "path", "wall s"], rows) if rows else ""


def training_table(report: dict[str, Any]) -> str:
    """Return the table of training steps."""
    rows = [
        [
            row["size"],
            TRAINED[row["way"]],
            f"{row['queries']} x {row['group']}",
            f"{row['seconds_a_step']:.2f}",
            f"{row['tokens_a_second']:,.0f}",
            f"{row['gib']:.2f}",
        ]
        for row in report["training"]
    ]
    head = ["size", "step of Redapter with LoRA", "queries x documents", "s/step", "tokens/s", "peak GiB"]
    return table(head, rows) if rows else ""


def memory_table(report: dict[str, Any]) -> str:
    """Return the table of the budget that was halved."""
    rows = [
        [row["size"], f"{row['asked']:,}", f"{row['fitted'] or 0:,}", f"{row['least_cosine']:.6f}"]
        for row in report["memory"]
    ]
    head = ["out of memory on purpose", "tokens a batch, asked", "fitted", "least cosine"]
    return table(head, rows) if rows else ""


def section(folder: Path = RESULTS) -> str:
    """Return the GPU section of docs/performance.md: what the results say, or that there are none."""
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("gpu-*.json"))]
    text = "\n\n".join(map(tables, reports)) or (
        "Nothing was measured on a GPU yet. `python benchmarks/gpu.py --minutes 9` measures it on one card;\n"
        "the packed path for CUDA (`torch.nn.attention.varlen`, compiled layers) is tested through a\n"
        "stand-in of the kernel."
    )
    return f"{BEGIN}\n{text}\n{END}"


def page_with(section: str, page: str) -> str:
    """Return a page with the section between the two markers replaced.

    Raises:
        ValueError: If it has not both markers, once and in order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        msg = f"the page must hold {BEGIN} and {END} once each"
        raise ValueError(msg)
    before, _, rest = page.partition(BEGIN)
    return before + section + rest.partition(END)[2]
