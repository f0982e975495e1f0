"""What chat models put around a text, taken away; and texts that are none: refusals, loops, wrong lengths."""

from __future__ import annotations

import re
import tomllib
import zlib
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.files import fingerprint
from reasonembed_mteb.synthesis.duplicates import words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Raised where the functions here judge differently.
_RULES = 1
_PART = re.compile(r"%(\w+)%")
# What closes a quotation that goes round a whole text.
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」"}  # noqa: RUF001


@dataclass(frozen=True)
class Tidied:
    """A text without what stood around it.

    Attributes:
        text: What is left; may be empty.
        mended: What was taken away, each kind once.
    """

    text: str
    mended: tuple[str, ...]


def tidied(text: str, what: str = "query") -> Tidied:
    """Take away what chat models put before, after and around what they were asked for.

    Args:
        text: An answer.
        what: ``query`` or ``reasoning``.
    """
    mended: list[str] = []
    current = text.strip()
    while True:
        before = current
        for kind, mend in _mends(what):
            after = mend(current).strip()
            if after != current:
                mended.append(kind)
                current = after
        # A label may stand in a code fence, and a quotation behind the label.
        if current == before:
            return Tidied(current, tuple(dict.fromkeys(mended)))


@cache
def _patterns() -> dict[str, Any]:
    file = files("reasonembed_mteb") / "synthesis" / "templates" / "boilerplate.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


@cache
def rules_hash() -> str:
    """Return what changes with the rules, so that what was looked at by other ones is looked at again."""
    return fingerprint(_RULES, _patterns())


@cache
def _whole(pattern: str, what: str = "query") -> str:
    """Return a pattern with its parts filled in."""
    parts = {**_patterns()["parts"], "noun": _patterns()["nouns"][what]}
    while found := _PART.search(pattern):
        pattern = pattern.replace(found[0], parts[found[1]])
    return pattern


@cache
def _mends(what: str) -> tuple[tuple[str, Callable[[str], str]], ...]:
    """Return what is looked for, each with the function that takes it away."""
    mends = []
    for kind, places in _patterns()["mended"].items():
        first = [rf"\A\s*(?:{_whole(one, what)})\s*" for one in places.get("start", ())]
        last = [rf"\s*(?:{_whole(one, what)})\s*\Z" for one in places.get("end", ())]
        mends.append((kind, _without([*first, *last])))
    marks = (("code fence", _without_fence), ("quotes", _without_quotes), ("markup", _without_markup))
    return (*mends, *marks)


def _without(patterns: Sequence[str]) -> Callable[[str], str]:
    compiled = [re.compile(one, re.IGNORECASE) for one in patterns]

    def mend(text: str) -> str:
        for one in compiled:
            text = one.sub("", text, count=1)
        return text

    return mend


def _without_fence(text: str) -> str:
    found = re.fullmatch(r"```[\w+-]*[ \t]*\n([\s\S]*?)\n?```", text)
    return found[1] if found and "```" not in found[1] else text


def _without_quotes(text: str) -> str:
    close = _QUOTES.get(text[:1])
    inner = text[1:-1]
    whole = close is not None and len(text) > 1 and text.endswith(close)
    return inner if whole and not {text[0], close} & set(inner) else text


def _without_markup(text: str) -> str:
    for mark in ("**", "__"):
        inner = text[2:-2]
        if len(text) > 4 and text.startswith(mark) and text.endswith(mark) and mark not in inner:
            return inner
    return text


