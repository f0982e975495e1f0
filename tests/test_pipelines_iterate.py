"""Another round: what the rewriter sees, and the union of all rounds' candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from evaluation_data import BIOLOGY
from pipeline_script import retrieve, stage, write_pipeline
from stub_server import Seen, StubServer

from reasonembed_mteb.evaluation import resolving, runner
from reasonembed_mteb.evaluation.stages import read_output
from reasonembed_mteb.pipelines.run import Pipeline

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("data", "registered")
def test_the_best_documents_are_shown_and_every_rounds_candidates_kept(tmp_path: Path) -> None:
    shown: list[str] = []

    def script(seen: Seen) -> str:
        if seen.text.startswith("cell leaf water"):
            shown.append(seen.text)
        return f"money {'bank' if len(shown) > 1 else 'tax'}"

    stages = retrieve("bm25", more="top_k = 5") + stage(
        "iterate", rounds=2, documents=2, words=2, mode="replace", top_k=20
    )
    with StubServer(script) as server:
        pipeline = Pipeline.from_toml(write_pipeline(tmp_path, stages, server.base_url))
        options = runner.RunOptions(output=tmp_path / "out", progress=False)
        (one,) = pipeline.run(resolving.resolve_tasks([], [BIOLOGY]), options)
    assert one.record is not None
    first, last = (read_output(tmp_path / "out" / own.outputs[0]) for own in one.record.stages)
    before, after = first.rankings["bm25"]["q0"].documents, last.rankings["iterate"]["q0"].documents
    assert last.texts.keys() == {"iterate round 1", "iterate"}
    assert last.texts["iterate"]["q0"] == ["money bank"]
    # Two documents of two words each, the first round's best.
    assert "[1] cell leaf" in shown[0]
    assert "[3]" not in shown[0]
    assert "cell leaf water light" not in shown[0].partition("found for")[2]
    # Nothing that was found is lost, and the rounds bring more.
    assert set(before) < set(after)
    assert len(after) == 20
    assert one.record.stages[1].note.cost.calls == 12
