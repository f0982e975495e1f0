"""Rows of token ids through a model: their vectors, and how a similarity changes with each token."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from sentence_transformers.base.modules import Transformer

from reasonembed_mteb.encoding.loop import Batch, EncodeRequest, Encoding, attending, token_batches
from reasonembed_mteb.encoding.plan import EncodingPlan, check_options, make_plan
from reasonembed_mteb.encoding.tokenizing import Tokenizing
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn

# Words that are tried to see what stands around a text.
_PROBES = 64
# A gradient keeps every layer's activations: several times the memory of a pass without.
_GRADIENT_SHARE = 4


@dataclass(frozen=True)
class Frame:
    """What a model's tokenizer puts around a text.

    Attributes:
        before: ``(B,)`` ids, those of the prompt among them.
        after: ``(A,)`` ids.
        with_types: Whether the model reads token type ids, all 0 here.
        extra: What else the modules read.
    """

    before: NDArray[np.int32]
    after: NDArray[np.int32]
    with_types: bool
    extra: dict[str, Any]

    def around(self, rows: NDArray[np.int64]) -> Batch:
        """Return texts with the frame around each.

        Args:
            rows: ``(N, T)`` ids of the texts alone.
        """
        parts = [np.concatenate([self.before, row, self.after]).astype(np.int32) for row in rows]
        types = [np.zeros(len(row), dtype=np.int32) for row in parts] if self.with_types else None
        return Batch(np.arange(len(parts)), parts, types, self.extra)


class TokenRowEncoder:
    """A model that reads rows of token ids, all of one length, in place of texts.

    Rows go through the model as its texts do: packed where that is known, by token budget, with the special
    tokens and the prompt that the tokenizer puts around a text.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        prompt: str | None = None,
        *,
        attn: str = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        """Look at a model.

        Args:
            model: Its first module must be a transformers model of its own weights.
            prompt: Put before each text.
            attn: See `reasonembed_mteb.encoding.accelerate`; ``off`` counts as ``padded``.
            batch_tokens: Tokens of a batch; None for the device's own.

        Raises:
            ReasonEmbedError: If the model has no token embedding to take a gradient at.
        """
        check_options(attn, batch_tokens, "off")
        self._model = model
        self._transformer = _transformer_of(model)
        self._embedding: nn.Module = self._transformer.auto_model.get_input_embeddings()
        self.frame = _frame_of(self._transformer, prompt)
        plan = make_plan(model, "padded" if attn == "off" else attn, batch_tokens, model.device)
        self._plan: EncodingPlan = plan
        self._normalised = model.similarity_fn_name == "cosine"
        self._encoding = Encoding(model, plan, self._request(), compile_layers="off")

    def _request(self) -> EncodeRequest:
        return EncodeRequest(
            prompt=None,
            device=self._model.device,
            normalize_embeddings=self._normalised,
            truncate_dim=getattr(self._model, "truncate_dim", None),
            save_to_cpu=True,
            show_progress_bar=False,
        )

    @property
    def table(self) -> Tensor:
        """The token embeddings, ``(V, H)``."""
        return cast("Tensor", self._embedding.weight)

    @property
    def room(self) -> int | None:
        """How many tokens fit between those of the frame, or None where the model has no limit."""
        own = self._transformer.max_seq_length
        return None if own is None else int(own) - len(self.frame.before) - len(self.frame.after)

    @torch.inference_mode()
    def vectors(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the vectors of rows, of unit length where the model's similarity is the cosine.

        Args:
            rows: ``(N, T)`` ids, without the frame.

        Returns:
            ``(N, dim)`` float32 on the CPU.
        """
        self._model.eval()
        return self._encoding.run_rows(self.frame.around(rows)).float()

    def gradients(self, rows: NDArray[np.int64], targets: Tensor) -> Tensor:
        """Return how each row's similarity to its target changes with its token embeddings.

        Args:
            rows: ``(N, T)`` ids, without the frame.
            targets: ``(N, dim)``: the similarity is the product with the row's vector.

        Returns:
            ``(N, T, H)`` in the precision and on the device of the weights.
        """
        self._model.eval()
        batch = self.frame.around(rows)
        budget = max(1, self._plan.batch_tokens // _GRADIENT_SHARE)
        parts = token_batches(batch.lengths, budget, padded=not self._plan.packed)
        # Equal lengths keep their order.
        with frozen(self._model), torch.enable_grad():
            found = [self._part_gradients(batch.part(places), targets[places]) for places in parts]
        return torch.cat(found)

    def _part_gradients(self, batch: Batch, targets: Tensor) -> Tensor:
        with attending(self._transformer, self._plan.kernel), _watched(self._embedding) as seen:
            vectors = self._model(self._encoding.features(batch))["sentence_embedding"]
            dimension = getattr(self._model, "truncate_dim", None)
            vectors = vectors if dimension is None else vectors[:, :dimension]
            vectors = torch.nn.functional.normalize(vectors, dim=1) if self._normalised else vectors
            (gradient,) = torch.autograd.grad((vectors * targets.to(vectors)).sum(), seen)
        rows = gradient.reshape(len(batch.ids), -1, gradient.shape[-1])
        start = len(self.frame.before)
        return rows[:, start : rows.shape[1] - len(self.frame.after)]


def _transformer_of(model: SentenceTransformer) -> Any:  # noqa: ANN401 - a Transformer module
    first: Any = model[0] if len(model) else None
    if not isinstance(first, Transformer) or first.backend != "torch":
        kind = type(first).__name__
        msg = (
            f"a gradient needs a model whose first module is a Transformer of torch, not {kind}: give "
            "another model, or attacks that need no gradient"
        )
        raise ReasonEmbedError(msg)
    if model.similarity_fn_name not in ("cosine", "dot"):
        msg = (
            f"the similarity {model.similarity_fn_name} is not linear in a query's vector: give a model "
            "whose similarity is cosine or dot"
        )
        raise ReasonEmbedError(msg)
    return first


def _frame_of(transformer: Any, prompt: str | None) -> Frame:  # noqa: ANN401
    """Find what stands around a text: where texts of other tokens are alike."""
    found = Tokenizing(transformer, prompt)(list(islice(_words(transformer.tokenizer), _PROBES)))
    one = found.ids[0]
    other = next((row for row in found.ids if not np.array_equal(row, one)), None)
    if other is None:
        msg = "the tokenizer gives every word of its vocabulary the same tokens: give another model"
        raise ReasonEmbedError(msg)
    before, after = _alike(one, other), _alike(one[::-1], other[::-1])
    return Frame(one[:before], one[len(one) - after :], found.types is not None, found.extra)


def _words(tokenizer: Any) -> Iterator[str]:  # noqa: ANN401 - a transformers tokenizer
    """Yield plain words of a vocabulary; they begin and end alike only by what is around them."""
    for token in range(len(tokenizer)):
        word = tokenizer.decode([token]).strip()
        if word.isascii() and word.isalpha():
            yield word


def _alike(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Count the tokens with which two rows begin alike."""
    return sum(1 for _ in takewhile(bool, (a == b for a, b in zip(one, other, strict=False))))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no weight ask for a gradient while the context lasts, so that fewer activations are kept.

    Args:
        model: Any.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _watched(embedding: nn.Module) -> Iterator[Sequence[Tensor]]:
    """Make what a token embedding gives a leaf of the graph, and hand it over."""
    seen: list[Tensor] = []

    def watch(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:  # noqa: ANN401
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = embedding.register_forward_hook(watch)
    try:
        yield seen
    finally:
        handle.remove()
