"""A subset that begins with queries, pairs or labels of one's own, in three layouts and at four steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from remixer_script import answer, document, make_config, write_corpus, write_lines
from stub_server import StubServer

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.synthesis.annotate import labelled
from reasonembed_mteb.synthesis.corpus import open_corpus
from reasonembed_mteb.synthesis.format import formatted_file
from reasonembed_mteb.synthesis.generate import queries
from reasonembed_mteb.synthesis.own import OwnQuery, read_own
from reasonembed_mteb.synthesis.pipeline import estimate, make_client, synthesize
from reasonembed_mteb.synthesis.shards import read_rows
from reasonembed_mteb.synthesis.step import Run

if TYPE_CHECKING:
    from pathlib import Path

    from reasonembed_mteb.synthesis.config import Config
    from reasonembed_mteb.synthesis.pipeline import StepResult

TEXTS = [document(500 + number, 12) for number in range(4)]


def begun(folder: Path, url: str = "http://127.0.0.1:9/v1", *, more: str = "", **start: str) -> Config:
    """Return a configuration whose subset begins with something of its own."""
    config = make_config(folder, url, more)
    table = {"at": "mine", "path": "own.jsonl", **start}
    subset = config.subset[0].model_dump() | {"start": table}
    values = config.model_dump() | {"subset": [subset], "endpoints": config.endpoints}
    return type(config).model_validate(values)


def own(config: Config) -> tuple[OwnQuery, ...]:
    return read_own(config.subset[0], config, open_corpus(config.subset[0], config)).queries


def samples(config: Config) -> list[dict[str, Any]]:
    run = Run(config, make_client(config))
    return list(read_rows(formatted_file(run, config.subset[0])))


def states(outcomes: list[StepResult]) -> dict[str, str]:
    return {one.step: one.state if one.error is None else one.error for one in outcomes}


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"query": "q"}, {}),
        ({"_id": "7", "text": "q"}, {}),
        ({"query": "q", "positive": "d 3"}, {"d 3": 5}),
        ({"query": "q", "pos": ["d 3", "d 4"], "neg": ["d 5"]}, {"d 3": 5, "d 4": 5, "d 5": 1}),
        # As the published data has it: texts; a text of two rows counts once.
        ({"query": "q", "pos": [document(3, 40)], "neg": [f" {document(4, 40)}\n"]}, {"d 3": 5, "d 4": 1}),
        ({"query": "q", "gold_ids": ["d 3"], "excluded_ids": ["d 6"]}, {"d 3": 5, "d 6": -1}),
        ({"query": "q", "gold_ids": ["N/A"]}, {}),
        # What holds nothing hides nothing.
        ({"query": "", "text": "q", "pos": [], "gold_ids": ["d 3"], "neg": []}, {"d 3": 5}),
        ({"query": "q", "labels": {"d 3": 4, "d 4": 2}}, {"d 3": 4, "d 4": 2}),
        # A row of the annotate step.
        ({"query": "q", "documents": ["d 3", "d 4"], "labels": [3, -1]}, {"d 3": 3, "d 4": -1}),
        ({"query": "q", "document_id": "d 3", "label": 2.0}, {"d 3": 2}),
        ({"anchor": "q", "passage": document(3)}, {"d 3": 5}),
        ({"query": "q", "corpus_id": "d 3", "label": "1"}, {"d 3": 1}),
        # A positive that is also listed among the negatives is one.
        ({"query": "q", "positives": ["d 3"], "negatives": ["d 3", "d 4"]}, {"d 3": 5, "d 4": 1}),
    ],
)
def test_what_a_line_may_hold(row: dict[str, Any], labels: dict[str, int], tmp_path: Path) -> None:
    write_corpus(tmp_path)
    write_lines(tmp_path / "own.jsonl", [row])
    (query,) = own(begun(tmp_path))
    assert (query.text, query.labels) == ("q", labels)
    assert query.id == row.get("_id", "biology-own-1")
    assert query.source == next((name for name, label in labels.items() if label > 1), None)


def test_half_a_character_pair_is_replaced(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    half, whole = "\\ud83d", "\\ud83d\\ude00"
    line = f'{{"id": "{half}", "query": "{half} {whole} {document(10)}", "reasoning_query": "{half}"}}\n'
    (tmp_path / "own.jsonl").write_text(line, encoding="utf-8")
    (query,) = own(begun(tmp_path))
    assert (query.id, query.reasoning_query) == ("\ufffd", "\ufffd")
    assert query.text == f"\ufffd \U0001f600 {document(10)}"
    assert synthesize(begun(tmp_path), ["mine"])[0].state == "made"


def test_lines_of_one_query_are_joined(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": f"d {n}"} for n in (3, 4)] + [{"query": "r", "positive": "d 3"}]
    write_lines(tmp_path / "own.jsonl", rows)
    assert [query.labels for query in own(begun(tmp_path))] == [{"d 3": 5, "d 4": 5}, {"d 3": 5}]
    labels = {"d 3": 2, "d 4": 0, "d 5": -2}
    pairs = [{"query": "q", "document_id": name, "label": label} for name, label in labels.items()]
    write_lines(tmp_path / "own.jsonl", pairs)
    (query,) = own(begun(tmp_path, scale="relevance"))
    assert query.labels == {"d 3": 5, "d 4": 1, "d 5": 1}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question_text": "q"}], "own.jsonl:1 has no query (keys: question_text)"),
        ([{"query": " "}], "own.jsonl:1 has no query"),
        ([["q"]], "own.jsonl:1 is no JSON object"),
        ([{"query": "q", "pos": ["d 3", 4.5]}], "own.jsonl:1: 4.5 names no document"),
        ([{"query": "q", "pos": 4}], "own.jsonl:1: '4' is neither an id nor a text"),
        ([{"query": "q", "labels": {"d 3": 0}}], "label 0 is not one of 1 to 5"),
        ([{"query": "q", "labels": {"d 3": 2.5}}], "label 2.5 is not one of 1 to 5"),
        ([{"query": "q", "labels": "d 3"}], "labels is str"),
        ([{"query": "q", "documents": ["d 3"], "labels": [1, 2]}], "1 documents and 2 labels"),
        ([{"query": "q"}, {"query": "r", "pos": "d 99"}], "own.jsonl:2: 'd 99' is neither an id nor a text"),
        ([{"id": "1", "query": "q"}, {"id": "1", "query": "r"}], "own.jsonl:2: the id '1' is also that of"),
        ([{"query": "q", "labels": {"d 3": 1}}, {"query": "q", "pos": ["d 3"]}], "two labels for one query"),
        ([], "own.jsonl holds no query"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(rows: list[Any], said: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "own.jsonl", rows)
    (outcome, *_) = synthesize(begun(tmp_path))
    assert (outcome.step, outcome.state) == ("mine", "failed")
    assert said in (outcome.error or "")


def test_a_label_beyond_all_numbers(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"query": "q", "labels": {"d 3": 1e999}}\n', encoding="utf-8")
    (outcome, *_) = synthesize(begun(tmp_path))
    assert "own.jsonl:1: label inf is not one of 1 to 5" in (outcome.error or "")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    (outcome, *_) = synthesize(begun(tmp_path))
    assert "own.jsonl does not exist" in (outcome.error or "")
    with pytest.raises(ReasonEmbedError, match=r"own.jsonl does not exist"):
        estimate(begun(tmp_path))


def test_pairs_are_mined_and_only_what_is_new_is_judged(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    numbered = list(enumerate(TEXTS, 10))
    rows = [{"query": f"{text} {document(n)}", "positive": f"d {n}"} for n, text in numbered]
    write_lines(tmp_path / "own.jsonl", rows)
    with StubServer(answer) as server:
        config = begun(tmp_path, server.base_url)
        outcomes = synthesize(config)
        asked = [seen.text for seen in server.seen]
        again = synthesize(config)
    assert states(outcomes) == dict.fromkeys(("mine", "annotate", "reason", "format"), "made")
    assert {one.state for one in again} == {"there"}
    assert not any("<verdict>" in text or "be less than" in text for text in asked)
    run = Run(config, make_client(config))
    for number, row in enumerate(labelled(run, config.subset[0]).rows()):
        assert (row["documents"][0], row["labels"][0]) == (f"d {10 + number}", 5)
        assert row["documents"].count(f"d {10 + number}") == 1
        # The positive itself was not asked about.
        judged = [text for text in asked if "<score>" in text and row["query"] in text]
        assert len(judged) == len(row["documents"]) - 1
        assert not any(document(10 + number) in text.partition("<document>")[2] for text in judged)
    made = samples(config)
    assert made
    for sample in made:
        assert [n for n, text in numbered if text in sample["query"] and document(n) in sample["pos"]]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| biology | 60 | - | - | - | 4 | 4 |" in card
    assert "Not so in biology: its queries, and what was known of their documents, were brought" in card
    found = {one.step: one.requests for one in estimate(config)}
    assert found == {"clean": 0, "generate": 0, "annotate": 4 * 6, "reason": 4}


def test_a_changed_label_is_seen(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    found = []
    with StubServer(answer) as server:
        config = begun(tmp_path, server.base_url)
        for label in (5, 3):
            write_lines(tmp_path / "own.jsonl", [{"query": document(10), "labels": {"d 10": label}}])
            synthesize(config, ["mine", "annotate"])
            run = Run(config, make_client(config))
            (row,) = labelled(run, config.subset[0]).rows()
            found.append(row["labels"][0])
    assert found == [5, 3]


def test_a_score_ceiling_compares_with_the_positive(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    more = "[mine]\nretriever = 'bm25'\ntop_k = 60\nscore_ceiling = 0.3\n"
    write_lines(tmp_path / "own.jsonl", [{"query": document(10), "positive": "d 10"}])
    with StubServer(answer) as server:
        assert states(synthesize(begun(tmp_path, server.base_url, more=more), ["mine"])) == {"mine": "made"}
    write_lines(tmp_path / "own.jsonl", [{"query": document(10)}])
    (outcome,) = synthesize(begun(tmp_path, more=more), ["mine"])
    assert "own.jsonl:1 has none; leave it out, or give pairs" in (outcome.error or "")


@pytest.mark.parametrize("at", ["annotate", "reason", "format"])
def test_a_later_step_needs_less(at: str, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    rows = [
        {
            "query": text,
            "labels": {"d 10": 4, "d 11": 1, "d 12": -1},
            "candidates": [["d 10", 1, 2.5], "d 13"],
            "reasoning_query": f"{text}\nBecause.",
        }
        for text in TEXTS
    ]
    write_lines(tmp_path / "own.jsonl", rows)
    with StubServer(answer) as server:
        config = begun(tmp_path, server.base_url, at=at)
        outcomes = synthesize(config)
        judged = [seen.text for seen in server.seen if "<score>" in seen.text]
        reasoned = [seen.text for seen in server.seen if "<reasoning>" in seen.text]
    steps = ("annotate", "reason", "format")
    assert states(outcomes) == dict.fromkeys(steps[steps.index(at) :], "made")
    # Of the candidates one has a label already.
    assert len(judged) == (4 if at == "annotate" else 0)
    assert all(document(13) in text for text in judged)
    assert len(reasoned) == (0 if at == "format" else 4)
    made = samples(config)
    assert [sample["query"] for sample in made] == TEXTS
    for sample in made:
        assert document(10) in sample["pos"]
        assert document(11) in sample["neg"]
        assert document(12) not in sample["pos"] + sample["neg"]
        assert sample["reasoning_query"].startswith(f"{sample['query']}\n")
        assert sample["reasoning_query"].endswith("Because.") == (at == "format")


def test_a_beir_folder(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    write_lines(folder / "corpus.jsonl", [{"_id": f"d {n}", "text": document(n)} for n in range(8)])
    texts = {name: document(700 + n, 20) for n, name in enumerate(("train", "test", "both"))}
    write_lines(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in texts.items()])
    (folder / "qrels").mkdir()
    splits = {
        "train": "train\td 1\t2\ntrain\td 2\t0\nboth\td 3\t1\n",
        "test": "test\td 4\t1\nboth\td 3\t1\n",
    }
    for split, pairs in splits.items():
        lines = f"query-id\tcorpus-id\tscore\n{pairs}"
        (folder / "qrels" / f"{split}.tsv").write_text(lines, encoding="utf-8")
    config = begun(tmp_path, path="beir", layout="beir", split="train")
    subset = config.subset[0].model_copy(update={"layout": "beir", "path": "beir", "queries": None})
    config = config.model_copy(update={"subset": [subset]})
    found = {query.id: query.labels for query in own(config)}
    assert found == {"train": {"d 1": 5, "d 2": 1}, "both": {"d 3": 5}}
    # What another split asks stays apart, what is trained on does not.
    corpus = open_corpus(subset, config)
    assert set(corpus.benchmark.queries) == {texts["test"], texts["both"]}
    with StubServer(answer) as server:
        endpoints = {"default": config.endpoints["default"].__class__(server.base_url, "stub")}
        config = config.model_copy(update={"endpoints": endpoints})
        synthesize(config, ["mine"])
    run = Run(config, make_client(config))
    dropped = {row["id"]: row.get("dropped") for row in queries(run, subset).rows(dropped=True)}
    assert dropped == {"train": None, "both": "nearly a benchmark query"}
    # The queries alone: all of them are the user's own then.
    assert subset.start is not None
    alone = subset.model_copy(update={"start": subset.start.model_copy(update={"split": None})})
    config = config.model_copy(update={"subset": [alone]})
    assert {query.id: query.labels for query in own(config)} == {"train": {}, "test": {}, "both": {}}
    assert not open_corpus(alone, config).benchmark.queries


def test_a_bright_layout(tmp_path: Path) -> None:
    folder = tmp_path / "bright"
    documents = [{"id": f"d {n}", "content": document(n)} for n in range(8)]
    write_lines(folder / "documents-biology.jsonl", documents)
    rows = [
        {"id": "1", "query": document(800, 20), "gold_ids": ["d 1", "d 1"], "excluded_ids": ["d 2"]},
        {"id": "2", "query": document(801, 20), "gold_ids": ["d 3"], "excluded_ids": ["N/A"]},
    ]
    write_lines(folder / "examples-biology.jsonl", rows)
    others = [{"id": "9", "query": document(802, 20), "gold_ids": ["d 4"], "excluded_ids": ["N/A"]}]
    write_lines(folder / "examples-pony.jsonl", others)
    config = begun(tmp_path, path="bright", layout="bright")
    subset = config.subset[0].model_copy(update={"layout": "bright", "path": "bright", "queries": None})
    config = config.model_copy(update={"subset": [subset]})
    assert [query.labels for query in own(config)] == [{"d 1": 5, "d 2": -1}, {"d 3": 5}]
    # The other subsets' queries stay apart as ever.
    assert open_corpus(subset, config).benchmark.queries == (document(802, 20),)


def test_own_queries_that_are_a_benchmark_s_are_left_out(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    leaked = document(900, 50)
    write_lines(tmp_path / "own.jsonl", [{"query": leaked}, {"query": document(10)}])
    config = begun(tmp_path)
    said: list[str] = []
    synthesize(config, ["mine"], say=said.append)
    assert said[0] == (
        "biology begins at mine: 1 of 2 queries of own.jsonl kept (dropped: nearly a benchmark query 1)"
    )
    run = Run(config, make_client(config))
    rows = list(queries(run, config.subset[0]).rows(dropped=True))
    assert [row.get("dropped") for row in rows] == ["nearly a benchmark query", None]
    write_lines(tmp_path / "own.jsonl", [{"query": leaked}])
    (outcome,) = synthesize(begun(tmp_path), ["mine"])
    assert outcome.state == "failed"
    assert "0 of 1 queries of own.jsonl kept (dropped: nearly a benchmark query 1)" in (outcome.error or "")


def test_labels_without_negatives_are_said(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    write_lines(tmp_path / "own.jsonl", [{"query": document(10), "pos": ["d 10"]}])
    (outcome,) = synthesize(begun(tmp_path, at="reason"), ["reason"])
    assert "no query has positives and negatives enough" in (outcome.error or "")
