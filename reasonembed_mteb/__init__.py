"""Reasoning-intensive retrieval for MTEB: models, tasks, exact search and training.

Public names are loaded on first use, so that ``import reasonembed_mteb`` costs next to nothing.
"""

from __future__ import annotations

# Not imported from typing, which the start of Python would have to pay for.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from reasonembed_mteb.errors import DataError, ReasonEmbedError, UnknownNameError
    from reasonembed_mteb.models.reason_embed import ReasonEmbed
    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.retrieval.task import load_tasks

__version__ = "0.1.0"

_HOMES = {
    "DataError": "reasonembed_mteb.errors",
    "ReasonEmbed": "reasonembed_mteb.models.reason_embed",
    "ReasonEmbedError": "reasonembed_mteb.errors",
    "UnknownNameError": "reasonembed_mteb.errors",
    "load_tasks": "reasonembed_mteb.retrieval.task",
    "register": "reasonembed_mteb.plugin",
}

__all__ = [
    "DataError",
    "ReasonEmbed",
    "ReasonEmbedError",
    "UnknownNameError",
    "__version__",
    "load_tasks",
    "register",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
