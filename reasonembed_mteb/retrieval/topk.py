"""A dense model's scores chunk by chunk, as MTEB computes them; excluded pairs; the exact top k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

# As torch.nn.functional.normalize, which MTEB calls.
_SMALLEST_NORM = 1e-12
# Scores that are partitioned at a time.
_PARTITIONED = 1 << 20
# Groups of columns for each value wanted: few leave many columns, many take long themselves.
_GROUPS = 4


class Similarity:
    """A model's similarity of all queries with one chunk of documents after the other.

    Cosine and dot product on the CPU are computed here, from the same formula as MTEB's without its copies:
    queries are normalised once, and the scores of documents, not their vectors, are divided by their norms.
    Everything else is left to the model.

    Args:
        model: A loaded MTEB encoder.
        queries: Its query vectors ``(Q, dim)``.
    """

    def __init__(self, model: Any, queries: Any) -> None:  # noqa: ANN401 - mteb's EncoderProtocol and Array
        """Prepare the queries."""
        self._model = model
        self._queries = queries
        self._function = plain_function(model) if not torch.cuda.is_available() else None
        if self._function is not None and not is_plain(queries):
            self._function = None
        if self._function is not None:
            self._prepared = plain_queries(self._function, torch.as_tensor(queries))

    def scores(self, documents: Any) -> Tensor:  # noqa: ANN401 - mteb's Array
        """Return ``(Q, C)``.

        Args:
            documents: Document vectors ``(C, dim)``.
        """
        if self._function is None or not is_plain(documents):
            scores = torch.as_tensor(self._model.similarity(self._queries, documents))
            return scores.to_dense() if scores.is_sparse else scores
        return plain_scores(self._function, self._prepared, torch.as_tensor(documents))


def plain_queries(function: str, queries: Tensor) -> Tensor:
    """Return queries as `plain_scores` takes them: for cosine, of length one.

    Args:
        function: ``cosine`` or ``dot``.
        queries: ``(Q, dim)``.
    """
    full = queries.float()
    return torch.nn.functional.normalize(full) if function == "cosine" else full


def plain_scores(function: str, queries: Tensor, documents: Tensor) -> Tensor:
    """Return scores ``(Q, C)`` in float32.

    Args:
        function: ``cosine`` or ``dot``.
        queries: ``(Q, dim)``, see `plain_queries`.
        documents: ``(C, dim)``, of any dtype; for cosine, of any length.
    """
    full = documents.float()
    scores = queries @ full.T
    if function == "cosine":
        scores /= torch.linalg.vector_norm(full, dim=1).clamp_min_(_SMALLEST_NORM)
    return scores


def is_plain(vectors: Any) -> bool:  # noqa: ANN401 - mteb's Array
    """Whether vectors are a dense matrix on the CPU."""
    if isinstance(vectors, torch.Tensor):
        return vectors.dim() == 2 and vectors.layout == torch.strided and vectors.device.type == "cpu"
    return getattr(vectors, "ndim", None) == 2 and not hasattr(vectors, "tocsr")


def plain_function(model: Any) -> str | None:  # noqa: ANN401 - mteb's EncoderProtocol
    """Return ``cosine`` or ``dot`` if that is all the model's similarity does."""
    from mteb.models import CompressionWrapper
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction

    while not isinstance(model, AbsEncoder):
        inner = getattr(model, "model", None)
        hands_over = isinstance(model, CompressionWrapper) or getattr(model, "hands_over_similarity", False)
        if not hands_over or inner is None:
            return None
        model = inner
    if type(model).similarity is not AbsEncoder.similarity:
        return None
    named: Any = getattr(model.mteb_model_meta, "similarity_fn_name", None)
    if named is None:
        named = getattr(getattr(model, "model", None), "similarity_fn_name", None)
    known: dict[Any, str] = {
        ScoringFunction.COSINE: "cosine",
        ScoringFunction.DOT_PRODUCT: "dot",
        "cosine": "cosine",
        "dot": "dot",
    }
    return known.get(named)


def matrix_function(model: Any) -> str | None:  # noqa: ANN401 - mteb's EncoderProtocol
    """Return ``cosine`` or ``dot`` if a model's similarity is that; a SentenceTransformer says it itself.

    Args:
        model: A loaded MTEB encoder.
    """
    from mteb.models import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    function = plain_function(model)
    while function is None and getattr(model, "hands_over_similarity", False):
        model = model.model
    if function is not None or not isinstance(model, SentenceTransformerEncoderWrapper):
        return function
    own = type(model).similarity is SentenceTransformerEncoderWrapper.similarity
    inner: Any = model.model
    if not own or not isinstance(inner, SentenceTransformer):
        return None
    named = inner.similarity_fn_name
    return named if named in ("cosine", "dot") else None


