"""Looking into an embedding store, checking it, and removing from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from reasonembed_mteb.files import write_whole
from reasonembed_mteb.store.vectors import (
    LAYOUT,
    LOCK,
    MANIFEST,
    MODEL,
    Shard,
    StoreError,
    as_json,
    read_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
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
        if folder.is_dir() and ((folder / MODEL).is_file() or (folder / MANIFEST).is_file()):
            yield folder


def _examine(folder: Path, verify: bool) -> ModelFolder:
    problems = []
    fingerprint: dict[str, Any] = {}
    try:
        fingerprint = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{folder / MODEL} is damaged ({error})")
    try:
        manifest = _manifest_or_empty(folder)
    except StoreError as error:
        return ModelFolder(folder, fingerprint, 0, 0, (), 0, (*problems, str(error)))
    shards = manifest["shards"]
    for entry in shards:
        shard = Shard(folder / entry["file"], entry["rows"], entry["xxh3"])
        if not shard.file.is_file() or shard.file.stat().st_size != entry["bytes"]:
            problems.append(f"{shard.file} is missing or cut short")
        elif verify and shard.problem is not None:
            problems.append(f"{shard.file} {shard.problem}")
    rows, size = (sum(entry[key] for entry in shards) for key in ("rows", "bytes"))
    dtypes = tuple(sorted({entry["dtype"] for entry in shards}))
    return ModelFolder(folder, fingerprint, rows, manifest["dimension"], dtypes, size, tuple(problems))


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


def _manifest_or_empty(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest; one without has no vectors yet."""
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    return {"layout": LAYOUT, "dimension": 0, "shards": []}


def _remove(folder: Path) -> None:
    with FileLock(folder / LOCK):
        # The manifest goes first: without it the shards do not exist.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _prune_folder(folder: Path) -> list[str]:
    with FileLock(folder / LOCK):
        try:
            manifest = _manifest_or_empty(folder)
        except StoreError:
            (folder / MANIFEST).unlink()
            manifest = _manifest_or_empty(folder)
        named = {entry["file"]: entry for entry in manifest["shards"]}
        damaged = [
            name
            for name, entry in named.items()
            if Shard(folder / name, entry["rows"], entry["xxh3"]).problem is not None
        ]
        present = [file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".part")]
        unnamed = [name for name in present if name not in named]
        if damaged:
            kept = [entry for name, entry in named.items() if name not in damaged]
            write_whole(folder / MANIFEST, as_json(manifest | {"shards": kept}))
        for name in [*damaged, *unnamed]:
            (folder / name).unlink(missing_ok=True)
    return [f"removed {folder / name}" for name in [*damaged, *unnamed]]
