"""What a machine of a cluster has installed; sent there as it is, so it needs nothing of this package."""

from __future__ import annotations

import contextlib
import importlib.metadata
import socket


def installed(packages: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return the machine's name, and the versions of packages; one that is not installed is left out.

    Args:
        packages: Names of distributions.
    """
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return socket.gethostname(), found
