"""Step 3: candidates for each query, from a search of the whole corpus by vectors, by BM25, or by both."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.retrieval.lexical import LexicalSearch
from reasonembed_mteb.synthesis.exact import ExactSimilarity
from reasonembed_mteb.synthesis.generate import is_generated, queries
from reasonembed_mteb.synthesis.shards import shard_count
from reasonembed_mteb.synthesis.step import Step, in_blocks, need

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from reasonembed_mteb.synthesis.config import MineSection, SubsetSection
    from reasonembed_mteb.synthesis.corpus import Corpus
    from reasonembed_mteb.synthesis.shards import Row, Shards
    from reasonembed_mteb.synthesis.step import Run

# Queries a file.
SIZE = 256
# Documents and scores in memory at a time; a score has 8 bytes, and 4 as a result.
_CHUNK = 4096
_SCORES = 1 << 23
# What a float32 score of about 1 tells apart. Only for people: order and cut go by the score itself.
_DIGITS = 6
# Raised where scores are computed differently, so that no search is finished with scores of two kinds.
_SCORING = "whole numbers 1"

Hits = dict[str, float]


def mined(run: Run, subset: SubsetSection) -> Shards:
    """Return the step's output: a row a query, with candidates as ``[document id, rank, score]``.

    Args:
        run: With its configuration and output folder.
        subset: One ``[[subset]]`` of the configuration.
    """
    if "mined" in run.own_parts(subset):
        return run.own_shards(subset, "mined")
    section = run.config.mine
    window = [section.first_rank, section.last_rank, section.score_ceiling, section.rrf_k]
    return run.shards("mined", subset, _causes(run, subset), _identities(run), section.retriever, window)


def _causes(run: Run, subset: SubsetSection) -> list[Any]:
    if not is_generated(run, subset):
        need(queries(run, subset), "generate", subset)
    note = need(queries(run, subset), "generate", subset)
    return [note["output"], run.corpus(subset).fingerprint, run.config.mine.top_k, run.config.mine.language]


def _identities(run: Run) -> list[str | None]:
    """Say which retrievers search: what decides their scores."""
    section = run.config.mine
    if section.model is None or section.retriever == "bm25":
        return ["bm25"]
    from reasonembed_mteb.models.folders import content_revision

    folder = Path(_model_name(run))
    revision = content_revision(folder) if folder.is_dir() else None
    # A directory may move; a hub name is followed to its newest commit when it is loaded.
    model = [revision or section.model, section.instruction_template]
    return model if section.retriever == "dense" else [*model, "bm25"]


def _model_name(run: Run) -> str:
    """Return the model's name; a directory is relative to the configuration file."""
    name = run.config.mine.model or ""
    folder = run.config.path(name)
    return str(folder) if folder.is_dir() else name


def mine(run: Run, subset: SubsetSection) -> None:
    """Run the step for one subset.

    Args:
        run: With its configuration and output folder.
        subset: One ``[[subset]]`` of the configuration.

    Raises:
        ReasonEmbedError: If the model is not known or cannot be loaded.
    """
    section, shards = run.config.mine, mined(run, subset)
    shards.begin()
    kept = need(queries(run, subset), "generate", subset)["kept"]
    parts: list[Iterator[Row]] = []
    if section.retriever in ("dense", "fused"):
        parts.append(_dense(run, subset, kept))
    if section.retriever in ("bm25", "fused"):
        parts.append(_bm25(run, subset, kept))
    rows = (
        _candidates(query, hits, section)
        for query, *hits in zip(queries(run, subset).rows(), *parts, strict=True)
    )
    for index in range(shard_count(kept, SIZE)):
        shards.write(index, list(islice(rows, SIZE)))
    shards.finish(shard_count(kept, SIZE))


def _candidates(query: Row, found: list[Row], section: MineSection) -> Row:
    """Fuse, cut, and only then leave the source out: no trivial positive (PROTOCOL section 7)."""
    hits = [dict(map(tuple, row["hits"])) for row in found]
    scores = hits[0] if len(hits) == 1 else _fused(hits, section.rrf_k)
    ranked = _best(scores, section.top_k)
    first, last = section.first_rank, section.last_rank or section.top_k
    ceiling = None
    if section.score_ceiling is not None and found[0]["own"] is not None:
        ceiling = section.score_ceiling * found[0]["own"]
    candidates = [
        [document, rank, round(score, _DIGITS)]
        for rank, (document, score) in enumerate(ranked.items(), 1)
        if document != query["source"] and first <= rank <= last and (ceiling is None or score <= ceiling)
    ]
    row: Row = {**{key: query[key] for key in ("id", "source", "query")}, "candidates": candidates}
    return row if candidates else row | {"dropped": "no candidate"}


def _fused(hits: list[Hits], rrf_k: int) -> Mapping[str, float]:
    from mteb.models.hybrid_wrappers import fuse_rrf

    return fuse_rrf(hits, [1 / len(hits)] * len(hits), rrf_k=rrf_k)


