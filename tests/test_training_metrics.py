"""The CSV of a run, its plan's arithmetic, its card, its picture."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.training.metrics import (
    COLUMNS,
    METRICS,
    MetricsFile,
    Window,
    plot_training,
    read_metrics,
    smooth,
    summarise,
)
from reasonembed_mteb.training.modelcard import public_name

if TYPE_CHECKING:
    from pathlib import Path


def row(step: int, **values: Any) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS, 1.0) | {"step": step, "subset": "biology"} | values


def test_lines_come_back(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.start()
    file.append([row(1, ri_mean=math.nan), row(2, loss=1 / 3, subset='a, "b"')])
    found = read_metrics(tmp_path)
    assert [one["step"] for one in found] == [1, 2]
    assert math.isnan(found[0]["ri_mean"])
    assert found[1]["loss"] == pytest.approx(1 / 3, rel=1e-7)
    assert found[1]["subset"] == 'a, "b"'


def test_a_resumed_file_is_cut_back(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.start()
    file.append([row(step) for step in range(1, 6)])
    with file.file.open("a") as stream:
        # What a kill leaves of a line: here it even looks like an earlier step.
        stream.write("2")
    file.start(3)
    file.append([row(4)])
    assert [one["step"] for one in read_metrics(tmp_path)] == [1, 2, 3, 4]
    file.start(0)
    with pytest.raises(DataError, match="holds no step yet"):
        read_metrics(tmp_path)


def test_means_leave_out_what_is_not_there() -> None:
    window = Window()
    values = dict.fromkeys(METRICS, 1.0)
    window.add(values | {"subset": "a", "loss": 1.0, "ri_mean": math.nan, "ri_max": 2.0})
    window.add(values | {"subset": "b", "loss": 4.0, "ri_mean": 3.0, "ri_max": 5.0})
    means = window.close()
    assert means["loss"] == 2.5
    assert means["ri_mean"] == means["ri_mean/b"] == 3.0
    assert means["ri_max"] == 5.0
    assert "ri_mean/a" not in means
    assert window.close() == {}


def test_smoothing_looks_back() -> None:
    assert smooth([2.0, 4.0, 6.0, 8.0], 2) == [2.0, 3.0, 5.0, 7.0]
    assert smooth([2.0, 4.0], 1) == [2.0, 4.0]


def test_a_run_is_summed_up_from_its_file(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.start()
    nan = {"ri_mean": math.nan}
    # Two batches of a step that weighs, one of them without any reasoning query.
    file.append(
        [row(1, **nan), row(2, reasoning_cut=0.5), row(2, subset="pony", **nan, reasoning_cut=math.nan)]
    )
    found = summarise(file.file)
    assert found.weighted == 1
    assert found.cut["biology"] == 0.75
    assert math.isnan(found.cut["pony"])


def test_metrics_of_earlier_versions_are_read(tmp_path: Path) -> None:
    columns = [name for name in COLUMNS if name != "reasoning_cut"]
    file = MetricsFile(tmp_path / "metrics.csv", columns)
    file.start()
    file.append([row(1)])
    assert "reasoning_cut" not in read_metrics(tmp_path)[0]
    assert math.isnan(summarise(file.file).cut["biology"])


def test_a_picture_shows_each_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[str, int]] = []
    own = Axes.plot

    def plot(self: Axes, steps: Any, values: Any, *, label: str, **style: Any) -> Any:
        drawn.append((label, len(steps)))
        return own(self, steps, values, label=label, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    file = MetricsFile(tmp_path / "metrics.csv")
    file.start()
    file.append([row(1, ri_mean=math.nan), row(2), row(3, subset="pony", ri_mean=math.nan)])
    assert plot_training(tmp_path, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == [("biology", 2), ("biology", 1), ("pony", 1), ("all", 3)]
    for record in ("{", "{}"):
        (tmp_path / "run.json").write_text(record)
        assert plot_training(tmp_path) == tmp_path / "training.png"


@pytest.mark.parametrize(("start", "marked"), [(2, True), (100, False)])
def test_a_short_run_fills_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, marked: bool
) -> None:
    """Where weighting begins after the last step, its line is left out, and the empty half says why it is."""
    from matplotlib.axes import Axes

    said: list[str] = []
    lines: list[float] = []
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **style: said.append(text))
    monkeypatch.setattr(Axes, "axvline", lambda self, x, **style: lines.append(x))
    loss = {"kind": "redapter", "start_step": start}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"loss": loss}, "steps": 3}))
    file = MetricsFile(tmp_path / "metrics.csv")
    file.start()
    file.append([row(step) if marked else row(step, ri_mean=math.nan) for step in (1, 2, 3)])
    plot_training(tmp_path)
    assert lines == ([start, start] if marked else [])
    assert said == ([] if marked else ["no step was weighted"])


def test_cards_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    assert public_name("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert public_name(str(tmp_path)) == tmp_path.name


def test_memory_is_the_arithmetic_of_the_parts() -> None:
    from transformers import Qwen3Config

    from reasonembed_mteb.training.plan import SubsetTokens, TrainingPlan, estimate_memory
    from reasonembed_mteb.training.recipes import load_recipe
    from reasonembed_mteb.training.sampling import SubsetPlan

    sizes = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936}
    config = Qwen3Config(**sizes, **heads)
    tokens = {"biology": SubsetTokens(512, 512, 512, 0.0)}
    plan = TrainingPlan(
        [SubsetPlan("biology", 800, 8, 8)], {"biology": 16}, {"biology": 0}, 10, 10, 8, tokens
    )
    found = estimate_memory(plan, load_recipe("qwen3-8b"), config)
    # 7.57 billion weights without the head, in bf16; 87 million of adapters of rank 32.
    assert found["weights"] == pytest.approx(2 * 7.57e9 / 2**30, rel=0.01)
    assert found["optimizer"] == pytest.approx(16 * 87.3e6 / 2**30, rel=0.01)
    assert found["total"] == pytest.approx(sum(v for k, v in found.items() if k != "total"))
    without = estimate_memory(plan, load_recipe("qwen3-8b", ["training.checkpointing=false"]), config)
    cached = estimate_memory(plan, load_recipe("qwen3-8b", ["loss.mini_batch_tokens=4096"]), config)
    assert cached["activations"] < found["activations"] / 10 < without["activations"] / 50
    assert plan.epoch_tokens == 12 * 64 * (512 + 512 + 16 * 512)
