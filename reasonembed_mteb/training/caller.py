"""What the trainer that calls a loss knows: its step, and the names of a batch's and a data set's columns."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from sentence_transformers.base.data_collator import BaseDataCollator
from sentence_transformers.base.trainer import BaseTrainer
from torch import nn
from transformers import Trainer

from reasonembed_mteb.training.columns import LossError, roles_by_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reasonembed_mteb.training.losses import RedapterLoss

# What sentence-transformers adds to the columns of a data set.
_ADDED = "dataset_name"
_CHECKED: WeakKeyDictionary[Any, WeakSet[nn.Module]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Caller:
    """The trainer that is computing a batch's loss right now.

    Attributes:
        trainer: sentence-transformers' trainer.
        inputs: The batch, by ``<column>_<name>``.
    """

    trainer: Any
    inputs: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps made."""
        return int(self.trainer.state.global_step)

    def features(self) -> list[dict[str, Any]]:
        """Return the columns of the batch in their order, as sentence-transformers splits them."""
        # Not by the trainer's own method, which may have another way to hand them out.
        columns: list[dict[str, Any]] = BaseTrainer.collect_features(self.trainer, dict(self.inputs))[0]
        return columns

    def names(self, columns: Sequence[Mapping[str, Any]]) -> list[str] | None:
        """Return the names of columns.

        Args:
            columns: As the loss was given them.

        Returns:
            One for each; None where they are not this batch's.
        """
        found = [self._name(column) for column in columns]
        if not all(found):
            # A trainer that changes the tensors gives as many columns, in their order.
            own = self.features()
            found = [self._name(column) for column in own] if len(own) == len(columns) else []
        return [name for name in found if name] if found and all(found) else None

    def _name(self, column: Mapping[str, Any]) -> str | None:
        for key, value in column.items():
            if isinstance(value, torch.Tensor):
                names = (
                    name for name, own in self.inputs.items() if own is value and name.endswith(f"_{key}")
                )
                return next((name[: -len(key) - 1] for name in names), None)
        return None


def find_caller() -> Caller | None:
    """Return the trainer that is calling, or None where a loss is called by hand.

    A trainer gives a loss neither its step nor the names of the columns, and none of its events knows the
    loss. So both are read where they stand, on the call stack: whatever wraps the loss, whichever of several
    losses it is, in training and in evaluation.
    """
    frame = inspect.currentframe()
    while frame is not None:
        # By its name first: to read a frame's locals keeps them alive until it ends.
        if frame.f_code.co_name == Trainer.compute_loss.__name__:
            trainer, inputs = frame.f_locals.get("self"), frame.f_locals.get("inputs")
            if isinstance(trainer, BaseTrainer) and isinstance(inputs, dict):
                return Caller(trainer, inputs)
        frame = frame.f_back
    return None


def check_trainer(trainer: Any, loss: RedapterLoss) -> None:  # noqa: ANN401 - sentence-transformers' trainer
    """Check, once, the columns of every data set that a trainer has for a loss.

    Args:
        trainer: sentence-transformers' trainer.
        loss: Ours, which it trains with.

    Raises:
        LossError: If the names of a data set's columns leave open which is what.
    """
    known = _CHECKED.setdefault(trainer, WeakSet())
    if loss in known:
        return
    known.add(loss)
    several = trainer.loss if isinstance(trainer.loss, dict) else {}
    for data in (trainer.train_dataset, trainer.eval_dataset):
        for name, one in data.items() if isinstance(data, dict) else [("", data)]:
            if name not in several or loss in several[name].modules():
                check_columns(one, trainer.data_collator, [loss], name)


def check_columns(
    data: Any,  # noqa: ANN401 - any data set, or none
    collator: Any,  # noqa: ANN401 - any collator
    losses: Sequence[RedapterLoss],
    name: str = "",
) -> None:
    """Check the columns of a data set, unless its collator makes others of them.

    Args:
        data: The data set, whose columns are looked at where it names any.
        collator: Makes its batches.
        losses: Of which one must be able to take them.
        name: The data set's, if it has one.

    Raises:
        LossError: If the names leave open which column is what.
    """
    names = getattr(data, "column_names", None)
    own = isinstance(collator, BaseDataCollator) and type(collator).__call__ is _library_call(collator)
    if not isinstance(names, list) or not own:
        return
    label = next((one for one in collator.valid_label_columns if one in names), None)
    columns = [one for one in names if one not in (label, _ADDED)]
    problems = [problem for loss in losses if (problem := _problem(columns, loss)) is not None]
    if len(problems) == len(losses):
        raise LossError(f"data set {name!r}: {problems[0]}" if name else str(problems[0]))


def _library_call(collator: BaseDataCollator) -> Any:  # noqa: ANN401 - a function
    """Return the library's way to make a batch, of the library's own class nearest to a collator's."""
    classes = type(collator).__mro__
    return next(one.__call__ for one in classes if one.__module__.startswith("sentence_transformers."))


def _problem(columns: Sequence[str], loss: RedapterLoss) -> LossError | None:
    try:
        roles_by_name(columns, reasoning=loss.start_step is not None)
    except LossError as error:
        return error
    return None
