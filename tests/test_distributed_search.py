"""Search of a store: equal to brute force, ties and exclusions included, however it is cut."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from reasonembed_mteb.distributed import search as searching
from reasonembed_mteb.distributed.processes import Processes
from reasonembed_mteb.distributed.search import SearchQueries, groups, merged, search_corpus, search_group
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.store.corpora import CorpusFolder, EncodedBlock, open_stored, read_block, write_corpus
from reasonembed_mteb.store.places import Place, StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from reasonembed_mteb.store.corpora import StoredCorpus


ROWS, DIM = 300, 8


def make_corpus(root: Path, dtype: str = "float32") -> StoredCorpus:
    """Write a corpus with few distinct vectors, so that many scores are equal."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(-2, 3, (ROWS, DIM), generator=generator).float()
    vectors[::7] = vectors[0]
    names = [f"d{n}" for n in torch.randperm(ROWS, generator=generator).tolist()]
    folder = CorpusFolder(Place(root), {"name": "m"}, dtype)
    folder.prepare()
    files, start = [], 0
    for number, size in enumerate((70, 1, 100, 129)):
        part = slice(start, start + size)
        keys, tokens = np.zeros((size, 2), dtype=np.uint64), np.zeros(size, dtype=np.int32)
        files.append(folder.write(f"{number:032x}", EncodedBlock(names[part], keys, tokens, vectors[part])))
        start += size
    write_corpus(folder.place, "c", files, DIM, {}, complete=True)
    return open_stored(Place(root))


def ask(count: int = 5, function: str = "dot", excluded: dict[str, list[str]] | None = None) -> SearchQueries:
    vectors = torch.randint(-2, 3, (count, DIM), generator=torch.Generator().manual_seed(1)).float()
    return SearchQueries(tuple(f"q{n}" for n in range(count)), vectors, excluded or {}, function)


def brute_force(corpus: StoredCorpus, queries: SearchQueries, k: int) -> dict[str, list[str]]:
    """Rank every document in float64, by score and then by id, both descending."""
    blocks = [read_block(corpus.folder, one) for one in corpus.blocks]
    names = [name for one in blocks for name in one.ids.to_pylist()]
    vectors = torch.cat([one.full(0, len(one.ids)) for one in blocks]).double().numpy()
    asked = queries.vectors.double().numpy()
    if queries.function == "cosine":
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        asked = asked / np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-12)
    # Equal in theory is equal here.
    scores = np.round(asked @ vectors.T, 6)
    found = {}
    for query, row in zip(queries.ids, scores, strict=True):
        out = set(queries.excluded.get(query, ()))
        pairs = sorted(((s, d) for s, d in zip(row, names, strict=True) if d not in out), reverse=True)
        found[query] = [name for _, name in pairs[:k]]
    return found


@pytest.mark.parametrize("k", [1, 7, 60, 299, 300, 1000])
@pytest.mark.parametrize("rows", [1, 71, 1000])
def test_equal_to_brute_force_with_many_ties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, rows: int
) -> None:
    monkeypatch.setattr(searching, "GROUP_ROWS", rows)
    monkeypatch.setattr(searching, "_CHUNK_ROWS", 40)
    monkeypatch.setattr(searching, "_QUERIES", 2)
    corpus = make_corpus(tmp_path)
    excluded = {"q1": ["d3", "d4", "unknown"], "q4": [f"d{n}" for n in range(0, ROWS, 2)]}
    queries = ask(excluded=excluded)
    parts = [search_group(queries, k, 1, True, one) for one in groups(corpus, rows)]
    assert len(parts) == {1: 4, 71: 3, 1000: 1}[rows]
    # In whatever order the parts come.
    found = merged(reversed(parts), len(queries.ids), k)
    names = found.ids.to_pylist()
    rows_found = zip(queries.ids, found.documents, strict=True)
    ranked = {query: [names[d] for d in row if d >= 0] for query, row in rows_found}
    assert ranked == brute_force(corpus, queries, k)
    assert (found.scores[:, 1:] <= found.scores[:, :-1]).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("mapped", [True, False])
def test_cosine_of_every_dtype_equals_that_of_what_is_stored(
    tmp_path: Path, dtype: str, mapped: bool
) -> None:
    corpus, queries = make_corpus(tmp_path, dtype), ask(function="cosine")
    found = merged([search_group(queries, 20, 1, mapped, one) for one in groups(corpus)], 5, 20)
    blocks = [read_block(corpus.folder, one) for one in corpus.blocks]
    vectors = torch.cat([one.full(0, len(one.ids)) for one in blocks]).double()
    want = torch.nn.functional.normalize(queries.vectors.double()) @ torch.nn.functional.normalize(vectors).T
    best = torch.topk(want, 20, dim=1).values
    assert torch.allclose(torch.from_numpy(found.scores).double(), best, atol=1e-6)


def test_a_search_through_processes_gives_a_run(tmp_path: Path) -> None:
    corpus, queries = make_corpus(tmp_path), ask()
    run = search_corpus(corpus, queries, 10, Processes(1, 1))
    assert {query: list(scores) for query, scores in run.items()} == brute_force(corpus, queries, 10)
    assert all(list(scores.values()) == sorted(scores.values(), reverse=True) for scores in run.values())


def test_groups_do_not_depend_on_who_searches(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    assert [[one.rows for one in group.blocks] for group in groups(corpus, 150)] == [[70, 1], [100], [129]]


def test_queries_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    wide = SearchQueries(("q",), torch.zeros(1, 9), {}, "dot")
    with pytest.raises(ReasonEmbedError, match="8 dimensions; the queries' have 9"):
        search_corpus(corpus, wide, 1, Processes(1, 1))
    with pytest.raises(ReasonEmbedError, match="not finite"):
        search_corpus(
            corpus, SearchQueries(("q",), torch.full((1, 8), torch.nan), {}, "dot"), 1, Processes(1, 1)
        )


def test_a_block_that_is_gone_is_named(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    ((corpus.folder.local or tmp_path) / corpus.blocks[2].file).unlink()
    with pytest.raises(StoreError, match=rf"{corpus.blocks[2].file} cannot be read .*encode` again"):
        search_corpus(corpus, ask(), 1, Processes(1, 1))


def test_the_model_is_the_one_of_the_manifest(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    with pytest.raises(StoreError, match="does not say how it was encoded"):
        searching.chosen_model(corpus)
    corpus.about["model"] = {"name": "a/b", "task": "T"}
    chosen = partial(searching.chosen_model, corpus)
    assert (chosen().name, chosen().task, chosen(name="c").name) == ("a/b", "T", "c")
    # What is given now stands in for the task that documents were encoded for.
    told = chosen(instruction="I")
    assert (told.task, told.instruction) == ("", "I")
    corpus.about["model"]["instruction"] = "old"
    assert (chosen(task="U").task, chosen(task="U").instruction) == ("U", "")
    with pytest.raises(ReasonEmbedError, match="--task or --instruction, not both"):
        chosen(task="T", instruction="I")
    with pytest.raises(ReasonEmbedError, match="the instruction is empty"):
        chosen(instruction=" ")


@pytest.mark.parametrize("said", [{"name": 5}, {"name": None}, {"name": "a", "max_length": "8"}, {"of": "a"}])
def test_a_manifest_that_says_no_model_is_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    corpus = make_corpus(tmp_path)
    corpus.about["model"] = said
    with pytest.raises(StoreError, match=r"does not say how it was encoded .*encode it again"):
        searching.chosen_model(corpus)
