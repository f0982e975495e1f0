"""Search that leaves excluded documents out before the cut, for every kind of MTEB model."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import torch

from reasonembed_mteb.encoding.output import TextsError
from reasonembed_mteb.errors import ReasonEmbedError, first_names
from reasonembed_mteb.retrieval.beir import document_text
from reasonembed_mteb.retrieval.compressed import compress_chunks, needs_range
from reasonembed_mteb.retrieval.topk import ExcludedPairs, RunningTopK, Similarity, id_ranks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from mteb.abstasks.task_metadata import PromptDict, TaskMetadata
    from mteb.models import EncoderProtocol, MTEBModels, SearchProtocol
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

CHUNK_SIZE = 8192
_SEVERAL = 2
# Documents that an error names.
_NAMED = 5

Results = dict[str, dict[str, float]]


def excluding_search(
    model: MTEBModels | Any,  # noqa: ANN401 - what is no MTEB model is refused below
    excluded: Mapping[str, Collection[str]],
    *,
    chunk_size: int = CHUNK_SIZE,
) -> SearchProtocol:
    """Wrap an MTEB model so that excluded documents leave before the cut.

    Args:
        model: Any MTEB model: dense, sparse, late interaction, BM25, hybrid, or a cross-encoder (which
            needs candidates, as in MTEB: ``task.convert_to_reranking``).
        excluded: Document ids that do not count, by query id.
        chunk_size: Documents encoded and scored at a time by a dense model.

    Returns:
        A model that MTEB's evaluator takes as it is.

    Raises:
        TypeError: If ``model`` follows none of MTEB's protocols.
    """
    # The order of these questions is AbsTaskRetrieval's own.
    from mteb.models import (
        CrossEncoderProtocol,
        EncoderProtocol,
        SearchCrossEncoderWrapper,
        SearchEncoderWrapper,
        SearchProtocol,
    )

    if isinstance(model, SearchEncoderWrapper) and model.index_backend is None:
        model = model.model
    if isinstance(model, EncoderProtocol) and not isinstance(model, SearchProtocol):
        return _DenseSearch(model, excluded, chunk_size)
    if isinstance(model, CrossEncoderProtocol):
        return _FilteredSearch(SearchCrossEncoderWrapper(model), excluded)
    if isinstance(getattr(model, "wrapped_models", None), list):
        return _excluding_hybrid(model, excluded, chunk_size)
    if isinstance(model, SearchProtocol):
        return _FilteredSearch(model, excluded)
    given = type(model).__name__
    msg = f"cannot search with {given}: it is no MTEB encoder, cross-encoder or search model"
    raise TypeError(msg)


def _excluding_hybrid(model: Any, excluded: Mapping[str, Collection[str]], chunk_size: int) -> SearchProtocol:  # noqa: ANN401 - mteb's HybridSearch
    """Exclude in each part, before ranks or scores are fused."""
    hybrid = copy.copy(model)
    hybrid.wrapped_models = [
        excluding_search(part, excluded, chunk_size=chunk_size) for part in model.wrapped_models
    ]
    return _FilteredSearch(hybrid, {})


def _drop_candidates(
    top_ranked: Mapping[str, list[str]], excluded: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    """Take excluded documents out of the candidates of a reranking."""
    kept = {}
    for query, documents in top_ranked.items():
        out = set(excluded.get(query, ()))
        kept[query] = [document for document in documents if document not in out]
    return kept


def _warn_nothing_left(results: Results) -> None:
    empty = [query for query, found in results.items() if not found]
    if empty:
        logger.warning(
            "%d queries have no document left to find and score 0: %s", len(empty), first_names(empty)
        )


class _FilteredSearch:
    """Any search model: fetch enough more that the excluded ones can leave, then cut."""

    def __init__(self, inner: SearchProtocol, excluded: Mapping[str, Collection[str]]) -> None:
        self.model = inner
        self.mteb_model_meta = inner.mteb_model_meta
        self._excluded = {query: frozenset(documents) for query, documents in excluded.items()}
        self._extra = max(map(len, self._excluded.values()), default=0)

    def index(self, corpus: Any, **kwargs: Any) -> None:  # noqa: ANN401 - mteb's protocol
        self.model.index(corpus, **kwargs)

    def search(self, queries: Any, *, top_k: int, top_ranked: Any = None, **kwargs: Any) -> Results:  # noqa: ANN401
        if top_ranked is not None:
            candidates = _drop_candidates(top_ranked, self._excluded)
            return self.model.search(queries, top_k=top_k, top_ranked=candidates, **kwargs)
        found = self.model.search(queries, top_k=top_k + self._extra, top_ranked=None, **kwargs)
        results = {query: self._cut(query, scores, top_k) for query, scores in found.items()}
        _warn_nothing_left(results)
        return results

    def _cut(self, query: str, scores: Mapping[str, float], top_k: int) -> dict[str, float]:
        out = self._excluded.get(query, frozenset())
        kept = [(score, document) for document, score in scores.items() if document not in out]
        # Equal scores by id descending, as pytrec_eval.
        return {document: score for score, document in sorted(kept, reverse=True)[:top_k]}


class _DenseSearch:
    """A dense (or sparse) encoder: masked top-k, chunk by chunk.

    Neither the corpus' vectors nor its scores are ever resident as a whole.
    """

    def __init__(
        self, model: EncoderProtocol, excluded: Mapping[str, Collection[str]], chunk_size: int
    ) -> None:
        self.model: Any = model
        self.mteb_model_meta = model.mteb_model_meta
        self._excluded = excluded
        self._chunk_size = chunk_size
        self._corpus: Any = None

    def index(self, corpus: Any, **_: Any) -> None:  # noqa: ANN401 - mteb's protocol
        """Keep the corpus; documents are encoded during the search."""
        self._corpus = corpus

    def search(
        self,
        queries: Any,  # noqa: ANN401 - mteb's protocol
        *,
        top_k: int,
        top_ranked: Any = None,  # noqa: ANN401
        **kwargs: Any,
    ) -> Results:
        if self._corpus is None:
            msg = "call index(corpus) before search(queries)"
            raise ReasonEmbedError(msg)
        if top_ranked is not None:
            return self._rerank(queries, top_k=top_k, top_ranked=top_ranked, **kwargs)
        from tqdm.auto import tqdm

        query_ids = queries["id"][:]
        document_ids = _string_column(self._corpus, "id")
        pairs = ExcludedPairs(self._excluded, query_ids, document_ids)
        best = RunningTopK(len(query_ids), top_k, id_ranks(document_ids))
        query_vectors = self._encode(self.model, query_loader(queries, **kwargs), "query", **kwargs)
        similarity = Similarity(self.model, query_vectors)
        chunk_size = self._own_chunk_size()
        starts = range(0, len(self._corpus), chunk_size)
        shown = kwargs.get("encode_kwargs", {}).get("show_progress_bar", True)
        bar = tqdm(starts, desc="Searching", unit="chunk", disable=not shown)
        for start, vectors in zip(bar, self._document_vectors(starts, chunk_size, **kwargs), strict=True):
            scores = similarity.scores(vectors)
            self._check(scores, start)
            pairs.mask(scores, start)
            best.add(scores, start)
        results = best.results(query_ids, document_ids)
        _warn_nothing_left(results)
        return results

    def _own_chunk_size(self) -> int:
        """All at once where MTEB's wrapper clips by quantiles, which no chunk knows."""
        clips = getattr(self.model, "clipping_margin", None) is not None
        return max(len(self._corpus), 1) if clips else self._chunk_size

    def _document_vectors(self, starts: range, chunk_size: int, **kwargs: Any) -> Iterator[Any]:
        """Yield the corpus' vectors chunk by chunk, as the model's similarity takes them."""

        def encoded(model: EncoderProtocol) -> Iterator[Any]:
            for start in starts:
                stop = min(start + chunk_size, len(self._corpus))
                chunk = self._corpus.select(range(start, stop))
                yield self._encode(model, document_loader(chunk, **kwargs), "document", **kwargs)

        if len(starts) < _SEVERAL or not needs_range(self.model):
            yield from encoded(self.model)
            return
        from mteb.types import PromptType

        plain = (torch.as_tensor(vectors).cpu() for vectors in encoded(self.model.model))
        names = ("task_metadata", "hf_split", "hf_subset")
        call = {name: kwargs[name] for name in names}
        yield from compress_chunks(self.model, plain, PromptType.document, **call)

    def _rerank(self, queries: Any, *, top_ranked: Any, **kwargs: Any) -> Results:  # noqa: ANN401
        from mteb.models import SearchEncoderWrapper

        wrapper = SearchEncoderWrapper(self.model)
        index_kwargs = {key: value for key, value in kwargs.items() if key != "top_k"}
        wrapper.index(self._corpus, **index_kwargs)
        return wrapper.search(queries, top_ranked=_drop_candidates(top_ranked, self._excluded), **kwargs)

    def _encode(self, model: EncoderProtocol, loader: DataLoader[Any], kind: str, **kwargs: Any) -> Any:  # noqa: ANN401 - mteb's Array
        from mteb.types import PromptType

        try:
            return model.encode(
                loader,
                task_metadata=kwargs["task_metadata"],
                hf_split=kwargs["hf_split"],
                hf_subset=kwargs["hf_subset"],
                prompt_type=PromptType(kind),
                **kwargs["encode_kwargs"],
            )
        except TextsError as error:
            rows: Any = loader.dataset
            raise error.named(rows["id"][:]) from error

    def _check(self, scores: torch.Tensor, start: int) -> None:
        if bool(torch.isfinite(scores).all()):
            return
        broken = (~torch.isfinite(scores)).any(dim=0).nonzero().flatten() + start
        named = ", ".join(self._corpus.select(broken[:_NAMED].tolist())["id"][:])
        msg = (
            f"{self.mteb_model_meta.name} scores {len(broken)} documents as NaN or infinite ({named}); "
            "try another dtype"
        )
        raise ReasonEmbedError(msg)