class ExcludedPairs:
    """Pairs of query and document that do not count, ready to be cut by corpus chunk.

    Args:
        excluded: Excluded document ids by query id.
        query_ids: ``(Q,)``, in the order of the score matrix's rows.
        document_ids: ``(N,)``, the corpus in the order of the columns. Ids outside it exclude nothing.
    """

    def __init__(
        self, excluded: Mapping[str, Collection[str]], query_ids: Sequence[str], document_ids: pa.Array
    ) -> None:
        """Look every excluded id up in the corpus, once."""
        sizes = [len(excluded.get(query, ())) for query in query_ids]
        names = [document for query in query_ids for document in excluded.get(query, ())]
        rows = np.repeat(np.arange(len(query_ids)), sizes)
        found = pc.index_in(pa.array(names, document_ids.type), value_set=document_ids)
        columns = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        known = columns >= 0
        # One number a pair sorts by column much faster than two would; repetitions do no harm.
        pairs = np.sort(columns[known] * len(query_ids) + rows[known])
        self._columns: NDArray[np.int64] = pairs // len(query_ids)
        self._rows: NDArray[np.int64] = pairs % len(query_ids)

    def mask(self, scores: Tensor, start: int) -> None:
        """Set the excluded pairs of one chunk to minus infinity, in place.

        Args:
            scores: ``(Q, C)``.
            start: Corpus position of the chunk's first document.
        """
        first, last = np.searchsorted(self._columns, [start, start + scores.shape[1]])
        if first == last:
            return
        rows = torch.from_numpy(self._rows[first:last]).to(scores.device)
        columns = torch.from_numpy(self._columns[first:last] - start).to(scores.device)
        scores[rows, columns] = -torch.inf


def id_ranks(document_ids: pa.Array) -> Tensor:
    """Return each document's place in the order of descending ids, ``(N,)``.

    Args:
        document_ids: Strings; Arrow compares their UTF-8 bytes, as trec_eval's strcmp does.
    """
    order = pc.sort_indices(document_ids, sort_keys=[("", "descending")]).to_numpy()
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return torch.from_numpy(ranks)


