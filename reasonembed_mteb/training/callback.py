"""Callbacks for trainers: one tells our losses the step and checks columns' names, one marks checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import ConcatDataset
from transformers import TrainerCallback

from reasonembed_mteb.training.caller import check_columns
from reasonembed_mteb.training.checkpoints import mark_whole
from reasonembed_mteb.training.columns import LossError
from reasonembed_mteb.training.losses import RedapterLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import TrainerControl, TrainerState, TrainingArguments


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
