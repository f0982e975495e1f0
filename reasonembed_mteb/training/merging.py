"""Merging models and adapters, and averaging a run's checkpoints; weights are streamed, shard by shard."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

import torch

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.files import (
    json_text,
    package_versions,
    read_json_object,
    replacing_folder,
    write_whole,
)
from reasonembed_mteb.models.folders import ADAPTER_CONFIG
from reasonembed_mteb.models.saving import READERS
from reasonembed_mteb.training.adapter_files import AdapterFiles, check_same_base, join_adapters
from reasonembed_mteb.training.adapters import backbone
from reasonembed_mteb.training.averages import merge_weights, spherical_coefficients
from reasonembed_mteb.training.building import CHECKPOINTS
from reasonembed_mteb.training.checkpoints import MARK, checkpoints, is_whole
from reasonembed_mteb.training.merge_inputs import check_together, find_input, open_model, read_modules
from reasonembed_mteb.training.tensors import FLOATS, INDEX, WEIGHTS, write_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from reasonembed_mteb.training.merge_inputs import MergeInput, WholeModel

logger = logging.getLogger(__name__)

# Where a merge is recorded: within a model's own configuration, beside an adapter's.
_CONFIG = "config_sentence_transformers.json"
RECORD_KEY = "merge"
ADAPTER_RECORD = "merge.json"
_PACKAGES = ("reasonembed-mteb", "sentence-transformers", "transformers", "torch", "peft", "safetensors")


def merge(
    models: Sequence[str | Path],
    weights: Sequence[float] | None,
    output: Path,
    *,
    method: str = "linear",
    full: bool = False,
) -> Path:
    """Merge models of one architecture, or adapters of one base, by weights.

    A model counts as its weights, an adapter beside models as the model that it makes of its base. Adapters
    alone become one adapter whose product is exactly the weighted sum of theirs. Every sum is made in float64
    and rounded once to the first model's dtype; of the weights no more than a few pieces lie in memory.

    Args:
        models: Directories or hub names, at least two; the first one's prompts, length, layout and dtypes
            are taken where they differ, which is said.
        weights: One for each; None for equal ones. What they sum to is said where it is not 1.
        output: A new folder: a sentence-transformers directory, or an adapter's.
        method: ``linear``, or ``spherical``: the mean of the directions on the sphere, tensor by tensor.
        full: Whether adapters alone become a whole model too.

    Returns:
        The folder.

    Raises:
        ReasonEmbedError: If weights or models do not fit together, or the output cannot be written.
        DataError: If there is something in the output, or a file of weights is damaged.
    """
    chosen = merge_weights(len(models), weights, method)
    inputs = [find_input(str(one)) for one in models]
    record = _record(inputs, chosen, method)
    adapters = [one.adapter for one in inputs if one.adapter is not None]
    if len(adapters) == len(inputs) and not full:
        _write_adapter(adapters, chosen, record, output)
        return output
    whole = [open_model(one) for one in inputs]
    check_together(whole)
    with replacing_folder(output) as part:
        _write_model(whole, chosen, method, part)
        _note(part / _CONFIG, record)
        write_whole(part / "README.md", _card(record))
    return output


def average_checkpoints(run: Path, output: Path, *, last: int = 3) -> Path:
    """Average a training run's last checkpoints with equal weights.

    Args:
        run: Folder of a run, or of its checkpoints.
        output: A new folder, as of `merge`.
        last: How many checkpoints, at least 2.

    Returns:
        The folder.

    Raises:
        DataError: If there is no such run, or it has fewer whole checkpoints.
        ReasonEmbedError: As of `merge`.
    """
    if not run.is_dir():
        msg = f"there is no folder {run}: give that of a training run, or of its checkpoints"
        raise DataError(msg)
    folder = run / CHECKPOINTS if (run / CHECKPOINTS).is_dir() else run
    every = [path for _, path in checkpoints(folder)]
    # Those of other trainers bear no mark of ours.
    marked = any((path / MARK).is_file() for path in every)
    found = [path for path in every if (is_whole(path) if marked else _is_model(path))]
    if last < 2 or len(found) < last:
        msg = (
            f"{run} has {len(found)} whole checkpoints and the last {last} are to be averaged: give --last "
            "between 2 and their number (training.save_steps and training.keep say how many a run keeps)"
        )
        raise DataError(msg)
    return merge(found[-last:], None, output)


def _is_model(folder: Path) -> bool:
    return (folder / "modules.json").is_file() or (folder / ADAPTER_CONFIG).is_file()


def _record(inputs: Sequence[MergeInput], weights: Sequence[float], method: str) -> dict[str, Any]:
    described = [one.described() | {"weight": weight} for one, weight in zip(inputs, weights, strict=True)]
    return {"method": method, "inputs": described, "versions": package_versions(_PACKAGES)}


def _write_adapter(
    adapters: Sequence[AdapterFiles], weights: Sequence[float], record: dict[str, Any], output: Path
) -> None:
    check_same_base(adapters)
    with replacing_folder(output) as part:
        _copy_settings(adapters[0].folder, part)
        join_adapters(adapters, weights, record["method"], part)
        write_whole(part / ADAPTER_RECORD, json_text(record))
        write_whole(part / "README.md", _card(record, adapters[0].base))


def _copy_settings(folder: Path, part: Path) -> None:
    """Copy what may lie beside an adapter: a tokenizer, and in a checkpoint the modules and prompts."""
    kept = {file for file in folder.iterdir() if file.suffix in (".json", ".txt", ".jinja", ".model")}
    kept -= {folder / name for name in (ADAPTER_CONFIG, ADAPTER_RECORD, MARK, "trainer_state.json")}
    for module in read_modules(folder)[1:]:
        kept |= set((folder / module["path"]).rglob("*"))
    for file in kept:
        if file.is_file():
            copied = part / file.relative_to(folder)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)


def _write_model(models: Sequence[WholeModel], weights: Sequence[float], method: str, folder: Path) -> None:
    """Write a plain sentence-transformers directory with the merged weights."""
    model = models[0].model
    for index, module in enumerate(list(model)[1:], start=1):
        if module.state_dict():
            model[index] = _merged_module(models, index, weights, method)
    inner: Any = backbone(model)
    inner.config.architectures = [type(inner).__name__]
    # The weights are not there to be saved; they are streamed into the folder afterwards.
    inner.save_pretrained = lambda path, **_: inner.config.save_pretrained(path)
    model.save_pretrained(str(folder), create_model_card=False)
    _write_shards(models, weights, method, folder / read_modules(folder)[0]["path"])


def _merged_module(models: Sequence[WholeModel], index: int, weights: Sequence[float], method: str) -> Any:  # noqa: ANN401
    """Return a later module, such as a dense layer, with merged weights; they are small."""
    same = []
    for one in models:
        kind: Any = type(one.model[index])
        same.append(kind.load(str(one.folder), subfolder=read_modules(one.folder)[index]["path"]))
    merged = {}
    for name, value in same[0].state_dict().items():
        values = [each.state_dict()[name].double() for each in same]
        inner = torch.tensor([[float((a * b).sum()) for b in values] for a in values], dtype=torch.float64)
        chosen = weights if method == "linear" else spherical_coefficients(inner, weights)
        total = torch.stack([weight * each for weight, each in zip(chosen, values, strict=True)]).sum(0)
        merged[name] = total.to(value.dtype)
    same[0].load_state_dict(merged)
    return same[0]


def _write_shards(models: Sequence[WholeModel], weights: Sequence[float], method: str, folder: Path) -> None:
    """Write the backbone's weights in shards like the first model's."""
    shards: dict[Path, list[str]] = {}
    for name, place in models[0].places.items():
        if place.is_float or all(model.place(name) is not None for model in models):
            shards.setdefault(place.file, []).append(name)
    written: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards.values(), start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        layout = {name: models[0].places[name] for name in names}
        total += write_tensors(folder / file, layout, lambda name: _merged(models, weights, method, name))
        written |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(written.items()))}
        write_whole(folder / INDEX, json_text(index))


def _merged(
    models: Sequence[WholeModel], weights: Sequence[float], method: str, name: str
) -> Iterator[Tensor]:
    """Yield a merged tensor piece by piece, in the first model's dtype."""
    place = models[0].places[name]
    if not place.is_float:
        yield from _same(models, name)
        return
    chosen = list(weights) if method == "linear" else _on_sphere(models, weights, name)
    for start, stop in place.pieces():
        total = models[0].read(name, start, stop).mul_(chosen[0])
        for model, weight in zip(models[1:], chosen[1:], strict=True):
            total.add_(model.read(name, start, stop).mul_(weight))
        piece = total.to(FLOATS[place.dtype])
        if not bool(piece.isfinite().all()):
            msg = (
                f"{name} would hold numbers that are not finite: {' or '.join(m.given for m in models)} "
                f"does, or {place.dtype} is too small for the sum"
            )
            raise ReasonEmbedError(msg)
        yield piece


