"""A pipeline for tests: its file, and a language model that answers by hashes of what it is asked."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
from typing import TYPE_CHECKING, Any

from evaluation_data import WORDS
from stub_server import Reply, Seen, chat

if TYPE_CHECKING:
    from pathlib import Path

ENDPOINT = 'model = "stub"\nconcurrency = 4\ntimeout = 10.0\nprice_in = 1.0\nprice_out = 2.0\n'


def draw(text: str) -> random.Random:
    """Return a generator that hangs on a text alone."""
    return random.Random(hashlib.sha256(text.encode()).digest())


def with_logprobs(text: str, top: list[tuple[str, float]]) -> Reply:
    """Return an answer of one token with its candidates."""
    body = json.loads(chat(text).body)
    candidates = [{"token": token, "logprob": value, "bytes": None} for token, value in top]
    body["choices"][0]["logprobs"] = {
        "content": [{"token": text, "logprob": candidates[0]["logprob"], "top_logprobs": candidates}]
    }
    return Reply(json.dumps(body).encode())


def answer(seen: Seen) -> Reply | str:
    """Answer as a well-behaved model would, always the same."""
    prompt = seen.text
    chosen = draw(prompt)
    if "Rank the" in prompt:
        places = list(range(1, len(re.findall(r"^\[\d+\]", prompt, re.MULTILINE)) + 1))
        chosen.shuffle(places)
        return " > ".join(f"[{place}]" for place in places)
    if "number alone" in prompt:
        grade = chosen.randrange(6)
        other = (grade + 1) % 6
        return with_logprobs(str(grade), [(str(grade), -0.5), (f" {other}", -1.25), ("good", -3.0)])
    return f"<think>hm</think>{' '.join(chosen.choices(WORDS, k=3))}"


def write_pipeline(folder: Path, stages: str, base_url: str = "http://127.0.0.1:9/v1", top: str = "") -> Path:
    """Write a pipeline's file with one endpoint, ``default``."""
    file = folder / "pipeline.toml"
    head = f'name = "test"\n{top}\n[endpoints.default]\nbase_url = "{base_url}"\n{ENDPOINT}'
    file.write_text(head + stages, encoding="utf-8")
    return file


def retrieve(*models: str, more: str = "") -> str:
    """Return a stage that retrieves by models."""
    tables = "".join(f'[[stage.retriever]]\nmodel = "{model}"\n' for model in models)
    return f'[[stage]]\nkind = "retrieve"\n{more}\n{tables}'


def stage(kind: str, **keys: Any) -> str:
    """Return another stage."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(["[[stage]]", f'kind = "{kind}"', *lines, ""])


def run_pipeline(file: Path, output: Path, task: str, environment: dict[str, str]) -> None:
    """Run a pipeline in a process of its own; what it says goes nowhere."""
    os.environ.update(environment)
    from reasonembed_mteb.evaluation import resolving, runner
    from reasonembed_mteb.pipelines.run import Pipeline
    from reasonembed_mteb.plugin import register

    register()
    options = runner.RunOptions(output=output, device="cpu", progress=False)
    (one,) = Pipeline.from_toml(file).run(resolving.resolve_tasks([], [task]), options)
    sys.exit(one.outcome.error)
