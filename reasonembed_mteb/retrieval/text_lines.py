"""Text files as people have them: plain or gzipped, UTF-8 or UTF-16, with any line ends."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from typing import IO, TYPE_CHECKING, cast

from reasonembed_mteb.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GZIP = b"\x1f\x8b"


@contextlib.contextmanager
def _unpacked(file: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked if it is gzipped whatever its name."""
    with file.open("rb") as stream:
        if stream.peek(2)[:2] == _GZIP:
            with gzip.open(stream) as packed:
                yield cast("IO[bytes]", packed)
        else:
            yield stream


@contextlib.contextmanager
def open_text(file: Path) -> Iterator[IO[str]]:
    r"""Open a text file for reading; a byte order mark is left out, every line end is ``\n``.

    Args:
        file: UTF-8 or, with a byte order mark, UTF-16, as spreadsheets save it; gzipped or not, which is told
            by the content.

    Yields:
        The text.

    Raises:
        DataError: If it cannot be opened, is a damaged gzip file, or is not text; the message names file
            and line.
    """
    try:
        with _unpacked(file) as stream:
            marked = stream.peek(2)[:2] in (BOM_UTF16_BE, BOM_UTF16_LE)  # type: ignore[attr-defined]
            yield io.TextIOWrapper(stream, encoding="utf-16" if marked else "utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        msg = f"{file} is a damaged gzip file ({error}); fetch or write it again"
        raise DataError(msg) from error
    except OSError as error:
        msg = f"cannot read {file}: {error.strerror or error}; give an existing file"
        raise DataError(msg) from error
    except UnicodeError as error:
        msg = f"{file}, line {_undecodable(file)}: not UTF-8 text; save it as UTF-8, plain or gzipped"
        raise DataError(msg) from error


def _undecodable(file: Path) -> int:
    """Return the first line that is not UTF-8; the text stream decodes ahead of the line it is at."""
    with _unpacked(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    # UTF-16 that is cut short.
    return 1


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, with their numbers from 1.

    Lines end at line breaks only: ids may hold what `str.splitlines` would split at. A line of tabs is not
    blank.

    Args:
        file: See `open_text`.

    Raises:
        DataError: See `open_text`.
    """
    with open_text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip(" \n"):
                yield number, line.removesuffix("\n")
