"""Attention over packed texts: one row of tokens, each text attending to itself alone.

Four kernels are known to transformers by name. None has a mask function: transformers then makes no mask.

====================  ==========================================================================
``varlen``            `torch.nn.attention.varlen`, on CUDA in half precision
``flash``             the flash-attn package's kernels, through transformers
``documents``         scaled dot-product attention, text by text: any device, any precision
``causal``            not packed: rows padded on the right, which a causal model needs no mask for
====================  ==========================================================================
"""

from __future__ import annotations

import inspect
import logging
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DataCollatorWithFlattening
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from reasonembed_mteb.errors import ReasonEmbedError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

# Decoders whose attention hands `cu_seq_lens_q` on, has no soft cap, and rotates by position_ids.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_KNOWN_CLASSES = frozenset(
    f"transformers.models.{family}.modeling_{family}.{family.capitalize()}Model" for family in FAMILIES
)
# Relative, of a token's vector. A token that sees others differs by far more, and 36 layers in half precision
# err by a few hundredths.
_PROBE_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
_PROBE_TOLERANCE_HALF = 0.1
# Answers by model: what they were found for, and what was found.
_PROBED: WeakKeyDictionary[Any, tuple[tuple[Any, ...], bool]] = WeakKeyDictionary()
# What packed rows bring, besides their tokens.
PACKED_KEYS = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids"})
# Modules that read one vector a text, so that they need not know how the tokens lay.
_PER_TEXT = frozenset({"Dense", "Dropout", "LayerNorm", "Normalize"})
VARLEN, DOCUMENTS, CAUSAL = (f"reasonembed_{name}" for name in ("varlen", "documents", "causal"))
# torch.nn.attention.varlen's kernel: FlashAttention's limits.
_MAX_HEAD_DIM = 256
_MIN_CAPABILITY = (8, 0)


