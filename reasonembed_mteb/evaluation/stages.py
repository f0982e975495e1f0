"""What the stages of a pipeline gave and cost: their rankings on disk, and the record beside a result.

A stage's output is one Parquet file, named by a hash of everything that decides it, with a note beside it
that holds what changes from run to run (seconds, answers from disk). The record of a pipeline's result lists
its stages; it lies beside the result's own record, see `reasonembed_mteb.evaluation.record`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import json_text, read_json_object, replacing, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# What a ranking is called that was measured on the original queries, beside the pipeline's own.
BASELINE = "original queries: "
FORMAT = 1
_KEY = b"reasonembed"
_Held = TypeVar("_Held")
# The measures of a stage, by MTEB's names.
STAGE_MEASURES = ("ndcg_at_10", "recall_at_10", "recall_at_100")


@dataclass(frozen=True)
class Ranked:
    """One query's documents, best first.

    Attributes:
        documents: Ids.
        scores: ``(D,)``; equal scores keep their order.
    """

    documents: list[str]
    scores: NDArray[np.float64]


Ranking = dict[str, Ranked]
# Texts by query; several where a query was rewritten several times.
Texts = dict[str, list[str]]


@dataclass(frozen=True)
class StageOutput:
    """What a stage hands on.

    Attributes:
        texts: Queries by the name under which later stages ask for them.
        rankings: By name; one alone after a fusion or a reranking.
    """

    texts: dict[str, Texts] = field(default_factory=dict)
    rankings: dict[str, Ranking] = field(default_factory=dict)


@dataclass(frozen=True)
class StageCost:
    """What a stage costs.

    Attributes:
        calls: Requests that it needs, those answered from disk among them.
        cached: How many were answered from disk, or by an equal request, when it was last made.
        prompt_tokens: Of all its requests, as the endpoint counts them.
        completion_tokens: Likewise.
        price: Of all its requests; None where no prices are known, or not all tokens.
        seconds: Wall time of the run that finished it.
        uncounted: Answers whose tokens the endpoint did not count.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    price: float | None = None
    seconds: float = 0.0
    uncounted: int = 0


def add_costs(costs: Iterable[StageCost]) -> StageCost:
    """Return the sum of costs; its price is None where that of any requests is not known, or there are none.

    Args:
        costs: Any number.
    """
    held = list(costs)
    prices = [one.price for one in held if one.price is not None]
    if any(one.calls and one.price is None for one in held):
        prices = []
    sums = {
        name: sum(getattr(one, name) for one in held)
        for name in ("calls", "cached", "prompt_tokens", "completion_tokens", "seconds", "uncounted")
    }
    return StageCost(**sums, price=sum(prices) if prices else None)


@dataclass(frozen=True)
class StageNote:
    """What stands beside a stage's output.

    Attributes:
        cost: What it cost.
        counts: What happened to single queries and documents, by kind: ``mended`` permutations, queries
            without a rewriting ...
        chosen: Values that a grid chose, by name; empty where it chose others on other pools or tasks.
    """

    cost: StageCost = field(default_factory=StageCost)
    counts: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRecord:
    """One stage of a pipeline on one task.

    Attributes:
        name: As the pipeline's file calls it.
        kind: ``rewrite``, ``retrieve``, ``fuse``, ``rerank`` or ``iterate``.
        scores: Means of `STAGE_MEASURES` over the queries; empty where the stage hands on no ranking, or
            several.
        parts: The same for each of several rankings, and for ``original queries`` where retrieval on those
            was measured too.
        note: Costs and counts, summed over the task's pools.
        tuned_on_test: Whether it chose weights by the labels that it is scored with.
        outputs: Its files, one a pool, relative to the output folder.
    """

    name: str
    kind: str
    scores: dict[str, float]
    parts: dict[str, dict[str, float]]
    note: StageNote
    tuned_on_test: bool
    outputs: tuple[str, ...]


def open_rankings(before: Mapping[str, _Held], kind: str, own: Mapping[str, _Held]) -> dict[str, _Held]:
    """Return the rankings that stand side by side after a stage, or what is held of each.

    Args:
        before: Those after the stage before.
        kind: The stage's: a retrieval adds its rankings, any other stage makes one of all.
        own: The stage's rankings; empty where it hands on none.
    """
    return {**(before if kind == "retrieve" or not own else {}), **own}


