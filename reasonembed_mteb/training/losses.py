"""Redapter's loss: InfoNCE of each query, weighted by its reasoning intensity (RI).

First the arithmetic, plain functions of tensors without a model and without devices; then the loss over a
model's embeddings, gathered from all devices. Symbols: ``B`` queries of this device, ``N``
queries of the global batch, ``C`` candidates, ``D`` dimensions.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.util import cos_sim
from torch import Tensor, nn
from torch.nn import functional

from reasonembed_mteb.training.caller import check_trainer, find_caller
from reasonembed_mteb.training.columns import LossError, Roles, roles_by_name, roles_by_place
from reasonembed_mteb.training.devices import Devices, autocast_like_now, device_type
from reasonembed_mteb.training.features import Columns, Extras, check_rows, split_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

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


_CITATION = """
@article{chen2025reasonembed,
    title={ReasonEmbed: Enhanced Text Embeddings for Reasoning-Intensive Document Retrieval},
    author={Chen, Jianlyu and Lan, Junwei and Li, Chaofan and Lian, Defu and Liu, Zheng},
    journal={arXiv preprint arXiv:2510.08252},
    year={2025}
}
"""


class RedapterLoss(nn.Module):
    """InfoNCE over in-batch and hard negatives, weighted by reasoning intensity.

    Before ``start_step`` the loss is the plain mean of InfoNCE and reasoning queries are not encoded; from it
    on every query weighs its share of the reasoning intensity (RI) of the batch: a query that is hard as it
    stands and easy once its reasoning is written out counts most. The step is that of the
    `SentenceTransformerTrainer` that calls the loss, alone, in another loss or as one of several. Elsewhere
    :class:`RedapterCallback` tells it, or ``loss.global_step`` is set before each step; a loss whose step
    nobody tells says so once. Evaluation (a model in evaluation mode, without gradients) always returns
    the plain mean, so that its curve does not jump at ``start_step``.

    After each call ``loss.metrics`` holds detached scalars under the same keys every time: ``loss``,
    ``loss_unweighted``, ``loss_reasoning``, ``ri_min``, ``ri_mean``, ``ri_median``, ``ri_max`` (after the
    clamp), ``ri_clipped`` (the share of rows above it), ``rows_without_reasoning`` and ``documents_masked``
    (a query). Those of RI are NaN where the batch has none. With ``gather_across_devices`` they describe the
    global batch.

    A trainer's columns are known by their names, in any order: the reasoning query is ``reasoning_query``
    and nothing else, and names that leave open which column is what are refused. A data set without that
    column is trained with plain InfoNCE, which is said once. One that has reasoning queries for some rows
    only marks them; see :mod:`reasonembed_mteb.training.features` for the extra keys of a collator.
    Columns given by hand have no names, and the order of the table below.

    Args:
        model: Any SentenceTransformer.
        temperature: What the cosines are divided by; the inverse of ``scale`` elsewhere. The paper's is 0.02.
        max_intensity: Upper end of RI's clamp, the paper's kappa, 5; ``math.inf`` for none.
        start_step: First weighted step; the paper's is 100. None is plain InfoNCE throughout: a column named
            ``reasoning_query`` is left out then, and without names documents start at the second.
        normalize_weights: Whether the weights of a batch sum to 1. False: the loss is the sum of RI * L, as
            the authors' code offers.
        gather_across_devices: Whether candidates and the sum of RI are those of all devices. The loss of a
            device is then its queries' part times the number of devices, so that the average that
            DistributedDataParallel takes is the joined batch's own loss and gradient; every device needs a
            batch of the same shape. False: each device is a batch of its own, and their losses are averaged.
        mask_false_negatives: Whether documents of other groups that equal one of a query's positives are left
            out of its candidates. Needs ``document_ids``. The paper does not mask.

    Raises:
        LossError: If a setting is out of range. It is a ReasonEmbedError and a ValueError.

    Requirements:
        1. One reasoning query a row, under the same instruction as the query, or rows marked to have none.
        2. The same number of documents for every query of a batch, the positive first.

    Inputs:
        +------------------------------------------------------------------------+--------+
        | Inputs                                                                 | Labels |
        +========================================================================+========+
        | (query, reasoning_query, positive, negative_1, ..., negative_n)        | none   |
        +------------------------------------------------------------------------+--------+
        | (query, reasoning_query, documents), packed: B * G rows, row-major     | none   |
        +------------------------------------------------------------------------+--------+
        | (query, documents), plain InfoNCE: B or B * G documents                | none   |
        +------------------------------------------------------------------------+--------+
        | (query, positive, negative, ...) by name, plain InfoNCE                | none   |
        +------------------------------------------------------------------------+--------+
        | (query, positive, negative_1, ..., negative_n) with start_step=None    | none   |
        +------------------------------------------------------------------------+--------+

    Recommendations:
        - Keep queries that share a positive out of one batch, or give ``document_ids`` and mask.
        - Under gradient accumulation every micro-batch has its own sum of RI: prefer
          :class:`CachedRedapterLoss`, which weighs the whole batch at little memory.

    Relations:
        - :class:`CachedRedapterLoss` is the same loss and gradient, with the memory of a mini-batch.
        - With equal weights it is ``MultipleNegativesRankingLoss(scale=1 / temperature)``.

    Example:
        ::

            from datasets import Dataset
            from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
            from reasonembed_mteb.training import RedapterLoss

            model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
            train_dataset = Dataset.from_dict({
                "query": ["Why is the sky blue?", "Why do leaves fall?"],
                "reasoning_query": ["Why is the sky blue? Air scatters short waves more.",
                                    "Why do leaves fall? Trees save water in winter."],
                "positive": ["Rayleigh scattering ...", "Abscission ..."],
                "negative": ["The sky at night ...", "Leaf shapes ..."],
            })
            loss = RedapterLoss(model)
            SentenceTransformerTrainer(model=model, train_dataset=train_dataset, loss=loss).train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.02,
        max_intensity: float = 5.0,
        start_step: int | None = 100,
        normalize_weights: bool = True,
        gather_across_devices: bool = False,
        mask_false_negatives: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            msg = f"temperature={temperature}; allowed is a number above 0, the paper's being 0.02"
            raise LossError(msg)
        if not max_intensity > 0:
            msg = f"max_intensity={max_intensity}; allowed is a number above 0, or math.inf for no clamp"
            raise LossError(msg)
        if start_step is not None and start_step < 0:
            msg = f"start_step={start_step}; allowed is 0 or more, or None for plain InfoNCE throughout"
            raise LossError(msg)
        self.model = model
        self.temperature = temperature
        self.max_intensity = max_intensity
        self.start_step = start_step
        self.normalize_weights = normalize_weights
        self.gather_across_devices = gather_across_devices
        self.mask_false_negatives = mask_false_negatives
        self.metrics: dict[str, Tensor] = {}
        self._found_step = 0
        self._told_step: int | None = None
        self._calls_since_told = 0
        self._said: set[str] = set()

    @property
    def global_step(self) -> int:
        """The optimiser steps made: as was told by setting it, else those of the trainer that calls."""
        return self._found_step if self._told_step is None else self._told_step

    @global_step.setter
    def global_step(self, step: int) -> None:
        self._told_step = step
        self._calls_since_told = 0

    @property
    def weighted(self) -> bool:
        """Whether the next call weighs its queries, and so encodes the reasoning queries."""
        # The loss itself stays in training mode while a trainer evaluates.
        evaluating = not (torch.is_grad_enabled() or self.model.training)
        return self.start_step is not None and self.global_step >= self.start_step and not evaluating

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """Embed a batch and compute its loss.

        Args:
            sentence_features: The columns; see Inputs.
            labels: Not used.

        Returns:
            A scalar.

        Raises:
            LossError: If the columns do not fit together.
        """
        columns = self._columns(sentence_features)
        reasoning = None
        # First, as in the cached loss, so that both draw the same dropout masks where one mini-batch is all.
        if columns.reasoning is not None and self.weighted:
            with torch.no_grad(), autocast_like_now(device_type(columns.reasoning)):
                reasoning = self.model(columns.reasoning)["sentence_embedding"]
        query, *documents = embed_columns(self.model, [columns.query, *columns.documents])
        columns.hand_back()
        return self._loss_of(
            query, reasoning, documents, columns.extras, has_column=columns.reasoning is not None
        )

    def _columns(self, sentence_features: Iterable[dict[str, Any]]) -> Columns:
        """Take a batch apart by the names that its trainer has for the columns, else by their places."""
        given = list(sentence_features)
        caller = find_caller()
        names = None if caller is None else caller.names(given)
        return split_columns(given, self._roles(len(given), names))

    def _roles(self, columns: int, names: Sequence[str] | None) -> Roles:
        caller, wanted = find_caller(), self.start_step is not None
        if caller is not None:
            self._found_step = caller.step
            check_trainer(caller.trainer, self)
            self._note_short_training(caller.trainer.state.max_steps)
        else:
            self._note_untold_call()
        if names is None:
            return roles_by_place(columns, reasoning=wanted)
        roles = roles_by_name(names, reasoning=wanted)
        if wanted and roles.reasoning is None:
            self._say_once(
                "no column is named reasoning_query among (%s): such rows are trained with plain InfoNCE",
                ", ".join(names),
            )
        return roles

    def _note_short_training(self, steps: int) -> None:
        # A step that is told need not be one of this training.
        if self.start_step is not None and self._told_step is None and 0 < steps <= self.start_step:
            self._say_once(
                "weights begin at step %d and the training has %d: it is plain InfoNCE throughout; give a "
                "smaller start_step",
                self.start_step,
                steps,
            )

    def _note_untold_call(self) -> None:
        """Say once that the step stands still while somebody trains, so that nothing will ever weigh."""
        if self.start_step is None or not (torch.is_grad_enabled() and self.model.training):
            return
        self._calls_since_told += 1
        if self.global_step < self.start_step < self._calls_since_told:
            self._say_once(
                "%d batches were trained on since the step, %d, was last told, and weights begin at step "
                "%d: set loss.global_step before each step, or give the trainer RedapterCallback(loss)",
                self._calls_since_told,
                self.global_step,
                self.start_step,
            )

    def _say_once(self, message: str, *values: object) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message, *values)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None, extras: Extras | None = None
    ) -> Tensor:
        """Compute the loss of embedded columns.

        Args:
            embeddings: One tensor a column, in the order of the columns: ``(B, D)``, or ``(B * n, D)`` for
                packed documents.
            labels: Not used.
            extras: What a collator says beside the texts; where a trainer is calling, that is known.

        Returns:
            A scalar.

        Raises:
            LossError: If the columns do not fit together.
        """
        caller = find_caller()
        given = [] if caller is None else caller.features()
        names = caller.names(given) if caller is not None and len(given) == len(embeddings) else None
        roles = self._roles(len(embeddings), names)
        if extras is None:
            extras = Extras() if names is None else split_columns(given, roles).extras
        wanted = roles.reasoning is not None and self.weighted
        reasoning = embeddings[roles.reasoning] if roles.reasoning is not None and wanted else None
        documents = [embeddings[place] for place in roles.documents]
        return self._loss_of(
            embeddings[roles.query], reasoning, documents, extras, has_column=roles.reasoning is not None
        )

    def _loss_of(
        self,
        query: Tensor,
        reasoning: Tensor | None,
        documents: list[Tensor],
        extras: Extras,
        *,
        has_column: bool,
    ) -> Tensor:
        """Compute the loss of embeddings by their role; ``has_column``: the batch has reasoning queries."""
        check_rows(query, reasoning, documents, extras)
        batch = len(query)
        # Mixed precision would round the scores, which the temperature magnifies 50 times.
        with torch.autocast(query.device.type, enabled=False):
            groups = torch.cat([column.reshape(batch, -1, column.shape[-1]) for column in documents], dim=1)
            devices = Devices.present(gather=self.gather_across_devices)
            devices.check_alike(
                query.device,
                queries=batch,
                documents_a_query=groups.shape[1],
                dimensions=groups.shape[2],
                weighted=int(reasoning is not None),
            )
            candidates = devices.rows(groups, with_grad=True).flatten(0, 1)
            first = devices.rank * batch
            targets = torch.arange(first, first + batch, device=query.device) * groups.shape[1]
            hidden = self._false_negatives(extras, targets, groups.shape[1], devices)
            losses = query_losses(query, candidates, targets, self.temperature, hidden)
            with torch.no_grad():
                easier = None
                if reasoning is not None:
                    # A loss around this one, such as MatryoshkaLoss, may have cut the others shorter.
                    reasoning = reasoning[:, : query.shape[1]]
                    easier = query_losses(reasoning, candidates, targets, self.temperature, hidden)
                known = _known_rows(extras, losses, has_column=has_column)
                weights = self._weights(losses, easier, known, hidden, devices)
            return (weights * losses).sum() * devices.world

    def _weights(
        self, losses: Tensor, easier: Tensor | None, known: Tensor, hidden: Tensor | None, devices: Devices
    ) -> Tensor:
        """Weigh this device's ``(B,)`` rows within the global batch, and note the metrics."""
        nothing = torch.full_like(losses, math.nan)
        masked = torch.zeros_like(losses) if hidden is None else hidden.sum(dim=1).to(losses.dtype)
        mine = [losses, nothing if easier is None else easier, known.to(losses.dtype), masked]
        losses, reasoning_losses, flags, masked = devices.rows(torch.stack(mine, dim=1)).unbind(dim=1)
        known = flags.bool()
        usable = known & (easier is not None)
        raw = intensities(losses, reasoning_losses)
        weights = row_weights(raw.clamp(0, self.max_intensity), usable, normalize=self.normalize_weights)
        self.metrics = {
            "loss": (weights * losses).sum(),
            "loss_unweighted": losses.mean(),
            **intensity_metrics(raw, reasoning_losses, usable, self.max_intensity),
            "rows_without_reasoning": (~known).sum().to(losses.dtype),
            "documents_masked": masked.mean(),
        }
        return devices.own(weights)

    def _false_negatives(
        self, extras: Extras, targets: Tensor, group: int, devices: Devices
    ) -> Tensor | None:
        """Mark, as ``(B, C)`` bool, documents of other groups that equal a positive of the query."""
        if not self.mask_false_negatives:
            return None
        if extras.document_ids is None:
            msg = (
                "mask_false_negatives=True, but the document columns hold no 'document_ids': "
                "let the collator add them, or turn the mask off"
            )
            raise LossError(msg)
        batch = len(targets)
        own = torch.cat([ids.reshape(batch, -1) for ids in extras.document_ids], dim=1)
        positives = own[:, :1]
        if extras.positive_ids is not None:
            positives = torch.cat([positives, extras.positive_ids], dim=1)
        ids = devices.rows(own).flatten()
        equal = (ids[None, :, None] == positives[:, None, :]).any(dim=2)
        other_group = torch.arange(len(ids), device=ids.device)[None] // group != targets[:, None] // group
        return equal & other_group

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings, for the model card."""
        return {
            "temperature": self.temperature,
            "max_intensity": self.max_intensity,
            "start_step": self.start_step,
            "normalize_weights": self.normalize_weights,
            "gather_across_devices": self.gather_across_devices,
            "mask_false_negatives": self.mask_false_negatives,
        }

    @property
    def citation(self) -> str:
        """The paper, as BibTeX, for the model card."""
        return _CITATION


def _known_rows(extras: Extras, losses: Tensor, *, has_column: bool) -> Tensor:
    """Mark, as ``(B,)`` bool, the rows that have a reasoning query."""
    if has_column and extras.has_reasoning is not None:
        return extras.has_reasoning.to(losses.device, torch.bool)
    return torch.full(losses.shape, has_column, dtype=torch.bool, device=losses.device)
