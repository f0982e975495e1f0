"""Errors that a user can do something about: one line, with the remedy in it."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from reasonembed_mteb.escaping import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

# Where each kind of name is listed, for the end of the message.
_LISTED_BY = {
    "task": "reasonembed tasks",
    "benchmark": "reasonembed tasks",
    "model": "reasonembed models",
}
# What numpy's, torch's and transformers' generators all take.
MOST_SEED = 2**32 - 1
# Names that an error shows where none is near.
_SHOWN = 8


class ReasonEmbedError(Exception):
    """Base of every error that this package raises for its user."""


class DataError(ReasonEmbedError):
    """Data that is missing, damaged or does not fit together."""


class MissingExtraError(ReasonEmbedError):
    """An optional package is needed and not installed."""


class UnknownNameError(ReasonEmbedError, KeyError):
    """A name that is in none of our tables."""

    def __str__(self) -> str:
        """Return the message itself; KeyError would show its repr."""
        return str(self.args[0]) if self.args else ""


def check_seed(seed: int) -> None:
    """Refuse a seed that a generator would refuse later, once models and data are loaded.

    Args:
        seed: Of numpy's, torch's or transformers' random numbers.

    Raises:
        ReasonEmbedError: If it is out of range.
    """
    if not 0 <= seed <= MOST_SEED:
        msg = f"seed is {seed}: give a whole number from 0 to {MOST_SEED:,}"
        raise ReasonEmbedError(msg)


def one_line(error: BaseException) -> str:
    """Return an error as one line; ours are sentences already, others are named.

    Args:
        error: Any error.
    """
    if isinstance(error, ReasonEmbedError):
        # Whole: a line break in it comes from a name, and the remedy stands at the end.
        return visible(str(error).strip())
    text = visible(str(error).strip().partition("\n")[0].strip())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_names(names: Iterable[object], most: int = 5) -> str:
    """Return the first names, and how many more there are.

    Args:
        names: What is listed.
        most: At most so many are named.
    """
    listed = list(names)
    more = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return ", ".join(map(str, listed[:most])) + more


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> UnknownNameError:
    """Build the error for an unknown name, with the nearest known one, or else with some of them.

    Args:
        kind: What the name names: ``"task"``, ``"model"``, ``"benchmark"``, ``"key"`` ...
        given: The name as the user wrote it.
        allowed: Every known name.

    Returns:
        The error, to be raised by the caller.
    """
    lowered = {name.lower(): name for name in allowed}
    nearest = difflib.get_close_matches(given.lower(), lowered, n=1, cutoff=0.5)
    hint = f"; did you mean {lowered[nearest[0]]!r}?" if nearest else "."
    if not nearest and kind not in _LISTED_BY and lowered:
        shown = sorted(lowered.values())
        hint = f"; known: {', '.join(shown[:_SHOWN])}{' ...' if len(shown) > _SHOWN else ''}"
    where = f" `{_LISTED_BY[kind]}` lists all." if kind in _LISTED_BY else ""
    return UnknownNameError(f"unknown {kind} {given!r}{hint}{where}")


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Build the error for a package that belongs to an extra.

    Args:
        package: The import or distribution name that is missing.
        extra: The extra of this distribution that installs it.

    Returns:
        The error, to be raised by the caller.
    """
    return MissingExtraError(f'{package} is not installed: pip install "reasonembed-mteb[{extra}]"')
