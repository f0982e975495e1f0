r"""Text from data, names, paths and servers on its way out: one function for each medium that it goes to.

Whoever wrote a document, an id or a folder's name may not act on the reader's terminal, spreadsheet, LaTeX
run or page, nor choose where a file is written. Characters that act without being seen are shown by their
code in every medium (ESC as ``\x1b``, a right-to-left override as ``\u202e``), and each medium's own syntax
is escaped on top of that.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

# Control (Cc) and format characters (Cf: bidirectional marks, zero-width ones, tags), halves of a surrogate
# pair, and the line and paragraph separators, which some programs take for a line break.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Letters and marks that are drawn as nothing: the grapheme joiner, Khmer's inherent vowels, Hangul's fillers.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Text without any of these is printed as it is, which is nearly all text.
_PLAIN = re.compile(r"[ -~]*")

_MARKDOWN = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    **{char: f"\\{char}" for char in "\\|`*_[]~!#$"},
}
# GitHub makes a link of a bare address, and escaping any character with a backslash does not stop it.
_ADDRESS = re.compile(r"(?<=\w):(?=//)|(?<=\bwww)\.", re.IGNORECASE)
# At the beginning of a line: lists and rules; a dash alone is an empty cell, and 39.86 begins no list.
_MARKDOWN_START = re.compile(r"^([-+](?=[\s-])|\d+(?=[.)](?:\s|$)))")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    # After the end of a row, a bracket would be read as its height and a star as its other form.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
# Names that Windows gives to devices, with any extension.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# Bytes of a file's name; file systems allow 255, and callers add a stem or an extension.
_NAME_BYTES = 160


@cache
def _code(char: str) -> str:
    if char not in _BLANK and unicodedata.category(char) not in _UNSEEN:
        return char
    number = ord(char)
    width = (2, "x") if number < 0x100 else (4, "u") if number < 0x10000 else (8, "U")
    return _SHORT.get(char) or f"\\{width[1]}{number:0{width[0]}x}"


def visible(text: object, keep: str = "") -> str:
    """Show characters that act without being seen by their code; for a terminal, and below every medium.

    Args:
        text: Text, or what has text, such as an error or a path.
        keep: Characters to leave as they are.

    Returns:
        One line: line breaks and tabs are shown too unless they are kept.
    """
    given = str(text)
    if _PLAIN.fullmatch(given):
        return given
    return "".join(char if char in keep else _code(char) for char in given)


def visible_lines(text: object) -> str:
    """Show the same characters but keep line breaks and tabs; for whole texts and tables.

    Args:
        text: Text, or what has text.
    """
    return visible(text, keep="\n\t")


def markdown(text: object) -> str:
    """Return text as one line of Markdown that renders as the text: no markup, table cell, HTML or link.

    Args:
        text: Text, or what has text.
    """
    line = "".join(_MARKDOWN.get(char, char) for char in visible(" ".join(str(text).split())))
    line = _ADDRESS.sub(lambda found: f"&#{ord(found[0])};", line)
    return _MARKDOWN_START.sub(_start, line)


def _start(found: re.Match[str]) -> str:
    # A number becomes a list by the character after it.
    return f"{found[1]}\\" if found[1].isdigit() else f"\\{found[1]}"


def latex(text: object) -> str:
    """Return text as one line of LaTeX that prints the text: no command, formula, comment or option.

    Args:
        text: Text, or what has text.
    """
    return "".join(_LATEX.get(char, char) for char in visible(" ".join(str(text).split())))


def csv_cell(value: Any) -> Any:  # noqa: ANN401 - what csv writes
    """Return a cell that no spreadsheet runs as a formula; numbers, also as text, stay what they are.

    Args:
        value: A number or text.
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    runs = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text)
    return f"'{text}" if runs else text


def html_data(value: Any) -> Any:  # noqa: ANN401 - plain data
    """Return plain data for a page, every text in it visible; the page itself puts text in as text.

    Args:
        value: Mappings, lists, texts and numbers.
    """
    if isinstance(value, str):
        return visible_lines(value)
    if isinstance(value, dict):
        return {html_data(key): html_data(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [html_data(inner) for inner in value]
    return value


def visible_json(value: Any, indent: int | None = 2) -> str:  # noqa: ANN401 - plain data
    """Return plain data as JSON in which unseen characters are escapes, so that nothing is lost.

    Args:
        value: Mappings, lists, texts and numbers.
        indent: Spaces a level.

    Raises:
        ValueError: If a number is NaN or infinite, which other parsers refuse.
    """
    import json

    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_json_code(char) for char in text)


@cache
def _json_code(char: str) -> str:
    import json

    # json itself writes the controls below the blank as escapes; a line break here is one between members.
    return char if char == "\n" or _code(char) == char else json.dumps(char)[1:-1]


def figure_text(text: object) -> str:
    """Return text for matplotlib and its SVG: a dollar sign starts no formula, and line breaks stay.

    Args:
        text: Text, or what has text.
    """
    return visible(text, keep="\n").replace("$", r"\$")


def file_name(text: object) -> str:
    """Return a file or folder name that stays in its folder, on every file system.

    Args:
        text: A name from data, such as a model's; a slash becomes two underscores, as in MTEB's folders.

    Returns:
        Letters, digits and ``_ . @ -`` alone; equal texts give equal names.
    """
    name = re.sub(r"[^\w.@-]+", "_", str(text).replace("/", "__"))
    if not name.strip("._") or name.startswith(".") or _RESERVED.fullmatch(name):
        # Hidden, the folder itself, the one above it, or a device.
        name = f"_{name}"
    if len(name.encode()) > _NAME_BYTES:
        # Loads OpenSSL, which `--help` need not wait for.
        import hashlib

        digest = hashlib.sha256(str(text).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        name = name.encode()[: _NAME_BYTES - 13].decode("utf-8", "ignore") + f"-{digest}"
    return name
