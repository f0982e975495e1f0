"""A model run another way: shorter vectors, compressed vectors, or fused with another model.

Each is filed apart from the plain model, by MTEB's own experiment names or, fused, by a name of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.files import fingerprint
from reasonembed_mteb.models.instructions import ABLATED, PromptRule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mteb.models import ModelMeta

    from reasonembed_mteb.encoding.fast import TextPool

FUSIONS = ("rrf", "dbsf", "rsf")
# MTEB's CompressionWrapper files its results under this experiment option.
_COMPRESSED = "output_dtypes"


def truncated(meta: ModelMeta, dimension: int) -> ModelMeta:
    """Cut a dense model's vectors to their first dimensions.

    Args:
        meta: The model.
        dimension: How many to keep.

    Raises:
        ReasonEmbedError: If the model is not dense, or has no more dimensions than that.
    """
    _check_dense(meta, "--truncate-dim")
    if isinstance(meta.embed_dim, int) and dimension >= meta.embed_dim:
        msg = f"--truncate-dim {dimension}: {meta.name} has {meta.embed_dim} dimensions; give fewer"
        raise ReasonEmbedError(msg)
    chosen = dict(meta.experiment_kwargs or {}) | {"embed_dim": dimension}
    return meta.model_copy(update={"experiment_kwargs": chosen})


def compressed(meta: ModelMeta, dtype: str) -> ModelMeta:
    """Compress a dense model's vectors by MTEB's `CompressionWrapper`.

    Args:
        meta: The model.
        dtype: One of MTEB's names: ``int8``, ``binary``, ``float8_e4m3fn`` ...

    Raises:
        UnknownNameError: If MTEB knows no such type; the nearest is named.
        ReasonEmbedError: If the model is not dense.
    """
    from mteb.types import OutputDType

    _check_dense(meta, "--compress")
    known = [one.value for one in OutputDType]
    if dtype not in known:
        raise unknown_name("compression", dtype, known)
    chosen = dict(meta.experiment_kwargs or {}) | {_COMPRESSED: dtype}
    return meta.model_copy(update={"experiment_kwargs": chosen})


def without_instruction(meta: ModelMeta) -> ModelMeta:
    """Leave a model's queries bare, to see what its instruction is worth; documents stay as they are.

    Args:
        meta: The model.

    Raises:
        ReasonEmbedError: If the model is not dense.
    """
    _check_dense(meta, "--ablate-instruction")
    chosen = dict(meta.experiment_kwargs or {}) | {ABLATED: True}
    return meta.model_copy(update={"experiment_kwargs": chosen})


def _check_dense(meta: ModelMeta, option: str) -> None:
    if "dense" not in (meta.model_type or ()):
        msg = f"{option} is for dense models, and {meta.name} is {', '.join(meta.model_type or ['unknown'])}"
        raise ReasonEmbedError(msg)


def fused(parts: Sequence[ModelMeta], fusion: str) -> ModelMeta:
    """Fuse the rankings of several models by MTEB's `HybridSearch`.

    Args:
        parts: The models; their revisions name the result's.
        fusion: ``rrf``, ``dbsf`` or ``rsf``.

    Raises:
        UnknownNameError: If MTEB has no such fusion.
        ReasonEmbedError: If there are not two different models, or one of them is a cross-encoder.
    """
    from mteb.models import ModelMeta

    if fusion not in FUSIONS:
        raise unknown_name("fusion", fusion, FUSIONS)
    names = [part.model_name_with_experiment or str(part.name) for part in parts]
    revisions = [f"{name}@{part.revision}" for name, part in zip(names, parts, strict=True)]
    if len(set(revisions)) != len(revisions) or len(parts) < 2:
        msg = f"a fusion needs different models, not {' and '.join(names)}"
        raise ReasonEmbedError(msg)
    for part in parts:
        if "cross-encoder" in (part.model_type or ()):
            msg = f"{part.name} is a cross-encoder, which cannot be fused: rerank with --rerank-from"
            raise ReasonEmbedError(msg)

    def load_fused(name: str, revision: str | None = None, *, device: str | None = None, **_: Any) -> Any:  # noqa: ANN401 - mteb's HybridSearch
        from mteb.models.hybrid_wrappers import HybridSearch

        del name, revision
        models = [load_variant(part, device=device) for part in parts]
        return HybridSearch(models, fusion_strategy=fusion)  # type: ignore[arg-type]

    short = "-".join(name.rsplit("/", 1)[-1] for name in names)
    return ModelMeta.create_empty(
        overwrites={
            "name": f"hybrid/{fusion}-{short}",
            "revision": fingerprint(fusion, *revisions),
            "model_type": ["hybrid"],
            "loader": load_fused,
            "loader_kwargs": {"fusion": fusion, "parts": revisions},
        }
    )


def load_variant(meta: ModelMeta, *, device: str | None = None) -> Any:  # noqa: ANN401 - any of mteb's model protocols
    """Load a model, and compress it if its metadata say so.

    Args:
        meta: The model.
        device: Where to; None lets torch choose.
    """
    chosen = dict(meta.experiment_kwargs or {})
    dtype = chosen.pop(_COMPRESSED, None)
    ablated = chosen.pop(ABLATED, False)
    model: Any = meta.model_copy(update={"experiment_kwargs": chosen or None}).load_model(device=device)
    _check_dimension(model, chosen.get("embed_dim"))
    if ablated:
        _leave_queries_bare(model)
    if dtype is None:
        return model
    from mteb.models import CompressionWrapper
    from mteb.types import OutputDType

    return CompressionWrapper(model, OutputDType(dtype))


def _leave_queries_bare(model: Any) -> None:  # noqa: ANN401
    """Let nothing go before a query; the scores are filed apart."""
    if not isinstance(getattr(model, "prompt_rule", None), PromptRule):
        msg = (
            f"--ablate-instruction: {model.mteb_model_meta.name} is loaded by code of its own, whose "
            "instruction cannot be left out; give its weights as a directory"
        )
        raise ReasonEmbedError(msg)
    model.prompt_rule = replace(model.prompt_rule, bare_queries=True)
    meta = model.mteb_model_meta
    chosen = dict(meta.experiment_kwargs or {}) | {ABLATED: True}
    model.mteb_model_meta = meta.model_copy(update={"experiment_kwargs": chosen})


def _check_dimension(model: Any, asked: int | None) -> None:  # noqa: ANN401
    """Refuse to cut vectors that are shorter already; only the loaded model may know."""
    own = getattr(getattr(model, "model", None), "get_embedding_dimension", lambda: None)()
    if asked is not None and own is not None and own < asked:
        msg = f"--truncate-dim {asked}: {model.mteb_model_meta.name} has {own} dimensions; give fewer"
        raise ReasonEmbedError(msg)


def with_store(model: Any, root: Path, dtype: str) -> Any:  # noqa: ANN401 - any of mteb's model protocols
    """Keep a model's vectors in a store; models without one dense vector a text are left as they are.

    Args:
        model: A loaded MTEB model, compressed or fused ones among them; changed in place.
        root: The store's folder.
        dtype: How vectors are kept.

    Returns:
        What to search with.
    """
    from mteb.models import CompressionWrapper, SearchEncoderWrapper

    from reasonembed_mteb.store.encoder import StoredEncoder, storable

    parts = getattr(model, "wrapped_models", None)
    if isinstance(parts, list):
        model.wrapped_models = [with_store(part, root, dtype) for part in parts]
    elif isinstance(model, (CompressionWrapper, SearchEncoderWrapper)):
        # The full vectors are stored, so that every compression of a model shares them.
        model.model = with_store(model.model, root, dtype)
    elif storable(model):
        return StoredEncoder(model, root, dtype)
    return model


def speed_up(model: Any, *, batch_tokens: int | None, attn: str, compile_layers: str) -> None:  # noqa: ANN401
    """Let every SentenceTransformer inside a model encode by token budget, baselines too.

    Args:
        model: A loaded MTEB model; changed in place.
        batch_tokens: Tokens of a batch; None for the device's own.
        attn: See `reasonembed_mteb.encoding.accelerate`.
        compile_layers: Whether decoder layers are compiled.
    """
    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.encoding import accelerate
    from reasonembed_mteb.retrieval.lengths import sized_models

    for inner in sized_models(model):
        if isinstance(inner, SentenceTransformer):
            accelerate(inner, batch_tokens=batch_tokens, attn=attn, compile=compile_layers)


def check_devices(wish: str | None) -> list[str]:
    """Read a list of devices, each of which must be there.

    Args:
        wish: Such as ``cuda:0,cuda:1``; None leaves the choice to torch.

    Returns:
        The devices; none where the choice is torch's.

    Raises:
        ReasonEmbedError: If one of them does not exist.
    """
    import torch

    devices = [name.strip() for name in (wish or "").split(",") if name.strip()]
    if wish is not None and not devices:
        msg = f"--device {wish!r} names no device; give cpu, cuda, cuda:0,cuda:1 or mps"
        raise ReasonEmbedError(msg)
    for name in devices:
        try:
            torch.empty(1, device=name).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            msg = f"the device {name!r} cannot be used ({reason}); give cpu, cuda, cuda:0,cuda:1 or mps"
            raise ReasonEmbedError(msg) from error
    return devices


def use_devices(model: Any, devices: Sequence[str] | None) -> None:  # noqa: ANN401
    """Let every SentenceTransformer inside a model that `speed_up` has seen encode on several devices.

    Args:
        model: A loaded MTEB model; changed in place.
        devices: Where; None stops the processes of earlier calls.
    """
    from reasonembed_mteb.encoding.fast import FastSentenceTransformer
    from reasonembed_mteb.retrieval.lengths import sized_models

    for inner in sized_models(model):
        if isinstance(inner, FastSentenceTransformer):
            inner.use_devices(devices)


def use_pool(model: Any, make: Callable[[Any], TextPool] | None) -> None:  # noqa: ANN401
    """Let every SentenceTransformer inside a model that `speed_up` has seen be encoded by elsewhere.

    Args:
        model: A loaded MTEB model; changed in place.
        make: Takes one of these and returns what encodes in its place; None ends that.
    """
    from reasonembed_mteb.encoding.fast import FastSentenceTransformer
    from reasonembed_mteb.retrieval.lengths import sized_models

    for inner in sized_models(model):
        if isinstance(inner, FastSentenceTransformer):
            inner.use_pool(make(inner) if make is not None else None)


def encoding_figures(model: Any, *, reset: bool = False) -> dict[str, int]:  # noqa: ANN401
    """Return how many tokens a model read since the last reset, and how many texts it cut.

    Args:
        model: A loaded MTEB model.
        reset: Start again from zero afterwards.
    """
    from reasonembed_mteb.retrieval.lengths import sized_models

    every = [stats for one in sized_models(model) if (stats := getattr(one, "encoding_stats", None))]
    figures = {name: sum(getattr(one, name) for one in every) for name in ("texts", "tokens", "truncated")}
    for one in every if reset else ():
        one.reset()
    return figures if every else {}


def innermost(model: Any) -> Any:  # noqa: ANN401 - any of mteb's model protocols
    """Return the model inside compression and store.

    Args:
        model: A loaded MTEB model.
    """
    from mteb.models import CompressionWrapper

    from reasonembed_mteb.store.encoder import StoredEncoder

    while isinstance(model, (CompressionWrapper, StoredEncoder)):
        model = model.model
    return model
