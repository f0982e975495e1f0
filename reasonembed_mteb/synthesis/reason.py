"""Step 5: the reasoning query, for the queries that become samples; no longer than training takes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.llm.templates import tagged
from reasonembed_mteb.prompts import query_prefix
from reasonembed_mteb.synthesis.annotate import labelled
from reasonembed_mteb.synthesis.boilerplate import (
    refusal_to_write,
    rules_hash,
    tidied,
    trimmed,
    word_count,
)
from reasonembed_mteb.synthesis.shards import shard_count
from reasonembed_mteb.synthesis.step import Step, ask, in_blocks, need

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reasonembed_mteb.endpoints.endpoint import Answer
    from reasonembed_mteb.synthesis.boilerplate import Tidied
    from reasonembed_mteb.synthesis.config import FormatSection, SubsetSection
    from reasonembed_mteb.synthesis.shards import Row, Shards
    from reasonembed_mteb.synthesis.step import Run

# Queries a file.
SIZE = 256


def sides(row: Row, section: FormatSection) -> tuple[list[str], list[str]]:
    """Return the positives and negatives of a labelled query, by document id.

    Args:
        row: With ``documents`` and ``labels``; -1 is neither.
        section: The thresholds.

    Returns:
        Positives, the highest label first, and negatives, both by rank otherwise.
    """
    pairs = list(zip(row["documents"], row["labels"], strict=True))
    good = sorted((pair for pair in pairs if pair[1] >= section.positive_from), key=lambda pair: -pair[1])
    bad = [document for document, label in pairs if 1 <= label <= section.negative_to]
    return [document for document, _ in good], bad


def refusal(positives: Sequence[str], negatives: Sequence[str], section: FormatSection) -> str | None:
    """Say why these make no sample, or None.

    Args:
        positives: Documents, by id or text.
        negatives: Documents, by id or text.
        section: The minimum counts.
    """
    if len(positives) < section.min_positives:
        return "too few positives"
    return "too few negatives" if len(negatives) < section.min_negatives else None


def reasoned(run: Run, subset: SubsetSection) -> Shards:
    """Return the step's output: a row for each query that becomes a sample."""
    if "reasoned" in run.own_parts(subset):
        return run.own_shards(subset, "reasoned")
    note = need(labelled(run, subset), "annotate", subset)
    section = run.config.format
    which = [section.positive_from, section.negative_to, section.min_positives, section.min_negatives]
    asked: list[Any] = []
    if not run.config.reason.skip:
        asked = [*run.asking(run.config.reason, "reason", subset), _length_rule(run), rules_hash()]
    return run.shards("reasoned", subset, note["output"], which, asked)


def _length_rule(run: Run) -> list[Any]:
    """Return what decides how long the reasoning may be; a directory may move."""
    section = run.config.reason
    if run.tokenizer is None:
        return [section.words, section.too_long]
    from reasonembed_mteb.models.folders import content_revision

    folder = run.config.path(section.train_model or "")
    model = content_revision(folder) if folder.is_dir() else section.train_model
    return [section.words, section.too_long, model, section.train_tokens]


def reason(run: Run, subset: SubsetSection) -> None:
    """Run the step for one subset."""
    shards = reasoned(run, subset)
    shards.begin()
    # Nothing is asked for queries that are dropped afterwards anyway.
    count = shard_count(sum(1 for _ in _rows_to_reason(run, subset)), SIZE)
    block = in_blocks(_rows_to_reason(run, subset), SIZE)

    def load(index: int) -> list[tuple[Row, Sequence[Request]]]:
        return [(row, _requests(run, subset, row)) for row in block(index)]

    made = partial(_row, run, subset)
    ask(shards, count, load, made, partial(run.client, run.config.reason.endpoint), f"reason {subset.name}")
    shards.finish(count)


def _rows_to_reason(run: Run, subset: SubsetSection) -> Iterator[Row]:
    section = run.config.format
    for row in labelled(run, subset).rows():
        if refusal(*sides(row, section), section) is None:
            yield row


# English words a token, about; a little fewer, since the limit is for tokens.
_WORDS_PER_TOKEN = 0.7
# Fewer tokens than these are not worth a question.
_LEAST_ROOM = 32


def _tokens(run: Run, subset: SubsetSection, reasoning_query: str) -> int:
    """Return how many tokens training sees, the instruction included (PROTOCOL section 6: on both)."""
    text = query_prefix(run.domain(subset).instruction) + reasoning_query
    return len(run.tokenizer(text, verbose=False)["input_ids"])


def _room(run: Run, subset: SubsetSection, query: str) -> int | None:
    """Return how many tokens are left for the reasoning, None where words alone are counted."""
    if run.tokenizer is None:
        return None
    return run.config.reason.train_tokens - _tokens(run, subset, f"{query}\n")


def _requests(run: Run, subset: SubsetSection, row: Row) -> Sequence[Request]:
    section, domain = run.config.reason, run.domain(subset)
    room = _room(run, subset, row["query"])
    if section.skip or (room is not None and room < _LEAST_ROOM):
        return ()
    limit = f"{section.words} words"
    if room is not None:
        limit = f"{min(section.words, int(room * _WORDS_PER_TOKEN))} words ({room} tokens at most)"
    values = {"topic": domain.topic, "asks": domain.asks, "wants": domain.wants, "query": row["query"]}
    messages = run.prompt(section, "reason").messages(**values, limit=limit)
    return (Request(f"reason/{row['id']}", messages, *run.sampling(section)),)


def _row(run: Run, subset: SubsetSection, row: Row, answers: list[Answer]) -> Row:
    made: Row = {"id": row["id"]}
    if not answers:
        return made | {
            "dropped": "not asked for" if run.config.reason.skip else "query too long for training"
        }
    if answers[0].error is not None:
        return made | {"dropped": answers[0].error}
    text = tagged(answers[0].text, "reasoning")
    if text is None:
        return made | {"dropped": "unparsable"}
    tidy = tidied(text, "reasoning")
    if why := refusal_to_write(tidy.text):
        return made | {"dropped": why}
    return made | _of_length(run, subset, row["query"], tidy)


def _of_length(run: Run, subset: SubsetSection, query: str, tidy: Tidied) -> Row:
    """Return the reasoning query, cut where it is longer than training takes."""
    section = run.config.reason

    def fits(text: str) -> bool:
        if word_count(text) > section.words:
            return False
        whole = f"{query}\n{text}"
        return run.tokenizer is None or _tokens(run, subset, whole) <= section.train_tokens

    text = trimmed(tidy.text, fits)
    if text is None or (text != tidy.text and section.too_long == "drop"):
        return {"dropped": "reasoning too long"}
    mended = [*tidy.mended, *(["cut after a sentence"] if text != tidy.text else [])]
    # The query itself comes first, as in query + reasoning: the words of the question stay searchable.
    return {"reasoning_query": f"{query}\n{text}", **({"mended": mended} if mended else {})}


def _note(run: Run, subset: SubsetSection) -> dict[str, Any] | None:
    note = reasoned(run, subset).note
    # A query without a reasoning query is a sample all the same.
    return note and note | {"kept": note["rows"]}


STEP = Step("reason", reason, _note, lambda *of: {"reasoned": reasoned(*of)}, ("reasoned",))
