"""An embedding store on disk: vectors that are never computed twice.

One folder a model, named by a hash of everything that decides its vectors. In it lie shards (safetensors,
written whole, never changed) and a manifest with their sizes and checksums; a shard that the manifest does
not name does not exist. Adding takes a lock, so that several processes can fill one store. Each corpus that
`reasonembed_mteb.store.corpora` has written beside them has a manifest of its own, and its shards are read
here like the others.
"""

from __future__ import annotations

import errno
import json
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from filelock import FileLock
from safetensors import SafetensorError

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.files import file_blocks, json_hash, write_whole
from reasonembed_mteb.store.places import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

LAYOUT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# "auto" keeps the smallest of these that holds a shard's values exactly.
_EXACT_ORDER = ("bfloat16", "float16", "float32")
MODEL, MANIFEST, LOCK = "model.json", "manifest.json", "lock"
# How the manifests of corpora begin, see `reasonembed_mteb.store.corpora`.
CORPUS_MANIFEST = "manifest-"
BLOCK = "block-"


def text_keys(texts: Sequence[str], salt: str = "") -> NDArray[np.uint64]:
    """Return the keys of exact texts, ``(N, 2)``: the two halves of their 128-bit xxh3.

    Args:
        texts: The texts as the model sees them, prompts included.
        salt: What else distinguishes vectors of equal texts.
    """
    head = f"{salt}\0".encode() if salt else b""
    digests = [xxhash.xxh3_128_digest(head + text.encode("utf-8", "surrogatepass")) for text in texts]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2)


class LazyKeys:
    """Keys that are computed where they are looked at: most texts are found by another key before.

    Args:
        texts: The texts as the model sees them, prompts included.
        salt: What else distinguishes vectors of equal texts.
    """

    def __init__(self, texts: Sequence[str], salt: str) -> None:
        self._texts, self._salt = texts, salt

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the keys of the texts at some places, ``(P, 2)``."""
        return text_keys([self._texts[place] for place in places.tolist()], self._salt)


@dataclass(frozen=True)
class Shard:
    """One file of vectors, checked when it is first used.

    Attributes:
        file: Where.
        rows: Number of vectors.
        xxh3: Checksum that the manifest holds.
    """

    file: Path
    rows: int
    xxh3: str

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What is mapped from disk: ``keys`` ``(N, 2)``, ``tokens`` ``(N,)``, ``vectors`` ``(N, dim)``."""
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dictionary

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The keys of the file's rows, ``(N, 2)``."""
        return self.tensors["keys"].numpy().view(np.uint64)

    @cached_property
    def problem(self) -> str | None:
        """What is wrong with the file, or None."""
        try:
            found = file_checksum(self.file)
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        return None if found == self.xxh3 else "is damaged (its checksum differs)"


def file_checksum(file: Path) -> str:
    """Return a file's xxh3 (64 bit) in hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    digest = xxhash.xxh3_64()
    for block in file_blocks(file):
        digest.update(block)
    return digest.hexdigest()


class _Index:
    """Where each key lies: sorted runs, which are searched one after the other."""

    def __init__(self) -> None:
        # First halves of the keys (sorted), second halves, shard numbers, rows.
        self._runs: list[list[NDArray[Any]]] = []

    def add(self, keys: NDArray[np.uint64], shard: int) -> None:
        order = np.argsort(keys[:, 0], kind="stable")
        where = np.full(len(order), shard, dtype=np.int64)
        self._runs.append([keys[order, 0], keys[order, 1], where, order])
        # Runs grow like the digits of a binary counter, so that there are few of them.
        while len(self._runs) > 1 and len(self._runs[-1][0]) * 2 > len(self._runs[-2][0]):
            merged = [np.concatenate(pair) for pair in zip(self._runs[-2], self._runs.pop(), strict=True)]
            by_key = np.argsort(merged[0], kind="stable")
            self._runs[-1] = [column[by_key] for column in merged]

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shard and the row of each key, -1 where it is not there."""
        shards = np.full(len(keys), -1, dtype=np.int64)
        rows = np.full(len(keys), -1, dtype=np.int64)
        first, second = np.ascontiguousarray(keys[:, 0]), keys[:, 1]
        for held, held_second, where, row in self._runs:
            waiting = np.flatnonzero(shards < 0)
            place = np.searchsorted(held, first[waiting])
            # Two keys may share their first half: look on while it is the same.
            while len(waiting):
                inside = place < len(held)
                waiting, place = waiting[inside], place[inside]
                same = held[place] == first[waiting]
                waiting, place = waiting[same], place[same]
                hit = held_second[place] == second[waiting]
                shards[waiting[hit]], rows[waiting[hit]] = where[place[hit]], row[place[hit]]
                waiting, place = waiting[~hit], place[~hit] + 1
        return shards, rows


