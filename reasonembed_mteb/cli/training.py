"""Training, and the picture of a run."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from reasonembed_mteb.cli.common import Debug, app, one_device, say, seed_option, show
from reasonembed_mteb.cli.show import set_up_logging, show_table
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.escaping import visible

if TYPE_CHECKING:
    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.plan import TrainingPlan
    from reasonembed_mteb.training.schema import Recipe


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, such as minilm-demo, or a TOML file.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            help="Rows: .jsonl, .jsonl.gz, .parquet, a folder of them, or a hub data set, org/name or "
            "org/name/folder; repeatable.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the run; new, or with --resume.")
    ] = None,
    changes: Annotated[
        list[str], typer.Option("--set", help="section.key=value in place of the recipe's; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, if there is one.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done: rows, steps, tokens, memory.")
    ] = False,
    data_cache: Annotated[
        Path | None, typer.Option("--data-cache", help="Folder for checked rows; else that of datasets.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Train an embedder; on several GPUs by `torchrun --nproc-per-node N -m reasonembed_mteb train ...`."""
    set_up_logging(debug)
    from reasonembed_mteb.training.recipes import load_recipe, model_name

    loaded = load_recipe(recipe, changes)
    from reasonembed_mteb.training import run
    from reasonembed_mteb.training.building import is_main

    if dry_run:
        from reasonembed_mteb.training.plan import measure, plan_training

        rows = run.read_data(loaded, data, data_cache)
        plan = plan_training(loaded, rows, int(os.environ.get("WORLD_SIZE", "1")))
        measure(plan, loaded, rows)
        if is_main():
            _show_plan(plan, loaded, rows)
        return
    if output is None:
        msg = "name the folder of the run by --output (or look at the plan first by --dry-run)"
        raise ReasonEmbedError(msg)
    # Before the data is read, which can take minutes.
    model_name(loaded)
    done = run.train(loaded, data, output, resume=resume, cache=data_cache, say=say)
    if is_main():
        say(f"model: {done.model}" + (f"; adapter: {done.adapter}" if done.adapter else ""))
        say(f"score it with `reasonembed run -m {done.model} -b ...`")


@app.command("plot-training")
def plot_training(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or its metrics.csv.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="PNG; else training.png in the run.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw a run's loss and reasoning intensity by subset."""
    set_up_logging(debug)
    from reasonembed_mteb.training.metrics import plot_training as draw

    say(f"picture: {draw(run, output)}")


def _show_plan(plan: TrainingPlan, recipe: Recipe, data: TrainingData) -> None:
    """Print a dry run."""
    from reasonembed_mteb.training.data import describe_counts
    from reasonembed_mteb.training.plan import SAMPLE, SMALL_BATCH, start_name

    head = [
        "subset",
        "rows",
        "taken",
        "share",
        "left out",
        "group",
        "queries",
        "batches",
        "query",
        "reasoning",
        "document",
        "cut",
        "repeats",
        "reasoning cut",
    ]
    seen = sum(one.seen for one in plan.subsets)
    rows = []
    for one in plan.subsets:
        mean = plan.tokens.get(one.name)
        means = [f"{mean.query:.0f}", f"{mean.reasoning:.0f}", f"{mean.document:.0f}"] if mean else ["-"] * 3
        rows.append(
            [
                one.name,
                f"{one.rows:,}",
                f"{one.seen:,}",
                f"{one.seen / seen:.1%}",
                f"{one.left_out:,}",
                str(plan.groups[one.name]),
                f"{one.queries} x {one.world_size}",
                f"{one.batches:,}",
                *means,
                f"{mean.cut:.1%}" if mean else "-",
                f"{plan.short_rows[one.name]:,}",
                f"{mean.reasoning_cut:.1%}" if mean and mean.reasoning_cut == mean.reasoning_cut else "-",
            ]
        )
    title = (
        f"{recipe.name} from {start_name(recipe)}: would train (taken: rows of an epoch, and "
        f"their share; mean tokens of {SAMPLE} rows a subset; cut: documents over the length; repeats: rows "
        "with too few negatives for their group; reasoning cut: mean share of the reasoning over the length)"
    )
    show_table(head, rows, title)
    show(visible(describe_counts(data.counts)))
    part = recipe.training
    weighs = ""
    if plan.start_step is not None:
        weighs = f", weighs from step {plan.start_step} ({plan.weighted_steps:,} steps)"
    tokens = f"{plan.epoch_tokens:,}" if plan.epoch_tokens is not None else "unknown"
    show(
        f"{plan.steps:,} steps ({plan.batches:,} batches an epoch), {part.warmup:.0%} of them "
        f"warm-up{weighs}; tokens an epoch: {tokens}"
    )
    for note in plan.notes:
        show(visible(note))
    if plan.memory:
        shown = ", ".join(f"{name} {size:.2f}" for name, size in plan.memory.items())
        show(f"memory a device, estimated, GiB: {shown}")
        cached = plan.cached_memory()
        shared = recipe.sharding.kind != "none"
        if cached is not None and not shared and cached < plan.memory["total"] / 2:
            show(f"with --set loss.mini_batch_tokens={SMALL_BATCH} and the same result: {cached:.2f}")


@app.command()
def train_reranker(
    model: Annotated[str, typer.Argument(help="A cross-encoder, or an encoder that becomes one.")],
    data: Annotated[
        list[str], typer.Option("--data", help="Rows, as for `train`; grades are used; repeatable.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder of the run; new, or with --resume.")],
    loss: Annotated[
        str, typer.Option(help="lambda: over a query's documents; bce: pair by pair.")
    ] = "lambda",
    documents: Annotated[int, typer.Option(min=2, help="Documents of a query, at most.")] = 16,
    lowest: Annotated[float, typer.Option(help="Grade of what is not relevant at all.")] = 1.0,
    highest: Annotated[float, typer.Option(help="Grade of what is most relevant.")] = 5.0,
    instruction: Annotated[str | None, typer.Option(help="Put before each query.")] = None,
    max_length: Annotated[int | None, typer.Option(min=8, help="Tokens of a pair.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Queries a step (bce: pairs).")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak; it falls linearly to 0.")] = 2e-5,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    seed: Annotated[int, seed_option("Of everything that is drawn.")] = 42,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    debug: Debug = False,
) -> None:
    """Train a reranker on the same rows, by their graded labels."""
    set_up_logging(debug)
    from reasonembed_mteb.training.reranking import RerankerSettings
    from reasonembed_mteb.training.reranking import train_reranker as run

    settings = RerankerSettings(
        loss=loss,
        documents=documents,
        lowest=lowest,
        highest=highest,
        instruction=instruction,
        max_length=max_length,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        save_steps=save_steps,
        seed=seed,
    )
    found = run(model, data, output, settings, resume=resume, device=one_device(device))
    say(f"Reranker: {found}; `reasonembed mine --reranker {found}` asks it")
