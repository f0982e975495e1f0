"""One query through the stages of a pipeline: rewritings, and every document's rank before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonembed_mteb.evaluation.kinds import PIPELINE
from reasonembed_mteb.evaluation.stages import (
    BASELINE,
    StageOutput,
    open_rankings,
    read_output,
    read_stages,
    stages_path,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reasonembed_mteb.evaluation.stages import Ranking
    from reasonembed_mteb.reporting.results import Result


@dataclass(frozen=True)
class Move:
    """A document in a stage's ranking.

    Attributes:
        document: Its id.
        rank: From 1; None where the stage does not have it.
        before: Its rank in the ranking before; None where it was not there, or there were several.
        score: The stage's, or None.
        relevant: Whether the labels say so.
    """

    document: str
    rank: int | None
    before: int | None
    score: float | None
    relevant: bool


@dataclass(frozen=True)
class StageTrail:
    """A query in one stage.

    Attributes:
        stage: Its name.
        kind: ``rewrite``, ``retrieve`` and so on.
        texts: What was written for the query, by name; several for several rewritings.
        top: Its best documents, by ranking.
        gold: The relevant ones, by ranking.
    """

    stage: str
    kind: str
    texts: dict[str, list[str]]
    top: dict[str, list[Move]]
    gold: dict[str, list[Move]]


@dataclass(frozen=True)
class Trail:
    """A query through a pipeline.

    Attributes:
        pipeline: Its label.
        stages: In their order.
    """

    pipeline: str
    stages: list[StageTrail]

    @property
    def documents(self) -> set[str]:
        """Every document that a stage shows."""
        return {move.document for stage in self.stages for own in stage.top.values() for move in own}


def query_trail(result: Result, label: str, query: str, gold: Sequence[str], top: int) -> Trail | None:
    """Return a query's way through the stages behind a result.

    Args:
        result: Of any model.
        label: How it is shown.
        query: Query id.
        gold: Relevant documents.
        top: How many documents a ranking.

    Returns:
        None where the result is no pipeline's.

    Raises:
        DataError: If the record of its stages, or what they gave, cannot be read.
    """
    if not result.model.name.startswith(f"{PIPELINE}/") or result.scores_file is None:
        return None
    file = stages_path(result.scores_file.with_suffix(".json"))
    record = read_stages(file)
    # OUTPUT/records/MODEL/REVISION/TASK.stages.json
    folder = file.parents[3]
    stages: list[StageTrail] = []
    beside: dict[str, Ranking] = {}
    for stage in record.stages:
        held = _of_query([read_output(folder / name, [query]) for name in stage.outputs])
        # Several rankings side by side have no rank in common.
        only = next(iter(beside.values())) if len(beside) == 1 else {}
        before = _ranks(only[query].documents) if query in only else {}
        stages.append(_stage(stage.name, stage.kind, held, query, gold, before, top))
        handed = {name: own for name, own in held.rankings.items() if not name.startswith(BASELINE)}
        beside = open_rankings(beside, stage.kind, handed)
    return Trail(label, stages)


def _of_query(outputs: Sequence[StageOutput]) -> StageOutput:
    """Return the pool's output that holds the query."""
    return next((one for one in outputs if one.texts or one.rankings), StageOutput())


def _ranks(documents: Sequence[str]) -> dict[str, int]:
    return {document: rank for rank, document in enumerate(documents, 1)}


def _stage(
    name: str,
    kind: str,
    held: StageOutput,
    query: str,
    gold: Sequence[str],
    before: Mapping[str, int],
    top: int,
) -> StageTrail:
    shown, relevant = {}, {}
    for ranking, own in held.rankings.items():
        found = own[query]
        ranks = _ranks(found.documents)
        scores = dict(zip(found.documents, found.scores.tolist(), strict=True))

        def move(document: str, ranks: dict[str, int] = ranks, scores: dict[str, float] = scores) -> Move:
            return Move(
                document,
                ranks.get(document),
                before.get(document),
                scores.get(document),
                document in gold,
            )

        shown[ranking] = [move(document) for document in found.documents[:top]]
        relevant[ranking] = sorted(map(move, gold), key=lambda one: one.rank or len(ranks) + 1)
    return StageTrail(name, kind, {key: own[query] for key, own in held.texts.items()}, shown, relevant)
