"""Every Python example of README, docs and public docstrings runs as it stands, offline, on tiny models."""

from __future__ import annotations

import ast
import doctest
import json
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from conftest import save_decoder
from evaluation_data import save_bert

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stub_server import Seen

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^( *)```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"::\n\n((?:[ ]+.*\n|\n)+)")
# What an example names, and what stands for it here. Nothing else of an example is changed.
DECODERS = ("hanhainebula/reason-embed-qwen3-4b-0928", "Qwen/Qwen3-4B")
ENCODERS = ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
RERANKERS = ("cross-encoder/ms-marco-MiniLM-L6-v2",)


class Example(NamedTuple):
    """An example: where it stands, and its code."""

    place: str
    code: str


def examples() -> Iterator[Example]:
    """Find every example of the documents and of every public docstring."""
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, found in enumerate(FENCE.finditer(file.read_text(encoding="utf-8"))):
            yield Example(f"{file.name}-{number}", textwrap.dedent(found[2]))
    for name, text in documented():
        yield from _of_docstring(name, text)


def documented() -> Iterator[tuple[str, str]]:
    """Yield the docstring of every module, and of its public functions, classes and methods."""
    for file in sorted((ROOT / "reasonembed_mteb").rglob("*.py")):
        # Read, not imported: to collect tests shall cost nothing.
        tree = ast.parse(file.read_text(encoding="utf-8"))
        yield file.stem, ast.get_docstring(tree) or ""
        yield from _within(tree, "")


def _within(node: ast.AST, before: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield before + child.name, ast.get_docstring(child) or ""
            yield from _within(child, f"{before}{child.name}.")


def _of_docstring(name: str, text: str) -> Iterator[Example]:
    for found in BLOCK.finditer(text + "\n"):
        code = textwrap.dedent(found[1])
        if _is_python(code):
            yield Example(name, code)
    lines = doctest.DocTestParser().get_examples(text)
    if lines:
        yield Example(name, "".join(line.source for line in lines))


def _is_python(code: str) -> bool:
    """Tell Python from commands and layouts: it imports or assigns something."""
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False
    return any(isinstance(line, ast.Import | ast.ImportFrom | ast.Assign) for line in body)


def stand_in(code: str, folder: Path, encoder: Path, address: str) -> str:
    """Put tiny models, made-up files and a local server where an example names real ones."""
    stand_ins = ((DECODERS, folder / "decoder"), (ENCODERS, encoder), (RERANKERS, folder / "cross"))
    for names, path in stand_ins:
        for name in names:
            code = code.replace(f'"{name}"', repr(str(path)))
    return code.replace("http://localhost:8000/v1", address)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make what examples read, and return the names that some take for granted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    save_decoder(tmp_path / "decoder", pad=True)
    save_bert(tmp_path / "cross", head=True)
    table = tmp_path / "results/records/MODEL/REVISION/TASK.parquet"
    table.parent.mkdir(parents=True)
    pq.write_table(pa.table({"query_id": ["1", "2"], "ndcg_at_10": [0.5, 0.25]}), table)
    return {}


def _marked() -> Iterator[Any]:
    for example in examples():
        marks = [pytest.mark.slow] if ".train()" in example.code else []
        yield pytest.param(example, id=example.place, marks=marks)


def test_there_are_examples() -> None:
    places = {example.place for example in examples()}
    assert places >= {"RedapterLoss", "CachedRedapterLoss", "RedapterCallback", "ReasonEmbed", "README.md-0"}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("example", list(_marked()))
def test_an_example_runs(
    example: Example, made_up: dict[str, Any], encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine_data import EMBEDDINGS, Served
    from stub_server import CHAT, Reply, StubServer

    from reasonembed_mteb import ReasonEmbed

    encoder.save(str(tmp_path / "encoder"))

    def script(seen: Seen) -> str | Reply:
        if seen.path == EMBEDDINGS:
            return Served(ReasonEmbed(str(tmp_path / "decoder"), device="cpu"))(seen)
        if not seen.path.endswith("/rerank"):
            return "an answer"
        results = [{"index": place, "relevance_score": 0.5} for place in range(len(seen.body["documents"]))]
        return Reply(json.dumps({"results": results}).encode())

    with StubServer(script, paths=(CHAT, "/v1/rerank", EMBEDDINGS)) as server:
        code = stand_in(example.code, tmp_path, tmp_path / "encoder", server.base_url)
        exec(compile(code, example.place, "exec"), made_up)
