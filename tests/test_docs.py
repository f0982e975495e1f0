"""The documentation: every command line in it is one that the command understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from reasonembed_mteb.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/remixer.toml", "tasks/mini/README.md")
FENCED = re.compile(r"^```(?:bash|sh|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^(?:#  )?   +\$? ?(reasonembed .*)$", re.MULTILINE)
# `reasonembed --help` and its like in the middle of a sentence.
INLINE = re.compile(r"`(reasonembed [^`]+)`")


def pages() -> dict[str, str]:
    files = [
        *(ROOT / name for name in PAGES),
        *sorted((ROOT / "examples").glob("pipeline-*.toml")),
        *sorted((ROOT / "docs").glob("*.md")),
    ]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def calls(line: str) -> list[list[str]]:
    """Return the arguments of each call on a line: ``a; b`` are two, ``store info|verify`` too."""
    found: list[list[str]] = []
    for part in " ".join(shlex.split(line, comments=True, posix=False)).split(";"):
        words = shlex.split(part)
        if words[:1] != ["reasonembed"]:
            continue
        several: list[list[str]] = [[]]
        for word in words[1:]:
            choices = word.split("|") if re.fullmatch(r"[a-z|]+", word) else [word]
            several = [[*before, choice] for before in several for choice in choices]
        found += several
    return found


def shown() -> list[Any]:
    """Return every call in a block of code, and those in sentences, which may leave out what they need."""
    found = []
    for name, text in pages().items():
        joined = text.replace("\\\n", " ")
        lines = [line for block in FENCED.findall(joined) for line in block.splitlines()]
        whole = [line for line in lines + INDENTED.findall(joined) if line.startswith("reasonembed ")]
        found += [
            pytest.param(call, True, id=f"{name}: {' '.join(call)}") for line in whole for call in calls(line)
        ]
        inline = [line for line in INLINE.findall(" ".join(joined.split())) if line not in whole]
        found += [
            pytest.param(call, False, id=f"{name}: `{' '.join(call)}`")
            for line in inline
            for call in calls(line)
        ]
    return found


def parse(arguments: list[str]) -> None:
    """Parse a call as the command does, and do nothing."""
    command: Any = get_command(app)
    context, name = None, "reasonembed"
    while hasattr(command, "resolve_command") and arguments and not arguments[0].startswith("-"):
        context = command.context_class(command, info_name=name, parent=context)
        name, command, arguments = command.resolve_command(context, arguments)
    command.make_context(name, list(arguments), parent=context)


def problem(arguments: list[str]) -> str:
    """Return what the command's parser says against a call; empty for nothing."""
    try:
        parse(arguments)
    except Exception as error:
        if hasattr(error, "format_message"):
            return f"{type(error).__name__}: {error.format_message()}"
        # --help ends what it is asked of.
        if type(error).__name__ != "Exit":
            raise
    return ""


@pytest.mark.parametrize(("arguments", "whole"), shown())
def test_a_command_line_is_understood(arguments: list[str], whole: bool) -> None:
    said = problem(arguments)
    assert not said or (not whole and said.startswith("MissingParameter"))


def test_a_wrong_line_is_seen() -> None:
    assert calls("reasonembed tasks;  reasonembed store info|prune  # both") == [
        ["tasks"],
        ["store", "info"],
        ["store", "prune"],
    ]
    assert "task" in problem(["task"])
    assert "--model-name" in problem(["run", "--model-name", "x"])
    assert "--format" in problem(["report", "results", "--format", "pdf"])
    assert problem(["run", "-m", "./my_model", "-t", "ReasonMiniPony"]) == ""
    assert len(shown()) > 40
