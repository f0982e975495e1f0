"""The task tables: one row of TOML per task, read once, with the standard library alone.

A table holds ``[defaults]`` and one ``[[task]]`` per row that says only what differs. ``base`` names
another table whose row of the same subset lies underneath; ``[rewritten]`` repeats every row with
another query config, ``[[collection]]`` names tasks that share data and are in no row, and ``[[suite]]``
makes one benchmark of several. With ``subsets_are_names = false`` a subset alone does not name its task.
``layouts.toml`` names the columns of each layout. Users' own tables come from the folders in
``REASONEMBED_TASKS`` and from `add_tables`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from reasonembed_mteb.errors import DataError, unknown_name
from reasonembed_mteb.retrieval.measures import EXAMPLES, MEASURE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from importlib.resources.abc import Traversable

TABLES_VARIABLE = "REASONEMBED_TASKS"
_LAYOUTS = "layouts.toml"
_SECTIONS = frozenset({"order", "subsets_are_names", "defaults", "task", "rewritten", "collection", "suite"})
# What the smaller sections hold: what each must, and what it may.
_NEEDED: dict[str, dict[str, type]] = {
    "collection": {"name": str, "tasks": list},
    "suite": {"name": str},
    "rewritten": {"path": str, "revision": str, "benchmark": str, "suffixes": dict},
}
_OPTIONAL: dict[str, dict[str, type]] = {
    "collection": {"about": str, "trained_on": bool},
    "suite": {"parts": list, "like": str, "about": str, "reference": str, "most_documents": int},
    "rewritten": {},
}
# Tables without an order of their own come last.
_LAST = 1000
# The name of a task is also that of its result file.
_NAME = re.compile(r"[\w.()-]+")
# As MTEB spells the main scores of a retrieval task; others are those that a row has measured besides.
_METRIC = re.compile(r"(ndcg|recall|map|mrr|precision|hit_rate)_at_(1|3|5|10|20|100|1000)")
# arXiv 2605.00063 sorts benchmarks so; which label a task has is our judgement (see docs/suite.md).
REASONING = ("deductive", "analogical", "causal", "analytical", "numerical")
DOMAINS = ("science", "medicine", "mathematics", "code", "technology", "society", "law", "general")


@dataclass(frozen=True)
class Collection:
    """Data that several tasks share.

    Attributes:
        name: As the column ``sources`` of a row spells it.
        trained_on: Whether the published checkpoints were trained on it.
        tasks: MTEB tasks over it that are in no row.
        about: What a reader of their scores has to know.
    """

    name: str
    trained_on: bool
    tasks: tuple[str, ...]
    about: str = ""


@dataclass(frozen=True)
class SuiteRow:
    """Several benchmarks as one, whose score is the mean of theirs.

    Attributes:
        name: The benchmark.
        parts: Names of our benchmarks.
        about: What it is, in a sentence.
        reference: Address.
        most_documents: Larger corpora are left out; 0 for none. A corpus whose size nobody says stays.
    """

    name: str
    parts: tuple[str, ...]
    about: str = ""
    reference: str = ""
    most_documents: int = 0

    def rows(self) -> dict[str, list[TaskRow]]:
        """Return the rows of each part; a part without any is left out."""
        most = self.most_documents
        held = {
            part: [row for row in benchmarks()[part] if not most or row.documents <= most]
            for part in self.parts
        }
        return {part: rows for part, rows in held.items() if rows}


@dataclass(frozen=True)
class TaskRow:
    """One task, as its table says it.

    Attributes:
        name: Our MTEB task name.
        subset: Subset of the benchmark, spelt as the data spells it.
        instruction: The sentence put before each query.
        wanted: What the task looks for; part of the description.
        kind: A word for the table, such as ``bright``.
        benchmark: Our benchmark that it is part of.
        layout: How the data is laid out; see ``layouts.toml``.
        path: Hub data set.
        revision: Its commit.
        corpus_config: Config of the documents.
        queries_config: Config of the queries.
        gold_column: Column (or config, for R2MED's layout) with the relevant documents.
        split: Split that is scored.
        main_score: MTEB's name of the metric.
        max_tokens: Longest input in tokens, queries and documents alike.
        queries_path: Hub data set of the queries; differs for rewritten queries.
        queries_revision: Its commit.
        mteb_name: MTEB's own task over the same data, or None.
        mteb_score: Main score of that task; by default the row's.
        family: Data that several tables share; rows of a family may be reported together.
        sources: Collections that its queries or documents come from; by default the family.
        mteb_benchmark: MTEB's own benchmark over the same data; empty for none.
        benchmark_reference: Address of the benchmark; by default the row's ``reference``.
        summary: What the benchmark holds, in a few words.
        about: Which documents a report's table is about.
        group: Group of subsets that has a mean of its own in reports; empty for none.
        short: Column head in reports; by default the subset.
        path_variable: Environment variable that names a local copy.
        copy_folder: Folder of the subset in a local copy; empty for the copy itself.
        data: Folder next to the table that holds the data itself; empty for the hub or a local copy.
        document_column: Column of a document's text.
        query_column: Column of a query's text.
        excluded_column: Column of the documents that do not count; empty for none.
        id_column: Column of documents' and queries' ids.
        title_column: Column of a title that goes before a document's text, with a blank; empty for none.
        query_title_column: Likewise for queries.
        corpus_split: Split of the documents; by default as the layout has it.
        queries_split: Split of the queries.
        labels_split: Split of the labels.
        label_columns: Columns of query id, document id and label, where labels are rows of their own.
        excluded_config: Config of the documents that do not count; empty for none.
        aspects_config: Config of the weighted aspects of queries (BRIGHT-Pro); empty for none.
        corpus_file: File of the documents in the data set, where it is read by file; may hold ``*``.
        queries_file: File of the queries.
        pools: Parts of the corpus that are searched one by one, MTEB's subsets of the task; empty for one.
        pool_part: Which part of a document's id, split at ``-``, names its pool.
        measures: Measures besides MTEB's; see `reasonembed_mteb.retrieval.measures`.
        queries: Number of queries that count, as published; 0 where nobody says.
        documents: Number of documents, as published; 0 where nobody says.
        query_characters: Mean length of a query, where MTEB has not counted it; 0 where nobody says.
        document_characters: Likewise of a document.
        same_queries: A word that tasks of a family with the same queries share; empty where the place that
            they are read from, or MTEB's statistics, tell.
        same_documents: Likewise for documents.
        domain: One of `DOMAINS`; empty for none.
        reasoning: Of `REASONING`, the primary kind first.
        unit: Tasks of a benchmark with one unit count as one task in its mean; empty for a task by itself.
        rewritten: Which rewriting its queries are; empty for the original ones.
        table: File that it is in.
    """

    name: str
    subset: str
    instruction: str
    kind: str
    benchmark: str
    layout: str
    path: str
    revision: str
    corpus_config: str
    queries_config: str
    gold_column: str
    queries_path: str
    queries_revision: str
    wanted: str = "relevant documents"
    split: str = "test"
    main_score: str = "ndcg_at_10"
    max_tokens: int = 8192
    description: str = "Find {wanted}."
    reference: str = ""
    license: str = ""
    date: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    task_subtypes: tuple[str, ...] = ()
    annotations_creators: str = ""
    sample_creation: str = ""
    citation: str = ""
    mteb_name: str | None = None
    mteb_score: str = ""
    family: str = ""
    sources: tuple[str, ...] = ()
    mteb_benchmark: str = ""
    benchmark_reference: str = ""
    summary: str = ""
    about: str = ""
    group: str = ""
    short: str = ""
    path_variable: str = ""
    copy_folder: str = ""
    data: str = ""
    document_column: str = "text"
    query_column: str = "text"
    excluded_column: str = ""
    id_column: str = "id"
    title_column: str = ""
    query_title_column: str = ""
    corpus_split: str = ""
    queries_split: str = ""
    labels_split: str = ""
    label_columns: tuple[str, ...] = ()
    excluded_config: str = ""
    aspects_config: str = ""
    corpus_file: str = ""
    queries_file: str = ""
    pools: tuple[str, ...] = ()
    pool_part: int = 1
    measures: tuple[str, ...] = ()
    queries: int = 0
    documents: int = 0
    query_characters: int = 0
    document_characters: int = 0
    same_queries: str = ""
    same_documents: str = ""
    domain: str = ""
    reasoning: tuple[str, ...] = ()
    unit: str = ""
    rewritten: str = ""
    table: str = ""

    @property
    def is_mtebs(self) -> bool:
        """Whether the task is one of MTEB's own, which loads its data itself."""
        return self.layout == MTEB_LAYOUT

    @property
    def is_rewritten(self) -> bool:
        """Whether the queries are rewritten ones, which never mix with the original."""
        return bool(self.rewritten)

    @property
    def mtebs_task(self) -> str | None:
        """The task of MTEB's own: the row's, or the one over the same data; None where there is none."""
        return self.name if self.is_mtebs else self.mteb_name

    def score_of(self, task: str) -> str:
        """Return the main score of one of the row's names.

        Args:
            task: One of `all_names`.
        """
        return self.main_score if task == self.name else self.mteb_score or self.main_score

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every MTEB task name over this row's data: ours, MTEB's own, and further ones."""
        own = (self.mteb_name,) if self.mteb_name is not None else ()
        return (self.name, *own)


# Filled in here, not by a table.
_DERIVED = frozenset({"rewritten", "table"})
_COLUMNS = {field.name: str(field.type) for field in fields(TaskRow) if field.name not in _DERIVED}
_TYPES = {"str": str, "str | None": str, "int": int, "tuple[str, ...]": list}
_WORDS = {str: "text", int: "a whole number", list: "a list", dict: "a table", bool: "true or false"}
_REQUIRED = ("name", "subset", "benchmark", "layout", "path")
_TEMPLATES = (
    "path",
    "reference",
    "description",
    "copy_folder",
    "data",
    "corpus_config",
    "queries_config",
    "gold_column",
    "corpus_file",
    "queries_file",
)
# The layout of rows that name a task of MTEB's.
MTEB_LAYOUT = "mteb"
# What names another table's own tasks and data, and is not inherited from it.
_OWN = frozenset(
    {
        "name",
        "mteb_name",
        "mteb_benchmark",
        "mteb_score",
        "sources",
        "path_variable",
        "data",
        "queries",
        "documents",
        "query_characters",
        "document_characters",
        "same_queries",
        "same_documents",
    }
)

_added: list[Path] = []


def tables_folder() -> Traversable:
    """Return the folder of the tables: installed package data, or the checkout's own ``tasks/``."""
    installed = files("reasonembed_mteb") / "tasks"
    if installed.joinpath(_LAYOUTS).is_file():
        return installed
    checkout = Path(__file__).resolve().parents[2] / "tasks"
    if not (checkout / _LAYOUTS).is_file():
        msg = f"the task tables are missing from this installation (looked in {installed}): reinstall"
        raise DataError(msg)
    return checkout


def add_tables(folders: str | Path | Iterable[str | Path]) -> None:
    """Read the tables of further folders too, after those of this package.

    Args:
        folders: One folder of TOML tables, or several.

    Raises:
        DataError: If a folder does not exist or holds no table, or a table cannot be read; the tables are
            then as they were.
    """
    given = [folders] if isinstance(folders, (str, Path)) else list(folders)
    new = [folder for one in given if (folder := Path(one).expanduser().resolve()) not in _added]
    before = list(_added)
    _added.extend(dict.fromkeys(new))
    _forget()
    try:
        load_rows()
        suites()
    except DataError:
        _added[:] = before
        _forget()
        raise


def _forget() -> None:
    for cached in (_tables, load_rows, collections, suites, _known):
        cached.cache_clear()


def is_users(row: TaskRow) -> bool:
    """Return whether a row is in a user's table, not in one of this package.

    Args:
        row: Any row.
    """
    return Path(row.table).is_absolute()


def _user_folders() -> list[Path]:
    """Return the folders of users' tables, those of the environment first."""
    named = [
        Path(name).expanduser() for name in os.environ.get(TABLES_VARIABLE, "").split(os.pathsep) if name
    ]
    folders = list(dict.fromkeys(folder.resolve() for folder in (*named, *_added)))
    for folder in folders:
        if not folder.is_dir():
            msg = f"no folder {folder} of task tables; correct {TABLES_VARIABLE} or register(tables=...)"
            raise DataError(msg)
        if not any(folder.glob("*.toml")):
            msg = f"{folder} holds no *.toml; give a folder of task tables"
            raise DataError(msg)
    return folders


@dataclass(frozen=True, eq=False)
class _Table:
    """One file: where it lies, what messages call it, and what it holds."""

    file: Traversable
    label: str
    folder: Traversable
    content: dict[str, Any]


@cache
def _tables() -> tuple[_Table, ...]:
    """Return every table: ours by their order, then users' by folder and name."""
    ours = [_open(file, file.name, tables_folder()) for file in _toml_files(tables_folder())]
    users = [_open(file, str(file), folder) for folder in _user_folders() for file in _toml_files(folder)]
    ours.sort(key=lambda table: (table.content.get("order", _LAST), table.label))
    return (*ours, *users)


def _toml_files(folder: Traversable) -> list[Traversable]:
    found = [file for file in folder.iterdir() if file.name.endswith(".toml") and file.name != _LAYOUTS]
    return sorted(found, key=lambda file: file.name)


def _read(file: Traversable, label: str) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        msg = f"{label} cannot be read as TOML in UTF-8: {error}; correct it"
        raise DataError(msg) from error


def _open(file: Traversable, label: str, folder: Traversable) -> _Table:
    content = _read(file, label)
    for section in content:
        if section not in _SECTIONS:
            _refuse(label, unknown_name("section", section, _SECTIONS))
    if not any(content.get(section) for section in ("task", "collection", "suite")):
        _refuse(label, "it has no [[task]], [[collection]] or [[suite]]; give it a task")
    for section, kind in (("defaults", dict), ("rewritten", dict), ("task", list)):
        if not isinstance(content.get(section, kind()), kind):
            _refuse(label, f"{section!r} must be {'[[task]]' if kind is list else f'[{section}]'}")
    for section in _NEEDED:
        found = content.get(section, [])
        for part in found if isinstance(found, list) else [found]:
            _check_section(label, section, part)
    return _Table(file, label, folder, content)


def _check_section(label: str, section: str, part: dict[str, Any]) -> None:
    allowed = _NEEDED[section] | _OPTIONAL[section]
    for key, value in part.items():
        if key not in allowed:
            _refuse(f"{label}, [{section}]", unknown_name("key", key, allowed))
        if not isinstance(value, allowed[key]):
            _refuse(f"{label}, [{section}]", f"{key} = {value!r} must be {_WORDS[allowed[key]]}")
    missing = [key for key in _NEEDED[section] if key not in part]
    if missing:
        _refuse(f"{label}, [{section}]", f"{', '.join(missing)} missing; add it")


def _refuse(where: str, problem: object) -> NoReturn:
    msg = f"{where}: {problem}"
    raise DataError(msg)


def _layouts() -> dict[str, dict[str, Any]]:
    return _read(tables_folder() / _LAYOUTS, _LAYOUTS)


def _make_row(given: dict[str, Any], table: _Table, number: int) -> TaskRow:
    """Build a row from merged values; derived values are filled by one rule for all tables."""
    where = f"{table.label}, task {given.get('name') or given.get('mteb_name') or number}"
    _check_values(given, where)
    values = _layouts().get(given.get("layout", ""), {}) | given
    if "name" not in values and "mteb_name" in values:
        values["name"] = "ReasonEmbed" + values["mteb_name"].removesuffix("Retrieval")
    values.setdefault("path", "MTEB's own" if values.get("layout") == MTEB_LAYOUT else values.get("data"))
    values.setdefault("kind", table.file.name.removesuffix(".toml"))
    missing = [key for key in _REQUIRED if not values.get(key)]
    # An empty one says that the benchmark's protocol has none.
    missing += ["instruction"] if "instruction" not in values else []
    if missing:
        _refuse(where, f"{', '.join(missing)} missing; add {'them' if len(missing) > 1 else 'it'}")
    if not _NAME.fullmatch(values["name"]):
        _refuse(
            where, f"name {values['name']!r} may hold letters, digits and _ . - ( ) only: it names a file"
        )
    _fill(values, where)
    values["table"] = table.label
    if values.get("data"):
        values["data"] = str(table.folder / values["data"])
    columns: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return TaskRow(**columns)


def _check_values(values: dict[str, Any], where: str) -> None:
    for key, value in values.items():
        if key not in _COLUMNS:
            _refuse(where, unknown_name("key", key, _COLUMNS))
        kind = _TYPES[_COLUMNS[key]]
        if not isinstance(value, kind) or isinstance(value, bool):
            _refuse(where, f"{key} = {value!r} must be {_WORDS[kind]}")
        if isinstance(value, list) and not all(isinstance(part, str) for part in value):
            _refuse(where, f"{key} = {value!r} must be a list of texts")
    _check_words(values, where)
    _check_metric(values.get("main_score", "ndcg_at_10"), values.get("measures", []), where)
    if values.get("max_tokens", 1) < 1:
        _refuse(where, f"max_tokens = {values['max_tokens']} must be 1 or more")


def _check_words(values: dict[str, Any], where: str) -> None:
    """Refuse words that are none of those allowed; the nearest is named."""
    allowed: dict[str, Sequence[str]] = {
        "layout": tuple(_layouts()),
        "domain": ("", *DOMAINS),
        "reasoning": REASONING,
    }
    for key, words in allowed.items():
        given = values.get(key, [])
        for word in given if isinstance(given, list) else [given]:
            if word not in words:
                _refuse(where, unknown_name(key, word, [one for one in words if one]))


def _check_metric(metric: str, measures: Sequence[str], where: str) -> None:
    for name in measures:
        if not MEASURE.fullmatch(name):
            _refuse(where, unknown_name("measure", name, EXAMPLES))
    if not _METRIC.fullmatch(metric) and metric not in measures:
        known = ("ndcg_at_10", "recall_at_1", "mrr_at_10", "map_at_10", *measures)
        nearest = difflib.get_close_matches(metric, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "; give one such as 'ndcg_at_10'"
        _refuse(where, f"unknown main_score {metric!r}{hint}")


def _fill(values: dict[str, Any], where: str) -> None:
    """Fill what a row leaves out from what it says."""
    known = {"subset": values["subset"], "wanted": values.get("wanted", TaskRow.wanted)}
    values.setdefault("description", TaskRow.description)
    for key in _TEMPLATES:
        try:
            values[key] = values.get(key, "").format(**known)
        except (KeyError, IndexError, ValueError):
            _refuse(where, f"{key} = {values[key]!r}: write {{subset}} or {{wanted}}; double any other brace")
    # Data next to the table is known by its content.
    held = values["data"] or values["layout"] == MTEB_LAYOUT
    values.setdefault("revision", "" if held else "main")
    values.setdefault("queries_path", values["path"])
    values.setdefault("queries_revision", values["revision"])
    values.setdefault("family", values["kind"])
    values.setdefault("sources", [values["family"]])
    values.setdefault("short", values["subset"])
    letters = re.sub(r"\W+", "_", values["family"]).upper()
    values.setdefault("path_variable", f"REASONEMBED_{letters}_PATH")


def _own_rows(table: _Table) -> list[TaskRow]:
    content = table.content
    defaults = dict(content.get("defaults", {}))
    base = defaults.pop("base", None)
    beneath = _rows_beneath(table, base) if base is not None else {}
    return [
        _make_row(beneath.get(str(row.get("subset")), {}) | defaults | row, table, number)
        for number, row in enumerate(content.get("task", []), 1)
    ]


def _rows_beneath(table: _Table, base: object) -> dict[str, dict[str, Any]]:
    """Return what rows inherit from another table's, by subset: of the same folder, or one of ours."""
    by_file = {str(other.file): other for other in _tables()}
    found = by_file.get(str(table.folder / str(base))) or by_file.get(str(tables_folder() / str(base)))
    if found is None:
        _refuse(table.label, unknown_name("base", str(base), sorted(other.file.name for other in _tables())))
    shared = found.content.get("defaults", {})
    return {
        str(row.get("subset")): {k: v for k, v in (shared | row).items() if k not in _OWN | {"base"}}
        for row in found.content.get("task", [])
    }


def _rewritten_rows(table: _Table, rows: Sequence[TaskRow]) -> list[TaskRow]:
    spec = table.content.get("rewritten")
    if spec is None:
        return []
    return [
        replace(
            row,
            name=row.name + suffix,
            benchmark=spec["benchmark"].format(config=config),
            description=f"{row.description} Queries rewritten with reasoning ({config}).",
            queries_config=config,
            queries_path=spec["path"],
            queries_revision=spec["revision"],
            rewritten=config,
        )
        for config, suffix in spec["suffixes"].items()
        for row in rows
    ]


@cache
def load_rows() -> tuple[TaskRow, ...]:
    """Return every task row, in the order of the tables.

    Raises:
        DataError: If a table is missing or cannot be read, a row holds an unknown key or value, or a task
            or benchmark is in another table already.
    """
    found: dict[str, TaskRow] = {}
    owners: dict[str, str] = {}
    for table in _tables():
        own = _own_rows(table)
        for row in (*own, *_rewritten_rows(table, own)):
            if row.name in found:
                other = found[row.name].table
                _refuse(table.label, f"task {row.name} is in {other} already; give it another name")
            owner = owners.setdefault(row.benchmark, table.label)
            if owner != table.label:
                problem = f"benchmark {row.benchmark} is in {owner} already; give it another name"
                _refuse(f"{table.label}, task {row.name}", problem)
            found[row.name] = row
    return tuple(found.values())


@cache
def collections() -> tuple[Collection, ...]:
    """Return the collections that tasks share, as the tables declare them."""
    return tuple(
        Collection(
            part["name"], bool(part.get("trained_on")), tuple(part["tasks"]), str(part.get("about", ""))
        )
        for table in _tables()
        for part in table.content.get("collection", [])
    )


@cache
def suites() -> dict[str, SuiteRow]:
    """Return the suites by name, as the tables declare them.

    Raises:
        DataError: If a part is no benchmark of ours, or the name is taken; the nearest is named.
    """
    found: dict[str, SuiteRow] = {}
    known = benchmarks()
    for table in _tables():
        for section in table.content.get("suite", []):
            suite = _make_suite(section, found, table.label)
            if suite.name in known or suite.name in found:
                _refuse(table.label, f"benchmark {suite.name} stands elsewhere already; give it another name")
            for part in suite.parts:
                if part not in known:
                    _refuse(f"{table.label}, suite {suite.name}", unknown_name("part", part, known))
            found[suite.name] = suite
    return found


def benchmark_rows(name: str) -> list[TaskRow]:
    """Return the rows of one of our benchmarks or suites.

    Args:
        name: Its name.

    Raises:
        UnknownNameError: If we have no such benchmark; the nearest is named.
    """
    if name in suites():
        return [row for rows in suites()[name].rows().values() for row in rows]
    if name not in benchmarks():
        raise unknown_name("benchmark", name, (*benchmarks(), *suites()))
    return benchmarks()[name]


def _make_suite(section: dict[str, Any], found: Mapping[str, SuiteRow], label: str) -> SuiteRow:
    values = dict(section)
    like = values.pop("like", None)
    if (like is None) == ("parts" not in values):
        _refuse(f"{label}, suite {values['name']}", "give parts, or like = the suite whose parts it has")
    if like is not None and like not in found:
        _refuse(f"{label}, suite {values['name']}", unknown_name("suite", like, found))
    values["parts"] = found[like].parts if like is not None else tuple(values["parts"])
    return SuiteRow(**values)


def training_tasks() -> set[str]:
    """Return every task over data that the published checkpoints were trained on.

    Whose data it is decides, not the name: a task of another benchmark that shares the data counts too.
    """
    trained_on = [collection for collection in collections() if collection.trained_on]
    names = {name for collection in trained_on for name in collection.tasks}
    sources = {collection.name for collection in trained_on}
    rows = (row for row in load_rows() if sources.intersection(row.sources))
    return names.union(*(row.all_names for row in rows))


@cache
def _known() -> dict[str, TaskRow]:
    """Return rows by every name: ours, MTEB's own, and subsets, whose first row counts."""
    rows = load_rows()
    found = {row.name: row for row in rows}
    # A rewritten row repeats the MTEB name of the original one, which comes first.
    for row in rows:
        for name in row.all_names:
            found.setdefault(name, row)
    nameless = {table.label for table in _tables() if not table.content.get("subsets_are_names", True)}
    for row in rows:
        if row.table not in nameless:
            found.setdefault(row.subset, row)
    return found


def find(name: str) -> TaskRow:
    """Return the row of a task.

    Args:
        name: Our task name, MTEB's name of a task over the same data, or a subset such as ``biology`` or
            ``PMC-Treatment``, which means the first benchmark that has it: passages, original queries.
            Subsets of further benchmarks, such as ``law``, are too common words to stand for their tasks.

    Raises:
        UnknownNameError: If no task is called so, with the nearest known name.
    """
    if name not in _known():
        # Of two that differ in case alone, the first counts.
        raise unknown_name("task", name, reversed(list(_known())))
    return _known()[name]


def row_of_task(task: str) -> TaskRow | None:
    """Return the row of an MTEB task name, ours or MTEB's own, or None where no table knows it.

    Args:
        task: MTEB task name; a subset is none.
    """
    found = _known().get(task)
    return found if found is not None and task in found.all_names else None


def row_of_subset(subset: str) -> TaskRow | None:
    """Return the row that a subset alone stands for, or None.

    Args:
        subset: See `find`; the name of a task is none.
    """
    found = _known().get(subset)
    return found if found is not None and subset not in found.all_names else None


def benchmarks() -> dict[str, list[TaskRow]]:
    """Return the rows of each of our benchmarks, by benchmark name."""
    grouped: dict[str, list[TaskRow]] = {}
    for task in load_rows():
        grouped.setdefault(task.benchmark, []).append(task)
    return grouped


def task_instructions() -> dict[str, str]:
    """Return the instruction of every MTEB task name we know: ours and MTEB's own."""
    return {name: task.instruction for name, task in _known().items() if name in task.all_names}


def instruction_for(task: str) -> str:
    """Return the instruction of a task.

    Args:
        task: See `find`.

    Raises:
        UnknownNameError: If no task is called so, with the nearest known name.
    """
    return find(task).instruction


def max_tokens_for(task: str, default: int = 8192) -> int:
    """Return the protocol's length for a task, in tokens.

    Args:
        task: An MTEB task name, ours or MTEB's own.
        default: What a task outside our tables gets.
    """
    known = row_of_task(task)
    return known.max_tokens if known else default
