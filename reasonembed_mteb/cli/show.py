"""What the command line shows: tables, plans and instructions; text that cannot act."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from reasonembed_mteb.escaping import visible, visible_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TextIO

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.runner import Outcome

    # Makes a benchmark's score of its tasks' by name; None where that is not whole.
    _Mean = Callable[[Mapping[str, float]], float | None]

# Columns of a table that goes into a pipe, which has no width.
_PIPE_WIDTH = 200
# What progress bars and tables draw with: colours, and moves of the cursor within what is shown.
_DRAWING = re.compile(r"(\x1b\[[0-9;?]*[A-HJKmhl]|\r)")


class VisibleStream:
    """A text stream for a terminal or a pipe: whoever writes to it, what acts unseen is shown instead.

    Our own text is escaped where it is made; this holds for the libraries' warnings, logs and progress bars.
    On a terminal, colours and moves of the cursor pass: progress bars need them.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._draws = stream.isatty()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the stream's own
        """Return what the stream itself has."""
        return getattr(self._stream, name)

    def write(self, text: object) -> int:
        """Write text.

        Args:
            text: A str; characters that the stream's encoding lacks are shown by their code.

        Returns:
            Its length.

        Raises:
            TypeError: If it is anything else; click tries bytes on every stream to know its kind.
        """
        if not isinstance(text, str):
            msg = f"write() takes text, not {type(text).__name__}"
            raise TypeError(msg)
        parts = _DRAWING.split(text) if self._draws else [text]
        shown = "".join(part if place % 2 else visible_lines(part) for place, part in enumerate(parts))
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write lines, which bring their own line breaks.

        Args:
            lines: Texts.
        """
        for line in lines:
            self.write(line)


@contextmanager
def visible_output() -> Iterator[None]:
    """Put a `VisibleStream` before stdout and stderr for the time of the block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", VisibleStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Lines(logging.Formatter):
    """Our own messages are one line each; the libraries' may have several."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        own = record.name.startswith("reasonembed_mteb") and not record.exc_info
        return visible(text) if own else visible_lines(text)


def set_up_logging(debug: bool) -> None:
    """Keep the libraries quiet, whose advice is for programmers; our own warnings are shown.

    Args:
        debug: Show everything.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(message)s"))
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, handlers=[handler])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    if debug:
        logging.getLogger("reasonembed_mteb").setLevel(logging.DEBUG)
        return
    for name in ("HF_HUB", "DATASETS", "TRANSFORMERS"):
        # These set their own levels when they are imported.
        os.environ.setdefault(f"{name}_VERBOSITY", "error")
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    warnings.filterwarnings("ignore", category=UserWarning, module="mteb")
    # The last one warns where a model gets no instruction; the table before the run says so.
    for name in ("mteb", "sentence_transformers", "reasonembed_mteb.models.instructions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It sets its own level as well, and heeds no variable.
    logging.getLogger("bm25s").disabled = True


def show_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], title: str, *, sections: Sequence[int] = ()
) -> None:
    """Print a table; columns of numbers are set to the right.

    Args:
        head: Column names.
        rows: The cells; names and texts from data may stand in them.
        title: What the table shows.
        sections: Indices of rows that end a section.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(title)), box=box.SIMPLE, title_justify="left")
    for index, name in enumerate(head):
        justify = "right" if index and all(_is_number(row[index]) for row in rows) else "left"
        table.add_column(Text(visible(name)), overflow="fold", justify=justify)  # type: ignore[arg-type]
    for index, row in enumerate(rows):
        # Text, not strings: rich would take brackets in a name as mark-up.
        table.add_row(*(Text(visible(cell)) for cell in row), end_section=index in sections)
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def _is_number(cell: str) -> bool:
    return (
        cell in ("-", "failed", "incomplete")
        or cell.lstrip("~").rstrip("%").replace(",", "").replace(".", "").isdigit()
    )


def show_instructions(models: Sequence[ModelMeta], labels: Sequence[str], tasks: Sequence[AbsTask]) -> None:
    """Print what each model gets before the queries of each task; equal ones share a row.

    Args:
        models: MTEB metadata.
        labels: A name for each.
        tasks: MTEB tasks.
    """
    from reasonembed_mteb.models.instructions import describe_prefix, planned_prefix

    rows = []
    for meta, label in zip(models, labels, strict=True):
        grouped: dict[str, list[str]] = {}
        for task in tasks:
            grouped.setdefault(describe_prefix(planned_prefix(meta, task.metadata)), []).append(
                task.metadata.name
            )
        for prefix, names in grouped.items():
            which = (
                names[0]
                if len(names) == 1
                else f"all {len(names)} tasks"
                if len(grouped) == 1
                else ", ".join(names)
            )
            rows.append([label, which, prefix])
    show_table(["model", "task", "before each query"], rows, "Instructions")


def show_outcomes(outcomes: Sequence[Outcome], groups: Mapping[str, Sequence[str]], title: str) -> None:
    """Print tasks by models, with the score of each benchmark: a suite's own, else the macro mean.

    Args:
        outcomes: One per model and task.
        groups: Task names by benchmark; tasks of none have no mean.
        title: What the table shows.
    """
    models = list(dict.fromkeys(outcome.model for outcome in outcomes))
    found = {(outcome.task, outcome.model): outcome for outcome in outcomes}
    tasks = dict.fromkeys(outcome.task for outcome in outcomes)
    alone = [task for task in tasks if not any(task in names for names in groups.values())]
    rows: list[list[str]] = []
    sections = []
    for name, members in [*groups.items(), ("", alone)]:
        for task in members:
            metric = found[task, models[0]].metric
            rows.append([task, metric, *(_cell(found[task, model]) for model in models)])
        if name:
            sections += [len(rows) - 1, len(rows)]
            rows.append(_mean_row(name, [[found[task, model] for task in members] for model in models]))
    show_table(["task", "metric", *models], rows, title, sections=sections)


def _cell(outcome: Outcome) -> str:
    return "failed" if outcome.score is None else f"{100 * outcome.score:.2f}"


def _mean_row(name: str, columns: Sequence[Sequence[Outcome]]) -> list[str]:
    from reasonembed_mteb.retrieval.rows import suites

    what, score = _score_of(name, len(columns[0]))
    metrics = {outcome.metric for outcome in columns[0]}
    if len(metrics) == 1:
        return [f"{name}, {what}", metrics.pop(), *(_mean(outcomes, score) for outcomes in columns)]
    # Such as MTEB's BRIGHT(v1.1), whose long tasks have another main score; a suite is made of several.
    means = [_mean(outcomes, score) if name in suites() else "-" for outcomes in columns]
    return [f"{name}, {what}", "mixed", *means]


def _score_of(name: str, tasks: int) -> tuple[str, _Mean]:
    """Return what the score of a benchmark is, in words and as a function of its tasks' scores."""
    from reasonembed_mteb.retrieval.rows import benchmarks, suites
    from reasonembed_mteb.retrieval.suite import part_mean, score_suite, units_of

    if name in suites():
        suite = suites()[name]
        return f"mean of {len(suite.rows())} benchmark means", lambda scores: score_suite(suite, scores).score
    if name in benchmarks():
        rows = benchmarks()[name]
        return f"macro mean of {len(units_of(rows))}", lambda scores: part_mean(rows, scores)
    return f"macro mean of {tasks}", _plain_mean


def _plain_mean(scores: Mapping[str, float]) -> float:
    return math.fsum(scores.values()) / len(scores)


def _mean(outcomes: Sequence[Outcome], score: _Mean) -> str:
    scores = {outcome.task: outcome.score for outcome in outcomes if outcome.score is not None}
    mean = score(scores) if len(scores) == len(outcomes) else None
    return "incomplete" if mean is None else f"{100 * mean:.2f}"


def failure_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return one line for each model and error.

    Args:
        outcomes: One per model and task.
    """
    grouped: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            grouped.setdefault((outcome.model, outcome.error), []).append(outcome.task)
    return [f"FAILED {model} on {', '.join(tasks)}: {error}" for (model, error), tasks in grouped.items()]


def terminal_width() -> int | None:
    """Return the columns of the terminal, or None where the output goes into a file or a pipe."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
