"""Redapter's loss at the memory of a mini-batch: gradient caching (arXiv 2101.06983)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input
from sentence_transformers.base.losses.merged_forward import merge_feature_batches

from reasonembed_mteb.training.columns import LossError
from reasonembed_mteb.training.devices import Replay, autocast_like_now, device_type
from reasonembed_mteb.training.losses import RedapterLoss

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.losses import RandContext
    from torch import Tensor, nn

    from reasonembed_mteb.training.features import Columns

_GRADCACHE_CITATION = """
@misc{gao2021scaling,
    title={Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup},
    author={Luyu Gao and Yunyi Zhang and Jiawei Han and Jamie Callan},
    year={2021},
    eprint={2101.06983},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
"""


class CachedRedapterLoss(CachedLossMixin, RedapterLoss):
    """Redapter's loss with the memory of one mini-batch, at about one more forward pass.

    Everything is embedded without gradients in mini-batches, the loss of the whole batch is taken to the
    embeddings, and each mini-batch is embedded again, with the same dropout and the same mixed precision, to
    carry its share on. Candidates and weights are those of the whole batch: the result does not depend on the
    size of the mini-batches.

    Args:
        model: Any SentenceTransformer but one of static embeddings.
        temperature: As in :class:`RedapterLoss`.
        max_intensity: As in :class:`RedapterLoss`.
        start_step: As in :class:`RedapterLoss`.
        normalize_weights: As in :class:`RedapterLoss`.
        gather_across_devices: As in :class:`RedapterLoss`.
        mask_false_negatives: As in :class:`RedapterLoss`.
        mini_batch_size: Rows embedded at a time.
        mini_batch_num_tokens: If given, mini-batches hold as many rows as fit this many tokens, padding not
            counted, instead of ``mini_batch_size`` rows.
        show_progress_bar: Whether to show one for the mini-batches.

    Raises:
        LossError: If a setting is out of range, or the model cannot be fed in mini-batches.

    Requirements:
        1. As of :class:`RedapterLoss`; right padding is cheaper than left: it is cut off each mini-batch.
        2. No loss around it that changes the model's forward pass, as `AdaptiveLayerLoss` and
           `Matryoshka2dLoss` do: the second pass comes when they are over.

    Inputs:
        As of :class:`RedapterLoss`; one packed document column needs the fewest forward passes.

    Relations:
        - :class:`RedapterLoss` is the same loss and gradient, faster, with the memory of the whole batch.
        - ``CachedMultipleNegativesRankingLoss(scale=1 / temperature)`` is this loss with equal weights.

    Example:
        ::

            from sentence_transformers import SentenceTransformer
            from reasonembed_mteb.training import CachedRedapterLoss

            model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
            loss = CachedRedapterLoss(model, mini_batch_num_tokens=8192)
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
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(
            model,
            temperature=temperature,
            max_intensity=max_intensity,
            start_step=start_step,
            normalize_weights=normalize_weights,
            gather_across_devices=gather_across_devices,
            mask_false_negatives=mask_false_negatives,
        )
        if mini_batch_size < 1:
            msg = f"mini_batch_size={mini_batch_size}; allowed is 1 row or more"
            raise LossError(msg)
        if mini_batch_num_tokens is not None and mini_batch_num_tokens < 1:
            msg = (
                f"mini_batch_num_tokens={mini_batch_num_tokens}; allowed is 1 or more, or None to count rows"
            )
            raise LossError(msg)
        if has_static_embedding_input(model):
            msg = (
                "a model of static embeddings cannot be fed in mini-batches, and needs little memory: "
                "use RedapterLoss"
            )
            raise LossError(msg)
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar
        # Of the call in progress: what `calculate_loss` cannot be given by its signature.
        self._call: tuple[Tensor | None, Columns, int] | None = None

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch; its backward pass embeds the batch again.

        Args:
            sentence_features: The columns; see Inputs.
            labels: Not used.

        Returns:
            A scalar.

        Raises:
            LossError: If the columns do not fit together.
        """
        _refuse_patched(self.model)
        columns = self._columns(sentence_features)
        reasoning = None
        # The machinery wants a gradient for each column that it is given, so not this one.
        if columns.reasoning is not None and self.weighted:
            parts = self.embed_minibatch_iter(columns.reasoning, with_grad=False, copy_random_state=False)
            reasoning = torch.cat([rows for rows, _ in parts])
        # A forward pass for each of many narrow columns would be slow.
        merged = merge_feature_batches(columns.documents) if len(columns.documents) > 1 else None
        documents = columns.documents if merged is None else [merged]
        self._call = reasoning, columns, 1 if merged is None else len(columns.documents)
        try:
            return self.forward_cached([columns.query, *documents], labels)
        finally:
            self._call = None

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss from mini-batches of embeddings.

        Args:
            reps: By column, the query's first, its mini-batches ``(rows, D)``.
            labels: Not used.
            with_backward: Whether to take the gradient to the embeddings now; the loss is then detached.

        Returns:
            A scalar.

        Raises:
            LossError: If the columns do not fit together, or no batch is being computed.
        """
        if self._call is None:
            msg = "calculate_loss is part of a call: for embeddings there is compute_loss_from_embeddings"
            raise LossError(msg)
        reasoning, columns, merged = self._call
        query, *documents = [torch.cat(parts) for parts in reps]
        if merged > 1:
            documents = list(documents[0].chunk(merged))
        loss = self._loss_of(
            query, reasoning, documents, columns.extras, has_column=columns.reasoning is not None
        )
        if not with_backward:
            return loss
        # A backward pass taken under mixed precision would round what the forward pass did not.
        with torch.autocast(query.device.type, enabled=False):
            torch.autograd.backward(loss)
        return loss.detach()

    def embed_minibatch(
        self,
        sentence_feature: dict[str, Tensor],
        begin: int,
        end: int,
        with_grad: bool,
        copy_random_state: bool,
        random_state: RandContext | None = None,
    ) -> tuple[Tensor, RandContext | None]:
        """Embed some rows of a column, keeping what their second forward pass has to repeat.

        Args:
            sentence_feature: The column.
            begin: First row.
            end: One past the last row.
            with_grad: Whether with gradients.
            copy_random_state: Whether to keep the state.
            random_state: A state that was kept, to be repeated now.

        Returns:
            ``(end - begin, D)``, and the state or None.
        """
        autocast = autocast_like_now(device_type(sentence_feature))
        # A kept state brings the precision of its own time, as a backward pass runs outside the context.
        with autocast if random_state is None else ExitStack():
            rows, kept = super().embed_minibatch(
                sentence_feature, begin, end, with_grad, copy_random_state, random_state
            )
        return rows, None if kept is None else Replay(kept, autocast)  # type: ignore[return-value]

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings, for the model card."""
        return {
            **super().get_config_dict(),
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
        }

    @property
    def citation(self) -> str:
        """The papers, as BibTeX, for the model card."""
        return super().citation + _GRADCACHE_CITATION


def _refuse_patched(model: nn.Module) -> None:
    """Refuse a forward pass that a loss around this one has changed: the second pass would be another."""
    for module in model.modules():
        patch = vars(module).get("forward")
        if patch is not None and type(patch).__module__.startswith("sentence_transformers."):
            name = type(patch).__module__.rpartition(".")[2]
            msg = (
                f"a loss around CachedRedapterLoss changes the model's forward pass ({name}), and no longer "
                "does when gradients are taken: use RedapterLoss in AdaptiveLayerLoss and Matryoshka2dLoss"
            )
            raise LossError(msg)