@cache
def _refusals() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return what makes an answer no text, by reason."""
    refused = "|".join(_whole(one) for one in _patterns()["refused"]["start"])
    placeholder = "|".join(_patterns()["placeholder"]["anywhere"])
    empty = "|".join(_patterns()["placeholder"]["whole"])
    found = {
        "no text": rf"\A\W*(?:{empty})\W*\Z",
        "refusal": rf"\A\W*(?:{refused})",
        "placeholder": placeholder,
    }
    return tuple((why, re.compile(pattern, re.IGNORECASE)) for why, pattern in found.items())


def refusal_to_write(text: str) -> str | None:
    """Say why an answer is not the text that was asked for, or None.

    Args:
        text: A tidied answer.

    Returns:
        ``no text``, ``refusal``, ``placeholder`` or ``repeats itself``.
    """
    why = next((why for why, pattern in _refusals() if pattern.search(text)), None)
    return why or ("repeats itself" if repeats_itself(text) else None)


# A loop: so many words or more, in three copies or more of the same run; a single word stands there oftener.
_LOOP_WORDS, _LOOP_COPIES, _LONGEST_RUN, _ONE_WORD = 12, 3, 60, 6
# Words of a sentence that may not stand there three times; characters where a script has no spaces.
_SENTENCE_WORDS, _SENTENCE_CHARACTERS = 4, 6
# Code and tables repeat themselves too: a loop goes on to the end, or is so large a share of the text.
_LOOP_SHARE = 0.25
# Prose shrinks to about half; what shrinks so far is the same over and over, with small changes.
_COMPRESSED, _COMPRESSED_FROM = 0.2, 600
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_UNSPACED = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_SENTENCE_END = re.compile(r"[.?!]+(?:\s|\Z)|[\u3002\uff01\uff1f\n]+")


def repeats_itself(text: str) -> bool:
    """Say whether a text runs in a loop, as models do that have lost their thread.

    Lists of numbers and single letters, as in programming problems, are none.

    Args:
        text: Any text.
    """
    found = words(text)
    runs = range(1, min(_LONGEST_RUN, len(found) // 2) + 1)
    if any(_loops(found, run) for run in runs) or _is_doubled(found) or _same_sentences(text, len(found)):
        return True
    raw = text.encode()
    return len(raw) >= _COMPRESSED_FROM and len(zlib.compress(raw)) < _COMPRESSED * len(raw) and _prose(found)


def _loops(found: Sequence[str], run: int) -> bool:
    """Say whether the same ``run`` words stand there often enough in a row."""
    needed = max(_LOOP_WORDS, _LOOP_COPIES * run) if run > 1 else _ONE_WORD
    same = 0
    for place in range(run, len(found)):
        same = same + 1 if found[place] == found[place - run] else 0
        length = same + run
        far = place == len(found) - 1 or length >= _LOOP_SHARE * len(found)
        if same and length >= needed and far and _has_words(found[place - run : place]):
            return True
    return False


def _same_sentences(text: str, count: int) -> bool:
    """Say whether sentences that stand there three times or more are a large share of the text."""
    sentences = Counter(tuple(words(one)) for one in _SENTENCE_END.split(text))
    repeated = (len(one) * copies for one, copies in sentences.items() if copies >= 3 and _is_sentence(one))
    return sum(repeated) >= max(1.0, _LOOP_SHARE * count)


def _is_sentence(found: Sequence[str]) -> bool:
    whole = "".join(found)
    if _UNSPACED.search(whole):
        return len(whole) >= _SENTENCE_CHARACTERS
    return len(found) >= _SENTENCE_WORDS and _has_words(found)


def _is_doubled(found: Sequence[str]) -> bool:
    """Say whether the whole text stands there twice."""
    half, rest = divmod(len(found), 2)
    return not rest and found[:half] == found[half:] and _is_sentence(found[:half])


def _has_words(found: Sequence[str]) -> bool:
    return any(_LETTERS.search(word) or _UNSPACED.search(word) for word in found)


def _prose(found: Sequence[str]) -> bool:
    """Say whether most of the words are words, not numbers or signs."""
    return 2 * sum(_has_words([word]) for word in found) > len(found)


def word_count(text: str) -> float:
    """Return how many words a text has; of a script without spaces, two characters are one.

    Args:
        text: Any text.
    """
    found, spaced = words(text), text.split()
    # Characters were counted where "words" are too long to be any.
    return len(found) / 2 if len(found) > 3 * len(spaced) else float(len(spaced))


def far_from_length(text: str, bounds: tuple[int, int], factor: float) -> str | None:
    """Say whether a text is much shorter or longer than asked, or None.

    Args:
        text: A tidied answer.
        bounds: Fewest and most words that were asked for.
        factor: How far it may be off: so many times.
    """
    count = word_count(text)
    if count * factor < bounds[0]:
        return "much shorter than asked"
    return "much longer than asked" if count > bounds[1] * factor else None


def trimmed(text: str, fits: Callable[[str], bool]) -> str | None:
    """Return the longest beginning that fits and ends with a sentence or a line, or None where none does.

    Args:
        text: Any text.
        fits: Whether a beginning is short enough; a shorter one is, too, where a longer one is.
    """
    if fits(text):
        return text
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    count = bisect_left(ends, True, key=lambda end: not fits(text[:end].rstrip()))
    return text[: ends[count - 1]].rstrip() if count else None
