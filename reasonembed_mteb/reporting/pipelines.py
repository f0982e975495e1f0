"""The chapter on pipelines: what each stage adds and costs, quality over price, and published pipelines."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import DataError, first_names
from reasonembed_mteb.escaping import figure_text
from reasonembed_mteb.evaluation.kinds import PIPELINE
from reasonembed_mteb.evaluation.stages import (
    BASELINE,
    STAGE_MEASURES,
    PipelineRecord,
    StageCost,
    StageRecord,
    add_costs,
    joined_stage,
    open_rankings,
    read_stages,
)
from reasonembed_mteb.reporting.chapters import Chapter
from reasonembed_mteb.reporting.formats import MISSING, Grid, percent
from reasonembed_mteb.reporting.published import MEAN, published_scores
from reasonembed_mteb.retrieval.rows import benchmarks, row_of_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

_SCORE = STAGE_MEASURES[0]
_PER = 1000
_NOTES = (
    "One protocol for every pipeline; never to be ranked with single models.",
    "Calls, tokens and price are those of every request, as if nothing had been on disk; seconds are of the "
    "run that finished a stage.",
)
_TUNED = "tuned on test: its weights were chosen by the labels that it is scored with"


@dataclass(frozen=True)
class PipelineSummary:
    """One pipeline over tasks of one benchmark.

    Attributes:
        pipeline: Its name, with its revision where two share one.
        benchmark: Whose tasks; which of them where not all were run, so that other ones are not compared.
        tasks: How many were scored.
        queries: How many, over all of them.
        stages: Each with means over the tasks, and sums of what it cost.
        tuned_on_test: Whether any stage was.
    """

    pipeline: str
    benchmark: str
    tasks: int
    queries: int
    stages: tuple[StageRecord, ...]
    tuned_on_test: bool

    @property
    def score(self) -> float:
        """The last ranking's mean nDCG@10."""
        return next(stage.scores[_SCORE] for stage in reversed(self.stages) if stage.scores)

    @property
    def cost(self) -> StageCost:
        """What all stages cost."""
        return add_costs(stage.note.cost for stage in self.stages)

    @property
    def price(self) -> float | None:
        """Price of 1,000 queries; None where requests have no price."""
        cost = self.cost
        if cost.price is None:
            return None if cost.calls else 0.0
        return _PER * cost.price / max(self.queries, 1)


def pipeline_chapters(folders: Sequence[Path]) -> tuple[list[Chapter], list[str]]:
    """Return the chapter on the pipelines of some output folders.

    Args:
        folders: Output folders.

    Returns:
        The chapter, where there are pipelines, and a line for each record that cannot be read.
    """
    found: dict[tuple[str, str, str], PipelineRecord] = {}
    problems: list[str] = []
    for folder in folders:
        for file in sorted(folder.glob(f"records/{PIPELINE}__*/*/*.stages.json")):
            try:
                record = read_stages(file)
            except DataError as error:
                problems.append(str(error))
                continue
            found.setdefault((record.pipeline, record.revision, record.task), record)
    summaries = summarised(list(found.values()))
    return ([_chapter(summaries)] if summaries else []), problems


def summarised(records: Sequence[PipelineRecord]) -> list[PipelineSummary]:
    """Return each pipeline on each benchmark, the best first.

    Args:
        records: One a pipeline and task.
    """
    grouped: dict[tuple[str, str, str], list[PipelineRecord]] = {}
    for record in records:
        grouped.setdefault((_benchmark(record), record.pipeline, record.revision), []).append(record)
    names = {name: {r for b, n, r in grouped if n == name} for _, name, _ in grouped}
    made = [
        _summary(f"{name} @{revision[:8]}" if len(names[name]) > 1 else name, _compared(benchmark, own), own)
        for (benchmark, name, revision), own in grouped.items()
    ]
    return sorted(made, key=lambda one: (one.benchmark, -one.score, one.pipeline))


def _benchmark(record: PipelineRecord) -> str:
    row = row_of_task(record.task)
    name = row.benchmark if row is not None else record.task
    return f"{name}, first {record.limit} queries" if record.limit else name


def _compared(benchmark: str, records: Sequence[PipelineRecord]) -> str:
    """Return a benchmark's name, with the tasks where some are missing: means over others say nothing."""
    known = benchmarks().get(benchmark.partition(", first ")[0], [])
    tasks = sorted(record.task for record in records)
    if len(tasks) >= len(known):
        return benchmark
    return f"{benchmark}, {len(tasks)} of {len(known)} tasks ({first_names(tasks, 2)})"


