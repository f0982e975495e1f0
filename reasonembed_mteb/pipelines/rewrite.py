"""Queries rewritten before retrieval: by a language model, from a file, or BRIGHT's own sets."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.errors import DataError, first_names
from reasonembed_mteb.evaluation.stages import StageNote, StageOutput
from reasonembed_mteb.files import read_json_lines
from reasonembed_mteb.llm.templates import without_thought
from reasonembed_mteb.pipelines.asking import cost_of, stage_client
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
    text = answer.text if stage.thoughts == "keep" else without_thought(answer.text)
    # A thought that was cut has no end, and no rewriting after it.
    if stage.thoughts == "drop" and text.lstrip().startswith("<think>"):
        return None
    return text.strip() or None


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
        file = tools.config.path(stage.queries)
        found = {q: _combined_all(q, own, pool, stage) for q, own in read_rewritings(file).items()}
    else:
        found, cost = _ask(stage, pool, tools, counts)
        note = StageNote(cost)
    texts = with_originals(found, pool.texts, stage, counts)
    return StageOutput(texts={stage.name: texts}), StageNote(note.cost, dict(sorted(counts.items())))


def _combined_all(query: str, own: Sequence[str], pool: Pool, stage: RewriteStage) -> list[str]:
    # The file may hold the queries of other tasks too.
    return [combined(pool.texts.get(query, ""), text, stage) for text in own]


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


def read_rewritings(file: Path) -> Texts:
    """Read rewritings made elsewhere.

    Args:
        file: JSON Lines with ``id`` and ``text``; an id may stand there several times.

    Raises:
        DataError: If a line holds something else.
    """
    found: Texts = {}
    for number, row in read_json_lines(file, 'write {"id": ..., "text": ...} on each line'):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or "id" not in row:
            msg = f'{file}:{number} has no id and text; write {{"id": ..., "text": ...}} on each line'
            raise DataError(msg)
        if row["text"].strip():
            found.setdefault(str(row["id"]), []).append(row["text"])
    if not found:
        msg = f"{file} holds no rewriting; give a file that does"
        raise DataError(msg)
    return found
