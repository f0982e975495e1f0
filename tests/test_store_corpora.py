"""Corpora in a store: what is written is read wherever it lies, and by the store's own reader."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.store.corpora import (
    CorpusFolder,
    EncodedBlock,
    done_blocks,
    list_corpora,
    open_stored,
    read_block,
    write_corpus,
)
from reasonembed_mteb.store.places import Place, StoreError
from reasonembed_mteb.store.upkeep import list_store, prune_store
from reasonembed_mteb.store.vectors import VectorStore, text_keys

if TYPE_CHECKING:
    from pathlib import Path

FINGERPRINT = {"name": "my/model", "revision": "1"}
KEYS = [f"{n:032x}" for n in range(3)]


def block(number: int, rows: int = 4) -> EncodedBlock:
    generator = torch.Generator().manual_seed(number)
    ids = [f"é{number}-{n}" for n in range(rows)]
    keys = text_keys([f"text {number} {n}" for n in range(rows)], "document")
    vectors = torch.randn(rows, 8, generator=generator)
    return EncodedBlock(ids, keys, np.full(rows, 3, dtype=np.int32), vectors)


def fill(root: Place, dtype: str = "auto", *, name: str = "c", complete: bool = True) -> CorpusFolder:
    folder = CorpusFolder(root, FINGERPRINT, dtype)
    folder.prepare()
    files = [folder.write(key, block(number)) for number, key in enumerate(KEYS)]
    write_corpus(folder.place, name, files, 8, {"model": {"name": "my/model"}}, complete=complete)
    return folder


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return an empty store of each kind."""
    return Place(tmp_path) if request.param == "disk" else Place(request.getfixturevalue("bucket")) / "store"


@pytest.mark.parametrize("mapped", [True, False])
def test_a_corpus_comes_back(root: Place, mapped: bool) -> None:
    folder = fill(root)
    corpus = open_stored(root)
    assert (corpus.name, corpus.rows, corpus.dimension) == ("c", 12, 8)
    assert corpus.fingerprint == {**FINGERPRINT, "stored_as": "auto"}
    for number, file in enumerate(corpus.blocks):
        data, want = read_block(corpus.folder, file, mapped=mapped), block(number)
        assert data.ids.to_pylist() == want.ids
        assert torch.equal(data.full(1, 3), want.vectors[1:3])
    assert set(done_blocks(folder.place)) == set(KEYS)
    (name, dtype, size, checksum) = done_blocks(folder.place)[KEYS[0]]
    first = corpus.blocks[0]
    assert (name, dtype, size, checksum) == (first.file, first.dtype, first.bytes, first.xxh3)


def test_int8_keeps_each_value_within_half_a_step(tmp_path: Path) -> None:
    fill(Place(tmp_path), "int8")
    corpus = open_stored(Place(tmp_path))
    data, want = read_block(corpus.folder, corpus.blocks[1]), block(1).vectors
    assert data.vectors.dtype == torch.int8
    steps = want.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((data.full(0, 4) - want).abs() <= steps / 2 * (1 + 1e-5)).all())
    assert corpus.blocks[1].dtype == "int8"


def test_zero_vectors_are_kept_as_int8(tmp_path: Path) -> None:
    folder = CorpusFolder(Place(tmp_path), FINGERPRINT, "int8")
    zero = EncodedBlock(["a"], text_keys(["a"]), np.zeros(1, dtype=np.int32), torch.zeros(1, 8))
    data = read_block(folder.place, folder.write(KEYS[0], zero))
    assert torch.equal(data.full(0, 1), zero.vectors)


def test_a_block_written_twice_is_one_file(tmp_path: Path) -> None:
    folder = fill(Place(tmp_path))
    before = {name: (folder.place.local or tmp_path) / name for name in folder.place.sizes()}
    content = {name: file.read_bytes() for name, file in before.items()}
    fill(Place(tmp_path))
    assert {name: file.read_bytes() for name, file in before.items()} == content
    assert len(folder.place.sizes()) == len(content)


