"""Published scores, each with its source, and how far from them a reproduction may honestly lie."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The `subset` of a macro mean.
MEAN = "mean"


@dataclass(frozen=True)
class PublishedScore:
    """One published number.

    Attributes:
        model: The model as its source calls it.
        benchmark: Ours where the protocol is the same one, else MTEB's; MTEB's long tasks are
            ``BRIGHT(v1.1) long``.
        subset: As our tables spell it, or `MEAN`.
        metric: MTEB's name.
        value: In percent.
        source: Where it stands.
        url: The source's address.
        note: What a reader must know to compare it.
        hub: Name on the hub, where it is known which model is meant.
        task: MTEB task name, ours or MTEB's own; None for a mean.
    """

    model: str
    benchmark: str
    subset: str
    metric: str
    value: float
    source: str
    url: str
    note: str = ""
    hub: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class PublishedComparison:
    """A published score and ours.

    Attributes:
        published: The published score.
        ours: In percent.
        difference: Ours less the published one, in points.
        within_noise: See `within_noise`.
    """

    published: PublishedScore
    ours: float
    difference: float
    within_noise: bool


@cache
def _content() -> dict[str, Any]:
    file = files("reasonembed_mteb.reporting") / "published.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


@cache
def _task_names() -> dict[tuple[str, str], str]:
    """Return task names by benchmark and subset."""
    from reasonembed_mteb.retrieval.rows import load_rows

    found = {}
    for row in load_rows():
        if row.is_rewritten:
            continue
        found[row.benchmark, row.subset] = row.name
        if row.is_mtebs and row.mteb_benchmark:
            found[row.mteb_benchmark, row.subset] = row.name
        if row.mteb_name is not None and row.mteb_benchmark:
            found[row.mteb_benchmark, row.subset] = row.mteb_name
    return found


def _scores_of(table: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[PublishedScore]:
    """Yield one model's scores in one table, and their mean if it was published or none is missing."""
    note = "; ".join(filter(None, (row.get("note"), table.get("note"))))
    about = {"model": row["model"], "hub": row.get("hub"), "note": note}
    about |= {key: table[key] for key in ("benchmark", "metric", "source", "url")}
    # Of a benchmark that is in none of our tables, the tasks are named beside the subsets.
    named = dict(zip(table["subsets"], table["tasks"], strict=True)) if "tasks" in table else {}
    for subset, value in zip(table["subsets"], row["scores"], strict=True):
        if not math.isnan(value):
            task = named.get(subset) or _task_names().get((table["benchmark"], subset))
            yield PublishedScore(subset=subset, value=value, task=task, **about)
    if "mean" in row:
        yield PublishedScore(subset=MEAN, value=row["mean"], **about)
    elif not any(map(math.isnan, row["scores"])):
        about["note"] = "; ".join(filter(None, (note, "mean computed here")))
        mean = math.fsum(row["scores"]) / len(row["scores"])
        yield PublishedScore(subset=MEAN, value=round(mean, 3), **about)


@cache
def published_scores() -> tuple[PublishedScore, ...]:
    """Return every published score, the paper's first."""
    return tuple(
        score for table in _content()["table"] for row in table["rows"] for score in _scores_of(table, row)
    )


@cache
def _by_hub() -> dict[str, tuple[PublishedScore, ...]]:
    grouped: dict[str, list[PublishedScore]] = {}
    for score in published_scores():
        if score.hub is not None:
            grouped.setdefault(score.hub, []).append(score)
    return {name: tuple(scores) for name, scores in grouped.items()}


def published_for(
    model: str, benchmark: str | None = None, metric: str | None = None
) -> tuple[PublishedScore, ...]:
    """Return what was published of one model, the paper's scores first.

    Args:
        model: Name on the hub, or another known name of the same weights.
        benchmark: Only of this benchmark.
        metric: Only of this metric.

    Returns:
        Its scores; none if nothing is known of it.
    """
    found = _by_hub().get(_content()["aliases"].get(model, model), ())
    return tuple(
        score for score in found if benchmark in (None, score.benchmark) and metric in (None, score.metric)
    )


def noise(*, is_mean: bool) -> float:
    """Return how far a reproduction may lie from the paper, in points of nDCG@10.

    Args:
        is_mean: For a macro mean, not for one subset.
    """
    points: float = _content()["noise"]["mean" if is_mean else "subset"]
    return points


def within_noise(difference: float, *, is_mean: bool) -> bool:
    """Return whether a difference is no larger than that of honest reproductions.

    Args:
        difference: Ours less the published score, in points.
        is_mean: For a macro mean, not for one subset.
    """
    # Differences of decimal fractions: 36.6 - 37.1 is not quite -0.5.
    return abs(difference) <= noise(is_mean=is_mean) + 1e-9


def compare_with_published(published: PublishedScore, ours: float) -> PublishedComparison:
    """Compare our score with a published one.

    Args:
        published: The published score.
        ours: In percent.
    """
    difference = ours - published.value
    return PublishedComparison(
        published, ours, difference, within_noise(difference, is_mean=published.subset == MEAN)
    )
