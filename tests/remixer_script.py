"""A run for tests: a small corpus, a configuration, and a language model that answers by hashes."""

from __future__ import annotations

import hashlib
import json
import random
import re
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.synthesis.config import Config, read_config

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Reply, Seen

WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "nu", "pe") for b in ("ber", "dan", "fil") for c in "aeiou"]


def _draw(text: str) -> random.Random:
    return random.Random(hashlib.sha256(text.encode()).digest())


def answer(seen: Seen) -> Reply | str:
    """Answer as a well-behaved model would, always the same."""
    prompt = seen.text
    draw = _draw(prompt + str(seen.body.get("seed")))
    if "<verdict>" in prompt:
        return f"<verdict>{'no' if draw.random() < 0.1 else 'yes'}</verdict>"
    if "<score>N</score>" in prompt:
        return f"1. It asks.\n2. It says.\n3. So.\n<score>{draw.choice([1, 1, 2, 2, 3, 4, 5])}</score>"
    if "<reasoning>" in prompt:
        return f"<reasoning>One would need {' '.join(draw.choices(WORDS, k=30))}.</reasoning>"
    document = prompt.partition("<document>")[2].partition("</document>")[0]
    asked = re.search(r"be (less than )?(\d+) ", prompt)
    # As long as asked, and most of it in the words of the document.
    count = 32 if asked is None or asked[1] else int(asked[2])
    shared = draw.choices(re.findall(r"\w+", document) or ["nothing"], k=max(12, count * 3 // 4))
    return f"I think.\n<query>Why {' '.join(shared + draw.choices(WORDS, k=count - len(shared)))}?</query>"


def document(number: int, length: int = 40) -> str:
    """Return a text of so many made-up words; every number another one."""
    return " ".join(_draw(f"document {number}").choices(WORDS, k=length)) + "."


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON Lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_corpus(folder: Path, documents: int = 60) -> None:
    """Write ``corpus.jsonl`` and ``queries.jsonl``: document 0 is gold, 1 is excluded, 2 is short."""
    rows = [{"id": f"d {n}", "text": document(n, 3 if n == 2 else 40)} for n in range(documents)]
    write_lines(folder / "corpus.jsonl", rows)
    query = {"id": "q", "query": document(900, 50), "gold_ids": ["d 0"], "excluded_ids": ["d 1"]}
    write_lines(folder / "queries.jsonl", [query])


def write_config(folder: Path, base_url: str, more: str = "") -> Path:
    """Write ``config.toml`` over that corpus: BM25, five candidates, endpoint ``default``.

    ``more`` is TOML; its tables must be others than those here.
    """
    endpoint = f'base_url = "{base_url}"\nmodel = "stub"\nconcurrency = 8\ntimeout = 10.0'
    mine = "" if "[mine]" in more else '[mine]\nretriever = "bm25"\ntop_k = 6\n'
    file = folder / "config.toml"
    file.write_text(
        f"""
output = "out"
[corpus]
layout = "jsonl"
path = "corpus.jsonl"
[[subset]]
name = "biology"
queries = "queries.jsonl"
[endpoints.default]
{endpoint}
price_in = 1.0
price_out = 2.0
{mine}{more}
""",
        encoding="utf-8",
    )
    return file


def make_config(folder: Path, base_url: str = "http://127.0.0.1:9/v1", more: str = "") -> Config:
    """Write corpus and configuration, and read the latter."""
    if not (folder / "corpus.jsonl").exists():
        write_corpus(folder)
    return read_config(write_config(folder, base_url, more))


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file that a run makes, but the answers on disk and the lock."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    names = [(file.relative_to(folder).as_posix(), file) for file in files]
    return {
        name: file.read_bytes() for name, file in names if not name.startswith("answers/") and name != ".lock"
    }
