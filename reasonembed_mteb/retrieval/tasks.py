"""Our tasks and benchmarks as MTEB objects."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import unknown_name
from reasonembed_mteb.retrieval.tables import benchmarks as benchmark_rows
from reasonembed_mteb.retrieval.tables import load_rows

if TYPE_CHECKING:
    from mteb.benchmarks.benchmark import Benchmark

    from reasonembed_mteb.retrieval.tables import TaskRow
    from reasonembed_mteb.retrieval.task import ReasonTask


@cache
def build_tasks() -> dict[str, type[ReasonTask]]:
    """Return the task class of every row, by name."""
    # The module below needs mteb's task classes. Importing mteb first lets our start-up hook, which
    # calls this very function, run before and not in the middle of it.
    import_module("mteb")
    from reasonembed_mteb.retrieval.task import make_task

    return {row.name: make_task(row) for row in load_rows()}


def load_tasks(benchmark: str = "BRIGHT(ReasonEmbed)") -> list[ReasonTask]:
    """Return the tasks of one of our benchmarks, ready for ``mteb.evaluate``.

    Args:
        benchmark: Its name, such as ``"ReasonMini"``.

    Raises:
        UnknownNameError: If we have no such benchmark.
    """
    grouped = benchmark_rows()
    if benchmark not in grouped:
        raise unknown_name("benchmark", benchmark, grouped)
    tasks = build_tasks()
    return [tasks[row.name]() for row in grouped[benchmark]]


def _description(name: str, rows: list[TaskRow]) -> str:
    first = rows[0]
    metric = "recall@1" if first.main_score == "recall_at_1" else "nDCG@10"
    what = {
        "bright": "BRIGHT's twelve subsets with passages",
        "bright_long": "BRIGHT's eight subsets with whole documents",
        "r2med": "R2MED's eight medical tasks",
        "mini": "A smoke benchmark in BRIGHT's schema that ships inside the package; not a result",
    }[first.kind]
    queries = f", queries rewritten with reasoning ({first.queries_config})" if first.is_rewritten else ""
    return (
        f"{what}{queries}, by one protocol: the paper's instructions, {first.max_tokens} tokens, "
        f"excluded documents removed before the cut, {metric}, macro mean of {len(rows)}."
    )


def build_benchmarks() -> dict[str, Benchmark]:
    """Return our benchmarks as MTEB objects, by name."""
    import_module("mteb")
    from mteb.benchmarks.benchmark import Benchmark

    return {
        name: Benchmark(
            name=name,
            tasks=load_tasks(name),
            description=_description(name, rows),
            reference=rows[0].reference if rows[0].kind != "r2med" else "https://arxiv.org/abs/2505.14558",
            citation=rows[0].citation or None,
        )
        for name, rows in benchmark_rows().items()
    }
