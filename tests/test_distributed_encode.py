"""Encoding into a store: the same bytes from one process and from several, and only what is missing."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import xxhash

from reasonembed_mteb.distributed import encode as encoding
from reasonembed_mteb.distributed.encode import encode_corpus
from reasonembed_mteb.distributed.processes import Processes
from reasonembed_mteb.distributed.worker import BlockDone, EncodeJob, ModelChoice, Speed
from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.store.corpora import (
    BlockFile,
    CorpusFolder,
    EncodedBlock,
    done_blocks,
    open_stored,
    read_block,
)
from reasonembed_mteb.store.places import Place
from reasonembed_mteb.store.vectors import text_keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reasonembed_mteb.distributed.inputs import Block


class Hashing:
    """Encodes a text as the digits of its hash, and counts in a file what it computes."""

    def __init__(self, job: EncodeJob, fingerprint: str = "1", host: str = "here") -> None:
        self._folder = CorpusFolder(Place(job.store), {"name": "hash", "revision": fingerprint}, job.dtype)
        self._folder.prepare()
        self._done, self._host = done_blocks(self._folder.place), host

    def __call__(self, block: Block) -> BlockDone:
        """Encode a block that is not there."""
        ids, texts = [one.id for one in block.documents], [one.text for one in block.documents]
        computed = block.key not in self._done
        if computed:
            rows = [list(xxhash.xxh3_64_digest(text.encode())) for text in texts]
            vectors, tokens = torch.tensor(rows).float(), np.ones(len(ids), dtype=np.int32)
            file = self._folder.write(block.key, EncodedBlock(ids, text_keys(texts), tokens, vectors))
        else:
            name, dtype, size, checksum = self._done[block.key]
            file = BlockFile(name, len(ids), dtype, size, checksum)
        return BlockDone(block.key, file, self._folder.name, 8, computed, len(ids), 0.0, self._host)


def write_input(folder: Path, count: int = 200) -> str:
    file = folder / "in.jsonl"
    rows = [{"_id": f"d{n}", "text": f"text {n} " * (1 + n % 5)} for n in range(count)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


def job_of(store: Path | str) -> EncodeJob:
    return EncodeJob(ModelChoice("hash"), Speed(), str(store), block_tokens=60)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def run(
    source: str, store: Path | str, worker: Callable[[EncodeJob], Any] = Hashing, workers: int = 1
) -> Any:
    return encode_corpus(source, job_of(store), Processes(workers, 1), name="c", worker=worker)


def test_every_document_is_stored_in_order(tmp_path: Path) -> None:
    source = write_input(tmp_path)
    done = run(source, tmp_path / "store")
    corpus = open_stored(Place(tmp_path / "store"))
    ids = [name for one in corpus.blocks for name in read_block(corpus.folder, one).ids.to_pylist()]
    assert ids == [f"d{n}" for n in range(200)]
    assert (done.documents, done.blocks, done.computed) == (200, len(corpus.blocks), len(corpus.blocks))
    assert done.blocks > 10
    assert corpus.about["input"] == source
    assert list(done.boundaries) == np.cumsum([0, *(one.rows for one in corpus.blocks)])[:-1].tolist()


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tmp_path: Path) -> None:
    source = write_input(tmp_path)
    run(source, tmp_path / "one")
    run(source, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Failing(Hashing):
    """Stops after some blocks, as a process that is killed."""

    def __init__(self, job: EncodeJob, blocks: int = 5) -> None:
        super().__init__(job)
        self._left = blocks

    def __call__(self, block: Block) -> BlockDone:
        """Stop, once so many are encoded."""
        if block.key not in self._done:
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1
        return super().__call__(block)


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    source = write_input(tmp_path)
    whole = run(source, tmp_path / "whole")
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "store", Failing)
    assert not any(one.complete for one in encoding_corpora(tmp_path / "store"))
    files = contents(tmp_path / "store")
    done = run(source, tmp_path / "store")
    assert done.computed == whole.blocks - 15
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert {k: v for k, v in contents(tmp_path / "store").items() if "block-" in k}.items() >= {
        k: v for k, v in files.items() if "block-" in k
    }.items()
    assert run(source, tmp_path / "store").computed == 0


def encoding_corpora(store: Path) -> list[Any]:
    from reasonembed_mteb.store.corpora import list_corpora

    return list_corpora(Place(store))


def test_documents_that_are_added_leave_the_other_blocks_alone(tmp_path: Path) -> None:
    first = run(write_input(tmp_path), tmp_path / "store")
    done = run(write_input(tmp_path, 230), tmp_path / "store")
    # The last block was not full.
    assert done.blocks - first.blocks <= done.computed <= done.blocks - first.blocks + 1
    assert open_stored(Place(tmp_path / "store")).rows == 230


def test_into_a_bucket_and_out_of_one(bucket: str, tmp_path: Path) -> None:
    source = write_input(tmp_path, 40)
    Place(f"{bucket}/in").write("a.jsonl", (tmp_path / "in.jsonl").read_bytes())
    run(f"{bucket}/in", f"{bucket}/store")
    run(source, tmp_path / "store")
    ours, theirs = open_stored(Place(tmp_path / "store")), open_stored(Place(f"{bucket}/store"))
    assert ours.blocks == theirs.blocks
    for one in ours.blocks:
        assert ours.folder.read(one.file) == theirs.folder.read(one.file)
    assert run(f"{bucket}/in", f"{bucket}/store").computed == 0


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"_id": "a", "text": "x"}, {"_id": "a", "text": "y"}], "'a' comes twice"),
        ([{"_id": "a", "text": "x"}, {"text": "y"}], "line 2: '_id' is missing"),
        ([{"_id": "a", "text": "x"}, {"_id": "b"}], "line 2: the document 'b' has no text"),
        ([], "holds no document"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(
    tmp_path: Path, rows: list[dict[str, str]], said: str
) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=said):
        run(str(tmp_path / "in.jsonl"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_machines_that_hold_other_weights_are_named(tmp_path: Path) -> None:
    class Mixed(Hashing):
        made = 0

        def __call__(self, block: Block) -> BlockDone:
            Mixed.made += 1
            other = Mixed.made == 3
            inner = Hashing(job_of(tmp_path / "store"), "2" if other else "1", "b" if other else "a")
            return inner(block)

    with pytest.raises(ReasonEmbedError, match="is not the same on a and on b"):
        run(write_input(tmp_path), tmp_path / "store", Mixed)


def test_blocks_on_another_machines_disk_are_missed(tmp_path: Path) -> None:
    class Elsewhere(Hashing):
        def __call__(self, block: Block) -> BlockDone:
            done = super().__call__(block)
            if block.documents[0].id == "d0":
                (tmp_path / "store" / done.folder / done.file.file).unlink()
            return done

    with pytest.raises(ReasonEmbedError, match=r"1 blocks written by here are not in .* such as s3://"):
        run(write_input(tmp_path), tmp_path / "store", Elsewhere)


def test_the_manifest_is_written_while_blocks_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_WRITTEN_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(write_input(tmp_path), tmp_path / "store", partial(Failing, blocks=4))
    (one,) = encoding_corpora(tmp_path / "store")
    assert (len(one.blocks), one.complete) == (4, False)
