"""The encode loop: texts are tokenised ahead, batched by token budget, and their vectors fetched behind."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.util import truncate_embeddings
from tqdm import tqdm

from reasonembed_mteb.encoding import compiling
from reasonembed_mteb.encoding.batching import Budget, batch_cost, prefetched, token_batches
from reasonembed_mteb.encoding.packing import (
    CAUSAL,
    can_pack,
    flash_kernel,
    has_windows,
    is_known_decoder,
    kernel_for,
    named_attention,
    packed_features,
    padded_features,
)
from reasonembed_mteb.encoding.tokenizing import Tokenizing
from reasonembed_mteb.errors import ReasonEmbedError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

logger = logging.getLogger(__name__)

ATTENTION = ("auto", "packed", "padded", "flash", "off")
# Tokens of a batch. A GPU's matrix units are full well below; caches of a CPU favour small batches.
GPU_BATCH_TOKENS = 32_768
CPU_BATCH_TOKENS = 2_048
# Texts are tokenised in windows of this many batches, in order of their characters, then sorted by tokens:
# at most one batch in so many is not full, and memory holds one window's tokens.
_WINDOW_BATCHES = 32
_WINDOW_TEXTS = 16_384
# English in today's vocabularies; only sizes windows and the guess whether compiling pays.
_CHARACTERS_PER_TOKEN = 4
_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
_SAID: set[str] = set()


class TextsError(ReasonEmbedError):
    """An error about some of the texts, which knows their positions."""

    def __init__(self, positions: Sequence[int], what: str) -> None:
        """Name the texts.

        Args:
            positions: Of the texts in the input.
            what: The rest of the sentence.
        """
        super().__init__(positions, what)
        self.positions = list(positions)
        self.what = what

    def __str__(self) -> str:
        """Name at most ten positions."""
        shown = ", ".join(map(str, self.positions[:10])) + (", ..." if len(self.positions) > 10 else "")
        return f"{len(self.positions)} text(s) at position(s) {shown} {self.what}"

    def moved(self, by: int) -> TextsError:
        """Return the same error about texts further on.

        Args:
            by: How far.
        """
        return TextsError([position + by for position in self.positions], self.what)


@dataclass
class EncodingStats:
    """What was encoded since the last reset.

    Attributes:
        texts: How many.
        tokens: What the model read of them, special tokens included.
        truncated: How many were longer than the model's length.
        batches: Forward passes.
        seconds: Wall time inside encode; of several processes, their sum.
    """

    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    batches: int = 0
    seconds: float = 0.0

    def reset(self) -> None:
        """Start again from zero."""
        self.__init__()  # type: ignore[misc]

    def add(self, other: EncodingStats) -> None:
        """Add what another call or process did.

        Args:
            other: Its figures.
        """
        self.texts += other.texts
        self.tokens += other.tokens
        self.truncated += other.truncated
        self.batches += other.batches
        self.seconds += other.seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """How texts go through the model.

    Attributes:
        packed: One after another instead of in padded rows.
        kernel: Attention name; None leaves the model's own.
        batch_tokens: Budget of a batch.
    """

    packed: bool
    kernel: str | None
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One call's resolved arguments; see `SentenceTransformer.encode`."""

    prompt: str | None
    device: torch.device
    normalize_embeddings: bool
    truncate_dim: int | None
    save_to_cpu: bool
    show_progress_bar: bool
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that go through the model together: their positions in the input, and their tokens."""

    positions: NDArray[np.int64]
    ids: list[NDArray[np.int32]]
    types: list[NDArray[np.int32]] | None
    extra: dict[str, Any]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return np.fromiter(map(len, self.ids), dtype=np.int64, count=len(self.ids))

    def part(self, chosen: NDArray[np.int64]) -> Batch:
        """Return some of the texts.

        Args:
            chosen: Which.
        """
        types = None if self.types is None else [self.types[i] for i in chosen]
        return Batch(self.positions[chosen], [self.ids[i] for i in chosen], types, self.extra)

    def joined(self, other: Batch) -> Batch:
        """Return both batches' texts.

        Args:
            other: The other batch, of the same call.
        """
        types = None if self.types is None or other.types is None else self.types + other.types
        positions = np.concatenate([self.positions, other.positions])
        return Batch(positions, self.ids + other.ids, types, other.extra)


def say_once(message: str, *, level: int = logging.WARNING) -> None:
    """Log a line once in the life of this process.

    Args:
        message: The line.
        level: Of the logging module.
    """
    if message not in _SAID:
        _SAID.add(message)
        logger.log(level, "%s", message)


def check_options(attn: str, batch_tokens: int | None, compile_layers: str | bool) -> None:
    """Refuse options that mean nothing.

    Args:
        attn: One of `ATTENTION`.
        batch_tokens: None, or at least 1.
        compile_layers: ``"auto"``, ``"on"``, ``"off"`` or a bool.

    Raises:
        UnknownNameError: If a name is not known; the nearest is named.
        ReasonEmbedError: If the budget is no positive number.
    """
    if attn not in ATTENTION:
        raise unknown_name("attention", attn, ATTENTION)
    if batch_tokens is not None and batch_tokens < 1:
        msg = f"batch_tokens is {batch_tokens}: give at least 1, or None for the device's own"
        raise ReasonEmbedError(msg)
    compiling.asked(compile_layers)


def make_plan(model: SentenceTransformer, attn: str, batch_tokens: int | None, device: torch.device) -> Plan:
    """Decide how a model's texts are laid out, and which kernel attends.

    Args:
        model: A model whose first module is a `Transformer`.
        attn: One of `ATTENTION` but ``"off"``.
        batch_tokens: Budget; None for the device's.
        device: Where the model runs.

    Returns:
        The plan; the padded one where nothing better is known.

    Raises:
        ReasonEmbedError: If flash-attn is asked for and cannot be had.
    """
    tokens = batch_tokens or (CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS)
    kernel = None if attn == "padded" else _packed_kernel(model, attn, device)
    if kernel is not None:
        return Plan(packed=True, kernel=kernel, batch_tokens=tokens)
    config = getattr(model[0].auto_model, "config", None)
    own = getattr(config, "_attn_implementation", None)
    drops_mask = is_known_decoder(config) and not has_windows(config) and own == "sdpa"
    return Plan(packed=False, kernel=CAUSAL if drops_mask else None, batch_tokens=tokens)


def _packed_kernel(model: SentenceTransformer, attn: str, device: torch.device) -> str | None:
    if attn == "flash" and (device.type != "cuda" or flash_kernel() is None):
        msg = f"attn='flash' needs flash-attn and a CUDA device (here: {device}); attn='auto' needs neither"
        raise ReasonEmbedError(msg)
    config = getattr(model[0].auto_model, "config", None)
    if not can_pack(model):
        kind = getattr(config, "model_type", type(model[0].auto_model).__name__)
        level = logging.INFO if attn == "auto" else logging.WARNING
        say_once(f"packed attention is not known for this model ({kind}): encoding padded rows", level=level)
        return None
    if attn == "flash":
        return flash_kernel()
    kernel = kernel_for(config, device, model.dtype)
    if kernel is None and attn == "packed":
        say_once(f"no packed attention for {model.dtype} on {device}: encoding padded rows")
    return kernel


class Encoding:
    """One call of encode, from texts to vectors."""

    def __init__(
        self,
        model: SentenceTransformer,
        plan: Plan,
        request: Request,
        *,
        compile_layers: str | bool = "auto",
        tokens_before: int = 0,
    ) -> None:
        """Prepare.

        Args:
            model: The model, on the request's device.
            plan: How texts go through it.
            request: The call's arguments.
            compile_layers: ``"auto"``, ``"on"``, ``"off"`` or a bool.
            tokens_before: What was encoded earlier, for the decision whether compiling pays.
        """
        self.stats = EncodingStats()
        self.budget = Budget(plan.batch_tokens)
        self._model = model
        self._plan = plan
        self._request = request
        self._compile = compiling.asked(compile_layers)
        self._tokens_before = tokens_before
        self._transformer: Any = model[0]
        self._layers = compiling.decoder_layers(self._transformer.auto_model)
        self._left = not plan.packed and plan.kernel is None and self._tokenizer.padding_side == "left"

    @property
    def _tokenizer(self) -> Any:  # noqa: ANN401
        return self._transformer.tokenizer

    def run(self, texts: list[str]) -> tuple[Tensor, NDArray[np.int32]]:
        """Encode texts.

        Args:
            texts: At least one.

        Returns:
            Vectors (N, dim) in input order, on the CPU if the request says so, in the model's precision; and
            the texts' token counts (N,) before they were cut. A text without any token has a zero vector.

        Raises:
            TextsError: If a text does not fit in memory alone, or has a vector that is not finite.
        """
        self._prepare_layers(sum(map(len, texts)) // _CHARACTERS_PER_TOKEN)
        counts = np.zeros(len(texts), dtype=np.int32)
        results = _Results(len(texts), self._request)
        bar = tqdm(total=len(texts), desc="Texts", disable=not self._request.show_progress_bar)
        with bar, _attending(self._transformer, self._plan.kernel):
            for batch in prefetched(self._batches(texts, counts)):
                for part, vectors in self._encoded(batch):
                    results.add(part.positions, vectors)
                    self.stats.tokens += int(part.lengths.sum())
                    self.stats.batches += 1
                    bar.update(len(part.positions))
        self.stats.texts += len(texts)
        return results.finish(self._dimensions), counts

    def _dimensions(self) -> int:
        return int(self._request.truncate_dim or self._model.get_embedding_dimension() or 0)

    def _prepare_layers(self, tokens: int) -> None:
        if self._layers is None or self._compile is False:
            if self._layers is not None and compiling.is_compiled(self._layers):
                compiling.restore_layers(self._layers)
            return
        worth = self._plan.packed and compiling.pays(
            self._layers, tokens + self._tokens_before, self._request.device
        )
        if self._compile or worth:
            compiling.compile_layers(self._layers)

    def _batches(self, texts: list[str], counts: NDArray[np.int32]) -> Iterator[Batch]:
        """Tokenise window by window, most characters first; fill in the counts on the way."""
        tokenize = Tokenizing(self._transformer, self._request.prompt, **self._request.kwargs)
        left_over: Batch | None = None
        for window in self._windows(texts):
            rows = tokenize([texts[i] for i in window])
            counts[window] = rows.full
            self.stats.truncated += int((rows.full > tokenize.limit).sum())
            batch = Batch(window, rows.ids, rows.types, rows.extra)
            batch = batch.part(np.flatnonzero(batch.lengths))
            batch = batch if left_over is None else left_over.joined(batch)
            parts = list(self._parts(batch))
            left_over = parts.pop() if parts else None
            yield from parts
        if left_over is not None:
            yield left_over

    def _windows(self, texts: list[str]) -> Iterator[NDArray[np.int64]]:
        characters = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        order = np.argsort(-characters, kind="stable")
        room = _WINDOW_BATCHES * self._plan.batch_tokens * _CHARACTERS_PER_TOKEN
        ends = np.cumsum(characters[order])
        start = 0
        while start < len(order):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + room, side="right"))
            stop = min(max(stop, start + 1), start + _WINDOW_TEXTS, len(order))
            yield order[start:stop]
            start = stop

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        padded = not self._plan.packed
        return (batch.part(part) for part in token_batches(batch.lengths, self.budget.tokens, padded=padded))

    def _encoded(self, batch: Batch) -> Iterator[tuple[Batch, Tensor]]:
        """Encode a batch, in smaller parts where it does not fit."""
        waiting = deque([batch])
        while waiting:
            part = waiting.popleft()
            cost = batch_cost(part.lengths, padded=not self._plan.packed)
            if cost > self.budget.tokens and len(part.ids) > 1:
                waiting.extendleft(reversed(list(self._parts(part))))
                continue
            vectors = self._vectors_or_none(part)
            if vectors is not None:
                yield part, vectors
                continue
            _free(self._request.device)
            if len(part.ids) == 1:
                what = (
                    f"({len(part.ids[0])} tokens) cannot be encoded in the memory at hand, even alone: "
                    "lower max_seq_length, or load the model in bfloat16"
                )
                raise TextsError(part.positions.tolist(), what)
            self.budget.halve(cost)
            waiting.appendleft(part)

    def _vectors_or_none(self, batch: Batch) -> Tensor | None:
        """Return a batch's vectors; None where memory runs out."""
        try:
            return self._forward(batch)
        # What compiling can raise has no common base; what is not its fault is raised again below.
        except Exception as error:
            if _is_out_of_memory(error):
                return None
            if not compiling.is_compiled(self._layers) or self._layers is None:
                raise
            compiling.restore_layers(self._layers, error)
        return self._vectors_or_none(batch)

    def _forward(self, batch: Batch) -> Tensor:
        request = self._request
        features = {name: self._sent(value) for name, value in self._features(batch).items()}
        out = self._model(features | batch.extra, **request.kwargs)
        vectors: Tensor = out["sentence_embedding"]
        if request.truncate_dim is not None:
            vectors = truncate_embeddings(vectors, request.truncate_dim)
        if request.normalize_embeddings:
            vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
        return vectors

    def _features(self, batch: Batch) -> dict[str, Any]:
        if self._plan.packed:
            return packed_features(batch.ids)
        pad_id = self._tokenizer.pad_token_id or 0
        return padded_features(batch.ids, batch.types, pad_id=pad_id, left=self._left)

    def _sent(self, value: Any) -> Any:  # noqa: ANN401 - a tensor or a plain value
        if not isinstance(value, torch.Tensor):
            return value
        if self._request.device.type == "cuda":
            value = value.pin_memory()
        return value.to(self._request.device, non_blocking=True)


