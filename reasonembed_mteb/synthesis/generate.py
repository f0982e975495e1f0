"""Step 2: one query from each source."""

from __future__ import annotations

import random
import re
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.llm.templates import tagged
from reasonembed_mteb.synthesis.boilerplate import far_from_length, refusal_to_write, rules_hash, tidied
from reasonembed_mteb.synthesis.clean import cleaned, rank
from reasonembed_mteb.synthesis.duplicates import Leaks, NearDuplicates
from reasonembed_mteb.synthesis.shards import shard_count
from reasonembed_mteb.synthesis.step import Step, ask, in_blocks, need

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reasonembed_mteb.endpoints.endpoint import Answer
    from reasonembed_mteb.synthesis.config import GenerateSection, SubsetSection
    from reasonembed_mteb.synthesis.shards import Row, Shards
    from reasonembed_mteb.synthesis.step import Run

# Sources a file.
SIZE = 256
_LENGTHS = {
    "<100": "less than 100 words",
    "100-200": "100 to 200 words",
    "200-300": "200 to 300 words",
    "300-400": "300 to 400 words",
    "400-500": "400 to 500 words",
    ">=500": "500 words or more",
}
# Fewest and most words of each. Of the last one no more is kept than of the one before it, so that training
# need cut neither a query nor the reasoning after it.
_BOUNDS = {
    "<100": (10, 100),
    "100-200": (100, 200),
    "200-300": (200, 300),
    "300-400": (300, 400),
    "400-500": (400, 500),
    ">=500": (500, 500),
}
_TEXT = r"(?:passage|excerpt|document|text|article|paragraph|snippet|context)"
# Only what points at a given text: "this text" does, "the passage of time" does not.
_POINTERS = re.compile(
    rf"\b(?:this|that|these|those)\s+(?:\w+\s+)?{_TEXT}s?\b"
    rf"|\b(?:given|above|provided|preceding|attached|aforementioned|accompanying)\s+{_TEXT}s?\b"
    rf"|\b(?:the\s+)?{_TEXT}s?\s+(?:above|below|provided|given)\b"
    r"|\b(?:according to|based on|(?:described|mentioned|stated|discussed|explained|outlined) (?:in|by))"
    rf"\s+the\s+{_TEXT}s?\b"
    r"|\bthe\s+(?:passage|excerpt)s?\b(?!\s+of\b)",
    re.IGNORECASE,
)


def points_at_a_text(query: str) -> str | None:
    """Return the words by which a query points at a text that its reader does not have, or None.

    Args:
        query: A query, which has to stand on its own.
    """
    found = _POINTERS.search(query)
    return None if found is None else found.group()


def sources(run: Run, subset: SubsetSection) -> Shards:
    """Return the sources: document ids with target length and education level, in the order of the draw."""
    note = need(cleaned(run, subset), "clean", subset)
    limits, section = run.config.sources, run.config.generate
    weights = [section.word_weights, section.level_weights]
    drawn = [run.config.seed, limits.per_subset, limits.near_duplicate, weights]
    return run.shards("sources", subset, note["output"], run.corpus(subset).fingerprint, drawn)


def drafts(run: Run, subset: SubsetSection) -> Shards:
    """Return what the language model wrote, unchecked."""
    note = need(sources(run, subset), "generate", subset)
    return run.shards("drafts", subset, note["output"], run.asking(run.config.generate, "generate", subset))


def queries(run: Run, subset: SubsetSection) -> Shards:
    """Return the step's output: a row a source, those kept with a query."""
    if "queries" in run.own_parts(subset):
        return run.own_shards(subset, "queries")
    section = run.config.generate
    note = need(drafts(run, subset), "generate", subset)
    checks = [section.near_duplicate, section.leak_similarity, section.leak_words, _POINTERS.pattern]
    checks += [section.length_factor, rules_hash()]
    return run.shards("queries", subset, note["output"], run.corpus(subset).fingerprint, checks)


def is_generated(run: Run, subset: SubsetSection) -> bool:
    """Say whether the step is finished."""
    parts = (queries,) if run.own_parts(subset) else (sources, drafts, queries)
    return all(part(run, subset).note is not None for part in parts)


def generate(run: Run, subset: SubsetSection) -> None:
    """Run the step for one subset."""
    if (drawn := sources(run, subset)).note is None:
        drawn.begin()
        found = list(_drawn(run, subset))
        for index in range(shard_count(len(found), SIZE)):
            drawn.write(index, found[index * SIZE : (index + 1) * SIZE])
        drawn.finish(shard_count(len(found), SIZE))
    if (written := drafts(run, subset)).note is None:
        _draft(run, subset, drawn, written)
    if (checked := queries(run, subset)).note is None:
        checked.begin()
        rows = _checked(run, subset, written)
        count = shard_count(need(written, "generate", subset)["rows"], SIZE)
        for index in range(count):
            checked.write(index, list(islice(rows, SIZE)))
        checked.finish(count)


