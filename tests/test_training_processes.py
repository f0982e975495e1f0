"""Runs that are killed, and runs on several processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import tiny_recipe, write_folder

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("training_process.py")


def start(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, qwen3_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_folder(folder / "rows", biology=17, pony=6)
    content = tiny_recipe(
        qwen3_dir, batch={"queries": 2, "devices": 2, "subsets": {"pony": {"group": 4, "queries": 1}}}
    )
    content["training"] |= {"epochs": 2, "save_steps": 2}
    (folder / "recipe.json").write_text(json.dumps(content))
    # Without dropout: its random numbers differ between one process and two.
    content["lora"]["dropout"] = 0.0
    (folder / "dry.json").write_text(json.dumps(content))
    return folder


def train(work: Path, name: str, *options: str, recipe: str = "recipe") -> subprocess.CompletedProcess[str]:
    paths = [work / f"{recipe}.json", work / "rows", work / name, work / "cache"]
    return start([str(SCRIPT), *map(str, paths), *options])


def finished(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def straight(work: Path) -> Path:
    assert finished(train(work, "straight")) == {"steps": 14, "resumed": 0}
    return work / "straight"


def metrics(run: Path) -> list[dict[str, Any]]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


@pytest.mark.parametrize(
    ("where", "step", "whole"),
    [("between", 7, 6), ("middle", 8, 6), ("before", 8, 6), ("middle", 2, 0), ("between", 1, 0)],
)
def test_a_killed_run_goes_on_exactly(where: str, step: int, whole: int, work: Path, straight: Path) -> None:
    name = f"{where}-{step}"
    killed = train(work, name, "--kill", where, str(step))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (work / name / "model").exists()
    assert finished(train(work, name, "--resume")) == {"steps": 14, "resumed": whole}
    held, own = (load_file(run / "model" / "model.safetensors") for run in (straight, work / name))
    assert held.keys() == own.keys()
    assert all(torch.equal(held[key], own[key]) for key in held)
    assert metrics(work / name) == metrics(straight)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def torchrun(work: Path, name: str, *options: str, recipe: str = "dry") -> subprocess.CompletedProcess[str]:
    paths = [work / f"{recipe}.json", work / "rows", work / name, work / "cache"]
    # Alone it takes a free port itself and keeps it; one that is found first may be taken meanwhile.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return start([*launch, str(SCRIPT), *map(str, paths), *options])


def test_two_processes_train_as_one(work: Path) -> None:
    alone = train(work, "alone", recipe="dry")
    assert finished(alone)["steps"] == 14
    both = torchrun(work, "both")
    assert both.returncode == 0, both.stderr
    # The same subsets, and the same global losses and intensities, at every step.
    one, two = metrics(work / "alone"), metrics(work / "both")
    assert [(row["step"], row["subset"]) for row in one] == [(row["step"], row["subset"]) for row in two]
    for row, other in zip(one, two, strict=True):
        assert int(row["queries"]) == 2 * int(other["queries"])
        for key in ("loss", "loss_unweighted", "ri_mean", "ri_max"):
            if row[key] or other[key]:
                assert float(row[key]) == pytest.approx(float(other[key]), rel=1e-3, abs=1e-4)
    held, own = (load_file(work / name / "model" / "model.safetensors") for name in ("alone", "both"))
    for key, value in held.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=1e-4)
    moved = load_file(
        Path(json.loads((work / "dry.json").read_text())["model"]["name"]) / "model.safetensors"
    )
    assert any((moved[f"model.{key}"] - value).abs().max() > 1e-2 for key, value in held.items())


def test_two_processes_go_on_exactly(work: Path) -> None:
    whole = torchrun(work, "two", recipe="recipe")
    assert whole.returncode == 0, whole.stderr
    killed = torchrun(work, "cut", "--kill", "between", "9", recipe="recipe")
    assert killed.returncode != 0
    resumed = torchrun(work, "cut", "--resume", recipe="recipe")
    assert resumed.returncode == 0, resumed.stderr
    held, own = (load_file(work / name / "model" / "model.safetensors") for name in ("two", "cut"))
    assert all(torch.equal(held[key], own[key]) for key in held)
    assert metrics(work / "cut") == metrics(work / "two")


def test_one_process_alone_writes_a_checkpoint(work: Path) -> None:
    done = torchrun(work, "written", "--say-saves", recipe="recipe")
    assert done.returncode == 0, done.stderr
    # Seven checkpoints, and every one by the first process.
    assert done.stdout.splitlines().count("saved by 0") == 7
    assert "saved by 1" not in done.stdout


def test_processes_stop_together_where_one_diverges(work: Path) -> None:
    done = torchrun(work, "spoiled", "--spoil", "5", recipe="recipe")
    assert done.returncode != 0
    # Steps 6 to 8 are left out by both, and the ninth ends both.
    assert done.stderr.count("the training diverged: step 9 is not finite") == 2
    kept = sorted((work / "spoiled" / "checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["checkpoint-6", "checkpoint-8"]
    for folder in kept:
        assert all(
            value.isfinite().all() for value in load_file(folder / "adapter_model.safetensors").values()
        )


# accelerate shares weights out on GPUs alone: the processes say that they are some, and speak by gloo.
KINDS = ["fsdp", "zero3"]


def train_every_weight(work: Path, name: str, kind: str, *options: str) -> subprocess.CompletedProcess[str]:
    content = json.loads((work / "dry.json").read_text())
    content |= {"lora": {"rank": 0}, "sharding": {"kind": kind}}
    content["training"] |= {"learning_rate": 1e-3, "save_steps": 4, "checkpointing": kind != "none"}
    if kind == "zero3":
        pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
        content["training"]["retries"] = 0
    (work / f"every-{kind}.json").write_text(json.dumps(content))
    return torchrun(work, name, *options, recipe=f"every-{kind}")


@pytest.fixture(scope="module")
def every(work: Path) -> Path:
    done = train_every_weight(work, "every", "none")
    assert done.returncode == 0, done.stderr
    return work / "every"


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, work: Path) -> Path:
    """Return a run whose weights are shared out, in a folder of the kind's name."""
    done = train_every_weight(work, request.param, request.param, "--as-gpus")
    assert done.returncode == 0, done.stderr
    return work / request.param


