"""A run's metrics: a CSV with one line a batch, in step with the checkpoints, and a picture of it."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, missing_extra
from reasonembed_mteb.files import read_json_object, replacing, write_whole
from reasonembed_mteb.training.schema import LossPart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

METRICS = (
    "loss",
    "loss_unweighted",
    "loss_reasoning",
    "ri_min",
    "ri_mean",
    "ri_median",
    "ri_max",
    "ri_clipped",
    "rows_without_reasoning",
    "documents_masked",
)
# Of the first process' share of a batch.
CUT = "reasoning_cut"
# The divergence from graded labels, of a loss that has it.
GRADED = "loss_grades"
# 1 where the step was left out, its loss or gradient not being finite; empty elsewhere.
LEFT_OUT = "left_out"
# The terms of a joint loss, and the rows that have a target of each.
JOINT = (
    "loss_representation",
    "loss_generation",
    "loss_compression",
    "rows_with_generation",
    "rows_with_compression",
)
# Runs of earlier versions have no such columns.
NEWER = (CUT, GRADED, LEFT_OUT, *JOINT)
COLUMNS = (
    *("step", "epoch", "subset", "queries", "documents", "tokens"),
    *(*METRICS, *NEWER, "learning_rate", "seconds"),
)
# Share of the run over which the lines are averaged.
_SMOOTHING = 0.05
EVALUATION_COLUMNS = ("step", "task", "metric", "score")


class MetricsFile:
    """A CSV file that grows by whole lines, and is cut back to a step when a run resumes."""

    def __init__(self, file: Path, columns: Sequence[str] = COLUMNS) -> None:
        """Name the file; nothing is written yet.

        Args:
            file: Where to.
            columns: Its columns, ``step`` among them.
        """
        self.file = file
        self.columns = tuple(columns)

    def start(self, step: int = 0) -> None:
        """Begin the file, or keep what was written up to a step.

        Args:
            step: Last step to keep; a line that a kill cut short is dropped.

        Raises:
            ReasonEmbedError: If it cannot be written.
        """
        kept = [row for row in self._whole_rows() if int(row["step"]) <= step] if step else []
        write_whole(
            self.file, _lines(self.columns, [dict(zip(self.columns, self.columns, strict=True)), *kept])
        )

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add lines.

        Args:
            rows: Values by column; absent and NaN ones stay empty.

        Raises:
            ReasonEmbedError: If they cannot be written, a full disk for one.
        """
        try:
            with self.file.open("a", encoding="utf-8", newline="") as stream:
                # In one piece: a kill leaves whole lines, or a last one without its line break.
                stream.write(_lines(self.columns, rows))
        except OSError as error:
            msg = f"cannot write {self.file}: {error.strerror}; free space, then go on with --resume"
            raise ReasonEmbedError(msg) from error

    def _whole_rows(self) -> list[dict[str, str]]:
        if not self.file.is_file():
            return []
        text = self.file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        rows = csv.DictReader(io.StringIO(whole, newline=""))
        return [row for row in rows if None not in row.values() and row.get("step", "").isdigit()]


