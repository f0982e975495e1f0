"""Attacks on corpora as tables, pictures and a chapter of the report."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.evaluation.chapter_files import read_chapters
from reasonembed_mteb.evaluation.poisoning_record import KIND, TEXT, PoisoningRecord, read_poisoning
from reasonembed_mteb.reporting.chapters import Chapter
from reasonembed_mteb.reporting.formats import Grid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from reasonembed_mteb.evaluation.poisoning_record import PoisoningOutcome

# The study's headline.
_HEADLINE = 20
_NOTES = (
    "ASR@k: share of the attacked queries with a poisoned document among the first k; the share of the "
    "poisoned corpus that k documents are stands beside it. Queries that made the passages are not attacked.",
    "fed as text: decoded and tokenised again, what can really be inserted; as ids: the tokens as the search "
    "left them, as the study (arXiv 2604.16576) feeds them. Being retrieved is not yet a wrong answer.",
)


def record_groups(records: Sequence[PoisoningRecord]) -> list[list[PoisoningRecord]]:
    """Return records that differ in the seed alone, together.

    Args:
        records: In any order.
    """
    found: dict[str, list[PoisoningRecord]] = defaultdict(list)
    for one in records:
        settings = {name: value for name, value in one.settings.items() if name != "seed"}
        found[repr((one.model, one.task, one.documents, one.halves, sorted(settings.items())))].append(one)
    return [sorted(held, key=lambda one: one.seed) for _, held in sorted(found.items())]


def poisoning_grid(records: Sequence[PoisoningRecord]) -> Grid:
    """Return the table of an attack, over its seeds.

    Args:
        records: One a seed.
    """
    first = records[0]
    size = first.settings
    total = first.documents + size["passages"]
    cutoffs = sorted({k for one in records for row in one.outcomes for k in row.asr})
    head = [f"ASR@{k} ({100 * k / total:.2g} %)" for k in cutoffs]
    by_row: dict[tuple[str, str, str], list[PoisoningOutcome]] = defaultdict(list)
    for one in records:
        for row in one.outcomes:
            by_row[row.model, row.attack, row.fed].append(row)
    rows = tuple((*key, *(_rate(held, k) for k in cutoffs), *_ndcg(held)) for key, held in by_row.items())
    seeds = ", ".join(str(one.seed) for one in records)
    title = (
        f"{first.model} on {first.task}: {size['passages']} passages of {size['tokens']} tokens among "
        f"{first.documents:,} documents, {first.attacked:,} queries attacked, seed {seeds}; in %"
    )
    return Grid(
        title,
        ("retriever", "attack", "fed as", *head, "nDCG@10", "poisoned", "loss (95 %)"),
        rows,
        tuple(_remarks(records)),
        words=3,
    )


def _rate(held: Sequence[PoisoningOutcome], k: int) -> str:
    """Return ASR@k over seeds; nothing where no call measured it."""
    shares = [row.asr[k] for row in held if k in row.asr]
    return _spread(shares) if shares else ""


def _spread(shares: Sequence[float]) -> str:
    """Return a mean in per cent; of several seeds with the population deviation, as in the study."""
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.pstdev(shares):.1f}"


def _ndcg(held: Sequence[PoisoningOutcome]) -> tuple[str, str, str]:
    before, after = _spread([row.before for row in held]), _spread([row.after for row in held])
    if len(held) > 1:
        return before, after, _spread([row.loss[0] for row in held])
    mean, low, high = (100 * one for one in held[0].loss)
    return before, after, f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _remarks(records: Sequence[PoisoningRecord]) -> list[str]:
    first = records[0]
    way = "the other half of them" if first.halves else "those of another split"
    lines = [f"passages made from {first.making:,} queries, {way}"]
    ends = [one.objective for one in records if one.objective is not None]
    if ends:
        start, end = (statistics.fmean(one[place] for one in ends) for place in (0, 1))
        size = first.settings
        lines.append(
            f"search: {size['iterations']:,} iterations of {size['candidates']} candidates, begun as "
            f"{size['start']} documents; mean similarity to the validation queries {start:.4f} to {end:.4f}"
        )
    return lines


def success_plot(records: Sequence[PoisoningRecord]) -> Figure:
    """Return how often each attack's text is found, by retriever.

    Args:
        records: One a seed.
    """
    from matplotlib.figure import Figure

    from reasonembed_mteb.escaping import figure_text

    rows = [row for one in records for row in one.outcomes if row.fed == TEXT]
    k = _headline(rows)
    bars: dict[str, list[float]] = defaultdict(list)
    for row in (one for one in rows if k in one.asr):
        bars[f"{row.attack}\n{row.model}"].append(row.asr[k])
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    places = range(len(bars))
    means = [100 * statistics.fmean(shares) for shares in bars.values()]
    spreads = [100 * statistics.pstdev(shares) for shares in bars.values()]
    axes.barh(places, means, 0.6, color="#2a6fd6", xerr=spreads if max(spreads) else None, ecolor="black")
    axes.set_yticks(places, [figure_text(name) for name in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    share = 100 * k / (records[0].documents + records[0].settings["passages"])
    axes.set_xlabel(f"ASR@{k}, % of the attacked queries; {k} documents are {share:.2g} % of the corpus")
    axes.set_title(
        figure_text(f"{records[0].task}: poisoned documents found, as text"), fontsize=10, loc="left"
    )
    return figure


def _headline(rows: Sequence[PoisoningOutcome]) -> int:
    """Return the study's depth, or where not every row has it, the deepest of those that most rows have."""
    counts = Counter(k for row in rows for k in row.asr)
    return _HEADLINE if counts[_HEADLINE] == len(rows) else max(counts, key=lambda k: (counts[k], k))


def poisoning_chapters(folders: Sequence[Path]) -> tuple[list[Chapter], list[str]]:
    """Return the chapter on poisoning of some output folders, and a line for each record that was left out.

    Args:
        folders: Output folders.
    """
    records, problems = read_chapters(folders, KIND, read_poisoning)
    if not records:
        return [], problems
    held = record_groups(records)
    pictures: dict[str, Any] = {
        f"success-{number}": partial(success_plot, group) for number, group in enumerate(held, 1)
    }
    return [
        Chapter(
            name=KIND,
            title="Corpus poisoning",
            notes=_NOTES,
            grids=tuple(map(poisoning_grid, held)),
            pictures=pictures,
            data=[asdict(one) for group in held for one in group],
        )
    ], problems
