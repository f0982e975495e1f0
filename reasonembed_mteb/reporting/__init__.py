"""Results to tables: published scores, significance.

Public names are loaded on first use.
"""

from __future__ import annotations

_HOMES = {
    "bootstrap_intervals": "reasonembed_mteb.reporting.bootstrap",
    "compare_models": "reasonembed_mteb.reporting.significance",
    "paired_test": "reasonembed_mteb.reporting.significance",
    "published_for": "reasonembed_mteb.reporting.published",
    "published_scores": "reasonembed_mteb.reporting.published",
    "significance_marks": "reasonembed_mteb.reporting.significance",
}

__all__ = sorted(_HOMES)


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
    return sorted(_HOMES)
