"""Corpora in three layouts, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from remixer_script import make_config, write_lines

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.synthesis.corpus import check_unchanged, open_corpus

if TYPE_CHECKING:
    from reasonembed_mteb.synthesis.config import Config
    from reasonembed_mteb.synthesis.corpus import Corpus

MINI = Path(__file__).resolve().parents[1] / "tasks" / "mini"


def config_for(tmp_path: Path, layout: str, path: Path, **corpus: str) -> Config:
    config = make_config(tmp_path)
    section = config.corpus.model_copy(update={"layout": layout, "path": str(path), **corpus})
    subset = config.subset[0].model_copy(update={"queries": None})
    return config.model_copy(update={"corpus": section, "subset": [subset]})


def opened(config: Config) -> Corpus:
    return open_corpus(config.subset[0], config)


def test_bright_layout(tmp_path: Path) -> None:
    own = opened(config_for(tmp_path, "bright", MINI, protect="own"))
    rows = [json.loads(line) for line in (MINI / "documents-biology.jsonl").read_text().splitlines()]
    assert [(name, text) for _, name, text in own.documents()] == [(r["id"], r["content"]) for r in rows]
    examples = [json.loads(line) for line in (MINI / "examples-biology.jsonl").read_text().splitlines()]
    assert own.benchmark.queries == tuple(row["query"] for row in examples)
    assert own.benchmark.gold == {name for row in examples for name in row["gold_ids"]}
    assert "N/A" not in own.benchmark.excluded
    # By default every subset's benchmark stays apart.
    every = opened(config_for(tmp_path, "bright", MINI))
    assert every.benchmark.gold > own.benchmark.gold
    assert len(every.benchmark.queries) > len(own.benchmark.queries)
    assert every.benchmark.excluded > own.benchmark.excluded


def test_beir_layout(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    documents = [{"_id": "a", "title": "T", "text": "one"}, {"_id": "b", "title": "", "text": "two"}]
    write_lines(folder / "corpus.jsonl", documents)
    write_lines(folder / "queries.jsonl", [{"_id": "q", "text": "what?"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t0\n", encoding="utf-8"
    )
    (folder / "excluded.tsv").write_text("query-id\tcorpus-id\nq\tb\n", encoding="utf-8")
    corpus = opened(config_for(tmp_path, "beir", folder))
    # As MTEB: the title goes before the text.
    assert list(corpus.documents()) == [(0, "a", "T one"), (1, "b", "two")]
    assert (corpus.benchmark.gold, corpus.benchmark.excluded) == ({"a"}, {"b"})
    assert corpus.benchmark.queries == ("what?",)
    # Every split stays apart, and ids are read as `run --beir` reads them.
    write_lines(folder / "corpus.jsonl", [*documents, {"_id": '5" pipe', "text": "three"}])
    (folder / "qrels" / "dev.tsv").write_text('query-id\tcorpus-id\tscore\nq\t"5"" pipe"\t1\n')
    assert opened(config_for(tmp_path, "beir", folder)).benchmark.gold == {"a", '5" pipe'}
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq a 1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.tsv, line 2 has 1 columns instead of 3"):
        opened(config_for(tmp_path, "beir", folder))
    (folder / "qrels" / "test.tsv").write_text("q\ta\thigh score\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"test.tsv, line 1: label 'high score'"):
        opened(config_for(tmp_path, "beir", folder))
    write_lines(folder / "corpus.jsonl", [{"_id": "a", "text": "one"}, {"_id": "a", "text": "two"}])
    with pytest.raises(DataError, match=r"line 2: _id 'a' is also on line 1"):
        opened(config_for(tmp_path, "beir", folder))


def test_jsonl_layout_and_lookups(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    corpus = opened(config)
    assert len(corpus) == 60
    assert corpus.benchmark.gold == {"d 0"}
    assert corpus.benchmark.excluded == {"d 1"}
    texts = {name: text for _, name, text in corpus.documents()}
    assert corpus.texts(["d 7", "d 3", "d 7"]) == {"d 7": texts["d 7"], "d 3": texts["d 3"]}
    assert [position for position, *_ in corpus.documents([5, 2])] == [5, 2]
    with pytest.raises(DataError, match="'d 99' is not in the corpus"):
        corpus.texts(["d 1", "d 99"])


def test_the_last_of_two_documents_with_one_id_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"id": "a", "text": "old"}, {"id": "b", "text": "x"}, {"id": "a", "text": "new"}]
    file = write_lines(tmp_path / "twice.jsonl", rows)
    corpus = opened(config_for(tmp_path, "jsonl", file))
    assert {name: text for _, name, text in corpus.documents()} == {"a": "new", "b": "x"}
    assert "repeat the id" in caplog.text


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "is empty"),
        ('{"id": "a", "text": "x"}\n', "has 1 documents; two are needed"),
        ('{"id": "a", "body": "x"}\n', "has keys id, body"),
        ('{"id": "a", "text": "x"}\n{"id": "b", "te\n', r"corpus.jsonl:2 is not JSON"),
        ('{"id": "a", "text": "x"}\n["b"]\n', r"corpus.jsonl:2 is no JSON object"),
        ('{"id": 1, "text": "x"}\n{"id": 2, "text": "y"}\n', r"corpus.jsonl:1: id is int, not a string"),
        ('{"id": "a", "text": "x"}\n{"id": "b", "text": null}\n', r"corpus.jsonl:2: text is NoneType"),
    ],
)
def test_a_broken_corpus_is_named_with_its_line(lines: str, said: str, tmp_path: Path) -> None:
    make_config(tmp_path)
    (tmp_path / "corpus.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        opened(make_config(tmp_path))


def test_a_missing_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; correct path"):
        opened(config_for(tmp_path, "jsonl", tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"no documents/biology"):
        opened(config_for(tmp_path, "bright", tmp_path))
    with pytest.raises(DataError, match=r"has no corpus.jsonl"):
        opened(config_for(tmp_path, "beir", MINI))


def test_a_changed_corpus_is_an_error(tmp_path: Path) -> None:
    config, note = make_config(tmp_path), tmp_path / "note.json"
    check_unchanged(opened(config), note)
    check_unchanged(opened(config), note)
    with (tmp_path / "corpus.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"id": "new", "text": "late"}\n')
    with pytest.raises(DataError, match="not the one that earlier steps read"):
        check_unchanged(opened(config), note)
