"""Step 1: which documents may become sources."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.llm.templates import tagged
from reasonembed_mteb.synthesis.duplicates import plain_hash
from reasonembed_mteb.synthesis.shards import shard_count
from reasonembed_mteb.synthesis.step import Step, ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reasonembed_mteb.endpoints.endpoint import Answer
    from reasonembed_mteb.synthesis.config import SubsetSection
    from reasonembed_mteb.synthesis.corpus import Corpus
    from reasonembed_mteb.synthesis.shards import Row, Shards
    from reasonembed_mteb.synthesis.step import Run

# Documents a file.
SIZE = 2000
_VERDICTS = {"yes": None, "no": "another topic"}
# Position, id, length, and why it cannot be a source (None: ask).
_Item = tuple[int, str, int, str | None]


def rank(seed: int, name: str) -> int:
    """Return a document's place in a draw: whoever ranks lowest comes first.

    Args:
        seed: The run's seed.
        name: Document id.
    """
    # A hash, and no shuffle: the draw does not depend on which other documents there are.
    return xxhash.xxh3_64_intdigest(name.encode(), seed=seed)


def cleaned(run: Run, subset: SubsetSection) -> Shards:
    """Return the step's output: a row a document, in the order of the corpus.

    Kept rows are documents of the domain, of the right length, and no benchmark's.
    """
    config, section = run.config, run.config.clean
    asked = [] if section.skip else run.asking(section, "clean", subset)
    limits = [config.sources.min_characters, config.sources.max_characters]
    drawn = [] if section.max_documents is None else [section.max_documents, config.seed]
    return run.shards("clean", subset, run.corpus(subset).fingerprint, limits, drawn, asked)


def clean(run: Run, subset: SubsetSection) -> None:
    """Run the step for one subset."""
    shards, corpus = cleaned(run, subset), run.corpus(subset)
    shards.begin()
    chooser = _Chooser(run, corpus)

    def load(index: int) -> Iterator[tuple[_Item, Sequence[Request]]]:
        stop = min((index + 1) * SIZE, len(corpus))
        for position, name, text in corpus.documents(range(index * SIZE, stop)):
            why = chooser.refuses(name, text)
            asked = why is None and not run.config.clean.skip
            yield (position, name, len(text), why), [_request(run, subset, name, text)] if asked else []

    count = shard_count(len(corpus), SIZE)
    client = partial(run.client, run.config.clean.endpoint)
    ask(shards, count, load, _row, client, f"clean {subset.name}")
    shards.finish(count)


class _Chooser:
    """Say why a document cannot be a source, before anybody is asked."""

    def __init__(self, run: Run, corpus: Corpus) -> None:
        self._limits = run.config.sources
        self._seed = run.config.seed
        self._benchmark = corpus.benchmark
        # The same text under another id would leak all the same.
        apart = corpus.benchmark.gold | corpus.benchmark.excluded
        self._apart = {plain_hash(text) for _, name, text in corpus.documents() if name in apart}
        self._last = self._last_rank(corpus, run.config.clean.max_documents)

    def _last_rank(self, corpus: Corpus, most: int | None) -> int | None:
        if most is None:
            return None
        fit = (name for _, name, text in corpus.documents() if not self._why(name, text))
        ranks = np.fromiter((rank(self._seed, name) for name in fit), dtype=np.uint64)
        return None if len(ranks) <= most else int(np.partition(ranks, most - 1)[most - 1])

    def _why(self, name: str, text: str) -> str | None:
        if name in self._benchmark.gold:
            return "gold"
        if name in self._benchmark.excluded:
            return "excluded"
        if len(text) < self._limits.min_characters:
            return "too short"
        if len(text) > self._limits.max_characters:
            return "too long"
        return "same text as a gold or excluded document" if plain_hash(text) in self._apart else None

    def refuses(self, name: str, text: str) -> str | None:
        if why := self._why(name, text):
            return why
        return "not drawn" if self._last is not None and rank(self._seed, name) > self._last else None


def _request(run: Run, subset: SubsetSection, name: str, text: str) -> Request:
    section = run.config.clean
    messages = run.prompt(section, "clean").messages(topic=run.domain(subset).topic, document=text)
    return Request(f"clean/{subset.name}/{name}", messages, *run.sampling(section))


def _row(item: _Item, answers: list[Answer]) -> Row:
    position, name, characters, why = item
    if answers:
        said = (tagged(answers[0].text, "verdict") or "").lower()
        why = answers[0].error or _VERDICTS.get(said, "unparsable verdict")
    row: Row = {"id": name, "position": position, "characters": characters}
    return row | ({"dropped": why} if why else {})


def _parts(run: Run, subset: SubsetSection) -> dict[str, Shards]:
    return {} if run.own_parts(subset) else {"clean": cleaned(run, subset)}


STEP = Step("clean", clean, lambda run, subset: cleaned(run, subset).note, _parts, ("clean",))
