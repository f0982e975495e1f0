"""Geometry: how document vectors lie in their space, and the spectral norms of a model's weights.

IsoScore, the mean cosine and the weights' norms are the study's (arXiv 2604.16576); effective rank and spread
of the lengths are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.evaluation.geometries import Geometry, VectorShape, WeightNorms

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch
    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# The study's sample of a corpus.
VECTORS = 100_000
# Rows turned into float64 at a time.
_BLOCK = 16_384
# Least side of a matrix from which an iterative method pays.
_SMALL = 128
# Linear layers that the study leaves out.
_LEFT_OUT = ("pooler", "lm_head")


def iso_score(vectors: NDArray[Any]) -> float | None:
    """Return IsoScore: 1 for vectors that vary alike in all directions, 0 for those on a line.

    With the eigenvalues l of the covariance, the definition comes down to (P - 1) / (d - 1), where P is their
    participation ratio, sum(l)^2 / sum(l^2): the trace and the Frobenius norm of the covariance are enough.

    Args:
        vectors: ``(N, d)``, at least two of at least two dimensions.

    Returns:
        The score, or None where all vectors are equal.

    Raises:
        DataError: If there are too few, or a value is not finite.
    """
    covariance = _covariance(vectors)
    return _iso_of(float(np.trace(covariance)), float(np.sum(covariance**2)), len(covariance))


def gaussian_iso_score(vectors: int, dimensions: int) -> float:
    """Return what an isotropic Gaussian scores, from the expected moments of its sample covariance.

    Args:
        vectors: How many.
        dimensions: Of each.
    """
    freedom = vectors - 1
    # Moments of a Wishart matrix over its degrees of freedom.
    squares = dimensions * (1 + (dimensions + 1) / freedom)
    return _iso_of(float(dimensions), squares, dimensions) or 0.0


def _iso_of(trace: float, squares: float, dimensions: int) -> float | None:
    if squares <= 0:
        return None
    score = (trace**2 / squares - 1) / (dimensions - 1)
    return min(max(score, 0.0), 1.0)


def _covariance(vectors: NDArray[Any]) -> Floats:
    """Return the covariance ``(d, d)`` in float64, block by block."""
    count, dimensions = _checked(vectors)
    mean = sum(block.sum(axis=0) for block in _blocks(vectors)) / count
    total = np.zeros((dimensions, dimensions))
    for block in _blocks(vectors):
        centred = block - mean
        total += centred.T @ centred
    return total / (count - 1)


def _blocks(vectors: NDArray[Any]) -> Iterator[Floats]:
    for start in range(0, len(vectors), _BLOCK):
        yield np.asarray(vectors[start : start + _BLOCK], dtype=np.float64)


def _checked(vectors: NDArray[Any]) -> tuple[int, int]:
    if vectors.ndim != 2 or min(vectors.shape) < 2:
        msg = f"geometry needs at least 2 vectors of at least 2 dimensions, not an array {vectors.shape}"
        raise DataError(msg)
    if not np.isfinite(vectors).all():
        msg = "the vectors hold NaN or infinite values; encode them again, in another dtype"
        raise DataError(msg)
    return vectors.shape[0], vectors.shape[1]


def vector_shape(vectors: NDArray[Any]) -> VectorShape:
    """Measure a set of vectors.

    Args:
        vectors: ``(N, d)``, as the model gives them.

    Raises:
        DataError: If there are too few, or a value is not finite.
    """
    covariance = _covariance(vectors)
    eigenvalues = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    norms = np.concatenate([np.linalg.norm(block, axis=1) for block in _blocks(vectors)])
    count, dimensions = vectors.shape
    return VectorShape(
        vectors=count,
        dimensions=dimensions,
        isoscore=_iso_of(float(np.trace(covariance)), float(np.sum(covariance**2)), dimensions),
        gaussian_isoscore=gaussian_iso_score(count, dimensions),
        mean_cosine=mean_cosine(vectors),
        effective_rank=_effective_rank(eigenvalues),
        norm_mean=float(norms.mean()),
        norm_deviation=float(norms.std()),
    )


def mean_cosine(vectors: NDArray[Any]) -> float:
    """Return the mean cosine over all pairs, each vector with itself too: the squared length of the mean.

    Args:
        vectors: ``(N, d)``; a vector of zeros has cosine 0 with all.
    """
    total = np.zeros(vectors.shape[1])
    for block in _blocks(vectors):
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        total += (block / np.where(lengths > 0, lengths, 1.0)).sum(axis=0)
    mean = total / len(vectors)
    return float(mean @ mean)


def _effective_rank(eigenvalues: Floats) -> float | None:
    """Return the exponential of the entropy of eigenvalues (Roy and Vetterli 2007)."""
    if eigenvalues.sum() <= 0:
        return None
    shares = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def weight_norms(model: torch.nn.Module) -> WeightNorms | None:
    """Return the spectral norms of every linear layer's weights, pooler and language-model head left out.

    Args:
        model: Any; a SentenceTransformer, for one.

    Returns:
        Their figures, or None where there is no linear layer.

    Raises:
        DataError: If a weight is not finite.
    """
    import torch

    norms = []
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and not any(part in name.split(".") for part in _LEFT_OUT):
            weights = layer.weight.detach().float().cpu().numpy()
            if not np.isfinite(weights).all():
                msg = (
                    f"the weights of {name or 'the linear layer'} hold NaN or infinite values: the model is "
                    "damaged, or its dtype too narrow; fetch or train it again, or leave --geometry out"
                )
                raise DataError(msg)
            norms.append(_spectral_norm(weights))
    if not norms:
        return None
    held = np.array(norms)
    return WeightNorms(
        layers=len(norms),
        mean=float(held.mean()),
        largest=float(held.max()),
        smallest=float(held.min()),
        deviation=float(held.std()),
        last=norms[-1],
    )


def _spectral_norm(weights: NDArray[Any]) -> float:
    """Return the largest singular value, of large weights by Lanczos' method, which takes far less time."""
    # Scaled, since that method squares them.
    scale = float(np.abs(weights).max(initial=0.0))
    if scale == 0:
        return 0.0
    scaled = weights / scale
    largest = _by_lanczos(scaled) if min(weights.shape) > _SMALL else None
    return scale * (float(np.linalg.norm(scaled, ord=2)) if largest is None else largest)


