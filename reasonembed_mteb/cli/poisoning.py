"""The command ``poison``: passages made to be retrieved, inserted into a corpus, and who retrieves them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reasonembed_mteb.cli.common import (
    MODELS_AND_TASKS,
    SPEED,
    BatchTokens,
    BeirInstruction,
    Debug,
    InstructionTemplate,
    NoStore,
    OutputFolder,
    Store,
    app,
    connect,
    say,
    show,
    shows_progress,
    vector_store,
)
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from reasonembed_mteb.robustness.poisoning import AttackSize

ATTACK = "Attack"


@app.command()
def poison(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Who is attacked: a dense model whose weights are at hand.",
            rich_help_panel=MODELS_AND_TASKS,
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Whose corpus is poisoned.", rich_help_panel=MODELS_AND_TASKS),
    ] = None,
    beir: Annotated[
        Path | None,
        typer.Option(help="A BEIR folder, in place of --task.", rich_help_panel=MODELS_AND_TASKS),
    ] = None,
    beir_split: Annotated[
        str | None,
        typer.Option(
            help="With --beir: the split that is attacked.",
            show_default="test",
            rich_help_panel=MODELS_AND_TASKS,
        ),
    ] = None,
    making_split: Annotated[
        str | None,
        typer.Option(
            help="The split whose queries make the passages, of the BEIR folder or of MTEB's own task.",
            show_default="half of the attacked split's, which are then not attacked",
            rich_help_panel=MODELS_AND_TASKS,
        ),
    ] = None,
    transfer: Annotated[
        list[str],
        typer.Option(
            help="A model that meets the same passages, of any kind; repeatable.",
            rich_help_panel=MODELS_AND_TASKS,
        ),
    ] = [],  # noqa: B006 - typer reads the default
    instruction: BeirInstruction = None,
    instruction_template: InstructionTemplate = None,
    attack: Annotated[
        list[str],
        typer.Option(
            help="gradient, copied, stuffing, instructions; repeatable.",
            show_default="all four",
            rich_help_panel=ATTACK,
        ),
    ] = [],  # noqa: B006
    passages: Annotated[
        int | None, typer.Option(help="How many.", show_default="10", rich_help_panel=ATTACK)
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Of a passage.", show_default="50", rich_help_panel=ATTACK)
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Of the search.", show_default="50", rich_help_panel=ATTACK)
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(help="Tokens tried in an iteration.", show_default="20", rich_help_panel=ATTACK),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="What passages begin as: relevant or nearest documents, or mask.",
            show_default="relevant",
            rich_help_panel=ATTACK,
        ),
    ] = None,
    special_tokens: Annotated[
        bool,
        typer.Option("--special-tokens", help="Passages may hold special tokens.", rich_help_panel=ATTACK),
    ] = False,
    official: Annotated[
        bool,
        typer.Option(
            "--official",
            help="The study's sizes (50 passages, 5,000 iterations, 100 candidates), special tokens allowed.",
            rich_help_panel=ATTACK,
        ),
    ] = False,
    seed: Annotated[
        list[int],
        typer.Option(
            help="Of the halves and the search; repeatable.", show_default="1999", rich_help_panel=ATTACK
        ),
    ] = [],  # noqa: B006
    k: Annotated[
        list[int],
        typer.Option(
            "--k",
            help="A passage counts as found among the first K; repeatable.",
            show_default="5, 10, 20, 50",
            rich_help_panel=ATTACK,
        ),
    ] = [],  # noqa: B006
    output_folder: OutputFolder = Path("results"),
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.", rich_help_panel=SPEED)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.", rich_help_panel=SPEED)] = 32,
    batch_tokens: BatchTokens = None,
    store: Store = None,
    no_store: NoStore = False,
    debug: Debug = False,
) -> None:
    """Measure how easily passages that are made to be retrieved get into a model's results."""
    connect(debug)
    from dataclasses import replace

    from reasonembed_mteb.evaluation.poisoning_record import keep_poisoning
    from reasonembed_mteb.evaluation.resolving import resolve_beside, resolve_model
    from reasonembed_mteb.reporting.formats import as_table
    from reasonembed_mteb.reporting.poisoning import poisoning_grid
    from reasonembed_mteb.robustness.attacks import ATTACKS
    from reasonembed_mteb.robustness.corpus_attack import PoisoningOptions, poison_corpus

    given = {"passages": passages, "tokens": tokens, "iterations": iterations, "candidates": candidates}
    size = _size(given | {"start": start}, special_tokens=special_tokens, official=official)
    options = PoisoningOptions(
        output=output_folder,
        size=size,
        attacks=tuple(dict.fromkeys(attack)) or ATTACKS,
        cutoffs=k or None,
        device=device,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        store=vector_store(output_folder, store, no_store=no_store),
        progress=shows_progress(debug),
    )
    seeds = list(dict.fromkeys(seed)) or [size.seed]
    for one in seeds:
        replace(size, seed=one).check()
    options.check()
    attacked, makers = _tasks(task, beir, beir_split, making_split, instruction)
    meta = resolve_model(model, template=instruction_template)
    others = [resolve_beside(one, instruction_template) for one in dict.fromkeys(transfer)]
    records = []
    for one in seeds:
        chosen = replace(options, size=replace(size, seed=one))
        record = poison_corpus(meta, attacked, chosen, makers=makers, transfer=others, say=say)
        records.append(keep_poisoning(output_folder, record))
        for kind, folder in record.folders.items():
            say(f"{kind}: the poisoned corpus is {output_folder / folder}")
    show(as_table(poisoning_grid(records)))
    say(f"`reasonembed report {output_folder}` shows it again")


def _size(given: dict[str, Any], *, special_tokens: bool, official: bool) -> AttackSize:
    """Return the size that was asked for: the study's or ours, changed where an option says so."""
    from dataclasses import replace

    from reasonembed_mteb.robustness.poisoning import STUDY_SIZE, AttackSize

    size = STUDY_SIZE if official else AttackSize()
    changed = replace(size, **{name: value for name, value in given.items() if value is not None})
    return replace(changed, special_tokens=True) if special_tokens else changed


def _tasks(
    task: str | None, beir: Path | None, split: str | None, making_split: str | None, instruction: str | None
) -> tuple[Any, Any]:
    """Return the task that is attacked, and the one whose queries make the passages, if that is another."""
    if (task is None) == (beir is None):
        msg = "give one corpus to poison: --task TASK or --beir FOLDER"
        raise ReasonEmbedError(msg)
    of_beir = {"--beir-split": split, "--instruction": instruction}
    for option, given in of_beir.items():
        if beir is None and given is not None:
            msg = f"{option} goes with --beir: a task has one split and its own instruction"
            raise ReasonEmbedError(msg)
    if beir is not None:
        from reasonembed_mteb.retrieval.beir_task import beir_task

        split = split or "test"
        if making_split == split:
            msg = f"--making-split {split} is the split that is attacked; give another, or leave it out"
            raise ReasonEmbedError(msg)
        makers = None if making_split is None else beir_task(beir, instruction, split=making_split)
        return beir_task(beir, instruction, split=split), makers
    from reasonembed_mteb.evaluation.resolving import resolve_tasks
    from reasonembed_mteb.robustness.poisoned import other_split

    found = resolve_tasks([], [str(task)])[0]
    return found, None if making_split is None else other_split(found, making_split)
