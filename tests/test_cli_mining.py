"""The command `mine`: with a cross-encoder, a server and an annotator; options that do not fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from conftest import make_encoder
from stub_server import CHAT, Reply, Seen, StubServer
from typer.testing import CliRunner

from reasonembed_mteb.cli.common import app
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("openai")
WORDS = ("sky", "blue", "light", "wave", "short")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_encoder(folder / "parts").save(str(folder / "saved"))
    return folder / "saved"


@pytest.fixture
def call(model: Path, tmp_path: Path) -> Any:
    rows = [{"query": f"why {word}?", "pos": [f"the {word}"]} for word in WORDS]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def run(*options: str) -> list[dict[str, Any]]:
        output = tmp_path / "mined.jsonl"
        words = ["mine", "--pairs", str(file), "-m", str(model), "--output", str(output), *options]
        result = CliRunner().invoke(app, words)
        if result.exception is not None:
            raise result.exception
        assert "negatives" in result.output
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

    return run


def test_by_vectors_alone(call: Any, tmp_path: Path) -> None:
    rows = call("--negatives", "2", "--instruction", "Find", "--store", str(tmp_path / "vectors"))
    assert [len(row["neg"]) for row in rows] == [2] * 5
    assert all(row["prompt"] == "Find" for row in rows)
    assert (tmp_path / "vectors").is_dir()
    assert (
        json.loads((tmp_path / "mined.jsonl.mining.json").read_text(encoding="utf-8"))["rules"]["negatives"]
        == 2
    )


def served(seen: Seen) -> Reply | str:
    """Grade a document by its length, over either API."""
    if seen.path == CHAT:
        document = seen.text.partition("<document>")[2].partition("</document>")[0].strip()
        return f"<score>{len(document) - 6}</score>"
    found = [{"index": i, "relevance_score": len(text) - 6} for i, text in enumerate(seen.body["documents"])]
    return Reply(json.dumps({"results": found}).encode())


@pytest.mark.parametrize("kind", ["rerank", "annotator"])
def test_what_a_server_scores_too_high_is_no_negative(kind: str, call: Any) -> None:
    options = (
        "--reranker",
        "stub",
        "--reranker-kind",
        kind,
        "--negatives",
        "4",
        "--max-score",
        "2",
        "--scores",
    )
    with StubServer(served, paths=(CHAT, "/v1/rerank")) as server:
        rows = call(*options, "--reranker-url", server.base_url)
    # "the light" and "the short" score 3.
    assert {text for row in rows for text in row["neg"]} == {"the sky", "the blue", "the wave"}
    assert all(row["neg_scores"] == [len(text) - 6 for text in row["neg"]] for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--reranker-kind", "rerank"), "need a model: give --reranker NAME"),
        (("--reranker", "x", "--reranker-url", "http://one:1"), "give --reranker-kind too"),
        (("--reranker", "x", "--reranker-kind", "score"), "give its address by --reranker-url"),
        (("--reranker", "x", "--reranker-kind", "scores"), "did you mean 'score'"),
        (("--sampling", "best"), "unknown sampling 'best'"),
        (("--corpus", "nothing.jsonl"), "is no corpus"),
        (("--device", "cuda:99"), "the device 'cuda:99' cannot be used"),
        (("--device", "cpu,cpu"), "this command works on one device"),
    ],
)
def test_options_that_do_not_fit(options: tuple[str, ...], message: str, call: Any) -> None:
    with pytest.raises(ReasonEmbedError, match=message):
        call(*options)


@pytest.mark.parametrize("option", ["--batch-size", "--max-length", "--reranker-length"])
def test_sizes_of_nothing_are_refused(option: str, call: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        call(option, "0")
    assert ended.value.code == 2


def test_the_released_annotator_is_asked_as_it_was_released(call: Any) -> None:
    name = "somewhere/reason-embed-annotator-qwen3-8b-0928"
    with StubServer(served, paths=(CHAT, "/v1/rerank")) as server:
        options = ("--reranker", name, "--reranker-kind", "annotator", "--max-score", "2")
        call(*options, "--negatives", "4", "--reranker-url", server.base_url)
    assert {(seen.body["top_k"], seen.body["max_tokens"]) for seen in server.seen} == {(40, 2048)}
    assert all("3 - the document holds partial information" in seen.text for seen in server.seen)


def test_by_bm25(call: Any, tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    corpus = tmp_path / "corpus.jsonl"
    texts = ["the sky", "sky and sky again", "a sky of lead", "blue light", "the blue", "nothing at all"]
    corpus.write_text("".join(json.dumps({"_id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
    rows = call("-m", "bm25", "--corpus", str(corpus), "--negatives", "2", "--scores")
    found = {row["query"]: row["neg"] for row in rows}
    # What shares no word is no candidate, and a query without any leaves no row.
    assert set(found["why sky?"]) == {"sky and sky again", "a sky of lead"}
    assert found["why blue?"] == ["blue light"]
    assert "why wave?" not in found
    row = next(row for row in rows if row["query"] == "why sky?")
    assert row["neg_scores"] == sorted(row["neg_scores"], reverse=True)
    assert row["pos_scores"][0] > 0
    record = json.loads((tmp_path / "mined.jsonl.mining.json").read_text(encoding="utf-8"))
    assert record["model"]["name"] == "BM25 (bm25s)"
    with pytest.raises(ReasonEmbedError, match="BM25 has no vectors"):
        call("-m", "bm25", "--output", str(tmp_path / "other.jsonl"), "--store", str(tmp_path / "vectors"))
