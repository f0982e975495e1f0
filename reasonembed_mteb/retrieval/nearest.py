"""The nearest documents of each query, and the scores of chosen pairs, from one pass over the vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.retrieval.topk import RunningTopK, id_ranks, is_plain, matrix_function

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa
    from numpy.typing import NDArray

# Queries scored together: with a chunk of 8,192 documents their scores take 32 MiB.
_QUERIES = 1024


@dataclass(frozen=True)
class PlacedPairs:
    """Pairs of query and document, by their places.

    Attributes:
        queries: ``(P,)``, places among the queries.
        documents: ``(P,)``, places in the corpus.
    """

    queries: NDArray[np.int64]
    documents: NDArray[np.int64]

    def within(self, queries: range, documents: range) -> NDArray[np.int64]:
        """Return which of the pairs lie in a block of queries and a chunk of documents.

        Args:
            queries: The block.
            documents: The chunk.
        """
        there = (self.documents >= documents.start) & (self.documents < documents.stop)
        return np.flatnonzero(there & (self.queries >= queries.start) & (self.queries < queries.stop))


@dataclass(frozen=True)
class Nearest:
    """What a pass over the corpus found.

    Attributes:
        documents: ``(Q, k)``, places in the corpus, best first; equal scores by id descending. Where there
            are fewer documents than k, the place is -1.
        scores: ``(Q, k)``, minus infinity where there is no document.
        chosen: ``(P,)``, the scores of the chosen pairs.
    """

    documents: NDArray[np.int64]
    scores: NDArray[np.float32]
    chosen: NDArray[np.float32]


def nearest_documents(
    model: Any,  # noqa: ANN401 - mteb's EncoderProtocol
    queries: torch.Tensor,
    chunks: Iterable[Any],
    document_ids: pa.Array,
    top_k: int,
    *,
    chosen: PlacedPairs,
    excluded: PlacedPairs,
) -> Nearest:
    """Search exactly; neither the corpus' vectors nor its scores are ever resident as a whole.

    Args:
        model: What the vectors come from; its own similarity is taken.
        queries: ``(Q, dim)``.
        chunks: The corpus' vectors, ``(C, dim)`` each, in order.
        document_ids: The corpus' ids.
        top_k: How many documents a query.
        chosen: Pairs whose scores are wanted, found or not.
        excluded: Pairs that do not count.

    Raises:
        ReasonEmbedError: If a score is NaN or infinite.
    """
    ranks = id_ranks(document_ids)
    blocks = [range(s, min(s + _QUERIES, len(queries))) for s in range(0, len(queries), _QUERIES)]
    similarity = _Similarity(model)
    prepared = [similarity.prepare(queries[block.start : block.stop]) for block in blocks]
    searched = [
        (block, asked, RunningTopK(len(block), top_k, ranks))
        for block, asked in zip(blocks, prepared, strict=True)
    ]
    found = np.full(len(chosen.queries), -np.inf, dtype=np.float32)
    start = 0
    for vectors in chunks:
        chunk, documents = range(start, start + len(vectors)), similarity.prepare(vectors)
        for block, asked, best in searched:
            scores = similarity.scores(asked, documents)
            wanted = chosen.within(block, chunk)
            found[wanted] = scores[_places(chosen, wanted, block, chunk)].float().cpu().numpy()
            scores[_places(excluded, excluded.within(block, chunk), block, chunk)] = -torch.inf
            best.add(scores, start)
        start = chunk.stop
    places, values = zip(*(best.arrays(top_k) for _, _, best in searched), strict=True)
    nearest = Nearest(np.concatenate(places), np.concatenate(values), found)
    _check(model, nearest)
    return nearest


class _Similarity:
    """A model's similarity; what cosine has to do once for each vector is done once.

    Scores of plain vectors lie in one block of memory, which the next call writes over: asking the system for
    32 MiB each time costs an eighth of the product.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - mteb's EncoderProtocol
        self._model, self._function = model, matrix_function(model)
        self._room = torch.empty(0)

    def prepare(self, vectors: Any) -> Any:  # noqa: ANN401 - mteb's Array
        if self._function is None or not is_plain(vectors):
            return vectors
        full = torch.as_tensor(vectors).float()
        return torch.nn.functional.normalize(full) if self._function == "cosine" else full

    def scores(self, queries: Any, documents: Any) -> torch.Tensor:  # noqa: ANN401 - mteb's Array
        if self._function is None or not (is_plain(queries) and is_plain(documents)):
            return torch.as_tensor(self._model.similarity(queries, documents))
        size = len(queries) * len(documents)
        if len(self._room) < size:
            self._room = torch.empty(size)
        return torch.mm(queries, documents.T, out=self._room[:size].view(len(queries), len(documents)))


def _places(
    pairs: PlacedPairs, which: NDArray[np.int64], queries: range, documents: range
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and columns of a score matrix."""
    rows, columns = pairs.queries[which] - queries.start, pairs.documents[which] - documents.start
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _check(model: Any, found: Nearest) -> None:  # noqa: ANN401 - mteb's EncoderProtocol
    # NaN is above every number in a search, and so among the best.
    wrong = np.isnan(found.scores) | np.isposinf(found.scores)
    if wrong.any() or np.isnan(found.chosen).any():
        msg = f"{model.mteb_model_meta.name} scores documents as NaN or infinite; try another dtype"
        raise ReasonEmbedError(msg)
