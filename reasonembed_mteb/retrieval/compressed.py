"""MTEB's compressed vectors, with one range of values for the whole corpus.

`CompressionWrapper` takes each dimension's range from the vectors of one call, so that chunks of a corpus
would be compressed each by a range of its own and their scores could not be compared.
"""

from __future__ import annotations

import tempfile
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mteb.types import PromptType
    from torch import Tensor

# MTEB warns below as many vectors; our chunks are often smaller, the corpus is what counts.
_UNSTABLE = "Estimating quantization parameters"


class _Given:
    """An encoder that gives back what it is told to."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - mteb's EncoderProtocol
        # The wrapper writes into its model's metadata, and warns about types that the model has itself.
        self.mteb_model_meta = model.mteb_model_meta.model_copy(update={"output_dtypes": None})
        self.vectors: Tensor = torch.empty(0)

    def encode(self, inputs: Any, **_: Any) -> Tensor:  # noqa: ANN401
        del inputs
        return self.vectors


def needs_range(model: Any) -> bool:  # noqa: ANN401 - mteb's EncoderProtocol
    """Whether a model is MTEB's `CompressionWrapper` to integers, which need each dimension's range."""
    from mteb.models import CompressionWrapper
    from mteb.types import OutputDType

    integers = (OutputDType.INT8, OutputDType.UINT8, OutputDType.INT4, OutputDType.UINT4)
    if not isinstance(model, CompressionWrapper) or model.mteb_model_meta is None:
        return False
    stored: Any = model.mteb_model_meta.output_dtypes
    return stored[0] in integers


def compress_chunks(
    wrapper: Any,  # noqa: ANN401 - mteb's CompressionWrapper, whose types are narrower than its use
    chunks: Iterable[Tensor],
    kind: PromptType,
    **kwargs: Any,
) -> Iterator[Tensor]:
    """Compress a corpus chunk by chunk, by the range of all of it.

    The uncompressed vectors wait on disk, since the range is known only at the end.

    Args:
        wrapper: MTEB's `CompressionWrapper`.
        chunks: Uncompressed vectors ``(C, dim)``.
        kind: MTEB's prompt type.
        **kwargs: What MTEB hands to encode: the task's metadata, split and subset.

    Yields:
        Compressed vectors ``(C, dim)``, in the order given.
    """
    with tempfile.TemporaryFile() as spill:
        sizes = []
        ends = torch.empty(0)
        for chunk in chunks:
            full = chunk.float()
            every = torch.cat([ends, full]) if len(ends) else full
            ends = torch.stack([every.amin(0), every.amax(0)])
            sizes.append(tuple(full.shape))
            spill.write(full.contiguous().numpy().data)
        spill.seek(0)
        for rows, dim in sizes:
            content = np.frombuffer(spill.read(rows * dim * 4), dtype=np.float32).reshape(rows, dim)
            yield _compress(wrapper, ends, torch.from_numpy(content.copy()), kind, **kwargs)


def _compress(
    wrapper: Any,  # noqa: ANN401
    ends: Tensor,
    vectors: Tensor,
    kind: PromptType,
    **kwargs: Any,
) -> Tensor:
    given = _Given(wrapper.model)
    # Two rows that hold the corpus' range go first, and are dropped again.
    given.vectors = torch.cat([ends, vectors])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_UNSTABLE)
        compress = type(wrapper)(given, wrapper.mteb_model_meta.output_dtypes[0])
        encoded = compress.encode([], prompt_type=kind, **kwargs)
    return torch.as_tensor(encoded)[len(ends) :]
