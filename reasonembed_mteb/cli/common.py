"""What every command shares: the application, common options, exit statuses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reasonembed_mteb.cli.show import set_up_logging
from reasonembed_mteb.escaping import visible, visible_lines

app = typer.Typer(
    help="Reasoning-intensive retrieval for MTEB: score models by one protocol, exactly.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

FAILED, USAGE, INTERRUPTED = 1, 2, 130

Models = Annotated[
    list[str], typer.Option("--model", "-m", help="Checkpoint, MTEB or hub name, or directory; repeatable.")
]
Benchmarks = Annotated[list[str], typer.Option("--benchmark", "-b", help="Benchmark; repeatable.")]
Tasks = Annotated[list[str], typer.Option("--task", "-t", help="Task; repeatable.")]
OutputFolder = Annotated[Path, typer.Option("--output-folder", help="MTEB's result cache.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' logs.")]


def say(line: str) -> None:
    """Print a line for people, apart from what a command prints for programs.

    Args:
        line: One line; what acts on a terminal in it is shown instead.
    """
    typer.echo(visible(line), err=True)


def show(text: str) -> None:
    """Print what a command is asked for, with its own line breaks.

    Args:
        text: Lines; what acts on a terminal in them is shown instead.
    """
    typer.echo(visible_lines(text), nl=not text.endswith("\n"))


def connect(debug: bool) -> None:
    """Set up logging and register everything with mteb."""
    set_up_logging(debug)
    from reasonembed_mteb.plugin import register

    register()
