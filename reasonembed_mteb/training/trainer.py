"""Redapter's trainer: the library's, with our batches, steps, metrics, whole checkpoints and a guard."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from transformers import PrinterCallback, TrainerCallback

from reasonembed_mteb.training.adapters import has_adapters, load_adapter_weights
from reasonembed_mteb.training.checkpoints import keep_newest, mark_whole
from reasonembed_mteb.training.divergence import DivergedError, DivergenceGuard, check_weights
from reasonembed_mteb.training.evaluator import same_random_numbers
from reasonembed_mteb.training.metrics import LEFT_OUT, METRICS, NEWER, Window
from reasonembed_mteb.training.progress import Progress
from reasonembed_mteb.training.sampling import SubsetBatchSampler
from reasonembed_mteb.training.sharding import load_whole, saved_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from datasets import Dataset
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR, LRScheduler
    from torch.utils.data import BatchSampler, ConcatDataset
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from reasonembed_mteb.training.collator import GroupCollator
    from reasonembed_mteb.training.metrics import MetricsFile
    from reasonembed_mteb.training.sampling import SubsetPlan


class RedapterTrainer(SentenceTransformerTrainer):
    """Train by subset-wise batches; every step's metrics go to a CSV, and resuming is exact.

    The loss is told the step by ``loss.global_step`` before each batch. Checkpoints are marked once whole;
    resume from `reasonembed_mteb.training.checkpoints.last_whole`. Steps that are not finite are left out and
    end the run where they do not stop; see `reasonembed_mteb.training.divergence`.
    """

    def __init__(
        self,
        *,
        plans: Sequence[SubsetPlan],
        train_dataset: Mapping[str, Dataset],
        data_collator: GroupCollator,
        loss: nn.Module,
        metrics: MetricsFile | None = None,
        keep: int = 2,
        retries: int = 3,
        say: Callable[[str], None] | None = None,
        schedule: Callable[[Optimizer, int, int], LambdaLR] | None = None,
        restoring: Callable[[Any, Path], AbstractContextManager[None]] | None = None,
        **options: Any,
    ) -> None:
        """Set the training up.

        Args:
            plans: What an epoch takes of each subset, in the order of ``train_dataset``.
            train_dataset: Rows by subset.
            data_collator: Makes the batches.
            loss: Ours, plain or cached, or one around it.
            metrics: The CSV, begun already; only the first process writes.
            keep: Checkpoints kept.
            retries: Steps in a row that may be left out because a loss or gradient is not finite.
            say: Takes a line for people now and then.
            schedule: Makes the learning rate's schedule from optimiser, warm-up steps and steps; None takes
                transformers' own.
            restoring: Wraps the reading of a checkpoint's whole weights into the model; see
                `reasonembed_mteb.training.registry`.
            **options: `SentenceTransformerTrainer`'s further arguments.
        """
        self.plans = list(plans)
        self.metrics_file = metrics
        self.group_collator = data_collator
        # Another loss may stand around ours, such as `MatryoshkaLoss`.
        self.redapter: Any = getattr(loss, "loss", loss)
        self.keep = keep
        self._say = say
        self._schedule = schedule
        self._restoring = restoring
        self.guard = DivergenceGuard(retries)
        self._window = Window()
        self._pending: list[dict[str, Any]] = []
        self._clock = time.monotonic()
        self._progress = Progress()
        super().__init__(
            train_dataset=dict(train_dataset),
            data_collator=data_collator,
            loss=loss,
            callbacks=[_Steps(self), *options.pop("callbacks", [])],
            **options,
        )
        # It prints every log record; ours are said in one line each.
        self.remove_callback(PrinterCallback)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave out the callback that copies training rows into the model card.

        Args:
            default_args_dict: Not used.
        """

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Make the learning rate's schedule.

        Args:
            num_training_steps: Of the whole run.
            optimizer: None takes the trainer's.
        """
        held = optimizer or self.optimizer
        if self.lr_scheduler is None and self._schedule is not None and held is not None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = self._schedule(held, warmup, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def get_multi_dataset_batch_sampler(  # type: ignore[override]
        self, dataset: ConcatDataset[Any], batch_samplers: Sequence[BatchSampler], **options: Any
    ) -> SubsetBatchSampler:
        """Return our sampler.

        Args:
            dataset: The subsets, one after the other.
            batch_samplers: Not used.
            **options: Not used.
        """
        del batch_samplers, options
        self.batch_sampler = SubsetBatchSampler(dataset, self.plans, self.args.seed)
        return self.batch_sampler

    def start_epoch(self) -> None:
        """Tell sampler and collator the epoch; the trainer reaches neither after a resume on many devices."""
        # As transformers counts: an epoch's last batches make a step, however few they are.
        steps = math.ceil(len(self._train_dataloader) / self.args.gradient_accumulation_steps)
        epoch = self.state.global_step // max(1, steps)
        self.batch_sampler.set_epoch(epoch)
        self.group_collator.epoch = epoch
        self._progress.begin(self.state.global_step)
        self._clock = time.monotonic()

    def compute_loss(
        self,
        model: Any,  # noqa: ANN401 - the model, or what wraps it
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401 - transformers' own
    ) -> Any:  # noqa: ANN401 - depends on return_outputs
        """Compute a batch's loss and note its metrics.

        Args:
            model: The model, wrapped or not.
            inputs: A batch of `GroupCollator`.
            return_outputs: Whether to return a pair.
            num_items_in_batch: Not used.

        Returns:
            The loss, or the loss and nothing.
        """
        subset = inputs.pop("subset", "")
        sizes = _sizes(inputs) | {"reasoning_cut": inputs.pop("reasoning_cut", math.nan)}
        # Set for each batch, not counted: evaluations and the batches of an accumulated step do not count.
        self.redapter.global_step = self.state.global_step
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            self._note(subset, sizes, result[0] if isinstance(result, tuple) else result)
        return result

    def _note(self, subset: str, sizes: Mapping[str, float], loss: Tensor) -> None:
        if self.lr_scheduler is None:
            return
        metrics: dict[str, Tensor] = self.redapter.metrics
        row = {"step": self.state.global_step + 1, "subset": subset, **sizes}
        # In one piece: each single number taken off a GPU waits for it.
        names = [*METRICS, *(name for name in NEWER if name in metrics)]
        values = torch.stack([loss.detach().double(), *(metrics[name].double() for name in names)]).tolist()
        self.guard.see_loss(values[0], subset)
        row |= zip(names, values[1:], strict=True)
        row["learning_rate"] = float(self.lr_scheduler.get_last_lr()[0])
        self._pending.append(row)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:  # noqa: ANN401 - transformers' own
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None:
            self.guard.see_norm(float(norm))
        return norm

    def check_step(self) -> None:
        """Leave out the step at hand if its loss or gradient is not finite; on every process alike.

        Raises:
            DivergedError: If too many steps in a row had to be left out.
        """
        scaler = self.accelerator.scaler
        bad = self._anywhere(self.guard.is_bad(scaler))
        for row in self._pending if bad else ():
            row[LEFT_OUT] = 1.0
        if bad and scaler is None and self.optimizer is not None:
            # Without gradients an optimiser changes nothing; a scaler leaves such a step out by itself.
            self.optimizer.zero_grad()
        try:
            self.guard.end_step(self.state.global_step + 1, bad=bad)
        except DivergedError:
            self.end_step()
            raise

    def _anywhere(self, here: bool) -> bool:
        """Say whether something holds on any process."""
        mine = torch.tensor(float(here), device=self.args.device)
        return bool(self.accelerator.reduce(mine, reduction="sum") > 0)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """Gather weights that are shared out; to be called by every process.

        Returns:
            The weights by name, on the CPU of the first process; None where every process has all of them.
        """
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        weights: dict[str, Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
        return weights

    def end_step(self) -> None:
        """Write the metrics of the step that has just ended."""
        now = time.monotonic()
        for row in self._pending:
            row |= {
                "epoch": float(self.state.epoch or 0),
                "seconds": (now - self._clock) / len(self._pending),
            }
            self._window.add(row)
            self._progress.add(int(row["tokens"]) * self.args.world_size)
        if self.metrics_file is not None and self.is_world_process_zero():
            self.metrics_file.append(self._pending)
        self._pending.clear()
        self._clock = now

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the window's metrics to a log record, for the trackers and the console.

        Args:
            logs: The record.
            start_time: When the training began.
        """
        if "loss" in logs:
            # The headline of transformers is the same loss; ours is not rounded.
            logs = logs | self._window.close()
        super().log(logs, start_time)
        if self._say is not None and self.is_world_process_zero():
            step, steps = self.state.global_step, self.state.max_steps
            speed = self._progress.line(step, steps) if "loss" in logs else ""
            self._say(_line(logs, step, steps) + (f"; {speed}" if speed else ""))

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Evaluate; the training goes on as if it had not been.

        Args:
            *arguments: `SentenceTransformerTrainer.evaluate`'s arguments.
            **options: The same, by name.
        """
        with same_random_numbers():
            return super().evaluate(*arguments, **options)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401 - transformers' own
        # No process writes a part of a checkpoint that the others would not.
        check_weights(self.model, self.state.global_step, self._anywhere)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            mark_whole(folder / f"checkpoint-{self.state.global_step}")
            # After the mark: the newest whole checkpoint is never removed for one that is not whole yet.
            keep_newest(folder, self.keep, self.state.best_global_step)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # sentence-transformers lets every process write the same files at once, and read another's half.
        if self.args.should_save:
            with saved_whole(self.model, state_dict):
                super()._save(output_dir)

    def _load_best_model(self) -> None:
        # The library's way only logs an error, and would leave the last step's weights as the best.
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}"
        self._load_from_checkpoint(str(folder))

    def _load_from_checkpoint(
        self,
        checkpoint_path: str,
        model: nn.Module | None = None,
    ) -> None:
        del model
        if self.is_fsdp_enabled:
            load_whole(self, Path(checkpoint_path))
            return
        if has_adapters(self.model):
            # The library's way loads the base once more and rounds the adapters to its dtype.
            load_adapter_weights(self.model, Path(checkpoint_path))
            return
        folder = Path(checkpoint_path)
        with nullcontext() if self._restoring is None else self._restoring(self.model, folder):
            super()._load_from_checkpoint(checkpoint_path)


class _Steps(TrainerCallback):
    """Tells the trainer where in the run it is."""

    def __init__(self, trainer: RedapterTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin an epoch."""
        del args, state, control
        self.trainer.start_epoch()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Look at the step before it is made."""
        del args, state, control
        self.trainer.check_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End a step."""
        del args, state, control
        self.trainer.end_step()


