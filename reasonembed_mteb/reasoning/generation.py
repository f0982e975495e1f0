"""Reasoning by the embedder itself: tokens generated after a prompt, and the vector read on their cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from reasonembed_mteb.encoding.packing import has_windows
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation.reasoning_record import ENDED, FULL
from reasonembed_mteb.reasoning.heads import on_backbone
from reasonembed_mteb.reasoning.latents import latent_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        max_tokens: Most tokens of a reasoning, N.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        top_p: Drawn among the likeliest tokens that make up this share.
        seed: Of the draw; each query draws by itself, whatever is generated beside it.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be done.

        Raises:
            ReasonEmbedError: If a value is out of range.
        """
        if self.max_tokens < 1:
            msg = f"{self.max_tokens} reasoning tokens: give at least 1; without any, use the model itself"
            raise ReasonEmbedError(msg)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            msg = f"the temperature is {self.temperature}: give 0 for the likeliest tokens, or a number above"
            raise ReasonEmbedError(msg)
        if not 0 < self.top_p <= 1:
            msg = f"top_p is {self.top_p}: give a share above 0, at most 1"
            raise ReasonEmbedError(msg)


@dataclass(frozen=True)
class Generated:
    """What was generated after one prompt.

    Attributes:
        ids: The tokens, without the one that ended them.
        stop: `ENDED` or `FULL`.
        tokens: How many were generated, the one that ended them among them.
        vector: ``(dim,)`` float32 on the CPU, read after the ending of a text, on the generation's cache.
    """

    ids: tuple[int, ...]
    stop: str
    tokens: int
    vector: Tensor


class Writer(Protocol):
    """Whoever generates the tokens of a model that reasons itself: torch, or another engine."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the tokens beyond the model and the decoding, as JSON; empty for torch."""

    def run(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, seeds: Sequence[int]
    ) -> list[Generated]:
        """Generate after each prompt, and read the vectors.

        Args:
            prompts: Token ids, at least one each.
            decoding: How.
            seeds: One a prompt, for a decoding that draws.
        """

    def close(self) -> None:
        """Release what it holds."""


