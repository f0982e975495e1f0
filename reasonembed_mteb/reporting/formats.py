"""Tables and single queries as text: for a terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.escaping import csv_cell, latex, markdown, visible, visible_json
from reasonembed_mteb.reporting.tables import metric_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from reasonembed_mteb.reporting.inspecting import Document, QueryEntry, QueryReport
    from reasonembed_mteb.reporting.tables import Cost, Mean, ModelRow, ScoreTable
    from reasonembed_mteb.reporting.trails import Move, StageTrail

MISSING = "-"
# Columns of a terminal table that goes into a file or a pipe, which has no width.
_WIDTH = 200


@dataclass(frozen=True)
class Grid:
    """A table of words.

    Attributes:
        title: What it shows.
        head: Column names.
        rows: Cells.
        notes: Lines below.
        words: How many columns from the left hold words; the others are set to the right.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 1


def percent(score: float | None, decimals: int = 2) -> str:
    """Return a share as per cent, or a dash for a missing one.

    Args:
        score: ``[0, 1]``, or None.
        decimals: How many.
    """
    return MISSING if score is None else f"{100 * score:.{decimals}f}"


def mean_cell(mean: Mean | None, decimals: int = 2) -> str:
    """Return a mean; one over fewer subsets carries a star and how many.

    Args:
        mean: The mean, or None where nothing is there.
        decimals: How many.
    """
    if mean is None:
        return MISSING
    text = percent(mean.value, decimals)
    return text if mean.whole else f"{text}* ({mean.count}/{mean.of})"


def score_grid(table: ScoreTable, *, decimals: int = 2, marks: Mapping[str, str] | None = None) -> Grid:
    """Return a table of scores.

    Args:
        table: One of `score_tables`.
        decimals: Of every score.
        marks: A mark behind the mean, by label of the row.
    """
    variants = any(row.variant for row in table.rows)
    head = ("rank", "model", *(("table",) if variants else ()), "mean", *table.groups)
    rows = tuple(
        (
            MISSING if row.rank is None else str(row.rank),
            row.label,
            *((row.variant,) if variants else ()),
            f"{mean_cell(row.mean, decimals)} {(marks or {}).get(row.label, '')}".rstrip(),
            *(mean_cell(row.groups.get(name), decimals) for name in table.groups),
            *(_score(row, column, decimals) for column in table.columns),
        )
        for row in table.rows
    )
    metric = metric_name(table.metric) if table.metric else "main scores"
    title = f"{table.name}: {metric} in % ({table.about})"
    short = tuple(table.head(column) for column in table.columns)
    return Grid(title, (*head, *short), rows, table.notes, words=3 if variants else 2)


def _score(row: ModelRow, column: str, decimals: int) -> str:
    return percent(row.cells[column].score if column in row.cells else None, decimals)


def cost_grid(table: ScoreTable, *, decimals: int = 2) -> Grid | None:
    """Return each row's cost and mean, or None where nothing is known.

    Args:
        table: One of `score_tables`.
        decimals: Of the mean.
    """
    if not any(row.cost.known for row in table.rows):
        return None
    head = ("model", "device", "mean", "seconds", "tokens", "tokens/s", "cut", "vector size")
    rows = tuple(
        (
            " ".join(filter(None, (row.label, row.variant))),
            row.cost.device or MISSING,
            mean_cell(row.mean, decimals),
            *_costs(row.cost),
        )
        for row in table.rows
    )
    return Grid(f"{table.name}: quality and cost, all subsets together", head, rows, words=2)


def _costs(cost: Cost) -> tuple[str, ...]:
    speed = cost.tokens / cost.seconds if cost.tokens is not None and cost.seconds else None
    return (
        MISSING if cost.seconds is None else f"{cost.seconds:,.1f}",
        *(
            MISSING if value is None else f"{value:,.0f}"
            for value in (cost.tokens, speed, cost.truncated, cost.dimensions)
        ),
    )


