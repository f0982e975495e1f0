"""The commands ``report`` and ``inspect``: tables and pages of results, and single queries."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reasonembed_mteb.cli.common import FAILED, Debug, app, say, show
from reasonembed_mteb.cli.show import set_up_logging, terminal_width
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reasonembed_mteb.reporting.inspecting import QueryEntry, QueryReport
    from reasonembed_mteb.reporting.results import ResultSet

Folders = Annotated[
    list[Path], typer.Argument(help="Output folders, MTEB result trees, folders of one model, or files.")
]


class Format(StrEnum):
    """What a report is written as."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"
    HTML = "html"
    PNG = "png"
    SVG = "svg"


@app.command()
def report(
    results: Folders,
    published: Annotated[bool, typer.Option("--published", help="Add published scores.")] = False,
    significance: Annotated[
        bool, typer.Option("--significance", help="Test every pair of models; needs scores by query.")
    ] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Add time, tokens, device and vector size.")] = False,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Set rewritten queries, long documents and MTEB's own tasks into one table with ours.",
        ),
    ] = False,
    format: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.TABLE,
    output: Annotated[
        Path | None, typer.Option(help="File to write (png, svg: a folder). Default: print it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    decimals: Annotated[int, typer.Option(min=0, max=5, help="Of scores in per cent.")] = 2,
    debug: Debug = False,
) -> None:
    """Set result folders, ours or anyone's, into tables, a page or pictures; one table per benchmark."""
    _check_output(output, format, overwrite)
    set_up_logging(debug)
    from reasonembed_mteb.files import write_whole
    from reasonembed_mteb.reporting.chapters import find_chapters
    from reasonembed_mteb.reporting.report import ReportOptions, draw_report, write_report
    from reasonembed_mteb.reporting.results import read_results

    found = read_results(results)
    chapters, left_out = find_chapters(results)
    found.problems += left_out
    if output is not None and format in (Format.PNG, Format.SVG):
        for file in draw_report(found, output, format.value, together=together, chapters=chapters):
            say(f"wrote {file}")
        _finish(found.problems)
        return
    wanted = ReportOptions(published, significance, cost, together, decimals)
    width = terminal_width() if output is None else None
    text, problems = write_report(found, wanted, format.value, width, chapters)
    if output is None:
        show(text)
    else:
        write_whole(output, text)
        say(f"wrote {output}")
    _finish([*found.problems, *problems])


def _check_output(output: Path | None, format: Format, overwrite: bool) -> None:
    if output is None and format in (Format.HTML, Format.PNG, Format.SVG):
        what = "FILE.html" if format is Format.HTML else "FOLDER"
        msg = f"--format {format} needs --output {what}"
        raise ReasonEmbedError(msg)
    if output is None or overwrite:
        return
    if output.is_dir() and format in (Format.PNG, Format.SVG):
        if any(output.glob(f"*.{format}")):
            msg = f"{output} holds {format} files already; give another folder, or --overwrite"
            raise ReasonEmbedError(msg)
        return
    if output.exists():
        msg = f"{output} exists; give another name, or --overwrite"
        raise ReasonEmbedError(msg)


def _finish(problems: Sequence[str]) -> None:
    """Name what was left out, and end with 1 if anything was."""
    for line in problems:
        say(f"LEFT OUT {line}")
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def inspect(
    results: Folders,
    task: Annotated[str | None, typer.Option("--task", "-t", help="MTEB task name.")] = None,
    query: Annotated[str | None, typer.Option(help="Query id: what every model found for it.")] = None,
    model: Annotated[list[str], typer.Option("--model", "-m", help="Model; repeatable.")] = [],  # noqa: B006
    worst: Annotated[
        int | None, typer.Option(min=1, help="The N queries on which one model scores worst.")
    ] = None,
    differ: Annotated[
        tuple[str, str] | None, typer.Option(help="Two models: the queries on which they disagree most.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Documents of --query, or queries of --differ.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print plain data with whole texts.")] = False,
    debug: Debug = False,
) -> None:
    """Look at single queries: what models found, where one is worst, where two differ."""
    if sum(option is not None for option in (query, worst, differ)) != 1:
        msg = "give one of --query ID (with --task), --worst N (with --model), --differ MODEL MODEL"
        raise ReasonEmbedError(msg)
    if query is not None and task is None:
        msg = "--query needs --task: ids repeat between tasks"
        raise ReasonEmbedError(msg)
    if worst is not None and len(model) != 1:
        msg = f"--worst looks at one model, and {len(model)} are given: give one -m MODEL"
        raise ReasonEmbedError(msg)
    set_up_logging(debug)
    from reasonembed_mteb.reporting import inspecting
    from reasonembed_mteb.reporting.results import read_results

    found = read_results(results)
    if query is not None and task is not None:
        _show(inspecting.inspect_query(found, task, query, model, top), as_json=json)
    elif worst is not None:
        listed = inspecting.worst(found, model[0], task, worst)
        _list(listed, [found.labels[found.model(model[0])]], as_json=json)
    elif differ is not None:
        listed = inspecting.differ(found, *differ, task, top)
        _list(listed, [found.labels[found.model(name)] for name in differ], as_json=json)
    _finish(_about(found, task))


def _about(found: ResultSet, task: str | None) -> list[str]:
    """Return the problems that bear on what was asked."""
    return [line for line in found.problems if task is None or f"{task}.json" in line]


def _show(look: QueryReport, *, as_json: bool) -> None:
    from dataclasses import asdict

    from reasonembed_mteb.reporting import formats

    if as_json:
        show(formats.to_json(asdict(look)))
        return
    show(formats.as_query_report(look, terminal_width()))


def _list(listed: Sequence[QueryEntry], models: Sequence[str], *, as_json: bool) -> None:
    from dataclasses import asdict

    from reasonembed_mteb.reporting import formats

    if as_json:
        rows = [asdict(one) | {"scores": dict(zip(models, one.scores, strict=True))} for one in listed]
        show(formats.to_json(rows))
        return
    show(formats.as_table(formats.query_grid(listed, models), terminal_width()))