class Generation:
    """A generator and the embedder that it is, both read by the same backbone: torch's `Writer`."""

    def __init__(self, model: SentenceTransformer, generator: PreTrainedModel, ending: Sequence[int]) -> None:
        """Join them; the embedder's backbone, with its weights, becomes the generator's.

        Args:
            model: A decoder that reads its vector from the last token.
            generator: The same decoder with its head; see `load_generator`.
            ending: Ids with which a text ends: latents, EOS, or none.
        """
        self._model = model
        self._transformer: Any = model[0]
        self._tokenizer: Any = model.tokenizer
        self._backbone: Any = self._transformer.auto_model
        self._ending = list(ending)
        self._generator: Any = on_backbone(generator, self._backbone)
        self._ends = ending_ids(generator, self._tokenizer)
        pad = self._tokenizer.pad_token_id
        self._pad: int = pad if pad is not None else self._ends[0]
        # What a checkpoint says of its own sampling stays out: a decoding is stated whole.
        self._generator.generation_config = _stated(self._ends, self._pad)

    @property
    def generator(self) -> PreTrainedModel:
        """The backbone with its head."""
        found: PreTrainedModel = self._generator
        return found

    @property
    def identity(self) -> dict[str, Any]:
        """Nothing beyond the model, whose own weights generate."""
        return {}

    def close(self) -> None:
        """Hold nothing that the model does not."""

    @property
    def _window(self) -> int:
        return int(self._backbone.config.sliding_window)

    @torch.inference_mode()
    def run(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, seeds: Sequence[int]
    ) -> list[Generated]:
        """Generate after each prompt of one batch, padded on the left, and read the vectors; see `Writer`."""
        self._generator.eval()
        device = self._backbone.device
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(row)) + list(row) for row in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
        out = self._generator.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=self._processors(decoding, seeds),
            max_new_tokens=decoding.max_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            use_cache=True,
        )
        found = [kept_tokens(row[width:].tolist(), self._ends) for row in out.sequences]
        contexts = [[*prompt, *kept] for prompt, (kept, _, _) in zip(prompts, found, strict=True)]
        vectors = self._read(contexts, [width - len(row) for row in prompts], out.past_key_values)
        return [
            Generated(tuple(kept), stop, tokens, vector)
            for (kept, stop, tokens), vector in zip(found, vectors, strict=True)
        ]

    def _processors(self, decoding: Decoding, seeds: Sequence[int]) -> LogitsProcessorList:
        """Return what changes the scores of the next token; the highest is taken in the end."""
        # Read, never written.
        chosen: list[LogitsProcessor] = [SuppressTokensLogitsProcessor(latent_ids(self._tokenizer))]
        if decoding.temperature > 0:
            chosen.append(TemperatureLogitsWarper(float(decoding.temperature)))
            if decoding.top_p < 1:
                chosen.append(TopPLogitsWarper(decoding.top_p))
            chosen.append(_Drawn(seeds))
        return LogitsProcessorList(chosen)

    def _read(self, contexts: list[list[int]], paddings: list[int], cache: Any) -> Tensor:  # noqa: ANN401
        """Read the vector of each context and the ending after it, on the cache of the context.

        The last token of a context is read again, since the cache lacks it where it was the last to be
        generated; its own place in the cache is hidden then, as is what was generated after a row's end.
        """
        device = self._backbone.device
        held = cache.get_seq_length()
        if has_windows(self._backbone.config) and held + len(self._ending) >= self._window:
            # A window is counted in columns, and rows that ended early have idle ones.
            return row_vectors(self._model, [[*row, *self._ending] for row in contexts])
        tails = torch.tensor([[row[-1], *self._ending] for row in contexts], device=device)
        mask = torch.zeros(len(contexts), held + tails.shape[1], dtype=torch.long, device=device)
        mask[:, held:] = 1
        for place, (row, padding) in enumerate(zip(contexts, paddings, strict=True)):
            mask[place, padding : padding + len(row) - 1] = 1
        starts = torch.tensor([len(row) - 1 for row in contexts], device=device)
        hidden = self._backbone(
            input_ids=tails,
            attention_mask=mask,
            position_ids=starts[:, None] + torch.arange(tails.shape[1], device=device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self._pooled(hidden[:, -1:])

    def _pooled(self, last: Tensor) -> Tensor:
        """Return vectors ``(B, dim)`` of the last tokens' hidden states ``(B, 1, H)``."""
        ones = torch.ones(last.shape[:2], dtype=torch.long, device=last.device)
        features: dict[str, Any] = {"token_embeddings": last, "attention_mask": ones}
        for module in list(self._model)[1:]:
            features = module(features)
        found: Tensor = features["sentence_embedding"]
        return found.float().cpu()


def row_vectors(model: SentenceTransformer, rows: Sequence[Sequence[int]]) -> Tensor:
    """Encode texts that are token ids already, as the model encodes its texts.

    Args:
        model: A decoder.
        rows: At least one text, each with at least one token.

    Returns:
        ``(N, dim)`` float32 on the CPU, in the order given and of the model's whole length.
    """
    import numpy as np

    from reasonembed_mteb.encoding.loop import Batch, EncodeRequest, Encoding
    from reasonembed_mteb.encoding.plan import make_plan

    request = EncodeRequest(
        prompt=None,
        device=model.device,
        normalize_embeddings=False,
        truncate_dim=None,
        save_to_cpu=True,
        show_progress_bar=False,
    )
    attn = getattr(model, "attn", "auto")
    plan = make_plan(
        model, "padded" if attn == "off" else attn, getattr(model, "batch_tokens", None), model.device
    )
    batch = Batch(np.arange(len(rows)), [np.asarray(row, dtype=np.int32) for row in rows], None, {})
    model.eval()
    with torch.inference_mode():
        return Encoding(model, plan, request, compile_layers="off").run_rows(batch).float()


def kept_tokens(row: list[int], ends: Sequence[int]) -> tuple[list[int], str, int]:
    """Return a reasoning's own tokens, why they end (`ENDED` or `FULL`), and how many were generated.

    Args:
        row: As they were generated, the one that ended them and what follows it among them.
        ends: See `ending_ids`.
    """
    end = next((place for place, token in enumerate(row) if token in ends), None)
    return (row, FULL, len(row)) if end is None else (row[:end], ENDED, end + 1)


def ending_ids(generator: PreTrainedModel, tokenizer: Any) -> list[int]:  # noqa: ANN401
    """Return the tokens at which a generation ends: the checkpoint's, and the tokenizer's EOS.

    Args:
        generator: A decoder with its head, as it was loaded.
        tokenizer: The model's.

    Raises:
        ReasonEmbedError: If there is none.
    """
    config: Any = generator.generation_config
    own = config.eos_token_id if config is not None else None
    named = own if isinstance(own, list) else [own]
    found = dict.fromkeys(one for one in (*named, tokenizer.eos_token_id) if one is not None)
    if not found:
        msg = "neither the checkpoint nor its tokenizer names an end of text: set tokenizer.eos_token"
        raise ReasonEmbedError(msg)
    return list(found)


def _stated(ends: list[int], pad: int) -> Any:  # noqa: ANN401 - GenerationConfig, whose class is untyped
    kind: Any = GenerationConfig
    return kind(eos_token_id=ends, pad_token_id=pad)


class _Drawn(LogitsProcessor):
    """Draws by Gumbel noise of each row's own, so that a row draws alike whatever stands beside it."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._sources = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        width = scores.shape[1]
        # The highest of log-probabilities with such noise is a draw from them.
        noise = torch.stack([torch.rand(width, generator=one, dtype=torch.float64) for one in self._sources])
        return scores.double() - torch.log(-torch.log(noise.to(scores.device)))