def as_table(grid: Grid, width: int | None = None) -> str:
    """Return a grid for a terminal.

    Args:
        grid: Its cells may hold text from data; what acts on a terminal is shown instead.
        width: Columns of the terminal; None for a file.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(grid.title)), box=box.SIMPLE, title_justify="left")
    for index, name in enumerate(grid.head):
        justify = "left" if index < grid.words else "right"
        table.add_column(Text(visible(name)), overflow="fold", justify=justify)  # type: ignore[arg-type]
    for row in grid.rows:
        # Text, not strings: rich would take brackets in a name as mark-up.
        table.add_row(*(Text(visible(cell)) for cell in row))
    stream = io.StringIO()
    console = Console(file=stream, width=width or _WIDTH)
    console.print(table)
    for note in grid.notes:
        console.print(Text(f"  {visible(note)}"), soft_wrap=True)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def as_markdown(grid: Grid) -> str:
    """Return a grid as a GitHub table, its notes below."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(markdown, cells))} |"

    rule = ["---" if index < grid.words else "--:" for index in range(len(grid.head))]
    lines = [f"### {markdown(grid.title)}", "", line(grid.head), f"| {' | '.join(rule)} |"]
    lines += map(line, grid.rows)
    lines += [f"\n{markdown(note)}" for note in grid.notes]
    return "\n".join(lines) + "\n"


