"""Errors: one line, the first of many names."""

from __future__ import annotations

from reasonembed_mteb.errors import ReasonEmbedError, first_names, one_line


def test_one_line() -> None:
    assert one_line(ReasonEmbedError("a sentence; do this\nwith x")) == r"a sentence; do this\nwith x"
    assert one_line(ValueError(" no\nmore ")) == "ValueError: no"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_the_first_names() -> None:
    assert first_names([]) == ""
    assert first_names(iter("abc"), 3) == "a, b, c"
    assert first_names([Ellipsis, 1, "x"], 2) == "Ellipsis, 1 and 1 more"
    assert first_names(map(str, range(2000))) == "0, 1, 2, 3, 4 and 1,995 more"


def test_errors_become_one_line() -> None:
    assert one_line(ReasonEmbedError("a; b")) == "a; b"
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(MemoryError()) == "MemoryError"
