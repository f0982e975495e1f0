"""Learning from graded labels beside Redapter's loss: a divergence over each query's own documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.util import pairwise_cos_sim
from torch.nn import functional

from reasonembed_mteb.training.cached import CachedRedapterLoss
from reasonembed_mteb.training.columns import LossError
from reasonembed_mteb.training.devices import Devices
from reasonembed_mteb.training.features import GRADES, Extras
from reasonembed_mteb.training.losses import RedapterLoss

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


def grade_divergences(scores: Tensor, grades: Tensor, temperature: float) -> Tensor:
    """Compute the Kullback-Leibler divergence of the model's distribution from that of the grades.

    Args:
        scores: ``(B, G)``, cosines of each query and its own documents, divided by the loss's temperature.
        grades: ``(B, G)``, their grades, such as 1 to 5.
        temperature: What the grades are divided by before their softmax.

    Returns:
        ``(B,)``, 0 where a grade of the row is NaN, which stands for unknown.
    """
    known = ~grades.isnan().any(dim=1)
    wanted = functional.log_softmax(grades.nan_to_num() / temperature, dim=1)
    given = functional.log_softmax(scores, dim=1)
    divergences = functional.kl_div(given, wanted, reduction="none", log_target=True).sum(dim=1)
    return torch.where(known, divergences, torch.zeros_like(divergences))


class GradedLossMixin(RedapterLoss):
    """Adds the divergence from graded labels, by weight, to a loss of ours.

    The grades come in the document columns under ``grades``, one for each of their rows. Only a query's own
    documents are compared: those of other queries have no grade for it. Where the loss is taken of
    shortened vectors too (`MatryoshkaLoss`), ``metrics`` are those of the full ones.
    """

    grade_weight = 0.0
    grade_temperature = 1.0
    _grades: list[Tensor] | None = None

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch, its grades included.

        Args:
            sentence_features: The columns; see `RedapterLoss`.
            labels: Not used.

        Returns:
            A scalar.

        Raises:
            LossError: If the columns do not fit together.
        """
        columns = list(sentence_features)
        self._grades = [column[GRADES] for column in columns if GRADES in column] or None
        return super().forward(columns, labels)

    def _loss_of(
        self,
        query: Tensor,
        reasoning: Tensor | None,
        documents: list[Tensor],
        extras: Extras,
        *,
        has_column: bool,
    ) -> Tensor:
        held = self.metrics
        loss = super()._loss_of(query, reasoning, documents, extras, has_column=has_column)
        if self.grade_weight and self._grades is not None:
            loss = loss + self._graded(query, documents, self._grades)
        if held and query.shape[1] < (self.model.get_embedding_dimension() or 0):
            self.metrics = held
        return loss

    def _graded(self, query: Tensor, documents: list[Tensor], given: list[Tensor]) -> Tensor:
        """Compute the weighted mean over the graded rows of all devices, as `_loss_of` scales it."""
        batch = len(query)
        with torch.autocast(query.device.type, enabled=False):
            vectors = torch.cat([column.reshape(batch, -1, column.shape[-1]) for column in documents], dim=1)
            grades = torch.cat([column.reshape(batch, -1) for column in given], dim=1).to(vectors.dtype)
            if grades.shape != vectors.shape[:2]:
                shape = tuple(vectors.shape[:2])
                msg = f"{GRADES} have shape {tuple(grades.shape)}; allowed is {shape}, one for each document"
                raise LossError(msg)
            queries = query[:, None].expand_as(vectors)
            cosines = pairwise_cos_sim(queries.flatten(0, 1), vectors.flatten(0, 1)).reshape(grades.shape)
            rows = grade_divergences(cosines / self.temperature, grades, self.grade_temperature)
            devices = Devices.present(gather=self.gather_across_devices)
            known = devices.rows((~grades.isnan().any(dim=1)).to(rows.dtype)).sum().clamp(min=1)
            divergence = devices.rows(rows.detach()).sum() / known
            self.metrics["loss_grades"] = divergence
            self.metrics["loss"] = self.metrics["loss"] + self.grade_weight * divergence
            return self.grade_weight * rows.sum() / known * devices.world


class GradedRedapterLoss(GradedLossMixin):
    """`RedapterLoss` with graded labels."""


class CachedGradedRedapterLoss(GradedLossMixin, CachedRedapterLoss):
    """`CachedRedapterLoss` with graded labels."""
