"""Records of runs: what they are known by, and that they are whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import mteb
import pytest

from reasonembed_mteb import files
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation import record as records
from reasonembed_mteb.evaluation import runner

if TYPE_CHECKING:
    from collections.abc import Callable

    Score = Callable[..., tuple[list[runner.Outcome], list[str]]]


pytestmark = pytest.mark.usefixtures("registered")


def test_causes_are_the_same_in_every_process() -> None:
    """A function among a loader's options is known by its name, not by where it lies in memory."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    task = mteb.get_task("ReasonMiniBiology")
    texts = [json.dumps(asdict(records.find_causes(meta, task))) for meta in MODEL_REGISTRY.values()]
    assert len(texts) > 300
    assert not [text for text in texts if " at 0x" in text]


def test_records_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep/record.json"
    files.write_whole(file, "old")

    def full(self: Path, _: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ReasonEmbedError, match=r"record.json: No space left on device; free space"):
        files.write_whole(file, "new")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]
