"""The command ``reasonembed``: parses, calls, prints."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from reasonembed_mteb.runner import Outcome

app = typer.Typer(
    help="Reasoning-intensive retrieval for MTEB: score models by one protocol, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130

Models = Annotated[list[str], typer.Option("--model", "-m", help="Checkpoint, MTEB or hub name, or directory.")]
Benchmarks = Annotated[list[str], typer.Option("--benchmark", "-b", help="Benchmark; may be repeated.")]
Tasks = Annotated[list[str], typer.Option("--task", "-t", help="Task; may be repeated.")]
OutputFolder = Annotated[Path, typer.Option("--output-folder", help="MTEB's result cache.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' logs.")]


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _set_up(debug: bool) -> None:
    """Keep the libraries quiet, and let mteb know our names."""
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(message)s")
    if not debug:
        import warnings

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # The libraries' advice to programmers; errors and our own warnings come through logging.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="mteb")
        for name in ("mteb", "sentence_transformers", "huggingface_hub", "datasets", "bm25s"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _connect(debug: bool) -> None:
    _set_up(debug)
    from reasonembed_mteb.plugin import register

    register()


@app.command()
def demo(output_folder: OutputFolder = Path("results"), debug: Debug = False) -> None:
    """Score BM25 and all-MiniLM on the embedded mini benchmark, offline."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    _connect(debug)
    from reasonembed_mteb.demo import run_demo
    from reasonembed_mteb.runner import RunOptions

    outcomes = run_demo(RunOptions(output=output_folder, progress=False), _quiet(debug))
    _show(outcomes, "ReasonMini, a smoke benchmark (not a BRIGHT result)")
    _say(f"Results in MTEB's own layout: {output_folder / 'results'}")
    _exit_by(outcomes)


def _quiet(debug: bool) -> Callable[[str], None]:
    """Say what the user must act on, and the rest only when debugging."""
    return lambda line: _say(line) if debug or "pip install" in line or "failed" in line else None


