"""Paraphrases: from a file, and asked of an endpoint once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from stub_server import Reply, Seen, StubServer

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.llm.client import Endpoint, LLMClient
from reasonembed_mteb.robustness.paraphrases import PROMPT, ask_paraphrases, read_paraphrases

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_read_whatever_its_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "paraphrases.jsonl"
    rows = [{"query": "a\r\nb", "paraphrase": "c\r\nd"}, {"query": "e", "paraphrase": "f", "more": 1}]
    file.write_bytes("\r\n".join(map(json.dumps, [*rows, rows[0]])).encode())
    assert read_paraphrases(file) == {"a\nb": "c\nd", "e": "f"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"query": "a"}', ':1 must hold texts "query" and "paraphrase"'),
        ('{"query": "a", "paraphrase": " "}', ":1 must hold texts"),
        ('["a", "b"]', ":1 must hold texts"),
        ('{"query": "a", "paraphrase": "b"}\n{"query": "a", "paraphrase": "c"}', ":2 gives a query another"),
        ("", "holds no paraphrase"),
        ("{", ":1 is not JSON"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "paraphrases.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        read_paraphrases(file)
    assert said in str(refused.value)


def test_an_endpoint_is_asked_once_a_query(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openai")

    def served(seen: Seen) -> Reply | str:
        query = seen.text.removeprefix(PROMPT)
        return "" if query == "silence" else f" {query.upper()}\r\n"

    with StubServer(served) as server:
        endpoint = Endpoint(server.base_url, "model", backoff=0.01)
        for _ in range(2):
            with LLMClient(endpoint, tmp_path / "answers", show_progress=False) as client:
                found = ask_paraphrases(["why?", "a\r\nb", "why?", "silence"], client)
            assert found == {"why?": "WHY?", "a\nb": "A\nB"}
        asked = [seen.text.removeprefix(PROMPT) for seen in server.seen]
    assert sorted(set(asked)) == ["a\nb", "silence", "why?"]
    assert asked.count("why?") == 1
    assert "1 of 3 queries got no paraphrase from model" in caplog.text
