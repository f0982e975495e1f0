"""Print the lowest version of every dependency that setup.cfg allows, as pip's constraints.

`make test-lowest` installs exactly these, so that a lower bound is a version that was tested.
"""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

SETUP_CFG = Path(__file__).resolve().parents[1] / "setup.cfg"


def requirements(path: Path = SETUP_CFG) -> list[Requirement]:
    """Read every requirement of the package and of its extras, the package's own first."""
    config = configparser.ConfigParser()
    config.read(path, encoding="utf-8")
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = (line.strip() for text in texts for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def lowest(requirement: Requirement) -> Version | None:
    """Return the version after ``>=``, or None where a requirement has none."""
    return next((Version(one.version) for one in requirement.specifier if one.operator == ">="), None)


def constraints(path: Path = SETUP_CFG) -> dict[str, str]:
    """Map each dependency to the highest of its lowest versions: an extra may raise the package's bound.

    Raises:
        SystemExit: If a dependency has no lower bound.
    """
    found: dict[str, Version] = {}
    for requirement in requirements(path):
        version = lowest(requirement)
        if version is None:
            sys.exit(f"{requirement} has no lower bound: write {requirement.name}>=VERSION in {path.name}")
        name = canonicalize_name(requirement.name)
        found[name] = max(version, found.get(name, version))
    return {name: str(version) for name, version in sorted(found.items())}


if __name__ == "__main__":
    for name, version in constraints().items():
        sys.stdout.write(f"{name}=={version}\n")