def _by_lanczos(weights: NDArray[Any]) -> float | None:
    """Return the largest singular value, or None where the method finds none."""
    from scipy.sparse.linalg import ArpackError, svds  # type: ignore[import-untyped]

    start = np.random.default_rng(0).standard_normal(min(weights.shape))
    try:
        return float(svds(weights, k=1, v0=start, return_singular_vectors=False)[0])
    except ArpackError:
        return None


def with_vectors(metas: Sequence[ModelMeta]) -> list[ModelMeta]:
    """Return the models whose vectors have a geometry: those with one dense vector a text.

    Args:
        metas: Those that were named together; BM25, say, has none.

    Raises:
        ReasonEmbedError: If no model is left.
    """
    found = [meta for meta in metas if list(meta.model_type or ()) == ["dense"]]
    if not found:
        named = ", ".join(str(meta.name) for meta in metas)
        msg = (
            f"--geometry is for models with one dense vector a text, and none of {named} is one; leave it out"
        )
        raise ReasonEmbedError(msg)
    return found


def measure_geometry(
    meta: ModelMeta,
    tasks: Sequence[AbsTask],
    store: Path,
    *,
    most: int = VECTORS,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> list[Geometry]:
    """Measure a dense model's vectors of each task's documents, from the store where they are there.

    Args:
        meta: The model.
        tasks: Retrieval tasks; each is loaded on a copy.
        store: Folder of the embedding store.
        most: Documents drawn of a larger corpus, without replacement.
        seed: Of the draw.
        device: Where to encode; None lets torch choose.
        progress: Show progress bars.

    Raises:
        DataError: If the model gives no dense vectors, or a task has too few documents.
    """
    import torch

    from reasonembed_mteb.evaluation.resolving import model_labels
    from reasonembed_mteb.evaluation.variants import innermost, load_variant, speed_up, with_store
    from reasonembed_mteb.store.encoder import StoredEncoder

    model = load_variant(meta, device=device)
    speed_up(model, batch_tokens=None, attn="auto", compile_layers="auto")
    stored = with_store(model, store, "auto")
    if not isinstance(stored, StoredEncoder):
        msg = f"{meta.name} gives no dense vectors, whose geometry could be measured; leave --geometry out"
        raise DataError(msg)
    inner = getattr(innermost(stored), "model", None)
    weights = weight_norms(inner) if isinstance(inner, torch.nn.Module) else None
    (label,) = model_labels([stored.mteb_model_meta])
    revision = stored.mteb_model_meta.revision
    found = []
    for task in tasks:
        vectors = _document_vectors(stored, task, most, seed, progress)
        shape = vector_shape(vectors)
        found.append(Geometry(label, revision, task.metadata.name, seed, shape, weights))
    return found


def _document_vectors(stored: Any, task: Any, most: int, seed: int, progress: bool) -> NDArray[Any]:  # noqa: ANN401
    """Return the vectors of a task's documents, drawn evenly from all where there are more than `most`."""
    from datasets import concatenate_datasets
    from mteb.types import PromptType

    from reasonembed_mteb.evaluation.limits import asked_as, own_copy
    from reasonembed_mteb.retrieval.lengths import capped_length, protocol_length
    from reasonembed_mteb.retrieval.search import document_loader

    own = own_copy(task)
    own.load_data()
    own.convert_v1_dataset_format_to_v2(num_proc=None)
    parts = [own.dataset[subset][split]["corpus"] for subset in own.hf_subsets for split in own.eval_splits]
    corpus = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    if len(corpus) > most:
        drawn = np.random.default_rng(seed).choice(len(corpus), most, replace=False)
        corpus = corpus.select(np.sort(drawn))
    kwargs: dict[str, Any] = {"show_progress_bar": progress}
    # As the search encodes them, so that these are the vectors that were searched.
    with capped_length(stored, protocol_length(own)):
        encoded = stored.encode(
            document_loader(corpus, encode_kwargs=kwargs),
            task_metadata=asked_as(own),
            hf_split=own.eval_splits[0],
            hf_subset=own.hf_subsets[0],
            prompt_type=PromptType.document,
            **kwargs,
        )
    return np.asarray(encoded.float().cpu().numpy())
