"""The reasoning: tidied, no refusal, and no longer than training takes of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from conftest import make_tokenizer
from remixer_script import answer, document, make_config
from stub_server import StubServer

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.prompts import query_prefix
from reasonembed_mteb.synthesis.config import ReasonSection
from reasonembed_mteb.synthesis.pipeline import make_client, synthesize
from reasonembed_mteb.synthesis.reason import reasoned
from reasonembed_mteb.synthesis.step import Run
from reasonembed_mteb.training.schema import DataPart

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Reply, Seen

FEW = "[clean]\nskip = true\n[sources]\nper_subset = 6\n[generate.word_weights]\n'<100' = 1.0\n[reason]\n"


def reasonings(folder: Path, more: str, text: str) -> tuple[Run, list[dict[str, Any]], list[str]]:
    """Let every reasoning be a text; return the run, the step's rows and the prompts."""

    def script(seen: Seen) -> Reply | str:
        return f"<reasoning>{text}</reasoning>" if "<reasoning>" in seen.text else answer(seen)

    with StubServer(script) as server:
        config = make_config(folder, server.base_url, FEW + more)
        outcomes = synthesize(config)
        asked = [seen.text for seen in server.seen if "<reasoning>" in seen.text]
    assert {one.step: one.error for one in outcomes}["reason"] is None
    run = Run(config, make_client(config))
    rows = list(reasoned(run, config.subset[0]).rows(dropped=True))
    assert rows
    return run, rows, asked


LONG = "".join(f"Sentence {n}: {document(n, 4)} " for n in range(100))


def test_reasoning_is_tidied_and_counted_in_words(tmp_path: Path) -> None:
    run, rows, asked = reasonings(tmp_path, "", f"**Reasoning:** {LONG}")
    assert all("stay below 400 words," in prompt for prompt in asked)
    for row in rows:
        text = row["reasoning_query"].partition("\n")[2]
        assert text.startswith("Sentence 0: ")
        # Six words each, of 400.
        assert text.endswith(f"Sentence 65: {document(65, 4)}")
        assert row["mended"] == ["label before it", "cut after a sentence"]
    note = reasoned(run, run.config.subset[0]).note
    assert note is not None
    assert note["mended"] == {"cut after a sentence": len(rows), "label before it": len(rows)}


@pytest.mark.parametrize("too_long", ["trim", "drop"])
def test_reasoning_has_the_tokens_of_the_model_to_be_trained(too_long: str, tmp_path: Path) -> None:
    make_tokenizer(eos=True).save_pretrained(tmp_path / "model")
    tokens = 700
    more = f"train_model = 'model'\ntrain_tokens = {tokens}\ntoo_long = '{too_long}'\n"
    run, rows, asked = reasonings(tmp_path, more, LONG)
    if too_long == "drop":
        assert {row["dropped"] for row in rows} == {"reasoning too long"}
        return
    prefix = query_prefix(run.domain(run.config.subset[0]).instruction)
    for row, prompt in zip(rows, asked, strict=True):
        count = len(run.tokenizer(prefix + row["reasoning_query"])["input_ids"])
        # The next sentence would not have fitted.
        assert tokens - 60 < count <= tokens
        query = row["reasoning_query"].partition("\n")[0]
        found = re.search(r"stay below (\d+) words \((\d+) tokens at most\)", prompt)
        assert found is not None
        assert int(found[2]) == tokens - len(run.tokenizer(f"{prefix}{query}\n")["input_ids"])
        assert int(found[1]) == min(400, int(0.7 * int(found[2])))


def test_a_query_that_leaves_no_room_is_not_asked_about(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "model")
    _, rows, asked = reasonings(tmp_path, "train_model = 'model'\ntrain_tokens = 64\n", LONG)
    assert not asked
    assert {row["dropped"] for row in rows} == {"query too long for training"}


def test_a_refusal_is_no_reasoning(tmp_path: Path) -> None:
    _, rows, _ = reasonings(tmp_path, "", "I'm sorry, but I can't help with that.")
    assert {row["dropped"] for row in rows} == {"refusal"}


def test_a_model_without_a_tokenizer_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with StubServer(answer) as server:
        config = make_config(tmp_path, server.base_url, FEW + "train_model = 'empty'")
        with pytest.raises(
            ReasonEmbedError, match=r"reason\.train_model: the tokenizer of empty cannot be loaded"
        ):
            synthesize(config)
        assert server.total == 0


def test_training_takes_what_the_default_chain_writes() -> None:
    section = ReasonSection()
    longest = 2 * 500 + section.words
    # English prose: four tokens for three words, and fifty for the instruction.
    assert longest * 4 / 3 + 50 < section.train_tokens
    assert DataPart().reasoning_tokens == section.train_tokens
