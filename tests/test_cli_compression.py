"""The command that measures compression."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from conftest import save_decoder

from reasonembed_mteb.reasoning.latents import add_latents

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "qa.jsonl"
    file.write_text(
        json.dumps({"text": "The sky is blue.", "question": "What is the sky?", "answer": "blue"}) + "\n",
        encoding="utf-8",
    )
    return file


def test_the_table_is_printed_and_the_record_kept(command: Command, questions: Path, tmp_path: Path) -> None:
    add_latents(str(save_decoder(tmp_path / "plain")), 2, tmp_path / "latent")
    given = (
        "compress-eval",
        "-m",
        "latent",
        "--data",
        "qa.jsonl",
        "--max-new-tokens",
        "2",
        "--device",
        "cpu",
    )
    status, out, err = command(*given, "--reasoning-tokens", "0", "--note", "a check\x1b[31m")
    assert status == 0, err
    assert "answers from 1 questions of qa.jsonl" in out
    assert all(name in out for name in ("no text", "memory", "text cut", "full text", "encode, a text"))
    assert "\x1b" not in out
    assert len(list((tmp_path / "results" / "chapters" / "compression").glob("*.json"))) == 1
    status, again, err = command(*given, "--reasoning-tokens", "0", "--note", "a check\x1b[31m")
    assert (status, again) == (0, out)
    assert "measured before" in err


def test_bad_input_is_one_line(command: Command, questions: Path, tmp_path: Path) -> None:
    save_decoder(tmp_path / "plain")
    for arguments, said in (
        (("-m", "plain", "--data", "qa.jsonl"), "no latent tokens"),
        (("-m", "plain", "--data", "absent.jsonl"), "cannot read absent.jsonl"),
        (("-m", "plain", "--data", "qa.jsonl", "--batch-size", "0"), "--batch-size"),
        (("--data", "qa.jsonl"), "--model"),
    ):
        status, out, err = command("compress-eval", *arguments)
        lines = [line for line in err.splitlines() if line.startswith("reasonembed:")]
        assert (status, out) == (2, "")
        assert len(lines) == 1
        assert said in lines[0]
