"""Running, listing, checking and fetching."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reasonembed_mteb.cli.common import (
    ENGINE,
    FAILED,
    MODELS_AND_TASKS,
    OUTPUT,
    PROTOCOL,
    SPEED,
    VARIANTS,
    BatchSize,
    BatchTokens,
    BeirInstruction,
    BeirTasks,
    Benchmarks,
    Debug,
    Devices,
    InstructionTemplate,
    Limit,
    Models,
    NoInstruction,
    NoStore,
    OutputFolder,
    Overwrite,
    RunFile,
    Store,
    Tasks,
    app,
    connect,
    say,
    shows_progress,
    vector_store,
)
from reasonembed_mteb.cli.scale import Cluster, GpusPerWorker, cluster_pool
from reasonembed_mteb.cli.show import set_up_logging, show_table
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.plan import TaskPlan
    from reasonembed_mteb.evaluation.runner import Outcome, RunOptions


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, debug: Debug = False) -> None:
    # `main` looks for --debug itself; it is declared here so that it may stand before the command.
    del debug
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(output_folder: OutputFolder = Path("results"), debug: Debug = False) -> None:
    """Score BM25 and all-MiniLM on the embedded mini benchmark, offline."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Everything takes a second or less.
    os.environ.setdefault("TQDM_DISABLE", "1")
    connect(debug)
    from reasonembed_mteb.evaluation.demo import run_demo
    from reasonembed_mteb.evaluation.runner import RunOptions
    from reasonembed_mteb.retrieval.rows import benchmarks

    outcomes = run_demo(RunOptions(output=output_folder, progress=debug), say)
    groups = {"ReasonMini": [row.name for row in benchmarks()["ReasonMini"]]}
    _finish(outcomes, groups, "ReasonMini in %: a smoke benchmark, not a BRIGHT result", output_folder)