def best(scores: Tensor, ranks: Tensor, k: int) -> Tensor:
    """Return the columns of each row's ``k`` best scores; ties go to the lower rank.

    Args:
        scores: ``(Q, C)``, without NaN.
        ranks: ``(C,)`` or ``(Q, C)``: the order among equal scores.
        k: How many; at most ``C``.

    Returns:
        Column indices ``(Q, k)``, in no particular order.
    """
    if k in (0, scores.shape[1]) or not len(scores):
        return torch.arange(k, device=scores.device).expand(len(scores), k)
    columns, cut, following = _largest(scores, k)
    # Ties at the cut are broken anyhow: only rows where the next document has the last one's score have to be
    # chosen again.
    undecided = (following == cut[:, 0]).nonzero().flatten()
    for row in undecided.tolist():
        columns[row] = _best_of_row(scores[row], ranks if ranks.dim() == 1 else ranks[row], cut[row], k)
    return columns


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the columns of each row's k largest values, the smallest of these, and the next one after it."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        # numpy's partition is two to four times as fast as topk. Its places take twice the scores' memory.
        rows = max(1, _PARTITIONED // scores.shape[1])
        parts = [
            _partitioned(scores[start : start + rows].numpy(), k + 1) for start in range(0, len(scores), rows)
        ]
        places = torch.from_numpy(np.concatenate(parts))
        found = scores.gather(1, places)
        return places[:, 1:].contiguous(), found[:, 1:].amin(dim=1, keepdim=True), found[:, 0]
    values, columns = torch.topk(scores, k + 1, dim=1)
    return columns[:, :k].contiguous(), values[:, k - 1 : k], values[:, k]


def _partitioned(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the columns of each row's k largest values, the smallest of them first, the others as they come.

    Most columns are ruled out by one comparison: the k-th largest of the maxima of groups of columns is no
    larger than the k-th largest value.
    """
    size = scores.shape[1] // (_GROUPS * k)
    if size < 2:
        return np.argpartition(scores, -k, axis=1)[:, -k:]
    groups = scores.shape[1] // size
    # Neighbours in different groups, so that the maximum is taken over whole vectors.
    maxima = scores[:, : groups * size].reshape(len(scores), size, groups).max(axis=1)
    floor = np.partition(maxima, -k, axis=1)[:, -k]
    found = np.flatnonzero(scores >= floor[:, None])
    rows = found // scores.shape[1]
    counts = np.bincount(rows, minlength=len(scores))
    width = int(counts.max())
    # Many equal scores, or values that compare with nothing.
    if width > scores.shape[1] // 4 or counts.min() < k:
        return np.argpartition(scores, -k, axis=1)[:, -k:]
    places = np.arange(len(found)) - np.repeat(np.cumsum(counts) - counts, counts)
    left = np.full((len(scores), width), -np.inf, dtype=scores.dtype)
    columns = np.zeros((len(scores), width), dtype=np.int64)
    left[rows, places] = scores.reshape(-1)[found]
    columns[rows, places] = found - rows * scores.shape[1]
    return np.take_along_axis(columns, np.argpartition(left, -k, axis=1)[:, -k:], axis=1)


def _best_of_row(scores: Tensor, ranks: Tensor, cut: Tensor, k: int) -> Tensor:
    above = (scores > cut).nonzero().flatten()
    tied = (scores == cut).nonzero().flatten()
    room = k - len(above)
    return torch.cat([above, tied[torch.topk(ranks[tied], room, largest=False).indices]])


class RunningTopK:
    """The best documents of each query so far, over corpus chunks in any order.

    Args:
        queries: Number of queries.
        k: How many documents to keep a query.
        ranks: ``(N,)``, the corpus' order among equal scores; see `id_ranks`.
    """

    def __init__(self, queries: int, k: int, ranks: Tensor) -> None:
        """Start with nothing."""
        self._k, self._ranks = k, ranks
        self._scores = torch.empty(queries, 0)
        self._documents = torch.empty(queries, 0, dtype=torch.int64)

    def add(self, scores: Tensor, start: int) -> None:
        """Merge one chunk.

        Args:
            scores: ``(Q, C)``; minus infinity for pairs that do not count.
            start: Corpus position of the chunk's first document.
        """
        ranks = self._ranks[start : start + scores.shape[1]].to(scores.device)
        columns = best(scores, ranks, min(self._k, scores.shape[1]))
        if not self._scores.shape[1]:
            self._scores, self._documents = scores.gather(1, columns).float().cpu(), columns.cpu() + start
            return
        merged = torch.cat([self._scores, scores.gather(1, columns).float().cpu()], dim=1)
        documents = torch.cat([self._documents, columns.cpu() + start], dim=1)
        kept = best(merged, self._ranks[documents], min(self._k, merged.shape[1]))
        self._scores, self._documents = merged.gather(1, kept), documents.gather(1, kept)

    def arrays(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return places in the corpus and scores, best first, each ``(Q, k)``; -1 where there is none.

        Args:
            k: Columns.
        """
        scores, documents = self._sorted()
        missing = (0, k - scores.shape[1])
        # An excluded document is none.
        documents = documents.masked_fill(scores == -torch.inf, -1)
        scores = torch.nn.functional.pad(scores, missing, value=-torch.inf)
        return torch.nn.functional.pad(documents, missing, value=-1).numpy(), scores.numpy()

    def _sorted(self) -> tuple[Tensor, Tensor]:
        scores, order = torch.sort(self._scores, dim=1, descending=True)
        documents = self._documents.gather(1, order)
        # Only rows with equal scores need their ranks.
        for row in (scores[:, 1:] == scores[:, :-1]).any(dim=1).nonzero().flatten().tolist():
            by_rank = torch.argsort(self._ranks[documents[row]])
            again = by_rank[torch.argsort(scores[row][by_rank], descending=True, stable=True)]
            scores[row], documents[row] = scores[row][again], documents[row][again]
        return scores, documents

    def results(self, query_ids: Sequence[str], document_ids: pa.Array) -> dict[str, dict[str, float]]:
        """Return scores by query and document id, best first.

        Args:
            query_ids: ``(Q,)``, in the order of the score matrix's rows.
            document_ids: ``(N,)``, the whole corpus' ids.
        """
        scores, documents = self._sorted()
        found: dict[str, dict[str, float]] = {}
        for row, query in enumerate(query_ids):
            counted = int((scores[row] > -torch.inf).sum())
            names: Any = document_ids.take(pa.array(documents[row, :counted].numpy()))
            found[query] = dict(zip(names.to_pylist(), scores[row, :counted].tolist(), strict=True))
        return found
