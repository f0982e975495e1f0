"""Result folders as `reasonembed run` and `mteb run` leave them, written from scores."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.evaluation.scores import write_scores
from reasonembed_mteb.reporting.results import read_results
from reasonembed_mteb.reporting.tables import score_tables
from reasonembed_mteb.retrieval.rows import benchmarks, find, row_of_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from reasonembed_mteb.reporting.tables import ScoreTable

BIOLOGY, PONY, AOPS = (f"ReasonEmbedBright{name}" for name in ("Biology", "Pony", "Aops"))
BRIGHT = [row.name for row in benchmarks()["BRIGHT(ReasonEmbed)"]]
PAPER = "hanhainebula/reason-embed-qwen3-8b-0928"


def write_result(
    output: Path,
    model: str,
    task: str,
    score: Any,
    *,
    revision: str = "r1",
    metric: str = "ndcg_at_10",
    splits: Sequence[str] = (),
    subsets: Sequence[str] = ("default",),
    entry: Mapping[str, Any] | None = None,
    content: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """Write one result in MTEB's layout; return the file."""
    known = row_of_task(task)
    expected = (known.split,) if known is not None else ("test",)
    scores = {"main_score": score, metric: score, "languages": ["eng-Latn"]} | dict(entry or {})
    data = {
        "dataset_revision": "d1",
        "task_name": task,
        "mteb_version": "2.26.24",
        "scores": {split: [scores | {"hf_subset": name} for name in subsets] for split in splits or expected},
        "evaluation_time": 2.0,
        "kg_co2_emissions": None,
    }
    folder = output / "results" / model.replace("/", "__") / revision
    folder.mkdir(parents=True, exist_ok=True)
    about = {"name": model, "revision": revision, "embed_dim": 384} | dict(meta or {})
    (folder / "model_meta.json").write_text(json.dumps(about))
    file = folder / f"{task}.json"
    file.write_text(json.dumps(data | dict(content or {})))
    return file


def record(file: Path, **content: Any) -> Path:
    """Write the record of a result beside it; return the file."""
    (results,) = (parent for parent in file.parents if parent.name == "results")
    target = results.parent / "records" / file.relative_to(results)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    target.write_text(json.dumps({"causes": {}, "result": digest} | content))
    return target


def write_run(
    output: Path,
    model: str,
    task: str,
    scores: Mapping[str, float],
    *,
    found: Mapping[str, list[tuple[str, float]]] | None = None,
    gold: Mapping[str, list[str]] | None = None,
    cost: Mapping[str, Any] | None = None,
    revision: str = "r1",
) -> Path:
    """Write a result with its record and its scores by query; return the result file."""
    mean = sum(scores.values()) / len(scores)
    file = write_result(output, model, task, round(mean, 5), revision=revision)
    beside = record(file, cost=dict(cost or {"seconds": 3.0, "tokens": 600, "dimensions": 384}))
    default = [("d1", 0.9), ("d2", 0.5)]
    rows = [
        {
            "split": find(task).split,
            "subset": "default",
            "query_id": query,
            "gold_ids": (gold or {}).get(query, ["d1"]),
            "document_ids": [name for name, _ in (found or {}).get(query, default)],
            "scores": [value for _, value in (found or {}).get(query, default)],
            "ndcg_at_10": score,
        }
        for query, score in scores.items()
    ]
    write_scores(beside.with_suffix(".parquet"), {"main_score": "ndcg_at_10"}, rows)
    return file


def tables(folder: Path, *, together: bool = False) -> dict[str, ScoreTable]:
    return {table.name: table for table in score_tables(read_results([folder]), together=together)}


def write_all(folder: Path, model: str, scores: Sequence[float]) -> None:
    for task, score in zip(BRIGHT, scores, strict=False):
        write_result(folder, model, task, score)


def write_tested(folder: Path) -> None:
    draw = np.random.default_rng(1)
    # Of different size: the mean that is tested is that over subsets.
    for task, count in ((BIOLOGY, 60), (PONY, 25)):
        queries = [f"q{i}" for i in range(count)]
        base = draw.uniform(0.2, 0.6, count) if task == BIOLOGY else draw.uniform(0.0, 0.2, count)
        for name, gain in (("x/good", 0.3), ("x/same", 0.0), ("x/base", 0.0)):
            scores = np.clip(base + gain + 0.05 * draw.standard_normal(count), 0, 1)
            write_run(folder, name, task, dict(zip(queries, scores.tolist(), strict=True)))
    write_result(folder, "x/plain", BIOLOGY, 0.3)
