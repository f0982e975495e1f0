"""Chapters of a report: what was measured besides scores of models on tasks, as tables and pictures."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import missing_extra

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from reasonembed_mteb.reporting.formats import Grid


@dataclass(frozen=True)
class Chapter:
    """One chapter.

    Attributes:
        name: One word, for links and file names.
        title: Its heading.
        notes: Lines below the heading: what was measured, and what it must not be compared with.
        grids: Its tables.
        pictures: What draws each picture, by its name.
        data: The numbers themselves, for JSON.
    """

    name: str
    title: str
    notes: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    pictures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    data: Any = None


Finder = Callable[[Sequence["Path"]], tuple[Sequence[Chapter], Sequence[str]]]

# Functions of output folders: their chapters, and a line for each file that was left out. By name, so that a
# report loads only what it needs.
FINDERS: tuple[str, ...] = (
    "reasonembed_mteb.reporting.pipelines:pipeline_chapters",
    "reasonembed_mteb.reporting.robustness:robustness_chapters",
    "reasonembed_mteb.reporting.poisoning:poisoning_chapters",
    "reasonembed_mteb.reporting.tax:tax_chapters",
    "reasonembed_mteb.reporting.reasoning:reasoning_chapters",
    "reasonembed_mteb.reporting.compression:compression_chapters",
)


def chapter_grids(chapter: Chapter) -> list[Grid]:
    """Return a chapter's tables under its title; its notes stand below the first."""
    from dataclasses import replace

    grids = [replace(grid, title=f"{chapter.title}: {grid.title}") for grid in chapter.grids]
    return [replace(grids[0], notes=(*grids[0].notes, *chapter.notes)), *grids[1:]] if grids else []


def drawn_pictures(chapter: Chapter) -> dict[str, Figure]:
    """Draw a chapter's pictures, by name.

    Raises:
        MissingExtraError: If there are some and matplotlib is not installed.
    """
    try:
        return {name: draw() for name, draw in chapter.pictures.items()}
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise missing_extra("matplotlib", "report") from error


def find_chapters(
    folders: Sequence[Path], finders: Sequence[str] = FINDERS
) -> tuple[list[Chapter], list[str]]:
    """Return every chapter of some output folders, and a line for each file that was left out.

    Args:
        folders: Output folders.
        finders: ``module:function`` of each kind of chapter.
    """
    chapters: list[Chapter] = []
    problems: list[str] = []
    for name in finders:
        module, _, function = name.partition(":")
        found, lines = getattr(importlib.import_module(module), function)(folders)
        chapters += found
        problems += lines
    return chapters, problems
