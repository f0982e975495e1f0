"""A data set of the hub as training data: fetched once, then read as the files that it holds."""

from __future__ import annotations

import re
from pathlib import Path

from reasonembed_mteb.errors import DataError, first_names, one_line
from reasonembed_mteb.escaping import visible

# `org/name`, or `org/name/folder` for a folder of it.
_NAME = re.compile(r"(?:hf:/{1,2}datasets/)?([\w.-]+/[\w.-]+)(?:/(.+?))?/?")


def hub_name(source: str, suffixes: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the data set and the folder in it that a source names, or None where it can only be a path.

    Args:
        source: As the user wrote it; nothing on disk has this name.
        suffixes: Ends of the names of data files.
    """
    found = _NAME.fullmatch(source)
    path = Path(source)
    if found is None or source.startswith((".", "~")) or source.endswith(suffixes):
        return None
    # A folder that is there makes it a path with a slip in it.
    return None if path.parent.is_dir() and len(path.parts) == 2 else (found[1], found[2] or "")


def fetch_folder(name: str, folder: str, suffixes: tuple[str, ...]) -> Path:
    """Fetch a data set's files, unless they are there, and return the folder in which they lie.

    Args:
        name: ``org/name``.
        folder: The folder in it; empty for the one that holds files.
        suffixes: Ends of the names of data files.

    Raises:
        DataError: If it cannot be fetched, or holds files in several folders.
    """
    import huggingface_hub

    from reasonembed_mteb.evaluation.resolving import hub_errors

    wanted = [f"{folder}/*{suffix}" if folder else f"*{suffix}" for suffix in suffixes]
    try:
        root = Path(huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except hub_errors() as error:
        fetching = f"hf download {visible(name)} --repo-type dataset --local-dir DIR"
        msg = (
            f"there is no file or folder {visible(name)}, and the hub's data set of that name cannot be "
            f"fetched ({one_line(error)}): correct the name, or go online, or fetch it elsewhere by "
            f"`{fetching}` and give --data DIR"
        )
        raise DataError(msg) from error
    if folder:
        return root / folder
    folders = sorted({file.parent for file in root.rglob("*") if file.name.endswith(suffixes)})
    if len(folders) == 1:
        return folders[0]
    held = f"the hub's data set {visible(name)} holds"
    if not folders:
        msg = f"{held} no {', '.join(suffixes)} file: convert it to one of them"
        raise DataError(msg)
    names = (f"{name}/{one.relative_to(root).as_posix()}".removesuffix("/.") for one in folders)
    msg = f"{held} files in {len(folders)} folders; name one: {visible(first_names(names, 8))}"
    raise DataError(msg)
