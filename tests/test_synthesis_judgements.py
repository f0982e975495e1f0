"""Judgements as chats: what was asked, what was said, and only what counted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from remixer_script import answer, make_config
from stub_server import StubServer
from typer.testing import CliRunner

from reasonembed_mteb.cli import app
from reasonembed_mteb.errors import DataError
from reasonembed_mteb.synthesis.annotate import labelled, parse_label
from reasonembed_mteb.synthesis.judgements import export_judgements
from reasonembed_mteb.synthesis.pipeline import make_client, synthesize
from reasonembed_mteb.synthesis.step import Run

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Reply, Seen

FEW = "[clean]\nskip = true\n[sources]\nper_subset = 6\n[annotate]\n"
STEPS = ("clean", "generate", "mine", "annotate")


def chats(file: Path) -> list[list[dict[str, Any]]]:
    return [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_judgement_that_counted_is_a_chat(tmp_path: Path) -> None:
    said: dict[str, str] = {}

    def script(seen: Seen) -> Reply | str:
        if "<score>N</score>" not in seen.text:
            return answer(seen)
        # Some cannot be read.
        thought = f"<think>\nHm, <score>9</score>\n</think>\n\n{answer(seen)}"
        text = "no idea" if len(said) % 5 == 4 else thought
        return said.setdefault(seen.text, text)

    with StubServer(script) as server:
        config = make_config(tmp_path, server.base_url, FEW)
        synthesize(config, STEPS)
        asked = server.total
        output = tmp_path / "chats.jsonl"
        called = ["export-judgements", str(tmp_path / "config.toml"), "--output", str(output)]
        done = CliRunner().invoke(app, called)
        # What was said is on disk.
        assert server.total == asked
    assert done.exit_code == 0, done.output
    found = chats(output)
    run = Run(config, make_client(config))
    labels = [label for row in labelled(run, config.subset[0]).rows() for label in row["labels"]]
    readable = [label for label in labels if label != -1]
    assert [parse_label(chat[-1]["content"]) for chat in found] == readable
    assert 0 < len(readable) < len(labels)
    assert f"{len(readable):,} judgements, {len(labels) - len(readable):,} left out" in done.output
    for chat in found:
        assert [message["role"] for message in chat] == ["system", "user", "assistant"]
        assert said[chat[1]["content"]].endswith(chat[2]["content"])
        assert "think>" not in chat[2]["content"]


def test_outvoted_judgements_are_left_out(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply | str:
        judged = "<score>N</score>" in seen.text
        return f"<score>{4 if seen.body['seed'] < 44 else 1}</score>" if judged else answer(seen)

    with StubServer(script) as server:
        config = make_config(tmp_path, server.base_url, FEW + "samples = 3\n")
        synthesize(config, STEPS)
    written, left_out = export_judgements(config, tmp_path / "chats.jsonl")
    assert written == 2 * left_out > 0
    assert {chat[-1]["content"] for chat in chats(tmp_path / "chats.jsonl")} == {"<score>4</score>"}


def test_the_step_has_to_be_finished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the step clean has not been finished"):
        export_judgements(make_config(tmp_path), tmp_path / "chats.jsonl")
    assert not (tmp_path / "chats.jsonl").exists()
