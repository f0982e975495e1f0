"""Low-rank adapters as files: their factors, what they add to a weight, and several of them as one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reasonembed_mteb.errors import DataError, ReasonEmbedError, first_names
from reasonembed_mteb.files import json_text, read_json_object, write_whole
from reasonembed_mteb.models.folders import ADAPTER_CONFIG, content_revision, read_adapter
from reasonembed_mteb.training.adapters import ADAPTER_WEIGHTS
from reasonembed_mteb.training.averages import spherical_coefficients
from reasonembed_mteb.training.tensors import FLOATS, TensorPlace, file_places

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
# The backbone within a decoder with a head.
_PREFIX = "model."
# What makes an adapter more, or other, than a product added to a weight; each is off where it is unset.
_MORE_THAN_A_PRODUCT = (
    *("use_dora", "modules_to_save", "lora_bias", "target_parameters", "trainable_token_indices"),
    *("layer_replication", "use_qalora", "alora_invocation_tokens", "use_bdlora", "arrow_config"),
    *("kasa_config", "velora_config", "monteclora_config", "megatron_config"),
)
# Ways to begin that leave the base as it is; the others (PiSSA, OLoRA, ...) change it.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA adapter on disk.

    Attributes:
        folder: Its folder.
        config: Its ``adapter_config.json``.
        factors: The places of A ``(r, in)`` and B ``(out, r)`` by the name of the module beneath.
        embeddings: Modules that are embeddings, whose weight is the product's transpose.
        prefix: What stood before every module's name, as on a model with a head.
    """

    folder: Path
    config: dict[str, Any]
    factors: dict[str, tuple[TensorPlace, TensorPlace]]
    embeddings: frozenset[str] = frozenset()
    prefix: str = ""

    @property
    def base(self) -> str:
        """Hub name or directory of the model that it adapts."""
        return str(self.config["base_model_name_or_path"])

    def scale(self, module: str) -> float:
        """Return what a module's product is multiplied by.

        Args:
            module: Its name.
        """
        from peft.utils.other import get_pattern_key

        rank, own = self.factors[module][0].shape[0], self.config.get("alpha_pattern") or {}
        alpha = own.get(get_pattern_key(list(own), self.prefix + module), self.config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def added(self, module: str, start: int, stop: int) -> Tensor:
        """Return rows of what the adapter adds to a module's weight ``(stop - start, ...)``, float64.

        Args:
            module: Its name.
            start: First row of the weight.
            stop: The row behind the last.
        """
        first, second = self.factors[module]
        if module in self.embeddings or self.config.get("fan_in_fan_out"):
            rows = _all(first)[:, start:stop].T @ _all(second).T
        else:
            rows = second.read(start, stop).double() @ _all(first)
        return rows * self.scale(module)


def _all(place: TensorPlace) -> Tensor:
    return place.read(0, place.shape[0]).double()


def read_adapter_files(folder: Path) -> AdapterFiles:
    """Read an adapter's configuration and where its factors lie.

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ReasonEmbedError: If it names no base, or is no plain low-rank product.
        DataError: If its weights are missing or damaged.
        MissingExtraError: If peft is not installed.
    """
    read_adapter(folder / ADAPTER_CONFIG)
    config = read_json_object(folder / ADAPTER_CONFIG) or {}
    _check_plain(folder, config)
    pairs: dict[str, dict[str, TensorPlace]] = {}
    embeddings, others = set(), []
    for place in file_places(folder / ADAPTER_WEIGHTS):
        match = _FACTOR.fullmatch(place.name)
        if match is None or len(place.shape) != 2 or not place.is_float:
            others.append(place.name)
            continue
        pairs.setdefault(match[1], {})[match[3]] = place
        embeddings |= {match[1]} if match[2] else set()
    others += [name for name, pair in pairs.items() if len(pair) != 2]
    if others or not pairs:
        held = f"holds {first_names(others, 2)}, which are" if others else "holds"
        msg = f"{folder / ADAPTER_WEIGHTS} {held} no pairs of LoRA matrices; put it on its base and save that"
        raise DataError(msg)
    prefix = _PREFIX if all(name.startswith(_PREFIX) for name in pairs) else ""
    factors = {name.removeprefix(prefix): (pair["A"], pair["B"]) for name, pair in pairs.items()}
    kept = frozenset(name.removeprefix(prefix) for name in embeddings)
    return AdapterFiles(folder, config, factors, kept, prefix)


def _check_plain(folder: Path, config: dict[str, Any]) -> None:
    kind, start = config.get("peft_type"), config.get("init_lora_weights", True)
    odd = [name for name in _MORE_THAN_A_PRODUCT if config.get(name)]
    odd += ["bias"] if config.get("bias", "none") != "none" else []
    odd += [] if start in _PLAIN_STARTS else [f"init_lora_weights={start}"]
    if kind != "LORA" or odd:
        found = f"uses {', '.join(odd)}" if kind == "LORA" else f"is of the kind {kind}"
        msg = (
            f"the adapter {folder} {found}, which is more than a LoRA product added to a weight: put it on "
            "its base with peft (merge_and_unload), save that, and merge the saved models"
        )
        raise ReasonEmbedError(msg)


def check_same_base(adapters: Sequence[AdapterFiles]) -> None:
    """Check that adapters belong to the same base and adapt weights of the same shape.

    Args:
        adapters: At least one.

    Raises:
        ReasonEmbedError: If they do not.
    """
    first, *others = adapters
    for other in others:
        if _base_of(other) != _base_of(first):
            msg = (
                f"the adapters {first.folder} and {other.folder} have other bases ({first.base} and "
                f"{other.base}): merge adapters of one base, or with --full the models that they make"
            )
            raise ReasonEmbedError(msg)
        for module in first.factors.keys() & other.factors.keys():
            if _shape(first, module) != _shape(other, module):
                msg = (
                    f"{module} has the shape {_shape(first, module)} beneath {first.folder} and "
                    f"{_shape(other, module)} beneath {other.folder}: they are adapters of other models"
                )
                raise ReasonEmbedError(msg)


def _base_of(adapter: AdapterFiles) -> object:
    """Return what tells a base from others: a directory's content, a hub model's name and commit."""
    folder = Path(adapter.base)
    fan = bool(adapter.config.get("fan_in_fan_out"))
    return (
        content_revision(folder) if folder.is_dir() else (adapter.base, adapter.config.get("revision")),
        fan,
    )


def _shape(adapter: AdapterFiles, module: str) -> tuple[int, int]:
    """Return the shape of a module's product."""
    first, second = adapter.factors[module]
    return second.shape[0], first.shape[1]


def join_adapters(
    adapters: Sequence[AdapterFiles], weights: Sequence[float], method: str, folder: Path
) -> None:
    """Write the weighted sum of adapters as one adapter, exactly.

    The products are summed, not the factors: the factors A stand one below the other, and the factors B,
    each times its scale and weight, side by side. The rank is the sum of the ranks.

    Args:
        adapters: Of one base.
        weights: One for each.
        method: ``linear`` or ``spherical``, where each module's weights are those of its products.
        folder: An empty folder.

    Raises:
        ReasonEmbedError: If a number is not finite.
    """
    from safetensors.torch import save_file

    modules = list(dict.fromkeys(name for adapter in adapters for name in adapter.factors))
    ranks = {
        name: sum(adapter.factors[name][0].shape[0] for adapter in _with(adapters, name)) for name in modules
    }
    rank = max(ranks.values())
    tensors: dict[str, Tensor] = {}
    for name in modules:
        chosen = list(weights) if method == "linear" else _spherical(adapters, weights, name)
        first, second = _joined(adapters, chosen, name, rank)
        embedding = any(name in adapter.embeddings for adapter in adapters)
        for letter, value in (("A", first), ("B", second)):
            ending = f"lora_embedding_{letter}" if embedding else f"lora_{letter}.weight"
            tensors[f"base_model.model.{adapters[0].prefix}{name}.{ending}"] = value
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    write_whole(folder / ADAPTER_CONFIG, json_text(_joined_config(adapters, modules, rank)))


def _with(adapters: Sequence[AdapterFiles], module: str) -> list[AdapterFiles]:
    return [adapter for adapter in adapters if module in adapter.factors]


def _joined(
    adapters: Sequence[AdapterFiles], weights: Sequence[float], module: str, rank: int
) -> tuple[Tensor, Tensor]:
    """Return a module's factors A ``(rank, in)`` and B ``(out, rank)``, filled up with zeros."""
    parts = [(a, w) for a, w in zip(adapters, weights, strict=True) if module in a.factors]
    firsts = [_all(adapter.factors[module][0]) for adapter, _ in parts]
    seconds = [_all(adapter.factors[module][1]) * (adapter.scale(module) * w) for adapter, w in parts]
    first, second = torch.cat(firsts), torch.cat(seconds, dim=1)
    missing = rank - first.shape[0]
    first = torch.nn.functional.pad(first, (0, 0, 0, missing))
    second = torch.nn.functional.pad(second, (0, missing))
    own = parts[0][0].factors[module]
    found = first.to(FLOATS[own[0].dtype]), second.to(FLOATS[own[1].dtype])
    if not all(bool(value.isfinite().all()) for value in found):
        msg = f"the merged adapter of {module} holds numbers that are not finite: so does one of the adapters"
        raise ReasonEmbedError(msg)
    return found


def _spherical(adapters: Sequence[AdapterFiles], weights: Sequence[float], module: str) -> list[float]:
    """Return the coefficients of a module's products, from their inner products.

    Those of two products are the sum over ``(B1' B2) * (A1 A2')``: the products are never made.
    """
    if len(_with(adapters, module)) < len(adapters):
        return list(weights)
    firsts = [_all(adapter.factors[module][0]) for adapter in adapters]
    seconds = [_all(a.factors[module][1]) * a.scale(module) for a in adapters]
    inner = [
        [((b.T @ d) * (a @ c.T)).sum() for c, d in zip(firsts, seconds, strict=True)]
        for a, b in zip(firsts, seconds, strict=True)
    ]
    return spherical_coefficients(torch.tensor(inner, dtype=torch.float64), weights)


def _joined_config(adapters: Sequence[AdapterFiles], modules: Iterable[str], rank: int) -> dict[str, Any]:
    """Return the first adapter's configuration with the joined rank and modules; their scale is 1."""
    first = adapters[0].config
    chosen = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    config = first | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    config |= {"init_lora_weights": True, "eva_config": None}
    if any(_sorted(other.config.get(key)) != _sorted(first.get(key)) for other in adapters for key in chosen):
        config |= dict.fromkeys(chosen) | {"target_modules": [adapters[0].prefix + name for name in modules]}
    return config


def _sorted(value: Any) -> Any:  # noqa: ANN401 - a list of names, or another value of a configuration
    return sorted(value, key=str) if isinstance(value, list) else value