class _Results:
    """Vectors in input order; copies from a GPU are waited for two batches later."""

    def __init__(self, count: int, request: Request) -> None:
        self._count = count
        self._to_cpu = request.save_to_cpu
        self._device = torch.device("cpu") if request.save_to_cpu else request.device
        self._vectors: Tensor | None = None
        self._waiting: deque[tuple[NDArray[np.int64], Tensor, Any]] = deque()

    def add(self, positions: NDArray[np.int64], vectors: Tensor) -> None:
        """Take a batch's vectors (N, dim)."""
        arrived = None
        if self._to_cpu and vectors.is_cuda:
            vectors = vectors.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append((positions, vectors, arrived))
        while len(self._waiting) > 2:
            self._store()

    def finish(self, dimensions: Any) -> Tensor:  # noqa: ANN401 - a function without arguments
        """Return all vectors (N, dim)."""
        while self._waiting:
            self._store()
        if self._vectors is None:
            return torch.zeros(self._count, dimensions(), device=self._device)
        if not self._to_cpu:
            _check_finite(np.arange(self._count), self._vectors)
        return self._vectors

    def _store(self) -> None:
        positions, vectors, arrived = self._waiting.popleft()
        if arrived is not None:
            arrived.synchronize()
        vectors = vectors.to(self._device)
        if self._to_cpu:
            _check_finite(positions, vectors)
        if self._vectors is None:
            shape = (self._count, vectors.shape[1])
            self._vectors = torch.zeros(shape, dtype=vectors.dtype, device=self._device)
        self._vectors[torch.from_numpy(positions).to(self._device)] = vectors


def _check_finite(positions: NDArray[np.int64], vectors: Tensor) -> None:
    broken = ~torch.isfinite(vectors).all(dim=1)
    if broken.any():
        named = sorted(positions[broken.cpu().numpy()].tolist())
        what = "have vectors that are NaN or infinite: load the model in bfloat16 or float32, or check its weights"
        raise TextsError(named, what)


@contextmanager
def _attending(transformer: Any, kernel: str | None) -> Iterator[None]:  # noqa: ANN401
    """Attend by a kernel; sentence-transformers' own flattening would undo our rows."""
    flattens = transformer.can_flatten_inputs
    named = transformer.model_forward_params
    packed = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids"}
    try:
        transformer.can_flatten_inputs = False
        if named is not None:
            transformer.model_forward_params = named | packed
        with named_attention(transformer.auto_model.config, kernel):
            yield
    finally:
        transformer.can_flatten_inputs = flattens
        transformer.model_forward_params = named


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, (RuntimeError, MemoryError)) and (
        isinstance(error, MemoryError) or any(text in str(error) for text in _MEMORY_MESSAGES)
    )


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