def test_shared_out_weights_train_as_whole_ones(shared: Path, every: Path, work: Path) -> None:
    held, own = (load_file(run / "model" / "model.safetensors") for run in (every, shared))
    assert held.keys() == own.keys()
    for key, value in held.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=1e-6)
    begun = load_file(
        Path(json.loads((work / "dry.json").read_text())["model"]["name"]) / "model.safetensors"
    )
    assert any((begun[f"model.{key}"] - value).abs().max() > 1e-3 for key, value in held.items())
    for row, other in zip(metrics(every), metrics(shared), strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
    # A plain directory, as of a run that shares nothing out; checkpoints are such directories too.
    names = {path.relative_to(every / "model") for path in (every / "model").rglob("*")}
    assert names == {path.relative_to(shared / "model") for path in (shared / "model").rglob("*")}
    for name in ("config.json", "modules.json", "config_sentence_transformers.json"):
        assert (every / "model" / name).read_text() == (shared / "model" / name).read_text()
    last = load_file(shared / "checkpoints" / "checkpoint-14" / "model.safetensors")
    assert all(torch.equal(last[key], value) for key, value in own.items())


def test_shared_out_weights_go_on_exactly(shared: Path, work: Path) -> None:
    kind = shared.name
    name = f"half-{kind}"
    killed = train_every_weight(work, name, kind, "--as-gpus", "--kill", "between", "9")
    assert killed.returncode != 0
    assert not (work / name / "model").exists()
    resumed = train_every_weight(work, name, kind, "--as-gpus", "--resume")
    assert '"resumed": 8' in resumed.stdout, resumed.stderr
    held, own = (load_file(run / "model" / "model.safetensors") for run in (shared, work / name))
    assert all(torch.equal(held[key], own[key]) for key in held)
    assert metrics(work / name) == metrics(shared)


def test_processes_on_cpus_do_not_share_out(work: Path) -> None:
    done = train_every_weight(work, "refused", "fsdp")
    assert done.returncode != 0
    assert "sharding.kind=fsdp needs GPUs, and there are none here" in done.stderr
    assert not (work / "refused").exists()


# On CPUs accelerate starts several processes by MPI only.
@pytest.mark.parametrize(
    ("launcher", "processes"), [("torch.distributed.run", 2), ("accelerate.commands.launch", 1)]
)
def test_the_command_runs_under_launchers(launcher: str, processes: int, work: Path, qwen3_dir: Path) -> None:
    port, count = str(free_port()), str(processes)
    launch = {
        "torch.distributed.run": ["--standalone", "--nproc-per-node", count],
        "accelerate.commands.launch": [
            *("--cpu", "--num_processes", count, "--main_process_port", port),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        ],
    }[launcher]
    recipe = work / "mine.toml"
    recipe.write_text(
        f'[model]\nname = "{qwen3_dir}"\n[lora]\nrank = 2\n[batch]\ndevices = 2\nqueries = 2\ngroup = 2\n'
        '[training]\nprecision = "fp32"\ncheckpointing = false\nmax_steps = 2\n'
    )
    output = work / launcher
    arguments = ["train", str(recipe), "--data", str(work / "rows"), "--output", str(output)]
    own = ["-m", "reasonembed_mteb", *arguments, "--data-cache", str(work / "cache")]
    done = start(["-m", launcher, *launch, *own])
    assert done.returncode == 0, done.stderr
    record = json.loads((output / "run.json").read_text())
    assert (record["world_size"], record["finished"]) == (processes, True)
    # One process speaks.
    assert done.stderr.count("rows of 2 subsets") == 1
