"""One stage's work, whichever kind it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reasonembed_mteb.pipelines.config import FuseStage, IterateStage, RetrieveStage, RewriteStage
from reasonembed_mteb.pipelines.fuse import fuse
from reasonembed_mteb.pipelines.iterate import iterate
from reasonembed_mteb.pipelines.rerank import rerank
from reasonembed_mteb.pipelines.retrieve import retrieve
from reasonembed_mteb.pipelines.rewrite import rewrite

if TYPE_CHECKING:
    from reasonembed_mteb.evaluation.stages import StageNote, StageOutput
    from reasonembed_mteb.pipelines.pool import Pool, State, Tools


def work(stage: Any, pool: Pool, state: State, tools: Tools) -> tuple[StageOutput, StageNote]:  # noqa: ANN401 - any stage
    """Run a stage.

    Args:
        stage: Its table.
        pool: Queries and documents.
        state: What the stages before handed on.
        tools: Models, clients and budget.

    Returns:
        What it hands on, and what it cost and counted.
    """
    if isinstance(stage, RewriteStage):
        return rewrite(stage, pool, tools)
    if isinstance(stage, RetrieveStage):
        return retrieve(stage, pool, state, tools)
    if isinstance(stage, FuseStage):
        return fuse(stage, pool, state)
    if isinstance(stage, IterateStage):
        return iterate(stage, pool, state, tools)
    return rerank(stage, pool, state, tools)
