"""Merging models and adapters, and averaging checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from reasonembed_mteb.cli.common import Debug, app, say
from reasonembed_mteb.cli.show import set_up_logging

NewFolder = Annotated[Path, typer.Option("--output", help="A new folder.")]


class _WeightsInARow(TyperCommand):
    """Lets one --weights take several numbers, as in ``--weights .7 .3`` and ``--weights=.7,.3``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - whichever click typer brings
        """Give each number behind --weights an option of its own."""
        return super().parse_args(ctx, _one_option_each(args))


def _one_option_each(arguments: list[str]) -> list[str]:
    found: list[str] = []
    within = False
    for place, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        begins = name == "--weights"
        numbers = _numbers(value if begins else argument)
        if begins and not value:
            # What follows is no number: that is said of this option, and not of a model by that name.
            within = bool(_numbers("".join(arguments[place + 1 : place + 2])))
            found += [] if within else [argument]
            continue
        within = bool(numbers) and (begins or within)
        found += [f"--weights={number}" for number in numbers] if within else [argument]
    return found


def _numbers(text: str) -> list[str]:
    """Return the numbers of a list with commas, none where it is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return parts if all(map(_is_number, parts)) else []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@app.command(cls=_WeightsInARow)
def merge(
    models: Annotated[
        list[str], typer.Argument(help="Directories or hub names of models or adapters, at least two.")
    ],
    output: NewFolder,
    weights: Annotated[
        list[float] | None,
        typer.Option("--weights", help="One number for each, as in --weights .7 .3; else equal ones."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="linear or spherical.")] = "linear",
    full: Annotated[bool, typer.Option("--full", help="A whole model, where all are adapters too.")] = False,
    debug: Debug = False,
) -> None:
    """Merge models of one architecture, or adapters of one base, by weights."""
    set_up_logging(debug)
    from reasonembed_mteb.training.merging import merge as write

    say(f"merged: {write(models, weights, output, method=method, full=full)}")


@app.command()
def average(
    run: Annotated[Path, typer.Argument(help="Folder of a training run, or of its checkpoints.")],
    output: NewFolder,
    last: Annotated[int, typer.Option("--last", help="How many checkpoints.")] = 3,
    debug: Debug = False,
) -> None:
    """Average a training run's last checkpoints."""
    set_up_logging(debug)
    from reasonembed_mteb.training.merging import average_checkpoints

    say(f"averaged: {average_checkpoints(run, output, last=last)}")
