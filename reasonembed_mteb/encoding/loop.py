"""The encode loop: batches by token budget, so that each costs about the same, tokenised in a thread."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from sentence_transformers.util import truncate_embeddings
from tqdm import tqdm

from reasonembed_mteb.encoding import plan as compiling
from reasonembed_mteb.encoding.output import EncodingStats, Results, TextsError
from reasonembed_mteb.encoding.packing import PACKED_KEYS, named_attention, packed_features, padded_features
from reasonembed_mteb.encoding.tokenizing import Tokenizing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from reasonembed_mteb.encoding.plan import EncodingPlan

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that go through the model together.

    Attributes:
        positions: ``(N,)`` places of the texts in the input.
        ids: ``(T,)`` token ids of each text.
        types: ``(T,)`` token type ids of each text, where the model takes any.
        extra: Whatever else the model is given, for all texts alike.
    """

    positions: NDArray[np.int64]
    ids: list[NDArray[np.int32]]
    types: list[NDArray[np.int32]] | None
    extra: dict[str, Any]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, ``(N,)``."""
        return np.fromiter(map(len, self.ids), dtype=np.int64, count=len(self.ids))

    def part(self, chosen: NDArray[np.int64]) -> Batch:
        """Return some of the texts.

        Args:
            chosen: ``(M,)`` places in this batch, in any order.
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


class TokenBudget:
    """The tokens that one batch may hold; halved when memory runs out."""

    def __init__(self, tokens: int) -> None:
        """Start with a budget.

        Args:
            tokens: Tokens of a batch, at least 1: real ones if texts are packed, cells if padded.
        """
        self.tokens = tokens

    def halve(self, spent: int) -> None:
        """Halve the budget after a batch that did not fit, and say so.

        Args:
            spent: What that batch cost; the new budget is below it even if it was formed earlier.
        """
        self.tokens = max(1, min(self.tokens, spent) // 2)
        logger.warning("out of memory: going on with %d tokens a batch", self.tokens)


def batch_cost(lengths: NDArray[np.int64], *, padded: bool) -> int:
    """Return what a batch costs.

    Args:
        lengths: ``(N,)`` tokens of each of its texts.
        padded: Whether every row is as long as the longest.

    Returns:
        Cells of the padded batch, or the sum of the lengths.
    """
    return int(lengths.max() * len(lengths) if padded else lengths.sum())


def token_batches(lengths: NDArray[np.int64], budget: int, *, padded: bool) -> Iterator[NDArray[np.int64]]:
    """Group texts by length under a budget, longest first.

    Args:
        lengths: ``(N,)`` tokens of each text.
        budget: What a batch may cost (see `batch_cost`); a longer text has a batch of its own.
        padded: Whether rows are padded to the longest of the batch.

    Yields:
        Indices into ``lengths``, ``(M,)`` each; together each index once.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        if padded:
            stop = start + budget // max(1, int(lengths[order[start]]))
        else:
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + budget, side="right"))
        stop = min(max(stop, start + 1), len(order))
        yield order[start:stop]
        start = stop


def prefetched(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """Run an iterator in a thread of its own, a few items ahead.

    Args:
        items: What makes the items; its errors reach the caller.
        depth: How many items are made ahead.

    Yields:
        The items, in order.
    """
    end: Any = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# Texts are tokenised in windows of this many batches, in order of their characters, then sorted by tokens:
# at most one batch in so many is not full, and memory holds one window's tokens.
_WINDOW_BATCHES = 32
_WINDOW_TEXTS = 16_384
# English in today's vocabularies; only sizes windows and the guess whether compiling pays.
_CHARACTERS_PER_TOKEN = 4
_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """One call's resolved arguments; see `SentenceTransformer.encode`."""

    prompt: str | None
    device: torch.device
    normalize_embeddings: bool
    truncate_dim: int | None
    save_to_cpu: bool
    show_progress_bar: bool
    kwargs: dict[str, Any] = field(default_factory=dict)


class Encoding:
    """One call of encode, from texts to vectors."""

    def __init__(
        self,
        model: SentenceTransformer,
        plan: EncodingPlan,
        request: EncodeRequest,
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
        self.budget = TokenBudget(plan.batch_tokens)
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
            Vectors ``(N, dim)`` in input order, on the CPU if the request says so, in the model's precision;
            and the texts' token counts ``(N,)`` before they were cut. A text without any token has a zero
            vector.

        Raises:
            TextsError: If a text does not fit in memory alone, or has a vector that is not finite.
        """
        self._prepare_layers(sum(map(len, texts)) // _CHARACTERS_PER_TOKEN)
        counts = np.zeros(len(texts), dtype=np.int32)
        return self._collected(self._batches(texts, counts), len(texts)), counts

    def run_rows(self, rows: Batch) -> Tensor:
        """Encode texts that are token ids already.

        Args:
            rows: At least one text; their positions are 0 to N - 1.

        Returns:
            Vectors ``(N, dim)`` as `run` gives them.

        Raises:
            TextsError: As `run` does.
        """
        return self._collected(self._parts(rows), len(rows.ids))

    def _collected(self, batches: Iterator[Batch], texts: int) -> Tensor:
        """Encode batches and put their vectors in order."""
        results = Results(texts, self._request.device, to_cpu=self._request.save_to_cpu)
        bar = tqdm(total=texts, desc="Texts", disable=not self._request.show_progress_bar)
        with bar, attending(self._transformer, self._plan.kernel):
            for batch in prefetched(batches):
                for part, vectors in self._encoded(batch):
                    results.add(part.positions, vectors)
                    self.stats.tokens += int(part.lengths.sum())
                    self.stats.batches += 1
                    bar.update(len(part.positions))
        self.stats.texts += texts
        return results.finish(self._dimensions)

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
        out = self._model(self.features(batch), **request.kwargs)
        vectors: Tensor = out["sentence_embedding"]
        if request.truncate_dim is not None:
            vectors = truncate_embeddings(vectors, request.truncate_dim)
        if request.normalize_embeddings:
            vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
        return vectors

    def features(self, batch: Batch) -> dict[str, Any]:
        """Return what the model reads of some texts, on its device.

        Args:
            batch: The texts.
        """
        if self._plan.packed:
            laid = packed_features(batch.ids)
        else:
            pad_id = self._tokenizer.pad_token_id or 0
            laid = padded_features(batch.ids, batch.types, pad_id=pad_id, left=self._left)
        return {name: self._sent(value) for name, value in laid.items()} | batch.extra

    def _sent(self, value: Any) -> Any:  # noqa: ANN401 - a tensor or a plain value
        if not isinstance(value, torch.Tensor):
            return value
        if self._request.device.type == "cuda":
            value = value.pin_memory()
        return value.to(self._request.device, non_blocking=True)


@contextmanager
def attending(transformer: Any, kernel: str | None) -> Iterator[None]:  # noqa: ANN401
    """Attend by a kernel while the context lasts; sentence-transformers' own flattening would undo our rows.

    Args:
        transformer: A model's first module.
        kernel: An attention name; None leaves the model's own.
    """
    flattens = transformer.can_flatten_inputs
    named = transformer.model_forward_params
    try:
        transformer.can_flatten_inputs = False
        if named is not None:
            transformer.model_forward_params = named | PACKED_KEYS
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
