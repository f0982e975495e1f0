"""Running a pipeline: rewriting, retrieval, fusion and reranking, with what each stage adds and costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reasonembed_mteb.cli.common import (
    FAILED,
    OUTPUT,
    PROTOCOL,
    BatchSize,
    BeirTasks,
    Benchmarks,
    Debug,
    Devices,
    Limit,
    OutputFolder,
    RunFile,
    Store,
    Tasks,
    app,
    connect,
    say,
    shows_progress,
    vector_store,
)
from reasonembed_mteb.cli.show import show_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reasonembed_mteb.pipelines.plan import StageEstimate


@app.command()
def pipeline(
    file: Annotated[Path, typer.Argument(help="TOML file; examples/pipeline-*.toml show every key.")],
    benchmark: Benchmarks = [],  # noqa: B006 - typer reads the default
    task: Tasks = [],  # noqa: B006
    beir: BeirTasks = [],  # noqa: B006
    limit: Limit = None,
    max_price: Annotated[
        float | None,
        typer.Option(min=0, help="Stop before endpoints cost more than this.", rich_help_panel=PROTOCOL),
    ] = None,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors", help="Ask again where requests failed for good.", rich_help_panel=PROTOCOL
        ),
    ] = False,
    batch_requests: Annotated[
        Path | None,
        typer.Option(
            help="Ask nothing; write requests into this folder, in OpenAI's batch format.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    batch_answers: Annotated[
        list[Path],
        typer.Option(help="Read the answers of a batch first; repeatable.", rich_help_panel=PROTOCOL),
    ] = [],  # noqa: B006
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check the file; say calls, tokens and price.", rich_help_panel=OUTPUT
        ),
    ] = False,
    output_folder: OutputFolder = Path("results"),
    run_file: RunFile = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Score again; stages that are kept are read.", rich_help_panel=OUTPUT
        ),
    ] = False,
    batch_size: BatchSize = None,
    device: Devices = None,
    store: Store = None,
    debug: Debug = False,
) -> None:
    """Score a pipeline: rewrite, retrieve, fuse, rerank, iterate, with what each stage adds and costs."""
    connect(debug)
    from reasonembed_mteb.evaluation import resolving
    from reasonembed_mteb.evaluation.runner import RunOptions
    from reasonembed_mteb.evaluation.runner import output_folder as folder_of
    from reasonembed_mteb.pipelines.run import Pipeline
    from reasonembed_mteb.reporting.pipelines import stage_table

    found = Pipeline.from_toml(file)
    tasks = resolving.resolve_tasks(benchmark, task, resolving.BeirFolders(beir))
    if dry_run:
        from reasonembed_mteb.pipelines.plan import estimate_pipeline

        # Models are looked up, and nothing is loaded.
        found.metas()
        found.check_tasks(tasks)
        _show_estimates(estimate_pipeline(found.config, tasks, limit))
        return
    options = RunOptions(
        output=output_folder,
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
        limit=limit,
        run_file=run_file,
        store=vector_store(output_folder, store),
        progress=shows_progress(debug),
    )
    outcomes = found.run(
        tasks,
        options,
        max_price=max_price,
        retry_errors=retry_errors,
        batch_requests=batch_requests,
        batch_answers=batch_answers,
        say=say,
    )
    for one in outcomes:
        if one.record is not None:
            grid = stage_table(one.record)
            show_table(list(grid.head), [list(row) for row in grid.rows], grid.title)
            for note in grid.notes:
                say(note)
    say(f"Results, in MTEB's own layout: {folder_of(options) / 'results'}")
    for one in outcomes:
        if one.outcome.error is not None:
            say(f"FAILED {one.outcome.model} on {one.outcome.task}: {one.outcome.error}")
    if any(one.record is None for one in outcomes):
        raise typer.Exit(FAILED)


def _show_estimates(estimates: Sequence[StageEstimate]) -> None:
    """Print what a run would ask, at most."""
    rows = [
        [
            one.task,
            one.stage,
            f"{one.calls:,}",
            f"{one.prompt_tokens:,}",
            f"{one.completion_tokens:,}",
            "-" if one.price is None else f"{one.price:,.2f}",
        ]
        for one in estimates
    ]
    prices = [one.price for one in estimates if one.price is not None]
    total = ["all", "", f"{sum(one.calls for one in estimates):,}"]
    total += [f"{sum(one.prompt_tokens for one in estimates):,}"]
    total += [f"{sum(one.completion_tokens for one in estimates):,}"]
    total += [f"{sum(prices):,.2f}" if prices else "-"]
    head = ["task", "stage", "calls", "tokens in", "tokens out", "price"]
    show_table(
        head, [*rows, total], "Would ask at most (tokens: 4 characters each, answers by rule of thumb)"
    )
