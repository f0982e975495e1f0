"""The chapter on robustness: drops by variation, as the study has them and with intervals, and geometry."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.escaping import figure_text
from reasonembed_mteb.evaluation.geometries import check_comparable, read_geometries
from reasonembed_mteb.evaluation.profiles import read_profiles
from reasonembed_mteb.reporting.bootstrap import RESAMPLES, resampled_means
from reasonembed_mteb.reporting.chapters import Chapter
from reasonembed_mteb.reporting.formats import MISSING, Grid, percent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from reasonembed_mteb.evaluation.geometries import Geometry
    from reasonembed_mteb.evaluation.profiles import Profile, VariedRun

_LEVEL = 0.95
_COLORS = ("#2a6fd6", "#c2621f", "#2f8f5b", "#8b4fb3", "#6b7280", "#b3323c")
_MARKERS = ("o", "s", "^", "D", "v", "P")
PROFILE_NOTES = (
    "drop: (clean - varied) / clean of the mean nDCG@10 by seed, its mean over the seeds; ±: population "
    "deviation over the seeds, as in arXiv 2604.16576; none where nothing is drawn.",
    "95 %: bootstrap interval of the mean drop over queries and seeds, 9,999 resamples.",
    "synonyms are WordNet's alone: the study's second source, counter-fitted word vectors, and its filter by "
    "sentence similarity cannot be had. shuffle and keywords are no variations of the study.",
    "The study's mixed model (query type, task, corpus) is left out: its 42,524 queries are not at hand.",
)
GEOMETRY_NOTES = (
    "Gaussian: what an isotropic Gaussian of as many vectors and dimensions scores; compare IsoScore with "
    "that, and at an equal number of vectors only.",
    "Effective rank and lengths are ours; spectral norm: mean and largest over the weights of linear layers.",
    "The study's link between geometry and robustness rests on seven models: weak evidence, no target.",
)


@dataclass(frozen=True)
class Drop:
    """What one kind of variation costs one model on one task.

    Attributes:
        variation: Its kind.
        seeds: Number of runs.
        score: Mean nDCG@10 over them.
        drop: Mean relative drop; None where the clean score is 0.
        deviation: Population deviation over seeds; None where nothing is drawn.
        low: Lower end of the bootstrap interval; None with fewer than two queries.
        high: Upper end.
        changed_queries: Share of the queries with another text, over all runs.
        changed_words: Share of the words that were changed.
        eligible_words: Share of the words that may be changed.
        kept: Queries that stayed as they were, by reason, over all runs.
    """

    variation: str
    seeds: int
    score: float
    drop: float | None
    deviation: float | None
    low: float | None
    high: float | None
    changed_queries: float
    changed_words: float
    eligible_words: float
    kept: dict[str, int]


def profile_drops(profile: Profile, *, resamples: int = RESAMPLES, seed: int = 0) -> list[Drop]:
    """Return the drops of a profile, by kind of variation in its own order.

    Args:
        profile: One model on one task.
        resamples: Random samples of queries and seeds.
        seed: Of the samples.
    """
    kinds: dict[str, list[VariedRun]] = defaultdict(list)
    for one in profile.runs:
        kinds[one.variation].append(one)
    return [_drop(profile, kind, runs, resamples, seed) for kind, runs in kinds.items()]


def _drop(profile: Profile, kind: str, runs: Sequence[VariedRun], resamples: int, seed: int) -> Drop:
    matrix = np.array([profile.clean, *(run.scores for run in runs)], dtype=float)
    clean, *varied = matrix.mean(axis=1)
    drops = (clean - np.array(varied)) / clean if clean > 0 else None
    drawn = runs[0].seed is not None
    low, high = _interval(matrix, resamples, seed) if drops is not None else (None, None)
    counts = [run.counts for run in runs]
    words = sum(one.words for one in counts)
    reasons = sorted({reason for one in counts for reason in one.kept})
    return Drop(
        variation=kind,
        seeds=len(runs),
        score=float(np.mean(varied)),
        drop=float(drops.mean()) if drops is not None else None,
        deviation=float(drops.std()) if drops is not None and drawn else None,
        low=low,
        high=high,
        changed_queries=_share(
            sum(one.changed_queries for one in counts), sum(one.queries for one in counts)
        ),
        changed_words=_share(sum(one.changed_words for one in counts), words),
        eligible_words=_share(sum(one.eligible_words for one in counts), words),
        kept={reason: sum(one.kept.get(reason, 0) for one in counts) for reason in reasons},
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _interval(matrix: NDArray[np.float64], resamples: int, seed: int) -> tuple[float | None, float | None]:
    """Return the percentile interval of the mean drop, queries and seeds drawn with replacement."""
    runs, queries = matrix.shape[0] - 1, matrix.shape[1]
    if queries < 2:
        return None, None
    means = resampled_means(matrix, resamples=resamples, seed=seed)
    picked = np.random.default_rng([seed, 1]).integers(0, runs, (len(means), runs))
    varied = np.take_along_axis(means[:, 1:], picked, axis=1).mean(axis=1)
    # A sample of queries that all score 0 has no relative drop.
    held = means[:, 0] > 0
    drops = 1 - varied[held] / means[held, 0]
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(drops, [tail, 100 - tail])
    return float(low), float(high)


def drop_grid(profiles: Sequence[Profile], *, decimals: int = 2) -> Grid:
    """Return the drops of several models on one task as a table.

    Args:
        profiles: Of one task and of the same settings.
        decimals: Of everything in per cent.
    """
    rows = [
        row
        for profile in profiles
        for row in (
            (
                profile.model,
                "none",
                MISSING,
                percent(float(np.mean(profile.clean)), decimals),
                *[MISSING] * 6,
            ),
            *(_drop_row(profile.model, drop, decimals) for drop in profile_drops(profile)),
        )
    ]
    head = (
        *("model", "variation", "runs", "nDCG@10", "drop", "±", f"{100 * _LEVEL:.0f} %"),
        *("queries changed", "words changed", "words eligible"),
    )
    first = profiles[0]
    title = f"{first.task}, {len(first.queries):,} queries, in % ({first.settings})"
    return Grid(title, head, tuple(rows), tuple(_kept_notes(profiles)), words=2)


def _drop_row(model: str, drop: Drop, decimals: int) -> tuple[str, ...]:
    ends = [_percent(end, decimals) for end in (drop.low, drop.high)]
    return (
        *(model, drop.variation, str(drop.seeds), percent(drop.score, decimals)),
        *(_percent(drop.drop, decimals), percent(drop.deviation, decimals), _between(*ends)),
        *(percent(share, 1) for share in (drop.changed_queries, drop.changed_words, drop.eligible_words)),
    )


def _between(low: str, high: str) -> str:
    return MISSING if MISSING in (low, high) else f"{low} to {high}"


def _percent(share: float | None, decimals: int) -> str:
    """Return a share as per cent; a loss that rounds to nothing has no sign."""
    text = percent(share, decimals)
    return text if text.strip("-0.") else text.removeprefix("-") or MISSING


def _kept_notes(profiles: Sequence[Profile]) -> list[str]:
    """Return a line for each kind of variation that left queries as they were; the same for every model."""
    notes: list[str] = []
    for profile in profiles:
        kinds: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for run in profile.runs:
            for reason, count in run.counts.kept.items():
                kinds[run.variation][reason] += count
        for kind, reasons in kinds.items():
            listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
            notes.append(f"{kind}: queries that stayed as they were, over all runs: {listed}")
        if not any(profile.clean):
            notes.append(f"{profile.model} scores 0 on every query: a relative drop is not defined")
    return list(dict.fromkeys(notes))


def geometry_grid(geometries: Sequence[Geometry]) -> Grid:
    """Return the geometry of several models on one task as a table.

    Args:
        geometries: Of one task.

    Raises:
        DataError: If they were not measured over as many vectors.
    """
    check_comparable(geometries)
    head = (
        *("model", "vectors", "dimensions", "IsoScore", "Gaussian", "mean cosine", "effective rank"),
        *("length", "± length", "spectral norm", "largest"),
    )
    rows = tuple(_geometry_row(one) for one in geometries)
    return Grid(f"{geometries[0].task}, geometry of the document vectors", head, rows)


def _geometry_row(one: Geometry) -> tuple[str, ...]:
    shape, weights = one.shape, one.weights
    return (
        *(one.model, f"{shape.vectors:,}", f"{shape.dimensions:,}"),
        *(_number(value, 4) for value in (shape.isoscore, shape.gaussian_isoscore, shape.mean_cosine)),
        _number(shape.effective_rank, 1),
        *(_number(value, 3) for value in (shape.norm_mean, shape.norm_deviation)),
        *(_number(value, 2) for value in ((weights.mean, weights.largest) if weights else (None, None))),
    )


def _number(value: float | None, decimals: int) -> str:
    return MISSING if value is None else f"{value:.{decimals}f}"


def robustness_chapters(folders: Sequence[Path]) -> tuple[list[Chapter], list[str]]:
    """Return the chapter on robustness of some output folders, and a line for each file that was left out.

    Args:
        folders: Output folders.
    """
    profiles, problems = read_profiles(folders)
    geometries, more = read_geometries(folders)
    drawn, refused = _geometry_grids(geometries)
    groups = _groups(profiles)
    if not groups and not drawn:
        return [], [*problems, *more, *refused]
    notes = (*(PROFILE_NOTES if groups else ()), *(GEOMETRY_NOTES if drawn else ()))
    chapter = Chapter(
        name="robustness",
        title="Robustness to query variations",
        notes=notes,
        grids=(*map(drop_grid, groups), *drawn),
        pictures={
            f"profile-{number}": partial(profile_picture, group) for number, group in enumerate(groups, 1)
        },
        data={
            "profiles": [_data(profile) for profile in profiles],
            "geometry": [asdict(one) for one in geometries],
        },
    )
    return [chapter], [*problems, *more, *refused]


def _groups(profiles: Sequence[Profile]) -> list[list[Profile]]:
    """Return profiles that may stand in one table: same task, data, queries and settings."""
    groups: dict[tuple[Any, ...], list[Profile]] = defaultdict(list)
    for one in sorted(profiles, key=lambda one: (one.task, one.official, one.share, one.model)):
        groups[(one.task, one.data_revision, one.settings, one.queries)].append(one)
    return list(groups.values())


def _geometry_grids(geometries: Sequence[Geometry]) -> tuple[list[Grid], list[str]]:
    tasks: dict[str, list[Geometry]] = defaultdict(list)
    for one in geometries:
        tasks[one.task].append(one)
    grids, problems = [], []
    for group in tasks.values():
        try:
            grids.append(geometry_grid(group))
        except DataError as error:
            problems.append(str(error))
    return grids, problems


def _data(profile: Profile) -> dict[str, Any]:
    return {
        "model": profile.model,
        "revision": profile.revision,
        "task": profile.task,
        "settings": profile.settings,
        "queries": len(profile.queries),
        "clean": float(np.mean(profile.clean)),
        "drops": [asdict(drop) for drop in profile_drops(profile)],
    }


def profile_picture(profiles: Sequence[Profile]) -> Figure:
    """Draw the drops of several models on one task, with their intervals.

    Args:
        profiles: Of one task and of the same settings.
    """
    from matplotlib.figure import Figure

    found = [profile_drops(profile) for profile in profiles]
    kinds = list(dict.fromkeys(drop.variation for drops in found for drop in drops))
    figure = Figure(figsize=(2.4 + 1.25 * len(kinds), 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.axhline(0, color="#6b7280", linewidth=0.8)
    for place, (profile, drops) in enumerate(zip(profiles, found, strict=True)):
        _draw_drops(axes, profile, drops, kinds, (place + 1) / (len(profiles) + 1) - 0.5, place)
    axes.set_xticks(range(len(kinds)), kinds, fontsize=9)
    axes.set_ylabel("drop of nDCG@10, %")
    axes.set_title(
        figure_text(f"{profiles[0].task}: what variations of queries cost"), fontsize=10, loc="left"
    )
    axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_drops(
    axes: Any,  # noqa: ANN401 - matplotlib's Axes
    profile: Profile,
    drops: Sequence[Drop],
    kinds: Sequence[str],
    shift: float,
    place: int,
) -> None:
    known = [drop for drop in drops if drop.drop is not None]
    values = np.array([100 * (drop.drop or 0.0) for drop in known])
    ends = [[100 * (math.nan if end is None else end) for end in (drop.low, drop.high)] for drop in known]
    # The percentile interval may lie beside the mean where the distribution is skew.
    spread = [
        [max(value - low, 0.0) if low == low else 0.0 for value, (low, _) in zip(values, ends, strict=True)],
        [
            max(high - value, 0.0) if high == high else 0.0
            for value, (_, high) in zip(values, ends, strict=True)
        ],
    ]
    axes.errorbar(
        [kinds.index(drop.variation) + 0.7 * shift for drop in known],
        values,
        yerr=spread if known else None,
        fmt=_MARKERS[place % len(_MARKERS)],
        color=_COLORS[place % len(_COLORS)],
        capsize=3,
        label=figure_text(profile.model),
    )
