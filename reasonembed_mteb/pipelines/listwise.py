"""Listwise reranking: windows that slide from end to front, permutations that are mended and counted."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.llm.grades import first_words
from reasonembed_mteb.llm.templates import without_thought

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reasonembed_mteb.endpoints.endpoint import Answer
    from reasonembed_mteb.llm.templates import ChatTemplate
    from reasonembed_mteb.pipelines.asking import Client
    from reasonembed_mteb.pipelines.config import ListwiseStage

_IDENTIFIER = re.compile(r"\[\s*(\d+)\s*\]")
# Some models leave the brackets out; a number in a sentence is no identifier.
_BARE = re.compile(r"\s*\d+(?:\s*>\s*\d+)+\s*\.?\s*")
# Digits of a number that may be one of a window's documents; longer ones are not worked out.
_DIGITS = 9


class Mended(NamedTuple):
    """A permutation made of an answer.

    Attributes:
        order: Places in the window, best first; each once.
        kinds: What had to be mended: ``repeated``, ``unknown`` and ``missing`` identifiers; ``unreadable``
            alone where there are none at all.
    """

    order: list[int]
    kinds: tuple[str, ...]


def windows(count: int, window: int, step: int) -> list[tuple[int, int]]:
    """Return the windows of a list as start and end, in the order in which they are asked.

    Args:
        count: Documents.
        window: Documents a window.
        step: How far it moves to the front.
    """
    found = []
    end = count
    while count > 1:
        start = max(0, end - window)
        found.append((start, end))
        if start == 0:
            break
        end -= step
    return found


def read_permutation(text: str | None, count: int) -> Mended:
    """Read a ranking; what is repeated or unknown is left out, what is missing follows in its old order.

    Args:
        text: The answer; what a thinking model wrote before ``</think>`` does not count.
        count: Documents in the window.
    """
    said = without_thought(text or "")
    given = _IDENTIFIER.findall(said)
    if not given and (bare := _BARE.fullmatch(said)):
        given = re.findall(r"\d+", bare[0])
    numbers = [int(digits) for digits in given if len(digits) <= _DIGITS]
    known = [number - 1 for number in numbers if 1 <= number <= count]
    if not given:
        return Mended(list(range(count)), ("unreadable",))
    order = list(dict.fromkeys(known))
    kinds = {
        "repeated": len(order) < len(known),
        "unknown": len(known) < len(given),
        "missing": len(order) < count,
    }
    held = set(order)
    order += [place for place in range(count) if place not in held]
    return Mended(order, tuple(name for name, is_so in kinds.items() if is_so))


def sort_lists(
    stage: ListwiseStage,
    template: ChatTemplate,
    queries: Mapping[str, str],
    lists: Mapping[str, Sequence[str]],
    documents: Mapping[str, str],
    client: Client,
) -> tuple[dict[str, list[str]], Counter[str]]:
    """Rerank lists; each query has one window on its way at a time, and all queries theirs together.

    Args:
        stage: Window, step and sampling.
        template: With ``$query`` and ``$documents``.
        queries: Texts by id.
        lists: Documents by query, best first.
        documents: Their texts.
        client: Whom to ask.

    Returns:
        The documents by query, best first, and how many windows were asked and mended, by kind.
    """
    sorting = _Sorting(stage, template, queries, lists, documents)
    alike: dict[int, list[str]] = {}
    for query, own in lists.items():
        alike.setdefault(len(windows(len(own), stage.window, stage.step)), []).append(query)
    # Lists of as many windows go together: the next window of each is asked once all have had their turn.
    for count, group in sorted(alike.items(), reverse=True):
        requests = sorting.requests(group)
        total = count * len(group)
        for answer in client.run(requests, total=total, description=stage.name, ahead=len(group)):
            sorting.take(answer)
    return sorting.lists, sorting.counts


class _Sorting:
    """The lists while they are sorted: requests are made of the answers to earlier ones."""

    def __init__(
        self,
        stage: ListwiseStage,
        template: ChatTemplate,
        queries: Mapping[str, str],
        lists: Mapping[str, Sequence[str]],
        documents: Mapping[str, str],
    ) -> None:
        self.lists = {query: list(own) for query, own in lists.items()}
        self.counts: Counter[str] = Counter()
        self._stage, self._template, self._queries = stage, template, queries
        # Cut once: a document is shown in several windows, and to several queries.
        self._shown = {name: shown_document(text, stage.words) for name, text in documents.items()}
        self._asked: deque[tuple[str, int, int]] = deque()

    def requests(self, group: Sequence[str]) -> Iterator[Request]:
        """Yield the windows of queries whose lists have as many: one of each query a round."""
        stage = self._stage
        places = {query: windows(len(self.lists[query]), stage.window, stage.step) for query in group}
        for number in range(len(places[group[0]])):
            for query in group:
                yield self._request(query, *places[query][number])

    def _request(self, query: str, start: int, end: int) -> Request:
        self._asked.append((query, start, end))
        shown = numbered([self._shown[name] for name in self.lists[query][start:end]])
        messages = self._template.messages(
            query=self._queries[query], documents=shown, count=str(end - start)
        )
        return Request(f"{self._stage.name}/{query}/{start}", messages, *self._stage.sampling)

    def take(self, answer: Answer) -> None:
        """Sort the window of an answer."""
        query, start, end = self._asked.popleft()
        self.counts["windows"] += 1
        failed = answer.error is not None and answer.error != "length"
        mended = read_permutation(None if failed else answer.text, end - start)
        own = self.lists[query][start:end]
        self.lists[query][start:end] = [own[place] for place in mended.order]
        if failed:
            self.counts[f"left as they were: {answer.error}"] += 1
            return
        if mended.kinds:
            self.counts["mended windows"] += 1
        for kind in mended.kinds:
            self.counts[f"mended: {kind}"] += 1


def shown_document(text: str, words: int | None) -> str:
    """Return a document as it is shown among others: in one line, cut after so many words.

    Args:
        text: The document.
        words: None leaves it whole.
    """
    return " ".join(first_words(text, words).split())


def numbered(texts: Sequence[str]) -> str:
    """Return documents with their identifiers, from 1.

    Args:
        texts: In their order; see `shown_document`.
    """
    return "\n\n".join(f"[{number}] {text}" for number, text in enumerate(texts, 1))
