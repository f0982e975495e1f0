"""The page of samples: what it shows, what was dropped, and that texts of data stay text."""

from __future__ import annotations

import gzip
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from remixer_script import answer, make_config, write_lines
from stub_server import StubServer
from typer.testing import CliRunner

from reasonembed_mteb.cli import app
from reasonembed_mteb.errors import DataError
from reasonembed_mteb.synthesis.pipeline import synthesize
from reasonembed_mteb.synthesis.samples import sample_files, samples_page

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Reply, Seen

HOSTILE = '<script>alert("1")</script></style></title>\x1b]0;x\x07 \u202e {{ 7 * 7 }} & "quoted"'


class Elements(HTMLParser):
    """Every element of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element; none of ours acts or asks for anything."""
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "action")]

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.text += data


def row(number: int, text: str = "") -> dict[str, object]:
    query = f"query {number} {text}"
    made: dict[str, object] = {"prompt": f"instruction {text}", "query": query}
    if number % 2:
        made["reasoning_query"] = f"{query}\nreasoned {number} {text}"
    return made | {"pos": [f"good {number} {text}"], "neg": [f"bad {n} {text}" for n in range(7)]}


def test_so_many_rows_of_each_subset(tmp_path: Path) -> None:
    write_lines(tmp_path / "one-formatted.jsonl", [row(n) for n in range(200)])
    write_lines(tmp_path / "two.jsonl", [row(n) for n in range(3)])
    page = samples_page(tmp_path, rows=50)
    found = Elements(page)
    assert found.tags.count("article") == 53
    assert "200 samples, 100 with a reasoning query; 1.0 positives and 7.0 negatives on average" in found.text
    assert "and 2 more" in found.text
    # Drawn, not the first; the same ones for the same seed.
    numbers = [int(number) for number in re.findall(r"<h3>Row (\d+)", page)]
    assert numbers[:50] == sorted(numbers[:50]) != list(range(1, 51))
    assert samples_page(tmp_path, rows=50) == page != samples_page(tmp_path, rows=50, seed=7)
    # The query is not said twice.
    assert (found.text.count("query 1 "), "reasoned 1\n" in found.text) == (1 + (2 in numbers[:50]), True)


def test_texts_stay_text(tmp_path: Path) -> None:
    write_lines(tmp_path / "a<b>.jsonl", [row(1, HOSTILE)])
    found = Elements(samples_page(tmp_path))
    assert not {"script", "img", "iframe", "b"} & set(found.tags)
    assert found.tags.count("style") == 1
    assert '<script>alert("1")</script></style></title>' in found.text
    assert "{{ 7 * 7 }}" in found.text
    assert "\\x1b]0;x\\x07 \\u202e" in found.text
    assert not set("\x1b\x07\u202e") & set(found.text)


@pytest.mark.parametrize("missing", ["pos", "neg", "query", "prompt"])
def test_rows_that_lack_something_are_shown(missing: str, tmp_path: Path) -> None:
    content = row(1)
    del content[missing]
    write_lines(tmp_path / "a.jsonl", [content, {**content, "pos": "no list", "neg": None}])
    assert Elements(samples_page(tmp_path / "a.jsonl")).tags.count("article") == 2


def test_long_texts_are_cut_and_gzip_is_read(tmp_path: Path) -> None:
    content = {"query": "q", "pos": ["x" * 5000], "neg": []}
    with gzip.open(tmp_path / "a-formatted.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(json.dumps(content) + "\n")
    assert list(sample_files(tmp_path)) == ["a"]
    text = Elements(samples_page(tmp_path)).text
    assert "... 3,800 more characters" in text
    assert "x" * 1201 not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "holds no samples"), ("[1]\n", r"a.jsonl:1 is no JSON object"), ("{\n", "a.jsonl:1")],
)
def test_what_cannot_be_shown(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        samples_page(tmp_path)


def test_what_a_run_dropped_is_shown_with_its_reasons(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply | str:
        refuses = "<query> and" in seen.text and len(seen.text) % 3 == 0
        return "<query>I'm sorry, but I can't help with that.</query>" if refuses else answer(seen)

    with StubServer(script) as server:
        synthesize(make_config(tmp_path, server.base_url, "[sources]\nper_subset = 20\n"))
    output = tmp_path / "page.html"
    called = [str(tmp_path / "out"), "--output", str(output), "--rows", "4"]
    done = CliRunner().invoke(app, ["samples", *called])
    assert done.exit_code == 0, done.output
    page = output.read_text(encoding="utf-8")
    gold = r'<td>clean</td><td>gold</td><td class="count">1</td>\s*<td><p class="text">d 0</p>'
    assert re.search(gold, page)
    assert "<td>queries</td><td>refusal</td>" in page
    assert "I'm sorry, but I can't help with that." in Elements(page).text
    again = CliRunner().invoke(app, ["samples", *called])
    assert again.exit_code != 0
    assert "exists; give another name, or --overwrite" in str(again.exception)
