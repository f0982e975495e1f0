"""Tables of scores: which results belong into one, its rows with means, groups, ranks and costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

from reasonembed_mteb.evaluation.kinds import kind_of
from reasonembed_mteb.evaluation.record import Record
from reasonembed_mteb.retrieval.rows import collections, load_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reasonembed_mteb.reporting.results import Model, Result, ResultSet
    from reasonembed_mteb.retrieval.rows import TaskRow

_THEIRS = ", MTEB's own"
_METRICS = {
    "ndcg": "nDCG",
    "alpha_ndcg": "alpha-nDCG",
    "recall": "recall",
    "map": "MAP",
    "mrr": "MRR",
    "precision": "precision",
}


@dataclass(frozen=True)
class TableKey:
    """One table's identity.

    Attributes:
        name: What it is called.
        family: Data that it shares with other tables, which may be set together on request.
        about: Which queries, which documents, whose tasks.
        metric: Name of the main score, or None where tasks differ.
        columns: The subsets of a whole row; empty where no table of ours says.
        published: Under which benchmark its published scores stand; empty for none.
        heads: Each column with its short head.
        groups: Each column that is part of a group, with the group.
        units: Each column that counts in the mean only together with others, with what they are.
        links: Each column with the address of its protocol or data.
    """

    name: str
    family: str
    about: str
    metric: str | None
    columns: tuple[str, ...] = ()
    published: str = ""
    heads: tuple[tuple[str, str], ...] = ()
    groups: tuple[tuple[str, str], ...] = ()
    units: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()


@cache
def _places_of(rows: tuple[TaskRow, ...]) -> dict[str, tuple[TableKey, str]]:
    """Return the table and column of every task of the rows: ours, MTEB's own, further ones."""
    members: dict[tuple[str, str, str, str], list[tuple[str, TaskRow]]] = {}
    for row in rows:
        for task, name, family, about in _tables_of(row):
            members.setdefault((name, family, about, row.score_of(task)), []).append((task, row))
    found: dict[str, tuple[TableKey, str]] = {}
    for (name, family, about, metric), tasks in members.items():
        table = TableKey(
            name,
            family,
            about,
            metric,
            columns=tuple(row.subset for _, row in tasks),
            published=name.removesuffix(_THEIRS),
            heads=tuple((row.subset, row.short) for _, row in tasks),
            groups=tuple((row.subset, row.group) for _, row in tasks if row.group),
            units=tuple((row.subset, row.unit) for _, row in tasks if row.unit),
            links=tuple((row.subset, row.reference) for _, row in tasks if row.reference),
        )
        found |= {task: (table, row.subset) for task, row in tasks}
    return found


def _places() -> dict[str, tuple[TableKey, str]]:
    # By the rows themselves: a user may add tables at any time.
    return _places_of(load_rows())


def _tables_of(row: TaskRow) -> Iterator[tuple[str, str, str, str]]:
    """Yield the tasks that share a row's data, each with the name, family and description of its table."""
    about = _about(row)
    if row.is_mtebs:
        yield (
            row.name,
            (row.mteb_benchmark or row.benchmark) + _THEIRS,
            row.family,
            f"{about}; MTEB's own tasks",
        )
        return
    yield row.name, row.benchmark, row.family, f"{about}; our tasks"
    if row.is_rewritten:
        return
    if row.mteb_name is not None and row.mteb_benchmark:
        yield row.mteb_name, row.mteb_benchmark + _THEIRS, row.family, f"{about}; MTEB's own tasks"


def table_order() -> dict[str, int]:
    """Return the place of each known table by name, in the order of the task tables."""
    names = dict.fromkeys(key.name for key, _ in _places().values())
    return {name: number for number, name in enumerate(names)}


def _about(row: TaskRow) -> str:
    queries = f"rewritten queries ({row.rewritten})" if row.is_rewritten else "original queries"
    return ", ".join(filter(None, (queries, row.about)))


def place(result: Result) -> tuple[TableKey, str]:
    """Return the table and the column of a result.

    Args:
        result: Of any task; one that no table of ours knows goes to a table of other tasks, an older one of
            several subsets to a table of its own.
    """
    found = _places().get(result.task)
    if found is None:
        found = _elsewhere(result)
    table, column = found
    kind = kind_of(result.model.name)
    if kind:
        # Never ranked with single models, not even where tables of one family are set together.
        table = replace(
            table,
            name=f"{table.name}, {kind}",
            family=f"{table.family}, {kind}",
            about=f"{kind}, apart from single models; {table.about}",
            published=f"{table.published}, {kind}" if table.published else "",
        )
    if result.limit is not None:
        name = f"{table.name}, first {result.limit} queries"
        about = f"smoke run over the first {result.limit} queries, not a result; {table.about}"
        table = replace(table, name=name, family=f"{table.family} smoke", about=about, published="")
    return table, column


