"""Candidates: the whole corpus, then the source leaves; windows, ceilings, fusion, blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from remixer_script import answer, make_config
from stub_server import StubServer

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.synthesis.config import MineSection
from reasonembed_mteb.synthesis.mine import _candidates, _MiningEncoder, mined
from reasonembed_mteb.synthesis.pipeline import make_client, synthesize
from reasonembed_mteb.synthesis.step import Run

if TYPE_CHECKING:
    from pathlib import Path

    from reasonembed_mteb.synthesis.shards import Row

# MTEB's: a vector by the text's hash.
RANDOM = "model = 'mteb/baseline-random-encoder'\n"
FEW = "[clean]\nskip = true\n[sources]\nper_subset = 8\n"
QUERY = {"id": "q", "source": "s", "query": "why?"}
HITS = {"hits": [["a", 9.0], ["s", 8.0], ["b", 7.0], ["c", 6.0], ["d", 6.0]], "own": 8.0}


def names(row: Row) -> list[list[object]]:
    return [[document, rank] for document, rank, _ in row["candidates"]]


def section(**values: object) -> MineSection:
    return MineSection.model_validate({"retriever": "bm25", "top_k": 4, **values})


def test_the_source_leaves_after_the_cut() -> None:
    # Four of the whole corpus, the source among them; of the equal scores d, the higher id, is in.
    row = _candidates(QUERY, [HITS], section())
    assert row["candidates"] == [["a", 1, 9.0], ["b", 3, 7.0], ["d", 4, 6.0]]
    assert "dropped" not in row


def test_a_window_of_ranks_and_a_ceiling() -> None:
    assert names(_candidates(QUERY, [HITS], section(first_rank=2, last_rank=3))) == [["b", 3]]
    assert names(_candidates(QUERY, [HITS], section(score_ceiling=0.8))) == [["d", 4]]
    assert names(_candidates(QUERY, [HITS], section(score_ceiling=1.0))) == [["b", 3], ["d", 4]]
    gone = _candidates(QUERY, [HITS], section(score_ceiling=0.1))
    assert (gone["candidates"], gone["dropped"]) == ([], "no candidate")


def test_fused_ranks() -> None:
    other = {"hits": [["c", 0.9], ["b", 0.8]], "own": None}
    fused = section(retriever="fused", model="m", rrf_k=0, top_k=5)
    # By rank alone: c 1/1 + 1/5 (d stands before it), b 1/2 + 1/3, a 1/1, d 1/4.
    row = _candidates(QUERY, [HITS, other], fused)
    assert names(row) == [["c", 1], ["a", 2], ["b", 3], ["d", 5]]
    scores = {document: score for document, _, score in row["candidates"]}
    assert scores["c"] == pytest.approx((1 + 1 / 5) / 2, abs=1e-6)
    assert scores["b"] == pytest.approx((1 / 2 + 1 / 3) / 2, abs=1e-6)


def mined_rows(tmp_path: Path, server: StubServer, mine: str) -> list[Row]:
    config = make_config(tmp_path, server.base_url, FEW + "[mine]\n" + mine)
    outcomes = synthesize(config, ("clean", "generate", "mine"))
    assert [one.error for one in outcomes] == [None] * 3
    run = Run(config, make_client(config))
    return list(mined(run, config.subset[0]).rows())


def test_dense_blocks_give_what_one_search_gives(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        small = mined_rows(tmp_path, server, "retriever = 'dense'\ntop_k = 7\nblock = 9\n" + RANDOM)
        large = mined_rows(tmp_path, server, "retriever = 'dense'\ntop_k = 7\nblock = 1000\n" + RANDOM)
        alone = mined_rows(tmp_path, server, "retriever = 'dense'\ntop_k = 60\n" + RANDOM)
    assert small == large
    assert len(small) == 8
    for row, every in zip(small, alone, strict=True):
        assert row["candidates"] == [one for one in every["candidates"] if one[1] <= 7]
        assert row["source"] not in [name for name, *_ in every["candidates"]]
        # Everything but the source, whose rank is missing.
        assert len(every["candidates"]) == 59


def test_a_ceiling_is_relative_to_the_sources_own_score(tmp_path: Path) -> None:
    dense = "retriever = 'dense'\ntop_k = {}\n" + RANDOM
    with StubServer(answer) as server:
        every = mined_rows(tmp_path, server, dense.format(60))
        kept = mined_rows(tmp_path, server, dense.format(60) + "score_ceiling = 1.0\n")
    below = {row["id"]: row["candidates"] for row in kept}
    for row in every:
        (own,) = set(range(1, 61)) - {rank for _, rank, _ in row["candidates"]}
        # Whoever stands before the source scores above it; a query that nobody is left of is dropped.
        assert below.get(row["id"], []) == [one for one in row["candidates"] if one[1] > own]


def test_bm25_and_both_fused(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        words = mined_rows(tmp_path, server, "retriever = 'bm25'\ntop_k = 6\n")
        below = mined_rows(tmp_path, server, "retriever = 'bm25'\ntop_k = 60\nscore_ceiling = 0.5\n")
        fused = mined_rows(tmp_path, server, "retriever = 'fused'\ntop_k = 6\n" + RANDOM)
    # A query shares words with its source: BM25 finds it, and it leaves.
    assert all(len(row["candidates"]) == 5 for row in words)
    assert all(score > 0 for row in words for *_, score in row["candidates"])
    for row, cut in zip(words, below, strict=True):
        assert max((score for *_, score in cut["candidates"]), default=0) < row["candidates"][0][2]
    assert all(row["source"] not in [name for name, *_ in row["candidates"]] for row in fused)
    assert [row["candidates"] for row in fused] != [row["candidates"] for row in words]


def test_queries_are_encoded_once() -> None:
    from mteb.types import PromptType

    class Model:
        mteb_model_meta = None
        calls = 0

        def encode(self, inputs: object, *, prompt_type: object, **_: object) -> object:
            self.calls += 1
            return (prompt_type, self.calls)

    model = Model()
    memory = _MiningEncoder(model)
    for _ in range(3):
        assert memory.encode([], prompt_type=PromptType.query) == (PromptType.query, 1)
    assert memory.encode([], prompt_type=PromptType.document) == (PromptType.document, 2)
    assert memory.encode([], prompt_type=PromptType.document) == (PromptType.document, 3)


def test_an_unknown_model_names_the_nearest(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        config = make_config(
            tmp_path,
            server.base_url,
            FEW + "[mine]\nretriever = 'dense'\nmodel = 'mteb/baseline-random-encode'\n",
        )
        with pytest.raises(ReasonEmbedError, match="did you mean 'mteb/baseline-random-encoder'"):
            synthesize(config, ("clean", "generate", "mine"))
