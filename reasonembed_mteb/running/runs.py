"""Rankings as TREC runs, from the scores of record."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.retrieval.trec import write_run
from reasonembed_mteb.running.scores import read_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

PLACES = ("model", "task", "subset")


def check_pattern(pattern: str, labels: Sequence[str], tasks: Sequence[Any]) -> None:
    """Check that every model, task and subset gets a file of its own.

    Args:
        pattern: A path, with ``{model}``, ``{task}`` and ``{subset}`` where they are needed.
        labels: The models, as they are shown.
        tasks: MTEB tasks.

    Raises:
        UnknownNameError: If the pattern has another place; the nearest is named.
        ReasonEmbedError: If it cannot be read, or two rankings would share a file.
    """
    try:
        places = [name for _, name, _, _ in Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        msg = f"--run-file {pattern}: {error}; write {{task}}, or double a brace that is meant as one"
        raise ReasonEmbedError(msg) from error
    for name in places:
        if name not in PLACES:
            raise unknown_name("place in --run-file", name, PLACES)
    wanted = Counter(
        _path(pattern, label, task.metadata.name, subset)
        for label in labels
        for task in tasks
        for subset in task.hf_subsets
        for _ in task.eval_splits
    )
    for path, count in wanted.items():
        if count > 1:
            msg = (
                f"--run-file {pattern}: several rankings would share {path}; tell them apart, as in "
                "'runs/{model}-{task}-{subset}.trec.gz'"
            )
            raise ReasonEmbedError(msg)


def _path(pattern: str, label: str, task: str, subset: str) -> Path:
    places = {"model": label.replace("/", "__"), "task": task, "subset": subset}
    return Path(pattern.format(**{name: re.sub(r"[^\w.@-]+", "_", value) for name, value in places.items()}))


def write_runs(pattern: str, label: str, scores: Path) -> list[Path]:
    """Write what a model ranked for a task, one run a subset.

    Args:
        pattern: See `check_pattern`.
        label: The model, as it is shown; also the run's tag.
        scores: The scores of record.

    Returns:
        The files.

    Raises:
        ReasonEmbedError: If a file cannot be written, or an id does not fit in one.
    """
    kept = read_scores(scores)
    runs: dict[str, dict[str, dict[str, float]]] = {}
    columns = (kept.table[name].to_pylist() for name in ("subset", "query_id", "document_ids", "scores"))
    for subset, query, documents, values in zip(*columns, strict=True):
        runs.setdefault(subset, {})[query] = dict(zip(documents, values, strict=True))
    written = []
    for subset, run in runs.items():
        path = _path(pattern, label, kept.info["task"], subset)
        write_run(path, run, re.sub(r"\s+", "_", label))
        written.append(path)
    return written
