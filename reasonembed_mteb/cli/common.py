"""What every command shares: the application, common options, exit statuses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reasonembed_mteb.cli.show import set_up_logging
from reasonembed_mteb.escaping import visible, visible_lines

FAILED, USAGE, INTERRUPTED = 1, 2, 130
# Typer makes one paragraph of lines without a blank one between them.
EXIT_STATUSES = (
    "Exit status: 0 all went well; 1 something failed, such as one model on one task; 2 a wrong option, name "
    "or file, said in one line; 130 interrupted."
)
MODELS_AND_TASKS, PROTOCOL, OUTPUT, SPEED, VARIANTS, ENGINE = (
    "Models and tasks",
    "Protocol",
    "Output",
    "Speed",
    "Variants of the models",
    "Engine",
)

app = typer.Typer(
    help="Reasoning-intensive retrieval for MTEB: score models by one protocol, exactly.",
    epilog=EXIT_STATUSES,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        "-m",
        help="Checkpoint, MTEB or hub name, or directory; repeatable.",
        rich_help_panel=MODELS_AND_TASKS,
    ),
]
Benchmarks = Annotated[
    list[str],
    typer.Option("--benchmark", "-b", help="Benchmark; repeatable.", rich_help_panel=MODELS_AND_TASKS),
]
Tasks = Annotated[
    list[str], typer.Option("--task", "-t", help="Task; repeatable.", rich_help_panel=MODELS_AND_TASKS)
]
OutputFolder = Annotated[
    Path, typer.Option("--output-folder", help="MTEB's result cache.", rich_help_panel=OUTPUT)
]
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