def _string_column(dataset: Any, name: str) -> pa.Array:  # noqa: ANN401 - datasets.Dataset
    """Return a column as one Arrow array, without making Python strings of it where that can be avoided."""
    column = dataset.with_format("arrow")[:][name] if len(dataset) else pa.array([], pa.string())
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return combined.cast(pa.large_string())


def search_metadata(name: str, instruction: str, language: str = "eng-Latn") -> TaskMetadata:
    """Return the metadata of a task that is searched for its results alone, not for scores.

    Args:
        name: An MTEB task whose prompt and length hold, or any other name.
        instruction: What queries are asked with; empty for none.
        language: As MTEB spells it.
    """
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name,
        description=f"Search for {name}.",
        dataset={"path": "local/search", "revision": "1"},
        type="Retrieval",
        eval_langs=[language],
        main_score="ndcg_at_10",
        prompt=cast("PromptDict", {"query": instruction}) if instruction else None,
    )


def column_loader(columns: dict[str, list[str]], batch_size: int) -> DataLoader[Any]:
    """Return a loader of MTEB's kind: over a data set, in order, batches as dictionaries of lists.

    Args:
        columns: The texts, under MTEB's column names.
        batch_size: Rows a batch.
    """
    from datasets import Dataset
    from torch.utils.data import DataLoader

    data = Dataset.from_dict(columns)
    # Whole ranges are asked of the data set, which is several times faster than row by row.
    ranges = [range(start, min(start + batch_size, len(data))) for start in range(0, len(data), batch_size)]
    return DataLoader(data, batch_size=None, sampler=ranges, collate_fn=dict)


