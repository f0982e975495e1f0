"""The joint loss: generation, representation and compression of one row in one forward pass.

``L = w_gen L_gen + w_rep L_rep + w_comp L_comp`` over ``[prompt][x][K latents][y]``. The layout, the weights
and the means are our own.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from reasonembed_mteb.reasoning.heads import load_generator
from reasonembed_mteb.reasoning.latents import find_latents
from reasonembed_mteb.reasoning.masks import (
    COMPRESSION,
    GENERATION,
    KINDS,
    NOTHING,
    attending_jointly,
    check_backbone,
)
from reasonembed_mteb.training.columns import LossError
from reasonembed_mteb.training.devices import Devices
from reasonembed_mteb.training.distillation import (
    CachedGradedRedapterLoss,
    GradedLossMixin,
    GradedRedapterLoss,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from reasonembed_mteb.training.features import Extras

# Predicted tokens whose logits are held at a time: a vocabulary of 150,000 takes 0.6 MB a token in float32.
CHUNK = 1024
# What a laid-out row brings beside its vector: sum and number of its generation and compression losses.
_SUMS = 4


def token_losses(hidden: Tensor, labels: Tensor, head: nn.Module, left_out: Tensor | None = None) -> Tensor:
    """Compute the cross entropy of each predicted token.

    Args:
        hidden: ``(N, D)``, last hidden states of the tokens before.
        labels: ``(N,)`` int64, the tokens to be predicted.
        head: The language-model head, ``(N, D)`` to ``(N, V)``.
        left_out: Ids that are no words, and are left out of the softmax; none if absent.

    Returns:
        ``(N,)``, in float32 or wider.
    """

    def losses_of(hidden: Tensor, labels: Tensor) -> Tensor:
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if left_out is not None:
            logits = logits.index_fill(1, left_out, -math.inf)
        return functional.cross_entropy(logits, labels, reduction="none")

    parts = []
    for some, wanted in zip(torch.split(hidden, CHUNK), torch.split(labels, CHUNK), strict=True):
        # The logits of all tokens together would be larger than the model.
        again = torch.is_grad_enabled() and len(labels) > CHUNK
        parts.append(
            checkpoint(losses_of, some, wanted, use_reentrant=False) if again else losses_of(some, wanted)
        )
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def row_losses(
    hidden: Tensor, labels: Tensor, head: nn.Module, left_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum the cross entropy of each row's predicted tokens.

    Args:
        hidden: ``(B, T, D)``, last hidden states.
        labels: ``(B, T)``, at each token the one that follows it, -100 where none is predicted.
        head: See `token_losses`.
        left_out: Likewise.

    Returns:
        Sums ``(B,)`` and numbers of predicted tokens ``(B,)``, in float32 or wider; 0 for a row without any.
    """
    wanted = labels != NOTHING
    losses = token_losses(hidden[wanted], labels[wanted], head, left_out)
    rows = wanted.nonzero()[:, 0]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    sums = torch.zeros(len(labels), dtype=dtype, device=hidden.device)
    return sums.index_add(0, rows, losses.to(dtype)), wanted.sum(dim=1).to(dtype)


def language_head(model: SentenceTransformer) -> nn.Linear:
    """Return the language-model head that belongs to an embedder's backbone.

    Args:
        model: Its weights on disk hold the head, or it is tied to the embeddings.

    Returns:
        The head; a tied one has the embeddings' own weight.

    Raises:
        ReasonEmbedError: If there is none, or its logits are changed afterwards, which is not known here.
    """
    backbone: Any = model.transformers_model
    config = backbone.config
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            msg = f"a {config.model_type} changes its logits ({name}), which the joint loss does not"
            raise LossError(msg)
    held = getattr(backbone, "lm_head", None)
    if held is not None:
        own: nn.Linear = held
        return own
    table = backbone.get_input_embeddings().weight
    if getattr(config, "tie_word_embeddings", False):
        # Without values of its own; they are the table's.
        head = nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
        head.weight = table
        return head
    generator: Any = load_generator(backbone.name_or_path, dtype=table.dtype)
    loaded: nn.Linear = generator.get_output_embeddings()
    return loaded.requires_grad_(False).to(table.device)