def _best(scores: Mapping[str, float], top_k: int) -> Hits:
    """Return the best, best first; equal scores by id descending, as everywhere in this package."""
    order = sorted(scores.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)
    return dict(order[:top_k])


def _search_arguments(run: Run, subset: SubsetSection) -> dict[str, Any]:
    encode = {"batch_size": run.config.mine.batch_size, "show_progress_bar": False}
    return {
        "task_metadata": _metadata(run, subset),
        "hf_split": "train",
        "hf_subset": "default",
        "encode_kwargs": encode,
        "num_proc": None,
    }


def _metadata(run: Run, subset: SubsetSection) -> Any:  # noqa: ANN401 - mteb's TaskMetadata
    """Return a task by which a model finds its instruction: a table's own where the words are the same."""
    from reasonembed_mteb.retrieval.rows import load_rows
    from reasonembed_mteb.retrieval.search import search_metadata

    instruction = run.domain(subset).instruction
    rows = (row for row in load_rows() if row.instruction == instruction)
    known = next((row.name for row in rows if row.subset == (subset.domain or subset.name)), None)
    return search_metadata(known or f"ReMixer-{subset.name}", instruction, run.config.mine.language)


def _query_data(rows: list[Row]) -> Any:  # noqa: ANN401 - datasets.Dataset
    from datasets import Dataset

    return Dataset.from_dict({"id": [row["id"] for row in rows], "text": [row["query"] for row in rows]})


# Pairs of queries and documents by which a similarity is known, and how far half precision may be off.
_PROBED, _ALIKE = 8, 1e-2


def _as_numbers(vectors: Any) -> NDArray[np.float64] | None:  # noqa: ANN401 - mteb's Array
    """Return a matrix as float64 on the CPU, None where it is none, as of late interaction or sparse."""
    import torch

    from reasonembed_mteb.retrieval.topk import is_plain

    near = vectors.detach().cpu() if isinstance(vectors, torch.Tensor) else vectors
    if not is_plain(near):
        return None
    numbers: NDArray[np.float64] = torch.as_tensor(near).double().numpy()
    return numbers


class _MiningEncoder:
    """An MTEB encoder that encodes the same queries once, and scores alike whatever the blocks.

    A similarity that is neither cosine nor dot product stays the model's own.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - mteb's EncoderProtocol
        self.model = model
        self.mteb_model_meta = model.mteb_model_meta
        self._queries: Any = None
        self._similarity: ExactSimilarity | None = None

    def encode(self, inputs: Any, *, prompt_type: Any = None, **kwargs: Any) -> Any:  # noqa: ANN401
        from mteb.types import PromptType

        if prompt_type != PromptType.query:
            return self.model.encode(inputs, prompt_type=prompt_type, **kwargs)
        if self._queries is None:
            self._queries = self.model.encode(inputs, prompt_type=prompt_type, **kwargs)
        return self._queries

    def similarity(self, queries: Any, documents: Any) -> Any:  # noqa: ANN401
        import torch

        whole = queries is self._queries
        exact = self._similarity if whole else self._exact(queries, documents)
        if exact is None and whole:
            exact = self._similarity = self._exact(queries, documents)
        if exact is None or (right := _as_numbers(documents)) is None:
            return self.model.similarity(queries, documents)
        return torch.from_numpy(exact.scores(right))

    def _exact(self, queries: Any, documents: Any) -> ExactSimilarity | None:  # noqa: ANN401
        """Return the model's similarity in whole numbers, None where it computes something else."""
        from mteb.models.model_meta import ScoringFunction

        from reasonembed_mteb.retrieval.topk import plain_function

        declared = getattr(self.mteb_model_meta, "similarity_fn_name", None)
        names: dict[Any, str] = {ScoringFunction.COSINE: "cosine", ScoringFunction.DOT_PRODUCT: "dot"}
        function = plain_function(self.model) or names.get(declared)
        left, right = _as_numbers(queries[:_PROBED]), _as_numbers(documents[:_PROBED])
        if function is None or left is None or right is None:
            return None
        # Declared is not computed: a few pairs tell.
        own = _as_numbers(self.model.similarity(queries[:_PROBED], documents[:_PROBED]))
        ours = ExactSimilarity(function, left).scores(right)
        if own is None or not np.allclose(ours, own, rtol=_ALIKE, atol=_ALIKE):
            return None
        every = _as_numbers(queries)
        return None if every is None else ExactSimilarity(function, every)

    def similarity_pairwise(self, queries: Any, documents: Any) -> Any:  # noqa: ANN401
        return self.model.similarity_pairwise(queries, documents)


def _load(run: Run, name: str) -> Any:  # noqa: ANN401 - any MTEB model
    if name not in run.models:
        from reasonembed_mteb.evaluation.resolving import resolve_model
        from reasonembed_mteb.plugin import register

        register()
        meta = resolve_model(name, template=run.config.mine.instruction_template)
        run.models[name] = meta.load_model(device=run.config.mine.device)
    return run.models[name]


