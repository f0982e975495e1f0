"""A query's words, and the pieces of it that stay whole."""

from __future__ import annotations

import time
import unicodedata

import pytest

from reasonembed_mteb.robustness.words import STOP_WORDS, is_latin, protected_spans, split_words


def kept(text: str) -> list[str]:
    return [text[start:end] for start, end in protected_spans(text)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Why is the sky blue? It's well-known.", []),
        ("call `np.where(x > 0)` twice, then ``a ` b``.", ["`np.where(x > 0)`", "``a ` b``"]),
        ("so:\n```\nfor i in x:\n  print(i)\n```\nwhy?", ["```\nfor i in x:\n  print(i)\n```"]),
        ("so:\n~~~py\nx\n~~~\nwhy?\n```\nleft open\nhere", ["~~~py\nx\n~~~", "```\nleft open\nhere"]),
        ("let $x^2 + y$ and $$\\int f$$ be", ["$x^2 + y$", "$$\\int f$$"]),
        ("it costs $5 and then $7 more", ["$5", "$7"]),
        ("with \\(a b\\) or \\[c d\\] here", ["\\(a b\\)", "\\[c d\\]"]),
        ("\\begin{align}a b\\end{align} holds", ["\\begin{align}a b\\end{align}"]),
        ("the <script src=a> tag and 1 < 2 here", ["<script src=a>", "1 < 2"]),
        ("see https://a.org/b?c=d, or www.x.org.", ["https://a.org/b?c=d", "www.x.org"]),
        ("write to me@home.org about file.txt", ["me@home.org", "file.txt"]),
        ("in /usr/lib/x and ./run and a/b/c", ["/usr/lib/x", "./run", "a/b/c"]),
        ("use torch_dtype, camelCase and x86", ["torch_dtype", "camelCase", "x86"]),
        ("where a = b + c holds", ["a = b + c"]),
        (
            "the matrix \U0001d434 and \u2211 of \U0001d465\u2081",
            ["\U0001d434", "\u2211", "\U0001d465\u2081"],
        ),
        ("call foo(bar) or List::new", ["foo(bar", "List::new"]),
        ("the --flag of 2016 at 30%", ["--flag", "2016", "30%"]),
        ("so\n\n    x is\n    y is\n\nand on", ["    x is", "    y is"]),
        ("first\nimport os\nx is;\nlast", ["import os", "x is;"]),
        ("e.g. the U.S. and/or he/she - not that", []),
    ],
)
def test_pieces_that_stay_whole(text: str, pieces: list[str]) -> None:
    found = kept(text)
    assert [piece for piece in found if piece not in pieces] == []
    assert [piece for piece in pieces if piece not in found] == []


def test_words_are_what_is_left() -> None:
    words = split_words("Don't call `x y` on the well-known 2 naïve (old) ones!")
    assert words.words == ["Don't", "call", "on", "the", "well-known", "naïve", "old", "ones"]


@pytest.mark.parametrize(
    "text",
    [
        "भारत की राजधानी क्या है",
        "ภาษาไทยนี้ ดีมาก ครับ",
        "שָׁלוֹם עוֹלָם מה",
        "می\u200cخواهم بدانم",  # noqa: RUF001
        "ശ്രീ\u200d കേരളം",
        "cafe\u0301 re\u0301sume\u0301 l'e\u0301te\u0301 nai\u0308ve-nai\u0308ve",
        "ಕ\u0cf3 ລາວ\u0ece ok",
    ],
)
def test_combining_marks_stay_with_their_letters(text: str) -> None:
    assert split_words(text).words == text.split()


def test_every_mark_of_this_pythons_unicode_is_known() -> None:
    marks = [char for char in map(chr, range(0x10000)) if unicodedata.category(char) in ("Mn", "Mc", "Me")]
    assert [mark for mark in marks if split_words(f"a{mark}b").words != [f"a{mark}b"]] == []
    # Space, punctuation and signs of every script still part words.
    parts = "\u0964\u0e3f\u200b\u2028\u3001\u0f0b\u17d4\u2013"
    assert [part for part in parts if split_words(f"a{part}b").words != ["a", "b"]] == []


def test_the_study_protects_nothing_and_has_textattacks_words() -> None:
    words = split_words("_Don't call' `np.where(x_1_)` on -5!", official=True)
    assert words.protected == []
    assert words.words == ["Don't", "call", "np", "where", "x_1", "on", "5"]


def test_line_breaks_do_not_matter() -> None:
    text = "Why?\n```\na b\n```\nand\n\n    code here\n"
    assert (
        split_words(text.replace("\n", "\r\n")) == split_words(text) == split_words(text.replace("\n", "\r"))
    )


def test_latin_words() -> None:
    assert all(map(is_latin, ("word", "naïve", "don't", "l\u2019eau", "well-known", "Łódź")))
    assert not any(map(is_latin, ("", "слово", "cafe\u0301", "光", "x1", "a_b", "-a", "a-", "\u00d7")))


def test_stop_words_are_nltks_179() -> None:
    assert len(STOP_WORDS) == 179
    assert {"i", "you've", "that'll", "wouldn't"} <= STOP_WORDS
    # Of sklearn's list, and of nltk's later one.
    assert not {"could", "i'll", "across"} & STOP_WORDS


@pytest.mark.parametrize(
    "part",
    [
        "def f(x):\n    return x_1 + y;\n",
        "`",
        "``` a\n",
        "$a ",
        "\\(",
        "\\begin{a}",
        "<a ",
        "a.b",
        "- ",
        "{ ",
        "光",
    ],
)
def test_fifty_kilobytes_of_anything_take_no_time(part: str) -> None:
    text = part * (50_000 // len(part.encode()))
    started = time.process_time()
    words = split_words(text)
    # Seconds: a quadratic pattern takes ten.
    assert time.process_time() - started < 2
    assert words.text == text
