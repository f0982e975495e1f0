"""What a user brings, written as the output of the steps that it replaces."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.synthesis.duplicates import Leaks
from reasonembed_mteb.synthesis.reason import refusal, sides

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reasonembed_mteb.synthesis.config import SubsetSection
    from reasonembed_mteb.synthesis.own import OwnQuery
    from reasonembed_mteb.synthesis.shards import Row
    from reasonembed_mteb.synthesis.step import Run

# Queries a file, as the steps write them.
_SIZES = {"queries": 256, "mined": 256, "labels": 16, "reasoned": 256}


def take_own(run: Run, subset: SubsetSection) -> None:
    """Write the parts that a subset begins with, unless they are there.

    Args:
        run: Whose folder gets them.
        subset: With a table ``start``.

    Raises:
        DataError: If a file is missing or wrong.
    """
    rows_of: dict[str, Callable[[Run, SubsetSection], Iterable[Row]]] = {
        "queries": _queries,
        "mined": _mined,
        "labels": _labels,
        "reasoned": _reasoned,
    }
    for part in run.own_parts(subset):
        shards = run.own_shards(subset, part)
        if shards.note is not None:
            continue
        shards.begin()
        rows, size = iter(rows_of[part](run, subset)), _SIZES[part]
        files = 0
        while block := list(islice(rows, size)):
            shards.write(files, block)
            files += 1
        shards.finish(files)


def _kept(run: Run, subset: SubsetSection) -> Iterator[tuple[OwnQuery, Row]]:
    """Give the queries that go on, each with what every row of its has."""
    own = {query.id: query for query in run.own(subset).queries}
    for row in run.own_shards(subset, "queries").rows():
        yield own[row["id"]], {key: row[key] for key in ("id", "source", "query")}


def _queries(run: Run, subset: SubsetSection) -> Iterator[Row]:
    section, corpus = run.config.generate, run.corpus(subset)
    leaks = Leaks(corpus.benchmark.queries, section.leak_similarity, section.leak_words)
    sources = [query.source for query in run.own(subset).queries]
    positions = corpus.positions(name for name in sources if name is not None)
    compared = run.config.mine.score_ceiling is not None and run.own_parts(subset) == ("queries",)
    for query, source in zip(run.own(subset).queries, sources, strict=True):
        row: Row = {"id": query.id, "source": source, "query": query.text}
        if not query.text.strip():
            yield row | {"dropped": "empty query"}
        elif leaks.has(query.text):
            yield row | {"dropped": "nearly a benchmark query"}
        elif source is None and compared:
            msg = (
                f"mine.score_ceiling compares with a query's positive, and {query.where or query.id} has "
                "none; leave it out, or give pairs"
            )
            raise DataError(msg)
        else:
            yield row if source is None else row | {"position": positions[source]}


def _mined(run: Run, subset: SubsetSection) -> Iterator[Row]:
    for query, row in _kept(run, subset):
        candidates = [[name, rank, None] for rank, name in enumerate(query.candidates, 1)]
        # Documents with a label need no judgement, but belong to the row.
        there = candidates or query.labels
        yield row | {"candidates": candidates} | ({} if there else {"dropped": "no candidate"})


def _labels(run: Run, subset: SubsetSection) -> Iterator[Row]:
    for query, row in _kept(run, subset):
        labels = {"documents": list(query.labels), "labels": list(query.labels.values())}
        yield row | labels | ({} if query.labels else {"dropped": "no label"})


def _reasoned(run: Run, subset: SubsetSection) -> Iterator[Row]:
    own = {query.id: query for query in run.own(subset).queries}
    section = run.config.format
    for row in run.own_shards(subset, "labels").rows():
        # The samples are made of these alone.
        if refusal(*sides(row, section), section) is None:
            reasoning = own[row["id"]].reasoning_query
            made = {"dropped": "not given"} if reasoning is None else {"reasoning_query": reasoning}
            yield {"id": row["id"], **made}