def _dense(run: Run, subset: SubsetSection, count: int) -> Iterator[Row]:
    """Search block by block of documents, and merge; a killed run goes on with the next block."""
    section, corpus = run.config.mine, run.corpus(subset)
    causes = [_causes(run, subset), _identities(run)[:2], section.block, section.score_ceiling is not None]
    shards = run.shards("search-dense", subset, _SCORING, *causes)
    blocks = shard_count(len(corpus), section.block)
    own = int(section.score_ceiling is not None)
    if shards.note is None:
        shards.begin()
        missing = [index for index in range(blocks + own) if not shards.has(index)]
        rows = list(queries(run, subset).rows())
        model = _MiningEncoder(_load(run, _model_name(run))) if missing else None
        for index in missing:
            if index == blocks:
                shards.write(index, _own_scores(run, subset, model, rows))
            else:
                start = index * section.block
                block = corpus.data.select(range(start, min(start + section.block, len(corpus))))
                shards.write(index, _search(run, subset, model, rows, block))
            run.say(f"mine {subset.name}: {index + 1} of {blocks + own} blocks")
        shards.finish(blocks + own)
    files = [in_blocks(_file_rows(shards, index), SIZE) for index in range(blocks + own)]
    for index in range(shard_count(count, SIZE)):
        for parts in zip(*(file(index) for file in files), strict=True):
            merged = {document: score for part in parts[:blocks] for document, score in part["hits"]}
            yield {"hits": list(_best(merged, section.top_k).items()), "own": parts[-1].get("own")}


def _file_rows(shards: Shards, index: int) -> Iterator[Row]:
    from reasonembed_mteb.synthesis.shards import read_rows

    return read_rows(shards.file(index))


def _search(run: Run, subset: SubsetSection, model: Any, rows: list[Row], data: Any) -> Iterator[Row]:  # noqa: ANN401
    from reasonembed_mteb.retrieval.search import excluding_search

    chunk = max(1, min(_CHUNK, _SCORES // max(1, len(rows))))
    arguments = _search_arguments(run, subset)
    search = excluding_search(model, {}, chunk_size=chunk)
    search.index(data, **arguments)
    found = search.search(_query_data(rows), top_k=run.config.mine.top_k, **arguments)
    for row in rows:
        yield {"id": row["id"], "hits": list(found[row["id"]].items())}


def _own_scores(run: Run, subset: SubsetSection, model: Any, rows: list[Row]) -> Iterator[Row]:  # noqa: ANN401
    """Score each query's own source."""
    from reasonembed_mteb.retrieval.search import excluding_search

    corpus = run.corpus(subset)
    positions = sorted(map(_position, rows))
    arguments = _search_arguments(run, subset)
    search = excluding_search(model, {})
    search.index(corpus.data.select(positions), **arguments)
    wanted = {row["id"]: [row["source"]] for row in rows}
    found = search.search(_query_data(rows), top_k=1, top_ranked=wanted, **arguments)
    for row in rows:
        yield {"id": row["id"], "own": found[row["id"]][row["source"]]}


def _bm25(run: Run, subset: SubsetSection, count: int) -> Iterator[Row]:
    """Search by BM25, some queries at a time."""
    section = run.config.mine
    shards = run.shards(
        "search-bm25", subset, _SCORING, _causes(run, subset), section.score_ceiling is not None
    )
    files = shard_count(count, SIZE)
    if shards.note is None:
        shards.begin()
        missing = [index for index in range(files) if not shards.has(index)]
        block = in_blocks(queries(run, subset).rows(), SIZE)
        search = _lexical(run.corpus(subset), section.language) if missing else None
        for index in missing:
            assert search is not None
            shards.write(index, _bm25_rows(search, section, block(index)))
        shards.finish(files)
    return shards.rows()


def _lexical(corpus: Corpus, language: str) -> LexicalSearch:
    """Index a corpus, read document by document."""
    return LexicalSearch((text for _, _, text in corpus.documents()), corpus.ids, language)


def _bm25_rows(search: LexicalSearch, section: MineSection, rows: list[Row]) -> Iterator[Row]:
    found = search.search([row["query"] for row in rows], section.top_k)
    for row, hits in zip(rows, found, strict=True):
        own = None if section.score_ceiling is None else search.score(row["query"], _position(row))
        yield {"id": row["id"], "hits": list(hits.items()), "own": own}


def _position(row: Row) -> int:
    """Return the place of a query's source in the corpus; where the row has none, its id ends with it."""
    return int(row["position"]) if "position" in row else int(row["id"].rpartition("-")[2])


def _parts(run: Run, subset: SubsetSection) -> dict[str, Shards]:
    return {} if "labels" in run.own_parts(subset) else {"mined": mined(run, subset)}


STEP = Step("mine", mine, lambda run, subset: mined(run, subset).note, _parts)
