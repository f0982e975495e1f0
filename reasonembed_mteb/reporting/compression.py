"""The chapter on compression: answers read from K positions, beside the whole text, a cut one and none."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from reasonembed_mteb.escaping import figure_text
from reasonembed_mteb.evaluation.chapter_files import read_chapters
from reasonembed_mteb.evaluation.compression_record import (
    COMPRESSION_CHAPTER,
    CUT_TEXT,
    FULL_TEXT,
    MEMORY,
    NO_TEXT,
    read_compression_run,
)
from reasonembed_mteb.reporting.chapters import Chapter
from reasonembed_mteb.reporting.formats import MISSING, Grid, percent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from reasonembed_mteb.evaluation.compression_record import AnswerReading, CompressionRun

_TITLE = "Texts compressed into latent tokens"
_NOTES = (
    "every row of a model is read by the model itself; a text is cut to its first tokens",
    "seconds are of the machine that measured them, an answer's with the reading of its context",
)
_HEAD = ("model", "read from", "positions", "tokens / K", "EM", "F1", "nats", "bytes", "seconds")


def compression_chapters(folders: Sequence[Path]) -> tuple[list[Chapter], list[str]]:
    """Return the chapter of some output folders, if any of them has records of compression.

    Args:
        folders: Output folders.

    Returns:
        At most one chapter, and a line for each file that was left out.
    """
    runs, problems = read_chapters(folders, COMPRESSION_CHAPTER, read_compression_run)
    return ([compression_chapter(runs)] if runs else []), problems


def compression_chapter(runs: Sequence[CompressionRun]) -> Chapter:
    """Return the chapter of some records.

    Args:
        runs: At least one.
    """
    said = dict.fromkeys(f"{run.model}: {run.note}" for run in runs if run.note)
    return Chapter(
        COMPRESSION_CHAPTER,
        _TITLE,
        notes=(*_NOTES, *said),
        grids=(_table(runs),),
        pictures={"curve": partial(_curve, runs)},
        data=[asdict(run) for run in runs],
    )


def _table(runs: Sequence[CompressionRun]) -> Grid:
    rows = [
        row
        for run in runs
        for row in (*(_answers(run, reading) for reading in run.readings), *_embeddings(run))
    ]
    asked = ", ".join(dict.fromkeys(f"{run.examples:,} questions of {run.data}" for run in runs))
    return Grid(f"answers from {asked}", _HEAD, tuple(rows), words=2)


def _label(run: CompressionRun) -> str:
    return f"{run.model}, K = {run.latents}"


def _answers(run: CompressionRun, reading: AnswerReading) -> tuple[str, ...]:
    return (
        _label(run),
        reading.context,
        f"{reading.positions:,.1f}".removesuffix(".0"),
        f"{reading.rate:,.1f}" if reading.rate else MISSING,
        percent(reading.exact_match, 1),
        percent(reading.f1, 1),
        f"{reading.cross_entropy:.3f}",
        f"{reading.bytes_per_text:,.0f}",
        f"{reading.seconds:.4f}",
    )


def _embeddings(run: CompressionRun) -> list[tuple[str, ...]]:
    """Return what a vector costs, beside what an answer does."""
    nothing = (MISSING,) * 5
    size = f"{run.vector_bytes:,}"
    rows: list[tuple[str, ...]] = [
        (_label(run), "encode, a text", *nothing, size, f"{run.encode_seconds:.4f}")
    ]
    if run.reasoning_tokens:
        name = f"reason ({run.reasoning_tokens:,}), then embed, a question"
        rows.append((_label(run), name, *nothing, size, f"{run.reasoning_seconds:.4f}"))
    return rows


def _curve(runs: Sequence[CompressionRun]) -> Figure:
    # Not pyplot, which keeps every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "f1"), (right, "cross_entropy")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xscale("log")
        for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            axis("{x:g}")
        axes.set_xlabel("tokens of a text / positions that stand for it")
        for number, run in enumerate(runs):
            color = f"C{number % 10}"
            for context, style in ((MEMORY, "-"), (CUT_TEXT, ":")):
                points = sorted(
                    (one.rate, getattr(one, name)) for one in run.readings if one.context == context
                )
                label = figure_text(f"{_label(run)}: {context}")
                axes.plot(*zip(*points, strict=True), style, marker="o", color=color, label=label)
            for context, style in ((FULL_TEXT, "--"), (NO_TEXT, "-.")):
                value = next(getattr(one, name) for one in run.readings if one.context == context)
                label = figure_text(f"{_label(run)}: {context}")
                axes.axhline(value, linestyle=style, color=color, linewidth=1, label=label)
    left.set_ylim(0, 1.05)
    left.set_ylabel("F1")
    right.set_ylabel("cross entropy, nats a token")
    left.set_title(_TITLE, fontsize=10, loc="left")
    lines, labels = left.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure
