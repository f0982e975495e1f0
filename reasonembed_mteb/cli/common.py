"""What every command shares: the application, common options, exit statuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from reasonembed_mteb.cli.show import set_up_logging
from reasonembed_mteb.errors import MOST_SEED, ReasonEmbedError
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


def _with_line_breaks(template: str | None) -> str | None:
    """Let a shell user write the line break of a template as a backslash and an n."""
    from reasonembed_mteb.prompts import unescape_template

    return unescape_template(template) if template is not None else None


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
BeirTasks = Annotated[
    list[Path], typer.Option(help="A BEIR folder, as a task; repeatable.", rich_help_panel=MODELS_AND_TASKS)
]
BeirInstruction = Annotated[
    str | None,
    typer.Option(help="With --beir: the sentence put before each query.", rich_help_panel=PROTOCOL),
]
InstructionTemplate = Annotated[
    str | None,
    typer.Option(
        help="For models MTEB does not know, such as 'Instruct: {instruction}\\nQuery: '.",
        callback=_with_line_breaks,
        rich_help_panel=PROTOCOL,
    ),
]
NoInstruction = Annotated[
    bool,
    typer.Option(
        "--no-instruction", help="For models MTEB does not know: no prompt.", rich_help_panel=PROTOCOL
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Smoke run over the first N queries.", rich_help_panel=PROTOCOL)
]
RunFile = Annotated[
    str | None,
    typer.Option(
        help="Write TREC runs: out.trec.gz, or 'runs/{model}-{task}.trec' for several.",
        rich_help_panel=OUTPUT,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Run again whatever is cached.", rich_help_panel=OUTPUT)
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Rows a batch.", rich_help_panel=SPEED)]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tokens of an encoding batch.", show_default="the device's own", rich_help_panel=SPEED
    ),
]
Devices = Annotated[
    str | None, typer.Option(help="cpu, cuda:0, or cuda:0,cuda:1 for both.", rich_help_panel=SPEED)
]
Store = Annotated[
    Path | None,
    typer.Option(help="Keep vectors here.", show_default="OUTPUT_FOLDER/vectors", rich_help_panel=SPEED),
]
NoStore = Annotated[
    bool, typer.Option("--no-store", help="Compute every vector anew.", rich_help_panel=SPEED)
]
OutputFolder = Annotated[
    Path, typer.Option("--output-folder", help="MTEB's result cache.", rich_help_panel=OUTPUT)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' logs.")]


def seed_option(what: str, panel: str | None = None) -> Any:  # noqa: ANN401 - as typer's own
    """Return an option ``--seed`` whose range every generator of random numbers takes.

    Args:
        what: Its help.
        panel: Under which heading it stands.
    """
    return typer.Option("--seed", min=0, max=MOST_SEED, help=what, rich_help_panel=panel)


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


def vector_store(output: Path, store: Path | None, *, no_store: bool = False) -> Path | None:
    """Return the folder of the embedding store, None for none.

    Args:
        output: Output folder, in which vectors lie unless another folder is named.
        store: The folder that was named.
        no_store: Whether vectors are not kept at all.
    """
    return None if no_store else store or output / "vectors"


def one_device(wish: str | None) -> str | None:
    """Return a device after a look whether it is there, None where torch chooses.

    Args:
        wish: As of ``--device``.

    Raises:
        ReasonEmbedError: If it is not there, or several are named.
    """
    from reasonembed_mteb.evaluation.variants import check_devices

    devices = check_devices(wish)
    if len(devices) > 1:
        msg = f"--device {wish}: this command works on one device; name one"
        raise ReasonEmbedError(msg)
    return devices[0] if devices else None


def shows_progress(debug: bool) -> bool:
    """Return whether progress bars are shown: where somebody may be looking.

    Args:
        debug: Whether everything is shown.
    """
    return debug or sys.stderr.isatty()


def connect(debug: bool) -> None:
    """Set up logging and register everything with mteb."""
    set_up_logging(debug)
    from reasonembed_mteb.plugin import register

    register()
