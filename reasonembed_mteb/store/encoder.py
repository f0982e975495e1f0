"""An MTEB encoder whose vectors are kept in an embedding store, and taken from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reasonembed_mteb.encoding.output import TextsError
from reasonembed_mteb.errors import ReasonEmbedError, first_names
from reasonembed_mteb.models.engines import ENGINE_OPTION
from reasonembed_mteb.models.identity import describe_model
from reasonembed_mteb.models.instructions import ABLATED, loaded_prefix
from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder
from reasonembed_mteb.retrieval.lengths import current_length
from reasonembed_mteb.retrieval.rows import max_tokens_for
from reasonembed_mteb.retrieval.search import CHUNK_SIZE, column_loader
from reasonembed_mteb.store.vectors import LazyKeys, VectorStore, text_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import EncoderProtocol, ModelMeta
    from mteb.types import Array, PromptType
    from numpy.typing import NDArray

    from reasonembed_mteb.store.vectors import Found

# Options of encode that leave the vectors as they are.
_COSMETIC = {"batch_size", "show_progress_bar", "convert_to_tensor", "convert_to_numpy", "num_proc"}
_NOT_OF_VECTORS = {"path", "device", "output_dtypes", ENGINE_OPTION}
# What our encoders put before a text is part of the text.
_OF_THE_TEXT = {"instruction_template", "no_instruction", "max_tokens", ABLATED}


def storable(model: Any) -> bool:  # noqa: ANN401 - any of mteb's model protocols
    """Whether a model gives one dense vector a text.

    Args:
        model: A loaded MTEB model.
    """
    from mteb.models import EncoderProtocol, SearchProtocol

    kinds = model.mteb_model_meta.model_type or []
    return (
        isinstance(model, EncoderProtocol)
        and not isinstance(model, SearchProtocol)
        and list(kinds) == ["dense"]
    )


def model_fingerprint(model: Any) -> dict[str, Any]:  # noqa: ANN401 - mteb's EncoderProtocol
    """Return everything that decides a model's vectors, apart from the text and its length.

    The weights themselves are hashed, adapters among them, where the model has any: a name and a revision
    can be given to anything.

    Args:
        model: A loaded MTEB encoder.
    """
    meta = model.mteb_model_meta
    options = {**(meta.loader_kwargs or {}), **(meta.experiment_kwargs or {})}
    # Where the weights lie is no part of them, and compression comes after the store.
    skipped = _NOT_OF_VECTORS | (_OF_THE_TEXT if isinstance(model, ProtocolEncoder) else set())
    chosen = {key: str(value) for key, value in options.items() if key not in skipped}
    found: dict[str, Any] = {"name": meta.name, "revision": meta.revision, "options": chosen}
    inner = getattr(model, "model", None)
    if not isinstance(inner, torch.nn.Module):
        return found
    return found | describe_model(inner)


class StoredEncoder:
    """An MTEB encoder in front of a store: texts that are stored are not encoded again.

    Texts are looked up in fixed chunks of the corpus and each chunk's missing ones are encoded together, so
    that a run that was killed continues with the same batches, and so the same vectors, at most one chunk
    behind.
    """

    # See `reasonembed_mteb.retrieval.topk`.
    hands_over_similarity = True

    def __init__(
        self, model: EncoderProtocol, root: Path, dtype: str = "auto", chunk_size: int = CHUNK_SIZE
    ) -> None:
        """Put a store in front of a model.

        Args:
            model: A loaded MTEB encoder; see `storable`.
            root: The store's folder.
            dtype: How vectors are kept; see `VectorStore`.
            chunk_size: Texts looked up, encoded and stored together.
        """
        self.model = model
        self._chunk_size = chunk_size
        self._store = VectorStore(root, model_fingerprint(model), dtype)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The model's own metadata."""
        meta: ModelMeta = self.model.mteb_model_meta
        return meta

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta) -> None:
        self.model.mteb_model_meta = meta  # type: ignore[misc]

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Return the model's own similarity of ``(N, dim)`` and ``(M, dim)``, as ``(N, M)``."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Return the model's own similarity of pairs of rows, two ``(N, dim)``, as ``(N,)``."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)

    def encode(
        self,
        inputs: Iterable[Any],
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return vectors, from the store where they are there.

        Args:
            inputs: Batches of texts.
            task_metadata: Its name decides prefix and length, and so which vector is looked up.
            prompt_type: Query or document; None counts as query.
            **kwargs: Further arguments of the model's own encode.

        Returns:
            ``(N, dim)`` on the CPU, in the dtype that is stored.

        Raises:
            ReasonEmbedError: If a vector is NaN or infinite, or the disk is full.
        """
        columns: dict[str, list[Any]] = {}
        for batch in inputs:
            for name, values in batch.items():
                columns.setdefault(name, []).extend(values)
        call = {"task_metadata": task_metadata, "prompt_type": prompt_type, **kwargs}
        texts = columns.get("text", [])
        chunks = [
            self._encode_chunk(
                {name: values[start : start + self._chunk_size] for name, values in columns.items()}, call
            )
            for start in range(0, len(texts), self._chunk_size)
        ]
        if not chunks:
            return torch.empty(0, self._store.dimension or 0)
        return chunks[0] if len(chunks) == 1 else torch.cat([chunk.float() for chunk in chunks])

    def _encode_chunk(self, columns: Mapping[str, list[Any]], call: Mapping[str, Any]) -> torch.Tensor:
        keyed = text_context(self.model, call)
        plain, limited = keyed.keys(columns["text"])
        self._store.refresh()
        found = self._store.find(plain, limited, keyed.limit)
        missing = found.missing
        if not len(missing):
            return self._store.read(found)
        _, first, back = np.unique(plain[missing], axis=0, return_index=True, return_inverse=True)
        # In the order of the corpus, each text once.
        order = np.argsort(first)
        chosen = missing[first[order]]
        asked = {name: [values[i] for i in chosen] for name, values in columns.items()}
        vectors, tokens = encode_columns(self.model, asked, call)
        keys = keyed.choose(plain[chosen], limited[chosen], tokens)
        if self._store.add(keys, tokens, vectors):
            found = self._store.find(plain, limited, keyed.limit)
            if not len(found.missing):
                return self._store.read(found)
        return self._fill(found, missing, np.argsort(order)[back.reshape(-1)], vectors)

    def _fill(
        self, found: Found, missing: NDArray[np.int64], places: NDArray[np.int64], vectors: torch.Tensor
    ) -> torch.Tensor:
        """Join stored vectors and those that could not be stored."""
        from reasonembed_mteb.store.vectors import Found

        out = torch.empty(len(found.rows), vectors.shape[1])
        held = np.setdiff1d(np.arange(len(found.rows)), missing)
        # A store that cannot be written holds nothing and knows no dimension.
        if len(held):
            out[torch.from_numpy(held)] = self._store.read(
                Found(found.shards[held], found.rows[held])
            ).float()
        out[torch.from_numpy(missing)] = self._store.as_stored(vectors).float()[torch.from_numpy(places)]
        return out


@dataclass(frozen=True)
class TextContext:
    """What decides a text's vector beside the text and the model, and so its keys.

    Attributes:
        salt: What distinguishes equal texts.
        prefix: What goes before each.
        limit: Tokens at which they are cut; None if there is none or it is not known.
    """

    salt: str
    prefix: str
    limit: int | None

    def keys(self, texts: Sequence[str]) -> tuple[NDArray[np.uint64], LazyKeys]:
        """Return the keys of texts that are whole, ``(N, 2)``, and of texts that were cut.

        Args:
            texts: Without the prefix.
        """
        seen = [self.prefix + text for text in texts] if self.prefix else texts
        return text_keys(seen, self.salt), LazyKeys(seen, f"{self.salt} limit {self.limit}")

    def choose(
        self, plain: NDArray[np.uint64], limited: NDArray[np.uint64] | LazyKeys, tokens: NDArray[np.int32]
    ) -> NDArray[np.uint64]:
        """Return the keys under which vectors are stored, ``(N, 2)``.

        Args:
            plain: Of whole texts, see `keys`.
            limited: Of cut ones.
            tokens: ``(N,)`` token counts before truncation; -1 where not known.
        """
        limit = self.limit if self.limit is not None else np.iinfo(np.int32).max
        cut = np.flatnonzero((tokens < 0) | (tokens > limit))
        chosen = plain.copy()
        chosen[cut] = limited[cut]
        return chosen


def text_context(model: Any, call: Mapping[str, Any]) -> TextContext:  # noqa: ANN401 - mteb's EncoderProtocol
    """Return what decides the vectors of a call's texts.

    Args:
        model: A loaded MTEB encoder.
        call: The arguments of its encode: ``task_metadata``, ``prompt_type`` and options.
    """
    task, kind = call["task_metadata"], call["prompt_type"]
    side = kind.value if kind is not None else "query"
    prefix = loaded_prefix(model, task, side)
    skipped = {"task_metadata", "prompt_type", "hf_split", "hf_subset", *_COSMETIC}
    options = {key: str(value) for key, value in sorted(call.items()) if key not in skipped}
    # A model with its own code may treat each task differently.
    known = side if prefix is not None else f"{side} of {task.name}"
    salt = f"{known} {json.dumps(options)}" if options else known
    own = current_length(model)
    if own is not None and isinstance(model, ProtocolEncoder):
        own = min(own, max_tokens_for(task.name, default=own))
    return TextContext(salt, prefix or "", own)


def encode_columns(
    model: Any,  # noqa: ANN401 - mteb's EncoderProtocol
    columns: dict[str, list[Any]],
    call: Mapping[str, Any],
) -> tuple[torch.Tensor, NDArray[np.int32]]:
    """Return vectors on the CPU, and token counts before truncation (-1 where not known).

    Args:
        model: A loaded MTEB encoder.
        columns: The texts, under MTEB's column names.
        call: The arguments of its encode.

    Raises:
        ReasonEmbedError: If a vector is NaN or infinite; the message names the texts.
    """
    loader = column_loader(columns, call.get("batch_size", 32))
    try:
        encoded = torch.as_tensor(model.encode(loader, **call)).detach().cpu()
    except TextsError as error:
        raise error.named(columns.get("id", columns["text"])) from error
    broken = (~torch.isfinite(encoded)).any(dim=1).nonzero().flatten().tolist()
    if broken:
        names = columns.get("id", columns["text"])
        named = first_names(str(names[row])[:60] for row in broken)
        msg = (
            f"{model.mteb_model_meta.name} gives {len(broken)} vectors with NaN or infinite values "
            f"({named}); nothing of them is stored; try another dtype"
        )
        raise ReasonEmbedError(msg)
    counts = getattr(getattr(model, "model", None), "last_token_counts", None)
    known = counts is not None and len(counts) == len(encoded)
    tokens = np.asarray(counts if known else np.full(len(encoded), -1), dtype=np.int32)
    return encoded, tokens
