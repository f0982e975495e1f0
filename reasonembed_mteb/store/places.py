"""A folder whose files are written whole: on a disk, or by fsspec in an object store such as S3 or GCS."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import MissingExtraError, ReasonEmbedError, missing_extra, one_line
from reasonembed_mteb.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

# fsspec's own name of the local disk.
_LOCAL = "file://"
_REMEDY = "check the address, the network and the permissions of your keys"


class StoreError(ReasonEmbedError):
    """A store that cannot be used as it is."""


class Place:
    """A folder, by its path or its address.

    Object stores have no locks and no renaming, but an object appears whole or not at all: so does a file
    here, on a disk too. Nothing is ever changed, only replaced.

    Attributes:
        url: The path or address, without a slash at its end.
        local: The path, where it is on a disk.
    """

    def __init__(self, url: str | Path) -> None:
        """Name a folder, which need not exist yet.

        Args:
            url: A path, or an address such as ``s3://bucket/folder``.
        """
        text = str(url).removeprefix(_LOCAL)
        self.local = None if "://" in text else Path(text).expanduser()
        self.url = text.rstrip("/") if self.local is None else str(self.local)

    def __truediv__(self, name: str) -> Place:
        """Return a folder within this one."""
        return Place(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @contextlib.contextmanager
    def _asking(self, what: str, name: str = "") -> Iterator[tuple[Any, str]]:
        """Give the file system and a path on it; whatever it raises becomes one line."""
        where = f"{self.url}/{name}" if name else self.url
        try:
            yield _file_system(where)
        except (ReasonEmbedError, FileNotFoundError):
            raise
        except Exception as error:
            # Each store's client has errors of its own, with no base in common.
            msg = f"cannot {what} {where}: {one_line(error)}; {_REMEDY}"
            raise StoreError(msg) from error

    def sizes(self) -> dict[str, int]:
        """Return the files right in the folder with their bytes; nothing where there is no folder.

        Raises:
            StoreError: If it cannot be read.
        """
        with contextlib.suppress(FileNotFoundError), self._asking("list") as (system, path):
            # A listing that was kept may be older than what another machine has written.
            system.invalidate_cache()
            found = system.ls(path, detail=True)
            kept = ((str(one["name"]).rstrip("/").rsplit("/", 1)[-1], one) for one in found)
            return {name: int(one["size"] or 0) for name, one in kept if one["type"] == "file"}
        return {}

    def folders(self) -> list[str]:
        """Return the names of the folders in this one, sorted.

        Raises:
            StoreError: If it cannot be read.
        """
        with contextlib.suppress(FileNotFoundError), self._asking("list") as (system, path):
            system.invalidate_cache()
            found = system.ls(path, detail=True)
            return sorted(
                str(one["name"]).rstrip("/").rsplit("/", 1)[-1] for one in found if one["type"] == "directory"
            )
        return []

    def read(self, name: str) -> bytes:
        """Return a file's content, by fsspec on a disk too.

        Args:
            name: Of a file in the folder.

        Raises:
            StoreError: If it is not there or cannot be read.
        """
        try:
            with self._asking("read", name) as (system, path):
                content: bytes = system.cat_file(path)
                return content
        except FileNotFoundError as error:
            msg = f"{self.url} has no {name}; it was removed, or another store is meant"
            raise StoreError(msg) from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all.

        Args:
            name: Of a file in the folder, which is made.
            content: All of it.

        Raises:
            ReasonEmbedError: If it cannot be written: a full disk, a bucket without permission.
        """
        if self.local is not None:
            write_whole(self.local / name, content)
            return
        try:
            with self._asking("write", name) as (system, path):
                system.pipe_file(path, content)
        except FileNotFoundError as error:
            msg = f"cannot write {self.url}/{name}: there is no such bucket; make it first"
            raise StoreError(msg) from error


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system and the path on it."""
    import fsspec  # type: ignore[import-untyped]

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as error:
        # fsspec names the package that reads an address.
        package = "s3fs" if url.startswith("s3") else "gcsfs" if url.startswith(("gs", "gcs")) else ""
        raise (missing_extra(package, "distributed") if package else MissingExtraError(str(error))) from error
    except ValueError as error:
        msg = f"{url}: {error}; give a folder, s3://... or gs://..."
        raise StoreError(msg) from error
    return found


@contextlib.contextmanager
def opened(url: str) -> Iterator[Any]:
    """Open a file for reading in bytes, on a disk or by its address.

    Args:
        url: A path or an address.

    Yields:
        A stream that can seek.

    Raises:
        StoreError: If it cannot be opened.
    """
    system, path = _file_system(url)
    try:
        stream = system.open(path, "rb")
    except Exception as error:
        msg = f"cannot read {url}: {one_line(error)}; {_REMEDY}"
        raise StoreError(msg) from error
    with stream:
        yield stream


def matching(url: str) -> list[tuple[str, int]]:
    """Return the files that an address means, with their bytes, sorted by name.

    Args:
        url: A file, a folder (every file below it that is not hidden) or a pattern with ``*`` of both.

    Raises:
        StoreError: If there are none, or they cannot be read.
    """
    try:
        system, path = _file_system(url)
        names: dict[str, Any] = {}
        for name in system.glob(path) if "*" in path else [path]:
            below = system.isdir(name)
            names |= system.find(name, detail=True) if below else {name: system.info(name)}
    except ReasonEmbedError:
        raise
    except Exception as error:
        msg = f"cannot read {url}: {one_line(error)}; {_REMEDY}"
        raise StoreError(msg) from error
    # Where the caller's own words end; a folder above may have any name.
    known = len(path.partition("*")[0].rpartition("/")[0] if "*" in path else path.rstrip("/"))
    shown = ((name, one) for name, one in sorted(names.items()) if "/." not in name[known:])
    return [(system.unstrip_protocol(name).removeprefix(_LOCAL), int(one["size"])) for name, one in shown]
