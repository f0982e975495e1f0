"""Measuring what latent tokens keep of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reasonembed_mteb.cli.common import Debug, OutputFolder, app, say, show
from reasonembed_mteb.cli.show import set_up_logging


@app.command(name="compress-eval")
def compress_eval(
    model: Annotated[
        list[str],
        typer.Option(
            "--model", "-m", help="Directory or hub name of a model with latent tokens; repeatable."
        ),
    ],
    data: Annotated[
        Path, typer.Option("--data", help="JSON Lines with text, question, and answer or answers.")
    ],
    output_folder: OutputFolder = Path("results"),
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Take the first N examples alone.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer at most.")
    ] = 32,
    reasoning_tokens: Annotated[
        int,
        typer.Option(
            "--reasoning-tokens", min=0, help="Tokens of reasoning that are timed before embedding; 0: none."
        ),
    ] = 64,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts at a time.")] = 8,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda:0.")] = None,
    note: Annotated[str, typer.Option("--note", help="What tells these numbers from results.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Measure again what was measured before.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Measure answers read from K latent positions, beside the full text, a cut text and none."""
    set_up_logging(debug)
    from reasonembed_mteb.reasoning.compress_eval import CompressionOptions, measured_runs, read_examples
    from reasonembed_mteb.reporting.compression import compression_chapter
    from reasonembed_mteb.reporting.formats import as_table

    options = CompressionOptions(max_new_tokens, reasoning_tokens, batch_size, note)
    examples = read_examples(data, limit)
    runs = measured_runs(
        model, examples, data, options, output_folder, device=device, overwrite=overwrite, say=say
    )
    chapter = compression_chapter(runs)
    for grid in chapter.grids:
        show(as_table(grid))
    for line in chapter.notes:
        show(line)
    say(f"Records: {output_folder}; `reasonembed report {output_folder}` draws the picture")
