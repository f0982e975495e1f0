"""The command ``reasonembed synthesize``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from remixer_script import answer, make_config, write_config, write_corpus
from stub_server import StubServer

from reasonembed_mteb.synthesis.pipeline import estimate

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command


def test_an_estimate_counts_requests_and_cost(tmp_path: Path) -> None:
    found = {one.step: one for one in estimate(make_config(tmp_path, more="[annotate]\nsamples = 2"))}
    assert found["clean"].requests == found["generate"].requests == found["reason"].requests == 57
    # Six candidates at most, two samples each.
    assert found["annotate"].requests == 57 * 6 * 2
    once = {one.step: one for one in estimate(make_config(tmp_path))}["annotate"]
    # Each pair is a prompt and an answer of its own.
    assert once.requests == 57 * 6
    assert (found["annotate"].completion_tokens, found["annotate"].cost) == (
        2 * once.completion_tokens,
        pytest.approx(2 * (once.cost or 0)),
    )
    assert once.completion_tokens == 400 * once.requests
    clean = found["clean"]
    assert clean.cost == pytest.approx((clean.prompt_tokens + 2 * clean.completion_tokens) / 1e6)
    skipped = {one.step: one for one in estimate(make_config(tmp_path, more="[clean]\nskip = true"))}
    assert skipped["clean"].requests == 0


def test_a_dry_run_asks_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    with StubServer(answer) as server:
        status, out, err = command("synthesize", str(write_config(tmp_path, server.base_url)), "--dry-run")
        assert server.total == 0
    assert status == 0, err
    assert "annotate" in out
    assert not (tmp_path / "out").exists()


def test_one_step_and_its_table(command: Command, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    with StubServer(answer) as server:
        status, out, err = command(
            "synthesize", str(write_config(tmp_path, server.base_url)), "--step", "clean"
        )
    assert status == 0, err
    assert "clean biology: " in err
    assert "made" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.toml"], "cannot read none.toml"),
        (["{config}", "--step", "anotate"], "did you mean 'annotate'"),
        (["{config}", "--dry-run", "--batch-requests", "x"], "--dry-run asks and reads nothing"),
        (["{config}", "--batch-answers", "none.jsonl"], "cannot read none.jsonl"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], said: str, command: Command, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    config = str(write_config(tmp_path, "http://127.0.0.1:9/v1"))
    status, _, err = command("synthesize", *(argument.format(config=config) for argument in arguments))
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_failed_subset_is_exit_status_one(command: Command, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text("", encoding="utf-8")
    config = str(write_config(tmp_path, "http://127.0.0.1:9/v1"))
    status, out, _ = command("synthesize", config, "--step", "clean")
    assert status == 1
    assert "is empty" in out