def joined_stage(seen: Sequence[StageRecord]) -> StageRecord:
    """Return one stage over several pools or tasks: means of its scores, sums of its costs and counts.

    Args:
        seen: The same stage on each, one at least.
    """
    first, chosen = seen[0], seen[0].note.chosen
    counts: Counter[str] = Counter()
    for one in seen:
        counts.update(one.note.counts)
    cost = add_costs(one.note.cost for one in seen)
    note = StageNote(cost, dict(counts), chosen if all(one.note.chosen == chosen for one in seen) else {})
    return replace(
        first,
        scores=_means([one.scores for one in seen]),
        parts={name: _means([one.parts.get(name, {}) for one in seen]) for name in first.parts},
        note=note,
        outputs=tuple(file for one in seen for file in one.outputs),
    )


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return means of measures; none where one lacks them."""
    names = values[0] if all(values) else {}
    return {name: sum(one[name] for one in values) / len(values) for name in names}


@dataclass(frozen=True)
class PipelineRecord:
    """A pipeline on one task.

    Attributes:
        pipeline: Its name.
        revision: A hash of everything that decides it.
        task: MTEB task name.
        queries: How many were scored.
        limit: Number of queries of a smoke run; None for a full one.
        stages: In their order.
    """

    pipeline: str
    revision: str
    task: str
    queries: int
    limit: int | None
    stages: tuple[StageRecord, ...]

    @property
    def tuned_on_test(self) -> bool:
        """Whether any stage chose values by the labels that it is scored with."""
        return any(stage.tuned_on_test for stage in self.stages)

    @property
    def cost(self) -> StageCost:
        """What all stages cost together."""
        return add_costs(stage.note.cost for stage in self.stages)


def stages_path(record: Path) -> Path:
    """Return where the record of a pipeline's stages lies.

    Args:
        record: The result's own record; see `reasonembed_mteb.evaluation.record.record_path`.
    """
    return record.with_suffix(".stages.json")


def write_stages(file: Path, record: PipelineRecord) -> None:
    """Write a pipeline's record, whole or not at all.

    Args:
        file: See `stages_path`.
        record: What to write.

    Raises:
        ReasonEmbedError: If it cannot be written.
    """
    write_whole(file, json_text({"format": FORMAT, **asdict(record)}))


def read_stages(file: Path) -> PipelineRecord:
    """Read a pipeline's record.

    Args:
        file: Written by `write_stages`.

    Raises:
        DataError: If it is missing, damaged or of another format.
    """
    content = read_json_object(file)
    if content is None or content.pop("format", None) != FORMAT:
        msg = f"{file} holds no stages of this version; run the pipeline again with --overwrite"
        raise DataError(msg)
    try:
        stages = tuple(_stage(one) for one in content.pop("stages"))
        return PipelineRecord(**content, stages=stages)
    except (AttributeError, KeyError, TypeError) as error:
        msg = f"{file} is damaged ({error}); run the pipeline again with --overwrite"
        raise DataError(msg) from error


def _stage(content: dict[str, Any]) -> StageRecord:
    note, outputs = _note(content.pop("note")), tuple(content.pop("outputs"))
    return StageRecord(**content, note=note, outputs=outputs)


def _note(content: Mapping[str, Any]) -> StageNote:
    known = {one.name for one in fields(StageCost)}
    cost = StageCost(**{name: value for name, value in content["cost"].items() if name in known})
    return StageNote(cost, dict(content["counts"]), dict(content["chosen"]))


def write_output(file: Path, output: StageOutput, note: StageNote) -> None:
    """Write a stage's output and its note; the output is there only once both are.

    Args:
        file: Where to, named by what decides it.
        output: The same rows give the same bytes.
        note: See `read_note`.

    Raises:
        ReasonEmbedError: If a file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_whole(_note_file(file), json_text(asdict(note)))
    rows = [*_text_rows(output.texts), *_ranking_rows(output.rankings)]
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("query_id", pa.string()),
            ("texts", pa.list_(pa.string())),
            ("document_ids", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float64())),
        ],
        metadata={_KEY: json.dumps({"format": FORMAT}).encode()},
    )
    columns = {
        name: pa.array([row[place] for row in rows], schema.field(name).type)
        for place, name in enumerate(schema.names)
    }
    with replacing(file) as part:
        pq.write_table(pa.table(columns, schema=schema), part, compression="zstd")