@app.command()
def run(
    model: Models,
    benchmark: Benchmarks = [],  # noqa: B006 - typer reads the default
    task: Tasks = [],  # noqa: B006
    beir: BeirTasks = [],  # noqa: B006
    beir_split: Annotated[
        str | None,
        typer.Option(
            help="With --beir: the split of labels.",
            show_default="test",
            rich_help_panel=MODELS_AND_TASKS,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="File a local directory's results under this org/name.", rich_help_panel=MODELS_AND_TASKS
        ),
    ] = None,
    instruction: BeirInstruction = None,
    instruction_template: InstructionTemplate = None,
    no_instruction: NoInstruction = False,
    limit: Limit = None,
    rerank_from: Annotated[
        Path | None,
        typer.Option(help="Saved predictions of a first stage, to rerank.", rich_help_panel=PROTOCOL),
    ] = None,
    rerank_top_k: Annotated[
        int, typer.Option(min=1, help="Candidates a query.", rich_help_panel=PROTOCOL)
    ] = 100,
    truncate_dim: Annotated[
        int | None,
        typer.Option(min=1, help="Keep the first dimensions of each vector.", rich_help_panel=VARIANTS),
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option(help="Compress vectors as MTEB does, such as int8 or binary.", rich_help_panel=VARIANTS),
    ] = None,
    hybrid_with: Annotated[
        list[str],
        typer.Option(
            help="Fuse each model's ranking with this one's, such as bm25; repeatable.",
            rich_help_panel=VARIANTS,
        ),
    ] = [],  # noqa: B006
    fusion: Annotated[
        str, typer.Option(help="How rankings are fused: rrf, dbsf or rsf.", rich_help_panel=VARIANTS)
    ] = "rrf",
    ablate_instruction: Annotated[
        bool,
        typer.Option(
            "--ablate-instruction",
            help="Score each model again with nothing before its queries; documents are encoded once.",
            rich_help_panel=VARIANTS,
        ),
    ] = False,
    output_folder: OutputFolder = Path("results"),
    prediction_folder: Annotated[
        Path | None,
        typer.Option(
            help="Save predictions here (several models: a folder for each).", rich_help_panel=OUTPUT
        ),
    ] = None,
    run_file: RunFile = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would run: tokens, hours, disk, what is shared; fetches no data.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    measure_speed: Annotated[
        bool,
        typer.Option(
            "--measure-speed",
            help="With --dry-run: load the model and encode for 5 s to know the hours.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    batch_size: BatchSize = None,
    batch_tokens: BatchTokens = None,
    device: Devices = None,
    attn: Annotated[
        str,
        typer.Option(
            help="auto, packed, padded, flash, or off: the library's own encoding.", rich_help_panel=SPEED
        ),
    ] = "auto",
    compile_layers: Annotated[
        str,
        typer.Option("--compile", help="Compile decoder layers: auto, on or off.", rich_help_panel=SPEED),
    ] = "auto",
    store: Store = None,
    no_store: NoStore = False,
    store_dtype: Annotated[
        str,
        typer.Option(
            help="float32, float16, bfloat16, or auto: the smallest that is exact.", rich_help_panel=SPEED
        ),
    ] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="Who computes vectors: torch, vllm (in this process), or api (a server).",
            rich_help_panel=ENGINE,
        ),
    ] = "torch",
    base_url: Annotated[
        str | None,
        typer.Option(
            help="With --engine api: the server, such as http://localhost:8000/v1.", rich_help_panel=ENGINE
        ),
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option(
            help="With --engine api: the model's name there.",
            show_default="as in --model",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    api_key_env: Annotated[
        str,
        typer.Option(
            help="With --engine api: the environment variable that holds the key.", rich_help_panel=ENGINE
        ),
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[
        int,
        typer.Option(min=1, help="With --engine api: requests at a time.", rich_help_panel=ENGINE),
    ] = 32,
    cluster: Cluster = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="With --cluster: all it has room for.", rich_help_panel=SPEED),
    ] = None,
    gpus_per_worker: GpusPerWorker = None,
    debug: Debug = False,
) -> None:
    """Score models on benchmarks or tasks, each through mteb.evaluate, by one protocol."""
    connect(debug)
    from reasonembed_mteb.cli import show as console
    from reasonembed_mteb.evaluation import plan as planning
    from reasonembed_mteb.evaluation import resolving, runner
    from reasonembed_mteb.models.engines import EngineChoice

    computes = EngineChoice(
        engine,
        base_url,
        served_model,
        api_key_env=api_key_env,
        concurrency=concurrency,
        batch_tokens=batch_tokens,
    )
    computes.check_torch_options(device=device, attn=attn, compile_layers=compile_layers)
    options = runner.RunOptions(
        output=output_folder,
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
        limit=limit,
        rerank_from=rerank_from,
        rerank_top_k=rerank_top_k,
        prediction_folder=prediction_folder,
        run_file=run_file,
        store=vector_store(output_folder, store, no_store=no_store),
        store_dtype=store_dtype,
        batch_tokens=batch_tokens,
        attn=attn,
        compile_layers=compile_layers,
        progress=shows_progress(debug),
    )
    options.check()
    tasks = resolving.resolve_tasks(benchmark, task, resolving.BeirFolders(beir, beir_split, instruction))
    metas = resolving.resolve_models(
        model,
        filed_as=name,
        template=instruction_template,
        no_instruction=no_instruction,
        variants=resolving.Variants(truncate_dim, compress, hybrid_with, fusion, ablate_instruction),
        engine=computes,
    )
    metas, idle = planning.without_idle_ablations(metas, tasks)
    for line in idle:
        say(line)
    labels = resolving.model_labels(metas)
    if dry_run:
        plans = planning.plan_models(metas, tasks, limit)
        _show_dry_run(metas, labels, plans, options, measure_speed)
        return
    if measure_speed:
        msg = "--measure-speed goes with --dry-run: a run records its own speed"
        raise ReasonEmbedError(msg)
    console.show_instructions(metas, labels, tasks)
    for place in planning.models_without_instruction(metas, tasks[-1:], instruction):
        say(
            f"{labels[place]} does not take --instruction; --instruction-template 'Instruct: {{instruction}}"
            "\\nQuery: ' gives it to a directory or a model that MTEB does not know"
        )
    with cluster_pool(cluster, workers, gpus_per_worker, device) as pool:
        outcomes = runner.run(metas, tasks, replace(options, pool=pool), say)
    grouped = resolving.benchmark_tasks(benchmark)
    groups = {group: [one.metadata.name for one in members] for group, members in grouped.items()}
    title = "; ".join(["Main scores in %", *options.caveats])
    _finish(outcomes, groups, title, runner.output_folder(options))


def _show_dry_run(
    metas: Sequence[ModelMeta],
    labels: Sequence[str],
    plans: Sequence[tuple[list[TaskPlan], list[str]]],
    options: RunOptions,
    measure_speed: bool,
) -> None:
    """Print what would run and what it costs; exit with 1 if something could not be planned."""
    from reasonembed_mteb.cli import planning as shown

    for meta, (found, errors), label in zip(metas, plans, labels, strict=True):
        shown.show_plans(found, label)
        if found:
            shown.show_costs(meta, found, options, measure_speed)
        for line in errors:
            say(f"FAILED {label} on {line}")
    if any(errors for _, errors in plans):
        raise typer.Exit(FAILED)


def _finish(
    outcomes: Sequence[Outcome], groups: Mapping[str, Sequence[str]], title: str, output: Path
) -> None:
    """Print the scores, and exit with 1 if something failed."""
    from reasonembed_mteb.cli import show as console

    console.show_outcomes(outcomes, groups, title)
    say(f"Results, in MTEB's own layout: {output / 'results'}")
    for line in (failures := console.failure_lines(outcomes)):
        say(line)
    if failures:
        raise typer.Exit(FAILED)


@app.command()
def tasks(
    benchmark: Benchmarks = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """List our benchmarks and tasks."""
    set_up_logging(debug)
    from reasonembed_mteb.retrieval.rows import benchmark_rows, benchmarks, suites

    head = ["task", "subset", "metric", "tokens", "instruction"]
    for name, held in [(name, benchmark_rows(name)) for name in benchmark or benchmarks()]:
        rows = [
            [row.name, row.subset, row.main_score, f"{row.max_tokens:,}", row.instruction] for row in held
        ]
        show_table(head, rows, name)
    if not benchmark:
        counts = [[suite, len(found.rows()), len(benchmark_rows(suite))] for suite, found in suites().items()]
        show_table(["suite", "benchmarks", "tasks"], [list(map(str, row)) for row in counts], "Suites")


@app.command()
def models(debug: Debug = False) -> None:
    """List the published ReasonEmbed checkpoints."""
    set_up_logging(debug)
    from reasonembed_mteb.models.checkpoints import CHECKPOINTS

    rows = [
        [c.name, c.backbone, f"{c.embed_dim:,}", c.loss, f"{c.bright:.1f}", f"{c.r2med:.2f}"]
        for c in CHECKPOINTS
    ]
    head = ["model", "backbone", "dim", "loss", "BRIGHT", "R2MED"]
    show_table(head, rows, "Published scores, nDCG@10 in % (arXiv 2510.08252)")


@app.command()
def doctor(debug: Debug = False) -> None:
    """Check versions, registration, data and device."""
    set_up_logging(debug)
    from reasonembed_mteb.evaluation.doctor import examine

    findings = examine()
    rows = [["ok" if finding.ok else "BROKEN", finding.what, finding.found] for finding in findings]
    show_table(["", "what", "found"], rows, "doctor")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILED)


@app.command()
def download(
    benchmark: Benchmarks = [],  # noqa: B006
    task: Tasks = [],  # noqa: B006
    model: Annotated[list[str], typer.Option("--model", "-m", help="Hub name; repeatable.")] = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Fetch data and weights, for machines that are offline later."""
    if not (benchmark or task or model):
        msg = "nothing to fetch: give -b BENCHMARK, -t TASK or -m MODEL"
        raise ReasonEmbedError(msg)
    connect(debug)
    from reasonembed_mteb.evaluation.resolving import download as fetch
    from reasonembed_mteb.evaluation.resolving import resolve_tasks

    fetch(resolve_tasks(benchmark, task) if benchmark or task else [], model, say)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def mteb(context: typer.Context) -> None:
    """Run mteb's own command with everything of ours registered."""
    from mteb.cli import main as mteb_main

    from reasonembed_mteb.plugin import register

    register()
    sys.argv = ["mteb", *context.args]
    mteb_main()
