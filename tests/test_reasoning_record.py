"""Records of reasoning: written, joined by task, read back; damaged ones are told."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.reasoning_record import (
    ReasonedTask,
    ReasoningRun,
    read_reasoning_run,
    write_reasoning_run,
)

if TYPE_CHECKING:
    from pathlib import Path

TASK = ReasonedTask(0.25, "ndcg_at_10", 4, 32, {"end": 1, "length": 3}, 0.5, 0)
RUN = ReasoningRun(
    "a/b", "r1", "reasoning/b-itself-8", 4, "itself", 8, {"prompt": "{query}"}, "", {"one": TASK}
)


def test_tasks_of_one_system_are_joined(tmp_path: Path) -> None:
    file = write_reasoning_run(tmp_path, RUN)
    assert read_reasoning_run(file) == RUN
    more = replace(RUN, tasks={"two": replace(TASK, score=0.5)}, note="later")
    assert write_reasoning_run(tmp_path, more) == file
    assert read_reasoning_run(file) == replace(more, tasks=RUN.tasks | more.tasks)
    for other in (replace(RUN, base_revision="r2"), replace(RUN, decides={"prompt": "x"})):
        assert write_reasoning_run(tmp_path, other) != file


def test_a_record_of_before_there_was_an_engine(tmp_path: Path) -> None:
    file = write_reasoning_run(tmp_path, RUN)
    held = json.loads(file.read_text())
    assert held.pop("engine") == ""
    file.write_text(json.dumps(held))
    assert read_reasoning_run(file) == RUN
    # It is the same system, and keeps its tasks.
    more = replace(RUN, tasks={"two": TASK})
    assert read_reasoning_run(write_reasoning_run(tmp_path, more)).tasks == {"one": TASK, "two": TASK}


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": None},
        {"tasks": {"one": {"score": 0.1}}},
        {"tasks": {"one": asdict(TASK) | {"score": "high"}}},
        {"tasks": {"one": asdict(TASK) | {"metric": None}}},
        {"tasks": {"one": asdict(TASK) | {"stops": {"end": "one"}}}},
        {"tasks": {"one": asdict(TASK) | {"stops": 5}}},
        {"latents": "four"},
        {"latents": True},
        {"max_tokens": "eight"},
        {"decides": []},
        {"source": None},
        {"engine": None},
        {"surprise": 1},
    ],
)
def test_a_damaged_record(change: dict[str, Any], tmp_path: Path) -> None:
    file = write_reasoning_run(tmp_path, RUN)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match="is no record of reasoning"):
        read_reasoning_run(file)
    file.write_text("[")
    assert read_reasoning_run(write_reasoning_run(tmp_path, RUN)) == RUN
    file.write_text("[")
    with pytest.raises(DataError, match="is no record of reasoning"):
        read_reasoning_run(file)
