"""Encoding by an engine: read and cut by the model's own tokenizer, computed elsewhere, checked here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.base.modules import Normalize
from sentence_transformers.util import truncate_embeddings
from tqdm import tqdm

from reasonembed_mteb.encoding.engines.engine import EngineError, to_rows
from reasonembed_mteb.encoding.output import EncodingStats, TextsError
from reasonembed_mteb.encoding.tokenizing import Tokenizing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from reasonembed_mteb.encoding.engines.engine import Engine, TokenizedText

# Texts handed to an engine at a time: enough to keep it busy, few enough for one list of vectors.
_WINDOW = 8192


def normalizes(model: SentenceTransformer) -> bool:
    """Return whether a model gives vectors of unit length.

    Args:
        model: Loaded, with weights or without.
    """
    return isinstance(model[-1], Normalize)


def full_dimension(model: SentenceTransformer) -> int:
    """Return the dimension of a model's vectors before they are truncated.

    Args:
        model: Loaded, with weights or without.
    """
    with model.truncate_embeddings(None):
        return int(model.get_embedding_dimension() or 0)


def encode_by_engine(
    model: SentenceTransformer,
    engine: Engine,
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    normalize_embeddings: bool = False,
    truncate_dim: int | None = None,
    show_progress_bar: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, NDArray[np.int32], EncodingStats]:
    """Encode texts as the model would, by another engine.

    Args:
        model: Its tokenizer, length, normalisation and dimension count.
        engine: Computes the vectors.
        texts: At least one.
        prompt: Put before each text.
        normalize_embeddings: Give vectors unit length, whatever the model does.
        truncate_dim: Dimensions to keep.
        show_progress_bar: Whether a bar is shown.
        **kwargs: What encode hands on to the tokenizer, such as ``task``.

    Returns:
        Vectors ``(N, dim)``, float32 on the CPU, zeros for a text without any token; the texts' token counts
        ``(N,)`` before they were cut; figures.

    Raises:
        TextsError: If some texts get no vector, or one that is not finite.
        ReasonEmbedError: If the engine cannot be used, or gives vectors of another dimension.
    """
    tokenize = Tokenizing(model[0], prompt, **kwargs)  # type: ignore[arg-type]
    vectors = np.zeros((len(texts), full_dimension(model)), dtype=np.float32)
    counts = np.zeros(len(texts), dtype=np.int32)
    stats = EncodingStats(texts=len(texts))
    with tqdm(total=len(texts), desc="Texts", disable=not show_progress_bar) as bar:
        for start in range(0, len(texts), _WINDOW):
            part = list(texts[start : start + _WINDOW])
            read = tokenize(part)
            rows = to_rows([(prompt or "") + text for text in part], read)
            counts[start : start + len(part)] = read.full
            _fill(vectors[start : start + len(part)], engine, rows, start)
            stats.tokens += sum(len(row.ids) for row in rows)
            stats.truncated += int((read.full > tokenize.limit).sum())
            stats.batches += 1
            bar.update(len(part))
    found = torch.from_numpy(vectors)
    if normalizes(model):
        found = torch.nn.functional.normalize(found, p=2, dim=1)
    if truncate_dim is not None:
        found = truncate_embeddings(found, truncate_dim)
    if normalize_embeddings:
        found = torch.nn.functional.normalize(found, p=2, dim=1)
    return found, counts, stats


def _fill(out: NDArray[np.float32], engine: Engine, rows: Sequence[TokenizedText], start: int) -> None:
    """Fill in the vectors of texts; a text without any token keeps zeros, as the model itself gives it."""
    filled = [place for place, row in enumerate(rows) if len(row.ids)]
    if not filled:
        return
    try:
        found = engine.embed([rows[place] for place in filled])
    except TextsError as error:
        raise TextsError([start + filled[place] for place in error.positions], error.what) from error
    if found.shape != (len(filled), out.shape[1]):
        msg = (
            f"the engine gives {found.shape[0]} vectors of {found.shape[1]} dimensions for {len(filled)} "
            f"texts, and the model's have {out.shape[1]}: it serves another model"
        )
        raise EngineError(msg)
    broken = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(broken):
        named = [start + filled[place] for place in broken]
        raise TextsError(
            named, "have vectors that are NaN or infinite: serve the model in bfloat16 or float32"
        )
    empty = np.flatnonzero(~found.any(axis=1))
    if len(empty):
        raise TextsError([start + filled[place] for place in empty], "have vectors that are zero")
    out[filled] = found
