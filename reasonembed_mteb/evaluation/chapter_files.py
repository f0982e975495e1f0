"""Where records that are no MTEB results lie in an output folder: ``chapters/KIND/NAME.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasonembed_mteb.escaping import file_name

if TYPE_CHECKING:
    from pathlib import Path

CHAPTERS = "chapters"


def chapter_file(output: Path, kind: str, name: str) -> Path:
    """Return the file of a record.

    Args:
        output: Output folder.
        kind: What the record is of, such as ``robustness``.
        name: What tells it from others of its kind; what a file's name cannot hold is replaced.
    """
    return output / CHAPTERS / kind / f"{file_name(name)}.json"


def chapter_files(output: Path, kind: str) -> list[Path]:
    """Return every record of a kind in an output folder, in order of name.

    Args:
        output: Output folder; one without such records gives none.
        kind: See `chapter_file`.
    """
    return sorted((output / CHAPTERS / kind).glob("*.json"))