def _same(models: Sequence[WholeModel], name: str) -> Iterator[Tensor]:
    """Yield a tensor of whole numbers, which all models must share: there is no mean of a mask."""
    places = [model.place(name) for model in models]
    for start, stop in models[0].places[name].pieces():
        read = [place.read(start, stop) for place in places if place is not None]
        if any(one.dtype != read[0].dtype or not torch.equal(one, read[0]) for one in read):
            msg = f"{name} ({models[0].places[name].dtype}) differs between the models and cannot be averaged"
            raise ReasonEmbedError(msg)
        yield read[0]


def _on_sphere(models: Sequence[WholeModel], weights: Sequence[float], name: str) -> list[float]:
    """Return a tensor's coefficients, from the inner products of all models' versions of it."""
    products = torch.zeros(len(models), len(models), dtype=torch.float64)
    for start, stop in models[0].places[name].pieces():
        rows = torch.stack([model.read(name, start, stop).reshape(-1) for model in models])
        products += rows @ rows.T
    return spherical_coefficients(products, weights)


def _note(file: Path, record: Mapping[str, Any]) -> None:
    """Add the record to a configuration."""
    held = read_json_object(file) or {}
    write_whole(file, json_text(held | {RECORD_KEY: record}))


def _card(record: Mapping[str, Any], base: str | None = None) -> str:
    """Write the card of a merged model, or of an adapter with its base."""
    from reasonembed_mteb.training.modelcard import public_name

    names = [one["model"] for one in record["inputs"]]
    # The hub takes names of its own here; a folder's name is none.
    known = [name for name in dict.fromkeys([public_name(base)] if base else names) if name.count("/") == 1]
    head = ["---", f"library_name: {'peft' if base else 'sentence-transformers'}"]
    head += ["pipeline_tag: sentence-similarity"]
    head += ["base_model:", *(f"- {json.dumps(name)}" for name in known)] if known else []
    head += ["base_model_relation: adapter" if base else "base_model_relation: merge"] if known else []
    head += [
        "tags:",
        "- sentence-transformers",
        "- feature-extraction",
        "- merge",
        "- reasonembed",
        "---",
        "",
    ]
    rows = [
        f"| {one['model']} | {one.get('base', '')} | {one['weight']:.6g} | `{one['fingerprint']}` |"
        for one in record["inputs"]
    ]
    what = f"An adapter of {public_name(base)}, the" if base else "The"
    parts = [
        f"# Merge of {', '.join(names)}",
        f"{what} {record['method']} merge of {len(names)} {'adapters' if base else 'models'}, made in "
        "float64 and rounded once. A model counts as its weights, an adapter beside models as the model that "
        "it makes of its base.",
        "\n".join(["| model | adapter of | weight | fingerprint |", "|---|---|---:|---|", *rows]),
        *([] if base else [f"Reads with {READERS}."]),
        "Made with " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
    ]
    return "\n".join(head) + "\n\n".join(parts) + "\n"
