"""The command ``tax``: what models gain on a reasoning suite and lose on a general one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reasonembed_mteb.cli.common import (
    FAILED,
    MODELS_AND_TASKS,
    PROTOCOL,
    BatchSize,
    BatchTokens,
    Benchmarks,
    Debug,
    Devices,
    InstructionTemplate,
    Limit,
    Models,
    NoStore,
    OutputFolder,
    Overwrite,
    Store,
    Tasks,
    app,
    connect,
    say,
    show,
    shows_progress,
    vector_store,
)
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mteb.abstasks import AbsTask

    from reasonembed_mteb.evaluation.resolving import BeirFolders

REASONING_DEFAULT, GENERAL_DEFAULT = "BRIGHT(ReasonEmbed)", "NanoBEIR"


@app.command()
def tax(
    model: Models,
    baseline: Annotated[
        str,
        typer.Option(
            help="What every model is compared with: a name or directory, such as the backbone.",
            rich_help_panel=MODELS_AND_TASKS,
        ),
    ] = "bm25",
    benchmark: Benchmarks = [],  # noqa: B006 - typer reads the default
    task: Tasks = [],  # noqa: B006
    beir: Annotated[
        list[Path],
        typer.Option(
            help="A BEIR folder of the reasoning suite; repeatable.", rich_help_panel=MODELS_AND_TASKS
        ),
    ] = [],  # noqa: B006
    general_benchmark: Annotated[
        list[str],
        typer.Option(
            help="Benchmark of the general suite; repeatable.",
            show_default=GENERAL_DEFAULT,
            rich_help_panel=MODELS_AND_TASKS,
        ),
    ] = [],  # noqa: B006
    general_task: Annotated[
        list[str],
        typer.Option(help="Task of the general suite; repeatable.", rich_help_panel=MODELS_AND_TASKS),
    ] = [],  # noqa: B006
    general_beir: Annotated[
        list[Path],
        typer.Option(
            help="A BEIR folder of the general suite; repeatable.", rich_help_panel=MODELS_AND_TASKS
        ),
    ] = [],  # noqa: B006
    beir_split: Annotated[
        str | None,
        typer.Option(
            help="Split of labels of the BEIR folders.", show_default="test", rich_help_panel=MODELS_AND_TASKS
        ),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            help="The sentence put before each query of the reasoning suite's BEIR folders.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    general_instruction: Annotated[
        str | None,
        typer.Option(help="The same for the general suite's.", rich_help_panel=PROTOCOL),
    ] = None,
    instruction_template: InstructionTemplate = None,
    limit: Limit = None,
    output_folder: OutputFolder = Path("results"),
    overwrite: Overwrite = False,
    batch_size: BatchSize = None,
    batch_tokens: BatchTokens = None,
    device: Devices = None,
    store: Store = None,
    no_store: NoStore = False,
    debug: Debug = False,
) -> None:
    """Score models on a reasoning and a general suite, and take their differences from a baseline.

    Without -b, -t and --beir the reasoning suite is BRIGHT(ReasonEmbed); the general one is MTEB's NanoBEIR
    unless an option names another.
    """
    connect(debug)
    from reasonembed_mteb.cli.show import failure_lines
    from reasonembed_mteb.evaluation import runner
    from reasonembed_mteb.evaluation.chapter_files import chapter_file
    from reasonembed_mteb.evaluation.resolving import BeirFolders, resolve_beside, resolve_models
    from reasonembed_mteb.evaluation.tax_record import KIND, write_tax
    from reasonembed_mteb.reporting.formats import as_table
    from reasonembed_mteb.reporting.tax import tax_grid
    from reasonembed_mteb.robustness.tax import specialisation_tax, tax_name

    options = runner.RunOptions(
        output=output_folder,
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
        limit=limit,
        store=vector_store(output_folder, store, no_store=no_store),
        batch_tokens=batch_tokens,
        progress=shows_progress(debug),
    )
    options.check()
    if beir_split is not None and not (beir or general_beir):
        msg = "--beir-split goes with --beir or --general-beir: the other tasks have their own"
        raise ReasonEmbedError(msg)
    if general_instruction is not None and not general_beir:
        msg = "--general-instruction goes with --general-beir: the other tasks have their own"
        raise ReasonEmbedError(msg)
    folders = BeirFolders(beir, beir_split if beir else None, instruction)
    others = BeirFolders(general_beir, beir_split if general_beir else None, general_instruction)
    reasoning = _suite(benchmark, task, folders, REASONING_DEFAULT)
    general = _suite(general_benchmark, general_task, others, GENERAL_DEFAULT)
    metas = resolve_models(model, template=instruction_template)
    records, outcomes = specialisation_tax(
        metas, resolve_beside(baseline, instruction_template), reasoning, general, options, say
    )
    results = runner.output_folder(options)
    for record in records:
        write_tax(chapter_file(results, KIND, tax_name(record)), record)
    if records:
        show(as_table(tax_grid(records)))
        say(f"`reasonembed report {results}` shows it again, with the published points")
    for line in (failures := failure_lines(outcomes)):
        say(line)
    if failures:
        raise typer.Exit(FAILED)


def _suite(benchmarks: Sequence[str], tasks: Sequence[str], beir: BeirFolders, default: str) -> list[AbsTask]:
    """Return the tasks that were named, or those of the default benchmark where none was."""
    from reasonembed_mteb.evaluation.resolving import resolve_tasks

    nothing = not (benchmarks or tasks or beir.folders)
    return resolve_tasks([default] if nothing else benchmarks, tasks, beir)