_Row = tuple[str, str, "Sequence[str] | None", "Sequence[str] | None", "NDArray[np.float64] | None"]


def _text_rows(texts: Mapping[str, Texts]) -> list[_Row]:
    return [(name, query, held, None, None) for name, own in texts.items() for query, held in own.items()]


def _ranking_rows(rankings: Mapping[str, Ranking]) -> list[_Row]:
    return [
        (name, query, None, found.documents, found.scores)
        for name, ranking in rankings.items()
        for query, found in ranking.items()
    ]


def read_output(file: Path, queries: Sequence[str] | None = None) -> StageOutput:
    """Read a stage's output.

    Args:
        file: Written by `write_output`.
        queries: Only of these; None for all.

    Raises:
        DataError: If it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = None if queries is None else [("query_id", "in", list(queries))]
    try:
        table = pq.read_table(file, filters=wanted, use_threads=False)
        columns = [
            table[name].to_pylist() for name in ("name", "query_id", "texts", "document_ids", "scores")
        ]
    except (OSError, pa.ArrowException, KeyError) as error:
        msg = f"{file} cannot be read ({str(error).splitlines()[0]}); run the pipeline again with --overwrite"
        raise DataError(msg) from error
    output = StageOutput()
    # Ids repeat in every list; one string for each saves most of the memory.
    ids: dict[str, str] = {}
    for name, query, texts, documents, scores in zip(*columns, strict=True):
        if texts is not None:
            output.texts.setdefault(name, {})[query] = texts
            continue
        held = [ids.setdefault(document, document) for document in documents]
        output.rankings.setdefault(name, {})[query] = Ranked(held, np.array(scores, dtype=np.float64))
    return output


def read_note(file: Path) -> StageNote | None:
    """Return the note beside a stage's output, or None where the stage is not finished.

    Args:
        file: The output.
    """
    content = read_json_object(_note_file(file)) if file.is_file() else None
    try:
        return None if content is None else _note(content)
    except (AttributeError, KeyError, TypeError):
        return None


def _note_file(output: Path) -> Path:
    return output.with_suffix(".json")


def stage_scores(
    ranking: Ranking, labels: Mapping[str, Mapping[str, int]], *, ignored: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Return the means of `STAGE_MEASURES` over labelled queries, as trec_eval computes them.

    Args:
        ranking: A query without documents scores 0.
        labels: By query and document; queries without any are left out.
        ignored: A document of each query that does not count.
    """
    import pytrec_eval

    kept = {query: dict(own) for query, own in labels.items() if own and query in ranking}
    run = {query: strict_scores(ranking[query]) for query in kept}
    for query, document in (ignored or {}).items():
        run.get(query, {}).pop(document, None)
    found = pytrec_eval.RelevanceEvaluator(kept, {"ndcg_cut.10", "recall.10,100"}).evaluate(run)
    names = {"ndcg_at_10": "ndcg_cut_10", "recall_at_10": "recall_10", "recall_at_100": "recall_100"}
    count = max(len(kept), 1)
    return {
        name: sum(found.get(query, {}).get(own, 0.0) for query in kept) / count for name, own in names.items()
    }


def strict_scores(found: Ranked) -> dict[str, float]:
    """Return scores that every evaluator sorts as the documents stand.

    trec_eval keeps scores in single precision and breaks ties by id, descending; where that would change the
    order, the score becomes the next lower number.

    Args:
        found: One query's documents.
    """
    kept: dict[str, float] = {}
    last, before = np.float32(np.inf), ""
    singles = found.scores.astype(np.float32)
    for document, score, single in zip(found.documents, found.scores, singles, strict=True):
        fits = single < last or (single == last and document < before)
        last = single if fits else np.nextafter(last, np.float32(-np.inf))
        kept[document], before = float(score if fits else last), document
    return kept
