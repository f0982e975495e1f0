"""Saved directories that sentence-transformers 5 and 6, transformers 4 and 5 and FlagEmbedding all read.

The newest libraries write what only they read. Older ones then stop, or, worse, read other positions than
the model was made with (transformers 4 knows no ``rope_parameters`` and silently takes its default base).
Here the older spelling is added to a directory that sentence-transformers has just written; where an older
reader stops at a newer key, a key that holds its default anyway is taken out. Nothing changes for the newest.
"""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.files import write_whole
from reasonembed_mteb.models.special_tokens import rebuilt_class

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sentence_transformers import SentenceTransformer
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

# What a directory was read with, and gave equal vectors; the card says so.
READERS = "sentence-transformers >= 5.1 (transformers >= 4.57) and FlagEmbedding >= 1.4"

# Classes that sentence-transformers 5 has under `sentence_transformers.models`; 6 maps them to its own.
_MODULES = (
    *("Transformer", "Pooling", "Normalize", "Dense", "Dropout", "LayerNorm", "StaticEmbedding", "Router"),
    *("CNN", "LSTM", "BoW", "WordEmbeddings", "WordWeights", "WeightedLayerPooling"),
)
# Flags of sentence-transformers 5's pooling by the newer mode, in the order in which it joins several.
_POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
# What sentence-transformers 6 takes where its Transformer's configuration does not say.
_TRANSFORMER_DEFAULTS = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
# Names of the rotary base and of the rotated share in transformers 4, where they are not the usual ones.
_ROPE_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}
# Names of the bases of full and of sliding attention in transformers 4, by the kind of model.
_LAYER_ROPE_NAMES = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert": ("global_rope_theta", "local_rope_theta"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
}


def add_older_forms(folder: Path, model: SentenceTransformer) -> None:
    """Make a saved directory readable for older libraries; a second call changes nothing.

    Args:
        folder: What sentence-transformers has just written.
        model: The model that was saved.
    """
    modules = _read(folder / "modules.json")
    for module in modules or []:
        _module_files(folder / module["path"], module["type"], model[int(module["idx"])])
        module["type"] = _older_class(module["type"])
    if modules is not None:
        _write(folder / "modules.json", modules)


def _module_files(folder: Path, path: str, inner: Any) -> None:  # noqa: ANN401 - any module
    kind = path.rpartition(".")[2]
    if kind == "Router":
        _rewrite(folder / "router_config.json", lambda held: _older_router(held, folder, inner))
    elif kind == "Pooling":
        _rewrite(folder / "config.json", _older_pooling)
    elif kind == "Transformer":
        length = getattr(inner, "max_seq_length", None)
        _rewrite(folder / "sentence_bert_config.json", lambda held: _older_transformer(held, length))
        _rewrite(folder / "tokenizer_config.json", lambda held: _older_tokenizer(held, folder, inner))
        config = getattr(getattr(inner, "auto_model", None), "config", None)
        if config is not None:
            _rewrite(folder / "config.json", lambda held: _older_config(held, config))


def _older_router(held: dict[str, Any], folder: Path, inner: Any) -> dict[str, Any]:  # noqa: ANN401
    """Write the modules of every route for older readers, and how the router names them."""
    routes = held["structure"].items()
    modules = {name: inner.sub_modules[route][i] for route, names in routes for i, name in enumerate(names)}
    for name, module in modules.items():
        _module_files(folder / name, held["types"][name], module)
    # sentence-transformers 5.1 stops at a parameter that it does not know.
    parameters = {k: v for k, v in held["parameters"].items() if k != "route_mappings" or v}
    types = {name: _older_class(path) for name, path in held["types"].items()}
    return held | {"types": types, "parameters": parameters}


def _older_class(path: str) -> str:
    name = path.rpartition(".")[2]
    known = path.startswith("sentence_transformers.") and name in _MODULES
    return f"sentence_transformers.models.{name}" if known else path


def _older_pooling(held: dict[str, Any]) -> dict[str, Any]:
    mode = held.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else list(mode or [])
    known = [name for name in _POOLING_FLAGS if name in modes]
    # Flags have no order of their own: modes joined in another one cannot be said by them.
    if not modes or known != modes or "embedding_dimension" not in held:
        return held
    rest = {k: v for k, v in held.items() if k not in ("pooling_mode", "embedding_dimension")}
    flags = {flag: name in modes for name, flag in _POOLING_FLAGS.items()}
    return {"word_embedding_dimension": held["embedding_dimension"], **flags, **rest}


def _older_transformer(held: dict[str, Any], length: int | None) -> dict[str, Any]:
    # sentence-transformers 5.1 stops at a key that it does not know.
    rest = {k: v for k, v in held.items() if k not in _TRANSFORMER_DEFAULTS or v != _TRANSFORMER_DEFAULTS[k]}
    return {"max_seq_length": length, "do_lower_case": False} | rest