def _drawn(run: Run, subset: SubsetSection) -> Iterator[Row]:
    """Draw the sources: documents that were kept, no two nearly the same."""
    config, corpus = run.config, run.corpus(subset)
    # Two numbers a document, not its text.
    kept = ((rank(config.seed, row["id"]), row["position"]) for row in cleaned(run, subset).rows())
    order = np.fromiter(kept, dtype=[("rank", np.uint64), ("position", np.int64)])
    positions = np.sort(order, order=["rank", "position"])["position"]
    seen, found = NearDuplicates(config.sources.near_duplicate), 0
    for start in range(0, len(positions), SIZE):
        for position, name, text in corpus.documents(positions[start : start + SIZE].tolist()):
            if found == config.sources.per_subset:
                return
            row: Row = {"id": f"{subset.name}-{position}", "source": name, "position": position}
            if seen.add(name, text) is not None:
                yield row | {"dropped": "near-duplicate of another source"}
                continue
            found += 1
            yield row | _target(config.generate, config.seed, subset.name, name)


def _target(section: GenerateSection, seed: int, subset: str, name: str) -> dict[str, str]:
    """Draw target length and education level of one query."""
    # One generator a source: what one gets does not hang on the others. The seed is hashed by SHA-512.
    draw = random.Random(f"{seed}/{subset}/{name}")
    words, levels = section.word_weights, section.level_weights
    return {
        "words": draw.choices(list(words), list(words.values()))[0],
        "level": draw.choices(list(levels), list(levels.values()))[0],
    }


def _draft(run: Run, subset: SubsetSection, drawn: Shards, written: Shards) -> None:
    written.begin()
    count = shard_count(need(drawn, "generate", subset)["kept"], SIZE)
    block = in_blocks(drawn.rows(), SIZE)

    def load(index: int) -> Iterator[tuple[Row, Sequence[Request]]]:
        rows = block(index)
        documents = run.corpus(subset).documents([row["position"] for row in rows])
        for row, (_, _, text) in zip(rows, documents, strict=True):
            yield row, [_request(run, subset, row, text)]

    client = partial(run.client, run.config.generate.endpoint)
    ask(written, count, load, _draft_row, client, f"generate {subset.name}")
    written.finish(count)


def _request(run: Run, subset: SubsetSection, row: Row, text: str) -> Request:
    domain, section = run.domain(subset), run.config.generate
    values = {"topic": domain.topic, "asks": domain.asks, "document": text, "level": row["level"]}
    messages = run.prompt(section, "generate").messages(**values, words=_LENGTHS[row["words"]])
    return Request(f"generate/{row['id']}", messages, *run.sampling(section))


def _draft_row(row: Row, answers: list[Answer]) -> Row:
    made: Row = {key: row[key] for key in ("id", "source", "words", "level")}
    if answers[0].error is not None:
        return made | {"dropped": answers[0].error}
    query = tagged(answers[0].text, "query")
    return made | ({"query": query} if query else {"dropped": "unparsable query"})


def _checked(run: Run, subset: SubsetSection, written: Shards) -> Iterator[Row]:
    """Give every draft, with the reason where its query is not kept."""
    section = run.config.generate
    benchmark = run.corpus(subset).benchmark.queries
    leaks = Leaks(benchmark, section.leak_similarity, section.leak_words)
    seen = NearDuplicates(section.near_duplicate)
    for row in written.rows(dropped=True):
        # The tokens are counted once, with the drafts.
        made = {key: value for key, value in row.items() if key != "tokens"}
        if "dropped" not in made:
            tidy = tidied(made["query"])
            made |= {"query": tidy.text, "mended": list(tidy.mended)} if tidy.mended else {}
            why = _refusal(made, leaks, section.length_factor) or _repeated(seen, made)
            made |= {"dropped": why} if why else {}
        yield made


def _refusal(row: Row, leaks: Leaks, factor: float) -> str | None:
    query = row["query"]
    if why := refusal_to_write(query):
        return why
    if points_at_a_text(query):
        return "points at a given text"
    if leaks.has(query):
        return "nearly a benchmark query"
    return far_from_length(query, _BOUNDS[row["words"]], factor)


def _repeated(seen: NearDuplicates, row: Row) -> str | None:
    return "near-duplicate of another query" if seen.add(row["id"], row["query"]) else None


def _note(run: Run, subset: SubsetSection) -> dict[str, Any] | None:
    return queries(run, subset).note if is_generated(run, subset) else None


def _parts(run: Run, subset: SubsetSection) -> dict[str, Shards]:
    made = {} if run.own_parts(subset) else {"sources": sources(run, subset), "drafts": drafts(run, subset)}
    return {**made, "queries": queries(run, subset)}


STEP = Step("generate", generate, _note, _parts, ("drafts",))
