"""A query's words: where each is, which stay whole (code, formulas, LaTeX, addresses), and stop words.

Results must be the same bytes everywhere, so a word is made of characters of the Basic Multilingual Plane
and of mathematics: what counts as a letter beyond them has changed between Python 3.11 and 3.13.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Spans = Sequence[tuple[int, int]]

# nltk's English stop words as they were until its data of 2024 (the later list has 198).
_STOPPED = """
i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself
yourselves he him his himself she she's her hers herself it it's its itself they them their
theirs themselves what which who whom this that that'll these those am is are was were be been
being have has had having do does did doing a an the and but if or because as until while of at
by for with about against between into through during before after above below to from up down
in out on off over under again further then once here there when where why how all any both each
few more most other some such no nor not only own same so than too very s t can will just don
don't should should've now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn
doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma mightn mightn't mustn mustn't needn
needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won won't wouldn wouldn't
"""
STOP_WORDS = frozenset(_STOPPED.split())

# A letter or digit of the Basic Multilingual Plane or of mathematics (such as an italic x), or an underscore.
_CHAR = r"[^\W\U00010000-\U0001d3ff\U0001d800-\U0010ffff]"
# What belongs to the letter before it: the combining marks (Mn, Mc, Me) of the Basic Multilingual Plane in
# Unicode 16, with unassigned places between them. A fixed list, as Pythons differ in their Unicode.
_MARKS = """
0300-036f 0483-0489 0591-05bd 05bf 05c1-05c2 05c4-05c5 05c7 0610-061a 064b-065f 0670 06d6-06dc 06df-06e4
06e7-06e8 06ea-06ed 0711 0730-074a 07a6-07b0 07eb-07f3 07fd 0816-0819 081b-0823 0825-0827 0829-082d 0859-085b
0897-089f 08ca-08e1 08e3-0903 093a-093c 093e-094f 0951-0957 0962-0963 0981-0983 09bc 09be-09cd 09d7 09e2-09e3
09fe-0a03 0a3c-0a51 0a70-0a71 0a75 0a81-0a83 0abc 0abe-0acd 0ae2-0ae3 0afa-0b03 0b3c 0b3e-0b57 0b62-0b63 0b82
0bbe-0bcd 0bd7 0c00-0c04 0c3c 0c3e-0c56 0c62-0c63 0c81-0c83 0cbc 0cbe-0cd6 0ce2-0ce3 0cf3-0d03 0d3b-0d3c
0d3e-0d4d 0d57 0d62-0d63 0d81-0d83 0dca-0ddf 0df2-0df3 0e31 0e34-0e3a 0e47-0e4e 0eb1 0eb4-0ebc 0ec8-0ece
0f18-0f19 0f35 0f37 0f39 0f3e-0f3f 0f71-0f84 0f86-0f87 0f8d-0fbc 0fc6 102b-103e 1056-1059 105e-1060 1062-1064
1067-106d 1071-1074 1082-108d 108f 109a-109d 135d-135f 1712-1715 1732-1734 1752-1753 1772-1773 17b4-17d3 17dd
180b-180d 180f 1885-1886 18a9 1920-193b 1a17-1a1b 1a55-1a7f 1ab0-1b04 1b34-1b44 1b6b-1b73 1b80-1b82 1ba1-1bad
1be6-1bf3 1c24-1c37 1cd0-1cd2 1cd4-1ce8 1ced 1cf4 1cf7-1cf9 1dc0-1dff 20d0-20f0 2cef-2cf1 2d7f 2de0-2dff
302a-302f 3099-309a a66f-a672 a674-a67d a69e-a69f a6f0-a6f1 a802 a806 a80b a823-a827 a82c a880-a881 a8b4-a8c5
a8e0-a8f1 a8ff a926-a92d a947-a953 a980-a983 a9b3-a9c0 a9e5 aa29-aa36 aa43 aa4c-aa4d aa7b-aa7d aab0 aab2-aab4
aab7-aab8 aabe-aabf aac1 aaeb-aaef aaf5-aaf6 abe3-abea abec-abed fb1e fe00-fe0f fe20-fe2f
"""
# With the two joiners that shape letters inside words (of Persian and Indic scripts).
_MARK = "".join("-".join(f"\\u{end}" for end in one.split("-")) for one in (*_MARKS.split(), "200c-200d"))
# textattack 0.3.11, shared/utils/strings.py: these may stand in a word, not at its ends
# (it takes back-ticks for letters too, which makes words of code fences).
_STUDY_WORD = re.compile(rf"(?!_){_CHAR}(?:(?:{_CHAR}|['*@-])*(?!_){_CHAR})?")
_CHARS = rf"(?:{_CHAR}++[{_MARK}]*+)++"
_RUN = re.compile(_CHARS)
_WORD = re.compile(rf"{_CHARS}(?:['\u2019-]{_CHARS})*+")
_LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_LATIN = re.compile(rf"[{_LETTER}]+(?:['\u2019-][{_LETTER}]+)*")

# Blocks and inline marks; each alternative ends, at the latest, where its line or the text does.
_MARKED = re.compile(
    r"(?P<fence>^[ \t]*+(```++|~~~++)[^\n]*+\n(?:.*?^[ \t]*\2[ \t]*$|.*))"
    r"|\\begin\{(?P<env>\w+\*?)\}.{0,4000}?\\end\{(?P=env)\}"
    r"|\$\$[^$]{1,5000}\$\$"
    r"|\\\[.{0,1000}?\\\]|\\\(.{0,1000}?\\\)"
    r"|\$(?=[^\s$])(?:[^$\n\\]|\\.){0,500}?(?<=\S)\$(?!\d)"
    r"|(?<!`)(?P<tick>`+)(?!`)[^\n]{1,2000}?(?<!`)(?P=tick)(?!`)"
    r"|</?[A-Za-z!][^<>\n]{0,500}>",
    re.MULTILINE | re.DOTALL,
)
# Lines that only code begins or ends with.
_CODE_LINE = re.compile(
    r"\s*(?:[#>$]\s?(?:include|define)\b|>>>\s|\$\s\w|def\s+\w+\s*\(|class\s+\w+\s*[(:{]|from\s+[\w.]+\s+import\b"
    r"|import\s+[\w.]+\s*;?$|return\b.*;$|(?:public|private|static|const|var|let)\s+\w+.*[={;(]"
    r"|(?:for|while|if|elif|else|try|except|with)\b[^.?!]*:$|[)\]}>;,]+$)"
    r"|.*[;{}]\s*$"
)
_SPACED = re.compile(r"(?:[ ]{4,}|\t)\S")
# Whole tokens: addresses, names of files and variables, commands of LaTeX, operators, numbers with letters.
_TOKEN = re.compile(r"\S+")
_CODE_TOKEN = re.compile(
    r"[_\\{}=^|<>~`$\u2200-\u22ff\u00d7\u00f7\U0001d400-\U0001d7ff]|://|^www\.|\w@\w|\w\.[A-Za-z]{2,}\b(?<!\.\.)|::|->|\w\(|\)\."
    r"|^[-+]?\d|\d[A-Za-z]|[A-Za-z]\d|[a-z][A-Z]|^[./~]*/\w|\w/\w+/|^-{1,2}\w|\w[+*]\w|\[\w*\]"
)
# Punctuation around a token.
_OPENING, _CLOSING = ",;:!?\"'(\u201c\u2018", ".,;:!?\"')\u201d\u2019"
_OPERATOR = re.compile(r"[-+*/%=<>\u2264\u2265\u2248\u2260:&|]{1,3}")


def plain_breaks(text: str) -> str:
    """Return text with line feeds alone as line breaks.

    Args:
        text: Of any system.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True, slots=True)
