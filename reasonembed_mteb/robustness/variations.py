"""Query variations: deterministic transforms of one text, by kind, strength and seed.

The same text, settings and seed give the same bytes on every Python, whatever PYTHONHASHSEED is and whichever
other queries there are. Kinds are those of the robustness study (arXiv 2604.16576), with two of our own
beside them: ``shuffle`` and ``keywords``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Protocol, TypeVar

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.robustness.words import STOP_WORDS, Words, is_latin, plain_breaks, split_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_Item = TypeVar("_Item")

# To be raised when the same settings would give other texts.
VERSION = 2
# Of the study, in its order (R:attack_queries_penha.py).
SEEDS = (1999, 5, 27, 2016, 2026)
STUDY_SHARE = 0.1
# textattack's MinWordLength in the study's recipes.
_SHORTEST = 3
_ASCII = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Letters of a QWERTY keyboard; each key of a row touches two of the row above.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Content words that the keyword form keeps.
_KEYWORDS = 10


def _touching() -> dict[str, str]:
    """Return the keys that touch each letter's key."""
    pairs = {pair for row in _ROWS for pair in pairwise(row)}
    for above, row in pairwise(_ROWS):
        pairs |= {(key, above[i + step]) for i, key in enumerate(row) for step in (0, 1)}
    pairs |= {(b, a) for a, b in pairs}
    return {key: "".join(sorted(b for a, b in pairs if a == key)) for key in "".join(_ROWS)}


_NEIGHBOURS = _touching()


class SynonymSource(Protocol):
    """What knows synonyms; `reasonembed_mteb.robustness.wordnet.WordNet` is one."""

    @property
    def digest(self) -> str:
        """Hash of what decides the synonyms."""

    def synonyms(self, word: str, *, restored: bool) -> Sequence[str]:
        """Return one-word synonyms of all senses, sorted.

        Args:
            word: As it stands in a query.
            restored: With the word's own inflection and case; else base forms as the source has them.
        """


@dataclass(frozen=True, slots=True)
class Varied:
    """A query after a variation.

    Attributes:
        text: The new text; line breaks are line feeds.
        words: Words that are not protected.
        eligible: How many of them may change.
        changed: How many did.
        kept: Why the text is as it was, where that is more than chance: ``emptied`` (nothing would be left),
            ``nothing eligible``, ``no paraphrase``, ``protected text lost``; else empty.
    """

    text: str
    words: int
    eligible: int
    changed: int
    kept: str = ""


