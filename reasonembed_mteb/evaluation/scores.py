"""Scores by query: every query's metrics and best documents, kept beside the result; runs made from them.

One Parquet file a task, next to its record and outside MTEB's ``results/`` tree, so that
``mteb submit-results`` leaves it out. It holds no date: the same vectors give the same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, first_names, unknown_name
from reasonembed_mteb.escaping import file_name
from reasonembed_mteb.files import replacing
from reasonembed_mteb.retrieval.trec import write_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

FORMAT = 1
_KEY = b"reasonembed"
_COLUMNS = ("split", "subset", "query_id", "gold_ids", "document_ids", "scores")
# pytrec_eval's names, and MTEB's, in the order of MTEB's result files (MRR stands before the last).
MEASURES = {"ndcg_cut": "ndcg", "map_cut": "map", "recall": "recall", "P": "precision", "success": "hit_rate"}


def collect_scores(task: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - AbsTaskRetrieval
    """Let a task hand over each query's metrics and documents while MTEB evaluates it.

    Args:
        task: A retrieval task, about to be evaluated; changed in place.

    Returns:
        One dictionary a query, with the columns of `write_scores`; filled during the evaluation, and empty
        for tasks that are not retrieval.
    """
    rows: list[dict[str, Any]] = []
    inner = getattr(task, "task_specific_scores", None)
    if inner is None:
        return rows

    def hand_over(
        scores: Mapping[str, Mapping[str, float]],
        qrels: Mapping[str, Mapping[str, int]],
        results: Mapping[str, Mapping[str, float]],
        hf_split: str,
        hf_subset: str,
    ) -> Any:  # noqa: ANN401 - whatever the task returns
        own = inner(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)
        named = _named(scores)
        measured = getattr(task, "query_measures", None)
        more = measured(results, hf_split, hf_subset) if measured is not None else {}
        first = _reciprocal_ranks(qrels, results)
        cuts = sorted({int(name.rsplit("_", 1)[1]) for row in named.values() for name in row})
        for query, found in results.items():
            rank = first.get(query, 0.0)
            mrr = mrr_at(rank, cuts)
            best = sorted(found.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)
            rows.append(
                {
                    "split": hf_split,
                    "subset": hf_subset,
                    "query_id": query,
                    "gold_ids": sorted(d for d, label in qrels.get(query, {}).items() if label > 0),
                    "document_ids": [document for document, _ in best],
                    "scores": [score for _, score in best],
                }
                | named.get(query, {})
                | mrr
                | more.get(query, {})
            )
        return own

    task.task_specific_scores = hand_over
    return rows


def _named(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {query: mteb_names(row) for query, row in scores.items()}


def mteb_names(row: Mapping[str, float]) -> dict[str, float]:
    """Rename one query's metrics from pytrec_eval's names to MTEB's; those without a cut are left out.

    Args:
        row: Values by pytrec_eval's names, such as ``ndcg_cut_10``.
    """
    parts = ((*name.rpartition("_"), value) for name, value in row.items())
    return {f"{MEASURES[metric]}_at_{k}": value for metric, _, k, value in parts if metric in MEASURES}


def mrr_at(reciprocal: float, cuts: Iterable[int]) -> dict[str, float]:
    """Return MTEB's reciprocal ranks at each cut; trec_eval's has none.

    Args:
        reciprocal: One by the rank of the first relevant document, 0 where there is none.
        cuts: The depths.
    """
    # The rank is whole: 1 / rank * k may fall just below 1 where they are equal.
    first = round(1 / reciprocal) if reciprocal else math.inf
    return {f"mrr_at_{k}": reciprocal if first <= k else 0.0 for k in cuts}


def _reciprocal_ranks(
    qrels: Mapping[str, Mapping[str, int]], results: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    import pytrec_eval

    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"})
    return {query: row["recip_rank"] for query, row in evaluator.evaluate(results).items()}


def write_scores(file: Path, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the scores by query of one model on one task, whole or not at all.

    Args:
        file: Where to.
        info: What they were made with: protocol, task, model, revisions, instruction, versions.
        rows: One a query; see `collect_scores`.

    Raises:
        ReasonEmbedError: If the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metrics = sorted({name for row in rows for name in row} - set(_COLUMNS))
    types = {"gold_ids": pa.list_(pa.string()), "document_ids": pa.list_(pa.string())}
    types["scores"] = pa.list_(pa.float32())
    names = ("split", "subset", "query_id", *metrics, "gold_ids", "document_ids", "scores")
    schema = pa.schema(
        [(name, types.get(name, pa.float64() if name in metrics else pa.string())) for name in names],
        metadata={_KEY: json.dumps({"format": FORMAT, **info}, sort_keys=True).encode()},
    )
    table = pa.Table.from_pylist(list(rows), schema=schema)
    with replacing(file) as part:
        pq.write_table(table, part, compression="zstd")


@dataclass(frozen=True)
class QueryScores:
    """One model on one task, query by query.

    Attributes:
        file: Where it was read from.
        info: Protocol, task, model, revisions, instruction, versions.
        table: One row a query: ``split``, ``subset``, ``query_id``, MTEB's metrics, ``gold_ids``,
            ``document_ids`` (best first) and ``scores``.
    """

    file: Path
    info: dict[str, Any]
    table: pa.Table

    @cached_property
    def _places(self) -> dict[str, int]:
        return {query: row for row, query in enumerate(self.query_ids)}

    @property
    def query_ids(self) -> list[str]:
        """The queries, in the order of the task."""
        ids: list[str] = self.table["query_id"].to_pylist()
        return ids

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that are kept."""
        return [name for name in self.table.column_names if name not in _COLUMNS]

    def metric(self, name: str) -> dict[str, float]:
        """Return one metric by query.

        Args:
            name: MTEB's name, such as ``ndcg_at_10``.

        Raises:
            DataError: If it was not kept.
        """
        if name not in self.metrics:
            msg = f"{self.file} keeps no {name}; it has {', '.join(self.metrics)}"
            raise DataError(msg)
        return dict(zip(self.query_ids, self.table[name].to_pylist(), strict=True))

    def hits(self, query: str) -> list[tuple[str, float]]:
        """Return a query's documents with their scores, best first.

        Args:
            query: Query id.

        Raises:
            DataError: If the query is not there.
        """
        row = self._row(query)
        documents, scores = self.table["document_ids"][row].as_py(), self.table["scores"][row].as_py()
        return list(zip(documents, scores, strict=True))

    def gold(self, query: str) -> list[str]:
        """Return the ids of a query's relevant documents.

        Args:
            query: Query id.

        Raises:
            DataError: If the query is not there.
        """
        gold: list[str] = self.table["gold_ids"][self._row(query)].as_py()
        return gold

    def _row(self, query: str) -> int:
        if query not in self._places:
            msg = f"{self.file} has no query {query!r}; it has {first_names(self.query_ids)}"
            raise DataError(msg)
        return self._places[query]


