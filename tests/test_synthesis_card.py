"""The data card says what was made, and its figures are those of the files."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from remixer_script import answer, make_config
from stub_server import StubServer

from reasonembed_mteb.synthesis.card import _cell, _histogram, _made_with, _table
from reasonembed_mteb.synthesis.pipeline import synthesize
from reasonembed_mteb.synthesis.prompts import load_prompts
from reasonembed_mteb.synthesis.shards import read_rows
from reasonembed_mteb.synthesis.step import Run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card")
    more = "[sources]\nper_subset = 15\n[annotate]\nsecond_endpoint = 'default'\nsecond_queries = 4\n"
    with StubServer(answer) as server:
        synthesize(make_config(path, server.base_url, more))
    return path / "out"


@pytest.fixture(scope="module")
def card(folder: Path) -> Any:
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


def rows(folder: Path, part: str) -> list[dict[str, Any]]:
    return [row for file in sorted((folder / part / "biology").glob("0*.jsonl")) for row in read_rows(file)]


def test_counts_and_labels_are_those_of_the_files(folder: Path, card: Any) -> None:
    facts = card["subsets"]["biology"]
    dropped = Counter(row["dropped"] for row in rows(folder, "clean") if "dropped" in row)
    assert facts["steps"]["clean"]["dropped"] == dropped
    labels = Counter(str(label) for row in rows(folder, "labels") for label in row["labels"])
    assert {key: count for key, count in facts["labels"].items() if count} == labels
    samples = list(read_rows(folder / "formatted" / "biology-formatted.jsonl"))
    assert facts["steps"]["format"]["kept"] == len(samples)
    words = facts["lengths"]["query words"]
    assert words["count"] == sum(words["counts"]) == len(samples)
    assert words["max"] == max(len(sample["query"].split()) for sample in samples)
    assert sum(facts["targets"]["words"].values()) == sum(facts["targets"]["level"].values()) == 15
    assert facts["agreement"]["second annotator"]["exact"] == 1.0


def test_cost_prompts_models_and_seed(folder: Path, card: Any) -> None:
    pairs = sum(len(row["documents"]) for row in rows(folder, "labels"))
    # The stub counts 10 and 5 tokens a request, at 1 and 2 a million.
    assert card["cost"]["annotate"] == {
        "prompt_tokens": 10 * pairs,
        "completion_tokens": 5 * pairs,
        "cost": round(20 * pairs / 1e6, 6),
    }
    assert card["made_with"]["seed"] == 42
    assert card["made_with"]["prompts"] == {name: prompt.hash for name, prompt in load_prompts().items()}
    assert card["made_with"]["steps"]["generate"]["model"] == "stub"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "127.0.0.1" not in text + json.dumps(card)
    assert str(folder) not in text + json.dumps(card)
    assert "| biology | second annotator |" in text
    assert "data_files: formatted/biology-formatted.jsonl" in text


def test_no_path_of_the_machine(tmp_path: Path) -> None:
    gold = tmp_path / "people" / "labels.jsonl"
    model = tmp_path / "home" / "me" / "models" / "mine"
    tables = f"[mine]\nretriever = 'dense'\nmodel = '{model}'\n[annotate]\ngold = '{gold}'\n"
    run = Run(make_config(tmp_path, more=tables), make_client=lambda _: pytest.fail("nothing is asked"))
    made = _made_with(run)
    assert (made["mine"]["model"], made["steps"]["annotate"]["gold"]) == ("models/mine", "labels.jsonl")
    assert str(tmp_path) not in json.dumps(made)
    assert "home" not in json.dumps(made)


def test_pictures_are_png_of_some_size(folder: Path) -> None:
    names = {file.name for file in (folder / "pictures").iterdir()}
    assert names == {
        "labels.png",
        "query-words.png",
        "reasoning-query-words.png",
        "document-characters.png",
    }
    for name in names:
        content = (folder / "pictures" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 3000


def test_the_longest_do_not_squeeze_a_histogram() -> None:
    import numpy as np

    made = _histogram(np.array([10] * 990 + [20] * 9 + [100_000]))
    assert made["edges"][-1] < 100
    assert sum(made["counts"]) == 1000
    assert made["max"] == 100_000


def test_a_table_in_markdown() -> None:
    assert _table(["a", "b"], [["x|y", 1234]]) == ["| a | b |", "| --- | ---: |", "| x\\|y | 1,234 |"]
    assert _cell(0.5) == "0.5"
