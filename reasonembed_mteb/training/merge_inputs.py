"""What a merge reads, model directories with their adapters, and whether they belong together."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, first_names, missing_extra
from reasonembed_mteb.files import read_json_object
from reasonembed_mteb.models.folders import ADAPTER_CONFIG, content_revision, model_kind
from reasonembed_mteb.models.identity import tokenizer_hash
from reasonembed_mteb.training.adapter_files import AdapterFiles, read_adapter_files
from reasonembed_mteb.training.adapters import backbone
from reasonembed_mteb.training.tensors import INDEX, WEIGHTS, TensorPlace, tensor_places

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from reasonembed_mteb.models.reason_embed import ReasonEmbed

logger = logging.getLogger(__name__)

# Parts of the names of configuration entries that change no weight and no vector.
_HARMLESS = ("dropout", "token_id", "initializer", "label", "transformers_version", "dtype", "use_cache")
_HARMLESS_EXACT = {"architectures", "num_labels", "problem_type", "return_dict", "max_position_embeddings"}
# Weights that a merge does not need.
_SKIPPED = ("*.bin", "*.pt", "*.pth", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.gguf", "onnx/*", "openvino/*")


@dataclass(frozen=True)
class MergeInput:
    """A model or an adapter, by its folder.

    Attributes:
        given: As it was named.
        folder: Its folder.
        adapter: The adapter, or None where the folder holds a whole model.
    """

    given: str
    folder: Path
    adapter: AdapterFiles | None = None

    def described(self) -> dict[str, Any]:
        """Return what tells it from other inputs, without the folders of this machine."""
        from reasonembed_mteb.training.modelcard import public_name

        found = {"model": public_name(self.given), "fingerprint": content_revision(self.folder)}
        if self.adapter is not None:
            found["base"] = public_name(self.adapter.base)
        return found


def find_input(given: str) -> MergeInput:
    """Find a model or an adapter.

    Args:
        given: Directory or hub name.

    Raises:
        ReasonEmbedError: If there is none, or it is no dense embedding model.
    """
    folder = find_folder(given)
    # A checkpoint under adapters has a model's modules, and the adapter in place of its weights.
    whole = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
    if (folder / ADAPTER_CONFIG).is_file() and not whole:
        return MergeInput(given, folder, read_adapter_files(folder))
    kind = model_kind(folder)
    if kind != "dense":
        msg = f"{given} is a {kind} model; dense embedding models and their adapters can be merged"
        raise ReasonEmbedError(msg)
    return MergeInput(given, folder)


def find_folder(given: str, revision: str | None = None) -> Path:
    """Return a model's folder; one of the hub is fetched.

    Args:
        given: Directory or hub name.
        revision: Commit on the hub; None for the newest.

    Raises:
        ReasonEmbedError: If there is none.
    """
    folder = Path(given).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(given, revision=revision, ignore_patterns=list(_SKIPPED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        msg = f"there is no folder {given}, and the hub gives none ({reason}): correct the name or go online"
        raise ReasonEmbedError(msg) from error


@dataclass
class WholeModel:
    """A model whose weights are read from its files, an adapter's upon those of its base.

    Attributes:
        given: As it was named.
        folder: That of the model, or of an adapter's base.
        model: The model without the backbone's weights: tokenizer, pooling, prompts, configuration.
        places: Where the backbone's tensors lie, by the names that the backbone without a head has.
        adapter: The adapter upon it, or None.
        tied: For each tied tensor, the names of all that are one with it.
        adapted: The module of the adapter by the name of the weight that it is added to.
    """

    given: str
    folder: Path
    model: ReasonEmbed
    places: dict[str, TensorPlace]
    adapter: AdapterFiles | None = None
    tied: dict[str, set[str]] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)

    def place(self, name: str) -> TensorPlace | None:
        """Return where a tensor lies, under its own name or that of one tied to it; None if nowhere.

        Args:
            name: As the model that is written calls it.
        """
        return next(
            (self.places[one] for one in (name, *self.tied.get(name, ())) if one in self.places), None
        )

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows of a tensor, the adapter added, in float64 ``(stop - start, ...)``.

        Args:
            name: As the model that is written calls it.
            start: First row.
            stop: The row behind the last.
        """
        # `check_together` has seen that it is there.
        place = self.place(name) or self.places[name]
        found = place.read(start, stop).double()
        module = self.adapted.get(name)
        return (
            found
            if module is None or self.adapter is None
            else found + self.adapter.added(module, start, stop)
        )


