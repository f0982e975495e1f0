"""Reason, then embed: an encoder that puts a reasoning behind each query and reads the vector after it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from reasonembed_mteb.encoding.packing import is_causal
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.files import fingerprint
from reasonembed_mteb.models.identity import describe_model, weights_hash
from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.reasoning.generation import Generation
from reasonembed_mteb.reasoning.heads import load_generator
from reasonembed_mteb.reasoning.sources import PLACE_OF_QUERY, Query, check_prompt
from reasonembed_mteb.reasoning.store import Reasoning, ReasoningStore, reasoning_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import Array, PromptType
    from numpy.typing import NDArray

    from reasonembed_mteb.models.instructions import PromptRule
    from reasonembed_mteb.reasoning.generation import Decoding, Generated
    from reasonembed_mteb.reasoning.sources import ReasoningSource

logger = logging.getLogger(__name__)

# The query with its instruction, and what its reasoning follows. Our own wording.
PROMPT = "{query}\nReasoning: "
BATCH_SIZE = 16
_PROBE = "a"


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


class SelfReasoning:
    """An embedder that writes the reasoning itself, keeps it, and reads the vector on its cache."""

    def __init__(
        self,
        model: SentenceTransformer,
        name: str,
        decoding: Decoding,
        store: Path,
        *,
        prompt: str = PROMPT,
        batch_size: int = BATCH_SIZE,
        **loading: Any,
    ) -> None:
        """Load the model's head.

        Args:
            model: A decoder that pools its last token.
            name: Hub name or directory from which its head is loaded.
            decoding: How tokens are chosen.
            store: Folder of the reasonings that are kept.
            prompt: With ``{query}``, which stands for the query and its instruction.
            batch_size: Queries generated for at a time.
            **loading: Of `load_generator`, such as ``revision``.

        Raises:
            ReasonEmbedError: If the model is no decoder, has no head, or its context is shorter than the
                reasoning.
        """
        decoding.check()
        if batch_size < 1:
            msg = f"{batch_size} queries at a time: give at least 1"
            raise ReasonEmbedError(msg)
        _check_decoder(model, name)
        self._model, self._decoding, self._prompt = model, decoding, check_prompt(prompt)
        self._batch_size = batch_size
        self._tokenizer: Any = model.tokenizer
        self._before, self._ending = _frame(self._tokenizer)
        self._after = self._bare(prompt.partition(PLACE_OF_QUERY)[2])
        self._length = _context_length(model)
        self._room(self._length)
        generator = load_generator(name, **{"dtype": model.dtype, "device_map": "cpu"} | loading)
        self._generation = Generation(model, generator, self._ending)
        self._hash = fingerprint(describe_model(model), weights_hash(self._generation.generator))
        self._store = ReasoningStore(store)

    def reasonings(self, texts: Sequence[str], limit: int, *, show_progress: bool = False) -> list[Reasoning]:
        """Return what is reasoned about each query: what is kept, and what is generated now.

        Batches are those of all the texts, kept or not, and each is kept as a whole, so that a run that was
        killed goes on with the same batches.

        Args:
            texts: Queries, each with its instruction.
            limit: Most tokens of a query with its prompt.
            show_progress: Whether a bar is shown.
        """
        prompts = [self._prompt_ids(text, self._room(limit)) for text in texts]
        keys = [self._key(prompt) for prompt in prompts]
        found = self._store.find(list(dict.fromkeys(keys)))
        by_key = dict(zip(keys, prompts, strict=True))
        # Longest first: rows of one batch are about as long, and memory runs out at once or never.
        order = sorted(by_key, key=lambda key: (-len(by_key[key]), key))
        batches = [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        with _bar(len(order), show_progress) as bar:
            for batch in batches:
                missing = [key for key in batch if key not in found]
                found |= self._generate(missing, [by_key[key] for key in missing]) if missing else {}
                bar.update(len(batch))
        return [found[key] for key in keys]

    def _generate(self, keys: list[bytes], prompts: list[list[int]]) -> dict[bytes, Reasoning]:
        seeds = [int.from_bytes(key[:7], "little") for key in keys]
        started = time.perf_counter()
        made = self._generation.run(prompts, self._decoding, seeds)
        seconds = (time.perf_counter() - started) / len(keys)
        found = {
            key: self._reasoning(one, len(prompt), seconds)
            for key, prompt, one in zip(keys, prompts, made, strict=True)
        }
        self._store.add(found.items())
        return found

    def _reasoning(self, one: Generated, prompt: int, seconds: float) -> Reasoning:
        text = self._tokenizer.decode(one.ids, skip_special_tokens=True)
        vector = one.vector.numpy()
        return Reasoning(text, one.stop, one.tokens, prompt, seconds, one.ids, vector)

    def _key(self, prompt: Sequence[int]) -> bytes:
        # The tokens are the prompt, the instruction and the query, at the length in force.
        return reasoning_key(
            {
                "model": self._hash,
                "prompt": list(prompt),
                "ending": self._ending,
                "decoding": asdict(self._decoding),
            }
        )

    def _prompt_ids(self, text: str, room: int) -> list[int]:
        query = self._bare(self._prompt.partition(PLACE_OF_QUERY)[0] + text)
        return [*self._before, *query[:room], *self._after]

    def _bare(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _room(self, limit: int) -> int:
        """Return how many tokens of a query fit beside the prompt, the reasoning and the ending."""
        around = len(self._before) + len(self._after) + len(self._ending)
        room = min(limit, self._length - self._decoding.max_tokens) - around
        if room < 1:
            msg = (
                f"{self._decoding.max_tokens:,} reasoning tokens and {around} around a query leave no room "
                f"for it in the model's {min(limit, self._length):,}: give fewer, or raise its max_seq_length"
            )
            raise ReasonEmbedError(msg)
        return room

    @property
    def kept(self) -> int:
        """How many reasonings the store holds."""
        return len(self._store)

    def close(self) -> None:
        """Close the reasonings on disk."""
        self._store.close()


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
        self._length = _context_length(encoder.model)
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
            found = self._reasoner.reasonings(texts, limit, show_progress=shown)
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


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Any]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Reasoning", unit="query", disable=not shown) as bar:
        yield bar


def _check_decoder(model: SentenceTransformer, name: str) -> None:
    backbone = getattr(model[0], "auto_model", None)
    if backbone is None or not is_causal(backbone):
        msg = f"{name} is no decoder, so that it cannot reason itself: give reasonings by a file or a server"
        raise ReasonEmbedError(msg)
    if getattr(backbone, "peft_config", None):
        msg = (
            f"{name} is an adapter: merge it into its base and save that, so that it has a head to reason by"
        )
        raise ReasonEmbedError(msg)
    if isinstance(model, ReasonEmbed) and not model.pools_last_token:
        msg = f"{name} does not pool the last token, which is what can be read after a reasoning"
        raise ReasonEmbedError(msg)


def _context_length(model: SentenceTransformer) -> int:
    """Return how many tokens a model reads: its own length, and no more than it has positions for."""
    own = model.max_seq_length
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    most = getattr(config, "max_position_embeddings", None)
    return min(one for one in (own, most, 1 << 30) if one is not None)


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:  # noqa: ANN401 - a transformers tokenizer
    """Return the ids that a tokenizer puts before and after a text."""
    whole: list[int] = tokenizer(_PROBE)["input_ids"]
    bare: list[int] = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
