"""Running, listing, checking and fetching."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reasonembed_mteb.cli.common import (
    FAILED,
    Benchmarks,
    Debug,
    Models,
    OutputFolder,
    Tasks,
    app,
    connect,
    say,
)
from reasonembed_mteb.cli.show import set_up_logging, show_table
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.runner import Outcome


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
    output_folder: OutputFolder = Path("results"),
    name: Annotated[
        str | None, typer.Option(help="File a local directory's results under this org/name.")
    ] = None,
    beir: Annotated[list[Path], typer.Option(help="A BEIR folder, as a task; repeatable.")] = [],  # noqa: B006
    beir_split: Annotated[
        str | None, typer.Option(help="With --beir: the split of labels.  [default: test]")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="With --beir: the sentence put before each query.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a batch.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, or cuda:0,cuda:1 for both.")] = None,
    instruction_template: Annotated[
        str | None,
        typer.Option(help="For models MTEB does not know, such as 'Instruct: {instruction}\\nQuery: '."),
    ] = None,
    no_instruction: Annotated[
        bool, typer.Option("--no-instruction", help="For models MTEB does not know: no prompt.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, with token counts.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Smoke run over the first N queries.")] = None,
    rerank_from: Annotated[
        Path | None, typer.Option(help="Saved predictions of a first stage, to rerank.")
    ] = None,
    rerank_top_k: Annotated[int, typer.Option(min=1, help="Candidates a query.")] = 100,
    prediction_folder: Annotated[
        Path | None, typer.Option(help="Save predictions here (several models: a folder for each).")
    ] = None,
    run_file: Annotated[
        str | None,
        typer.Option(help="Write TREC runs: out.trec.gz, or 'runs/{model}-{task}.trec' for several."),
    ] = None,
    truncate_dim: Annotated[
        int | None, typer.Option(min=1, help="Keep the first dimensions of each vector.")
    ] = None,
    compress: Annotated[
        str | None, typer.Option(help="Compress vectors as MTEB does, such as int8 or binary.")
    ] = None,
    hybrid_with: Annotated[
        list[str], typer.Option(help="Fuse each model's ranking with this one's, such as bm25; repeatable.")
    ] = [],  # noqa: B006
    fusion: Annotated[str, typer.Option(help="How rankings are fused: rrf, dbsf or rsf.")] = "rrf",
    store: Annotated[
        Path | None, typer.Option(help="Keep vectors here.  [default: OUTPUT_FOLDER/vectors]")
    ] = None,
    no_store: Annotated[bool, typer.Option("--no-store", help="Compute every vector anew.")] = False,
    store_dtype: Annotated[
        str, typer.Option(help="float32, float16, bfloat16, or auto: the smallest that is exact.")
    ] = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an encoding batch.  [default: the device's own]")
    ] = None,
    attn: Annotated[
        str, typer.Option(help="auto, packed, padded, flash, or off: the library's own encoding.")
    ] = "auto",
    compile_layers: Annotated[
        str, typer.Option("--compile", help="Compile decoder layers: auto, on or off.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run again whatever is cached.")] = False,
    debug: Debug = False,
) -> None:
    """Score models on benchmarks or tasks, each through mteb.evaluate, by one protocol."""
    _check_tasks_given([*benchmark, *task], beir, instruction, beir_split)
    if rerank_from is not None and not rerank_from.exists():
        msg = (
            f"--rerank-from {rerank_from} does not exist; make it with --prediction-folder and a first stage"
        )
        raise ReasonEmbedError(msg)
    connect(debug)
    from reasonembed_mteb.cli import show as console
    from reasonembed_mteb.encoding.plan import check_options
    from reasonembed_mteb.evaluation import limits, resolving, runner, variants
    from reasonembed_mteb.evaluation import plan as planning

    check_options(attn, batch_tokens, compile_layers)
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
        store=None if no_store else store or output_folder / "vectors",
        store_dtype=store_dtype,
        batch_tokens=batch_tokens,
        attn=attn,
        compile_layers=compile_layers,
        progress=debug or sys.stderr.isatty(),
    )
    folders = _beir_tasks(beir, instruction, beir_split or "test")
    tasks = resolving.resolve_tasks(benchmark, task) + folders
    template = _unescaped(instruction_template)
    metas = resolving.resolve_models(model, filed_as=name, template=template, no_instruction=no_instruction)
    if truncate_dim is not None:
        metas = [variants.truncated(meta, truncate_dim) for meta in metas]
    if compress is not None:
        metas = [variants.compressed(meta, compress) for meta in metas]
    if hybrid_with:
        others = resolving.resolve_models(hybrid_with)
        metas = [variants.fused([*others, meta], fusion) for meta in metas]
    labels = resolving.model_labels(metas)
    if dry_run:
        copies = [[limits.own_copy(one) for one in tasks] for _ in metas]
        every = [planning.plan_tasks(meta, own, limit) for meta, own in zip(metas, copies, strict=True)]
        for (plans, errors), label in zip(every, labels, strict=True):
            console.show_plans(plans, label)
            for line in errors:
                say(f"FAILED {label} on {line}")
        raise typer.Exit(FAILED if any(errors for _, errors in every) else 0)
    console.show_instructions(metas, labels, tasks)
    _say_ignored(metas, labels, folders, instruction)
    outcomes = runner.run(metas, tasks, options, say)
    grouped = resolving.benchmark_tasks(benchmark)
    groups = {group: [one.metadata.name for one in members] for group, members in grouped.items()}
    marks = [f"smoke run over the first {limit} queries, not a result"] if limit else []
    if rerank_from is not None:
        marks.append(f"top {rerank_top_k} of {rerank_from} reranked")
    title = "; ".join(["Main scores in %", *marks])
    _finish(outcomes, groups, title, runner.output_folder(options))


def _check_tasks_given(
    names: Sequence[str], folders: Sequence[Path], instruction: str | None, split: str | None
) -> None:
    if not names and not folders:
        msg = "nothing to run: give -b BENCHMARK or -t TASK (`reasonembed tasks` lists them)"
        raise ReasonEmbedError(msg)
    if instruction is not None and not folders:
        msg = "--instruction goes with --beir: the other tasks have instructions of their own"
        raise ReasonEmbedError(msg)
    if split is not None and not folders:
        msg = "--beir-split goes with --beir: the other tasks have one split each"
        raise ReasonEmbedError(msg)


def _beir_tasks(folders: Sequence[Path], instruction: str | None, split: str) -> list[AbsTask]:
    if not folders:
        return []
    from reasonembed_mteb.retrieval.beir_task import beir_task

    return [beir_task(folder, instruction, split=split) for folder in folders]


def _say_ignored(
    metas: Sequence[ModelMeta], labels: Sequence[str], tasks: Sequence[AbsTask], instruction: str | None
) -> None:
    """Say which models do not take the instruction that was given."""
    from reasonembed_mteb.models.instructions import planned_prefix

    for meta, label in zip(metas, labels, strict=True) if instruction is not None and tasks else ():
        prefix = planned_prefix(meta, tasks[0].metadata)
        dense = "dense" in (meta.model_type or ())
        if dense and prefix is not None and str(instruction) not in prefix:
            say(
                f"{label} does not take --instruction; --instruction-template 'Instruct: {{instruction}}"
                "\\nQuery: ' gives it to a directory or a model that MTEB does not know"
            )


def _unescaped(template: str | None) -> str | None:
    """Let a shell user write the line break of a template as a backslash and an n."""
    from reasonembed_mteb.prompts import unescape_template

    return unescape_template(template) if template is not None else None


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
    from reasonembed_mteb.errors import unknown_name
    from reasonembed_mteb.retrieval.rows import benchmarks

    grouped = benchmarks()
    for name in benchmark:
        if name not in grouped:
            raise unknown_name("benchmark", name, grouped)
    for name in benchmark or grouped:
        rows = [
            [row.name, row.subset, row.main_score, f"{row.max_tokens:,}", row.instruction]
            for row in grouped[name]
        ]
        show_table(["task", "subset", "metric", "tokens", "instruction"], rows, name)


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

    fetch(resolve_tasks(benchmark, task), model, say)


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