def _older_tokenizer(held: dict[str, Any], folder: Path, inner: Any) -> dict[str, Any]:  # noqa: ANN401
    kind = str(held.get("tokenizer_class", ""))
    # transformers 4 gives some kinds a BOS or EOS of its own, whatever the tokenizer's file says.
    if (folder / "tokenizer.json").is_file() and (kind == "TokenizersBackend" or rebuilt_class(kind)):
        # The file says what is put before and after a text; a flag as well would be read twice.
        held = {k: v for k, v in held.items() if k not in ("add_bos_token", "add_eos_token")}
        held["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(held.get("extra_special_tokens"), list):
        # transformers 4 takes a mapping under this name, and the list under the older one.
        held["additional_special_tokens"] = held.pop("extra_special_tokens")
    # transformers 4 pads some kinds on the left by itself, and gives most models token types.
    tokenizer = getattr(inner, "tokenizer", None)
    for name in ("padding_side", "model_input_names"):
        if getattr(tokenizer, name, None):
            held[name] = getattr(tokenizer, name)
    # Where this tokenizer once came from; it depends on how often the model was saved.
    return dict(sorted((k, v) for k, v in held.items() if k not in ("is_local", "local_files_only")))


def _older_config(held: dict[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    older = deepcopy(held)
    for section in _sections(older):
        if isinstance(section.get("dtype"), str):
            section["torch_dtype"] = section["dtype"]
        if "num_experts" in config.attribute_map and "num_local_experts" in section:
            section["num_experts"] = section["num_local_experts"]
        section |= _older_rope(section)
        if isinstance(section.get("rope_parameters"), dict):
            # The older name of `rope_type`, which comes back where an older spelling was read.
            section["rope_parameters"].pop("type", None)
    if _reads_the_same(older, held, config):
        return dict(sorted(older.items()))
    logger.warning(
        "%s: transformers 4 has no spelling for these rotary positions; read it with transformers 5",
        config.model_type,
    )
    return held


def _sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a configuration and those inside it (a text model's within a model of several modalities)."""
    yield config
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            yield from _sections(value)


def _older_rope(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return transformers 4's keys for rotary positions."""
    rope, kind = section.get("rope_parameters"), str(section.get("model_type", ""))
    if not isinstance(rope, dict):
        return {}
    if "rope_theta" in rope:
        return _flat_rope(rope, kind)
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    if not full or not sliding or kind not in _LAYER_ROPE_NAMES:
        logger.warning("%s: transformers 4 has no spelling for rotary positions by layer of this kind", kind)
        return {}
    whole, local = _LAYER_ROPE_NAMES[kind]
    found = {whole: full["rope_theta"], local: sliding["rope_theta"]}
    scaled = _scaling(full)
    return found | ({"rope_scaling": scaled} if scaled else {})


def _flat_rope(rope: Mapping[str, Any], kind: str) -> dict[str, Any]:
    base, share = _ROPE_NAMES.get(kind, ("rope_theta", "partial_rotary_factor"))
    found = {base: rope["rope_theta"]}
    if "partial_rotary_factor" in rope:
        found[share] = rope["partial_rotary_factor"]
    scaled = _scaling(rope)
    if not scaled:
        return found
    if scaled["rope_type"] == "longrope":
        # Read from next to the mapping, not from inside it.
        original = scaled.get("original_max_position_embeddings")
        found |= {"original_max_position_embeddings": original} if original else {}
    if kind == "phi3":
        # It wants three keys exactly, the kind under its first name.
        scaled = {"type": "longrope"} | {k: scaled[k] for k in ("short_factor", "long_factor") if k in scaled}
    return found | {"rope_scaling": scaled}


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    if rope.get("rope_type", "default") == "default":
        return None
    return {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor", "type")}


def _reads_the_same(older: dict[str, Any], held: dict[str, Any], config: PretrainedConfig) -> bool:
    """Say whether the added keys leave what the running transformers reads as it was."""
    try:
        return _rope_read(older, config) == _rope_read(held, config)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        # A kind with a rule of its own for the older keys.
        return False


def _rope_read(held: Mapping[str, Any], config: PretrainedConfig) -> list[Any]:
    """Return the rotary positions that the running transformers reads from a configuration."""
    read = type(config).from_dict(deepcopy(dict(held))).to_dict()
    return [_without_type(section.get("rope_parameters")) for section in _sections(read)]


def _without_type(rope: Any) -> Any:  # noqa: ANN401
    """Leave out the older name of ``rope_type``."""
    return {k: _without_type(v) for k, v in rope.items() if k != "type"} if isinstance(rope, dict) else rope


def _read(file: Path) -> Any:  # noqa: ANN401 - any JSON
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _write(file: Path, content: Any) -> None:  # noqa: ANN401 - any JSON
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _rewrite(file: Path, change: Any) -> None:  # noqa: ANN401
    held = _read(file)
    if held is not None:
        _write(file, change(held))
