"""Training on packed texts: one row of tokens a column, each text attending to itself alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer


def pack_texts(model: SentenceTransformer, device: torch.device, *, half: bool) -> None:
    """Have a model tokenise into packed rows and attend by a kernel that takes them.

    sentence-transformers does so by itself where flash-attn is installed and asked for. This gives the same
    rows to the kernels of the encoding room, which need no package.

    Args:
        model: The model, changed in place.
        device: Where it is to be trained.
        half: Whether its forward pass runs in bf16.

    Raises:
        ReasonEmbedError: If the model or the device has no packed path.
    """
    import torch

    from reasonembed_mteb.encoding.packing import can_pack, keep_packed, kernel_for

    transformer: Any = model[0]
    if not can_pack(model):
        kind = getattr(getattr(transformer, "auto_model", None), "config", None)
        msg = (
            f"training.packed: a {getattr(kind, 'model_type', 'model of this kind')} cannot be packed; "
            "set it to false"
        )
        raise ReasonEmbedError(msg)
    kernel = kernel_for(transformer.auto_model.config, device, torch.bfloat16 if half else torch.float32)
    if kernel is None:
        msg = f"training.packed: no packed attention on {device.type} in this precision; set it to false"
        raise ReasonEmbedError(msg)
    keep_packed(transformer, kernel)
