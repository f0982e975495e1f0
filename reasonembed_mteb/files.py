"""Files: written whole or not at all, read with line numbers, known by what they hold."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tomllib
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

# What scores and vectors depend on; a record of a run names their versions.
PACKAGES = ("reasonembed-mteb", "mteb", "sentence-transformers", "transformers", "torch", "datasets")
_BLOCK = 1 << 22
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the file's name once the block has ended without an error.

    Args:
        file: The file; its folder is made.

    Yields:
        The path to write, in the same folder.

    Raises:
        ReasonEmbedError: If it cannot be written, a full disk for one.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as written:
            # Without it a machine that loses power can keep the new name and lose the content.
            os.fsync(written.fileno())
        part.replace(file)
    except OSError as error:
        # What stands in the way of writing may stand in the way of removing too.
        with contextlib.suppress(OSError):
            part.unlink()
        msg = f"cannot write {file}: {error.strerror or error}; free space or choose another folder"
        raise ReasonEmbedError(msg) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it.

    Args:
        file: The file; its folder is made.
        content: Text (UTF-8) or bytes.

    Raises:
        ReasonEmbedError: If it cannot be written, a full disk for one.
    """
    with replacing(file) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder to fill, which takes the folder's name once the block has ended without an error.

    Args:
        folder: The folder; those above it are made.
        replace: Whether a folder of that name with something in it is replaced.

    Yields:
        The folder to fill, next to it.

    Raises:
        DataError: If there is something of that name that may not be replaced.
        ReasonEmbedError: If it cannot be written, a full disk for one.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or (not replace and any(folder.iterdir()))):
        msg = f"{folder} exists and is not an empty folder; give a new one"
        raise DataError(msg)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
    except OSError as error:
        msg = f"cannot write {folder}: {error.strerror or error}; free space or choose another folder"
        raise ReasonEmbedError(msg) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def file_blocks(file: Path) -> Iterator[bytes]:
    """Yield a file's bytes piece by piece, for a hash of a file that may be larger than memory.

    Args:
        file: Of any size.

    Yields:
        At most 4 MiB each; nothing of an empty file.
    """
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block


def json_hash(value: object, default: Callable[[Any], object] | None = None) -> str:
    """Return the xxh3 (128 bit) of a value's JSON with sorted keys, in hexadecimal.

    The names of a store's folders and the revisions of models in memory are such hashes.

    Args:
        value: What JSON can hold.
        default: What to write for anything else, as in `json.dumps`.
    """
    import xxhash

    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=default).encode())


def content_hash(files: Iterable[Path]) -> str:
    """Return a hash of files' names and bytes, as ``xxh3:<32 hex digits>``.

    Args:
        files: In any order.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    for file in sorted(files):
        digest.update(file.name.encode())
        for block in file_blocks(file):
            digest.update(block)
    return f"xxh3:{digest.hexdigest()}"


def bytes_hash(content: bytes) -> str:
    """Return the SHA-256 of bytes as hex digits, which ties a record to what it was made with.

    Args:
        content: A whole file's, mostly.
    """
    return hashlib.sha256(content, usedforsecurity=False).hexdigest()


def file_hash(file: Path) -> str | None:
    """Return `bytes_hash` of a file, or None where there is none.

    Args:
        file: It is read whole.
    """
    return bytes_hash(file.read_bytes()) if file.is_file() else None


class ContentHashes:
    """Content hashes that are taken once, as long as the files stay as they are."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[tuple[tuple[str, int, int, int], ...], str] = {}

    def of(self, files: Iterable[Path]) -> str:
        """Return `content_hash` of files.

        Args:
            files: In any order.
        """
        paths = sorted(files)
        found = [(str(file), file.stat()) for file in paths]
        key = tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)
        if key not in self._known:
            self._known[key] = content_hash(paths)
        return self._known[key]


def fingerprint(*values: object) -> str:
    """Return a short hash of values that JSON can hold, to tell whether anything has changed.

    Args:
        *values: Strings, numbers, lists, dictionaries.

    Returns:
        32 hex digits.
    """
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_number(value: object) -> bool:
    """Return whether a value read from JSON is a finite number.

    Args:
        value: True and False are none; nor is a whole number above every float.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def json_line(value: object) -> str:
    """Return a value as one line of JSON Lines, with its line break.

    Args:
        value: What JSON can hold.
    """
    return json.dumps(value, ensure_ascii=False) + "\n"


def json_text(value: object) -> str:
    """Return a value as a JSON file for people, with a line break at its end.

    Args:
        value: What JSON can hold.
    """
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def toml_value(text: str) -> Any:  # noqa: ANN401 - any TOML
    """Return a value as TOML has it, such as ``0.5`` or ``[1, 2]``; a bare word is a string.

    Args:
        text: As it was written on a command line.
    """
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def read_json_object(file: Path) -> dict[str, Any] | None:
    """Return the object that a file of ours holds, or None where it is missing or damaged.

    Args:
        file: JSON.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_json_lines(
    file: Path, remedy: str = "correct that line", broken: Callable[[int, Exception], None] | None = None
) -> Iterator[tuple[int, Any]]:
    """Read JSON Lines with their numbers; blank lines are passed over.

    A byte order mark and line breaks of Windows do no harm. ``NaN``, which pandas writes for what is missing,
    is read as None.

    Args:
        file: UTF-8, gzipped where its name ends with ``.gz``.
        remedy: What to do about a broken line, for the message.
        broken: Takes the number of a broken line and what is wrong with it; reading goes on unless it raises.

    Yields:
        Number of the line, from 1, and what it holds.

    Raises:
        DataError: If the file cannot be read or a line is not JSON; the message names it.
    """
    try:
        # In bytes, lines end at \n only: texts may hold other line separators.
        with gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if not content.strip():
                    continue
                try:
                    yield number, json.loads(content.decode("utf-8"), parse_constant=_constant)
                except (ValueError, RecursionError) as error:
                    if broken is not None:
                        broken(number, error)
                        continue
                    msg = f"{file}:{number} is not JSON ({error}); {remedy}"
                    raise DataError(msg) from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"cannot read {file}: {reason}; correct the path or fetch the file again"
        raise DataError(msg) from error


def _constant(name: str) -> None:
    if name != "NaN":
        msg = f"{name} is no number of JSON"
        raise ValueError(msg)


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of packages; one that is not installed is left out.

    Args:
        packages: Names of distributions.
    """
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