class Words:
    """A query, taken apart.

    Attributes:
        text: With line feeds alone as line breaks.
        spans: Begin and end of each word that is not protected, in order.
        protected: Begin and end of each piece that stays whole, in order, without overlaps.
    """

    text: str
    spans: list[tuple[int, int]]
    protected: list[tuple[int, int]]

    @property
    def words(self) -> list[str]:
        """The words of `spans`."""
        return [self.text[start:end] for start, end in self.spans]


def split_words(text: str, *, official: bool = False) -> Words:
    """Return a query's words.

    Args:
        text: A query.
        official: As the study: textattack's words, nothing protected.
    """
    text = plain_breaks(text)
    if official:
        return Words(text, [found.span() for found in _STUDY_WORD.finditer(text)], [])
    protected = protected_spans(text)
    spans = [
        found.span()
        for start, end in _gaps(protected, len(text))
        for found in _WORD.finditer(text, start, end)
    ]
    return Words(text, spans, protected)


def letter_runs(text: str) -> list[str]:
    """Return the runs of letters, digits and underscores of a text, nothing protected; "don't" has two.

    Args:
        text: Any.
    """
    return _RUN.findall(text)


def is_latin(word: str) -> bool:
    """Return whether a word is made of letters of the Latin script, with apostrophes or hyphens inside.

    A word with combining marks is none, so that no edit of letters parts a mark from its letter.

    Args:
        word: One word.
    """
    return _LATIN.fullmatch(word) is not None


