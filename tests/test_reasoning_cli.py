"""`reasonembed reason-run`: options that do not fit together, and (slow) a whole run with its report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from conftest import save_decoder
from evaluation_data import BIOLOGY
from stub_server import StubServer

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.reasoning.latents import add_latents

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

SERVER = ("--endpoint", "http://localhost:1/v1", "--endpoint-model", "thinker")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--tokens says how much is generated"),
        (("--tokens", "-1"), "--tokens -1: give 0 for no reasoning"),
        (SERVER, "--tokens says how much is generated"),
        ((*SERVER[:2], "--tokens", "8"), "give both, or neither"),
        (("--tokens", "8", "--max-price", "1"), "give --endpoint too"),
        ((*SERVER, "--tokens", "8", "--max-price", "1"), "set price_in and price_out"),
        (("--tokens", "8", "--question", "none.txt"), "--question is what a server's model is asked"),
        ((*SERVER, "--tokens", "8", "--question", "none.txt"), "cannot read none.txt"),
        ((*SERVER, "--tokens", "8", "--api-key-env", "sk-123"), "api_key_env must be the name"),
        (("--reasonings", "none.jsonl"), "cannot read none.jsonl"),
        (("--rewritten", "gpt5_reason"), "unknown rewriting 'gpt5_reason'"),
        (("--tokens", "8", "--generator", "vlm"), "did you mean 'vllm'"),
        (("--tokens", "8", "--generator-option", "max_num_seqs=8"), "torch takes none"),
        (("--tokens", "8", "--generator", "vllm", "--generator-option", "eager"), "of the form name=value"),
        ((*SERVER, "--tokens", "8", "--generator", "vllm"), "give --tokens, and no --endpoint"),
        (("--tokens", "0", "--generator", "vllm"), "give --tokens, and no --endpoint"),
    ],
)
def test_options_that_do_not_fit(options: tuple[str, ...], said: str, command: Command) -> None:
    status, _, error = command("reason-run", "-m", "bm25", "-t", BIOLOGY, *options)
    assert status == 2
    assert said in error
    assert "sk-123" not in error


def test_the_generator_gets_its_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from reasonembed_mteb.reasoning import running

    made: list[Any] = []

    def kept(base: Any, plan: Any, store: Path) -> Any:
        made.append(plan)
        raise ReasonEmbedError(str(base.name))

    monkeypatch.setattr(running, "ReasoningModel", kept)
    options = ("--generator-option", "gpu_memory_utilization = 0.4", "--generator-option", "dtype=float16")
    run = ("reason-run", "-m", "bm25", "-t", BIOLOGY, "--tokens", "8", "--generator", "vllm", *options)
    assert command(*run)[0] == 2
    (plan,) = made
    assert (plan.generator.name, plan.batch_size) == ("vllm", None)
    assert plan.generator.options == {"gpu_memory_utilization": 0.4, "dtype": "float16"}


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_whole_run_and_its_report(command: Command, tmp_path: Path) -> None:
    add_latents(str(save_decoder(tmp_path / "bare", "qwen2")), 2, tmp_path / "model")
    run = ("reason-run", "-m", "model", "-t", BIOLOGY, "--device", "cpu")
    status, out, _ = command(*run, "--tokens", "0", "--tokens", "6", "--note", "a check")
    assert status == 0
    assert "model-itself-6" in out
    with StubServer(lambda seen: "leaf " * 3) as server:
        asked = ("--endpoint", server.base_url, "--endpoint-model", "org/thinker", "--tokens", "9")
        assert command(*run, *asked, "--temperature", "0.5")[0] == 0
        assert server.total == 6
        assert command(*run, *asked, "--temperature", "0.5", "--overwrite")[0] == 0
        assert server.total == 6
    (kept,) = (tmp_path / "results/reasonings").glob("*itself-6*/*/reasonings.jsonl")
    status, _, _ = command(*run, "--reasonings", str(kept))
    assert status == 0
    status, out, _ = command("report", "results", "--format", "json")
    assert status == 0
    report: Any = json.loads(out)
    systems = {one["system"].rpartition("/")[2] for one in report["chapters"]["reasoning"]["data"]}
    assert {name.partition("model")[2] for name in systems} == {"", "-itself-6", "-thinker-9", "-reasonings"}
    assert [len(table["rows"]) for table in report["tables"]] == [1, 3]
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[1:]))
    status, _, error = command(*run, "--reasonings", str(kept))
    assert status == 1
    assert "no reasoning for 1 of 6 queries" in error
