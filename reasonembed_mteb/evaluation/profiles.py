"""Robustness profiles: one model's scores by query on one task, as it is and with its queries varied."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.chapter_files import chapter_file, read_chapter, read_chapters, write_chapter
from reasonembed_mteb.files import is_number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KIND = "robustness"


@dataclass(frozen=True)
class QueryCounts:
    """What a variation did to the queries of a task.

    Attributes:
        queries: Number of queries.
        changed_queries: How many have another text.
        words: Words of all queries, protected ones left out.
        eligible_words: How many may change.
        changed_words: How many did.
        kept: Queries that stayed as they were, by reason.
    """

    queries: int
    changed_queries: int
    words: int
    eligible_words: int
    changed_words: int
    kept: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class VariedRun:
    """One run with varied queries.

    Attributes:
        variation: Its kind.
        seed: Of its draw; None where nothing is drawn.
        task: Name of the task with varied queries.
        scores: ``(Q,)``, in the order of the profile's queries.
        counts: What was changed.
    """

    variation: str
    seed: int | None
    task: str
    scores: tuple[float, ...]
    counts: QueryCounts


@dataclass(frozen=True)
class Profile:
    """One model on one task, with and without variations of its queries.

    Attributes:
        model: As it is shown.
        revision: Of the model.
        task: The task's own name.
        data_revision: Of its data.
        share: Share of words that the drawn variations change.
        official: Whether nothing was protected, as in the study.
        wordnet: Hash of the WordNet that synonyms came from, or None.
        queries: ``(Q,)``, each as ``subset/split/id``.
        clean: ``(Q,)``, nDCG@10 with the queries as they are.
        runs: With varied queries.
        version: Of the variations.
        limit: Number of queries of a smoke run, which is no result.
        metric: MTEB's name of what the scores are.
    """

    model: str
    revision: str | None
    task: str
    data_revision: str | None
    share: float
    official: bool
    wordnet: str | None
    queries: tuple[str, ...]
    clean: tuple[float, ...]
    runs: tuple[VariedRun, ...]
    version: int
    limit: int | None = None
    metric: str = "ndcg_at_10"

    @property
    def settings(self) -> str:
        """Strength and protection in a few words."""
        protected = "nothing protected" if self.official else "code, formulas and addresses kept"
        smoke = f"; smoke run over {self.limit} queries, not a result" if self.limit else ""
        return f"{100 * self.share:g} % of the words, at least one; {protected}{smoke}"


def write_profile(output: Path, profile: Profile) -> Path:
    """Write a profile, whole or not at all.

    Of one of the same model, task and settings that is there, runs of other kinds stay, so that a profile may
    be made in parts; not where its data, queries, clean scores or variations were others.

    Args:
        output: Output folder.
        profile: What to write.

    Returns:
        The file.
    """
    apart = f"-{profile.share:g}{'-official' if profile.official else ''}"
    limited = f"-limit{profile.limit}" if profile.limit else ""
    name = f"{profile.model}-{profile.revision}-{profile.task}{apart}{limited}"
    file = chapter_file(output, KIND, name)
    # None is there, or it is damaged.
    with contextlib.suppress(DataError):
        profile = _joined(read_profile(file), profile)
    write_chapter(file, profile)
    return file


def _joined(before: Profile, now: Profile) -> Profile:
    """Add to a profile what an earlier one has of other kinds."""
    kinds = {run.variation for run in now.runs}
    others = tuple(run for run in before.runs if run.variation not in kinds)
    wordnet = now.wordnet or before.wordnet
    whole = replace(now, runs=(*others, *now.runs), wordnet=wordnet)
    # Everything else must be as it was.
    return whole if replace(before, runs=whole.runs, wordnet=wordnet) == whole else now


def read_profiles(folders: Sequence[Path]) -> tuple[list[Profile], list[str]]:
    """Return every profile of some output folders, and a line for each file that was left out.

    Args:
        folders: Output folders.
    """
    return read_chapters(folders, KIND, read_profile)


def read_profile(file: Path) -> Profile:
    """Read a profile.

    Args:
        file: Written by `write_profile`.

    Raises:
        DataError: If it is damaged, or of another format.
    """
    return read_chapter(file, _profile, "robustness", "reasonembed robustness")


def _profile(content: dict[str, Any]) -> Profile:
    content["runs"] = tuple(_run(row) for row in content["runs"])
    for name in ("queries", "clean"):
        content[name] = tuple(content[name])
    profile = Profile(**content)
    _check(profile)
    return profile


def _run(row: dict[str, Any]) -> VariedRun:
    counts = QueryCounts(**{one.name: row["counts"][one.name] for one in fields(QueryCounts)})
    return VariedRun(row["variation"], row["seed"], row["task"], tuple(row["scores"]), counts)


def _check(profile: Profile) -> None:
    """Refuse what would break a report: texts that are none, scores that are missing or no numbers."""
    texts = [profile.model, profile.task, *profile.queries, *(run.variation for run in profile.runs)]
    numbers = [profile.clean, *(run.scores for run in profile.runs)]
    if not all(isinstance(text, str) for text in texts) or not is_number(profile.share):
        raise ValueError
    for scores in numbers:
        if len(scores) != len(profile.queries) or not scores or not all(map(is_number, scores)):
            raise ValueError
    counted = [
        value for run in profile.runs for value in asdict(run.counts).values() if value != run.counts.kept
    ]
    if not all(map(is_number, counted)):
        raise ValueError
