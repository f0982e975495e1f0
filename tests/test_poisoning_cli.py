"""The command ``poison``: a whole call, and options that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from poisoning_data import write_beir

from reasonembed_mteb.cli.poisoning import _size
from reasonembed_mteb.evaluation.poisoning_record import read_poisoning
from reasonembed_mteb.robustness.poisoning import STUDY_SIZE, AttackSize

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

RANDOM = "mteb/baseline-random-encoder"


def test_a_call_prints_writes_and_reports(command: Command, tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir")
    given = ["poison", "-m", RANDOM, "--beir", str(folder), "--attack", "copied", "--passages", "2"]
    status, out, said = command(*given, "--k", "3", "--seed", "1", "--seed", "2", "--output-folder", "out")
    assert status == 0, said
    assert "ASR@3 (9.4 %)" in out
    assert "±" in out
    files = sorted((tmp_path / "out" / "chapters" / "poisoning").iterdir())
    assert [read_poisoning(file).seed for file in files] == [1, 2]
    for folder_name in read_poisoning(files[0]).folders.values():
        assert (tmp_path / "out" / folder_name / "qrels" / "test.tsv").is_file()
    status, text, said = command("report", "out")
    assert status == 0, said
    assert "Corpus poisoning" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give one corpus to poison: --task TASK or --beir FOLDER"),
        (["-t", "SciFact", "--beir", "x"], "give one corpus to poison"),
        (["-t", "SciFact", "--making-split", "test"], "test is the split of SciFact that is attacked"),
        (["-t", "ReasonMiniPony", "--making-split", "train"], "the data of ReasonMiniPony has one split"),
        (["-t", "SciFact", "--beir-split", "dev"], "--beir-split goes with --beir"),
        (["--beir", "x", "--making-split", "test"], "is the split that is attacked"),
        (["-t", "SciFact", "--seed", "-3"], "seed is -3; give 0 or more"),
        (["-t", "SciFact", "--attack", "gradeint"], "unknown attack 'gradeint'; did you mean 'gradient'?"),
        (["-t", "SciFact", "--start", "masks"], "unknown start of a passage 'masks'; did you mean 'mask'?"),
        (["-t", "SciFact", "--passages", "0"], "passages is 0; give at least 1"),
        (["--beir", "nowhere"], "no folder"),
    ],
)
def test_options_that_do_not_fit(command: Command, given: list[str], said: str) -> None:
    status, _, err = command("poison", "-m", RANDOM, *given)
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_sizes_are_ours_or_the_studys_changed_where_asked() -> None:
    nothing = dict.fromkeys(("passages", "tokens", "iterations", "candidates", "start"))
    assert _size(nothing, special_tokens=False, official=False) == AttackSize()
    assert _size(nothing, special_tokens=False, official=True) == STUDY_SIZE
    changed = _size(nothing | {"passages": 3}, special_tokens=True, official=False)
    assert (changed.passages, changed.special_tokens, changed.iterations) == (3, True, 50)
