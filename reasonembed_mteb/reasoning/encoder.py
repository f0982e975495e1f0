"""Reason, then embed: an encoder that puts a reasoning behind each query and reads the vector after it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder
from reasonembed_mteb.reasoning.latents import context_length
from reasonembed_mteb.reasoning.reasoner import PROMPT, SelfReasoning
from reasonembed_mteb.reasoning.sources import PLACE_OF_QUERY, Query, check_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import Array, PromptType
    from numpy.typing import NDArray

    from reasonembed_mteb.models.instructions import PromptRule
    from reasonembed_mteb.reasoning.generation import Decoding
    from reasonembed_mteb.reasoning.sources import ReasoningSource
    from reasonembed_mteb.reasoning.store import Reasoning

logger = logging.getLogger(__name__)


@dataclass
class ReasoningFigures:
    """What reasoning before embedding came to, for the queries of one task.

    Attributes:
        reasonings: One a query, in order, each with its id.
        cut: How many given reasonings were cut at the model's length.
        embedding_seconds: Time it took to embed given reasonings; where the model reasons itself, its own
            seconds hold that too.
    """

    reasonings: list[tuple[str, Reasoning]] = field(default_factory=list)
    cut: int = 0
    embedding_seconds: float = 0.0

    @property
    def stops(self) -> dict[str, int]:
        """How often each stop reason came."""
        return dict(Counter(one.stop for _, one in self.reasonings))


class ReasoningEncoder:
    """An encoder whose queries are reasoned about before they are embedded; documents are embedded as ever.

    For MTEB it is an encoder with a name and a revision of its own, so that its scores are never filed
    beside those of the model alone. In Python, `encode_query` and `encode_document` take texts.

    Example:
        >>> from pathlib import Path
        >>> from reasonembed_mteb import ReasonEmbed, ReasoningEncoder
        >>> from reasonembed_mteb.reasoning.generation import Decoding
        >>> name = "hanhainebula/reason-embed-qwen3-4b-0928"
        >>> model = ReasonEmbed(name)
        >>> encoder = ReasoningEncoder.of_itself(model, name, Decoding(max_tokens=8), Path("reasonings"))
        >>> queries = encoder.encode_query(["Why do cats purr?"], task="biology")
    """

    def __init__(
        self,
        encoder: Any,  # noqa: ANN401 - an MTEB encoder around a SentenceTransformer
        reasoner: SelfReasoning | ReasoningSource,
        *,
        prompt: str = PROMPT,
        show_progress: bool | None = None,
    ) -> None:
        """Put reasoning before an encoder's queries.

        Args:
            encoder: What embeds documents: a `ProtocolEncoder`, loaded.
            reasoner: Who reasons; with a `SelfReasoning`, its own prompt counts.
            prompt: What joins a query, with its instruction, and a reasoning that was given: it stands in
                front of the reasoning, and holds ``{query}``.
            show_progress: Whether bars are shown; None leaves that to each call.

        Raises:
            ReasonEmbedError: If the encoder has no SentenceTransformer inside, or the prompt no place.
        """
        if not isinstance(getattr(encoder, "model", None), SentenceTransformer):
            kind = type(encoder).__name__
            msg = f"{kind} holds no SentenceTransformer: reasoning goes before dense models only"
            raise ReasonEmbedError(msg)
        self._length = context_length(encoder.model)
        self._show_progress = show_progress
        self._reasoner, self._prompt = reasoner, check_prompt(prompt)
        # Under this name runs find what encodes documents, and put a store before it.
        self.wrapped_models: list[Any] = [encoder]
        self._inner = encoder
        self._meta: ModelMeta = encoder.mteb_model_meta
        # Where a name says no revision: what was loaded is known only then.
        self.resolved_revision: str | None = None
        self.figures: dict[str, ReasoningFigures] = {}

    @classmethod
    def of_itself(
        cls, model: SentenceTransformer, name: str, decoding: Decoding, store: Path, **options: Any
    ) -> ReasoningEncoder:
        """Make an encoder of a model that reasons itself.

        Args:
            model: A decoder.
            name: Hub name or directory from which its language-model head is loaded.
            decoding: How tokens are chosen.
            store: Folder of the reasonings that are kept.
            **options: Of `SelfReasoning`.
        """
        return cls(ProtocolEncoder(model), SelfReasoning(model, name, decoding, store, **options))

    @property
    def model(self) -> SentenceTransformer:
        """The SentenceTransformer inside."""
        model: SentenceTransformer = self._inner.model
        return model

    @property
    def prompt_rule(self) -> PromptRule:
        """What goes before a text; the same as without reasoning."""
        rule: PromptRule = self._inner.prompt_rule
        return rule

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Metadata, with a name and a revision of its own where a run gave it some."""
        return self._meta

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta) -> None:
        if meta.revision is None and self.resolved_revision is not None:
            meta = meta.model_copy(update={"revision": self.resolved_revision})
        self._meta = meta

    @property
    def base(self) -> Any:  # noqa: ANN401 - an MTEB encoder
        """What embeds documents, without a store before it."""
        return self._inner

    def close(self) -> None:
        """Let whoever generates go, and the memory that it holds; documents can still be embedded."""
        if isinstance(self._reasoner, SelfReasoning):
            self._reasoner.close()

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Return the model's own similarity of ``(N, dim)`` and ``(M, dim)``, as ``(N, M)``."""
        found: Array = self.wrapped_models[0].similarity(embeddings1, embeddings2)
        return found

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Return the model's own similarity of pairs of rows, two ``(N, dim)``, as ``(N,)``."""
        found: Array = self.wrapped_models[0].similarity_pairwise(embeddings1, embeddings2)
        return found

    def encode(
        self,
        inputs: Iterable[Any],
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Encode for MTEB: queries with reasoning, documents without.

        Args:
            inputs: Batches with ``text`` and, where there are some, ``id``.
            task_metadata: Its name decides instruction and length.
            prompt_type: Query or document; without sides, texts are encoded as they are.
            **kwargs: ``hf_split``, ``hf_subset`` and encode options.

        Returns:
            Vectors ``(N, dim)``.

        Raises:
            ReasonEmbedError: If a query has no reasoning.
        """
        if prompt_type is None or prompt_type.value != "query":
            found: Array = self.wrapped_models[0].encode(
                inputs, task_metadata=task_metadata, prompt_type=prompt_type, **kwargs
            )
            return found
        columns: dict[str, list[str]] = {"text": [], "id": []}
        for batch in inputs:
            columns["text"] += batch["text"]
            columns["id"] += [str(one) for one in batch.get("id", [""] * len(batch["text"]))]
        name = task_metadata.name
        queries = [Query(text, key, name) for text, key in zip(*columns.values(), strict=True)]
        prefix = self.prompt_rule.prefix(task_metadata, "query")
        return self._encoded(queries, prefix, bool(kwargs.get("show_progress_bar")))

    def encode_query(
        self,
        queries: Sequence[str],
        *,
        task: str | None = None,
        instruction: str | None = None,
        show_progress_bar: bool = False,
    ) -> NDArray[np.float32]:
        """Encode queries, each after its instruction and with its reasoning.

        Args:
            queries: Texts.
            task: An MTEB task name or a subset such as ``"biology"``, whose instruction is taken.
            instruction: A sentence of your own in its place.
            show_progress_bar: Whether bars are shown.

        Returns:
            ``(N, dim)``.

        Raises:
            UnknownNameError: If the task is not known.
            ReasonEmbedError: If both are given.
        """
        from reasonembed_mteb.retrieval.rows import find

        if task is not None and instruction is not None:
            msg = "give task= or instruction=, not both"
            raise ReasonEmbedError(msg)
        row = find(task) if task is not None else None
        sentence = row.instruction if row is not None else instruction
        prefix = self.prompt_rule.instructed(sentence or "", row.name if row is not None else None)
        named = row.name if row is not None else ""
        found = self._encoded([Query(one, "", named) for one in queries], prefix, show_progress_bar)
        return found.numpy()

    def encode_document(self, documents: Sequence[str], **kwargs: Any) -> Any:  # noqa: ANN401
        """Encode documents as the model alone does.

        Args:
            documents: Texts.
            **kwargs: Of `SentenceTransformer.encode_document`.
        """
        return self.model.encode_document(list(documents), **kwargs)

    def _encoded(self, queries: Sequence[Query], prefix: str, progress: bool) -> torch.Tensor:
        if not queries:
            return torch.empty(0, int(self.model.get_embedding_dimension() or 0))
        shown = progress if self._show_progress is None else self._show_progress
        figures = self.figures.setdefault(queries[0].task, ReasoningFigures())
        if isinstance(self._reasoner, SelfReasoning):
            limit = min(self._length, self.model.max_seq_length or self._length)
            texts = [prefix + one.text for one in queries]
            found = self._reasoner.reasonings(texts, limit, prefix=prefix, show_progress=shown)
            vectors = torch.from_numpy(np.stack([one.vector for one in found if one.vector is not None]))
        else:
            found = self._reasoner.reasonings(queries)
            vectors = self._embedded(queries, prefix, found, figures, shown)
        figures.reasonings += [(one.id, held) for one, held in zip(queries, found, strict=True)]
        dimension = getattr(self.model, "truncate_dim", None)
        return vectors if dimension is None else vectors[:, :dimension]

    def _embedded(
        self,
        queries: Sequence[Query],
        prefix: str,
        found: Sequence[Reasoning],
        figures: ReasoningFigures,
        progress: bool,
    ) -> torch.Tensor:
        """Embed queries with reasonings that were given, at the model's own length."""
        texts = [
            self._prompt.replace(PLACE_OF_QUERY, prefix + one.text) + held.text
            for one, held in zip(queries, found, strict=True)
        ]
        started = time.perf_counter()
        with _at_length(self.model, self._length):
            vectors = self.model.encode(texts, convert_to_tensor=True, show_progress_bar=progress, prompt="")
        figures.embedding_seconds += time.perf_counter() - started
        counts = getattr(self.model, "last_token_counts", None)
        cut = 0 if counts is None else int((counts > self._length).sum())
        figures.cut += cut
        if cut:
            logger.warning(
                "%d of %d reasonings were cut: with its query one has more than the model's %d tokens",
                cut,
                len(texts),
                self._length,
            )
        return torch.as_tensor(vectors).float().cpu()


@contextmanager
def _at_length(model: Any, length: int) -> Iterator[None]:  # noqa: ANN401 - a SentenceTransformer
    """Let a model read so many tokens: the protocol's length is a query's, without its reasoning."""
    before = model.max_seq_length
    model.max_seq_length = length
    try:
        yield
    finally:
        model.max_seq_length = before
