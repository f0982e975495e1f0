"""Making training data, looking at it, and handing on the judgements of its annotator."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated

import typer

from reasonembed_mteb.cli.common import FAILED, Debug, app, say, seed_option
from reasonembed_mteb.cli.show import set_up_logging, show_table
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from reasonembed_mteb.synthesis.config import Config


@app.command()
def synthesize(
    config: Annotated[Path, typer.Argument(help="TOML file; examples/remixer.toml shows every key.")],
    step: Annotated[
        list[str], typer.Option("--step", "-s", help="Run this step alone; repeatable. Default: all.")
    ] = [],  # noqa: B006 - typer reads the default
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and the corpora; say what would be asked.")
    ] = False,
    batch_requests: Annotated[
        Path | None,
        typer.Option(help="Ask nothing; write requests into this folder, in OpenAI's batch format."),
    ] = None,
    batch_answers: Annotated[
        list[Path], typer.Option(help="Read the answers of a batch first; repeatable.")
    ] = [],  # noqa: B006
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again where requests failed for good.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make training data: clean, generate, mine, annotate, reason, format."""
    set_up_logging(debug)
    from reasonembed_mteb.synthesis import pipeline
    from reasonembed_mteb.synthesis.config import read_config

    if dry_run and (batch_requests or batch_answers):
        msg = "--dry-run asks and reads nothing: leave out --batch-requests and --batch-answers"
        raise ReasonEmbedError(msg)
    content = read_config(config)
    pipeline.check_steps(step)
    if dry_run:
        _show_estimates(content)
        return
    if batch_answers:
        say(f"{pipeline.take_answers(content, batch_answers):,} answers read")
    clients = None
    if batch_requests is not None:
        clients = pipeline.batch_clients(content, batch_requests, retry_errors=retry_errors)
    outcomes = pipeline.synthesize(content, step, clients=clients, retry_errors=retry_errors, say=say)
    if not outcomes:
        say("nothing to do: these steps are replaced by what the subsets begin with (start)")
        return
    rows = [
        [one.step, one.subset, one.state, f"{one.rows:,}", f"{one.kept:,}", one.error or ""]
        for one in outcomes
    ]
    show_table(["step", "subset", "state", "rows", "kept", ""], rows, f"Made in {content.output_folder}")
    if any(one.state == "failed" for one in outcomes):
        raise typer.Exit(FAILED)


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]


@app.command()
def samples(
    data: Annotated[Path, typer.Argument(help="Output of synthesize, a folder of samples, or one file.")],
    output: Annotated[Path, typer.Option(help="HTML file to write.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows a subset, at most.")] = 50,
    seed: Annotated[int, seed_option("Of the draw.")] = 42,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write a page of samples: rows of every subset, and what was dropped by which reason."""
    set_up_logging(debug)
    from reasonembed_mteb.files import write_whole
    from reasonembed_mteb.synthesis.samples import samples_page

    _check_new(output, overwrite)
    write_whole(output, samples_page(data, rows, seed))
    say(f"wrote {output}")


@app.command()
def export_judgements(
    config: Annotated[Path, typer.Argument(help="TOML file of a run whose step annotate is finished.")],
    output: Annotated[Path, typer.Option(help="JSON Lines to write, one chat a judgement.")],
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write the annotator's judgements as chats, to tune a small annotator on by any SFT tool."""
    set_up_logging(debug)
    from reasonembed_mteb.synthesis import judgements
    from reasonembed_mteb.synthesis.config import read_config

    _check_new(output, overwrite)
    written, left_out = judgements.export_judgements(read_config(config), output)
    say(f"wrote {output}: {written:,} judgements, {left_out:,} left out (unreadable or outvoted)")


def _check_new(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        msg = f"{output} exists; give another name, or --overwrite"
        raise ReasonEmbedError(msg)


def _show_estimates(content: Config) -> None:
    """Print what a run would ask, at most."""
    from reasonembed_mteb.synthesis import pipeline
    from reasonembed_mteb.synthesis.pipeline import estimate

    pipeline.check_names(content)
    rows = [
        [
            one.subset,
            one.step,
            f"{one.requests:,}",
            f"{one.prompt_tokens:,}",
            f"{one.completion_tokens:,}",
            "-" if one.cost is None else f"{one.cost:,.2f}",
        ]
        for one in estimate(content)
    ]
    head = ["subset", "step", "requests", "tokens in", "tokens out", "cost"]
    show_table(head, rows, "Would ask at most (tokens: 4 characters each, answers by rule of thumb)")