def test_the_stores_own_reader_takes_a_corpus(tmp_path: Path) -> None:
    fill(Place(tmp_path))
    store = VectorStore(tmp_path, FINGERPRINT)
    assert (len(store), store.dimension) == (12, 8)
    keys = block(2).keys
    assert torch.equal(store.read(store.find(keys, keys, None)), block(2).vectors)
    # And adds to it without touching it.
    fresh = text_keys(["other"], "document")
    store.add(fresh, np.ones(1, dtype=np.int32), torch.ones(1, 8))
    again = VectorStore(tmp_path, FINGERPRINT)
    assert len(again) == 13
    assert open_stored(Place(tmp_path)).rows == 12
    # A corpus that comes later is seen by a store that is open.
    keys = text_keys(["late"], "document")
    folder = CorpusFolder(Place(tmp_path), FINGERPRINT, "auto")
    late = folder.write("f" * 32, EncodedBlock(["l"], keys, np.ones(1, dtype=np.int32), torch.ones(1, 8)))
    write_corpus(folder.place, "late", [late], 8, {}, complete=True)
    again.refresh()
    assert len(again) == 14


def test_upkeep_counts_a_corpus_and_prunes_what_nothing_names(tmp_path: Path) -> None:
    folder = fill(Place(tmp_path))
    (one,) = list_store(tmp_path, verify=True)
    assert (one.rows, one.dimension, one.problems) == (12, 8, ())
    left = folder.write("e" * 32, block(9))
    assert prune_store(tmp_path) == [f"removed {folder.place}/{left.file}"]
    # Before a corpus is complete, its blocks are named by nothing but themselves.
    fill(Place(tmp_path), complete=False)
    left = folder.write("e" * 32, block(9))
    assert prune_store(tmp_path) == []
    assert left.file in folder.place.sizes()


def test_a_damaged_block_is_named_and_pruned(tmp_path: Path) -> None:
    fill(Place(tmp_path))
    corpus = open_stored(Place(tmp_path))
    file = (corpus.folder.local or tmp_path) / corpus.blocks[0].file
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for mapped in (True, False):
        with pytest.raises(StoreError, match=r"is damaged .*run `reasonembed encode` again"):
            read_block(corpus.folder, corpus.blocks[0], mapped=mapped)
    assert prune_store(tmp_path) == [f"removed {file}"]
    with pytest.raises(StoreError, match=r"c in .* is not complete"):
        open_stored(Place(tmp_path))


def test_which_corpus_is_said_where_there_are_several(root: Place) -> None:
    with pytest.raises(StoreError, match="there is no corpus in"):
        open_stored(root)
    fill(root)
    fill(root, "float16", name="d")
    assert {one.name for one in list_corpora(root)} == {"c", "d"}
    with pytest.raises(StoreError, match="several: choose one with --corpus: "):
        open_stored(root)
    assert open_stored(root, "d").blocks[0].dtype == "float16"
    with pytest.raises(UnknownNameError, match="unknown corpus 'e'"):
        open_stored(root, "e")


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    folder = fill(Place(tmp_path))
    folder.place.write("manifest-c.json", b'{"layout": 1, "shards": [{"file": "x"}], "dimension": 8}')
    with pytest.raises(ReasonEmbedError, match=r"manifest-c\.json is damaged"):
        open_stored(Place(tmp_path))


@pytest.mark.parametrize("change", [{"rows": "4"}, {"rows": 0}, {"rows": True}, None, "twice"])
def test_a_manifest_of_what_no_corpus_is_like_is_damaged(tmp_path: Path, change: Any) -> None:
    folder = fill(Place(tmp_path)).place
    manifest = json.loads(folder.read("manifest-c.json"))
    first, *others = manifest["shards"]
    known = {None: [], "twice": [first, first]}
    manifest["shards"] = [first | change, *others] if isinstance(change, dict) else known[change]
    folder.write("manifest-c.json", json.dumps(manifest).encode())
    with pytest.raises(StoreError, match=r"manifest-c\.json is damaged \(it names .*encode` again"):
        open_stored(Place(tmp_path))


@pytest.mark.parametrize("mapped", [True, False])
def test_a_block_of_other_rows_than_the_manifest_says_is_named(tmp_path: Path, mapped: bool) -> None:
    fill(Place(tmp_path))
    corpus = open_stored(Place(tmp_path))
    other = replace(corpus.blocks[0], rows=5)
    with pytest.raises(StoreError, match=r"block-.* holds 4 vectors, not 5"):
        read_block(corpus.folder, other, mapped=mapped)