def _summary(name: str, benchmark: str, records: Sequence[PipelineRecord]) -> PipelineSummary:
    stages = [
        joined_stage([record.stages[place] for record in records]) for place in range(len(records[0].stages))
    ]
    tuned = any(record.tuned_on_test for record in records)
    queries = sum(record.queries for record in records)
    return PipelineSummary(name, benchmark, len(records), queries, tuple(stages), tuned)


@dataclass(frozen=True)
class WaterfallStep:
    """What stands after a stage that changes the ranking.

    Attributes:
        stage: The stage; empty for retrieval on the original queries.
        label: What it is called in a picture.
        score: nDCG@10, ``[0, 1]``.
    """

    stage: str
    label: str
    score: float


def waterfall_steps(summary: PipelineSummary) -> list[WaterfallStep]:
    """Return what stands after each stage that changes the ranking.

    Several rankings side by side count as their best one; retrieval on the original queries, where it was
    measured, stands first.

    Args:
        summary: One pipeline.
    """
    steps: list[WaterfallStep] = []
    beside: dict[str, float] = {}
    for stage in summary.stages:
        plain = [own[_SCORE] for name, own in stage.parts.items() if name.startswith(BASELINE)]
        if plain and not steps:
            steps.append(WaterfallStep("", "original queries", max(plain)))
        measured = {"": stage.scores} if stage.scores else stage.parts
        own = {
            f"{stage.name}/{name}": one[_SCORE]
            for name, one in measured.items()
            if not name.startswith(BASELINE)
        }
        if own:
            beside = open_rankings(beside, stage.kind, own)
            label = stage.name if len(beside) == 1 else f"{stage.name} (best of {len(beside)})"
            steps.append(WaterfallStep(stage.name, label, max(beside.values())))
    return steps


def pareto_front(summaries: Sequence[PipelineSummary]) -> list[PipelineSummary]:
    """Return the pipelines that no other one beats at the same or a lower price, the cheapest first.

    Args:
        summaries: Of one benchmark; those without a price are left out.
    """
    priced = [(one.price, one.score, one) for one in summaries if one.price is not None]
    return [
        one
        for price, score, one in sorted(priced, key=lambda item: (item[0], -item[1]))
        if not any(p <= price and s >= score and (p, s) != (price, score) for p, s, _ in priced)
    ]


def _chapter(summaries: Sequence[PipelineSummary]) -> Chapter:
    compared = dict.fromkeys(one.benchmark for one in summaries)
    grids, pictures = [], {}
    for number, benchmark in enumerate(compared):
        own = [one for one in summaries if one.benchmark == benchmark]
        grids.append(_cost_grid(benchmark, own))
        grids += [_stage_grid(one) for one in own]
        # One point says no more than the table.
        if sum(one.price is not None for one in own) > 1:
            pictures[f"price-{number}"] = partial(price_plot, own)
        pictures |= {f"waterfall-{number}-{place}": partial(waterfall, one) for place, one in enumerate(own)}
    grids.append(_published_grid())
    data = [asdict(one) | {"score": one.score, "price_per_1000": one.price} for one in summaries]
    return Chapter("pipelines", "Pipelines", _NOTES, tuple(grids), pictures, data)


def _stage_grid(summary: PipelineSummary) -> Grid:
    steps = waterfall_steps(summary)
    adds = {
        after.stage: f"{100 * (after.score - before.score):+.2f}"
        for before, after in itertools.pairwise(steps)
    }
    rows: list[tuple[str, ...]] = []
    for stage in summary.stages:
        rows += [(f"  {name}", *_scores(own), *[""] * 7) for name, own in stage.parts.items()]
        rows.append((stage.name, *_scores(stage.scores), adds.get(stage.name, ""), *_costs(stage.note.cost)))
    rows.append(("all", *[""] * 4, *_costs(summary.cost)))
    head = ("stage", "nDCG@10", "R@10", "R@100", "adds", "calls", "from disk", "tokens in", "tokens out")
    title = f"{summary.pipeline} on {summary.benchmark}, stage by stage, in %"
    return Grid(title, (*head, "price", "seconds"), tuple(rows), tuple(_stage_notes(summary)))


def _stage_notes(summary: PipelineSummary) -> Iterator[str]:
    tasks = f"{summary.tasks} tasks, " if summary.tasks > 1 else ""
    yield f"{tasks}{summary.queries:,} queries"
    if summary.tuned_on_test:
        yield _TUNED
    for stage in summary.stages:
        told = [f"{name} {count:,}" for name, count in stage.note.counts.items()]
        if unknown := stage.note.cost.uncounted:
            told.append(f"answers without a count of tokens {unknown:,}, whose price is not known")
        told += [f"{name} {', '.join(map(str, own))}" for name, own in stage.note.chosen.items()]
        if stage.tuned_on_test and not stage.note.chosen:
            told.append("its weights were chosen for each task or pool by itself, and differ")
        if told:
            yield f"{stage.name}: {', '.join(told)}"


