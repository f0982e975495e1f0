"""Training a reranker, sentence-transformers' CrossEncoder, on the rows that embedders are trained on."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError, check_seed, one_line, unknown_name
from reasonembed_mteb.files import package_versions, replacing_folder, write_whole
from reasonembed_mteb.training.building import CHECKPOINTS
from reasonembed_mteb.training.checkpoints import last_whole
from reasonembed_mteb.training.data import ReadOptions, load_training_data
from reasonembed_mteb.training.run import MODEL, RECORD, check_output, held_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from datasets import Dataset
    from sentence_transformers import CrossEncoder

    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.divergence import DivergenceGuard

# What makes this training calmer.
_CALMER = "a lower --learning-rate or a larger --batch-size"
LOSSES = ("lambda", "bce")


@dataclass(frozen=True)
class RerankerSettings:
    """How a reranker is trained.

    Attributes:
        loss: ``lambda``, sentence-transformers' `LambdaLoss` over a query's documents, or ``bce``, its
            `BinaryCrossEntropyLoss` on each pair.
        documents: Documents of a query, at most; positives come first.
        lowest: Grade that means not relevant at all.
        highest: Grade that means most relevant.
        instruction: Put before each query, as `CrossEncoderReranker` does; None for nothing.
        max_length: Tokens of query and document together; None for the model's own.
        epochs: Passes over the rows.
        batch_size: Queries a step (``lambda``), or pairs (``bce``).
        learning_rate: Peak; it falls linearly to 0.
        warmup: Share of the steps in which it rises.
        save_steps: Steps from one checkpoint to the next.
        seed: Of everything that is drawn.
    """

    loss: str = "lambda"
    documents: int = 16
    lowest: float = 1.0
    highest: float = 5.0
    instruction: str | None = None
    max_length: int | None = None
    epochs: float = 1.0
    batch_size: int = 16
    learning_rate: float = 2e-5
    warmup: float = 0.1
    save_steps: int = 500
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        if not -math.inf < self.lowest < self.highest < math.inf:
            msg = f"grades from {self.lowest:g} to {self.highest:g} leave no room: give the lowest one first"
            raise ReasonEmbedError(msg)
        check_seed(self.seed)
        if self.documents < 2 or self.batch_size < 1 or self.save_steps < 1:
            msg = "a query needs two documents or more, a batch one query, a checkpoint one step"
            raise ReasonEmbedError(msg)
        for name in ("epochs", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                msg = f"{name} is {getattr(self, name):g}: give a number above 0"
                raise ReasonEmbedError(msg)


def graded_lists(data: TrainingData, settings: RerankerSettings) -> Dataset:
    """Return every row as a query with documents and labels.

    Args:
        data: Rows; graded ones keep their grades.
        settings: Documents a query, scale of the grades, seed.

    Returns:
        A data set with the columns ``query``, ``documents`` and ``labels``, between 0 (not relevant) and 1
        (most relevant). Ungraded positives have 1, ungraded negatives 0. Where a row has more documents than
        wanted, positives stay and negatives are drawn by seed, subset and row.

    Raises:
        DataError: If no row has two documents, or a grade lies outside the scale.
    """
    from datasets import Dataset

    rows = [
        row for subset in data.subsets.values() for row in _lists(subset, settings) if len(row["labels"]) > 1
    ]
    if not rows:
        msg = "no row has two documents to tell apart: give rows with positives and negatives"
        raise DataError(msg)
    return Dataset.from_list(rows)


def _lists(rows: Dataset, settings: RerankerSettings) -> Iterator[dict[str, Any]]:
    for row in rows:
        good = _labelled(row["positives"], row["positive_grades"], 1.0, settings)
        bad = _labelled(row["negatives"], row["negative_grades"], 0.0, settings)
        random.Random(f"{settings.seed}/{row['subset']}/{row['row']}").shuffle(bad)
        # One place is a negative's, where there is one.
        good = good[: settings.documents - 1] if bad else good[: settings.documents]
        chosen = good + bad[: settings.documents - len(good)]
        before = settings.instruction or ""
        yield {
            "query": before + row["query"],
            "documents": [text for text, _ in chosen],
            "labels": [label for _, label in chosen],
        }


def _labelled(
    texts: Sequence[str], grades: Sequence[float] | None, ungraded: float, settings: RerankerSettings
) -> list[tuple[str, float]]:
    if grades is None:
        return [(text, ungraded) for text in texts]
    low, high = settings.lowest, settings.highest
    outside = [grade for grade in grades if not low <= grade <= high]
    if outside:
        msg = f"grade {outside[0]:g} is not between {low:g} and {high:g}: give the scale of the data's grades"
        raise DataError(msg)
    return [(text, (grade - low) / (high - low)) for text, grade in zip(texts, grades, strict=True)]


def train_reranker(
    model: str,
    sources: Sequence[str | Path],
    output: str | Path,
    settings: RerankerSettings | None = None,
    *,
    resume: bool = False,
    device: str | None = None,
) -> Path:
    """Train a cross-encoder on rows with positives, negatives and, where they have them, grades.

    Args:
        model: Directory or hub name of a cross-encoder, or of an encoder that becomes one.
        sources: See `load_training_data`.
        output: Folder of the run: ``model``, ``run.json`` and ``checkpoints``. New or empty, unless resumed.
        settings: How.
        resume: Continue a run that stopped, from its last checkpoint.
        device: Such as ``cpu``; None lets torch choose.

    Returns:
        The folder of the trained model, which `CrossEncoder` and `CrossEncoderReranker` load.

    Raises:
        ReasonEmbedError: If the model cannot be loaded, the folder holds another run, or training diverged.
        DataError: If a row is broken, or none can be used.
    """
    from sentence_transformers import CrossEncoder

    from reasonembed_mteb.training.divergence import DivergenceGuard

    chosen, folder = settings or RerankerSettings(), Path(output)
    # Rows that were read before are no run.
    check_output(folder, resume=resume or not (folder / RECORD).exists())
    data = load_training_data(sources, cache=folder / "rows", options=ReadOptions())
    record = {"model": model, "settings": asdict(chosen), "data": data.key, "counts": _plain(data.counts)}
    _check_same(folder, record)
    lists = graded_lists(data, chosen)
    try:
        loaded = CrossEncoder(model, num_labels=1, max_length=chosen.max_length, device=device)
    except (OSError, ValueError) as error:
        msg = f"cannot load {model} as a cross-encoder ({one_line(error)}); give a directory or a hub name"
        raise ReasonEmbedError(msg) from error
    # Only now: what cannot be trained leaves the folder to another try.
    write_whole(folder / RECORD, json.dumps(record | {"finished": False}, indent=1) + "\n")
    guard = DivergenceGuard(settings=_CALMER)
    steps = _fit(loaded, lists, folder, chosen, guard, resume=resume)
    with replacing_folder(folder / MODEL, replace=True) as part:
        loaded.save_pretrained(str(part))
    done = record | {"finished": True, "steps": steps, "left_out_steps": guard.left_out}
    done |= {"versions": package_versions()}
    write_whole(folder / RECORD, json.dumps(done, indent=1) + "\n")
    return folder / MODEL


def _plain(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {subset: dict(held) for subset, held in counts.items()}


def _check_same(folder: Path, record: Mapping[str, Any]) -> None:
    held = held_record(folder / RECORD, "settings") or record
    other = [key for key in ("model", "settings", "data") if held.get(key) != record[key]]
    if other:
        msg = f"{folder} holds a run with another {' and '.join(other)}: give a new folder"
        raise ReasonEmbedError(msg)


def _fit(
    model: CrossEncoder,
    lists: Dataset,
    folder: Path,
    settings: RerankerSettings,
    guard: DivergenceGuard,
    *,
    resume: bool,
) -> int:
    """Train; return the number of steps."""
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, LambdaLoss

    from reasonembed_mteb.training.callback import GuardCallback, MarkingCallback

    checkpoints = folder / CHECKPOINTS
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        seed=settings.seed,
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=max(1, settings.save_steps // 10),
        # A step that diverged must be seen.
        logging_nan_inf_filter=False,
        report_to="none",
        use_cpu=model.device.type == "cpu",
    )
    loss: Any = (LambdaLoss if settings.loss == "lambda" else BinaryCrossEntropyLoss)(model)
    trainer = CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=lists if settings.loss == "lambda" else _pairs(lists),
        loss=loss,
        callbacks=[GuardCallback(guard, loss), MarkingCallback()],
    )
    last = last_whole(checkpoints) if resume else None
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return int(trainer.state.global_step)


def _pairs(lists: Dataset) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"query": row["query"], "document": document, "label": label}
            for row in lists
            for document, label in zip(row["documents"], row["labels"], strict=True)
        ]
    )
