"""The published checkpoints, as data: names, sizes and scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint: arXiv 2510.08252, Tables 2 and 3, and its model card.

    Attributes:
        name: Hub name.
        backbone: The language model that it was trained from.
        embed_dim: Length of a vector.
        loss: ``RI-InfoNCE`` (Redapter) or ``InfoNCE``.
        bright: Published mean nDCG@10 on BRIGHT, in percent.
        r2med: Published mean nDCG@10 on R2MED, in percent.
    """

    name: str
    backbone: str
    embed_dim: int
    loss: str
    bright: float
    r2med: float


_QWEN_8B, _QWEN_4B, _LLAMA_8B = "Qwen/Qwen3-8B", "Qwen/Qwen3-4B", "meta-llama/Llama-3.1-8B"
CHECKPOINTS = (
    Checkpoint("hanhainebula/reason-embed-qwen3-8b-0928", _QWEN_8B, 4096, "RI-InfoNCE", 38.1, 43.18),
    Checkpoint("hanhainebula/reason-embed-qwen3-4b-0928", _QWEN_4B, 2560, "RI-InfoNCE", 37.1, 41.16),
    Checkpoint("hanhainebula/reason-embed-llama-3.1-8b-0928", _LLAMA_8B, 4096, "RI-InfoNCE", 36.2, 42.76),
    Checkpoint("hanhainebula/reason-embed-basic-qwen3-8b-0928", _QWEN_8B, 4096, "InfoNCE", 37.1, 42.36),
    Checkpoint("hanhainebula/reason-embed-basic-qwen3-4b-0928", _QWEN_4B, 2560, "InfoNCE", 35.3, 39.94),
    Checkpoint("hanhainebula/reason-embed-basic-llama-3.1-8b-0928", _LLAMA_8B, 4096, "InfoNCE", 34.9, 41.98),
)
