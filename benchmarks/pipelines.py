"""Listwise reranking of many queries: its bookkeeping alone, and its request rate beside plain requests.

The bookkeeping is the whole stage with a transport in this process that answers at once: windows, prompts,
answers on disk, permutations. Over HTTP the server is `tests/stub_server.py` in a process of its own, which
answers after the latency; the stage's dependent requests and as many independent ones of the same size (what
synthesis sends) take turns in one run.

    python benchmarks/pipelines.py bookkeeping               # 1,384 queries, 100 documents each
    python benchmarks/pipelines.py rate --latency 0.05       # listwise beside independent requests

With ``answers`` a real rewriting is scored: the human reasoning of BRIGHT's examples behind the query, by a
model on a BRIGHT-shaped folder whose ``examples`` have a column ``reasoning``.

    python benchmarks/pipelines.py answers --data FOLDER --model DIRECTORY --output FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from synthesis import peak_kib, server

from reasonembed_mteb.endpoints.endpoint import Answer, Endpoint, Reply, Request, request_hash
from reasonembed_mteb.endpoints.limits import Usage
from reasonembed_mteb.files import json_line, write_whole
from reasonembed_mteb.llm.cache import AnswerCache
from reasonembed_mteb.llm.client import LLMClient
from reasonembed_mteb.llm.templates import checked_template
from reasonembed_mteb.pipelines.config import ListwiseStage
from reasonembed_mteb.pipelines.listwise import sort_lists, windows
from reasonembed_mteb.pipelines.templates import packaged_templates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reasonembed_mteb.llm.templates import ChatTemplate


class InProcess:
    """A client that answers at once, and keeps answers as the real one does."""

    def __init__(self, folder: Path) -> None:
        """Open the answers."""
        self._endpoint = Endpoint("http://localhost/v1", "stub")
        self._cache, self.usage = AnswerCache(folder), Usage()

    def run(
        self,
        requests: Iterable[Request],
        *,
        total: int | None = None,
        description: str,
        ahead: int | None = None,
    ) -> Iterator[Answer]:
        """Answer each request by a permutation that hangs on its text."""
        for request in requests:
            body = self._endpoint.body(request)
            key = request_hash(body, 0)
            if key not in self._cache.find([key]):
                self._cache.add([(key, Reply(permutation(body), None, 100, 60))])
            yield Answer(request.key, self._cache.find([key])[key].text, None, 100, 60, False)


def permutation(body: dict[str, Any]) -> str:
    """Return a ranking of twenty passages, some malformed."""
    draw = random.Random(hashlib.sha256(body["messages"][-1]["content"].encode()).digest())
    places = draw.sample(range(1, 22), 20)
    return " > ".join(f"[{place}]" for place in places)


def template() -> ChatTemplate:
    """Return the package's template."""
    fields = {"query", "documents", "count"}
    return checked_template(packaged_templates()["sort"], "sort", fields, fields, more=("about",))


def lists(options: argparse.Namespace) -> tuple[dict[str, str], dict[str, list[str]], dict[str, str]]:
    """Return queries, their candidates, and the documents."""
    draw = random.Random(0)
    words = [f"word{number}" for number in range(5000)]
    documents = {f"d{n}": " ".join(draw.choices(words, k=options.words)) for n in range(options.corpus)}
    queries = {f"q{n}": " ".join(draw.choices(words, k=100)) for n in range(options.queries)}
    names = list(documents)
    return queries, {query: draw.sample(names, options.depth) for query in queries}, documents


def bookkeeping(options: argparse.Namespace) -> dict[str, Any]:
    """Time the stage without a server."""
    stage = ListwiseStage(kind="rerank", by="listwise", name="sort")
    queries, candidates, documents = lists(options)
    with tempfile.TemporaryDirectory() as folder:
        wall, processor = time.perf_counter(), time.process_time()
        _, counts = sort_lists(stage, template(), queries, candidates, documents, InProcess(Path(folder)))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {**counts, "seconds": wall, "cpu_seconds": processor, "peak_mib": peak_kib() / 1024}


def independent(client: LLMClient, stage: ListwiseStage, data: Any) -> int:  # noqa: ANN401
    """Send as many requests of the same size, none of which waits for another."""
    queries, candidates, documents = data
    chosen = template()

    def requests() -> Iterator[Request]:
        for query, own in candidates.items():
            for start, end in windows(len(own), stage.window, stage.step):
                shown = "\n\n".join(f"[{n}] {documents[name]}" for n, name in enumerate(own[start:end], 1))
                messages = chosen.messages(query=queries[query], documents=shown, count=str(end - start))
                yield Request(f"{query}/{start}", messages, *stage.sampling)

    return sum(answer.error is None for answer in client.run(requests(), description="Independent"))