def _sizes(inputs: Mapping[str, Any]) -> dict[str, float]:
    """Count a batch: queries and documents, and their tokens without padding."""
    masks = {name: value for name, value in inputs.items() if name.endswith("attention_mask")}
    # Packed rows have no mask, since they have no padding.
    packed = {
        name: value
        for name, value in inputs.items()
        if name.endswith("input_ids") and name.replace("input_ids", "cu_seq_lens_q") in inputs
    }
    return {
        "queries": _rows(inputs, "query"),
        "documents": _rows(inputs, "documents"),
        "tokens": int(sum(int(mask.sum()) for mask in masks.values()))
        + sum(ids.numel() for ids in packed.values()),
    }


def _rows(inputs: Mapping[str, Any], column: str) -> int:
    """Count a column's texts."""
    ends = inputs.get(f"{column}_cu_seq_lens_q")
    return len(inputs.get(f"{column}_input_ids", ())) if ends is None else len(ends) - 1


def _line(logs: Mapping[str, float], step: int, steps: int) -> str:
    """Say a log record in one line."""
    if "loss" in logs:
        intensity = f", RI {logs['ri_mean']:.3f}" if "ri_mean" in logs else ""
        loss = f"loss {logs['loss']:.4f} (unweighted {logs.get('loss_unweighted', logs['loss']):.4f})"
        norm = f", gradient {float(logs['grad_norm']):.2f}" if logs.get("grad_norm") is not None else ""
        return f"step {step}/{steps}: {loss}{intensity}{norm}, rate {logs.get('learning_rate', 0):.2e}"
    scores = {
        name: value for name, value in logs.items() if name.startswith("eval_") and "_per_second" not in name
    }
    if scores:
        shown = ", ".join(f"{n[5:]} {100 * v:.2f}" for n, v in scores.items() if n != "eval_runtime")
        return f"step {step}/{steps}: {shown}"
    return f"step {step}/{steps}: done in {logs.get('train_runtime', 0):.0f} s"
