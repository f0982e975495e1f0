"""One query through the stages: what was written, ranks before and after, through the command too."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from evaluation_data import BIOLOGY
from pipeline_script import answer, retrieve, stage, write_pipeline
from stub_server import StubServer

from reasonembed_mteb.evaluation.stages import (
    PipelineRecord,
    Ranked,
    StageNote,
    StageOutput,
    StageRecord,
    write_output,
    write_stages,
)
from reasonembed_mteb.reporting.trails import query_trail

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

    from reasonembed_mteb.reporting.results import Result

pytestmark = pytest.mark.usefixtures("registered")

STAGES = stage("rewrite", name="think") + retrieve("bm25", more="top_k = 9") + stage("rerank", by="listwise")


@pytest.mark.usefixtures("data")
def test_the_command_scores_reports_and_inspects(command: Command, tmp_path: Path) -> None:
    with StubServer(answer) as server:
        file = write_pipeline(tmp_path, STAGES, server.base_url)
        status, out, err = command("pipeline", str(file), "-t", BIOLOGY, "--dry-run")
        assert status == 0
        assert server.total == 0
        # Six queries; forty documents, of which a hundred would be sorted in three windows.
        assert [line.split()[2] for line in out.splitlines() if BIOLOGY in line] == ["6", "18"]
        status, out, err = command("pipeline", str(file), "-t", BIOLOGY, "--output-folder", "out")
        assert status == 0, err
        assert server.total == 12
    assert "think" in out
    status, out, _ = command("report", "out")
    assert status == 0
    assert "BRIGHT(ReasonEmbed), pipelines" in out
    assert "quality and cost" in out
    status, out, _ = command("inspect", "out", "-t", BIOLOGY, "--query", "q0", "--top", "9", "--json")
    assert status == 0
    (trail,) = json.loads(out)["trails"]
    think, retrieved, reranked = trail["stages"]
    (written,) = think["texts"]["think"]
    assert written.startswith("cell leaf water ")
    first = {move["document"]: move["rank"] for move in retrieved["top"]["bm25"]}
    moves = reranked["top"]["rerank"]
    assert [move["before"] for move in moves] == [first[move["document"]] for move in moves]
    assert [move["rank"] for move in moves] == list(range(1, 10))
    assert "d19" not in first
    status, out, _ = command("inspect", "out", "-t", BIOLOGY, "--query", "q0", "--top", "3")
    assert status == 0
    assert "ranks of the relevant documents" in out


def test_ranks_before_are_those_of_the_only_ranking(tmp_path: Path) -> None:
    stages = []
    for kind, name in (("retrieve", "first"), ("retrieve", "second"), ("fuse", "fuse"), ("rerank", "rerank")):
        output = StageOutput(rankings={name: {"q": Ranked(["a", "b"], np.array([2.0, 1.0]))}})
        write_output(tmp_path / f"{name}.parquet", output, StageNote())
        stages.append(StageRecord(name, kind, {}, {}, StageNote(), False, (f"{name}.parquet",)))
    record = PipelineRecord("pipeline/x", "r", "Task", 1, None, tuple(stages))
    write_stages(tmp_path / "records/pipeline__x/r/Task.stages.json", record)
    result = SimpleNamespace(
        model=SimpleNamespace(name="pipeline/x"),
        scores_file=tmp_path / "records/pipeline__x/r/Task.parquet",
    )
    trail = query_trail(cast("Result", result), "x", "q", ["b"], 2)
    assert trail is not None
    before = [[move.before for move in stage.top[stage.stage]] for stage in trail.stages]
    # The fusion has two rankings before it.
    assert before == [[None, None], [1, 2], [None, None], [1, 2]]


@pytest.mark.usefixtures("data")
def test_failures_are_said_in_one_line(command: Command, tmp_path: Path) -> None:
    file = write_pipeline(tmp_path, stage("rewrite", template="hide") + retrieve("bm25"))
    status, _, err = command("pipeline", str(file), "-t", BIOLOGY)
    assert status == 2
    assert "did you mean 'hyde'?" in err
    file = write_pipeline(tmp_path, retrieve("bm25"))
    status, _, err = command("pipeline", str(file), "-t", "STS12")
    assert status == 1
    assert "is no retrieval task" in err
