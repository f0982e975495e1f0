"""What a finished run leaves: the merged model with its prompts and card, and the adapters."""

from __future__ import annotations

import csv
import json
import shutil
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.files import write_whole
from reasonembed_mteb.training.modelcard import card

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.schema import Recipe

RECORD = "run.json"
MODEL = "model"
ADAPTER = "adapter"


def training_prompts(recipe: Recipe, data: TrainingData) -> dict[str, str]:
    """Return the prompts that a model was trained with, by subset.

    Args:
        recipe: The recipe.
        data: The rows.

    Returns:
        The full prefix by subset, where its rows share one; ``query`` too, where all subsets do; and
        ``document`` where documents have one.
    """
    from reasonembed_mteb.prompts import query_prefix
    from reasonembed_mteb.training.collator import instruction_of

    found: dict[str, str] = {"document": recipe.model.document_prefix} if recipe.model.document_prefix else {}
    prefixes: set[str] = set()
    for subset, rows in data.subsets.items() if recipe.model.template else ():
        own = rows.data.column("instruction").unique().to_pylist()
        texts = {
            query_prefix(
                instruction_of({"instruction": one, "subset": subset}, recipe.data.instructions),
                recipe.model.template,
            )
            for one in own
        }
        prefixes |= texts
        if len(texts) == 1:
            found[subset] = texts.copy().pop()
    if len(prefixes) == 1:
        found["query"] = prefixes.pop()
    return found


def save_run(
    model: SentenceTransformer, recipe: Recipe, data: TrainingData, record: dict[str, Any], output: Path
) -> Path | None:
    """Write the adapters, the merged model and the record, each whole.

    Args:
        model: The trained model; its adapters are merged.
        recipe: The recipe.
        data: The rows.
        record: The run's record.
        output: Folder of the run.

    Returns:
        The folder of the adapters, or None.

    Raises:
        ReasonEmbedError: If the disk is full, or an adapter not finite.
    """
    from reasonembed_mteb.training.adapters import has_adapters, merge_adapters, save_adapters

    adapter = None
    if has_adapters(model):
        adapter = output / ADAPTER
        _whole_folder(adapter, lambda folder: save_adapters(model, folder))
        merge_adapters(model)
    model.prompts = {**model.prompts, **training_prompts(recipe, data)}
    record |= {"finished": True, "scores": _scores(output / "evaluation.csv")}

    def save(folder: Path) -> None:
        model.save_pretrained(str(folder), create_model_card=False)
        (folder / "README.md").write_text(card(recipe, record, model.prompts), encoding="utf-8")

    _whole_folder(output / MODEL, save)
    write_whole(output / RECORD, json.dumps(record, indent=1))
    return adapter


def _scores(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _whole_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place, then move it there."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        write(part)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        msg = f"cannot write {folder}: {error.strerror or error}; free space, then go on with --resume"
        raise ReasonEmbedError(msg) from error
