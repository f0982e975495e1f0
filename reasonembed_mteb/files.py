"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the file's name once the block has ended without an error.

    Args:
        file: The file; its folder is made.

    Yields:
        The path to write, beside the file.

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
        part.unlink(missing_ok=True)
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
