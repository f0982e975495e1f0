"""A robustness profile: models on tasks as they are and with every variation of their queries."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, one_line
from reasonembed_mteb.evaluation.limits import own_copy
from reasonembed_mteb.evaluation.profiles import Profile, VariedRun, write_profile
from reasonembed_mteb.evaluation.runner import output_folder, run
from reasonembed_mteb.evaluation.scores import read_scores
from reasonembed_mteb.robustness.tasks import count_varied, query_texts, vary_task
from reasonembed_mteb.robustness.variations import DRAWN, SEEDS, STUDY_SHARE, VERSION, Variation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.profiles import QueryCounts
    from reasonembed_mteb.evaluation.runner import Outcome, RunOptions
    from reasonembed_mteb.robustness.variations import SynonymSource

logger = logging.getLogger(__name__)

# Five seeds each for the first three, one run each for the others: 17 runs.
PROFILE = ("misspelling", "reordering", "synonyms", "naturalising", "keywords")
METRIC = "ndcg_at_10"
# Results of tasks with varied queries lie apart, as smoke runs do: they are no results of benchmarks.
FOLDER = "robustness"


@dataclass(frozen=True)
class ProfileSettings:
    """Which variations a profile has.

    Attributes:
        kinds: Kinds of variation, in order.
        seeds: Of those that draw.
        share: Share of the words that change; the study's is 0.1.
        official: As the study: nothing is protected, synonyms stay base forms.
        synonyms: What knows synonyms.
        paraphrases: New text by old; see `reasonembed_mteb.robustness.paraphrases`.
    """

    kinds: tuple[str, ...] = PROFILE
    seeds: tuple[int, ...] = SEEDS
    share: float = STUDY_SHARE
    official: bool = False
    synonyms: SynonymSource | None = None
    paraphrases: Mapping[str, str] | None = field(default=None, repr=False)

    def variations(self) -> list[Variation]:
        """Return every variation, each kind with each seed where it draws.

        Raises:
            UnknownNameError: If there is no such kind.
            ReasonEmbedError: If a setting does not fit.
        """
        if not self.seeds:
            msg = "a profile needs at least one seed; give some, or leave the study's five"
            raise ReasonEmbedError(msg)
        return [
            Variation(kind, seed, self.share, self.official, self.synonyms, self.paraphrases)
            for kind in dict.fromkeys(self.kinds)
            for seed in (dict.fromkeys(self.seeds) if kind in DRAWN else (None,))
        ]


@dataclass
class ProfileReport:
    """What came of it.

    Attributes:
        profiles: Those that are whole.
        files: Where each was written.
        failures: A line for each model on each task that has no whole profile.
    """

    profiles: list[Profile] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def robustness_profile(
    models: Sequence[ModelMeta],
    tasks: Sequence[AbsTask],
    options: RunOptions,
    settings: ProfileSettings,
    say: Callable[[str], None] = logger.info,
) -> ProfileReport:
    """Score models on tasks and on every variation of their queries, and write a profile of each.

    A dense model encodes the corpus once and each distinct query once: vectors are kept in the store, in
    ``<output>/vectors`` where the options name none. What was scored before is not scored again.

    Args:
        models: MTEB metadata; see `reasonembed_mteb.evaluation.resolving.resolve_models`.
        tasks: Retrieval tasks.
        options: How to run; results of varied tasks lie in ``<output>/robustness``.
        settings: Which variations.
        say: Takes one line at a time about what happens.

    Raises:
        ReasonEmbedError: If a setting does not fit, or a task has no queries.
    """
    variations = settings.variations()
    store = options.store or options.output / "vectors"
    apart = replace(options, output=options.output / FOLDER, store=store)
    prepared = [_Prepared.of(task, variations, options.limit) for task in tasks]
    outcomes = run(models, [one for task in prepared for one in task.tasks], apart, say)
    report = ProfileReport()
    for meta, rows in zip(models, _by_model(outcomes, len(models)), strict=True):
        held = {row.task: row for row in rows}
        for task in prepared:
            try:
                made = task.profile(meta, held, settings, options.limit)
            except ReasonEmbedError as error:
                report.failures.append(f"{rows[0].model} on {task.name}: {one_line(error)}")
                continue
            report.profiles.append(made)
            report.files.append(write_profile(output_folder(options), made))
    return report


def _by_model(outcomes: Sequence[Outcome], models: int) -> list[Sequence[Outcome]]:
    size = len(outcomes) // models
    return [outcomes[start : start + size] for start in range(0, len(outcomes), size)]


@dataclass
class _Prepared:
    """A loaded task, its varied ones, and what each variation did."""

    name: str
    tasks: list[AbsTask]
    variations: list[Variation]
    counts: list[QueryCounts]

    @classmethod
    def of(cls, task: AbsTask, variations: Sequence[Variation], limit: int | None) -> _Prepared:
        from tqdm.auto import tqdm

        if not hasattr(task, "convert_to_reranking"):
            msg = f"{task.metadata.name} is no retrieval task: its queries cannot be varied, leave it out"
            raise DataError(msg)
        # Loaded before it is varied, so that the data is read once.
        own = own_copy(task)
        own.load_data()
        texts = list(query_texts(own, limit))
        counts = []
        for one in tqdm(variations, desc=f"Varying {task.metadata.name}", unit="variation", leave=False):
            counts.append(count_varied(texts, [one.vary(text) for text in texts]))
        varied = [vary_task(own, one) for one in variations]
        return cls(task.metadata.name, [own, *varied], list(variations), counts)

    def profile(
        self,
        meta: ModelMeta,
        outcomes: Mapping[str, Outcome],
        settings: ProfileSettings,
        limit: int | None,
    ) -> Profile:
        rows = [outcomes[task.metadata.name] for task in self.tasks]
        for row in rows:
            if row.error is not None:
                msg = f"{row.task} failed: {row.error}"
                raise DataError(msg)
        clean, info = _scores(rows[0])
        queries = tuple(clean)
        runs = [
            self._run(one, row, counts, queries)
            for one, row, counts in zip(self.variations, rows[1:], self.counts, strict=True)
        ]
        source = settings.synonyms if "synonyms" in settings.kinds else None
        return Profile(
            model=rows[0].model,
            revision=info.get("model_revision") or meta.revision,
            task=self.name,
            data_revision=info.get("data_revision"),
            share=settings.share,
            official=settings.official,
            wordnet=source.digest if source is not None else None,
            queries=queries,
            clean=tuple(clean.values()),
            runs=tuple(runs),
            version=VERSION,
            limit=limit,
        )

    def _run(
        self, variation: Variation, row: Outcome, counts: QueryCounts, queries: Sequence[str]
    ) -> VariedRun:
        scores, _ = _scores(row)
        if scores.keys() != set(queries):
            msg = f"{row.task} was scored over other queries than {self.name}; run it again with --overwrite"
            raise DataError(msg)
        return VariedRun(
            variation.kind, variation.seed, row.task, tuple(scores[query] for query in queries), counts
        )


def _scores(row: Outcome) -> tuple[dict[str, float], dict[str, Any]]:
    """Return nDCG@10 by ``subset/split/query``, and what the scores were made with."""
    assert row.scores_file is not None
    found = read_scores(row.scores_file, ["query_id", METRIC])
    columns = (found.table[name].to_pylist() for name in ("subset", "split", "query_id", METRIC))
    return {
        f"{subset}/{split}/{query}": score for subset, split, query, score in zip(*columns, strict=True)
    }, found.info
