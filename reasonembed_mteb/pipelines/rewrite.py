"""Queries rewritten before retrieval: by a language model, from a file, or BRIGHT's own sets."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.errors import DataError, first_names
from reasonembed_mteb.evaluation.stages import StageNote, StageOutput
from reasonembed_mteb.files import read_json_lines
from reasonembed_mteb.llm.templates import without_thought
from reasonembed_mteb.pipelines.asking import cost_of, stage_client
from reasonembed_mteb.pipelines.pool import task_queries
from reasonembed_mteb.pipelines.templates import stage_template
from reasonembed_mteb.retrieval.layouts import rewritten_queries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from reasonembed_mteb.endpoints.endpoint import Answer
    from reasonembed_mteb.evaluation.stages import StageCost, Texts
    from reasonembed_mteb.llm.templates import ChatTemplate
    from reasonembed_mteb.pipelines.config import RewriteStage, WritingSection
    from reasonembed_mteb.pipelines.pool import Pool, Tools

logger = logging.getLogger(__name__)


def combined(query: str, rewriting: str, stage: WritingSection) -> str:
    """Return what is searched for.

    Args:
        query: The original one.
        rewriting: What was written for it.
        stage: Its mode, separator and how often the query is repeated.
    """
    if stage.mode == "replace":
        return rewriting
    times = stage.repeat if stage.mode == "repeat" else 1
    return stage.separator.join([*[query] * times, rewriting])


def written_text(answer: Answer, stage: WritingSection) -> str | None:
    """Return what a model wrote, or None where that is nothing.

    An answer that was cut at its longest length is taken as far as it goes.

    Args:
        answer: The model's.
        stage: What becomes of thoughts.
    """
    if answer.text is None or answer.error not in (None, "length"):
        return None
    return _kept_text(answer.text, stage)


def _kept_text(text: str, stage: WritingSection) -> str | None:
    """Return what is kept of a rewriting, whoever made it, or None where that is nothing."""
    kept = text if stage.thoughts == "keep" else without_thought(text)
    # A thought that was cut has no end, and no rewriting after it.
    if stage.thoughts == "drop" and kept.lstrip().startswith("<think>"):
        return None
    return kept.strip() or None


def rewrite(stage: RewriteStage, pool: Pool, tools: Tools) -> tuple[StageOutput, StageNote]:
    """Run the stage.

    Args:
        stage: Its table.
        pool: The original queries.
        tools: Client and budget.

    Raises:
        DataError: If a query has no rewriting and the stage refuses to go on without.
    """
    counts: Counter[str] = Counter()
    note = StageNote()
    if stage.bright is not None:
        found = {q: [text] for q, text in rewritten_queries(pool.task.name, stage.bright).items()}
    elif stage.queries is not None:
        found = _from_file(tools.config.path(stage.queries), stage, pool, counts)
    else:
        found, cost = _ask(stage, pool, tools, counts)
        note = StageNote(cost)
    texts = with_originals(found, pool.texts, stage, counts)
    return StageOutput(texts={stage.name: texts}), StageNote(note.cost, dict(sorted(counts.items())))


def _from_file(file: Path, stage: RewriteStage, pool: Pool, counts: Counter[str]) -> dict[str, list[str]]:
    """Return what a file holds for a task's queries, combined with them."""
    held = read_rewritings(file)
    own = [held.pop(None, {}), held.pop(pool.task.name, {})]
    if others := sum(len(texts) for rows in held.values() for texts in rows.values()):
        counts["rewritings of other tasks"] += others
    kept = {
        query: [_kept_text(one, stage) for rows in own for one in rows.get(query, ())] for query in pool.texts
    }
    return {
        query: [combined(pool.texts[query], one, stage) for one in texts if one is not None]
        for query, texts in kept.items()
    }


def with_originals(
    found: Mapping[str, list[str]], queries: Mapping[str, str], stage: WritingSection, counts: Counter[str]
) -> Texts:
    """Return texts for every query; refuse or count those without.

    Args:
        found: By query.
        queries: The original ones.
        stage: What becomes of a query without.
        counts: Counted into.

    Raises:
        DataError: If some have none and the stage refuses to go on.
    """
    lacking = [query for query in queries if not found.get(query)]
    if lacking and stage.missing == "refuse":
        why = "; ".join(f"{what} {count:,}" for what, count in sorted(counts.items()))
        msg = (
            f"stage {stage.name}: {len(lacking):,} of {len(queries):,} queries have no rewriting "
            f"({first_names(lacking)}{'; ' + why if why else ''}); write them, or take the original queries "
            'with missing = "original"'
        )
        raise DataError(msg)
    if lacking:
        counts["original queries"] += len(lacking)
    return {query: found.get(query) or [text] for query, text in queries.items()}


