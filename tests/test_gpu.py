"""The GPU benchmark: all of it on tiny models, and the section of the page that is made of its results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module that makes tables of results."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_report

    return gpu_report


def results(report: Any) -> dict[str, Any]:
    """Return what a run on a card may have measured."""
    found = report.Report(
        "NVIDIA H100", complete=True, minutes=9.0, seconds=500.0, date="2026-11-27T00:00:00Z"
    )
    found.versions, found.ceiling = {"torch": "2.13.0"}, 7.5e14
    found.encoding = [
        {"size": "4B", "way": "packed", "documents": 1000, "tokens_a_second": 12_345.6, "share": 0.69}
        | {"peak_mib": 20_480.0, "warm_up": 3.0}
    ]
    found.left_out, found.failed = ["encode 8B padded"], {"train 4B ours": "OutOfMemoryError: CUDA"}
    return asdict(found)


def test_the_section_is_what_the_results_say(report: Any) -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    assert page == report.page_with(report.section(), page), "run `python benchmarks/gpu.py --write-docs`"


def test_without_results_the_section_says_so(report: Any, tmp_path: Path) -> None:
    assert "Nothing was measured on a GPU yet." in report.section(tmp_path)


def test_results_become_tables(report: Any, tmp_path: Path) -> None:
    made = results(report)
    (tmp_path / "gpu-nvidia-h100.json").write_text(json.dumps(made), encoding="utf-8")
    text = report.section(tmp_path)
    assert "| 4B | packed | 1,000 | 12,346 | 69 % | 20.0 | 3 |" in text
    assert "a large matrix product reaches 750.00 TFLOP/s" in text
    assert "Left out for lack of time: encode 8B padded." in text
    assert "Failed: train 4B ours (OutOfMemoryError: CUDA)." in text
    assert "cut short" not in text
    assert "cut short" in report.tables(made | {"complete": False})


def test_only_what_stands_between_the_markers_changes(report: Any) -> None:
    page = f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n"
    assert report.page_with("new", page) == "above\nnew\nbelow\n"
    with pytest.raises(ValueError, match="once each"):
        report.page_with("new", "no markers")


def run(minutes: float, output: Path) -> dict[str, Any]:
    """Run the benchmark, and return its file of results."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--minutes", str(minutes), "--output", str(output)]
    # Compiling is tested elsewhere, and takes longer than all the rest.
    quick = os.environ | {"TORCH_COMPILE_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quick)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_everything_runs_on_tiny_models(tmp_path: Path) -> None:
    found = run(10, tmp_path / "gpu.json")
    assert found["complete"]
    assert found["tiny"]
    assert (found["failed"], found["left_out"]) == ({}, [])
    assert {row["way"] for row in found["encoding"]} >= {"packed", "compiled", "library", "rows8", "padded"}
    assert {row["way"] for row in found["correctness"]} >= {"padded", "packed", "compiled"}
    # float32 on a CPU: every way gives the reference's vectors.
    assert min(row["least_cosine"] for row in found["correctness"]) > 1 - 1e-6
    assert {row["first_difference"] for row in found["correctness"]} == {101}
    assert {row["way"] for row in found["training"]} == {"reference", "ours", "packed", "cached-packed"}
    losses = [row["loss"] for row in found["training"]]
    assert max(losses) - min(losses) < 1e-4
    assert {row["path"] for row in found["search"]} == {"ours", "overfetch"}
    # Memory did run out, and the vectors are the same.
    assert found["memory"][0]["fitted"] < found["memory"][0]["asked"] / 2
    assert found["memory"][0]["least_cosine"] > 1 - 1e-6


@pytest.mark.slow
def test_what_does_not_fit_is_left_out_and_named(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argparse

    import encode
    import gpu

    monkeypatch.setattr(encode, "matmul_ceiling", lambda _: {"ceiling": 1e12})
    file = tmp_path / "gpu.json"
    bench = gpu.Bench(argparse.Namespace(minutes=1.0, output=file, work=str(tmp_path)))
    seen = []

    def measured() -> list[dict[str, Any]]:
        # Whoever cuts the run short here finds what came before, and that it is not complete.
        seen.append(json.loads(file.read_text(encoding="utf-8")))
        return [{"size": "tiny"}]

    def broken() -> list[dict[str, Any]]:
        msg = "CUDA error\nand more"
        raise RuntimeError(msg)

    bench.run(
        [
            gpu.Part("encode tiny packed", measured, "encoding"),
            gpu.Part("memory tiny", broken, "memory"),
            gpu.Part("memory tiny again", measured, "memory"),
            gpu.Part("vllm tiny", measured, "encoding"),
        ]
    )
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["complete"]
    assert found["encoding"] == found["memory"] == [{"size": "tiny"}]
    assert found["failed"] == {"memory tiny": "RuntimeError: CUDA error"}
    # 120 s are guessed for it, and a minute was given.
    assert found["left_out"] == ["vllm tiny"]
    assert [(one["complete"], len(one["encoding"])) for one in seen] == [(False, 0), (False, 1)]