def open_model(one: MergeInput) -> WholeModel:
    """Read everything of a model but its backbone's weights.

    Args:
        one: A model, or an adapter, whose base is fetched where it is on the hub.

    Raises:
        ReasonEmbedError: If it cannot be read, is quantised, or an adapter does not fit its base.
        MissingExtraError: If accelerate, by which weights are left out, is not installed.
    """
    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    if find_spec("accelerate") is None:
        raise missing_extra("accelerate", "train")
    adapter = one.adapter
    folder = one.folder if adapter is None else find_folder(adapter.base, adapter.config.get("revision"))
    found = tensor_places(_backbone_folder(folder))
    try:
        model = ReasonEmbed(str(folder), model_kwargs={"device_map": "meta"})
    # Tensors of another shape than the configuration's are a RuntimeError.
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        msg = f"cannot read the model {folder}: {str(error).strip().splitlines()[0]}"
        raise ReasonEmbedError(msg) from error
    inner = backbone(model)
    if getattr(inner.config, "quantization_config", None):
        msg = f"{one.given} is quantised, and its numbers cannot be added up: give the model it was made of"
        raise ReasonEmbedError(msg)
    places = _without_head(found, inner.base_model_prefix)
    opened = WholeModel(one.given, folder, model, places, one.adapter, _tied(inner))
    if one.adapter is not None:
        opened.adapted = _adapted(opened, one.adapter)
        _check_tokenizer(one.folder, model, one.given)
        _take_settings(one.folder, model)
    return opened


