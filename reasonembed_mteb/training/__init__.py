"""Training reasoning-intensive embedders: Redapter's losses for any sentence-transformers model.

Public names are loaded on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reasonembed_mteb.training.cached import CachedRedapterLoss
    from reasonembed_mteb.training.callback import RedapterCallback
    from reasonembed_mteb.training.losses import RedapterLoss
    from reasonembed_mteb.training.merging import average_checkpoints, merge
    from reasonembed_mteb.training.recipes import load_recipe
    from reasonembed_mteb.training.run import train
    from reasonembed_mteb.training.trainer import RedapterTrainer

_HOMES = {
    "CachedRedapterLoss": "reasonembed_mteb.training.cached",
    "RedapterCallback": "reasonembed_mteb.training.callback",
    "RedapterLoss": "reasonembed_mteb.training.losses",
    "RedapterTrainer": "reasonembed_mteb.training.trainer",
    "average_checkpoints": "reasonembed_mteb.training.merging",
    "load_recipe": "reasonembed_mteb.training.recipes",
    "merge": "reasonembed_mteb.training.merging",
    "train": "reasonembed_mteb.training.run",
}

__all__ = [
    "CachedRedapterLoss",
    "RedapterCallback",
    "RedapterLoss",
    "RedapterTrainer",
    "average_checkpoints",
    "load_recipe",
    "merge",
    "train",
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
