"""The specialisation tax of one model as a typed record: one writer, one reader."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.evaluation.chapter_files import read_chapter, write_chapter

if TYPE_CHECKING:
    from pathlib import Path

KIND = "tax"


@dataclass(frozen=True)
class SideScore:
    """A model and its baseline on one suite; scores in ``[0, 1]``.

    Attributes:
        tasks: The model's main score by task.
        baseline_tasks: The baseline's.
        mean: The model's macro mean over the tasks.
        baseline_mean: The baseline's.
        pooled: The model's mean over all queries, each counted once.
        baseline_pooled: The baseline's.
        difference: ``mean - baseline_mean``, and the ends of its interval, paired over queries.
        queries: How many.
        metrics: Names of the tasks' main scores, each once.
    """

    tasks: dict[str, float]
    baseline_tasks: dict[str, float]
    mean: float
    baseline_mean: float
    pooled: float
    baseline_pooled: float
    difference: tuple[float, float, float]
    queries: int
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class TaxRecord:
    """What a model gains on reasoning and loses elsewhere against a baseline.

    Attributes:
        model: Its label.
        baseline: The baseline's label: another model, or the backbone that it was trained from.
        reasoning: The reasoning suite.
        general: The general suite.
        limit: Queries a task of a smoke run; None for a full one.
        versions: Of the packages that a score depends on.
    """

    model: str
    baseline: str
    reasoning: SideScore
    general: SideScore
    limit: int | None = None
    versions: dict[str, str] = field(default_factory=dict)


def write_tax(file: Path, record: TaxRecord) -> None:
    """Write a record, whole or not at all.

    Args:
        file: See `reasonembed_mteb.evaluation.chapter_files.chapter_file`.
        record: What was measured.
    """
    write_chapter(file, record)


def read_tax(file: Path) -> TaxRecord:
    """Read a record.

    Args:
        file: Written by `write_tax`.

    Raises:
        DataError: If it is damaged or of another format.
    """
    return read_chapter(file, _record, "the specialisation tax", "reasonembed tax")


def _record(content: dict[str, Any]) -> TaxRecord:
    suites: dict[str, Any] = {name: _suite(content.pop(name)) for name in ("reasoning", "general")}
    names = {one.name for one in fields(TaxRecord)} - suites.keys()
    return TaxRecord(**{name: content[name] for name in names}, **suites)


def _suite(content: dict[str, Any]) -> SideScore:
    mean, low, high = (float(one) for one in content.pop("difference"))
    metrics = tuple(content.pop("metrics"))
    return SideScore(**content, difference=(mean, low, high), metrics=metrics)