def _take_settings(folder: Path, model: ReasonEmbed) -> None:
    """Take the prompts and the length that lie beside an adapter, as in a checkpoint."""
    held = read_json_object(folder / "config_sentence_transformers.json") or {}
    if isinstance(held.get("prompts"), dict):
        model.prompts = held["prompts"]
    length = (read_json_object(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    if isinstance(length, int):
        model.max_seq_length = length


def _backbone_folder(folder: Path) -> Path:
    """Return where the weights of a directory's first module lie."""
    modules = read_modules(folder)
    return folder / modules[0]["path"] if modules else folder


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """Return the modules of a sentence-transformers directory, with their paths; none of a bare checkpoint.

    Args:
        folder: The directory.
    """
    file = folder / "modules.json"
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return found


def _without_head(places: dict[str, TensorPlace], prefix: str) -> dict[str, TensorPlace]:
    """Name tensors as the backbone alone names them; a head's are left out, since no embedder uses them."""
    start = f"{prefix}."
    if not prefix or not any(name.startswith(start) for name in places):
        return places
    heads = [name for name in places if not name.startswith(start)]
    if heads:
        logger.info("not merged, since it is no part of an embedding model: %s", first_names(heads))
    return {n.removeprefix(start): place for n, place in places.items() if n.startswith(start)}


def _tied(inner: Any) -> dict[str, set[str]]:  # noqa: ANN401 - a transformers model
    """Return the groups of names under which a model holds one and the same tensor."""
    groups: dict[int, set[str]] = {}
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def _adapted(whole: WholeModel, adapter: AdapterFiles) -> dict[str, str]:
    """Return the adapter's module for each weight that it is added to."""
    found = {}
    for module, (first, second) in adapter.factors.items():
        # On a model with a head the backbone has a name of its own.
        names = [f"{module}.weight", f"{module.partition('.')[2]}.weight"]
        name = next((one for one in names if whole.place(one) is not None), None)
        place = whole.place(name) if name else None
        shape = (second.shape[0], first.shape[1])
        turned = module in adapter.embeddings or adapter.config.get("fan_in_fan_out")
        if name is None or place is None or place.shape != (shape[::-1] if turned else shape):
            held = f"has the shape {place.shape} there" if place is not None else "is not there"
            msg = f"the adapter {adapter.folder} does not fit its base {adapter.base}: {module} {held}"
            raise ReasonEmbedError(msg)
        found[name] = module
    return found


def _check_tokenizer(folder: Path, model: ReasonEmbed, given: str) -> None:
    """Check that a tokenizer beside an adapter is its base's."""
    if not (folder / "tokenizer.json").is_file():
        return
    from transformers import AutoTokenizer

    if AutoTokenizer.from_pretrained(folder).get_vocab() != model.tokenizer.get_vocab():
        msg = f"the adapter {given} has another vocabulary than its base: put it on its base and save that"
        raise ReasonEmbedError(msg)


def check_together(models: Sequence[WholeModel]) -> None:
    """Check that models can be averaged, and say what is taken where that makes no vector wrong.

    Args:
        models: The first is the one whose prompts, length, layout and dtypes are taken.

    Raises:
        ReasonEmbedError: If architecture, shapes, vocabulary or pooling differ.
    """
    first, *others = models
    for other in others:
        differing = list(_differences(first, other))
        if differing:
            msg = f"{first.given} and {other.given} cannot be merged: {'; '.join(differing)}"
            raise ReasonEmbedError(msg)
        _say_taken(first, other)


def _differences(first: WholeModel, other: WholeModel) -> Iterator[str]:
    one, two = (_config(model) for model in (first, other))
    differing = [key for key in one.keys() | two.keys() if one.get(key) != two.get(key)]
    # The kind first: all else follows from it.
    for key in sorted(differing, key=lambda key: (key != "model_type", key))[:3]:
        yield f"{key} is {one.get(key)!r} and {two.get(key)!r}"
    if differing:
        return
    yield from _other_tensors(first, other)
    if first.model.tokenizer.get_vocab() != other.model.tokenizer.get_vocab():
        yield "their tokenizers have other vocabularies"
    elif tokenizer_hash(first.model.tokenizer) != tokenizer_hash(other.model.tokenizer):
        yield "their tokenizers split texts, or add special tokens, by other rules"
    if _modules(first) != _modules(other):
        yield f"their modules differ, {_modules(first)} and {_modules(other)}"
    if first.model.similarity_fn_name != other.model.similarity_fn_name:
        yield f"similarity is {first.model.similarity_fn_name} and {other.model.similarity_fn_name}"


def _other_tensors(first: WholeModel, other: WholeModel) -> Iterator[str]:
    missing = [name for name in first.places if other.place(name) is None and _counts(first, name)]
    missing += [name for name in other.places if first.place(name) is None and _counts(other, name)]
    if missing:
        yield f"only one has {first_names(sorted(missing), 3)}"
    for name, place in first.places.items():
        found = other.place(name)
        if found is not None and found.shape != place.shape:
            yield f"{name} has the shape {place.shape} and {found.shape}"
            return
        if found is not None and found.is_float != place.is_float:
            yield f"{name} is {place.dtype} and {found.dtype}"
            return


def _counts(model: WholeModel, name: str) -> bool:
    """Whether a tensor is a weight, and no counter that older versions wrote too."""
    place = model.place(name)
    return place is not None and place.is_float


def _config(model: WholeModel) -> dict[str, Any]:
    """Return what decides a model's weights and vectors, of its configuration, flat."""
    return dict(_flat(backbone(model.model).config.to_dict()))


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if key.startswith("_") or key in _HARMLESS_EXACT or any(part in key for part in _HARMLESS):
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _modules(model: WholeModel) -> list[str]:
    """Describe what comes after the backbone: pooling, dense layers, unit length."""
    found = []
    for module in list(model.model)[1:]:
        options: dict[str, Any] = getattr(module, "get_config_dict", dict)()
        found.append(f"{type(module).__name__}({', '.join(f'{k}={v}' for k, v in sorted(options.items()))})")
    return found


def _say_taken(first: WholeModel, other: WholeModel) -> None:
    """Say what differs without harm, and that the first model's is taken."""
    one, two = first.model, other.model
    names = sorted(
        key for key in one.prompts.keys() | two.prompts.keys() if _prompt(one, key) != _prompt(two, key)
    )
    if names or one.default_prompt_name != two.default_prompt_name:
        what = first_names(names or [f"the default, {one.default_prompt_name}"], 3)
        logger.warning(
            "the prompts of %s and %s differ (%s); the first's are taken", first.given, other.given, what
        )
    if one.max_seq_length != two.max_seq_length:
        logger.warning(
            "the lengths of %s and %s are %s and %s tokens; the first's is taken",
            *(first.given, other.given, one.max_seq_length, two.max_seq_length),
        )
    pairs = [(place.dtype, other.place(name)) for name, place in first.places.items() if place.is_float]
    if any(found is not None and found.dtype != dtype for dtype, found in pairs):
        logger.warning("the dtypes of %s and %s differ; the first's are taken", first.given, other.given)


def _prompt(model: ReasonEmbed, name: str) -> str:
    return model.prompts.get(name) or ""
