"""Looking into an embedding store, checking it, and removing from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from reasonembed_mteb.files import write_whole
from reasonembed_mteb.store.places import StoreError
from reasonembed_mteb.store.vectors import (
    LAYOUT,
    LOCK,
    MODEL,
    Shard,
    as_json,
    is_block,
    manifest_names,
    read_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class ModelFolder:
    """What the store holds of one model.

    Attributes:
        folder: Where.
        fingerprint: Everything that decides the vectors; empty if it cannot be read.
        rows: Number of vectors.
        dimension: Their size.
        dtypes: What they are stored as.
        size: Bytes.
        problems: One line for each thing that is wrong.
    """

    folder: Path
    fingerprint: dict[str, Any]
    rows: int
    dimension: int
    dtypes: tuple[str, ...]
    size: int
    problems: tuple[str, ...]


def list_store(root: Path, *, verify: bool = False) -> list[ModelFolder]:
    """Return what a store holds, model by model.

    Args:
        root: The store's folder.
        verify: Read every shard and compare its checksum.

    Raises:
        StoreError: If there is no such folder.
    """
    if not root.is_dir():
        msg = f"there is no store at {root}; `reasonembed run --store FOLDER` makes one"
        raise StoreError(msg)
    return [_examine(folder, verify) for folder in sorted(_model_folders(root))]


def _model_folders(root: Path) -> Iterator[Path]:
    for folder in root.iterdir():
        if folder.is_dir() and ((folder / MODEL).is_file() or manifest_names(folder)):
            yield folder


def _examine(folder: Path, verify: bool) -> ModelFolder:
    problems = []
    fingerprint: dict[str, Any] = {}
    try:
        fingerprint = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{folder / MODEL} is damaged ({error})")
    try:
        manifests = [read_manifest(folder, name) for name in manifest_names(folder)]
    except StoreError as error:
        return ModelFolder(folder, fingerprint, 0, 0, (), 0, (*problems, str(error)))
    # Two corpora may share shards.
    shards = list({entry["file"]: entry for one in manifests for entry in one["shards"]}.values())
    dimension = manifests[0]["dimension"] if manifests else 0
    for entry in shards:
        shard = Shard(folder / entry["file"], entry["rows"], entry["xxh3"])
        if not shard.file.is_file() or shard.file.stat().st_size != entry["bytes"]:
            problems.append(f"{shard.file} is missing or cut short")
        elif verify and shard.problem is not None:
            problems.append(f"{shard.file} {shard.problem}")
    rows, size = (sum(entry[key] for entry in shards) for key in ("rows", "bytes"))
    dtypes = tuple(sorted({entry["dtype"] for entry in shards}))
    return ModelFolder(folder, fingerprint, rows, dimension, dtypes, size, tuple(problems))


def prune_store(root: Path, models: Sequence[str] = ()) -> list[str]:
    """Remove what cannot be used: damaged and unnamed shards, folders of another layout; and whole models.

    Args:
        root: The store's folder.
        models: Names of models whose vectors are removed too.

    Returns:
        One line for each thing removed.

    Raises:
        StoreError: If there is no such folder, or no vectors of a model named.
    """
    held = list_store(root)
    known = {str(one.fingerprint.get("name")) for one in held}
    for name in models:
        if name not in known:
            msg = f"{root} holds no vectors of {name!r}; it has {', '.join(sorted(known)) or 'none at all'}"
            raise StoreError(msg)
    said = []
    for one in held:
        if one.fingerprint.get("name") in models or one.fingerprint.get("layout") != LAYOUT:
            _remove(one.folder)
            said.append(f"removed {one.folder} ({one.fingerprint.get('name')}, {one.rows:,} vectors)")
        else:
            said += _prune_folder(one.folder)
    return said


def _remove(folder: Path) -> None:
    with FileLock(folder / LOCK):
        # The manifests go first: without them the shards do not exist.
        for name in manifest_names(folder):
            (folder / name).unlink()
        shutil.rmtree(folder)


def _prune_folder(folder: Path) -> list[str]:
    with FileLock(folder / LOCK):
        removed, named, unfinished = [], set(), False
        for name in manifest_names(folder):
            try:
                manifest = read_manifest(folder, name)
            except StoreError:
                (folder / name).unlink()
                continue
            whole = [entry for entry in manifest["shards"] if _is_whole(folder, entry)]
            damaged = [entry["file"] for entry in manifest["shards"] if entry not in whole]
            unfinished |= not manifest.get("complete", True)
            named |= {entry["file"] for entry in whole}
            removed += damaged
            if damaged:
                # A corpus is encoded to its end again; the store's own manifest has no end.
                again = {"complete": False} if "complete" in manifest else {}
                write_whole(folder / name, as_json(manifest | {"shards": whole} | again))
        present = [file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".part")]
        # A corpus that is not finished goes on with its blocks, which no manifest names yet.
        kept = {name for name in present if unfinished and is_block(name)} - set(removed)
        removed += [name for name in present if name not in named | kept | set(removed)]
        for name in removed:
            (folder / name).unlink(missing_ok=True)
    return [f"removed {folder / name}" for name in dict.fromkeys(removed)]


def _is_whole(folder: Path, entry: Mapping[str, Any]) -> bool:
    return Shard(folder / entry["file"], entry["rows"], entry["xxh3"]).problem is None