class JointLossMixin(GradedLossMixin):
    """Adds the generation and the compression of laid-out queries to Redapter's loss of their last latent."""

    left_out: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        head: nn.Module | None = None,
        generation_weight: float = 1.0,
        representation_weight: float = 1.0,
        compression_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        weights = {
            "generation_weight": generation_weight,
            "representation_weight": representation_weight,
            "compression_weight": compression_weight,
        }
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                msg = f"{name}={weight}; allowed is 0, which leaves the term out, or a number above"
                raise LossError(msg)
        if not any(weights.values()):
            msg = "all three weights are 0: nothing would be trained; give one of them a number above 0"
            raise LossError(msg)
        check_backbone(model.transformers_model)
        self.generation_weight = generation_weight
        self.representation_weight = representation_weight
        self.compression_weight = compression_weight
        self.head = language_head(model) if head is None else head
        latents = find_latents(model.tokenizer)
        if not latents.count:
            msg = (
                "the model has no latent tokens: add some first by `reasonembed latents add MODEL --count 4 "
                "--output DIR`"
            )
            raise LossError(msg)
        # They are read, never written, so that they take no part in the softmax.
        self.register_buffer("left_out", torch.tensor(latents.ids), persistent=False)
        self._reading = False

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """Compute the joint loss of a batch.

        Args:
            sentence_features: The columns; see Inputs.
            labels: Not used.

        Returns:
            A scalar.

        Raises:
            LossError: If the columns do not fit together.
        """
        columns = list(sentence_features)
        for place, column in enumerate(columns[1:], 1):
            if KINDS in column:
                msg = f"column {place} is laid out by {KINDS!r}, which belongs to the query, the first column"
                raise LossError(msg)
        with self._laid_out():
            return super().forward(columns, labels)

    def embed_minibatch(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - the parent's own
        """Embed some rows of a column, in the backward pass too; see `CachedRedapterLoss`."""
        with self._laid_out():
            return super().embed_minibatch(*arguments, **options)  # type: ignore[misc]

    @contextmanager
    def _laid_out(self) -> Iterator[None]:
        """Have the model read laid-out rows, and give their sums of losses beside their vectors."""
        if self._reading:
            # Within the forward pass of a cached loss, which embeds in mini-batches.
            yield
            return
        inner = _unwrapped(self.model)
        handle = inner.register_forward_hook(self._add_sums)
        self._reading = True
        try:
            with attending_jointly(inner[0]):
                yield
        finally:
            self._reading = False
            handle.remove()

    def _add_sums(self, module: nn.Module, given: tuple[Any, ...], features: dict[str, Any]) -> None:
        hidden = features["token_embeddings"]
        if KINDS not in features:
            features["sentence_embedding"] = features["sentence_embedding"] + self._no_logits(hidden)
            return
        sums: list[Tensor] = []
        for key, weight in self._terms().items():
            labels = features[key]
            # Without a weight the logits would be made for nothing.
            labels = labels if weight else torch.full_like(labels, NOTHING)
            sums += row_losses(self._to_head(hidden), labels, self.head, self.left_out)
        vectors = features["sentence_embedding"]
        features["sentence_embedding"] = torch.cat([vectors, torch.stack(sums, dim=1)], dim=1)

    def _no_logits(self, hidden: Tensor) -> Tensor | float:
        """Return 0 through the head: DistributedDataParallel wants each trained weight in every pass."""
        if not torch.is_grad_enabled() or not any(one.requires_grad for one in self.head.parameters()):
            return 0.0
        none: Tensor = self.head(self._to_head(hidden[:0]))
        return none.sum().to(hidden.dtype)

    def _terms(self) -> dict[str, float]:
        return {GENERATION: self.generation_weight, COMPRESSION: self.compression_weight}

    def _to_head(self, hidden: Tensor) -> Tensor:
        weight = next(self.head.parameters(), None)
        return hidden if weight is None else hidden.to(weight.dtype)

    def _loss_of(
        self,
        query: Tensor,
        reasoning: Tensor | None,
        documents: list[Tensor],
        extras: Extras,
        *,
        has_column: bool,
    ) -> Tensor:
        sums = None
        if query.shape[1] == documents[0].shape[1] + _SUMS:
            query, sums = query[:, :-_SUMS], query[:, -_SUMS:]
        loss = super()._loss_of(query, reasoning, documents, extras, has_column=has_column)
        if sums is None:
            sums = torch.zeros(len(query), _SUMS, dtype=loss.dtype, device=loss.device)
        return self._joined(loss, sums)

    def _joined(self, representation: Tensor, sums: Tensor) -> Tensor:
        """Add the three terms up; means are over the predicted tokens of all devices' rows."""
        devices = Devices.present(gather=self.gather_across_devices)
        loss = self.representation_weight * representation
        total = self.representation_weight * self.metrics["loss"]
        self.metrics["loss_representation"] = self.metrics["loss"]
        for name, weight, place in (
            ("generation", self.generation_weight, 0),
            ("compression", self.compression_weight, 2),
        ):
            held = devices.rows(sums[:, place : place + 2].detach())
            tokens = held[:, 1].sum().clamp(min=1)
            loss = loss + weight * sums[:, place].sum() / tokens * devices.world
            mean = held[:, 0].sum() / tokens
            total = total + weight * mean
            rows = (held[:, 1] > 0).sum().to(mean.dtype)
            # NaN where no row has a target, so that no run's mean counts it as 0.
            self.metrics[f"loss_{name}"] = torch.where(rows > 0, mean, torch.full_like(mean, math.nan))
            self.metrics[f"rows_with_{name}"] = rows
        self.metrics["loss"] = total
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings, for the model card."""
        return {
            **super().get_config_dict(),
            "generation_weight": self.generation_weight,
            "representation_weight": self.representation_weight,
            "compression_weight": self.compression_weight,
        }


def _unwrapped(model: Any) -> Any:  # noqa: ANN401 - a model, compiled or distributed
    """Return the SentenceTransformer inside of what a trainer puts around it."""
    for name in ("module", "_orig_mod"):
        model = getattr(model, name, model)
    return model


class JointLoss(JointLossMixin, GradedRedapterLoss):
    """Generation, representation and compression through latent tokens, in one forward pass of a row.

    A row is ``[prompt][x][K latents][y]``. ``L_gen`` is the cross entropy of the part of x that is to be
    written, ``L_rep`` is :class:`RedapterLoss` on the last latent, ``L_comp`` is the cross entropy of y,
    which sees the latents and itself only. Both cross entropies are means over the predicted tokens of the
    batch; a row without a target adds nothing to that term, and ``metrics`` counts the rows that have one
    (``rows_with_generation``, ``rows_with_compression``) beside ``loss_generation``,
    ``loss_representation`` and ``loss_compression``.

    Args:
        model: A SentenceTransformer with a decoder and latent tokens (`add_latents`).
        head: The language-model head; None takes the model's own, tied or from its weights on disk, where an
            untied one is frozen.
        generation_weight: ``w_gen``; 0 leaves the term out.
        representation_weight: ``w_rep``, likewise.
        compression_weight: ``w_comp``, likewise.
        **options: :class:`RedapterLoss`'s; ``start_step=None`` makes L_rep plain InfoNCE.

    Raises:
        LossError: If a weight is out of range, or the model has no latent tokens.
        ReasonEmbedError: If the model is no decoder, has no head, or its attention takes no such mask.

    Requirements:
        1. Attention ``sdpa`` or ``eager``, not packed.
        2. No ``MatryoshkaLoss`` around it, which would cut the sums that come beside the vectors.

    Inputs:
        As of :class:`RedapterLoss`; the query's column as `reasonembed_mteb.reasoning.masks.lay_out` makes
        it. A query's column without a layout has neither target.

    Relations:
        - :class:`CachedJointLoss` is the same loss and gradient, with the memory of a mini-batch.
        - With ``generation_weight=0`` and ``compression_weight=0`` it is ``w_rep`` times RedapterLoss.
    """


class CachedJointLoss(JointLossMixin, CachedGradedRedapterLoss):
    """:class:`JointLoss` at the memory of a mini-batch; see :class:`CachedRedapterLoss` for its options."""
