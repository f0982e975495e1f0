"""Text on its way out: each medium by itself, and the streams and names that hold it."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.cli.show import VisibleStream, set_up_logging, visible_output
from reasonembed_mteb.escaping import (
    csv_cell,
    figure_text,
    file_name,
    html_data,
    latex,
    markdown,
    visible,
    visible_json,
    visible_lines,
)
from reasonembed_mteb.training.modelcard import public_name

if TYPE_CHECKING:
    from pathlib import Path

ESCAPE, BELL, OVERRIDE = "\x1b", "\x07", "\u202e"
UNSEEN = [
    *map(chr, [*range(0x20), *range(0x7F, 0xA0)]),
    *"\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c\ufeff",
    *"\u2028\u2029\u00ad\u2060\u115f\u3164\U000e0041\ud800\udfff",
]


@pytest.mark.parametrize("char", UNSEEN, ids=lambda char: f"{ord(char):04x}")
def test_what_acts_unseen_is_shown_in_every_medium(char: str) -> None:
    for shown in (write(f"a{char}b") for write in (visible, markdown, latex, figure_text)):
        assert char not in shown or char in " \n"
        assert shown.isprintable() or char == "\n"
    assert char not in csv_cell(f"a{char}b")
    assert json.loads(visible_json([f"a{char}b"])) == [f"a{char}b"]
    # The line breaks between the members are JSON's own.
    assert char not in visible_json([f"a{char}b"], indent=None)


def test_the_codes_are_pythons() -> None:
    assert visible(f"{ESCAPE}]0;x{BELL}\r\n\t{OVERRIDE}\U000e0041\ud83d") == (
        r"\x1b]0;x\x07\r\n\t\u202e\U000e0041\ud83d"
    )
    assert visible_lines(f"a\n\tb\r{ESCAPE}") == "a\n\tb\\r\\x1b"


@pytest.mark.parametrize("text", ["plain", "Ünïcödé 日本語 عربي 🙂", "back\\slash [red] | $x$", ""])
def test_what_can_be_seen_stays(text: str) -> None:
    assert visible(text) == visible_lines(text) == text
    assert html_data({text: [text, 1, None]}) == {text: [text, 1, None]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [("39.86", "39.86"), ("-1.5", "-1.5"), ("1. one", "1\\. one"), ("2)", "2\\)"), ("-", "-")],
)
def test_a_figure_begins_no_list(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_markdown_renders_as_the_text() -> None:
    hostile = "| `a` | [x](http://y) <b>&amp; **c** _d_ ~e~ # $f$ !\n\n# h www.z.de"
    shown = markdown(hostile)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[|`*_\[\]~#$!]", shown.replace("&#", ""))
    assert "<" not in shown
    assert "://" not in shown
    assert "www." not in shown
    pytest.importorskip("markdown_it")
    from markdown_it import MarkdownIt

    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(f"| a |\n|---|\n| {shown} |\n")
    assert "<b>" not in html
    assert "<a " not in html
    assert html.count("<td>") == 1


@pytest.mark.parametrize("start", ["- a", "+ a", "1. a", "2) a", "===", "--- ", "> a", "# a"])
def test_markdown_at_the_beginning_of_a_line_is_text(start: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    html = markdown_it.MarkdownIt("commonmark").render(markdown(start))
    assert re.fullmatch(r"<p>[^<]*</p>\n", html), html


LATEX = [r"\input{/etc/passwd}", "^^5cinput{x}", "a%b", "$x^2$", "a_b & c # {d} ~", "[5pt] x", "* y", "<>"]


def test_latex_prints_the_text() -> None:
    assert latex(r"\input{x}") == r"\textbackslash{}input\{x\}"
    assert "^^" not in latex("^^5c")
    assert latex("[5pt]") == "{[}5pt{]}"
    assert latex("a\n\nb%") == r"a b\%"
    for text in LATEX:
        bare = re.sub(r"\\(text\w+\{\}|[&%$#_{}])|\{[\[\]*]\}", "", latex(text))
        assert not re.search(r"[\\&%$#_{}~^<>\[\]*]", bare)


@pytest.mark.slow
def test_latex_compiles(tmp_path: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("pdflatex is not installed")
    rows = "\n".join(f"{latex(text)} & {latex(text)} \\\\" for text in LATEX)
    source = (
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\begin{document}\\begin{tabular}{ll}\n"
        f"{rows}\n\\end{{tabular}}\\end{{document}}\n"
    )
    (tmp_path / "x.tex").write_text(source, encoding="utf-8")
    done = subprocess.run(
        [program, "-interaction=nonstopmode", "-halt-on-error", "x.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1+1", "-1+1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n=1", "\uff1d1", "-x", "=cmd|' /C'!A0"],
)
def test_a_cell_from_data_is_no_formula(text: str) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerow([csv_cell(text)])
    (cell,) = next(csv.reader(io.StringIO(stream.getvalue())))
    assert cell[0] in "'\\"


@pytest.mark.parametrize("value", [-0.5, 3, None, "-0.5", "+1e-7", "12", "a=b", "x-y", ""])
def test_numbers_and_ordinary_cells_stay(value: object) -> None:
    assert csv_cell(value) == value


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a\0b",
        "CON",
        "nul.txt",
        ".hidden",
        "a/../../b",
        "a\\..\\b",
        "x" * 999,
    ],
)
def test_a_name_from_data_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    safe = file_name(name)
    assert (tmp_path / safe).resolve().parent == tmp_path.resolve()
    assert re.fullmatch(r"[\w@-][\w.@-]*", safe)
    assert safe.upper() not in ("CON", "NUL.TXT")
    (tmp_path / safe).touch()
    assert file_name("org/model-1.5") == "org__model-1.5"
    assert file_name("x" * 999 + "a") != file_name("x" * 999 + "b")


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_what_a_library_writes_is_shown_and_progress_bars_are_drawn() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    text = f"\r50%{ESCAPE}[A{ESCAPE}[31mred{ESCAPE}[0m {ESCAPE}]0;title{BELL}{OVERRIDE}\n"
    for stream in (pipe, terminal):
        VisibleStream(stream).write(text)
    assert pipe.getvalue() == r"\r50%\x1b[A\x1b[31mred\x1b[0m \x1b]0;title\x07\u202e" + "\n"
    assert terminal.getvalue() == (
        f"\r50%{ESCAPE}[A{ESCAPE}[31mred{ESCAPE}[0m " + r"\x1b]0;title\x07\u202e" + "\n"
    )


def test_a_stream_of_ascii_shows_what_it_cannot_hold() -> None:
    held = io.BytesIO()
    stream = io.TextIOWrapper(held, encoding="ascii")
    VisibleStream(stream).write("é\ud800")
    stream.flush()
    assert held.getvalue() == rb"\xe9\ud800"


def test_our_own_log_messages_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(logging, "root", root)
    monkeypatch.setattr(logging.Logger, "manager", logging.Manager(root))
    set_up_logging(debug=False)
    logging.getLogger("reasonembed_mteb.x").warning("id %s", f"a\nFAILED{ESCAPE}")
    logging.getLogger("library").warning("two\nlines%s", ESCAPE)
    assert capsys.readouterr().err == "id a\\nFAILED\\x1b\ntwo\nlines\\x1b\n"


def test_the_streams_come_back() -> None:
    before = sys.stdout, sys.stderr
    with visible_output():
        assert isinstance(sys.stderr, VisibleStream)
    with pytest.raises(KeyError), visible_output():
        raise KeyError
    assert (sys.stdout, sys.stderr) == before


def test_a_local_path_is_not_written_into_a_model_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret project" / "model"
    secret.mkdir(parents=True)
    monkeypatch.chdir(secret.parent)
    for name in (str(secret), "model", "./model", "../secret project/model", "/gone/elsewhere/model"):
        assert public_name(name) == "model"
    assert public_name("org/model") == "org/model"