def _lines(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    return stream.getvalue()


def _cell(value: Any) -> Any:  # noqa: ANN401 - what csv takes
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.8g}"
    return value


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read a run's metrics.

    Args:
        file: ``metrics.csv``, or the run's folder.

    Returns:
        One mapping a batch; numbers as floats, empty cells as NaN.

    Raises:
        DataError: If there are none.
    """
    file = file / "metrics.csv" if file.is_dir() else file
    if not file.is_file():
        msg = f"there is no {file}: give the folder of a run (the --output of `reasonembed train`)"
        raise DataError(msg)
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if None not in row.values()]
    try:
        found = [{name: _value(name, value) for name, value in row.items()} for row in rows]
    except (TypeError, ValueError) as error:
        msg = f"{file} is no file of metrics of ours: {error}"
        raise DataError(msg) from error
    if not found or not set(COLUMNS) - set(NEWER) <= found[0].keys():
        msg = f"{file} holds no step yet" if not found else f"{file} is no file of metrics of ours"
        raise DataError(msg)
    return found


def _value(name: str, value: str) -> Any:  # noqa: ANN401
    if name == "subset":
        return value
    return float(value) if value else math.nan


@dataclass(frozen=True)
class RunSummary:
    """What became of a run's steps.

    Attributes:
        weighted: Steps in which queries were weighted by reasoning intensity.
        cut: Mean share of the reasoning that was cut away, by subset; NaN where none was read.
        left_out: Steps that were left out, their loss or gradient not being finite.
    """

    weighted: int
    cut: dict[str, float]
    left_out: int = 0


def summarise(file: Path) -> RunSummary:
    """Sum a run up, from its first step to its last.

    Args:
        file: As of `read_metrics`.

    Raises:
        DataError: If there are no metrics.
    """
    rows = read_metrics(file)
    cuts: dict[str, list[float]] = {}
    for row in rows:
        cuts.setdefault(row["subset"], []).append(row.get(CUT, math.nan))
    means = {name: [value for value in values if not math.isnan(value)] for name, values in cuts.items()}
    weighted = {row["step"] for row in rows if not math.isnan(row["ri_mean"])}
    left_out = {row["step"] for row in rows if row.get(LEFT_OUT) == 1}
    shares = {name: sum(held) / len(held) if held else math.nan for name, held in means.items()}
    return RunSummary(len(weighted), shares, len(left_out))


class Window:
    """Means over the batches since the last line of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a batch in; what is NaN does not count.

        Args:
            row: Its line in the CSV.
        """
        named = {name: row[name] for name in METRICS} | {name: row.get(name, math.nan) for name in NEWER}
        named[f"ri_mean/{row['subset']}"] = row["ri_mean"]
        named[f"loss_unweighted/{row['subset']}"] = row["loss_unweighted"]
        for name, value in named.items():
            if not math.isnan(value):
                self._sums.setdefault(name, []).append(float(value))

    def close(self) -> dict[str, float]:
        """Return the means (the least and the largest of ``ri_min`` and ``ri_max``), and begin anew."""
        reduce = {"ri_min": min, "ri_max": max}
        means = {
            name: float(reduce[name](values) if name in reduce else sum(values) / len(values))
            for name, values in self._sums.items()
        }
        self._sums.clear()
        return means


def plot_training(run: Path, picture: Path | None = None) -> Path:
    """Draw a run's loss and reasoning intensity by subset.

    Args:
        run: The run's folder, or its ``metrics.csv``.
        picture: PNG to write; None writes ``training.png`` beside the metrics.

    Returns:
        The picture.

    Raises:
        DataError: If there are no metrics.
        MissingExtraError: If matplotlib is not installed.
        ReasonEmbedError: If the picture cannot be written.
    """
    rows = read_metrics(run)
    folder = run if run.is_dir() else run.parent
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "report") from None
    # Without pyplot: no window system is asked for, no state is kept.
    figure = Figure(figsize=(9, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name in dict.fromkeys(row["subset"] for row in rows):
        own = [row for row in rows if row["subset"] == name]
        _line(upper, own, "loss_unweighted", name)
        _line(lower, own, "ri_mean", name)
    _line(upper, rows, "loss_unweighted", "all", color="black", linewidth=2)
    upper.set_ylabel("InfoNCE, unweighted")
    lower.set_ylabel("reasoning intensity, mean of the batch")
    lower.set_xlabel("step")
    lower.xaxis.get_major_locator().set_params(integer=True)
    if not lower.lines:
        lower.text(0.5, 0.5, "no step was weighted", ha="center", va="center", transform=lower.transAxes)
    _mark_start(folder, (upper, lower), last=max(row["step"] for row in rows))
    upper.legend(fontsize="small", ncols=3, frameon=False)
    target = picture or folder / "training.png"
    with replacing(target) as part:
        figure.savefig(part, format="png", dpi=150)
    return target


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Average each value with those before it.

    Args:
        values: Numbers.
        width: How many, at most.
    """
    means = []
    for index in range(len(values)):
        part = values[max(0, index - width + 1) : index + 1]
        means.append(sum(part) / len(part))
    return means


def _line(axes: Any, rows: Sequence[dict[str, Any]], name: str, label: str, **style: Any) -> None:  # noqa: ANN401
    # NaN, where the loss did not weigh, differs from itself.
    points = [(row["step"], row[name]) for row in rows if row[name] == row[name]]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    width = max(1, round(_SMOOTHING * len(values)))
    axes.plot(steps, smooth(values, width), label=label, **({"linewidth": 1, "marker": "."} | style))


def _mark_start(folder: Path, axes: Sequence[Any], last: float) -> None:
    """Draw a line where weighting begins; one beyond the last step would squeeze the curves into a corner."""
    held = read_json_object(folder / "run.json")
    if held is None or "recipe" not in held:
        return
    loss = LossPart.model_validate(held["recipe"]["loss"])
    if loss.kind == "redapter" and (first := loss.first_weighted_step(held["steps"])) <= last:
        for one in axes:
            one.axvline(first, color="grey", linestyle=":", linewidth=1)