@app.command()
def run(  # noqa: PLR0913 - one argument an option
    model: Models,
    benchmark: Benchmarks = [],  # noqa: B006 - typer reads the default
    task: Tasks = [],  # noqa: B006
    output_folder: OutputFolder = Path("results"),
    name: Annotated[str | None, typer.Option(help="File a local directory's results as this (org/name).")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a batch.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.")] = None,
    instruction_template: Annotated[
        str | None,
        typer.Option(help="For models MTEB does not know, such as 'Instruct: {instruction}\\nQuery: '."),
    ] = None,
    no_instruction: Annotated[bool, typer.Option(help="For models MTEB does not know: no prompt.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would run, with token counts.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Smoke run over the first N queries.")] = None,
    rerank_from: Annotated[Path | None, typer.Option(help="Saved predictions to rerank.")] = None,
    rerank_top_k: Annotated[int, typer.Option(min=1, help="Candidates a query.")] = 100,
    prediction_folder: Annotated[Path | None, typer.Option(help="Save predictions here.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Run again whatever is cached.")] = False,
    debug: Debug = False,
) -> None:
    """Score models on benchmarks or tasks, each through mteb.evaluate, by one protocol."""
    if not benchmark and not task:
        msg = "nothing to run: give -b BENCHMARK or -t TASK (`reasonembed tasks` lists them)"
        raise typer.BadParameter(msg)
    if rerank_from is not None and not rerank_from.exists():
        msg = f"--rerank-from {rerank_from} does not exist; save one with --prediction-folder first"
        raise ReasonEmbedError(msg)
    _connect(debug)
    from reasonembed_mteb import runner

    options = runner.RunOptions(
        output=output_folder,
        name=name,
        batch_size=batch_size,
        device=device,
        instruction_template=_unescaped(instruction_template),
        no_instruction=no_instruction,
        overwrite=overwrite,
        limit=limit,
        rerank_from=rerank_from,
        rerank_top_k=rerank_top_k,
        prediction_folder=prediction_folder,
        progress=sys.stderr.isatty(),
    )
    tasks = runner.resolve_tasks(benchmark, task)
    if dry_run:
        _show_plans(model, tasks, options)
        return
    outcomes = runner.run(model, tasks, options, _say)
    smoke = f" (smoke run: first {limit} queries, not a result)" if limit else ""
    _show(outcomes, f"Main score, %{smoke}")
    _say(f"Results in MTEB's own layout: {runner.output_folder(options) / 'results'}")
    _exit_by(outcomes)


def _unescaped(template: str | None) -> str | None:
    """Let a shell user write the line break of a template as a backslash and an n."""
    return template.replace("\\n", "\n") if template is not None else None


def _show_plans(models: Sequence[str], tasks: Sequence[Any], options: Any) -> None:  # noqa: ANN401
    from reasonembed_mteb.planning import plan_task, planned_prefix
    from reasonembed_mteb.runner import describe_prefix, resolve_model

    for model in models:
        meta = resolve_model(model, options)
        rows = []
        for task in tasks:
            prefix = planned_prefix(meta, task)
            plan = plan_task(meta, task, prefix)
            tokens = f"{'~' if plan.sampled else ''}{plan.document_tokens:,}" if plan.document_tokens else "-"
            rows.append(
                [
                    plan.task,
                    f"{plan.queries:,}",
                    f"{plan.documents:,}",
                    "-" if plan.query_tokens is None else f"{plan.query_tokens:,}",
                    tokens,
                    "-" if plan.truncated is None else f"{plan.truncated:.1%}",
                    "-" if plan.length is None else f"{plan.length:,}",
                    describe_prefix(prefix),
                ]
            )
        head = ["task", "queries", "documents", "query tokens", "document tokens", "cut", "length", "instruction"]
        _table(head, rows, f"{meta.name}: what would run")


@app.command()
def tasks(
    benchmark: Benchmarks = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """List our benchmarks and tasks."""
    _set_up(debug)
    from reasonembed_mteb.errors import unknown_name
    from reasonembed_mteb.retrieval.tables import benchmarks

    grouped = benchmarks()
    for name in benchmark:
        if name not in grouped:
            raise unknown_name("benchmark", name, grouped)
    for name in benchmark or grouped:
        rows = [
            [row.name, row.subset, row.main_score, f"{row.max_tokens:,}", row.instruction] for row in grouped[name]
        ]
        _table(["task", "subset", "metric", "tokens", "instruction"], rows, name)


@app.command()
def models(debug: Debug = False) -> None:
    """List the published ReasonEmbed checkpoints."""
    _set_up(debug)
    from reasonembed_mteb.zoo import CHECKPOINTS

    rows = [
        [c.name, c.backbone, f"{c.embed_dim:,}", c.loss, f"{c.bright:.1f}", f"{c.r2med:.2f}"] for c in CHECKPOINTS
    ]
    head = ["model", "backbone", "dim", "loss", "BRIGHT", "R2MED"]
    _table(head, rows, "Published scores, nDCG@10 in % (arXiv 2510.08252)")


@app.command()
def doctor(debug: Debug = False) -> None:
    """Check versions, registration, data and device."""
    _set_up(debug)
    from reasonembed_mteb.doctor import examine

    findings = examine()
    _table(["", "what", "found"], [["ok" if f.ok else "BROKEN", f.what, f.found] for f in findings], "doctor")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(_FAILED)


@app.command()
def download(
    benchmark: Benchmarks = [],  # noqa: B006
    task: Tasks = [],  # noqa: B006
    model: Annotated[list[str], typer.Option("--model", "-m", help="Hub name.")] = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Fetch data and weights, for machines that are offline later."""
    if not (benchmark or task or model):
        msg = "nothing to fetch: give -b BENCHMARK, -t TASK or -m MODEL"
        raise typer.BadParameter(msg)
    _connect(debug)
    from reasonembed_mteb.downloads import download as fetch
    from reasonembed_mteb.runner import resolve_tasks

    fetch(resolve_tasks(benchmark, task), model, _say)


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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), box=box.SIMPLE, title_justify="left")
    for index, name in enumerate(head):
        table.add_column(name, overflow="fold", justify="left" if index == 0 or not _numeric(rows, index) else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    # Outside a terminal nothing is cut: a pipe has no width.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _numeric(rows: Sequence[Sequence[str]], index: int) -> bool:
    return all(row[index].lstrip("~-").replace(",", "").replace(".", "").rstrip("%").isdigit() for row in rows)


def _show(outcomes: Sequence[Outcome], title: str) -> None:
    """Print tasks by models with the macro mean; a mean over fewer tasks is not shown as one."""
    names = list(dict.fromkeys(outcome.model for outcome in outcomes))
    order = list(dict.fromkeys(outcome.task for outcome in outcomes))
    found = {(outcome.task, outcome.model): outcome for outcome in outcomes}
    rows = [[task, *(_cell(found[task, name]) for name in names)] for task in order]
    if len(order) > 1:
        rows.append([f"macro mean of {len(order)}", *(_mean([found[t, n] for t in order]) for n in names)])
    _table(["task", *names], rows, title)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        _say(f"FAILED {outcome.model} on {outcome.task}: {outcome.error}")


def _cell(outcome: Outcome) -> str:
    return "failed" if outcome.score is None else f"{100 * outcome.score:.2f}"


def _mean(outcomes: Sequence[Outcome]) -> str:
    scores = [outcome.score for outcome in outcomes if outcome.score is not None]
    return f"{100 * sum(scores) / len(scores):.2f}" if len(scores) == len(outcomes) else "incomplete"


def _exit_by(outcomes: Sequence[Outcome]) -> None:
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(_FAILED)


def main() -> None:
    """Run the command; an error is one line with a remedy, and a traceback only with ``--debug``."""
    debug = "--debug" in sys.argv
    try:
        app()
    except ReasonEmbedError as error:
        if debug:
            raise
        _say(f"reasonembed: {error}")
        sys.exit(_USAGE)
    except KeyboardInterrupt:
        _say("reasonembed: interrupted; the same command goes on where this one stopped")
        sys.exit(_INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the user gets one line, a developer --debug
        if debug:
            raise
        first = str(error).strip().splitlines()[:1]
        _say(f"reasonembed: {type(error).__name__}: {' '.join(first)} (--debug shows where)")
        sys.exit(_FAILED)