def _distinct(numbers: NDArray[np.int64]) -> list[int]:
    """Return the shard numbers that occur, without -1; np.unique would sort them all."""
    counts: list[int] = np.flatnonzero(np.bincount(numbers + 1)[1:]).tolist() if len(numbers) else []
    return counts


class VectorStore:
    """The stored vectors of one model.

    Args:
        root: Folder of the whole store.
        fingerprint: Everything that decides the vectors of a text; its hash names the model's folder.
        dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto``: the smallest that is exact.

    Raises:
        StoreError: If the folder is of another layout, or damaged beyond its shards.
    """

    def __init__(self, root: Path, fingerprint: Mapping[str, Any], dtype: str = "auto") -> None:
        """Open the model's folder; nothing is written before the first vectors are."""
        if dtype != "auto" and dtype not in DTYPES:
            msg = f"a store holds {', '.join(DTYPES)} or auto, not {dtype!r}"
            raise StoreError(msg)
        self._dtype = dtype
        self._fingerprint = dict(fingerprint) | {"stored_as": dtype}
        self.folder = root / folder_name(fingerprint, dtype)
        self.dimension: int | None = None
        self._shards: list[Shard] = []
        self._index = _Index()
        self._known: set[str] = set()
        self._manifests_seen: dict[str, tuple[int, int]] = {}
        self._writable = True
        self.refresh()

    def __len__(self) -> int:
        """Return the number of vectors."""
        return sum(shard.rows for shard in self._shards if shard.file.name in self._known)

    def refresh(self) -> None:
        """Take in what other processes have added.

        Raises:
            StoreError: If the folder is of another layout or its manifest is damaged.
        """
        found = self._manifests()
        if self._manifests_seen == found:
            return
        for name in found:
            manifest = read_manifest(self.folder, name)
            self.dimension = manifest["dimension"]
            for entry in manifest["shards"]:
                if entry["file"] not in self._known:
                    self._take_in(Shard(self.folder / entry["file"], entry["rows"], entry["xxh3"]))
        self._manifests_seen = found

    def _manifests(self) -> dict[str, tuple[int, int]]:
        """Return the manifests that are there, each with what changes when it is replaced."""
        stats = ((name, (self.folder / name).stat()) for name in manifest_names(self.folder))
        return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in stats}

    def _take_in(self, shard: Shard) -> None:
        """Index a shard; its content is checked when one of its vectors is asked for."""
        try:
            keys = shard.keys
        except (OSError, ValueError, KeyError, SafetensorError):
            # The checksum, which is wrong too, gives the better message.
            self._say_damaged(shard)
            return
        self._known.add(shard.file.name)
        self._index.add(keys, len(self._shards))
        self._shards.append(shard)

    def _say_damaged(self, shard: Shard) -> None:
        problem = shard.problem or "is no shard of this layout"
        logger.warning("%s %s; its %d vectors are computed again", shard.file, problem, shard.rows)

    def _locate(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find keys in whole shards; damaged ones are dropped, and said."""
        while True:
            shards, rows = self._index.find(keys)
            damaged = [number for number in _distinct(shards) if self._shards[number].problem is not None]
            if not damaged:
                return shards, rows
            for number in damaged:
                self._say_damaged(self._shards[number])
                self._known.discard(self._shards[number].file.name)
            self._index = _Index()
            for number, shard in enumerate(self._shards):
                if shard.file.name in self._known:
                    self._index.add(shard.keys, number)

    def find(
        self, plain: NDArray[np.uint64], limited: NDArray[np.uint64] | LazyKeys, limit: int | None
    ) -> Found:
        """Look texts up.

        Args:
            plain: Keys ``(N, 2)`` of texts that were not truncated.
            limited: Keys of the same texts, salted with the limit.
            limit: The token limit in force; None if there is none or it is not known.

        Returns:
            Where each text's vector lies.
        """
        shards, rows = self._locate(plain)
        if limit is not None:
            held = shards >= 0
            tokens = self._gather("tokens", shards[held], rows[held])
            # A vector of the whole text says nothing about the text cut shorter.
            shards[np.flatnonzero(held)[tokens > limit]] = -1
        missing = np.flatnonzero(shards < 0)
        shards[missing], rows[missing] = self._locate(limited[missing])
        return Found(shards, rows)

    def _gather(self, name: str, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
        out = np.zeros(len(shards), dtype=np.int64)
        for shard in _distinct(shards):
            at = shards == shard
            out[at] = self._shards[shard].tensors[name].numpy()[rows[at]]
        return out

    def read(self, found: Found) -> torch.Tensor:
        """Return vectors ``(N, dim)``: mapped from disk where they lie in one run, else gathered.

        Args:
            found: See `find`; everything must be there.
        """
        if len(found.rows) == 0:
            return torch.empty(0, self.dimension or 0)
        first, start = int(found.shards[0]), int(found.rows[0])
        stop = start + len(found.rows)
        if (found.shards == first).all() and (found.rows == np.arange(start, stop)).all():
            return self._shards[first].tensors["vectors"][start:stop]
        used = _distinct(found.shards)
        dtypes = {self._shards[shard].tensors["vectors"].dtype for shard in used}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        out = torch.empty(len(found.rows), self.dimension or 0, dtype=dtype)
        for shard in used:
            at = torch.from_numpy(np.flatnonzero(found.shards == shard))
            rows = torch.from_numpy(found.rows[found.shards == shard])
            out[at] = self._shards[shard].tensors["vectors"][rows].to(dtype)
        return out

    def add(self, keys: NDArray[np.uint64], tokens: NDArray[np.int32], vectors: torch.Tensor) -> bool:
        """Write vectors as one shard, whole or not at all; texts that another process added are left out.

        Args:
            keys: ``(N, 2)``.
            tokens: ``(N,)`` token counts before truncation; -1 where not known.
            vectors: ``(N, dim)``, on the CPU.

        Returns:
            Whether they are stored; False if the store cannot be written to (said once).

        Raises:
            StoreError: If the vectors are of another dimension than the store's.
            ReasonEmbedError: If the disk is full.
        """
        if self.dimension is not None and vectors.shape[1] != self.dimension:
            msg = (
                f"{self.folder} holds vectors of {self.dimension} dimensions, and these have "
                f"{vectors.shape[1]}: `reasonembed store prune` it, or choose another --store"
            )
            raise StoreError(msg)
        if not self._writable or not self._prepare():
            return False
        with FileLock(self.folder / LOCK):
            self.refresh()
            new = np.flatnonzero(self._locate(keys)[0] < 0)
            _, first = np.unique(keys[new], axis=0, return_index=True)
            new = new[np.sort(first)]
            if len(new):
                self._write(keys[new], tokens[new], vectors[torch.from_numpy(new)])
        return True

    def _prepare(self) -> bool:
        """Make the folder; a store that is read-only is used as it is."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / LOCK).touch()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                msg = f"cannot write {self.folder}: the disk is full; free space and run again to continue"
                raise ReasonEmbedError(msg) from error
            self._writable = False
            logger.warning(
                "%s cannot be written to (%s); new vectors are not kept", self.folder, error.strerror
            )
        return self._writable

    def _write(self, keys: NDArray[np.uint64], tokens: NDArray[np.int32], vectors: torch.Tensor) -> None:
        stored = self.as_stored(vectors).contiguous()
        content = shard_content(keys, tokens, {"vectors": stored})
        checksum = content_checksum(content)
        manifest = self._manifest(vectors.shape[1])
        number = 1 + max((int(one["file"].split("-")[0]) for one in manifest["shards"]), default=0)
        name = f"{number:06d}-{checksum}.safetensors"
        if not (self.folder / MODEL).is_file():
            write_whole(self.folder / MODEL, as_json({"layout": LAYOUT, **self._fingerprint}))
        write_whole(self.folder / name, content)
        entry = {"file": name, "rows": len(keys), "dtype": dtype_name(stored)}
        manifest["shards"].append(entry | {"bytes": len(content), "xxh3": checksum})
        write_whole(self.folder / MANIFEST, as_json(manifest))
        self.dimension = vectors.shape[1]
        shard = Shard(self.folder / name, len(keys), checksum)
        # What was hashed is what was written; the next opening checks what the disk kept.
        shard.__dict__["problem"] = None
        self._take_in(shard)
        self._manifests_seen = self._manifests()

    def _manifest(self, dimension: int) -> dict[str, Any]:
        """Return the manifest to add to, without the shards that were found to be damaged."""
        if not (self.folder / MANIFEST).is_file():
            return {"layout": LAYOUT, "dimension": dimension, "shards": []}
        manifest = read_manifest(self.folder)
        whole = [entry for entry in manifest["shards"] if entry["file"] in self._known]
        return manifest | {"shards": whole}

    def as_stored(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors in the dtype that they are stored in.

        Args:
            vectors: ``(N, dim)``.
        """
        return stored_as(vectors, self._dtype)


@dataclass(frozen=True)
class Found:
    """Where texts' vectors lie.

    Attributes:
        shards: ``(N,)`` shard numbers; -1 where the text is missing.
        rows: ``(N,)`` rows in the shard.
    """

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def missing(self) -> NDArray[np.int64]:
        """Positions of the texts that are not stored, ``(M,)``."""
        return np.flatnonzero(self.shards < 0)


def folder_name(fingerprint: Mapping[str, Any], dtype: str) -> str:
    """Return the name of a model's folder: a hash of everything that decides what is in it.

    Args:
        fingerprint: Everything that decides the vectors of a text.
        dtype: What they are stored as, by the option's name.
    """
    return json_hash(model_content(fingerprint, dtype))


def model_content(fingerprint: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return what a model's folder is named by, and what `MODEL` in it holds beside the layout.

    Args:
        fingerprint: Everything that decides the vectors of a text.
        dtype: What they are stored as, by the option's name.
    """
    return dict(fingerprint) | {"stored_as": dtype}


def stored_as(vectors: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return vectors in the dtype that they are stored in.

    Args:
        vectors: ``(N, dim)``.
        dtype: One of `DTYPES`, or ``auto``: the smallest that holds all values exactly.

    Raises:
        StoreError: If a finite value is too large for it.
    """
    full = vectors.float()
    if dtype != "auto":
        stored = vectors.to(DTYPES[dtype])
        if not torch.equal(stored.isfinite(), full.isfinite()):
            largest = float(full.abs().nan_to_num(posinf=0.0).max())
            msg = f"vectors hold values up to {largest:.3g}, too large for {dtype}; keep them as auto"
            raise StoreError(msg)
        return stored
    small = (full.to(DTYPES[name]) for name in _EXACT_ORDER)
    return next(one for one in small if torch.equal(one.float(), full))


def dtype_name(vectors: torch.Tensor) -> str:
    """Return a tensor's dtype as manifests name it."""
    return str(vectors.dtype).removeprefix("torch.")


def shard_content(
    keys: NDArray[np.uint64], tokens: NDArray[np.int32], tensors: Mapping[str, torch.Tensor]
) -> bytes:
    """Return a shard as a file holds it; equal content gives equal bytes.

    Args:
        keys: ``(N, 2)``.
        tokens: ``(N,)`` token counts before truncation; -1 where not known.
        tensors: ``vectors`` ``(N, dim)``, and what else there is of each row.
    """
    from safetensors.torch import save

    held = {
        "keys": torch.from_numpy(np.ascontiguousarray(keys).view(np.int64)),
        "tokens": torch.from_numpy(np.ascontiguousarray(tokens)),
        **tensors,
    }
    # One entry only: safetensors writes several in an order that may change.
    content: bytes = save(held, metadata={"layout": str(LAYOUT)})
    return content


def content_checksum(content: bytes) -> str:
    """Return `file_checksum` of a file with this content."""
    return xxhash.xxh3_64_hexdigest(content)


def manifest_names(folder: Path) -> list[str]:
    """Return the manifests in a model's folder: the store's own, and one a corpus.

    Args:
        folder: Of one model, below the store's root.
    """
    own = [MANIFEST] if (folder / MANIFEST).is_file() else []
    return own + sorted(file.name for file in folder.glob(f"{CORPUS_MANIFEST}*.json"))


def is_block(name: str) -> bool:
    """Whether a file's name is that of a corpus' block, see `reasonembed_mteb.store.corpora`.

    Args:
        name: Within a model's folder.
    """
    return name.startswith(BLOCK) and name.endswith(".safetensors")


def as_json(content: Mapping[str, Any]) -> str:
    """Return what is written into a store's own files: JSON, the same text for equal content."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _check_names(shards: Any) -> None:  # noqa: ANN401 - any JSON
    """Refuse a shard that lies elsewhere: `reasonembed store prune` removes what is damaged."""
    if not isinstance(shards, list):
        msg = f"its shards are {type(shards).__name__}, no list"
        raise ValueError(msg)
    for shard in shards:
        name = str(shard.get("file"))
        if name in ("", ".", "..") or re.search(r"[/\\\0]", name):
            msg = f"the shard {name!r} is not in the folder"
            raise ValueError(msg)


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """Return a model folder's manifest.

    Args:
        folder: Of one model, below the store's root.
        name: See `manifest_names`.

    Raises:
        StoreError: If it is damaged or of another layout.
    """
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise _damaged(str(folder / name), error) from error
    return parse_manifest(content, f"{folder}/{name}")


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Return what a manifest says.

    Args:
        content: Of the file.
        where: Names the file in messages.

    Raises:
        StoreError: If it is damaged or of another layout.
    """
    try:
        manifest: dict[str, Any] = json.loads(content)
        layout = manifest.get("layout")
        _check_names(manifest.get("shards", []))
    except (ValueError, AttributeError) as error:
        raise _damaged(where, error) from error
    if layout != LAYOUT:
        msg = (
            f"{where} is of layout {layout}, and this version reads {LAYOUT}: `reasonembed store prune` "
            "removes it, or choose another --store"
        )
        raise StoreError(msg)
    return manifest


def _damaged(where: str, error: Exception) -> StoreError:
    return StoreError(f"{where} is damaged ({error}); `reasonembed store prune` removes what cannot be used")