def query_loader(queries: Any, *, encode_kwargs: Mapping[str, Any], **_: Any) -> DataLoader[Any]:  # noqa: ANN401
    """Prepare queries as MTEB does.

    Args:
        queries: A data set with columns ``id`` and ``text``.
        encode_kwargs: Its ``batch_size`` counts.
        **_: What else a search is called with.
    """
    texts = queries["text"][:]
    # MTEB names the text without instruction `query`.
    columns = {"id": queries["id"][:], "text": texts, "query": texts}
    return column_loader(columns, encode_kwargs.get("batch_size", 32))


def document_loader(chunk: Any, *, encode_kwargs: Mapping[str, Any], **_: Any) -> DataLoader[Any]:  # noqa: ANN401
    """Prepare documents as MTEB does (title before text, stripped), without its map over the corpus.

    Args:
        chunk: A data set with columns ``id``, ``text`` and perhaps ``title``.
        encode_kwargs: Its ``batch_size`` counts.
        **_: What else a search is called with.
    """
    bodies = chunk["text"][:]
    titles = chunk["title"][:] if "title" in chunk.column_names else [""] * len(bodies)
    pairs = zip(titles, bodies, strict=True)
    texts = [document_text(title, body) for title, body in pairs]
    columns = {"id": chunk["id"][:], "text": texts, "body": bodies}
    if any(titles):
        columns["title"] = [title or "" for title in titles]
    return column_loader(columns, encode_kwargs.get("batch_size", 32))
