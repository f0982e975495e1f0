"""Step 4: a label from 1 to 5 for each query and candidate."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import compress, islice
from statistics import median_low
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.llm.templates import tagged
from reasonembed_mteb.synthesis.mine import mined
from reasonembed_mteb.synthesis.shards import shard_count
from reasonembed_mteb.synthesis.step import Step, ask, in_blocks, need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from reasonembed_mteb.endpoints.endpoint import Answer
    from reasonembed_mteb.synthesis.config import AnnotateSection, SubsetSection
    from reasonembed_mteb.synthesis.shards import Row, Shards
    from reasonembed_mteb.synthesis.step import Run

# Queries a file, each with a hundred requests or so.
SIZE = 16
UNJUDGED = -1
_LABELS = {str(label): label for label in range(1, 6)}
# A mined query, the labels that its user brought, and which of its candidates are short enough to be judged.
_Item = tuple["Row", "Mapping[str, int]", dict[str, bool]]


def parse_label(text: str | None) -> int:
    """Return the label of an answer.

    Args:
        text: What the annotator wrote; exactly one ``<score>N</score>`` with N from 1 to 5 counts.

    Returns:
        1 to 5, or -1 for anything else.
    """
    return _LABELS.get(tagged(text, "score") or "", UNJUDGED)


def median_label(labels: Sequence[int]) -> int:
    """Return the median of the labels that could be read; the lower one of two in the middle.

    Args:
        labels: One a sample, -1 for an unreadable one.

    Returns:
        -1 if fewer than half could be read.
    """
    read = [label for label in labels if label != UNJUDGED]
    return median_low(read) if 2 * len(read) >= len(labels) and read else UNJUDGED


def labelled(run: Run, subset: SubsetSection) -> Shards:
    """Return the step's output: a row a query, with ``documents`` and their ``labels``."""
    if "labels" in run.own_parts(subset):
        return run.own_shards(subset, "labels")
    return _labelled(run, subset, run.config.annotate, "labels")


def second_labelled(run: Run, subset: SubsetSection) -> Shards | None:
    """Return the second annotator's labels of the first queries, or None where there is none."""
    second = None if "labels" in run.own_parts(subset) else _second(run.config.annotate)
    return None if second is None else _labelled(run, subset, second, "second", second.second_queries)


def _second(section: AnnotateSection) -> AnnotateSection | None:
    if section.second_endpoint is None:
        return None
    return section.model_copy(update={"endpoint": section.second_endpoint})


def _labelled(
    run: Run, subset: SubsetSection, section: AnnotateSection, part: str, most: int | None = None
) -> Shards:
    note = need(mined(run, subset), "mine", subset)
    # The corpus' texts are part of what is judged.
    causes = [note["output"], run.corpus(subset).fingerprint, section.samples, section.max_characters, most]
    # Labels that a user brings are taken as they are.
    causes += [run.own(subset).fingerprint] if run.own_parts(subset) else []
    return run.shards(part, subset, causes, run.asking(section, "annotate", subset))


def annotate(run: Run, subset: SubsetSection) -> None:
    """Run the step for one subset."""
    section = run.config.annotate
    if (shards := labelled(run, subset)).note is None:
        _judge(run, subset, section, shards, None)
    second = second_labelled(run, subset)
    if second is not None and second.note is None:
        _judge(run, subset, _second(section) or section, second, section.second_queries)


def is_annotated(run: Run, subset: SubsetSection) -> bool:
    """Say whether the step is finished, the second annotator included."""
    second = second_labelled(run, subset)
    return labelled(run, subset).note is not None and (second is None or second.note is not None)


def _judge(
    run: Run, subset: SubsetSection, section: AnnotateSection, shards: Shards, most: int | None
) -> None:
    shards.begin()
    count, load = _items(run, subset, section, most)
    client = partial(run.client, section.endpoint)
    ask(shards, count, load, partial(_label_row, section.samples), client, f"annotate {subset.name}")
    shards.finish(count)


def _items(
    run: Run, subset: SubsetSection, section: AnnotateSection, most: int | None
) -> tuple[int, Callable[[int], Iterator[tuple[_Item, Sequence[Request]]]]]:
    """Return the number of files, and what gives the queries of one with what is asked about them."""
    kept = need(mined(run, subset), "mine", subset)["kept"]
    kept = kept if most is None else min(kept, most)
    block = in_blocks(mined(run, subset).rows(), SIZE)
    own = run.own(subset).queries if run.own_parts(subset) else ()
    known = {query.id: query.labels for query in own}

    def load(index: int) -> Iterator[tuple[_Item, Sequence[Request]]]:
        rows = block(index)[: kept - index * SIZE]
        names = [document for row in rows for document, *_ in row["candidates"]]
        texts = run.corpus(subset).texts(names)
        for row in rows:
            labels = known.get(row["id"], {})
            documents = [(name, texts[name]) for name, *_ in row["candidates"] if name not in labels]
            limit = section.max_characters - len(row["query"])
            fits = {name: len(text) <= limit for name, text in documents}
            chosen = list(compress(documents, fits.values()))
            yield (row, labels, fits), _requests(run, subset, section, row, chosen)

    return shard_count(kept, SIZE), load


def asked_pairs(run: Run, subset: SubsetSection) -> Iterator[list[tuple[str, Request]]]:
    """Give what was asked about each query: documents, each with one request a sample.

    Args:
        run: Where the step is finished.
        subset: Without labels of its own.
    """
    section = run.config.annotate
    count, load = _items(run, subset, section, None)
    for index in range(count):
        for (_, _, fits), requests in load(index):
            asked = [name for name, fit in fits.items() if fit for _ in range(section.samples)]
            yield list(zip(asked, requests, strict=True))


def _requests(
    run: Run, subset: SubsetSection, section: AnnotateSection, row: Row, documents: Sequence[tuple[str, str]]
) -> list[Request]:
    domain = run.domain(subset)
    values = {"topic": domain.topic, "asks": domain.asks, "wants": domain.wants, "query": row["query"]}
    prompt, sampling = run.prompt(section, "annotate"), run.sampling(section)
    made = []
    for name, text in documents:
        messages = prompt.messages(**values, document=text)
        key = f"annotate/{row['id']}/{name}"
        made += [Request(f"{key}/{n}", messages, *sampling, n_sample=n) for n in range(section.samples)]
    return made


def _label_row(samples: int, item: _Item, answers: list[Answer]) -> Row:
    row, known, fits = item
    left = iter(answers)
    labels = list(known.values())
    every = [[label] * samples for label in labels]
    unjudged: Counter[str] = Counter()
    for fit in fits.values():
        given = list(islice(left, samples)) if fit else []
        every.append([UNJUDGED if one.error else parse_label(one.text) for one in given])
        labels.append(median_label(every[-1]))
        if labels[-1] == UNJUDGED:
            why = next((one.error for one in given if one.error), "unparsable")
            unjudged[why if fit else "too long"] += 1
    made: Row = {"id": row["id"], "source": row["source"], "query": row["query"]}
    made |= {"documents": [*known, *fits], "labels": labels}
    if samples > 1:
        made["samples"] = every
    return made | ({"unjudged": dict(sorted(unjudged.items()))} if unjudged else {})


def _note(run: Run, subset: SubsetSection) -> dict[str, Any] | None:
    return labelled(run, subset).note if is_annotated(run, subset) else None


def _parts(run: Run, subset: SubsetSection) -> dict[str, Shards]:
    second = second_labelled(run, subset)
    return {"labels": labelled(run, subset), **({} if second is None else {"second": second})}


STEP = Step("annotate", annotate, _note, _parts, ("labels", "second"))
