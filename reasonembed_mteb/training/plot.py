"""A run in one picture: loss and reasoning intensity by subset."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import missing_extra
from reasonembed_mteb.files import replacing
from reasonembed_mteb.training.metrics import read_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Share of the run over which the lines are averaged.
_SMOOTHING = 0.05


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
    _mark_start(folder, (upper, lower))
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


def _mark_start(folder: Path, axes: Sequence[Any]) -> None:
    record = folder / "run.json"
    if not record.is_file():
        return
    loss = json.loads(record.read_text(encoding="utf-8"))["recipe"]["loss"]
    if loss["kind"] == "redapter":
        for one in axes:
            one.axvline(loss["start_step"], color="grey", linestyle=":", linewidth=1)
