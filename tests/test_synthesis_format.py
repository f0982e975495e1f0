"""From labels to samples, and the reasoning query on the way."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from remixer_script import answer, make_config
from stub_server import StubServer

from reasonembed_mteb.synthesis.annotate import labelled
from reasonembed_mteb.synthesis.config import FormatSection
from reasonembed_mteb.synthesis.format import _texts, formatted, formatted_file
from reasonembed_mteb.synthesis.pipeline import make_client, synthesize
from reasonembed_mteb.synthesis.reason import refusal, sides
from reasonembed_mteb.synthesis.step import Run

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Reply, Seen

FEW = "[clean]\nskip = true\n[sources]\nper_subset = 12\n"
ROW = {"documents": list("abcdef"), "labels": [3, 1, 5, -1, 2, 5]}


def test_sides_by_the_protocols_thresholds() -> None:
    # Positives best first, equal ones by rank; -1 is neither.
    assert sides(ROW, FormatSection()) == (["c", "f", "a"], ["b", "e"])
    strict = FormatSection(positive_from=4, negative_to=1)
    assert sides(ROW, strict) == (["c", "f"], ["b"])


def test_minimum_counts() -> None:
    section = FormatSection(min_positives=2, min_negatives=1)
    assert refusal(["a"], ["b"], section) == "too few positives"
    assert refusal(["a", "b"], [], section) == "too few negatives"
    assert refusal(["a", "b"], ["c"], section) is None


def made(tmp_path: Path, server: StubServer, more: str = "", name: str = "biology") -> tuple[list[Any], Any]:
    config = make_config(tmp_path, server.base_url, FEW + more)
    subset = config.subset[0].model_copy(update={"name": name})
    config = config.model_copy(update={"subset": [subset]})
    outcomes = synthesize(config)
    assert [one.error for one in outcomes] == [None] * 6
    run = Run(config, make_client(config))
    file = formatted_file(run, subset)
    assert file.name == f"{name}-formatted.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]], run


def test_a_sample_has_what_training_reads(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        samples, run = made(tmp_path, server)
        reasoned = [seen for seen in server.seen if "<reasoning>" in seen.text]
    assert samples
    fields = ["prompt", "query", "reasoning_query", "pos", "neg", "train_group_size", "batch_size"]
    fields += ["pos_scores", "neg_scores"]
    assert all(list(sample) == fields for sample in samples)
    instruction = "Given a Biology post, retrieve relevant passages that help answer the post."
    assert {sample["prompt"] for sample in samples} == {instruction}
    assert {(sample["train_group_size"], sample["batch_size"]) for sample in samples} == {(16, 8)}
    assert all(s["reasoning_query"].startswith(s["query"] + "\nOne would need") for s in samples)
    # Only what becomes a sample is reasoned about.
    assert len(reasoned) == len(samples)
    subset = run.config.subset[0]
    texts = {name: text for _, name, text in run.corpus(subset).documents()}
    rows = {row["query"]: row for row in labelled(run, subset).rows()}
    for sample in samples:
        good, bad = sides(rows[sample["query"]], run.config.format)
        assert sample["pos"] == [texts[name] for name in good]
        assert sample["neg"] == [texts[name] for name in bad]
        row = rows[sample["query"]]
        labels = dict(zip(row["documents"], row["labels"], strict=True))
        # Of equal texts under two ids the higher label counts; here there are none.
        assert sample["pos_scores"] == [labels[name] for name in good]
        assert sample["neg_scores"] == [labels[name] for name in bad]
    note = formatted(run, subset)
    assert note is not None
    assert note["rows"] == 12
    assert note["kept"] == len(samples) == 12 - sum(note["dropped"].values())
    assert note["positives"] == sum(len(sample["pos"]) for sample in samples)


def test_group_sizes_limits_and_missing_reasoning(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply | str:
        return "no tags" if "<reasoning>" in seen.text else answer(seen)

    with StubServer(script) as server:
        samples, run = made(tmp_path, server, "[format]\nmax_positives = 1\nmax_negatives = 2\n", "pony")
    assert {(sample["train_group_size"], sample["batch_size"]) for sample in samples} == {(64, 2)}
    assert all("reasoning_query" not in sample for sample in samples)
    assert {len(sample["pos"]) for sample in samples} == {1}
    assert max(len(sample["neg"]) for sample in samples) == 2
    note = formatted(run, run.config.subset[0])
    assert note is not None
    assert note["without_reasoning"] == len(samples)


def test_samples_without_reasoning_can_be_dropped(tmp_path: Path) -> None:
    config = None
    with StubServer(answer) as server:
        config = make_config(
            tmp_path, server.base_url, FEW + "[reason]\nskip = true\n[format]\nneed_reasoning = true"
        )
        last = synthesize(config)[-1]
        assert not any("<reasoning>" in seen.text for seen in server.seen)
    assert last.state == "failed"
    assert "no reasoning query" in (last.error or "")


@pytest.mark.parametrize("label", [5, 1])
def test_one_side_alone_makes_no_sample(label: int, tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply | str:
        return f"<score>{label}</score>" if "<score>N</score>" in seen.text else answer(seen)

    with StubServer(script) as server:
        outcomes = synthesize(make_config(tmp_path, server.base_url, FEW))
    missing = "too few negatives" if label == 5 else "too few positives"
    assert (outcomes[-1].state, outcomes[-1].step) == ("failed", "reason")
    assert missing in str(outcomes[-1]) or "nothing" in str(outcomes[-1])


def test_the_same_text_is_not_on_both_sides(tmp_path: Path) -> None:
    # Two ids, one text, two labels.
    documents = [{"id": f"d {n}", "text": text["text"]} for n, text in enumerate(_rows(tmp_path))]
    documents += [{"id": f"copy {n}", "text": row["text"]} for n, row in enumerate(documents)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    with StubServer(answer) as server:
        samples, run = made(tmp_path, server, "[mine]\nretriever = 'bm25'\ntop_k = 20\n")
    for sample in samples:
        assert not set(sample["pos"]) & set(sample["neg"])
        assert len(sample["pos"]) == len(set(sample["pos"]))
        assert len(sample["neg"]) == len(set(sample["neg"]))
    note = formatted(run, run.config.subset[0])
    assert note is not None
    assert note["repeated_texts"] > 0


def test_a_positive_is_no_negative() -> None:
    texts = {"a": "one", "b": "two", "copy of a": "one", "c": "three", "copy of c": "three"}
    counts: Counter[str] = Counter()
    found = _texts(["a", "b"], ["copy of a", "c", "copy of c"], texts, counts)
    assert found == (["one", "two"], ["three"])
    assert counts["repeated_texts"] == 2


def _rows(tmp_path: Path) -> list[dict[str, str]]:
    make_config(tmp_path)
    return [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
