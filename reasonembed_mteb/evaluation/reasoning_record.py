"""What reasoning before embedding cost and scored: one record a system, which a report reads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.chapter_files import chapter_file, read_chapter, write_chapter
from reasonembed_mteb.files import fingerprint, is_number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

REASONING_CHAPTER = "reasoning"
# Who reasons, where it is not named: the embedder itself, or nobody.
ITSELF, NONE = "itself", "none"
# Why a reasoning ended: by the model's own end of text, or at the most tokens allowed.
ENDED, FULL = "end", "length"


@dataclass(frozen=True)
class ReasonedTask:
    """One task's score, and what its queries' reasonings came to.

    Attributes:
        score: Main score, ``[0, 1]`` for retrieval.
        metric: MTEB's name of it.
        queries: How many were reasoned about; 0 for a model without reasoning.
        tokens: Tokens that were generated for them, all together.
        stops: How often each stop reason came: `ENDED`, `FULL`, or ``given`` for what was written elsewhere.
        seconds: Time that reasoning took, all together.
        cut: Reasonings that were cut at the model's length.
    """

    score: float
    metric: str
    queries: int = 0
    tokens: int = 0
    stops: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cut: int = 0


@dataclass(frozen=True)
class ReasoningRun:
    """A model with one way of reasoning, on its tasks.

    Attributes:
        base: Name of the model that embeds.
        base_revision: Its revision.
        system: Name under which the scores are filed; the base's own without reasoning.
        latents: How many latent tokens end its texts.
        source: `NONE`, `ITSELF`, or what the reasonings came from.
        max_tokens: Most tokens that were generated for a query, N; None where they were given.
        decides: What else decides them, as JSON: prompt, decoding, source.
        note: What tells these scores from results; empty for results.
        tasks: By MTEB name.
        engine: What generated where the model itself reasoned, with its version, such as ``vllm 0.32.0``;
            empty for torch, and in records of before there was another.
    """

    base: str
    base_revision: str
    system: str
    latents: int
    source: str
    max_tokens: int | None
    decides: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    tasks: dict[str, ReasonedTask] = field(default_factory=dict)
    engine: str = ""


def write_reasoning_run(output: Path, run: ReasoningRun) -> Path:
    """Write a record; tasks of an earlier one of the same system stay.

    Args:
        output: Output folder.
        run: With the tasks that were run now.

    Returns:
        The file.
    """
    file = chapter_file(output, REASONING_CHAPTER, reasoning_run_name(run))
    try:
        before = read_reasoning_run(file) if file.is_file() else None
    except DataError:
        logger.warning("%s is damaged: it is written anew, with the tasks of this run alone", file)
        before = None
    tasks = (before.tasks if before is not None and same_system(before, run) else {}) | run.tasks
    write_chapter(file, replace(run, tasks=dict(sorted(tasks.items()))))
    return file


def reasoning_run_name(run: ReasoningRun) -> str:
    """Return a name that no other model, and no other way of reasoning, has.

    Args:
        run: Its tasks do not count.
    """
    return f"{run.system}-{fingerprint(run.base, run.base_revision, run.decides)[:8]}"


def same_system(one: ReasoningRun, other: ReasoningRun) -> bool:
    """Say whether two records are of one model with one way of reasoning.

    Args:
        one: Their tasks and notes may differ.
        other: Likewise.
    """
    return replace(one, tasks={}, note="") == replace(other, tasks={}, note="")


def read_reasoning_run(file: Path) -> ReasoningRun:
    """Read a record.

    Args:
        file: Written by `write_reasoning_run`.

    Raises:
        DataError: If it is damaged.
    """
    return read_chapter(file, _run, "reasoning", "reasonembed reason-run")


def _run(content: dict[str, Any]) -> ReasoningRun:
    tasks = {str(name): _task(held) for name, held in content.pop("tasks").items()}
    run = ReasoningRun(**content, tasks=tasks)
    texts = (run.base, run.base_revision, run.system, run.source, run.note, run.engine)
    numbers = (run.latents, 0 if run.max_tokens is None else run.max_tokens)
    whole = all(isinstance(one, int) and is_number(one) for one in numbers)
    if not whole or not all(isinstance(one, str) for one in texts) or not isinstance(run.decides, dict):
        raise TypeError
    return run


def _task(held: Mapping[str, Any]) -> ReasonedTask:
    task = ReasonedTask(**{one.name: held[one.name] for one in fields(ReasonedTask)})
    numbers = (task.score, task.queries, task.tokens, task.seconds, task.cut, *task.stops.values())
    if not all(map(is_number, numbers)) or not isinstance(task.metric, str):
        raise TypeError
    return task
