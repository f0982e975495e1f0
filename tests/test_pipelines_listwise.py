"""Sliding windows and permutations against a plain reference; requests that wait for answers."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.endpoints.endpoint import Answer
from reasonembed_mteb.endpoints.limits import Usage
from reasonembed_mteb.llm.templates import ChatTemplate
from reasonembed_mteb.pipelines.config import ListwiseStage
from reasonembed_mteb.pipelines.listwise import read_permutation, shown_document, sort_lists, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reasonembed_mteb.endpoints.endpoint import Request

TEMPLATE = ChatTemplate("", "$query|$count|$documents")


@pytest.mark.parametrize(
    ("count", "window", "step", "wanted"),
    [
        (100, 20, 10, [(80 - 10 * n, 100 - 10 * n) for n in range(9)]),
        (95, 20, 10, [(75 - 10 * n, 95 - 10 * n) for n in range(8)] + [(0, 15)]),
        (7, 20, 10, [(0, 7)]),
        (20, 20, 20, [(0, 20)]),
        (1, 20, 10, []),
        (0, 20, 10, []),
    ],
)
def test_windows(count: int, window: int, step: int, wanted: list[tuple[int, int]]) -> None:
    assert windows(count, window, step) == wanted


@pytest.mark.parametrize("seed", range(10))
def test_windows_reach_every_document(seed: int) -> None:
    draw = random.Random(seed)
    window = draw.randint(2, 30)
    found = windows(draw.randint(2, 200), window, draw.randint(1, window))
    assert found[-1][0] == 0
    for (start, _), (_, end) in itertools.pairwise(found):
        assert start <= end


@pytest.mark.parametrize(
    ("text", "order", "kinds"),
    [
        ("[2] > [1] > [3]", [1, 0, 2], ()),
        ("<think>[3] > [2]</think>\n[1] > [2] > [3]", [0, 1, 2], ()),
        ("2 > 3 > 1", [1, 2, 0], ()),
        ("[3]", [2, 0, 1], ("missing",)),
        ("[3] > [3] > [2] > [1]", [2, 1, 0], ("repeated",)),
        ("[0] > [4] > [2] > [1] > [3]", [1, 0, 2], ("unknown",)),
        ("[9]", [0, 1, 2], ("unknown", "missing")),
        ("[0] > [7]", [0, 1, 2], ("unknown", "missing")),
        ("[10203] > [2]", [1, 0, 2], ("unknown", "missing")),
        ("10203 > 2 > 1 > 3", [1, 0, 2], ("unknown",)),
        (f"[{'9' * 5000}] > [00003] > [2] > [1]", [2, 1, 0], ("unknown",)),
        ("The 3 documents of 1999 are all fine.", [0, 1, 2], ("unreadable",)),
        ("", [0, 1, 2], ("unreadable",)),
        (None, [0, 1, 2], ("unreadable",)),
        ("Sure! [ 2 ] is best, then [1].", [1, 0, 2], ("missing",)),
    ],
)
def test_permutations(text: str | None, order: list[int], kinds: tuple[str, ...]) -> None:
    mended = read_permutation(text, 3)
    assert (mended.order, mended.kinds) == (order, kinds)


class Scripted:
    """A client that answers by a function, and holds to the number of requests that may be taken ahead."""

    def __init__(self, script: Callable[[Request], str]) -> None:
        self._script, self.usage, self.asked = script, Usage(), 0

    def run(
        self,
        requests: Iterable[Request],
        *,
        total: int | None = None,
        description: str,
        ahead: int | None = None,
    ) -> Iterator[Answer]:
        """Answer in order."""
        waiting: list[Request] = []
        taken, source = 0, iter(requests)
        while True:
            # As many as may be, before the oldest is answered.
            while len(waiting) < (ahead or 1) and (request := next(source, None)) is not None:
                waiting.append(request)
                taken += 1
            if not waiting:
                break
            oldest = waiting.pop(0)
            self.asked += 1
            yield Answer(oldest.key, self._script(oldest), None, 1, 1, False)
        assert taken == total


def reference(
    names: list[str], window: int, step: int, answer: Callable[[list[str]], list[int]]
) -> list[str]:
    """Slide in the plainest way."""
    order, end = list(names), len(names)
    while end > 0:
        start = max(0, end - window)
        part = order[start:end]
        given = [place for place in answer(part) if 0 <= place < len(part)]
        kept = sorted(set(given), key=given.index)
        order[start:end] = [part[place] for place in [*kept, *(p for p in range(len(part)) if p not in kept)]]
        end = end - step if start else 0
    return order


@pytest.mark.parametrize("seed", range(5))
def test_sorting_against_a_plain_reference(seed: int) -> None:
    draw = random.Random(seed)
    stage = ListwiseStage(kind="rerank", by="listwise", name="sort", window=6, step=draw.randint(1, 6))
    # Lists of several lengths, one of them alone in its length.
    lists = {
        f"q{n}": [f"d{n}-{k}" for k in range(length)] for n, length in enumerate([20, 20, 20, 7, 3, 1, 0, 33])
    }
    texts = {name: name for own in lists.values() for name in own}

    def places(part: list[str]) -> list[int]:
        chosen = random.Random(" ".join(part))
        # Repeated, unknown and missing ones among them.
        return [chosen.randrange(-1, len(part) + 1) for _ in range(len(part))]

    def script(request: Request) -> str:
        shown = request.messages[-1]["content"].partition("|")[2].partition("|")[2]
        part = [line.partition("] ")[2] for line in shown.split("\n\n")]
        return " > ".join(f"[{place + 1}]" for place in places(part) if place >= 0)

    client = Scripted(script)
    made, counts = sort_lists(stage, TEMPLATE, {query: query for query in lists}, lists, texts, client)
    assert (
        counts["windows"]
        == client.asked
        == sum(len(windows(len(own), 6, stage.step)) for own in lists.values())
    )
    for query, own in lists.items():
        assert made[query] == (reference(own, 6, stage.step, places) if len(own) > 1 else own)


def test_documents_are_shown_in_one_line_and_cut() -> None:
    assert shown_document("one\n\ntwo  three", None) == "one two three"
    assert shown_document("one\n\ntwo  three", 2) == "one two"
    assert shown_document("", 2) == ""
