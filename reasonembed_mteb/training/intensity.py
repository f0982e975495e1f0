"""Redapter's arithmetic: the loss of each query, its reasoning intensity (RI) and its weight.

Plain functions of tensors, without a model and without devices. Symbols: ``B`` queries of this device, ``N``
queries of the global batch, ``C`` candidates, ``D`` dimensions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from sentence_transformers.util import cos_sim
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

# Keeps RI finite where the reasoning query's own loss is zero (the authors' training code).
EPSILON = 1e-6


def query_losses(
    queries: Tensor, candidates: Tensor, targets: Tensor, temperature: float, hidden: Tensor | None = None
) -> Tensor:
    """Compute InfoNCE of each query over all candidates.

    Args:
        queries: ``(B, D)``, any length: they are normalised here.
        candidates: ``(C, D)``, likewise.
        targets: ``(B,)`` int64, the column of each query's positive.
        temperature: What the cosines are divided by.
        hidden: ``(B, C)`` bool, candidates that do not count for a query; none if absent.

    Returns:
        ``(B,)``, in float32 or wider.
    """
    scores = cos_sim(queries, candidates) / temperature
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return functional.cross_entropy(scores, targets, reduction="none")


def intensities(losses: Tensor, reasoning_losses: Tensor) -> Tensor:
    """Compute RI before its clamp: how much easier the reasoning query finds the positive.

    Args:
        losses: ``(N,)``, L(q).
        reasoning_losses: ``(N,)``, L(q').

    Returns:
        ``(N,)``, not negative.
    """
    return losses / (reasoning_losses + EPSILON)


def row_weights(intensity: Tensor, known: Tensor, *, normalize: bool) -> Tensor:
    """Turn clamped intensities into weights of the global batch.

    Args:
        intensity: ``(N,)``; what stands where ``known`` is false does not matter.
        known: ``(N,)`` bool, rows that have a reasoning query. The others weigh the mean of these.
        normalize: Whether the weights sum to 1. Where every intensity is zero they are uniform then.

    Returns:
        ``(N,)``; ``1 / N`` each where no row is known.
    """
    uniform = torch.full_like(intensity, 1 / len(intensity))
    kept = torch.where(known, intensity, torch.zeros_like(intensity))
    filled = torch.where(known, intensity, kept.sum() / known.sum().clamp(min=1))
    if normalize:
        total = filled.sum()
        # Every query at zero loss leaves 0 / 0; there is nothing to learn from them, whatever they weigh.
        filled = torch.where(total == 0, uniform, filled / torch.where(total == 0, 1, total))
    return torch.where(known.any(), filled, uniform)


def intensity_metrics(raw: Tensor, reasoning_losses: Tensor, known: Tensor, cap: float) -> dict[str, Tensor]:
    """Describe the reasoning intensities of a batch, over the rows that have one.

    Args:
        raw: ``(N,)``, RI before the clamp.
        reasoning_losses: ``(N,)``, L(q').
        known: ``(N,)`` bool.
        cap: The clamp's upper end.

    Returns:
        Scalars by name, NaN where no row has an intensity: the keys are the same at every step and on every
        device, as loggers that gather need.
    """
    raw, reasoning_losses = raw[known], reasoning_losses[known]
    if not len(raw):
        nothing = torch.full((), math.nan, dtype=raw.dtype, device=raw.device)
        names = ("loss_reasoning", "ri_min", "ri_mean", "ri_median", "ri_max", "ri_clipped")
        return dict.fromkeys(names, nothing)
    clamped = raw.clamp(0, cap)
    return {
        "loss_reasoning": reasoning_losses.mean(),
        "ri_min": clamped.min(),
        "ri_mean": clamped.mean(),
        "ri_median": clamped.quantile(0.5),
        "ri_max": clamped.max(),
        "ri_clipped": (raw > cap).to(raw.dtype).mean(),
    }
