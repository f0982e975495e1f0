"""When a run has diverged: losses, gradients and weights that are not finite, and what to do about it."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training.sharding import own_share

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

logger = logging.getLogger(__name__)

_ADVICE = (
    "Nothing of it was saved; checkpoints from before are kept, and --resume goes on from the last. Start "
    "again in another folder with {settings}; if the first step fails, look at the model it starts from and "
    "at the rows"
)
# What a recipe has to make a training calmer.
_SETTINGS = "a lower training.learning_rate, a longer training.warmup or a smaller training.max_grad_norm"


class DivergedError(ReasonEmbedError):
    """A training whose losses, gradients or weights are no longer finite."""


class DivergenceGuard:
    """Watches the steps of a run: one that is not finite is left out, too many in a row end the run.

    Args:
        retries: Steps in a row that may be left out.
        settings: What to start again with after a run that diverged, by its own options' names.
    """

    def __init__(self, retries: int = 3, settings: str = _SETTINGS) -> None:
        self.retries = retries
        self.settings = settings
        self.left_out = 0
        self._in_a_row = 0
        self._loss, self._norm, self._subset = 0.0, 0.0, ""

    def see_loss(self, loss: float, subset: str = "") -> None:
        """Note a batch's loss; of an accumulated step, one that is not finite counts.

        Args:
            loss: Mean over the batch; may be NaN or infinite.
            subset: Where its rows are from.
        """
        if math.isfinite(self._loss):
            self._loss, self._subset = loss, subset

    def see_norm(self, norm: float) -> None:
        """Note the norm of a step's gradient, before it is clipped.

        Args:
            norm: Of all trained weights together; may be NaN or infinite.
        """
        self._norm = norm

    def is_bad(self, scaler: Any = None) -> bool:  # noqa: ANN401 - a GradScaler
        """Say whether the step at hand is not finite.

        Args:
            scaler: What scales losses in fp16. It leaves steps out whose scaled gradients overflow, and tries
                a smaller scale; this is no divergence before there is nothing left to make smaller.
        """
        overflow = scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1
        return not (math.isfinite(self._loss) and (overflow or math.isfinite(self._norm)))

    def end_step(self, step: int, *, bad: bool) -> None:
        """Count the step at hand.

        Args:
            step: Its number.
            bad: Whether it is left out, on whichever process it was not finite.

        Raises:
            DivergedError: If more in a row were left out than may be.
        """
        said = f"loss {self._loss:g}, gradient {self._norm:g}, subset {self._subset or 'unknown'}"
        self._loss, self._norm, self._subset = 0.0, 0.0, ""
        if not bad:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.left_out += 1
        if self._in_a_row > self.retries:
            msg = (
                f"the training diverged: step {step} is not finite ({said}), after {self.retries} retries "
                f"in a row. {_ADVICE.format(settings=self.settings)}"
            )
            raise DivergedError(msg)
        logger.warning(
            "step %d is not finite (%s): it is left out, %d of at most %d in a row",
            step, said, self._in_a_row, self.retries,
        )  # fmt: skip


def check_weights(
    model: nn.Module, step: int, anywhere: Callable[[bool], bool] = bool, settings: str = _SETTINGS
) -> None:
    """Refuse weights that are not finite: a checkpoint of them would push a good one out.

    Args:
        model: The model, or this process' share of it.
        step: Steps made.
        anywhere: Says whether something holds on any process, where each has a share.
        settings: See `DivergenceGuard`.

    Raises:
        DivergedError: If a trained weight is not finite.
    """
    import torch

    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    broken = next((name for name, weight in trained if not torch.isfinite(own_share(weight)).all()), None)
    if anywhere(broken is not None):
        named = broken or "of another process' share"
        advice = _ADVICE.format(settings=settings)
        msg = f"the training diverged: after step {step} the weight {named} is not finite. {advice}"
        raise DivergedError(msg)