def _varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend by torch's variable-length kernel; ``query`` is (1, H, T, D), the output (1, T, H, D)."""
    # Under mixed precision norms give float32, which the kernel does not take.
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else value.dtype
    # (T, H, D): views, since transformers made the inputs by transposing.
    mixed = varlen_attn(
        *(one.to(dtype).transpose(1, 2).squeeze(0) for one in (query, key, value)),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.unsqueeze(0), None


# A loop over texts; a compiled layer runs it as it is.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _documents(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend text by text; shapes as in `_varlen`."""
    grouped = query.shape[1] != key.shape[1]
    mixed = []
    for start, stop in pairwise(cu_seq_lens_q.tolist()):
        mask = _window_mask(stop - start, sliding_window, query.device)
        one = scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        mixed.append(one.transpose(1, 2))
    # Not written in place, which in training would keep a copy for each text.
    return torch.cat(mixed, dim=1), None


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return a causal mask of a sliding window, or None where it hides nothing more."""
    if window is None or length <= window:
        return None
    where = torch.arange(length, device=device)
    back = where[:, None] - where[None, :]
    return (back >= 0) & (back < window)


AttentionInterface.register(VARLEN, _varlen)
AttentionInterface.register(DOCUMENTS, _documents)
AttentionInterface.register(CAUSAL, sdpa_attention_forward)


def is_known_decoder(backbone: Any) -> bool:  # noqa: ANN401 - any transformers model
    """Return whether a loaded model is a causal decoder that our kernels attend rightly for.

    Configurations and names lie (models made bidirectional by their own code, masks that were patched), so
    that the model itself is asked: its classes must be transformers' own, and a few packed tokens must have
    the vectors that its own attention gives them padded.

    Args:
        backbone: The loaded transformers model.
    """
    if not _has_known_classes(backbone):
        return False
    state = _probed_state(backbone)
    known = _PROBED.get(backbone)
    if known is None or known[0] != state:
        known = _PROBED[backbone] = (state, _packs_exactly(backbone))
    return known[1]


def is_causal(backbone: Any) -> bool:  # noqa: ANN401 - any transformers model
    """Return whether each token of a loaded model sees only those before it.

    Args:
        backbone: The loaded transformers model; it reads sixteen tokens, and two of them again.

    Raises:
        ReasonEmbedError: If it cannot read them, as on a full card or without a kernel: taken for an answer,
            that would give a decoder an encoder's modules, and so other vectors.
    """
    if backbone.device.type == "meta":
        # Without weights there is nothing to read by: the configuration's word counts.
        return bool(getattr(backbone.config, "is_causal", True))
    try:
        with _probing(backbone):
            longer = _hidden(backbone, _probe_ids(backbone, 16)[None])
            shorter = _hidden(backbone, _probe_ids(backbone, 2)[None])
    # Whatever a model raises.
    except Exception as error:
        if getattr(backbone.config, "is_encoder_decoder", False):
            # It wants tokens to begin the answer with.
            return False
        msg = (
            f"{type(backbone).__name__} cannot read a few tokens here ({one_line(error)}): "
            "try another device or dtype, or give a model of texts"
        )
        raise ReasonEmbedError(msg) from error
    return _are_close(longer[0, :2], shorter[0], backbone.dtype)


def _has_known_classes(backbone: Any) -> bool:  # noqa: ANN401
    name = f"{type(backbone).__module__}.{type(backbone).__name__}"
    if name not in _KNOWN_CLASSES or not getattr(backbone.config, "is_causal", True):
        return False
    layers = getattr(backbone, "layers", ())
    return all(
        type(layer).__module__ == type(layer.self_attn).__module__ == type(backbone).__module__
        and getattr(layer.self_attn, "is_causal", True)
        for layer in layers
    )


def _probed_state(backbone: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return what a probe's answer depends on and a user may change."""
    first = backbone.layers[0].self_attn
    return (
        backbone.device,
        backbone.dtype,
        backbone.config._attn_implementation,  # noqa: SLF001
        type(backbone).forward,
        type(first).forward,
        [vars(module).get("forward") for module in (backbone, first)],
    )


def _packs_exactly(backbone: Any) -> bool:  # noqa: ANN401
    ids = _probe_ids(backbone, 10)
    texts = [ids[:7].cpu().numpy(), ids[7:].cpu().numpy()]
    packed = {name: _on(value, ids.device) for name, value in packed_features(texts).items()}
    padded = padded_features(texts, None, pad_id=0, left=False)
    try:
        with _probing(backbone):
            own = _hidden(backbone, **{name: value.to(ids.device) for name, value in padded.items()})
            with named_attention(backbone.config, DOCUMENTS):
                ours = _hidden(backbone, **packed)[0]
    # A model that cannot be asked keeps its own path.
    except Exception as error:
        logger.debug("the model does not take packed tokens: %s", error)
        return False
    return _are_close(ours, torch.cat([own[0], own[1, :3]]), backbone.dtype)


def _probe_ids(backbone: Any, count: int) -> Tensor:  # noqa: ANN401
    # Past the special tokens that most vocabularies begin with.
    embedding = backbone.get_input_embeddings()
    return cast("Tensor", ((torch.arange(count) + 5) % embedding.weight.shape[0]).to(embedding.weight.device))


def _hidden(backbone: Any, input_ids: Tensor, **features: Any) -> Tensor:  # noqa: ANN401
    hidden: Tensor = backbone(input_ids=input_ids, **features).last_hidden_state.float()
    return hidden


def _on(value: Any, device: torch.device) -> Any:  # noqa: ANN401 - a tensor or a number
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _are_close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Compare vectors (N, dim) within the noise of the precision in which they were made."""
    error = (one - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-12)
    return bool((error < _PROBE_TOLERANCE.get(dtype, _PROBE_TOLERANCE_HALF)).all())


@contextmanager
def _probing(backbone: Any) -> Iterator[None]:  # noqa: ANN401
    """Let a model only compute, without dropout, and give it its modes back."""
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        backbone.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def can_pack(model: SentenceTransformer) -> bool:
    """Return whether a model's modules can be given packed texts.

    Args:
        model: A model whose first module is a `Transformer`.
    """
    modules: list[Any] = list(model)
    names = [type(module).__name__ for module in modules]
    backbone = getattr(modules[0], "auto_model", None)
    return (
        names[1:2] == ["Pooling"]
        # A text with no token beyond the prompt has another vector where the library pools flattened rows.
        and modules[1].include_prompt
        and set(names[2:]) <= _PER_TEXT
        and _reads_features_only(model)
        and is_known_decoder(backbone)
    )


def _reads_features_only(model: SentenceTransformer) -> bool:
    """Return whether a model's forward pass is the library's, which hands features from module to module."""
    return type(model).forward is SentenceTransformer.forward and "forward" not in vars(model)


def has_windows(config: Any) -> bool:  # noqa: ANN401 - any transformers configuration
    """Return whether any layer attends to a sliding window only.

    Args:
        config: The model's transformers configuration.
    """
    return getattr(config, "sliding_window", None) is not None


def kernel_for(config: Any, device: torch.device, dtype: torch.dtype | None) -> str | None:  # noqa: ANN401
    """Return the fastest packed kernel that a device has.

    Args:
        config: The model's transformers configuration.
        device: Where it runs.
        dtype: Of its weights.

    Returns:
        An attention name for `named_attention`; None on an accelerator that has no packed kernel.
    """
    if device.type == "cpu":
        return DOCUMENTS
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    capability = torch.cuda.get_device_capability(device)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if capability < _MIN_CAPABILITY or head_dim > _MAX_HEAD_DIM:
        return None
    # FlashAttention 3 is written for Hopper; torch's own kernel is FlashAttention 2, as is flash-attn's.
    if capability[0] == 9 and is_flash_attn_3_available():
        return "flash_attention_3"
    return VARLEN if has_varlen() else flash_kernel()


def has_varlen() -> bool:
    """Return whether the installed torch has variable-length attention with grouped-query keys."""
    if varlen_attn is None:
        return False
    return {"window_size", "enable_gqa", "scale"} <= set(inspect.signature(varlen_attn).parameters)


def flash_kernel() -> str | None:
    """Return transformers' name of the installed flash-attn package, or None without one."""
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


@contextmanager
def named_attention(config: Any, name: str | None) -> Iterator[None]:  # noqa: ANN401
    """Let a model attend by a kernel while the context lasts.

    Args:
        config: The model's transformers configuration, which its layers share.
        name: An attention name; None leaves the model's own.
    """
    # transformers has no public name for what it reads at each forward.
    before = config._attn_implementation  # noqa: SLF001
    try:
        if name is not None:
            config._attn_implementation = name  # noqa: SLF001
        yield
    finally:
        config._attn_implementation = before  # noqa: SLF001


def keep_packed(transformer: Any, kernel: str) -> None:  # noqa: ANN401 - a Transformer module
    """Have a module tokenise into packed rows and attend by a kernel, for good.

    This is what sentence-transformers sets when it unpads by itself, for flash-attn's names alone.

    Args:
        transformer: Of a model that `can_pack`, changed in place.
        kernel: See `kernel_for`.
    """
    transformer.auto_model.config._attn_implementation = kernel  # noqa: SLF001
    transformer.data_collator = DataCollatorWithFlattening(  # type: ignore[no-untyped-call]
        return_flash_attn_kwargs=True, return_position_ids=True
    )
    transformer._flatten_position_offset = 0  # noqa: SLF001 - these families count positions from 0
    transformer.can_flatten_inputs = True
    if transformer.model_forward_params is not None:
        transformer.model_forward_params = transformer.model_forward_params | PACKED_KEYS


def packed_features(rows: Sequence[NDArray[np.int32]]) -> dict[str, Any]:
    """Lay texts one after another.

    Args:
        rows: ``(T_i,)`` token ids of each of the N texts, at least one a text.

    Returns:
        ``input_ids`` and ``position_ids`` ``(1, T)`` int64, the latter from 0 in each text; ``cu_seq_lens_q``
        and ``cu_seq_lens_k`` ``(N + 1,)`` int32, where each starts; ``max_length_q`` and ``max_length_k``.
    """
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    ends = torch.from_numpy(starts.astype(np.int32))
    longest = int(lengths.max())
    return {
        "input_ids": torch.from_numpy(np.concatenate(rows).astype(np.int64))[None],
        "position_ids": torch.from_numpy(positions)[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def padded_features(
    rows: Sequence[NDArray[np.int32]],
    types: Sequence[NDArray[np.int32]] | None,
    *,
    pad_id: int,
    left: bool,
) -> dict[str, Any]:
    """Lay texts in rows of the longest's length.

    Args:
        rows: ``(T_i,)`` token ids of each of the N texts.
        types: ``token_type_ids`` likewise, or None.
        pad_id: Fills the rest; the mask hides it.
        left: Whether the padding comes first.

    Returns:
        ``input_ids``, ``attention_mask`` and, where given, ``token_type_ids``, each ``(N, longest)`` int64.
    """
    width = max(map(len, rows))
    shape = (len(rows), width)
    table = {"input_ids": np.full(shape, pad_id), "attention_mask": np.zeros(shape, dtype=np.int64)}
    if types is not None:
        table["token_type_ids"] = np.zeros(shape, dtype=np.int64)
    for i, row in enumerate(rows):
        filled = slice(width - len(row), width) if left else slice(0, len(row))
        table["input_ids"][i, filled] = row
        table["attention_mask"][i, filled] = 1
        if types is not None:
            table["token_type_ids"][i, filled] = types[i]
    return {name: torch.from_numpy(values) for name, values in table.items()}
