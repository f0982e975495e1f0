"""Sharing: ``export-beir``, ``check-submission`` and ``export-modelmeta``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reasonembed_mteb.cli.common import FAILED, Debug, app, connect, say, show
from reasonembed_mteb.cli.show import set_up_logging, show_table
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.escaping import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reasonembed_mteb.sharing.submission import Finding


@app.command("export-beir")
def export_beir(
    task: Annotated[str, typer.Argument(help="Task, ours or MTEB's.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    debug: Debug = False,
) -> None:
    """Write a task as a BEIR folder, with a file of its exclusions."""
    connect(debug)
    import shlex

    from reasonembed_mteb.evaluation.resolving import resolve_tasks
    from reasonembed_mteb.retrieval.beir_task import export_beir as export
    from reasonembed_mteb.retrieval.rows import task_instructions

    (found,) = resolve_tasks([], [task])
    counts = export(found, folder)
    show(f"{visible(folder)}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    instruction = task_instructions().get(task)
    options = f" --instruction {shlex.quote(instruction)}" if instruction else ""
    say(f"To score a model on it: reasonembed run -m MODEL --beir {shlex.quote(str(folder))}{options}")


Output = Annotated[Path, typer.Argument(help="A run's output folder.")]


@app.command("check-submission")
def check_submission(results: Output, debug: Debug = False) -> None:
    """Check results against the rules of MTEB's results repository; nothing is sent, mteb itself submits."""
    connect(debug)
    from reasonembed_mteb.sharing import submission

    root = submission.results_root(results)
    findings = submission.check_submission(results)
    if findings:
        head = ["", "what", "where", "problem", "remedy"]
        show_table(head, _grouped(findings, root), f"What MTEB's results repository would say of {root}")
    if any(one.refused for one in findings):
        raise typer.Exit(FAILED)
    say(f"Nothing would be refused. To submit: {submission.submit_command(results)}")


@app.command(hidden=True)
def submit(
    results: Output,
    check: Annotated[bool, typer.Option("--check", help="The old spelling of check-submission.")] = False,
    debug: Debug = False,
) -> None:
    """Be the old spelling of check-submission; mteb itself submits."""
    if not check:
        from reasonembed_mteb.sharing.submission import submit_command

        msg = (
            "submitting is mteb's own job: use `reasonembed check-submission` first, then run "
            f"`{submit_command(results)}`"
        )
        raise ReasonEmbedError(msg)
    say("`submit --check` is now `reasonembed check-submission`; the old spelling goes with a later version")
    check_submission(results, debug)


def _grouped(findings: Sequence[Finding], root: Path) -> list[list[str]]:
    """Return one row for all files of a folder that share a problem."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for one in findings:
        where = one.where.relative_to(root)
        key = ("refused" if one.refused else "asked", one.kind, str(where.parent), one.problem, one.remedy)
        rows.setdefault(key, []).append(where.name)
    return [
        [status, kind, f"{folder}/{names[0]}" + (f" and {len(names) - 1} more" if names[1:] else ""), *rest]
        for (status, kind, folder, *rest), names in rows.items()
    ]


@app.command("export-modelmeta")
def export_modelmeta(
    model: Annotated[
        list[str] | None, typer.Argument(help="Published checkpoints; all six by default.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the files here instead of printing one.")] = None,
    revision: Annotated[list[str], typer.Option(help="NAME=COMMIT, which mteb asks for; repeatable.")] = [],  # noqa: B006 - typer reads the default
    debug: Debug = False,
) -> None:
    """Write the file and the prompts that a pull request to mteb needs for the checkpoints."""
    set_up_logging(debug)
    from reasonembed_mteb.files import write_whole
    from reasonembed_mteb.sharing import modelmeta

    contents = modelmeta.export_modelmeta(model or (), revisions=_pairs(revision))
    if output is None:
        show(contents[modelmeta.MODULE])
        say(f"--output FOLDER also writes {modelmeta.PROMPTS} and {modelmeta.REQUEST}")
        return
    there = [name for name in contents if (output / name).exists()]
    if there:
        msg = f"{output} has {', '.join(there)} already; move them away or give another folder"
        raise ReasonEmbedError(msg)
    for name, content in contents.items():
        write_whole(output / name, content)
        show(visible(output / name))


def _pairs(options: list[str]) -> dict[str, str]:
    for option in options:
        if option.count("=") != 1:
            msg = f"--revision {option!r} must be NAME=COMMIT"
            raise ReasonEmbedError(msg)
    return dict(option.split("=") for option in options)
