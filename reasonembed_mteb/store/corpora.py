"""A corpus' vectors in a store, block by block: written by any number of machines, without locks.

A block is some documents of the corpus in order. Its file is a shard of the store that holds the documents'
ids too, and its name says what was encoded and what came out, so that whoever lists the folder knows which
blocks are done. Two machines that encode one block write two whole files, or the same one twice. The one
manifest of a corpus is written by the one process that leads, and names one file for each block.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from reasonembed_mteb.errors import unknown_name
from reasonembed_mteb.store.places import StoreError
from reasonembed_mteb.store.vectors import (
    BLOCK,
    CORPUS_MANIFEST,
    DTYPES,
    LAYOUT,
    MODEL,
    Shard,
    as_json,
    content_checksum,
    dtype_name,
    folder_name,
    is_block,
    model_content,
    parse_manifest,
    shard_content,
    stored_as,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.store.places import Place

INT8 = "int8"
CORPUS_DTYPES = ("auto", *DTYPES, INT8)
# The format's names of what blocks hold.
_SAFETENSORS = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
# The largest whole number of int8 that has a negative.
_LARGEST = 127
_NAME = re.compile(rf"{BLOCK}(?P<key>[0-9a-f]{{32}})-(?P<dtype>\w+)-(?P<sum>[0-9a-f]{{16}})\.safetensors")


@dataclass(frozen=True)
class BlockFile:
    """One block's file, as the manifest names it.

    Attributes:
        file: Its name.
        rows: Number of vectors.
        dtype: What they are stored as.
        bytes: Of the file.
        xxh3: Its checksum.
    """

    file: str
    rows: int
    dtype: str
    bytes: int
    xxh3: str


@dataclass(frozen=True)
class EncodedBlock:
    """What a block's file holds.

    Attributes:
        ids: Of the documents, ``(N,)``.
        keys: Of their texts, ``(N, 2)``; see `reasonembed_mteb.store.vectors.text_keys`.
        tokens: ``(N,)`` token counts before truncation; -1 where not known.
        vectors: ``(N, dim)``, on the CPU.
    """

    ids: Sequence[str]
    keys: NDArray[np.uint64]
    tokens: NDArray[np.int32]
    vectors: torch.Tensor


class CorpusFolder:
    """The folder of one model's vectors, wherever it is.

    Args:
        root: The store.
        fingerprint: Everything that decides the vectors of a text.
        dtype: One of `CORPUS_DTYPES`.
    """

    def __init__(self, root: Place, fingerprint: Mapping[str, Any], dtype: str) -> None:
        """Name the folder, and write what it is for."""
        self.name = folder_name(fingerprint, dtype)
        self.place = root / self.name
        self._dtype = dtype
        self._content = {"layout": LAYOUT, **model_content(fingerprint, dtype)}

    def prepare(self) -> None:
        """Write what the folder is for, the same from every machine.

        Raises:
            ReasonEmbedError: If it cannot be written.
        """
        self.place.write(MODEL, as_json(self._content).encode())

    def write(self, key: str, block: EncodedBlock) -> BlockFile:
        """Write a block, whole or not at all.

        Args:
            key: 32 hex digits that say which documents it holds.
            block: What it holds.

        Raises:
            ReasonEmbedError: If it cannot be written.
        """
        tensors = _quantized(block.vectors) if self._dtype == INT8 else {}
        stored = tensors.get("vectors")
        if stored is None:
            stored = stored_as(block.vectors, self._dtype).contiguous()
        content = shard_content(
            block.keys, block.tokens, tensors | {"vectors": stored} | _packed_ids(block.ids)
        )
        checksum, dtype = content_checksum(content), dtype_name(stored)
        name = f"{BLOCK}{key}-{dtype}-{checksum}.safetensors"
        self.place.write(name, content)
        return BlockFile(name, len(block.ids), dtype, len(content), checksum)


def _quantized(vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return vectors as whole numbers of a step of their own each, which needs no other vector."""
    full = vectors.float()
    steps = (full.abs().amax(dim=1) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    whole = torch.round(full / steps[:, None]).to(torch.int8)
    return {"vectors": whole, "steps": steps}


def _packed_ids(ids: Sequence[str]) -> dict[str, torch.Tensor]:
    encoded = [name.encode() for name in ids]
    ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
    letters = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {"ids": torch.from_numpy(letters), "id_ends": torch.from_numpy(ends)}


def done_blocks(folder: Place) -> dict[str, tuple[str, str, int, str]]:
    """Return the blocks that are written, by key: file, dtype, bytes and checksum.

    Args:
        folder: Of one model.

    Raises:
        StoreError: If it cannot be listed.
    """
    found = {}
    for name, size in sorted(folder.sizes().items()):
        match = _NAME.fullmatch(name)
        if match is not None and is_block(name):
            found[match["key"]] = (name, match["dtype"], size, match["sum"])
    return found


@dataclass(frozen=True)
class StoredCorpus:
    """A corpus in a store.

    Attributes:
        folder: Of the model.
        name: Of the corpus.
        fingerprint: Of the model.
        blocks: In the order of the corpus.
        dimension: Of the vectors.
        complete: Whether every document is there.
        about: What was encoded, and how.
    """

    folder: Place
    name: str
    fingerprint: dict[str, Any]
    blocks: tuple[BlockFile, ...]
    dimension: int
    complete: bool
    about: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of documents."""
        return sum(block.rows for block in self.blocks)


def write_corpus(
    folder: Place,
    name: str,
    blocks: Iterable[BlockFile],
    dimension: int,
    about: Mapping[str, Any],
    *,
    complete: bool,
) -> None:
    """Write a corpus' manifest; the leading process alone does.

    Args:
        folder: Of the model.
        name: Of the corpus.
        blocks: In the order of the corpus.
        dimension: Of the vectors.
        about: What was encoded, and how.
        complete: Whether every document is there.

    Raises:
        ReasonEmbedError: If it cannot be written.
    """
    content = {
        "layout": LAYOUT,
        "dimension": dimension,
        "shards": [asdict(block) for block in blocks],
        "complete": complete,
        "corpus": dict(about),
    }
    folder.write(f"{CORPUS_MANIFEST}{name}.json", as_json(content).encode())


def written_input(folder: Place, name: str) -> str | None:
    """Return what a corpus was encoded from, or None where there is none of that name, or it does not say.

    Args:
        folder: Of the model.
        name: Of the corpus.

    Raises:
        StoreError: If the folder cannot be read.
    """
    if f"{CORPUS_MANIFEST}{name}.json" not in folder.sizes():
        return None
    try:
        said = _read_corpus(folder, f"{CORPUS_MANIFEST}{name}.json").about.get("input")
    except StoreError:
        # A damaged one is written anew.
        return None
    return str(said) if said else None


def list_corpora(root: Place) -> list[StoredCorpus]:
    """Return every corpus of every model in a store.

    Args:
        root: The store.

    Raises:
        StoreError: If it cannot be read, or a manifest is damaged.
    """
    found = []
    for name in root.folders():
        folder = root / name
        for file in sorted(folder.sizes()):
            if file.startswith(CORPUS_MANIFEST) and file.endswith(".json"):
                found.append(_read_corpus(folder, file))
    return found


def _read_corpus(folder: Place, file: str) -> StoredCorpus:
    manifest = parse_manifest(folder.read(file), f"{folder}/{file}")
    model = parse_manifest(folder.read(MODEL), f"{folder}/{MODEL}")
    try:
        blocks = tuple(BlockFile(**entry) for entry in manifest["shards"])
        _check_blocks(blocks)
        return StoredCorpus(
            folder=folder,
            name=file.removeprefix(CORPUS_MANIFEST).removesuffix(".json"),
            fingerprint={key: value for key, value in model.items() if key != "layout"},
            blocks=blocks,
            dimension=int(manifest["dimension"]),
            complete=bool(manifest["complete"]),
            about=dict(manifest["corpus"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{folder}/{file} is damaged ({error}); run its `reasonembed encode` again"
        raise StoreError(msg) from error


def _check_blocks(blocks: Sequence[BlockFile]) -> None:
    """Refuse blocks that no corpus has, so that a search neither fails nor counts documents twice."""
    if len({block.file for block in blocks}) != len(blocks):
        msg = "it names a block twice"
        raise ValueError(msg)
    if not blocks or any(type(block.rows) is not int or block.rows < 1 for block in blocks):
        msg = "it names no block, or one whose number of rows is none"
        raise ValueError(msg)


def open_stored(root: Place, name: str | None = None) -> StoredCorpus:
    """Return a corpus that is complete.

    Args:
        root: The store.
        name: Which, as ``model's folder/name`` or its name alone; not needed where there is one.

    Raises:
        StoreError: If there is none or several, or it is not complete.
        UnknownNameError: If none has that name.
    """
    found = list_corpora(root)
    if not found:
        msg = f"there is no corpus in {root}; `reasonembed encode --output {root}` writes one"
        raise StoreError(msg)
    known = {f"{one.folder.url.rsplit('/', 1)[-1]}/{one.name}": one for one in found}
    chosen = [one for full, one in known.items() if name in (None, one.name, full)]
    if not chosen and name is not None:
        raise unknown_name("corpus", name, {one.name for one in found})
    if len(chosen) > 1:
        msg = f"{root} holds several: choose one with --corpus: {', '.join(sorted(known))}"
        raise StoreError(msg)
    if not chosen[0].complete:
        msg = f"{chosen[0].name} in {root} is not complete: run its `reasonembed encode` to the end"
        raise StoreError(msg)
    return chosen[0]


@dataclass(frozen=True)
class BlockData:
    """A block's content: mapped from a disk, or read from elsewhere.

    Attributes:
        tensors: What the file holds, by name.
    """

    tensors: Mapping[str, torch.Tensor]

    @property
    def vectors(self) -> torch.Tensor:
        """``(N, dim)``, in the dtype that is stored."""
        return self.tensors["vectors"]

    def full(self, start: int, stop: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return some vectors in float32, ``(stop - start, dim)``.

        Args:
            start: The first.
            stop: Behind the last.
            out: Where to, ``(at least stop - start, dim)``; None makes a new tensor.
        """
        held = torch.empty(stop - start, self.vectors.shape[1]) if out is None else out[: stop - start]
        part = held.copy_(self.vectors[start:stop])
        steps = self.tensors.get("steps")
        return part if steps is None else part.mul_(steps[start:stop, None])

    @cached_property
    def ids(self) -> pa.Array:
        """The documents' ids, ``(N,)``, as Arrow's large strings."""
        ends = self.tensors["id_ends"].numpy()
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        letters = self.tensors["ids"].numpy()
        return pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(letters))


