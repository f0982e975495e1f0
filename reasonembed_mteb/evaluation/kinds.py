"""Kinds of what is scored, told by the first part of a name: they are never ranked in one table."""

from __future__ import annotations

REASONING = "reasoning"
PIPELINE = "pipeline"
# What a name before the slash stands for, as a table's heading says it. Any other name is a single model's.
KINDS = {REASONING: "models that reason before they embed", PIPELINE: "pipelines"}


def kind_of(name: str) -> str:
    """Return the kind of a scored system, as a heading says it; empty for a single model.

    Args:
        name: MTEB's name, ``org/name``.
    """
    return KINDS.get(name.partition("/")[0], "") if "/" in name else ""
