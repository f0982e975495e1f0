"""The layout of a joint row, ``[prompt][x][K latents][y]``: who sees whom, what is predicted where.

Every token sees itself and those before it, but for ``y``, which sees the latents and itself only: what it is
predicted from has gone through the K latents. The latents never see ``y``, so that the last one's vector is
the one that the text has when it is encoded alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

PADDING, SOURCE, LATENT, TARGET = range(4)
# Keys of a batch beside ``input_ids`` and ``attention_mask``.
KINDS, GENERATION, COMPRESSION = "token_kinds", "generation_labels", "compression_labels"
LAYOUT_KEYS = (KINDS, GENERATION, COMPRESSION)
# The label of a token after which nothing is to be predicted, as in `torch.nn.functional.cross_entropy`.
NOTHING = -100


@dataclass(frozen=True)
class JointRow:
    """One row before its layout; any part but the source may be empty.

    Attributes:
        source: Token ids of the prompt and of x, without latents.
        written: How many of the last source tokens are a generation target; 0 for none.
        question: Token ids that begin y and are given, not predicted.
        answer: Token ids of the rest of y, which are predicted; empty for no compression target.
        generation_ends: Whether the generation target is whole, so that EOS is what follows it.
        answer_ends: Whether the answer is.
        ending: Ids that the tokenizer puts between a text and its latents, such as EOS; mostly none.
    """

    source: Sequence[int]
    written: int = 0
    question: Sequence[int] = ()
    answer: Sequence[int] = ()
    generation_ends: bool = True
    answer_ends: bool = True
    ending: Sequence[int] = ()


def lay_out(rows: Sequence[JointRow], latents: Sequence[int], eos: int, pad: int) -> dict[str, Tensor]:
    """Lay rows out, padded on the right.

    A label stands where its token is predicted, at the token before it: the last latent predicts the first
    token of y, as nothing stands between them.

    Args:
        rows: At least one.
        latents: Ids of the K latent tokens.
        eos: Id that ends a generation target and an answer.
        pad: Id of the padding.

    Returns:
        ``input_ids``, ``attention_mask``, `KINDS`, `GENERATION` and `COMPRESSION`, each ``(B, T)`` int64.

    Raises:
        ReasonEmbedError: If a target or a question holds a latent: none is ever written, so that the loss
            would be infinite.
    """
    _check_targets(rows, latents)
    made = [_one_row(row, latents, eos) for row in rows]
    width = max(len(row["input_ids"]) for row in made)
    fill = {"input_ids": pad, "attention_mask": 0, KINDS: PADDING, GENERATION: NOTHING, COMPRESSION: NOTHING}
    return {
        name: torch.tensor([row[name] + [empty] * (width - len(row[name])) for row in made])
        for name, empty in fill.items()
    }


def _check_targets(rows: Sequence[JointRow], latents: Sequence[int]) -> None:
    for number, row in enumerate(rows):
        written = row.source[len(row.source) - row.written :]
        if not {*written, *row.question, *row.answer}.isdisjoint(latents):
            msg = (
                f"row {number} of the batch: a target or its question holds a latent token, which is read "
                "and never written: take its name out of the text"
            )
            raise ReasonEmbedError(msg)


def _one_row(row: JointRow, latents: Sequence[int], eos: int) -> dict[str, list[int]]:
    target = [*row.question, *row.answer] if row.answer else []
    ids = [*row.source, *row.ending, *latents, *target]
    kinds = [SOURCE] * (len(row.source) + len(row.ending)) + [LATENT] * len(latents) + [TARGET] * len(target)
    before = len(row.source)
    generation, compression = [NOTHING] * len(ids), [NOTHING] * len(ids)
    if row.written:
        _predict(generation, row.source[before - row.written :], before, eos, ends=row.generation_ends)
    if target:
        _predict(compression, row.answer, len(ids), eos, ends=row.answer_ends)
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        KINDS: kinds,
        GENERATION: generation,
        COMPRESSION: compression,
    }


def _predict(labels: list[int], tokens: Sequence[int], end: int, eos: int, *, ends: bool) -> None:
    """Write labels for the tokens that end before place ``end``, each one place before its token."""
    first = end - len(tokens)
    for place, token in enumerate(tokens, first - 1):
        # Nothing stands before the very first token of a row.
        if place >= 0:
            labels[place] = token
    if ends:
        labels[end - 1] = eos


def joint_mask(kinds: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive attention mask of laid-out rows.

    Padding attends to itself, as a row of the mask without any entry gives NaN.

    Args:
        kinds: ``(B, T)``, of `PADDING`, `SOURCE`, `LATENT` and `TARGET`.
        dtype: Of the model.

    Returns:
        ``(B, 1, T, T)``: 0 where the token of the row sees that of the column, the least number elsewhere.
    """
    places = torch.arange(kinds.shape[1], device=kinds.device)
    seen = places[None] <= places[:, None]
    seen = seen & (kinds != PADDING)[:, None, :]
    seen = seen & ~((kinds == TARGET)[:, :, None] & (kinds == SOURCE)[:, None, :])
    seen = seen | (places[None] == places[:, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=kinds.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def check_backbone(backbone: Any) -> None:  # noqa: ANN401 - a transformers model
    """Refuse a backbone that would not attend as a joint mask says.

    Args:
        backbone: A transformers model.

    Raises:
        ReasonEmbedError: If it is no decoder, or its attention takes no mask of four dimensions.
    """
    from reasonembed_mteb.encoding.packing import is_causal

    kind = backbone.config._attn_implementation  # noqa: SLF001
    if kind not in ("sdpa", "eager"):
        msg = (
            f"attention {kind!r} takes no mask by pairs of tokens; allowed are sdpa and eager: set "
            "training.attention=sdpa and training.packed=false"
        )
        raise ReasonEmbedError(msg)
    if not is_causal(backbone):
        msg = (
            f"a {backbone.config.model_type} is no decoder: its tokens see those after them, so that it can "
            "neither generate nor read y through latent tokens alone; give a causal decoder, such as Qwen3"
        )
        raise ReasonEmbedError(msg)


def check_window(config: Any, tokens: int) -> None:  # noqa: ANN401 - a transformers configuration
    """Refuse rows longer than a sliding window, which a mask of our own would open.

    Args:
        config: The backbone's.
        tokens: Of the longest row.

    Raises:
        ReasonEmbedError: If they are.
    """
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else True
    window = getattr(config, "sliding_window", None)
    if slides and window and tokens > window:
        msg = (
            f"rows of {tokens:,} tokens are longer than the model's sliding window of {window:,}: shorten "
            "data.query_tokens and the targets, or take a model without a window"
        )
        raise ReasonEmbedError(msg)


@contextmanager
def attending_jointly(transformer: nn.Module) -> Iterator[None]:
    """Have a Transformer module attend as laid-out rows ask for; other rows pass as ever.

    Its pooling then finds the last latent, and the keys of the layout are there again after it.

    Args:
        transformer: sentence-transformers' first module, with a decoder inside.

    Yields:
        Nothing.
    """
    layouts: list[dict[str, Tensor]] = []

    def mask_by_pairs(module: Any, given: tuple[Any, ...]) -> None:  # noqa: ANN401
        features = given[0]
        if KINDS not in features:
            return
        check_window(module.auto_model.config, features[KINDS].shape[1])
        # Out of the features: a decoder hands what it does not know on to its attention.
        layouts.append({name: features.pop(name) for name in LAYOUT_KEYS})
        features["attention_mask"] = joint_mask(layouts[-1][KINDS], module.auto_model.dtype)

    def pool_latents(module: Any, given: tuple[Any, ...], features: dict[str, Any]) -> None:  # noqa: ANN401
        del module, given
        if layouts:
            features |= layouts.pop()
            kinds = features[KINDS]
            features["attention_mask"] = ((kinds == SOURCE) | (kinds == LATENT)).long()

    handles = [
        transformer.register_forward_pre_hook(mask_by_pairs),
        transformer.register_forward_hook(pool_latents),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