class _Draw:
    """Random numbers by one function only, whose stream every Python keeps: `Random.random`."""

    def __init__(self, *key: str) -> None:
        self._random = Random("\n".join(key).encode("utf-8", "surrogatepass")).random

    def below(self, limit: int) -> int:
        return int(self._random() * limit)

    def one(self, choices: Sequence[_Item]) -> _Item:
        return choices[self.below(len(choices))]

    def order(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield items in random order; only as many are drawn as are taken."""
        left = list(items)
        while left:
            place = self.below(len(left))
            left[place], left[-1] = left[-1], left[place]
            yield left.pop()


@dataclass(frozen=True)
class Variation:
    """One variation of queries.

    Attributes:
        kind: One of `KINDS`.
        seed: Of the draw; None where nothing is drawn.
        share: Share of the words that change, at least one; the study's is 0.1.
        official: As the study: nothing is protected, synonyms stay base forms.
        synonyms: What knows synonyms, for that kind.
        paraphrases: New text by old, for that kind.
    """

    kind: str
    seed: int | None = None
    share: float = STUDY_SHARE
    official: bool = False
    synonyms: SynonymSource | None = field(default=None, compare=False)
    paraphrases: Mapping[str, str] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UnknownNameError: If there is no such kind.
            ReasonEmbedError: If a setting does not fit.
        """
        if self.kind not in KINDS:
            raise unknown_name("variation", self.kind, KINDS)
        if (self.seed is None) != (self.kind not in DRAWN):
            which = "needs a seed" if self.kind in DRAWN else "draws nothing: it takes no seed"
            msg = f"the variation {self.kind} {which}"
            raise ReasonEmbedError(msg)
        if not 0 < self.share <= 1:
            msg = f"share is {self.share}: give a share of the words above 0, at most 1, such as 0.2"
            raise ReasonEmbedError(msg)
        if self.kind == "synonyms" and self.synonyms is None:
            msg = "synonyms need WordNet: read it with `reasonembed_mteb.robustness.wordnet.read_wordnet`"
            raise ReasonEmbedError(msg)
        if self.kind == "paraphrase" and self.paraphrases is None:
            msg = "paraphrases come from a file or an endpoint; see `reasonembed_mteb.robustness.paraphrases`"
            raise ReasonEmbedError(msg)

    @property
    def label(self) -> str:
        """Its name among variations: kind, seed, and what differs from the defaults."""
        share = f"-{self.share:g}" if self.kind in _BY_SHARE and self.share != STUDY_SHARE else ""
        return f"{self.kind}{share}{'-official' if self.official else ''}" + (
            f"-{self.seed}" if self.seed is not None else ""
        )

    @property
    def causes(self) -> list[object]:
        """Everything that decides the new text besides the old one; what JSON can hold."""
        source = self.synonyms.digest if self.kind == "synonyms" and self.synonyms is not None else None
        given = sorted((self.paraphrases or {}).items()) if self.kind == "paraphrase" else None
        return [VERSION, self.kind, self.seed, self.share, self.official, source, given]

    def vary(self, text: str) -> Varied:
        """Return a query varied.

        Args:
            text: The query; line breaks of any system.
        """
        words = split_words(text, official=self.official)
        draw = _Draw(str(self.seed), self.kind, words.text)
        return KINDS[self.kind](words, self, draw)

    def count(self, words: int) -> int:
        """Return how many words of so many are to change.

        Args:
            words: Of a query, protected ones left out.
        """
        return max(int(self.share * words), 1)


def _replaced(words: Words, new: Mapping[int, str]) -> str:
    """Return the text with some words, by their index, replaced."""
    parts, place = [], 0
    for index in sorted(new):
        start, end = words.spans[index]
        parts += [words.text[place:start], new[index]]
        place = end
    return "".join([*parts, words.text[place:]])


def _in_words(
    words: Words,
    how: Variation,
    draw: _Draw,
    eligible: Sequence[int],
    change: Callable[[str], str | None],
) -> Varied:
    """Change as many words as the strength says, in random order; one that cannot change is passed over."""
    wanted, new = how.count(len(words.spans)), {}
    held = words.words
    for index in draw.order(eligible):
        changed = change(held[index])
        if changed is not None:
            new[index] = changed
            if len(new) == wanted:
                break
    kept = "" if new else "nothing eligible"
    return Varied(_replaced(words, new), len(held), len(eligible), len(new), kept)


def _may_change(word: str, how: Variation, shortest: int) -> bool:
    if len(word) < shortest:
        return False
    # The study's stop words are compared as they stand, so that "What" may change.
    return word not in STOP_WORDS if how.official else is_latin(word) and word.lower() not in STOP_WORDS


# Six edits of one word; each draws among what would change it.


def _swap(word: str, draw: _Draw) -> str | None:
    places = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    if not places:
        return None
    i = draw.one(places)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _substitute(word: str, draw: _Draw) -> str:
    i = draw.below(len(word))
    return word[:i] + draw.one(_ASCII.replace(word[i], "")) + word[i + 1 :]


def _delete(word: str, draw: _Draw) -> str:
    i = draw.below(len(word))
    return word[:i] + word[i + 1 :]


def _insert(word: str, draw: _Draw) -> str:
    i = draw.below(len(word))
    return word[:i] + draw.one(_ASCII) + word[i:]


def _press_beside(word: str, draw: _Draw) -> str | None:
    """A neighbouring key, where a drawn character has one."""
    i = draw.below(len(word))
    keys = _NEIGHBOURS.get(word[i].lower())
    return None if keys is None else _typed(word, i, draw.one(keys))


def _press_any(word: str, draw: _Draw) -> str:
    """The same, and any letter's key where the character has no neighbour (FixWordSwapQWERTY)."""
    i = draw.below(len(word))
    keys = _NEIGHBOURS.get(word[i].lower(), "".join(_NEIGHBOURS))
    return _typed(word, i, draw.one(keys))


def _typed(word: str, place: int, key: str) -> str:
    shifted = word[place].isupper()
    return word[:place] + (key.upper() if shifted else key) + word[place + 1 :]


EDITS: tuple[Callable[[str, _Draw], str | None], ...] = (
    _swap,
    _substitute,
    _delete,
    _insert,
    _press_beside,
    _press_any,
)


def _misspelled(words: Words, how: Variation, draw: _Draw) -> Varied:
    """One of six edits, drawn a query, in some of its longer words."""
    edit = draw.one(EDITS)
    eligible = [i for i, word in enumerate(words.words) if _may_change(word, how, _SHORTEST)]
    return _in_words(words, how, draw, eligible, lambda word: edit(word, draw))


def _reordered(words: Words, how: Variation, draw: _Draw) -> Varied:
    """Random pairs of different words swapped, until as many stand elsewhere as the strength says."""
    held = words.words
    pairs = -(-how.count(len(held)) // 2)
    order, new = list(draw.order(range(len(held)))), dict[int, str]()
    while len(order) > 1 and len(new) < 2 * pairs:
        first = order.pop()
        place = next((p for p in reversed(range(len(order))) if held[order[p]] != held[first]), None)
        if place is None:
            # All that are left are equal.
            break
        second = order.pop(place)
        new[first], new[second] = held[second], held[first]
    kept = "" if new else "nothing eligible"
    return Varied(_replaced(words, new), len(held), len(held), len(new), kept)


def _shuffled(words: Words, how: Variation, draw: _Draw) -> Varied:
    """All words in random order, punctuation and protected pieces in their places; ours, not the study's."""
    del how
    held = words.words
    new = dict(enumerate(draw.order(held)))
    moved = {index: word for index, word in new.items() if word != held[index]}
    kept = "" if len(set(held)) > 1 else "nothing eligible"
    return Varied(_replaced(words, moved), len(held), len(held), len(moved), kept)


def _with_synonyms(words: Words, how: Variation, draw: _Draw) -> Varied:
    """One of the synonyms of all senses, in some of the words that have any."""
    source = how.synonyms
    assert source is not None
    held = words.words
    known: dict[str, Sequence[str]] = {
        word: source.synonyms(word, restored=not how.official)
        for word in dict.fromkeys(held)
        if _may_change(word, how, 1)
    }
    eligible = [i for i, word in enumerate(held) if known.get(word)]
    return _in_words(words, how, draw, eligible, lambda word: draw.one(known[word]))


def _naturalised(words: Words, how: Variation, draw: _Draw) -> Varied:
    """Lower case, stop words out, single blanks; protected pieces as they were."""
    del how, draw
    text, parts, place = words.text, [], 0
    for start, end in (*words.protected, (len(text), len(text))):
        parts += [_natural(text[place:start]), text[start:end]]
        place = end
    new, total = "".join(parts).strip(), len(words.spans)
    if not new:
        return Varied(text, total, total, 0, "emptied")
    return Varied(new, total, total, sum(_is_natural(text, *span) for span in words.spans))


def _natural(piece: str) -> str:
    """Lower a piece and drop its stop words; what joins it to a protected piece stays one blank or break."""
    kept = " ".join(word for word in piece.lower().split() if word not in STOP_WORDS)
    before = _blank(piece[: len(piece) - len(piece.lstrip())])
    after = _blank(piece[len(piece.rstrip()) :])
    return f"{before}{kept}{after}" if kept else before or after


def _is_natural(text: str, start: int, end: int) -> bool:
    """Whether a word is lowered, or left out: the study drops stop words that blanks surround, no others."""
    word = text[start:end]
    alone = text[start - 1 : start].strip() == "" and text[end : end + 1].strip() == ""
    return word != word.lower() or (alone and word in STOP_WORDS)


def _blank(space: str) -> str:
    return "" if not space else "\n" if "\n" in space else " "


def _keywords(words: Words, how: Variation, draw: _Draw) -> Varied:
    """The ten content words that come most often, in order, each once, and every protected piece; ours."""
    del how, draw
    text = words.text
    first: dict[str, tuple[int, int]] = {}
    counts: dict[str, int] = {}
    for start, end in words.spans:
        word = text[start:end].lower()
        if word not in STOP_WORDS and len(word) > 1:
            first.setdefault(word, (start, end))
            counts[word] = counts.get(word, 0) + 1
    most = sorted(first, key=lambda word: (-counts[word], first[word]))[:_KEYWORDS]
    pieces = sorted([(first[word][0], word) for word in most] + [(s, text[s:e]) for s, e in words.protected])
    new = " ".join(piece for _, piece in pieces)
    total = len(words.spans)
    if not new:
        return Varied(text, total, total, 0, "emptied")
    return Varied(new, total, total, total - len(most) if new != text else 0)


def _paraphrased(words: Words, how: Variation, draw: _Draw) -> Varied:
    """A text that a file or an endpoint gave, unless what is protected is missing in it."""
    del draw
    old, held = words.text, words.words
    new = plain_breaks((how.paraphrases or {}).get(old, "")).strip()
    if not new:
        return Varied(old, len(held), len(held), 0, "no paraphrase")
    if any(old[start:end] not in new for start, end in words.protected):
        return Varied(old, len(held), len(held), 0, "protected text lost")
    left = set(split_words(new, official=how.official).words)
    return Varied(new, len(held), len(held), sum(word not in left for word in held))


# Every kind, in the order of a profile.
KINDS: dict[str, Callable[[Words, Variation, _Draw], Varied]] = {
    "misspelling": _misspelled,
    "reordering": _reordered,
    "synonyms": _with_synonyms,
    "naturalising": _naturalised,
    "keywords": _keywords,
    "shuffle": _shuffled,
    "paraphrase": _paraphrased,
}
# Those that draw, and those whose strength is a share of the words.
DRAWN = frozenset({"misspelling", "reordering", "synonyms", "shuffle"})
_BY_SHARE = frozenset({"misspelling", "reordering", "synonyms"})
