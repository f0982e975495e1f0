"""Checkpoints that are whole, once all in them is on disk and listed: marked, found, kept, removed."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from typing import TYPE_CHECKING

from reasonembed_mteb.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

# Written last, so that a folder without it, or with a file that it does not match, is half a checkpoint.
MARK = "whole.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_whole(folder: Path) -> None:
    """List a finished checkpoint's files and their sizes in it.

    Args:
        folder: The checkpoint; every process has written its part.
    """
    sizes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MARK:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
    write_whole(folder / MARK, json.dumps(sizes, indent=1))


def is_whole(folder: Path) -> bool:
    """Say whether a checkpoint has everything that was written to it.

    Args:
        folder: The checkpoint.
    """
    try:
        sizes = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return every checkpoint folder by its step, whole or not, in order.

    Args:
        folder: Where they lie.
    """
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in found if match)


def last_whole(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, or None.

    Args:
        folder: Where they lie.
    """
    return next((path for _, path in reversed(checkpoints(folder)) if is_whole(path)), None)


def remove_broken(folder: Path) -> list[str]:
    """Remove half-written or half-deleted checkpoints.

    Args:
        folder: Where they lie.

    Returns:
        Their names.
    """
    broken = [path for _, path in checkpoints(folder) if not is_whole(path)]
    for path in broken:
        logger.warning("%s was cut off while it was written; it is removed", path)
        shutil.rmtree(path)
    return [path.name for path in broken]


def keep_newest(folder: Path, number: int, best: int | None = None) -> None:
    """Remove all but the newest whole checkpoints, and the best one.

    Args:
        folder: Where they lie.
        number: How many are kept.
        best: Step of one that is kept in any case.
    """
    whole = [(step, path) for step, path in checkpoints(folder) if is_whole(path)]
    for step, path in whole[:-number]:
        if step == best:
            continue
        # First the mark: a removal that is cut off leaves no folder that looks whole.
        (path / MARK).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