def rate(options: argparse.Namespace) -> dict[str, Any]:
    """Return rates and processor time of both arms, which take turns, and their ratios."""
    stage = ListwiseStage(kind="rerank", by="listwise", name="sort")
    data = lists(options)
    found: dict[str, list[tuple[float, float]]] = {"listwise": [], "independent": []}
    with server(options.latency) as url:
        endpoint = Endpoint(url, "stub", concurrency=options.concurrency)
        for number in range(options.rounds):
            # Who goes first changes.
            for arm in ("listwise", "independent")[:: 1 if number % 2 else -1]:
                found[arm].append(one_arm(arm, endpoint, stage, data))
    figures: dict[str, Any] = {}
    for arm, own in found.items():
        figures[f"{arm} a second"] = median(rate for rate, _ in own)
        figures[f"{arm} cpu ms"] = median(cpu for _, cpu in own)
    figures["rate ratio"] = figures["listwise a second"] / figures["independent a second"]
    figures["cpu ratio"] = figures["listwise cpu ms"] / figures["independent cpu ms"]
    figures["ideal a second"] = options.concurrency / options.latency if options.latency else None
    return {**figures, "rounds": found}


def one_arm(arm: str, endpoint: Endpoint, stage: ListwiseStage, data: Any) -> tuple[float, float]:  # noqa: ANN401
    """Return requests a second, and milliseconds of this process' processor time a request."""
    with (
        tempfile.TemporaryDirectory() as folder,
        LLMClient(endpoint, Path(folder), show_progress=False) as client,
    ):
        wall, processor = time.perf_counter(), time.process_time()
        if arm == "listwise":
            _, counts = sort_lists(stage, template(), *data, client)
            count = counts["windows"]
        else:
            count = independent(client, stage, data)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return count / wall, 1e3 * processor / count


FILE = """
name = "human-reasoning"
[[stage]]
kind = "rewrite"
queries = "{subset}.jsonl"
missing = "original"
[[stage]]
kind = "retrieve"
[[stage.retriever]]
model = "{model}"
"""


def human_reasoning(options: argparse.Namespace) -> dict[str, Any]:
    """Return nDCG@10 in per cent of each subset, without the reasoning and with it."""
    os.environ["REASONEMBED_BRIGHT_PATH"] = str(options.data)
    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.retrieval.rows import benchmark_rows

    register()
    found = {}
    for row in benchmark_rows("BRIGHT(ReasonEmbed)"):
        for file in sorted((options.data / "examples").glob(f"{row.subset}-*.parquet")):
            pair = score_subset(row, file, options)
            found[row.subset] = " -> ".join(f"{100 * score:.2f}" for score in pair)
    return found


def score_subset(row: Any, examples: Path, options: argparse.Namespace) -> tuple[float, float]:  # noqa: ANN401
    """Return nDCG@10 of one subset without the reasoning and with it."""
    import pyarrow.parquet as pq

    from reasonembed_mteb.evaluation.resolving import resolve_tasks
    from reasonembed_mteb.evaluation.runner import RunOptions
    from reasonembed_mteb.pipelines.run import Pipeline

    lines = pq.read_table(examples, columns=["id", "reasoning"]).to_pylist()
    texts = [{"id": line["id"], "task": row.name, "text": line["reasoning"]} for line in lines]
    write_whole(options.output / f"{row.subset}.jsonl", "".join(map(json_line, texts)))
    file = options.output / f"{row.subset}.toml"
    write_whole(file, FILE.format(subset=row.subset, model=options.model.resolve()))
    chosen = RunOptions(output=options.output, store=options.output / "vectors", progress=False)
    (one,) = Pipeline.from_toml(file).run(resolve_tasks([], [row.name]), chosen)
    if one.record is None:
        raise SystemExit(one.outcome.error)
    last = one.record.stages[-1]
    (plain,) = last.parts.values()
    return plain["ndcg_at_10"], last.scores["ndcg_at_10"]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("bookkeeping", "rate", "answers"))
    parser.add_argument("--data", type=Path, help="answers: a BRIGHT-shaped folder")
    parser.add_argument("--model", type=Path, help="answers: a model directory")
    parser.add_argument("--output", type=Path, help="answers: output folder")
    parser.add_argument("--queries", type=int, default=1384)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--corpus", type=int, default=20_000, help="documents that candidates are drawn from")
    parser.add_argument("--words", type=int, default=150, help="words of a document")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before the server answers")
    parser.add_argument("--rounds", type=int, default=3, help="how often each arm runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    figures = {"bookkeeping": bookkeeping, "rate": rate, "answers": human_reasoning}[options.what](options)
    if options.json:
        print(json.dumps({**vars(options), **figures}, default=str))
        return
    for name, value in figures.items():
        print(f"{name:22}", f"{value:,.3f}" if isinstance(value, float) else value)


if __name__ == "__main__":
    main()
