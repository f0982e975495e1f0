"""Smoke runs: which queries and documents are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mteb
import pytest
from evaluation_data import (
    BIOLOGY,
)

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation import limits, runner

if TYPE_CHECKING:
    from collections.abc import Callable

    Score = Callable[..., tuple[list[runner.Outcome], list[str]]]


pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.usefixtures("data")
def test_limited_task_keeps_gold_and_leaves_the_original_alone() -> None:
    task = mteb.get_task(BIOLOGY)
    task.load_data()
    own = limits.own_copy(task)
    own.dataset["default"]["standard"]["relevant_docs"] = {"q0": {"d39": 1}, "q1": {"d38": 1}}
    own.dataset["default"]["standard"]["excluded_ids"] = {"q0": ["d19", "d30"], "q1": ["d2"]}
    limits.limit_task(own, 1)
    split = own.dataset["default"]["standard"]
    assert list(split["queries"]["id"]) == ["q0"]
    assert list(split["relevant_docs"]) == ["q0"]
    # Twenty others stay beside the gold document.
    assert list(split["corpus"]["id"]) == [*(f"d{i}" for i in range(20)), "d39"]
    assert split["excluded_ids"] == {"q0": ["d19"]}
    assert len(task.dataset["default"]["standard"]["queries"]) == 6
    with pytest.raises(ReasonEmbedError, match="STS12 is no retrieval task: --limit"):
        limits.limit_task(mteb.get_task("STS12"), 1)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("queries", "gold", "kept"),
    [
        # A gold document among the first takes none of the places of the others.
        (1, {"q0": {"d3": 1}}, range(21)),
        (1, {"q0": {"d3": 1, "d7": 1}}, range(22)),
        # Twenty for each query, not for all together.
        (2, {"q0": {"d3": 1}, "q1": {"d39": 1}}, range(40)),
        (1, {"q0": {}}, range(20)),
    ],
)
def test_a_limited_corpus_has_room_for_twenty_other_documents_a_query(
    queries: int, gold: dict[str, dict[str, int]], kept: range
) -> None:
    own = limits.own_copy(mteb.get_task(BIOLOGY))
    own.load_data()
    own.dataset["default"]["standard"]["relevant_docs"] = gold
    limits.limit_task(own, queries)
    split = own.dataset["default"]["standard"]
    assert list(split["corpus"]["id"]) == [f"d{i}" for i in kept]
