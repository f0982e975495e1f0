"""What a stage works on: queries and documents of a task's pool, and what the stages before handed on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation.stages import open_rankings, stage_scores
from reasonembed_mteb.pipelines.config import ORIGINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from mteb.abstasks.task_metadata import TaskMetadata

    from reasonembed_mteb.endpoints.limits import Budget
    from reasonembed_mteb.evaluation.stages import Ranking, StageOutput, Texts
    from reasonembed_mteb.pipelines.config import PipelineConfig


@dataclass(frozen=True)
class Tools:
    """What stages use besides the data.

    Attributes:
        config: The pipeline's file.
        folder: Output folder; answers and parts of a reranking are kept in it.
        budget: What may be spent; shared by all stages.
        load: Returns a retriever, or a cross-encoder, by its stage's table; loaded once.
        retry_errors: Ask again where requests failed for good.
        progress: Whether bars are shown.
        batch: Where requests are written in OpenAI's batch format in place of asking; None asks.
    """

    config: PipelineConfig
    folder: Path
    budget: Budget | None
    load: Callable[[Any], Any]
    retry_errors: bool = False
    progress: bool = True
    batch: Path | None = None

    @property
    def answers(self) -> Path:
        """Return the folder of every endpoint's answers."""
        return self.folder / "answers"


@dataclass
class Pool:
    """One split and subset of a task, as MTEB hands it over.

    Attributes:
        queries: Data set with ``id`` and ``text``; those that are scored.
        corpus: Data set with ``id``, ``text`` and perhaps ``title``.
        task: Its name and prompt decide what goes before queries.
        call: What else MTEB passes to a search: split, subset, options of encoding.
        max_tokens: The protocol's length in tokens.
        excluded: Documents that do not count, by query.
        top_ranked: The only documents that may be found, by query; None for all.
        labels: By query and document.
        ignores_own_id: Whether a document with its query's id does not count.
    """

    queries: Any
    corpus: Any
    task: TaskMetadata
    call: dict[str, Any]
    max_tokens: int
    excluded: Mapping[str, Collection[str]] = field(default_factory=dict)
    top_ranked: Mapping[str, list[str]] | None = None
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ignores_own_id: bool = False

    @cached_property
    def texts(self) -> dict[str, str]:
        """Return the queries by id, in their order."""
        return dict(zip(self.queries["id"][:], self.queries["text"][:], strict=True))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {document: place for place, document in enumerate(self.corpus["id"][:])}

    def scores(self, ranking: Ranking) -> dict[str, float]:
        """Return the measures of a stage.

        Args:
            ranking: Of the pool's queries.
        """
        ignored = {query: query for query in self.texts} if self.ignores_own_id else None
        return stage_scores(ranking, self.labels, ignored=ignored)

    def documents(self, ids: Collection[str]) -> dict[str, str]:
        """Return texts of documents by id, the title before the text as MTEB puts it.

        Args:
            ids: Of the corpus.
        """
        wanted = sorted(ids, key=self._places.__getitem__)
        rows = self.corpus.select([self._places[name] for name in wanted])
        bodies = rows["text"][:]
        titles = rows["title"][:] if "title" in rows.column_names else [""] * len(bodies)
        whole = [
            (f"{title} {body}" if title else body).strip() for title, body in zip(titles, bodies, strict=True)
        ]
        return dict(zip(wanted, whole, strict=True))


@dataclass
class State:
    """What the stages so far handed on.

    Attributes:
        texts: Rewritten queries by the name of their stage.
        rankings: By name, in their order; one alone after a fusion.
    """

    texts: dict[str, Texts] = field(default_factory=dict)
    rankings: dict[str, Ranking] = field(default_factory=dict)

    @property
    def ranking(self) -> Ranking:
        """Return the only ranking."""
        (found,) = self.rankings.values()
        return found

    def queries(self, name: str, pool: Pool) -> Texts:
        """Return queries by name: the original ones, or a rewriting stage's.

        Args:
            name: ``original`` or a stage.
            pool: Holds the original ones.
        """
        if name == ORIGINAL:
            return {query: [text] for query, text in pool.texts.items()}
        return self.texts[name]

    def take(self, output: StageOutput, kind: str) -> None:
        """Go on with a stage's output.

        Args:
            output: Of the stage.
            kind: The stage's.
        """
        self.texts |= output.texts
        self.rankings = open_rankings(self.rankings, kind, output.rankings)


def check_task(task: Any) -> None:  # noqa: ANN401 - AbsTask
    """Refuse a task that no pipeline can run on.

    Args:
        task: Any of MTEB's.

    Raises:
        ReasonEmbedError: If it is no retrieval task.
    """
    if not hasattr(task, "convert_to_reranking"):
        msg = f"{task.metadata.name} is no retrieval task: a pipeline cannot run on it, leave it out"
        raise ReasonEmbedError(msg)


def task_queries(task: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - AbsTaskRetrieval
    """Yield id and text of a task's queries, of all its pools; the task stays as it is.

    Args:
        task: An MTEB retrieval task, loaded or not.
    """
    from reasonembed_mteb.evaluation.limits import own_copy

    own = own_copy(task)
    own.load_data()
    own.convert_v1_dataset_format_to_v2(num_proc=None)
    for splits in own.dataset.values():
        for pool in splits.values():
            yield from zip(pool["queries"]["id"][:], pool["queries"]["text"][:], strict=True)
