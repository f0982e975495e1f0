"""Rows on the disk that a killed run can go on from.

A step's output for one subset is a folder of numbered JSON Lines files. Each file is written whole or
not at all; ``begun.json`` says by a fingerprint what they were made from, ``done.json`` that none is
missing. No file holds a time or a place, so that two runs write the same bytes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import (
    ContentHashes,
    json_line,
    json_text,
    read_json_lines,
    read_json_object,
    write_whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Row = dict[str, Any]


class Shards:
    """One step's output for one subset.

    Args:
        folder: Where the files are.
        fingerprint: What the rows are made from: settings, prompts and inputs.
        hashes: Hashes of files that a run has taken already.
    """

    def __init__(self, folder: Path, fingerprint: str, hashes: ContentHashes | None = None) -> None:
        """Look at nothing yet."""
        self._hashes = hashes or ContentHashes()
        self.folder = folder
        self.fingerprint = fingerprint

    @property
    def note(self) -> dict[str, Any] | None:
        """Return what `finish` wrote: ``output`` (a hash), ``rows``, ``kept``, ``dropped``, ``tokens``.

        It has ``mended`` too, where rows that are kept were changed. None unless the folder is finished and
        made from the same things.
        """
        note = read_json_object(self.folder / "done.json")
        if note is None or note.get("fingerprint") != self.fingerprint:
            return None
        files = [self.file(index) for index in range(note["files"])]
        whole = all(file.is_file() for file in files) and self._hashes.of(files) == note["output"]
        return note if whole else None

    def begin(self) -> None:
        """Prepare the folder: what was made from other things goes, finished files stay."""
        begun = read_json_object(self.folder / "begun.json")
        if begun is None or begun.get("fingerprint") != self.fingerprint:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            write_whole(self.folder / "begun.json", json_line({"fingerprint": self.fingerprint}))
        # A killed process leaves the file that it was writing.
        for part in self.folder.glob(".*.part"):
            part.unlink(missing_ok=True)

    def file(self, index: int) -> Path:
        """Return the path of a file by its number."""
        return self.folder / f"{index:05d}.jsonl"

    def has(self, index: int) -> bool:
        """Say whether a file is there, which means that it is whole."""
        return self.file(index).is_file()

    def write(self, index: int, rows: Iterable[Row]) -> None:
        """Write a file, whole or not at all.

        Args:
            index: Its number.
            rows: What JSON can hold.
        """
        write_whole(self.file(index), "".join(json_line(row) for row in rows))

    def read(self, index: int) -> list[Row]:
        """Return the rows of one file."""
        return list(read_rows(self.file(index)))

    def finish(self, files: int, **more: Any) -> None:
        """Count what was made, and mark the folder as finished.

        Args:
            files: How many there are.
            **more: Goes into the note.
        """
        paths = [self.file(index) for index in range(files)]
        for file in self.folder.glob("*.jsonl"):
            if file not in paths:
                file.unlink()
        dropped: Counter[str] = Counter()
        mended: Counter[str] = Counter()
        rows, tokens = 0, [0, 0]
        for row in _all_rows(paths):
            rows += 1
            if "dropped" in row:
                dropped[row["dropped"]] += 1
            else:
                mended.update(row.get("mended", ()))
            for side, count in enumerate(row.get("tokens", ())):
                tokens[side] += count
        note = {
            "fingerprint": self.fingerprint,
            "output": self._hashes.of(paths),
            "files": files,
            "rows": rows,
            "kept": rows - dropped.total(),
            "dropped": dict(sorted(dropped.items())),
            "tokens": tokens,
            **({"mended": dict(sorted(mended.items()))} if mended else {}),
            **more,
        }
        write_whole(self.folder / "done.json", json_text(note))

    def forget(self, errors: frozenset[str]) -> None:
        """Remove the files in which requests failed, so that they are made again.

        Args:
            errors: What stands in ``dropped`` or ``unjudged`` for such a request.
        """
        for file in self.folder.glob("*.jsonl"):
            if any(errors & {row.get("dropped"), *row.get("unjudged", ())} for row in read_rows(file)):
                (self.folder / "done.json").unlink(missing_ok=True)
                file.unlink()

    def rows(self, *, dropped: bool = False) -> Iterator[Row]:
        """Read a finished folder.

        Args:
            dropped: Whether to give the dropped rows too.

        Yields:
            Rows in order.

        Raises:
            DataError: If the folder is not finished.
        """
        note = self.note
        if note is None:
            msg = f"{self.folder} is not finished; run the step that writes it"
            raise DataError(msg)
        for row in _all_rows(self.file(index) for index in range(note["files"])):
            if dropped or "dropped" not in row:
                yield row


def _all_rows(files: Iterable[Path]) -> Iterator[Row]:
    for file in files:
        yield from read_rows(file)


def read_rows(file: Path) -> Iterator[Row]:
    """Read the rows of a file of ours.

    Args:
        file: JSON Lines.

    Raises:
        DataError: If a line is broken, which only a change from outside can do.
    """
    for _, row in read_json_lines(file, "delete the file and run the step again"):
        yield row


def shard_count(rows: int, size: int) -> int:
    """Return how many files hold so many rows.

    Args:
        rows: All rows.
        size: Rows a file.
    """
    return -(-rows // size)
