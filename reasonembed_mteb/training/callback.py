"""Callbacks for trainers: they tell our losses the step, stop what diverges, and mark checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.utils import get_total_norm
from torch.utils.data import ConcatDataset
from transformers import TrainerCallback

from reasonembed_mteb.training.caller import check_columns
from reasonembed_mteb.training.checkpoints import mark_whole
from reasonembed_mteb.training.columns import LossError
from reasonembed_mteb.training.divergence import check_weights
from reasonembed_mteb.training.losses import RedapterLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from reasonembed_mteb.training.divergence import DivergenceGuard


class RedapterCallback(TrainerCallback):
    """Tell a loss the trainer's step, and check the columns' names before the first batch.

    A loss that a `SentenceTransformerTrainer` calls finds the step by itself; this is for trainers that hide
    it, and to have columns refused before anything is computed.

    Args:
        loss: Ours, or whatever holds it: a loss around it, a dictionary of losses.

    Raises:
        LossError: If there is no `RedapterLoss` in it.

    Example:
        ::

            from datasets import Dataset
            from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
            from reasonembed_mteb.training import RedapterCallback, RedapterLoss

            model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
            train_dataset = Dataset.from_dict({
                "query": ["Why is the sky blue?", "Why do leaves fall?"],
                "reasoning_query": ["Why is the sky blue? Air scatters short waves more.",
                                    "Why do leaves fall? Trees save water in winter."],
                "positive": ["Rayleigh scattering ...", "Abscission ..."],
            })
            loss = RedapterLoss(model)
            trainer = SentenceTransformerTrainer(
                model=model, train_dataset=train_dataset, loss=loss, callbacks=[RedapterCallback(loss)]
            )
            trainer.train()
    """

    def __init__(self, loss: nn.Module | Mapping[str, nn.Module]) -> None:
        self.losses = _losses_in(loss)
        if not self.losses:
            msg = f"{type(loss).__name__} holds no RedapterLoss: give the loss that is trained with"
            raise LossError(msg)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **known: Any
    ) -> None:
        """Check the columns, and tell the step."""
        loader = known.get("train_dataloader")
        data = getattr(loader, "dataset", None)
        for one in data.datasets if isinstance(data, ConcatDataset) else [data]:
            check_columns(one, getattr(loader, "collate_fn", None), self.losses)
        self.on_step_begin(args, state, control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Tell the step."""
        del args, control
        for loss in self.losses:
            loss.global_step = state.global_step


class GuardCallback(TrainerCallback):
    """Leaves out steps that are not finite, and stops before weights that are not finite are written.

    For a trainer of one process whose class is not ours; `RedapterTrainer` does the same by itself.

    Args:
        guard: Counts the steps.
        loss: What the trainer trains with, whose results are watched.
    """

    def __init__(self, guard: DivergenceGuard, loss: nn.Module) -> None:
        self.guard = guard
        loss.register_forward_hook(self._see_loss)

    def _see_loss(self, loss: nn.Module, inputs: Any, result: Tensor) -> None:  # noqa: ANN401 - any loss's
        del loss, inputs
        self.guard.see_loss(float(result.detach()))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **known: Any
    ) -> None:
        """Look at the step before it is made.

        Raises:
            DivergedError: If too many steps in a row had to be left out.
        """
        del args, control
        gradients = [weight.grad for weight in known["model"].parameters() if weight.grad is not None]
        self.guard.see_norm(float(get_total_norm(gradients)))
        bad = self.guard.is_bad()
        if bad:
            # Without gradients an optimiser changes nothing.
            known["optimizer"].zero_grad()
        self.guard.end_step(state.global_step + 1, bad=bad)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **known: Any
    ) -> None:
        """Look at the weights before a checkpoint of them, which would push an older one out.

        Raises:
            DivergedError: If one is not finite.
        """
        del args
        if control.should_save:
            check_weights(known["model"], state.global_step, settings=self.guard.settings)


class MarkingCallback(TrainerCallback):
    """Marks checkpoints once they are whole; see `reasonembed_mteb.training.checkpoints`."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Mark the checkpoint that has just been written."""
        del control
        mark_whole(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def _losses_in(loss: nn.Module | Mapping[str, nn.Module]) -> list[RedapterLoss]:
    """Find our losses, each once, in what may be a loss around one or a dictionary of losses."""
    several = [loss] if isinstance(loss, nn.Module) else loss.values()
    parts = {id(part): part for one in several for part in one.modules()}
    return [part for part in parts.values() if isinstance(part, RedapterLoss)]
