"""Score matrices of a dense model, chunk by chunk, as MTEB's own similarity gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

# As torch.nn.functional.normalize, which MTEB calls.
_SMALLEST_NORM = 1e-12


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
        self._function = _plain_function(model) if not torch.cuda.is_available() else None
        if self._function is not None and not _is_plain(queries):
            self._function = None
        if self._function is not None:
            full = torch.as_tensor(queries).float()
            self._prepared = torch.nn.functional.normalize(full) if self._function == "cosine" else full

    def scores(self, documents: Any) -> Tensor:  # noqa: ANN401 - mteb's Array
        """Return ``(Q, C)``.

        Args:
            documents: Document vectors ``(C, dim)``.
        """
        if self._function is None or not _is_plain(documents):
            scores = torch.as_tensor(self._model.similarity(self._queries, documents))
            return scores.to_dense() if scores.is_sparse else scores
        full = torch.as_tensor(documents).float()
        scores = self._prepared @ full.T
        if self._function == "cosine":
            scores /= torch.linalg.vector_norm(full, dim=1).clamp_min_(_SMALLEST_NORM)
        return scores


def _is_plain(vectors: Any) -> bool:  # noqa: ANN401 - mteb's Array
    """Whether vectors are a dense matrix on the CPU."""
    if isinstance(vectors, torch.Tensor):
        return vectors.dim() == 2 and vectors.layout == torch.strided and vectors.device.type == "cpu"
    return getattr(vectors, "ndim", None) == 2 and not hasattr(vectors, "tocsr")


def _plain_function(model: Any) -> str | None:  # noqa: ANN401 - mteb's EncoderProtocol
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
