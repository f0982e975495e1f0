"""Records that are no MTEB results, ``chapters/KIND/NAME.json``: one writer, one reader, one collector."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.files import json_text, read_json_object, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

Record = TypeVar("Record")

CHAPTERS = "chapters"
# Of every record's file; a change of one kind's fields that older files lack raises it.
FORMAT = 1


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


def write_chapter(file: Path, record: Any) -> None:  # noqa: ANN401 - any dataclass
    """Write a record, whole or not at all.

    Args:
        file: See `chapter_file`.
        record: A dataclass of what JSON can hold.

    Raises:
        DataError: If a number is not finite: no reader would take the record.
    """
    content = asdict(record)
    if (found := _not_finite(content)) is not None:
        msg = (
            f"{file} is not written: {found[0]} is {found[1]}, and no reader takes a number that is not "
            "finite; look whether all of the model's weights are"
        )
        raise DataError(msg)
    write_whole(file, json_text({"format": FORMAT, **content}))


def _not_finite(value: Any, place: str = "") -> tuple[str, float] | None:  # noqa: ANN401 - what JSON can hold
    """Return the place of the first number that is not finite, such as ``readings.0.f1``, and the number."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, value)
    items: Iterable[tuple[object, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    found = (_not_finite(one, f"{place}.{name}" if place else str(name)) for name, one in items)
    return next((one for one in found if one is not None), None)


def read_chapter(file: Path, make: Callable[[dict[str, Any]], Record], what: str, command: str) -> Record:
    """Read a record.

    Args:
        file: Written by `write_chapter`.
        make: Makes it of the file's content, and raises where that does not fit.
        what: The record in words.
        command: What writes it again.

    Raises:
        DataError: If the file is damaged or of another format.
    """
    content = read_json_object(file) or {}
    try:
        if content.pop("format") != FORMAT:
            raise ValueError
        return make(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        msg = (
            f"{file} is no record of {what} of this version, or a damaged one; run `{command}` again, or "
            "delete it"
        )
        raise DataError(msg) from error


def read_chapters(
    folders: Sequence[Path], kind: str, read: Callable[[Path], Record]
) -> tuple[list[Record], list[str]]:
    """Return every record of a kind in some output folders, and a line for each file that was left out.

    Args:
        folders: Output folders; one that is named twice counts once.
        kind: See `chapter_file`.
        read: Reads a file; raises `DataError`.
    """
    found, problems = [], []
    for file in dict.fromkeys(file for folder in folders for file in chapter_files(folder, kind)):
        try:
            found.append(read(file))
        except DataError as error:
            problems.append(str(error))
    return found, problems
