"""The commands of ``latents``: models that read their vectors through latent tokens."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from reasonembed_mteb.cli.common import Debug, app, say, seed_option
from reasonembed_mteb.cli.show import set_up_logging

latents_group = typer.Typer(
    help="Models that read their vectors through latent tokens.", no_args_is_help=True
)
app.add_typer(latents_group, name="latents")


@latents_group.command()
def add(
    model: Annotated[str, typer.Argument(help="Directory or hub name of a decoder.")],
    count: Annotated[int, typer.Option("--count", help="How many latent tokens, K.")],
    output: Annotated[Path, typer.Option("--output", help="A new folder.")],
    seed: Annotated[int, seed_option("Of the noise on the new rows.")] = 0,
    debug: Debug = False,
) -> None:
    """Add latent tokens behind every text; the folder loads with sentence-transformers alone."""
    set_up_logging(debug)
    from reasonembed_mteb.reasoning.latents import add_latents, find_latents

    found = find_latents(add_latents(model, count, output, seed=seed).tokenizer)
    say(f"{found.count} latent tokens (ids {found.ids[0]} to {found.ids[-1]}): {output}")