def protected_spans(text: str) -> list[tuple[int, int]]:
    """Return the pieces of a text that a variation leaves whole.

    Code between back-ticks, in fences, in tags, indented after a blank line, or on lines that only code has;
    formulas and LaTeX; addresses, paths, names with underscores, digits or capitals inside; both sides of a
    lone operator.

    Args:
        text: With line feeds alone as line breaks.

    Returns:
        Begin and end of each, in order, without overlaps.
    """
    marked = [found.span() for found in _MARKED.finditer(text)] if _may_be_marked(text) else []
    marked = _joined([*marked, *_code_lines(text, marked)])
    tokens = [span for start, end in _gaps(marked, len(text)) for span in _code_tokens(text, start, end)]
    return _joined([*marked, *tokens]) if tokens else marked


def _may_be_marked(text: str) -> bool:
    return any(mark in text for mark in "`$\\<~")


def _gaps(spans: Spans, length: int) -> Iterator[tuple[int, int]]:
    before = 0
    for start, end in spans:
        if start > before:
            yield before, start
        before = end
    if length > before:
        yield before, length


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _code_lines(text: str, marked: Spans) -> Iterator[tuple[int, int]]:
    """Yield lines outside marked pieces that are code by their form, or indented below a blank line."""
    if "\n" not in text:
        return
    starts = [start for start, _ in marked]
    place, blank, indented = 0, False, False
    for line in text.split("\n"):
        end = place + len(line)
        inside = _inside(place, marked, starts)
        indented = not inside and bool(_SPACED.match(line)) and (blank or indented)
        if not inside and line.strip() and (indented or _CODE_LINE.match(line)):
            yield place, end
        blank = not line.strip()
        place = end + 1


def _inside(place: int, spans: Spans, starts: Sequence[int]) -> bool:
    index = bisect_right(starts, place) - 1
    return index >= 0 and place < spans[index][1]


def _code_tokens(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield tokens that are no words of a sentence, without the punctuation around them."""
    spans = [found.span() for found in _TOKEN.finditer(text, start, end)]
    for index, (begin, stop) in enumerate(spans):
        token = text[begin:stop]
        if token.isascii() and token.isalpha() and (token[1:].islower() or token.isupper()):
            continue
        if _OPERATOR.fullmatch(token) and token not in ("-", "--", "/", "&", ":", "*"):
            # Both sides of an operator are the formula.
            before, after = spans[max(index - 1, 0)], spans[min(index + 1, len(spans) - 1)]
            yield before[0], after[1]
            continue
        core = token.lstrip(_OPENING).rstrip(_CLOSING)
        if core and _CODE_TOKEN.search(token if "(" in core or "[" in token else core):
            at = begin + token.index(core)
            yield at, at + len(core)
