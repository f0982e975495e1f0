"""Geometry of a model's document vectors and weights: the record, and what may be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.chapter_files import chapter_file, read_chapter, read_chapters, write_chapter
from reasonembed_mteb.files import is_number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KIND = "geometry"


@dataclass(frozen=True)
class VectorShape:
    """How a set of vectors lies in its space.

    Attributes:
        vectors: How many.
        dimensions: Of each.
        isoscore: IsoScore (arXiv 2108.07344), in ``[0, 1]``: 1 where all directions vary alike; None where
            nothing varies.
        gaussian_isoscore: What an isotropic Gaussian of as many vectors and dimensions scores.
        mean_cosine: Mean cosine over all pairs, each vector with itself among them.
        effective_rank: Exponential of the entropy of the covariance's eigenvalues; None where nothing varies.
        norm_mean: Mean length.
        norm_deviation: Population deviation of the lengths.
    """

    vectors: int
    dimensions: int
    isoscore: float | None
    gaussian_isoscore: float
    mean_cosine: float
    effective_rank: float | None
    norm_mean: float
    norm_deviation: float


@dataclass(frozen=True)
class WeightNorms:
    """Spectral norms of a model's linear layers.

    Attributes:
        layers: How many.
        mean: Mean over them.
        largest: Largest.
        smallest: Smallest.
        deviation: Population deviation.
        last: Of the last one.
    """

    layers: int
    mean: float
    largest: float
    smallest: float
    deviation: float
    last: float


@dataclass(frozen=True)
class Geometry:
    """One model on one task's documents.

    Attributes:
        model: As it is shown.
        revision: Of the model.
        task: The task.
        seed: Of the draw of documents.
        shape: Of the document vectors.
        weights: None for models whose weights are not at hand.
    """

    model: str
    revision: str | None
    task: str
    seed: int
    shape: VectorShape
    weights: WeightNorms | None = None


def check_comparable(geometries: Sequence[Geometry]) -> None:
    """Refuse to compare vectors of unequal number: IsoScore and effective rank grow with it.

    Args:
        geometries: Of one task.

    Raises:
        DataError: If they were not measured over as many vectors.
    """
    counts = {one.model: one.shape.vectors for one in geometries}
    if len({one.shape.vectors for one in geometries}) > 1:
        listed = ", ".join(f"{model} over {count:,}" for model, count in counts.items())
        msg = (
            f"{geometries[0].task}: geometry was measured over unequal numbers of vectors ({listed}), which "
            "cannot be compared; measure all over the same number (--vectors)"
        )
        raise DataError(msg)


def write_geometry(output: Path, geometry: Geometry) -> Path:
    """Write a geometry, whole or not at all.

    Args:
        output: Output folder.
        geometry: What to write; one of the same model and task is replaced.

    Returns:
        The file.
    """
    file = chapter_file(output, KIND, f"{geometry.model}-{geometry.revision}-{geometry.task}")
    write_chapter(file, geometry)
    return file


def read_geometries(folders: Sequence[Path]) -> tuple[list[Geometry], list[str]]:
    """Return every geometry of some output folders, and a line for each file that was left out.

    Args:
        folders: Output folders.
    """
    return read_chapters(folders, KIND, read_geometry)


def read_geometry(file: Path) -> Geometry:
    """Read a geometry.

    Args:
        file: Written by `write_geometry`.

    Raises:
        DataError: If it is damaged, or of another format.
    """
    return read_chapter(file, _geometry, "geometry", "reasonembed robustness --geometry")


def _geometry(content: dict[str, Any]) -> Geometry:
    weights = content.pop("weights")
    shape = VectorShape(**content.pop("shape"))
    norms = WeightNorms(**weights) if weights is not None else None
    found = Geometry(**content, shape=shape, weights=norms)
    numbers = [*asdict(shape).values(), *(asdict(norms).values() if norms else ())]
    if not all(value is None or is_number(value) for value in numbers):
        raise ValueError
    if not all(isinstance(text, str) for text in (found.model, found.task)):
        raise ValueError
    return found