def read_block(folder: Place, block: BlockFile, *, mapped: bool = True) -> BlockData:
    """Return a block's content, checked.

    Args:
        folder: Of the model.
        block: Which.
        mapped: Whether a file on a disk is mapped; else it is read by fsspec, as one elsewhere is.

    Raises:
        StoreError: If it is missing or damaged.
    """
    if folder.local is not None and mapped:
        shard = Shard(folder.local / block.file, block.rows, block.xxh3)
        if shard.problem is not None:
            raise _unusable(folder, block, shard.problem)
        return _of_its_rows(folder, block, BlockData(shard.tensors))
    content = folder.read(block.file)
    if content_checksum(content) != block.xxh3:
        raise _unusable(folder, block, "is damaged (its checksum differs)")
    return _of_its_rows(folder, block, BlockData(_tensors(content)))


def _of_its_rows(folder: Place, block: BlockFile, data: BlockData) -> BlockData:
    rows = len(data.vectors)
    if rows != block.rows:
        raise _unusable(folder, block, f"holds {rows} vectors, not {block.rows}")
    return data


def _tensors(content: bytes) -> dict[str, torch.Tensor]:
    """Return what a file of safetensors holds, in place; the library would copy each tensor once more."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    found = {}
    with warnings.catch_warnings():
        # Nothing writes into what was read.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        for name, one in header.items():
            begin, end = one["data_offsets"]
            dtype = _SAFETENSORS[one["dtype"]]
            count = (end - begin) // dtype.itemsize
            flat = (
                torch.frombuffer(content, dtype=dtype, count=count, offset=8 + size + begin)
                if count
                else torch.empty(0, dtype=dtype)
            )
            found[name] = flat.reshape(one["shape"])
    return found


def _unusable(folder: Place, block: BlockFile, problem: str) -> StoreError:
    return StoreError(
        f"{folder}/{block.file} {problem}; remove the file and run `reasonembed encode` again, which encodes "
        "what is missing"
    )
