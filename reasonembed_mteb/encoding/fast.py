"""A SentenceTransformer that encodes by token budget, and a way to make one of any."""

from __future__ import annotations

import inspect
import math
import signal
import sys
import time
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedTokenizerBase

from reasonembed_mteb.encoding.engines.running import encode_by_engine
from reasonembed_mteb.encoding.loop import EncodeRequest, Encoding
from reasonembed_mteb.encoding.output import EncodingStats, TextsError
from reasonembed_mteb.encoding.packing import can_pack
from reasonembed_mteb.encoding.plan import check_options, make_plan
from reasonembed_mteb.encoding.tokenizing import KEPT_KEYS, check_room, length_limit
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from multiprocessing.queues import Queue

    from numpy.typing import NDArray
    from torch import Tensor

    from reasonembed_mteb.encoding.engines.engine import Engine

# sentence-transformers' own largest share of a process pool's work.
_POOL_CHUNK = 5000
# Seconds that a worker has to tidy up.
_ENDS_WITHIN = 5.0


class TextPool(Protocol):
    """What encodes texts in place of the process that asks."""

    def encode(
        self, texts: list[str], length: int | None, options: dict[str, Any]
    ) -> tuple[Tensor, NDArray[np.int32] | None, EncodingStats]:
        """Encode texts.

        Args:
            texts: In any number.
            length: Tokens at which they are cut; None for no limit.
            options: ``prompt``, ``batch_size``, ``normalize_embeddings``, ``truncate_dim`` and others of
                `SentenceTransformer.encode`.

        Returns:
            Vectors ``(N, dim)`` in the texts' order, on the CPU; token counts ``(N,)`` before truncation, or
            None; and what was done.
        """
        ...


