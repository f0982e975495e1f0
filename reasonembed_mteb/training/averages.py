"""What a tensor is multiplied by in a merge: its model's weight, or its coefficient on the sphere."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

logger = logging.getLogger(__name__)

METHODS = ("linear", "spherical")
# Steps of the iteration at most, and the change at which it ends.
_STEPS, _ENOUGH = 200, 1e-15
# Angles closer to half a turn than this have no shortest way between them.
_OPPOSITE = 1e-6


def merge_weights(models: int, weights: Sequence[float] | None, method: str) -> list[float]:
    """Return a weight for each model, and say where they do not sum to 1.

    Args:
        models: How many models there are.
        weights: As given; None for equal ones.
        method: One of `METHODS`.

    Returns:
        The weights; on the sphere they are shares, and so made to sum to 1.

    Raises:
        ReasonEmbedError: If there are too few models, or number or value of the weights do not fit.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if models < 2:
        msg = f"a merge takes at least two models, and {models} was given; name another"
        raise ReasonEmbedError(msg)
    given = [1 / models] * models if weights is None else [float(weight) for weight in weights]
    if len(given) != models:
        msg = f"{models} models and {len(given)} weights were given; give one weight for each model"
        raise ReasonEmbedError(msg)
    if not all(map(math.isfinite, given)):
        msg = f"the weights {given} must be finite numbers"
        raise ReasonEmbedError(msg)
    total = math.fsum(given)
    if method == "spherical" and (min(given) < 0 or total <= 0):
        msg = f"the weights {given} must be positive for a spherical merge; --method linear takes any"
        raise ReasonEmbedError(msg)
    if math.isclose(total, 1, rel_tol=1e-6):
        return given
    if method == "spherical":
        shares = [weight / total for weight in given]
        logger.warning("the weights sum to %g; their shares are taken: %s", total, _shown(shares))
        return shares
    logger.warning(
        "the weights sum to %g and are taken as they are: the merged weights are not of the models' size",
        total,
    )
    return given


def _shown(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:.4g}" for weight in weights)


def spherical_coefficients(products: Tensor, weights: Sequence[float]) -> list[float]:
    """Return what each vector is multiplied by for the weighted mean of their directions on the sphere.

    The mean is that of Buss and Fillmore, "Spherical averages" (2001), found in the span of the vectors from
    their inner products alone. Of two vectors it is their spherical linear interpolation (slerp). As usual in
    merging, the coefficients of the directions multiply the vectors themselves.

    Args:
        products: Inner products ``(N, N)``, float64.
        weights: Shares that sum to 1.

    Returns:
        The coefficients; the weights themselves where a vector is zero or two point to opposite sides.
    """
    lengths = products.diagonal().clamp(min=0).sqrt()
    if not bool((lengths > 0).all()):
        return list(weights)
    cosines = (products / torch.outer(lengths, lengths)).clamp(-1, 1)
    if float(cosines.min()) < math.cos(math.pi - _OPPOSITE):
        return list(weights)
    shares = torch.tensor(weights, dtype=torch.float64)
    mean = shares / (shares @ cosines @ shares).sqrt()
    for _ in range(_STEPS):
        angles = (cosines @ mean).clamp(-1, 1)
        turn = angles.arccos()
        # The limit of x / sin x at zero.
        pull = shares * torch.where(turn > 1e-7, turn / turn.sin(), 1.0)
        step = pull - (pull @ angles) * mean
        size = float((step @ cosines @ step).clamp(min=0).sqrt())
        if size < _ENOUGH:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
    found: list[float] = mean.tolist()
    return found