def _ask(
    stage: RewriteStage, pool: Pool, tools: Tools, counts: Counter[str]
) -> tuple[dict[str, list[str]], StageCost]:
    """Let a language model write."""
    template = stage_template(stage, tools.config)
    found: dict[str, list[str]] = {}
    with stage_client(stage, pool, tools) as client:
        total = stage.samples * len(pool.texts)
        answers = client.run(
            rewrite_requests(stage, pool.texts, template), total=total, description=stage.name
        )
        for query, text in pool.texts.items():
            given = list(islice(answers, stage.samples))
            for answer in given:
                written = written_text(answer, stage)
                if written is None:
                    counts[f"no rewriting: {answer.error or 'empty'}"] += 1
                    continue
                if answer.error == "length":
                    counts["cut at max_tokens"] += 1
                found.setdefault(query, []).append(combined(text, written, stage))
        # The progress bar ends with the last answer taken.
        next(answers, None)
        return found, cost_of(client.usage, client.endpoint)


def rewrite_requests(
    stage: RewriteStage, queries: Mapping[str, str], template: ChatTemplate
) -> Iterator[Request]:
    """Yield what is asked.

    Args:
        stage: Sampling and number of samples.
        queries: By id.
        template: With ``$query``.
    """
    for query, text in queries.items():
        messages = template.messages(query=text)
        for sample in range(stage.samples):
            yield Request(f"{stage.name}/{query}/{sample}", messages, *stage.sampling, n_sample=sample)


_ROW = 'write {"id": ..., "text": ...} on each line, and "task": "NAME" where ids of several tasks are alike'


def read_rewritings(file: Path) -> dict[str | None, Texts]:
    """Read rewritings made elsewhere.

    Args:
        file: JSON Lines with ``id``, ``text`` and perhaps ``task``; an id may stand there several times.

    Returns:
        Rewritings by query, by MTEB task name; those of None are of any task that has such a query.

    Raises:
        DataError: If a line holds something else.
    """
    found: dict[str | None, Texts] = {}
    for number, row in read_json_lines(file, _ROW):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or "id" not in row:
            msg = f"{file}:{number} has no id and text; {_ROW}"
            raise DataError(msg)
        task = row.get("task")
        if not (task is None or isinstance(task, str)):
            msg = f"{file}:{number} has a task that is no text: {task!r}; {_ROW}"
            raise DataError(msg)
        try:
            row["text"].encode("utf-8")
        except UnicodeEncodeError as error:
            msg = (
                f"{file}:{number} holds half a character (a lone surrogate, \\ud83d), which no model takes; "
                "write the text again"
            )
            raise DataError(msg) from error
        if row["text"].strip():
            found.setdefault(task, {}).setdefault(str(row["id"]), []).append(row["text"])
    if not found:
        msg = f"{file} holds no rewriting; give a file that does"
        raise DataError(msg)
    return found


def refuse_shared_ids(file: Path, tasks: Sequence[Any]) -> None:
    """Refuse rewritings that name no task where their ids are those of different queries in several tasks.

    Args:
        file: See `read_rewritings`.
        tasks: MTEB retrieval tasks that the file is used for; they are loaded, and stay as they are.

    Raises:
        DataError: If some are, with the first ids.
    """
    unnamed = read_rewritings(file).get(None, {}) if len(tasks) > 1 else {}
    texts: dict[str, set[str]] = {}
    for task in tasks if unnamed else ():
        try:
            queries = list(task_queries(task))
        except Exception:
            # It is told as that task's failure, in its turn.
            logger.debug("%s cannot be loaded", task.metadata.name, exc_info=True)
            continue
        for query, text in queries:
            if query in unnamed:
                texts.setdefault(query, set()).add(text)
    if shared := [query for query, own in texts.items() if len(own) > 1]:
        msg = (
            f"{file}: {len(shared):,} ids ({first_names(shared)}) are those of different queries in several "
            f'of the {len(tasks)} tasks, and their rewritings name no task; write "task": '
            f'"{tasks[0].metadata.name}" into each row'
        )
        raise DataError(msg)
