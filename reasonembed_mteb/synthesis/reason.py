"""Step 5: the reasoning query, for the queries that become samples."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.synthesis.annotate import labelled
from reasonembed_mteb.synthesis.prompts import tagged
from reasonembed_mteb.synthesis.shards import shard_count
from reasonembed_mteb.synthesis.step import Step, ask, in_blocks, need

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reasonembed_mteb.endpoints.endpoint import Answer
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
        positives: Positives.
        negatives: Negatives.
        section: The minimum counts.
    """
    if len(positives) < section.min_positives:
        return "too few positives"
    return "too few negatives" if len(negatives) < section.min_negatives else None


def reasoned(run: Run, subset: SubsetSection) -> Shards:
    """Return the step's output: a row for each query that becomes a sample.

    Args:
        run: The run.
        subset: The subset.
    """
    note = need(labelled(run, subset), "annotate", subset)
    section = run.config.format
    which = [section.positive_from, section.negative_to, section.min_positives, section.min_negatives]
    asked = [] if run.config.reason.skip else run.asking(run.config.reason, "reason", subset)
    return run.shards("reasoned", subset, note["output"], which, asked)


def reason(run: Run, subset: SubsetSection) -> None:
    """Run the step for one subset.

    Args:
        run: The run.
        subset: The subset.
    """
    shards = reasoned(run, subset)
    shards.begin()
    # Nothing is asked for queries that are dropped afterwards anyway.
    count = shard_count(sum(1 for _ in _rows_to_reason(run, subset)), SIZE)
    block = in_blocks(_rows_to_reason(run, subset), SIZE)

    def load(index: int) -> list[tuple[Row, Sequence[Request]]]:
        return [(row, _requests(run, subset, row)) for row in block(index)]

    ask(shards, count, load, _row, partial(run.client, run.config.reason.endpoint), f"reason {subset.name}")
    shards.finish(count)


def _rows_to_reason(run: Run, subset: SubsetSection) -> Iterator[Row]:
    section = run.config.format
    for row in labelled(run, subset).rows():
        if refusal(*sides(row, section), section) is None:
            yield row


def _requests(run: Run, subset: SubsetSection, row: Row) -> Sequence[Request]:
    section, domain = run.config.reason, run.domain(subset)
    if section.skip:
        return ()
    messages = run.prompt(section, "reason").messages(
        topic=domain.topic, asks=domain.asks, wants=domain.wants, query=row["query"]
    )
    return (Request(f"reason/{row['id']}", messages, *run.sampling(section)),)


def _row(row: Row, answers: list[Answer]) -> Row:
    made: Row = {"id": row["id"]}
    if not answers:
        return made | {"dropped": "not asked for"}
    if answers[0].error is not None:
        return made | {"dropped": answers[0].error}
    text = tagged(answers[0].text, "reasoning")
    # The query itself comes first, as in query + reasoning: the words of the question stay searchable.
    return made | ({"reasoning_query": f"{row['query']}\n{text}"} if text else {"dropped": "unparsable"})


def _note(run: Run, subset: SubsetSection) -> dict[str, Any] | None:
    note = reasoned(run, subset).note
    # A query without a reasoning query is a sample all the same.
    return note and note | {"kept": note["rows"]}


STEP = Step("reason", reason, _note, lambda *of: [reasoned(*of)])