def _elsewhere(result: Result) -> tuple[TableKey, str]:
    if result.subset != "default":
        about = f"split {result.split}; MTEB's own task"
        collection = next((one for one in collections() if result.task in one.tasks), None)
        if collection is not None and collection.about:
            about += f" {collection.about}"
        rows = [row for row in load_rows() if collection is not None and row.family == collection.name]
        key = TableKey(
            f"{result.task}, {result.split}",
            result.task,
            about,
            result.metric,
            heads=tuple(dict.fromkeys((row.subset, row.short) for row in rows)),
            groups=tuple(dict.fromkeys((row.subset, row.group) for row in rows if row.group)),
        )
        return key, result.subset
    metric = result.metric or "main score"
    key = TableKey(f"Other tasks, {metric}", f"other {metric}", "tasks of no table of ours", metric)
    return key, result.task


def metric_name(metric: str | None) -> str:
    """Return a metric as people write it, such as ``nDCG@10``.

    Args:
        metric: MTEB's name, such as ``ndcg_at_10``.
    """
    stem, at, cut = (metric or "main score").partition("_at_")
    return f"{_METRICS.get(stem, stem)}@{cut}" if at else stem


@dataclass(frozen=True)
class Mean:
    """A macro mean over what is there.

    Attributes:
        value: Mean score.
        count: Over how many subsets.
        of: How many there are.
    """

    value: float
    count: int
    of: int

    @property
    def whole(self) -> bool:
        """Whether no subset is missing."""
        return self.count == self.of


@dataclass(frozen=True)
class Cost:
    """What a row's scores cost, summed over its subsets.

    Attributes:
        seconds: Wall-clock time, or None where any subset's is unknown.
        tokens: Tokens encoded, or None.
        truncated: Inputs cut at the length, or None.
        dimensions: Size of a vector, or None (sparse models have none).
        device: Device names.
    """

    seconds: float | None = None
    tokens: int | None = None
    truncated: int | None = None
    dimensions: int | None = None
    device: str | None = None

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return any(value is not None for value in (self.seconds, self.tokens, self.dimensions, self.device))


@dataclass(frozen=True)
class ModelRow:
    """One model in one table.

    Attributes:
        model: The model.
        label: Its name here; no two rows share one.
        variant: Name of the table it comes from, where several are set together; else empty.
        cells: Results by column; a missing one is not there.
        mean: Macro mean over the columns, or None where metrics differ.
        groups: Macro mean of each group of columns that has any.
        rank: 1 for the best whole mean of the same variant; None for a mean over fewer subsets.
        cost: What it cost.
    """

    model: Model
    label: str
    variant: str
    cells: dict[str, Result]
    mean: Mean | None
    groups: dict[str, Mean]
    rank: int | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class ScoreTable:
    """One table.

    Attributes:
        name: What it is called.
        about: Which queries, which documents, whose tasks.
        metric: MTEB's name of the score, or None where it differs between rows.
        columns: Subsets.
        groups: Columns of each group.
        rows: The best whole mean first, then incomplete ones.
        notes: What a reader has to know.
        published: Under which benchmark its published scores stand; empty for none.
        heads: Short heads by column.
        links: Address of a column's protocol or data, where there is one.
    """

    name: str
    about: str
    metric: str | None
    columns: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    rows: list[ModelRow]
    notes: tuple[str, ...] = ()
    published: str = ""
    heads: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def head(self, column: str) -> str:
        """Return the short head of a column.

        Args:
            column: A subset, or the mean.
        """
        return self.heads.get(column, column)


def score_tables(results: ResultSet, *, together: bool = False) -> list[ScoreTable]:
    """Set results into tables.

    Args:
        results: What was read.
        together: Set tables of the same data into one (original and rewritten queries, long and short
            documents, our tasks and MTEB's own), each row labelled; ranks stay within each.

    Returns:
        One table per benchmark, in the order of our task tables, others last.
    """
    labels = results.labels
    placed: dict[TableKey, dict[Model, dict[str, Result]]] = {}
    for result in results.found:
        key, column = place(result)
        placed.setdefault(key, {}).setdefault(result.model, {})[column] = result
    tables = {key: _table(key, rows, labels) for key, rows in placed.items()}
    order = table_order()
    keys = sorted(tables, key=lambda key: (order.get(key.name, len(order)), key.name))
    if not together:
        return [tables[key] for key in keys]
    families: dict[str, list[ScoreTable]] = {}
    for key in keys:
        families.setdefault(key.family, []).append(tables[key])
    return [_merge(family, members) for family, members in families.items()]


