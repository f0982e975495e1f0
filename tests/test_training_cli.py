"""The commands: plan, train, draw."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from training_data import MARK, make_rows, write_folder, write_rows

from reasonembed_mteb.cli import main

if TYPE_CHECKING:
    from pathlib import Path

TINY = """
[model]
name = "{model}"
[lora]
rank = 2
[loss]
start_step = 2
[batch]
devices = 1
queries = 4
group = 7
[training]
precision = "fp32"
checkpointing = false
log_steps = 1
"""


@pytest.fixture
def recipe(tmp_path: Path, qwen3_dir: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.replace("{model}", str(qwen3_dir)), encoding="utf-8")
    return file


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["reasonembed", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_dry_run_prints_the_plan_and_writes_no_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*make_rows(9), {**make_rows(1)[0], "query": ""}]
    write_rows(tmp_path / "rows" / "biology.jsonl", rows)
    options = ["--data", tmp_path / "rows", "--output", tmp_path / "out", "--data-cache", tmp_path / "cache"]
    assert call(monkeypatch, "train", recipe, *options, "--dry-run", "--set", "training.epochs=3") == 0
    shown = " ".join(capsys.readouterr().out.split())
    # Nine rows, one left out, groups of 7 from 5 negatives.
    assert "biology 9 8 100.0% 1 7 4 x 1 2 " in shown
    assert shown.split("biology 9 8 100.0% 1 7 4 x 1 2 ")[1].split()[4] == "9"
    assert "rows dropped: empty query: 1" in shown
    assert "6 steps (2 batches an epoch), 10% of them warm-up, weighs from step 2" in shown
    assert "memory a device, estimated, GiB: weights " in shown
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_mix(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows" / "biology.jsonl", make_rows(12))
    write_rows(tmp_path / "rows" / "general.jsonl", make_rows(40, seed=1))
    options = ["--data", tmp_path / "rows", "--data-cache", tmp_path / "cache", "--dry-run"]
    assert call(monkeypatch, "train", recipe, *options, "--set", "data.mix.general.weight=0.25") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "biology 12 12 75.0% 0 " in shown
    assert "general 40 4 25.0% 36 " in shown
    assert call(monkeypatch, "train", recipe, *options, "--set", "data.mix.genral.weight=0.25") == 2
    assert "did you mean 'general'" in capsys.readouterr().err


def test_a_dry_run_knows_the_processes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from reasonembed_mteb.training.data import load_training_data
    from reasonembed_mteb.training.plan import plan_training
    from reasonembed_mteb.training.recipes import load_recipe

    data = load_training_data([write_folder(tmp_path / "rows", biology=9)], cache=tmp_path / "cache")
    plan = plan_training(load_recipe(str(recipe)), data, 4)
    assert [(one.queries, one.world_size, one.batches) for one in plan.subsets] == [(1, 4, 2)]
    code = call(
        monkeypatch,
        "train",
        recipe,
        "--data",
        tmp_path / "rows",
        "--data-cache",
        tmp_path / "cache",
        "--dry-run",
    )
    assert code == 0
    assert "2 steps" in capsys.readouterr().out


def test_training_and_its_picture(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "rows", biology=9, pony=9)
    options = ["--data", folder, "--output", tmp_path / "out", "--data-cache", tmp_path / "cache"]
    assert call(monkeypatch, "train", recipe, *options) == 0
    said = capsys.readouterr().err
    assert "step 4/4: loss" in said
    assert re.search(r"step 3/4: .* tokens/s, 0:\d\d:\d\d left, \d+\.\d", said)
    assert ", RI " in said.split("step 3/4")[1]
    assert ", RI " not in said.split("step 3/4")[0]
    assert f"model: {tmp_path / 'out' / 'model'}" in said
    assert MARK not in said
    assert call(monkeypatch, "train", recipe, *options) == 2
    assert "is not empty: go on with the run in it by --resume" in capsys.readouterr().err
    assert call(monkeypatch, "plot-training", tmp_path / "out") == 0
    assert (tmp_path / "out" / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["qwen3-4"], "unknown recipe 'qwen3-4'; did you mean 'qwen3-4b'?"),
        (["qwen3-4b", "--output", "x"], "names no model"),
        (["minilm-demo", "--set", "trainng.epochs=1"], "did you mean 'training'?"),
        (["minilm-demo"], "name the folder of the run by --output"),
        (["minilm-demo", "--dry-run"], "there is no"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "train", *arguments, "--data", tmp_path / "nothing") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_picture_needs_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "plot-training", tmp_path) == 2
    assert "give the folder of a run" in capsys.readouterr().err
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    assert call(monkeypatch, "plot-training", tmp_path) == 2
    assert "no file of metrics of ours" in capsys.readouterr().err


def test_an_interrupted_run_is_told_how_to_go_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reasonembed_mteb.training.run.train", interrupted)
    command = ["train", recipe, "--data", tmp_path, "--output", tmp_path / "out"]
    assert call(monkeypatch, *command) == 130
    last = "from its last checkpoint, where there is one"
    assert f"the same command with --resume continues {last}" in capsys.readouterr().err
    assert call(monkeypatch, *command, "--resume") == 130
    assert f"the same command continues {last}" in capsys.readouterr().err
