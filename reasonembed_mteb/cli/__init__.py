"""The command ``reasonembed``: parses, calls, prints; one module per group of commands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

# Imported for their commands.
from reasonembed_mteb.cli import compression as _compression  # noqa: F401
from reasonembed_mteb.cli import latents as _latents  # noqa: F401
from reasonembed_mteb.cli import merging as _merging  # noqa: F401
from reasonembed_mteb.cli import mining as _mining  # noqa: F401
from reasonembed_mteb.cli import pipeline as _pipeline  # noqa: F401
from reasonembed_mteb.cli import poisoning as _poisoning  # noqa: F401
from reasonembed_mteb.cli import reasoning as _reasoning  # noqa: F401
from reasonembed_mteb.cli import reporting as _reporting  # noqa: F401
from reasonembed_mteb.cli import robustness as _robustness  # noqa: F401
from reasonembed_mteb.cli import running as _running  # noqa: F401
from reasonembed_mteb.cli import scale as _scale  # noqa: F401
from reasonembed_mteb.cli import scoring as _scoring  # noqa: F401
from reasonembed_mteb.cli import sharing as _sharing  # noqa: F401
from reasonembed_mteb.cli import store as _store  # noqa: F401
from reasonembed_mteb.cli import synthesis as _synthesis  # noqa: F401
from reasonembed_mteb.cli import tax as _tax  # noqa: F401
from reasonembed_mteb.cli import training as _training  # noqa: F401
from reasonembed_mteb.cli.common import FAILED, INTERRUPTED, USAGE, app, say
from reasonembed_mteb.cli.show import visible_output
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Sequence

# In the order of a user's work, not of the modules' names.
_ORDER = (
    "demo",
    "run",
    "pipeline",
    "report",
    "inspect",
    "score",
    "tasks",
    "models",
    "download",
    "doctor",
    "mteb",
)
app.registered_commands.sort(
    key=lambda command: (
        _ORDER.index(name)
        if (name := command.name or getattr(command.callback, "__name__", "")) in _ORDER
        else len(_ORDER)
    )
)


def _wants_debug(arguments: Sequence[str]) -> bool:
    """Whether --debug is ours: what follows `mteb` belongs to mteb."""
    own = arguments[: arguments.index("mteb")] if "mteb" in arguments else arguments
    return "--debug" in own


def main() -> None:
    """Run the command; an error is one line with a remedy, and a traceback only with ``--debug``."""
    with visible_output():
        status = _main()
    sys.exit(status)


def _main() -> int:
    """Run the command; return the exit status."""
    debug = _wants_debug(sys.argv[1:])
    try:
        # Typer turns Ctrl-C into its exit status, which it returns outside standalone mode.
        status = app(prog_name="reasonembed", standalone_mode=False)
    except ReasonEmbedError as error:
        if debug:
            raise
        say(f"reasonembed: {error}")
        status = USAGE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        status = _report(error, debug)
    if status == INTERRUPTED:
        # A training run is continued only when asked to, since its folder may hold another one.
        training = sys.argv[1:2] == ["train"]
        how = "the same command" + (" with --resume" if training and "--resume" not in sys.argv else "")
        where = "from its last checkpoint, where there is one" if training else "where this one stopped"
        say(f"reasonembed: interrupted; {how} continues {where}")
    return status if isinstance(status, int) else 0


def _report(error: Exception, debug: bool) -> int:
    """Say what went wrong in one line; return the exit status."""
    from reasonembed_mteb.errors import one_line

    # A usage error of the parser, whichever click typer brings.
    if hasattr(error, "format_message"):
        # Typer lists what is allowed below its message, one a line.
        said = " ".join(error.format_message().split())
        say(f"reasonembed: {said} (--help shows what is allowed)")
        return USAGE
    if debug:
        raise error
    say(f"reasonembed: {one_line(error)} (--debug shows where)")
    return FAILED