def _table(
    key: TableKey, found: Mapping[Model, Mapping[str, Result]], labels: Mapping[Model, str]
) -> ScoreTable:
    seen = sorted({column for cells in found.values() for column in cells})
    columns = key.columns or tuple(seen)
    groups = {
        name: held
        for name in dict.fromkeys(name for _, name in key.groups)
        if (held := tuple(column for column, group in key.groups if group == name and column in columns))
    }
    # One group alone says no more than the mean.
    groups = groups if len(groups) > 1 else {}
    units = dict(key.units)
    rows = [_row(model, labels[model], cells, columns, groups, units) for model, cells in found.items()]
    return ScoreTable(
        key.name,
        key.about,
        key.metric,
        columns,
        groups,
        ranked(rows),
        _notes(rows),
        key.published,
        dict(key.heads),
        dict(key.links),
    )


def _row(
    model: Model,
    label: str,
    cells: Mapping[str, Result],
    columns: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    units: Mapping[str, str],
) -> ModelRow:
    return ModelRow(
        model=model,
        label=label,
        variant="",
        cells=dict(cells),
        mean=_mean(cells, columns, units),
        groups={name: mean for name, held in groups.items() if (mean := _mean(cells, held)) is not None},
        cost=_cost(cells.values()),
    )


def _mean(
    cells: Mapping[str, Result], columns: Sequence[str], units: Mapping[str, str] | None = None
) -> Mean | None:
    """Return the macro mean over what is there; columns of one unit count together as one."""
    held: dict[str, list[float]] = {}
    for column in columns:
        if column in cells:
            held.setdefault((units or {}).get(column, column), []).append(cells[column].score)
    means = [sum(scores) / len(scores) for scores in held.values()]
    count = sum(len(scores) for scores in held.values())
    return Mean(sum(means) / len(means), count, len(columns)) if means else None


def ranked(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """Sort rows by mean and give whole ones their rank; equal means share one.

    Args:
        rows: Rows of one table.
    """

    def order(row: ModelRow) -> tuple[bool, float, str]:
        return (not (row.mean and row.mean.whole), -(row.mean.value if row.mean else 0.0), row.label)

    means = [row.mean.value for row in rows if row.mean is not None and row.mean.whole]
    return [
        replace(row, rank=1 + sum(other > row.mean.value for other in means))
        if row.mean is not None and row.mean.whole
        else row
        for row in sorted(rows, key=order)
    ]


def _notes(rows: Iterable[ModelRow]) -> tuple[str, ...]:
    held = list(rows)
    notes: list[str] = []
    if any(row.mean is not None and not row.mean.whole for row in held):
        notes.append("* mean over fewer subsets (n/of): not ranked, not comparable with whole means")
    cells = [cell for row in held for cell in row.cells.values()]
    revisions: dict[str, set[str]] = {}
    for cell in cells:
        revisions.setdefault(cell.task, set()).add(cell.data_revision)
    torn = [task for task, found in revisions.items() if len(found) > 1]
    if torn:
        notes.append(f"models were scored on different data revisions of {', '.join(torn)}")
    return tuple(notes)


def _cost(cells: Iterable[Result]) -> Cost:
    held = list(cells)
    records = [cell.record or Record() for cell in held]
    costs = [record.cost for record in records]
    sizes = {cost.dimensions for cost in costs} - {None}
    if not sizes:
        sizes = {size for cell in held if isinstance(size := cell.meta.get("embed_dim"), int)}
    devices = [record.cost.device_name or record.device for record in records]
    return Cost(
        seconds=_total([cell.seconds for cell in held]),
        tokens=_whole(_total([cost.tokens for cost in costs])),
        truncated=_whole(_total([cost.truncated for cost in costs])),
        dimensions=sizes.pop() if len(sizes) == 1 else None,
        device=", ".join(sorted({str(device) for device in devices if device})) or None,
    )


def _total(values: Sequence[float | None]) -> float | None:
    """Return the sum, or None where a part is unknown: a partial sum would pass for cheap."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _merge(family: str, tables: Sequence[ScoreTable]) -> ScoreTable:
    if len(tables) == 1:
        return tables[0]
    columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    groups = max((table.groups for table in tables), key=len)
    metrics = {table.metric for table in tables}
    return ScoreTable(
        name=f"{family}, {len(tables)} tables together",
        about="; ".join(f"{table.name}: {table.about}" for table in tables),
        metric=metrics.pop() if len(metrics) == 1 else None,
        columns=columns,
        groups=groups,
        rows=[replace(row, variant=table.name) for table in tables for row in table.rows],
        notes=(
            "ranks hold within each of the tables",
            *dict.fromkeys(note for table in tables for note in table.notes),
        ),
        heads={column: head for table in tables for column, head in table.heads.items()},
        links={column: link for table in tables for column, link in table.links.items()},
    )