def read_scores(file: Path, columns: Sequence[str] | None = None) -> QueryScores:
    """Read the scores by query of one model on one task.

    Args:
        file: Written by `write_scores`.
        columns: Those to read besides ``split`` and ``subset``; None for all.

    Raises:
        DataError: If it is damaged, of another format, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            info = _info(file, schema)
            missing = [name for name in columns or () if name not in schema.names]
            if missing:
                msg = f"{file} keeps no {', '.join(missing)}; it has {', '.join(schema.names)}"
                raise DataError(msg)
            wanted = None if columns is None else ["split", "subset", *columns]
            # Files are small, and several are read at a time.
            return QueryScores(file, info, opened.read(wanted, use_threads=False))
    except (OSError, pa.ArrowException) as error:
        msg = f"{file} cannot be read ({str(error).splitlines()[0]}); run the task again with --overwrite"
        raise DataError(msg) from error


def _info(file: Path, schema: pa.Schema) -> dict[str, Any]:
    """Return what the scores were made with; refuse what are none, or of another format."""
    try:
        info: dict[str, Any] = json.loads((schema.metadata or {})[_KEY])
    except (KeyError, ValueError) as error:
        msg = f"{file} holds no scores by query; give one that `reasonembed run` wrote"
        raise DataError(msg) from error
    if info.get("format") != FORMAT or not set(_COLUMNS) <= set(schema.names):
        msg = f"{file} is of format {info.get('format')}, not {FORMAT}; run the task again with --overwrite"
        raise DataError(msg)
    return info


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
    places = {"model": label, "task": task, "subset": subset}
    return Path(pattern.format(**{name: file_name(value) for name, value in places.items()}))


def write_runs(pattern: str, label: str, scores: Path) -> list[Path]:
    """Write what a model ranked for a task, one run a subset.

    Args:
        pattern: See `check_pattern`.
        label: The model, as it is shown; also the run's tag.
        scores: The scores by query.

    Returns:
        The files.

    Raises:
        ReasonEmbedError: If a file cannot be written, or an id does not fit in one.
    """
    found = read_scores(scores)
    runs: dict[str, dict[str, dict[str, float]]] = {}
    columns = (found.table[name].to_pylist() for name in ("subset", "query_id", "document_ids", "scores"))
    for subset, query, documents, values in zip(*columns, strict=True):
        runs.setdefault(subset, {})[query] = dict(zip(documents, values, strict=True))
    written = []
    for subset, run in runs.items():
        path = _path(pattern, label, found.info["task"], subset)
        write_run(path, run, re.sub(r"\s+", "_", label))
        written.append(path)
    return written
