"""What every command shares: the application, common options, exit statuses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reasonembed_mteb.cli.show import set_up_logging

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
    """Print a line for people, apart from what a command prints for programs."""
    typer.echo(line, err=True)


def connect(debug: bool) -> None:
    """Set up logging and register everything with mteb."""
    set_up_logging(debug)
    from reasonembed_mteb.plugin import register

    register()