def _scores(scores: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(percent(scores[name]) if name in scores else "" for name in STAGE_MEASURES)


def _costs(cost: StageCost) -> tuple[str, ...]:
    price = MISSING if cost.price is None else f"{cost.price:,.4f}"
    counts = (cost.calls, cost.cached, cost.prompt_tokens, cost.completion_tokens)
    return (*(f"{count:,}" for count in counts), price, f"{cost.seconds:,.1f}")


def _cost_grid(benchmark: str, summaries: Sequence[PipelineSummary]) -> Grid:
    front = pareto_front(summaries)
    rows = tuple(
        (
            one.pipeline + (" *" if one.tuned_on_test else ""),
            percent(one.score),
            MISSING if one.price is None else f"{one.price:,.4f}",
            f"{_PER * one.cost.calls / max(one.queries, 1):,.0f}",
            f"{_PER * (one.cost.prompt_tokens + one.cost.completion_tokens) / max(one.queries, 1):,.0f}",
            f"{one.tasks}",
            "yes" if one in front else "",
        )
        for one in summaries
    )
    head = ("pipeline", "nDCG@10", "price", "calls", "tokens", "tasks", "on the front")
    notes = ["price, calls and tokens of 1,000 queries; on the front: no other is better at that price"]
    notes += [f"* {_TUNED}"] if any(one.tuned_on_test for one in summaries) else []
    return Grid(f"{benchmark}: quality and cost", head, rows, tuple(notes))


def _published_grid() -> Grid:
    """Return what was published of pipelines on BRIGHT."""
    held = [one for one in published_scores() if one.benchmark.endswith(", pipelines") and one.subset == MEAN]
    rows = tuple((one.model, f"{one.value:.1f}", one.source) for one in held)
    notes = tuple(dict.fromkeys(f"{one.url}: {one.note}" for one in held))
    return Grid("published pipelines, BRIGHT nDCG@10 in %", ("pipeline", "mean", "source"), rows, notes)


def waterfall(summary: PipelineSummary) -> Figure:
    """Return what each stage adds to nDCG@10.

    Args:
        summary: One pipeline.
    """
    from reasonembed_mteb.reporting.pictures import BLUE, GREY, ORANGE, new_figure

    steps = waterfall_steps(summary)
    figure, axes = new_figure(max(7.0, 2.5 + 1.1 * len(steps)), 4.0)
    before = 0.0
    for place, step in enumerate(steps):
        after = 100 * step.score
        color = GREY if not place else BLUE if after >= before else ORANGE
        low, high = sorted((before, after))
        axes.bar(place, high - low, 0.6, low, color=color)
        told = f"{after:.1f}" if not place else f"{after:.1f} ({after - before:+.1f})"
        axes.annotate(told, (place, high), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        if place + 1 < len(steps):
            axes.hlines(after, place - 0.3, place + 1.3, color=GREY, linewidth=0.7)
        before = after
    names = [figure_text(step.label) for step in steps]
    axes.set_xticks(range(len(steps)), names, fontsize=8, rotation=20, ha="right")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("nDCG@10, %")
    axes.set_title(
        f"{figure_text(summary.pipeline)}\n{figure_text(summary.benchmark)}", fontsize=9, loc="left"
    )
    return figure


def price_plot(summaries: Sequence[PipelineSummary]) -> Figure:
    """Return quality over the price of 1,000 queries, with the Pareto front.

    Args:
        summaries: Of one benchmark.
    """
    from reasonembed_mteb.reporting.pictures import BLUE, GREY, new_figure

    figure, axes = new_figure(8, 4.6)
    front = [(one.price or 0.0, 100 * one.score) for one in pareto_front(summaries)]
    axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, label="Pareto front")
    for one in summaries:
        if one.price is None:
            continue
        axes.scatter(one.price, 100 * one.score, 45, color=BLUE, edgecolor="white", zorder=3)
        axes.annotate(
            figure_text(one.pipeline + (" (tuned on test)" if one.tuned_on_test else "")),
            (one.price, 100 * one.score),
            (7, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.margins(0.15)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("price of 1,000 queries, in the currency of the endpoints' prices")
    axes.set_ylabel("nDCG@10, %")
    title = f"Pipelines, quality over price\n{figure_text(summaries[0].benchmark)}"
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def stage_table(record: PipelineRecord) -> Grid:
    """Return one pipeline on one task, stage by stage.

    Args:
        record: See `reasonembed_mteb.evaluation.stages`.
    """
    return _stage_grid(_summary(record.pipeline, record.task, [record]))