def as_latex(grid: Grid) -> str:
    """Return a grid as a LaTeX table with booktabs rules."""
    columns = "l" * grid.words + "r" * (len(grid.head) - grid.words)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(latex, cells)) + r" \\"

    lines = [
        "% \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(' '.join((grid.title + '.', *grid.notes)))}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        line(grid.head),
        r"\midrule",
        *map(line, grid.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def as_csv(tables: Sequence[ScoreTable]) -> str:
    """Return every score as one line: table, model, revision, subset, task, score in ``[0, 1]``, metric.

    Means and groups are lines of their own; a missing cell has no score.

    Args:
        tables: See `score_tables`.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ["table", "model", "revision", "kind", "subset", "task", "metric", "score", "count", "of", "rank"]
    writer.writerow(head)
    for line in _csv_lines(tables):
        # Every cell: names of models, folders, subsets and tasks all come from data.
        writer.writerow(map(csv_cell, line))
    return stream.getvalue()


def _csv_lines(tables: Sequence[ScoreTable]) -> Iterator[list[Any]]:
    for table in tables:
        for row in table.rows:
            start = [row.variant or table.name, row.label, row.model.revision]
            for column in table.columns:
                cell = row.cells.get(column)
                scored = [cell.task, cell.metric, cell.score] if cell else ["", "", ""]
                yield [*start, "subset", column, *scored, "", "", ""]
            for name, mean in (*row.groups.items(), ("", row.mean)):
                if mean is not None:
                    numbers = [mean.value, mean.count, mean.of]
                    kind, rank = ("group", "") if name else ("mean", row.rank or "")
                    yield [*start, kind, name, "", table.metric, *numbers, rank]


def as_data(table: ScoreTable) -> dict[str, Any]:
    """Return a table as plain data, for JSON.

    Args:
        table: One of `score_tables`.
    """
    return {
        "name": table.name,
        "about": table.about,
        "metric": table.metric,
        "columns": list(table.columns),
        "protocols": table.links,
        "groups": {name: list(members) for name, members in table.groups.items()},
        "notes": list(table.notes),
        "rows": [
            {
                "model": row.model.name,
                "label": row.label,
                "revision": row.model.revision,
                "options": row.model.options or None,
                "table": row.variant or table.name,
                "rank": row.rank,
                "mean": _mean_data(row.mean),
                "groups": {name: _mean_data(mean) for name, mean in row.groups.items()},
                "scores": {
                    column: row.cells[column].score if column in row.cells else None
                    for column in table.columns
                },
                "tasks": {column: cell.task for column, cell in row.cells.items()},
                "mteb_versions": sorted({cell.mteb_version for cell in row.cells.values()}),
                "cost": asdict(row.cost),
            }
            for row in table.rows
        ],
    }


def _mean_data(mean: Mean | None) -> dict[str, Any] | None:
    return None if mean is None else asdict(mean) | {"whole": mean.whole}


def to_json(content: Any) -> str:  # noqa: ANN401 - plain data
    """Return plain data as JSON; NaN is refused, which no other parser takes.

    Args:
        content: Plain data.
    """
    return visible_json(content) + "\n"


# What turns a grid into text; CSV and JSON are made from the numbers themselves.
GRID_FORMATS: dict[str, Callable[[Grid], str]] = {
    "table": as_table,
    "markdown": as_markdown,
    "latex": as_latex,
}


# Characters of a text that a list and a single query show; --json has all.
_LISTED, _SHOWN = 90, 300


def query_grid(listed: Sequence[QueryEntry], models: Sequence[str]) -> Grid:
    """Return queries as a table: scores in per cent, and the beginning of the text.

    Args:
        listed: Queries.
        models: Labels, one for each score.
    """
    gap = len(models) == 2
    rows = tuple(
        (
            one.task,
            one.query,
            _beginning(one.text, _LISTED),
            *(percent(score) for score in one.scores),
            *((f"{100 * (one.scores[0] - one.scores[1]):+.2f}",) if gap else ()),
        )
        for one in listed
    )
    title = f"Where {models[0]} and {models[1]} differ most" if gap else f"Where {models[0]} is worst"
    head = ("task", "query", "text", *models, *(("difference",) if gap else ()))
    return Grid(f"{title}, in %", head, rows, words=3)


def as_query_report(look: QueryReport, width: int | None = None) -> str:
    """Return one query with what models found, for a terminal.

    Args:
        look: The query.
        width: Columns of the terminal; None for a file.
    """
    # One line: a break in it could begin a line that looks like the report's own.
    text = visible(" ".join((look.text or look.missing or "(its text is not at hand)").split()))
    lines = [visible(f"{look.task}, query {look.query}"), text, ""]
    for answer in look.answers:
        head = ("rank", "document", "score", "relevant", "text")
        top = tuple(_document_row(document) for document in answer.top)
        title = f"{answer.model}: {look.metric} {percent(answer.score)} %"
        lines.append(as_table(Grid(title, head, top, words=5), width))
        gold = tuple(_document_row(document) for document in answer.gold)
        lines.append(as_table(Grid("relevant documents", head, gold, words=5), width))
    for trail in look.trails:
        for stage in trail.stages:
            lines += _trail_lines(trail.pipeline, stage, look, width)
    return "\n".join(lines)


def _trail_lines(pipeline: str, stage: StageTrail, look: QueryReport, width: int | None) -> Iterator[str]:
    """Yield one stage of a pipeline: what it wrote, and what it moved."""
    yield visible(f"{pipeline}, {stage.stage} ({stage.kind})")
    for own in stage.texts.values():
        # Most repeat the query first.
        written = [text.removeprefix(look.text or "").strip() or text for text in own]
        yield from (visible(f"  {_beginning(text, 3 * _SHOWN)}") for text in written)
    head = ("rank", "before", "document", "score", "relevant", "text")
    for name, moves in stage.top.items():
        rows = tuple(_move_row(move, look.documents) for move in moves)
        ranks = ", ".join(MISSING if one.rank is None else str(one.rank) for one in stage.gold[name])
        title = name if len(stage.top) > 1 else stage.stage
        yield as_table(
            Grid(title, head, rows, (f"ranks of the relevant documents: {ranks}",), words=6), width
        )


def _move_row(move: Move, texts: Mapping[str, str]) -> tuple[str, ...]:
    return (
        MISSING if move.rank is None else str(move.rank),
        MISSING if move.before is None else str(move.before),
        move.document,
        MISSING if move.score is None else f"{move.score:.4f}",
        "yes" if move.relevant else "",
        _beginning(texts.get(move.document), _SHOWN),
    )


def _document_row(document: Document) -> tuple[str, ...]:
    return (
        MISSING if document.rank is None else str(document.rank),
        document.id,
        MISSING if document.score is None else f"{document.score:.4f}",
        "yes" if document.relevant else "",
        _beginning(document.text, _SHOWN),
    )


def _beginning(text: str | None, length: int) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