class FastSentenceTransformer(SentenceTransformer):
    """A SentenceTransformer whose encode, process pools and evaluators batch by token budget.

    What the fast path does not know (images, pairs, chat templates, token vectors) takes the library's.
    ``batch_size`` counts only there.

    Attributes:
        batch_tokens: Tokens of a batch; None for the device's own.
        attn: ``"auto"``, ``"packed"``, ``"padded"``, ``"flash"`` (the flash-attn package's kernels) or
            ``"off"`` (the library's path).
        compile_layers: Whether decoder layers are compiled: ``"auto"`` (where the work pays for the
            warm-up), ``"on"``, ``"off"`` or a bool.
        last_token_counts: Tokens of the last call's texts (N,) in input order, before they were cut; None
            after the library's path.
        engine: Computes the vectors in place of the weights, which then need not be there; None for torch.
    """

    batch_tokens: int | None = None
    attn: str = "auto"
    compile_layers: str | bool = "auto"
    last_token_counts: NDArray[np.int32] | None = None
    engine: Engine | None = None
    # Where memory ran out: the budget asked for then, and what fitted.
    _fitting: tuple[int, int] | None = None
    _stats: EncodingStats | None = None
    # Where texts are encoded unless a call says otherwise; the pool for it, and the length it began with.
    _devices: list[str] | None = None
    _kept_pool: Any = None
    _kept_length: int | None = None
    # What encodes instead of this process, where texts are handed on.
    _elsewhere: TextPool | None = None
    # What a class made by `accelerate` was made from.
    _made_from: type[SentenceTransformer] | None = None

    @property
    def encoding_stats(self) -> EncodingStats:
        """What was encoded since the last reset."""
        if self._stats is None:
            self._stats = EncodingStats()
        return self._stats

    @property
    def fitting_batch_tokens(self) -> int | None:
        """Tokens of a batch that fitted after memory had run out; None where it never did."""
        return self._fitting[1] if self._fitting is not None else None

    def encode(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the library's, which it documents
        """Encode as the library does, on all devices that `use_devices` named, or where `use_pool` said."""
        if self._devices or self._elsewhere is not None:
            given = (
                inspect.signature(SentenceTransformer.encode).bind_partial(self, *args, **kwargs).arguments
            )
            if given.get("device") is None and given.get("pool") is None:
                kwargs["pool"] = self._elsewhere or self._pool_at_this_length()
        return super().encode(*args, **kwargs)

    def use_devices(self, devices: Sequence[str] | None) -> None:
        """Encode on several devices from now on, by one process a device that is kept between calls.

        Args:
            devices: Such as ``["cuda:0", "cuda:1"]``; None ends it and stops the processes.
        """
        self._stop_kept_pool()
        self._devices = list(devices) if devices else None

    def use_pool(self, pool: TextPool | None) -> None:
        """Let something else encode from now on, such as a cluster.

        Args:
            pool: What encodes; None ends it.
        """
        self._elsewhere = pool

    @staticmethod
    def stop_multi_process_pool(pool: Any) -> None:  # noqa: ANN401 - the library's pool
        """Stop the processes of a pool, as the library does; one that misses the signal is killed.

        Args:
            pool: As `start_multi_process_pool` gave it.
        """
        for process in pool["processes"]:
            process.terminate()
        for process in pool["processes"]:
            # The signal may come just before a worker waits for its next chunk, and be heeded after it alone.
            process.join(_ENDS_WITHIN)
            if process.is_alive():
                process.kill()
        SentenceTransformer.stop_multi_process_pool(pool)

    def _stop_kept_pool(self) -> None:
        if self._kept_pool is not None:
            self.stop_multi_process_pool(self._kept_pool)
        self._kept_pool = None

    def _pool_at_this_length(self) -> Any:  # noqa: ANN401 - the library's pool
        # The processes hold copies of the model: another length needs new ones.
        if self._kept_pool is None or self._kept_length != self.max_seq_length:
            self._stop_kept_pool()
            devices, self._devices = self._devices, None
            try:
                self._kept_pool = self.start_multi_process_pool(devices)
            finally:
                self._devices = devices
            self._kept_length = self.max_seq_length
        return self._kept_pool

    @torch.inference_mode()
    def _inference(self, inputs: list[Any], **kwargs: Any) -> Any:  # noqa: ANN401 - as the library's
        """Encode what the fast path knows; hand the rest to the library."""
        if reads_text_only(self):
            _check_texts(inputs)
            self._check_length(kwargs)
        started = time.perf_counter()
        self.last_token_counts = None
        if self.engine is not None:
            found, self.last_token_counts, done = self._inference_by_engine(self.engine, inputs, **kwargs)
        elif not inputs or not self._is_for_us(inputs, kwargs):
            found = self._inference_by_library(inputs, **kwargs)
            done = EncodingStats(texts=len(inputs))
        else:
            found, self.last_token_counts, done = self._inference_by_budget(inputs, **kwargs)
        done.seconds = time.perf_counter() - started
        self.encoding_stats.add(done)
        return found

    def _check_length(self, options: dict[str, Any]) -> None:
        # A call's own options may bring another length.
        if "processing_kwargs" not in options:
            first: Any = self[0]
            limit = length_limit(first, options.get("task"))
            check_room(self.tokenizer, limit, "max_seq_length", options.get("prompt") or "")

    def _is_for_us(self, inputs: list[Any], options: dict[str, Any]) -> bool:
        return (
            self.attn != "off"
            and options["output_value"] == "sentence_embedding"
            and "processing_kwargs" not in options
            and _reads_plain_text(self)
            and all(isinstance(text, str) for text in inputs)
        )

    def _inference_by_budget(
        self,
        inputs: list[str],
        *,
        device: Any = None,  # noqa: ANN401 - as the library's
        batch_size: int,
        output_value: str,
        **options: Any,
    ) -> tuple[Tensor, NDArray[np.int32], EncodingStats]:
        named = ("prompt", "show_progress_bar", "save_to_cpu", "normalize_embeddings", "truncate_dim")
        check_options(self.attn, self.batch_tokens, self.compile_layers)
        where = self._resolve_inference_device(device)
        self.eval()
        request = EncodeRequest(
            device=where,
            **{name: options.pop(name) for name in named},
            kwargs=options,
        )
        plan = make_plan(self, self.attn, self.batch_tokens, where)
        asked = plan.batch_tokens
        if self._fitting is not None and self._fitting[0] == asked:
            plan = replace(plan, batch_tokens=self._fitting[1])
        encoding = Encoding(
            self,
            plan,
            request,
            compile_layers=self.compile_layers,
            tokens_before=self.encoding_stats.tokens,
        )
        vectors, counts = encoding.run(inputs)
        if encoding.budget.tokens < plan.batch_tokens:
            self._fitting = (asked, encoding.budget.tokens)
        return vectors, counts, encoding.stats

    def _inference_by_engine(
        self,
        engine: Engine,
        inputs: list[Any],
        *,
        output_value: str,
        device: Any = None,  # noqa: ANN401 - as the library's
        batch_size: int,
        save_to_cpu: bool,
        **options: Any,
    ) -> tuple[Tensor, NDArray[np.int32], EncodingStats]:
        """Let an engine encode; where to and in which batches is the engine's own affair."""
        del device, batch_size, save_to_cpu
        if output_value != "sentence_embedding" or "processing_kwargs" in options:
            msg = f"an engine gives vectors of texts, not output_value={output_value!r}: use --engine torch"
            raise ReasonEmbedError(msg)
        return encode_by_engine(self, engine, inputs, **options)

    def _inference_by_library(self, inputs: list[Any], **kwargs: Any) -> Any:  # noqa: ANN401
        """Run `SentenceTransformer._inference` on what has tokens; the rest gets zero vectors."""
        bare = not kwargs.get("prompt") and self._empty_text_has_no_token()
        empty = [bare and isinstance(text, str) and not text for text in inputs]
        if not any(empty) or kwargs.get("output_value") != "sentence_embedding":
            return super()._inference(inputs, **kwargs)
        filled = [text for text, is_empty in zip(inputs, empty, strict=True) if not is_empty]
        dim = kwargs.get("truncate_dim") or self.get_embedding_dimension()
        kept = torch.empty(0, int(dim or 0))
        if filled:
            kept = torch.as_tensor(super()._inference(filled, **kwargs))
        vectors = torch.zeros(len(inputs), kept.shape[1], dtype=kept.dtype, device=kept.device)
        vectors[~torch.tensor(empty, device=kept.device)] = kept
        return vectors

    def _empty_text_has_no_token(self) -> bool:
        # Only where the tokenizer alone decides: static embeddings, chat templates and other modules take
        # empty texts in their own way.
        return reads_text_only(self) and not self.tokenizer("")["input_ids"]

    @staticmethod
    def _multi_process_worker(  # type: ignore[override]
        target_device: str,
        model: FastSentenceTransformer,
        input_queue: Queue[Any],
        results_queue: Queue[Any],
    ) -> None:
        """Work as the library's worker does, and send counts and figures along.

        A static method, so that a class made by `accelerate` need not be importable in the worker.
        """

        def leave(*_: object) -> None:
            # Ended by the signal alone, a worker leaves its semaphores behind; what it has not sent is not
            # waited for.
            results_queue.cancel_join_thread()
            sys.exit(0)

        signal.signal(signal.SIGTERM, leave)
        reporting: Any = _ReportingQueue(results_queue, model)
        super(FastSentenceTransformer, FastSentenceTransformer)._multi_process_worker(
            target_device, model, input_queue, reporting
        )

    def _get_worker_result(self, pool: Any, poll_interval: float = 1.0) -> Any:  # type: ignore[override]  # noqa: ANN401
        # A pool that was started before the model was accelerated sends no figures.
        chunk, found, *figures = super()._get_worker_result(pool, poll_interval)
        counts, done = figures or (None, EncodingStats())
        self._pooled[chunk] = counts
        self.encoding_stats.add(done)
        if isinstance(found, TextsError):
            found = found.moved(chunk * self._pool_chunk)
        return chunk, found

    def _multi_process(self, inputs: Sequence[Any], pool: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]  # noqa: ANN401
        if pool is not None and pool is self._elsewhere:
            return self._encode_elsewhere(inputs, **kwargs)
        workers = len(pool["processes"]) if pool else len(kwargs.get("device") or [None])
        share = max(1, min(math.ceil(len(inputs) / workers / 10), _POOL_CHUNK))
        given = kwargs.get("chunk_size")
        kwargs["chunk_size"] = self._pool_chunk = share if given is None else given
        self._pooled: dict[int, NDArray[np.int32] | None] = {}
        found = super()._multi_process(inputs, pool=pool, **kwargs)
        counts = [part for _, part in sorted(self._pooled.items()) if part is not None]
        complete = bool(counts) and len(counts) == len(self._pooled)
        self.last_token_counts = np.concatenate(counts) if complete else None
        return found

    def _encode_elsewhere(
        self,
        inputs: Sequence[Any],
        *,
        device: Any = None,  # noqa: ANN401 - as the library's
        chunk_size: int | None = None,
        save_to_cpu: bool = True,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        **options: Any,
    ) -> Tensor:
        del device, chunk_size, save_to_cpu, show_progress_bar
        assert self._elsewhere is not None
        if output_value != "sentence_embedding":
            msg = f"output_value={output_value!r} is not handed on: call use_pool(None) first"
            raise ReasonEmbedError(msg)
        if not inputs:
            # As the library's own pools.
            return torch.empty(0)
        found, counts, done = self._elsewhere.encode(list(inputs), self.max_seq_length, options)
        self.last_token_counts = counts
        self.encoding_stats.add(done)
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401 - as object's
        """Pickle a model whose class `accelerate` made by naming the class it was made from."""
        if vars(type(self)).get("_made_from") is None:
            return super().__reduce_ex__(protocol)
        return _revive, (self._made_from,), self.__getstate__()  # type: ignore[no-untyped-call]


class _ReportingQueue:
    """A worker's results queue that adds token counts and figures to each result."""

    def __init__(self, queue: Any, model: FastSentenceTransformer) -> None:  # noqa: ANN401
        self._queue = queue
        self._model = model

    def put(self, result: Sequence[Any]) -> None:
        """Send a result ``[chunk, vectors or error]``."""
        chunk, found = result
        done = EncodingStats()
        done.add(self._model.encoding_stats)
        self._model.encoding_stats.reset()
        self._queue.put([chunk, found, self._model.last_token_counts, done])


def accelerate(
    model: SentenceTransformer,
    *,
    batch_tokens: int | None = None,
    attn: str = "auto",
    compile: str | bool = "auto",
) -> SentenceTransformer:
    """Let a loaded model encode by token budget, in place.

    Vectors are the same within the precision's noise; encode, encode_query, encode_document, process pools
    and evaluators all take the new path.

    Args:
        model: Any SentenceTransformer.
        batch_tokens: Tokens of a batch; None for the device's own.
        attn: ``"auto"``, ``"packed"``, ``"padded"``, ``"flash"`` or ``"off"``.
        compile: Whether decoder layers are compiled: ``"auto"``, ``"on"``, ``"off"`` or a bool.

    Returns:
        The model itself.

    Raises:
        UnknownNameError: If an option is not known.
        ReasonEmbedError: If the model is none, or the budget is no positive number.

    Example:
        >>> from reasonembed_mteb import accelerate  # doctest: +SKIP
        >>> from sentence_transformers import SentenceTransformer  # doctest: +SKIP
        >>> model = accelerate(SentenceTransformer("all-MiniLM-L6-v2"), batch_tokens=8192)  # doctest: +SKIP
    """
    if not isinstance(model, SentenceTransformer):
        msg = f"accelerate takes a SentenceTransformer, not {type(model).__name__}"  # type: ignore[unreachable]
        raise ReasonEmbedError(msg)
    check_options(attn, batch_tokens, compile)
    if not isinstance(model, FastSentenceTransformer):
        model.__class__ = _fast_class(type(model))
    fast: Any = model
    fast.batch_tokens, fast.attn, fast.compile_layers = batch_tokens, attn, compile
    return model


def encode_stream(
    model: SentenceTransformer, texts: Iterable[str], *, chunk: int = 100_000, **options: Any
) -> Iterator[NDArray[Any]]:
    """Encode texts as they come; memory holds one chunk of them, however many there are.

    Args:
        model: Any SentenceTransformer; see `accelerate`.
        texts: Read once and in order; a generator is fine.
        chunk: How many are encoded at a time. Lengths even out within a chunk, so that large ones are faster.
        **options: Of `SentenceTransformer.encode`, such as ``prompt_name``.

    Yields:
        Vectors ``(at most chunk, dim)`` in the texts' order.

    Raises:
        ReasonEmbedError: If the chunk is no positive number.
        TextsError: As encode does, with positions counted from the first text of all.
    """
    if chunk < 1:
        msg = f"chunk is {chunk}: give at least 1"
        raise ReasonEmbedError(msg)
    waiting = iter(texts)
    start = 0
    while some := list(islice(waiting, chunk)):
        try:
            vectors = model.encode(some, **options)
        except TextsError as error:
            raise error.moved(start) from error
        yield np.asarray(vectors)
        start += len(some)


@cache
def _fast_class(base: type[SentenceTransformer]) -> type[FastSentenceTransformer]:
    if base is SentenceTransformer:
        return FastSentenceTransformer
    return type(f"Fast{base.__name__}", (FastSentenceTransformer, base), {"_made_from": base})


def _revive(base: type[SentenceTransformer]) -> FastSentenceTransformer:
    made = _fast_class(base)
    return made.__new__(made)


def _reads_plain_text(model: SentenceTransformer) -> bool:
    """Return whether texts reach a transformers model through its tokenizer and nothing else."""
    first: Any = model[0]
    return (
        reads_text_only(model)
        and _is_librarys_own(
            model, SentenceTransformer, ("preprocess", "tokenize", "_resolve_inference_device")
        )
        and _has_librarys_inference(type(model))
        and _is_librarys_own(first, Transformer, ("preprocess", "forward"))
        and first.backend == "torch"
        and first.transformer_task == "feature-extraction"
        and first.modality_config["text"]["method"] == "forward"
        # Without a mask the library pools padding too; a fixed length pads in a way of its own.
        and "attention_mask" in first.processor.model_input_names
        and set(first.processor.model_input_names) <= KEPT_KEYS
        and _pads_to_longest(first)
        and first.query_expansion is None
        # The library's own flattening, which a model was loaded for, is better than padded rows.
        and (can_pack(model) or not first.can_flatten_inputs)
        and model.device.type != "hpu"
    )


def reads_text_only(model: SentenceTransformer) -> bool:
    """Return whether the first module is a Transformer that takes text, and that without a chat template."""
    first: Any = model[0] if len(model) else None
    return (
        isinstance(first, Transformer)
        and set(first.modality_config) == {"text"}
        and isinstance(first.processor, PreTrainedTokenizerBase)
    )


def _is_librarys_own(given: object, base: type, names: Sequence[str]) -> bool:
    """Return whether neither the object nor its class has its own version of any method."""
    return all(
        name not in vars(given) and getattr(type(given), name, None) is getattr(base, name, None)
        for name in names
    )


def _has_librarys_inference(kind: type) -> bool:
    """Return whether no class between ours and the library's infers in its own way."""
    others = (cls for cls in kind.__mro__ if issubclass(cls, SentenceTransformer))
    return all(
        "_inference" not in vars(cls)
        for cls in others
        if cls not in (FastSentenceTransformer, SentenceTransformer)
    )


def _pads_to_longest(transformer: Any) -> bool:  # noqa: ANN401 - a Transformer module
    options = getattr(transformer, "processing_kwargs", None) or {}
    given = (options.get("text") or {}).get("padding", True)
    return given in (True, "longest")


def _check_texts(inputs: Sequence[Any]) -> None:
    for position, text in enumerate(inputs):
        if text is None or isinstance(text, (bool, int, float, bytes)):
            msg = f"input {position} is {type(text).__name__}, not text: {text!r}"
            raise ReasonEmbedError(msg)


# Tools that read the signature see the parent's.
FastSentenceTransformer.encode.__signature__ = inspect.signature(SentenceTransformer.encode)  # type: ignore[attr-defined]
