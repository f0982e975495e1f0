"""Exact search of a corpus in a store: groups of blocks anywhere, the best of each merged.

Groups follow from the corpus alone, so that scores do not depend on where and by how many it is searched. Of
equal scores the id that is higher comes first, as everywhere.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import pyarrow as pa
import torch

from reasonembed_mteb.encoding.loop import prefetched
from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.retrieval.topk import ExcludedPairs, plain_queries, plain_scores
from reasonembed_mteb.store.corpora import BlockData, read_block
from reasonembed_mteb.store.places import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.distributed.processes import Machines
    from reasonembed_mteb.distributed.worker import ModelChoice, Speed
    from reasonembed_mteb.store.corpora import BlockFile, StoredCorpus
    from reasonembed_mteb.store.places import Place

logger = logging.getLogger(__name__)

# Documents of a group, which one machine searches at a time, and of a chunk, whose scores are held.
GROUP_ROWS, _CHUNK_ROWS = 1 << 19, 4096
# Queries that are searched in one pass over the vectors.
_QUERIES = 1024


@dataclass(frozen=True)
class SearchQueries:
    """What is asked.

    Attributes:
        ids: ``(Q,)``.
        vectors: ``(Q, dim)``, on the CPU.
        excluded: Ids of documents that do not count, by query id.
        function: ``cosine`` or ``dot``.
    """

    ids: tuple[str, ...]
    vectors: torch.Tensor
    excluded: Mapping[str, Collection[str]]
    function: str


@dataclass(frozen=True)
class Hits:
    """The best documents of each query among some.

    Attributes:
        scores: ``(Q, m)``, best first; minus infinity where there is none.
        documents: ``(Q, m)``, places in `ids`; -1 where there is none.
        ids: Of the documents that occur.
    """

    scores: NDArray[np.float32]
    documents: NDArray[np.int64]
    ids: pa.Array


@dataclass(frozen=True)
class Group:
    """Blocks that are searched together.

    Attributes:
        folder: Of the model.
        blocks: In order.
    """

    folder: Place
    blocks: tuple[BlockFile, ...]


def groups(corpus: StoredCorpus, rows: int = GROUP_ROWS) -> list[Group]:
    """Cut a corpus into groups of blocks.

    Args:
        corpus: See `reasonembed_mteb.store.corpora.open_stored`.
        rows: Documents of a group, as far as blocks allow.
    """
    found: list[list[BlockFile]] = []
    held = rows
    for block in corpus.blocks:
        if held + block.rows > rows:
            found.append([])
            held = 0
        found[-1].append(block)
        held += block.rows
    return [Group(corpus.folder, tuple(blocks)) for blocks in found]


class Best:
    """The best documents of each query so far, over documents in any order.

    Args:
        queries: Number of queries.
        k: How many to keep of each.
        ids: Returns the ids of documents by their places; asked where scores are equal.
    """

    def __init__(self, queries: int, k: int, ids: Callable[[NDArray[np.int64]], list[str]]) -> None:
        """Start with nothing."""
        self._queries, self._k, self._ids = queries, k, ids
        # One entry a document that is kept, by query and then best first.
        self._rows = np.empty(0, dtype=np.int64)
        self._documents = np.empty(0, dtype=np.int64)
        self._scores = np.empty(0, dtype=np.float32)
        # The score that a further document must reach.
        self._cut = torch.full((queries, 1), -torch.inf)
        self._waiting: list[tuple[NDArray[Any], ...]] = []
        self._count = 0

    def add(self, scores: torch.Tensor, start: int) -> None:
        """Take the scores of documents that lie side by side.

        Args:
            scores: ``(Q, C)``; minus infinity for pairs that do not count.
            start: Place of the first.
        """
        found = (scores >= self._cut) & (scores > -torch.inf)
        if scores.shape[1] > self._k and int(found.sum()) > self._queries * self._k:
            # Of one chunk only k can be among the best, and those equal to the last of them.
            lowest = torch.topk(scores, self._k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
            found &= scores >= lowest
        rows, columns = found.nonzero(as_tuple=True)
        if len(rows):
            self.take(rows.numpy(), columns.numpy() + start, scores[rows, columns].numpy())

    def take(
        self, rows: NDArray[np.int64], documents: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> None:
        """Take single scores.

        Args:
            rows: ``(N,)`` places of the queries.
            documents: ``(N,)`` places of the documents.
            scores: ``(N,)``.
        """
        self._waiting.append((rows, documents, scores))
        self._count += len(rows)
        # Rarely, as it sorts everything that is kept.
        if self._count >= self._queries * self._k:
            self._merge()

    def _merge(self) -> None:
        parts = [(self._rows, self._documents, self._scores), *self._waiting]
        rows, documents, scores = (np.concatenate(one) for one in zip(*parts, strict=True))
        self._waiting, self._count = [], 0
        order = np.lexsort((-scores, rows))
        rows, documents, scores = rows[order], documents[order], scores[order]
        starts = np.searchsorted(rows, np.arange(self._queries + 1))
        kept = np.arange(len(rows)) - starts[rows] < self._k
        full = np.flatnonzero(np.diff(starts) >= self._k)
        last = starts[full] + self._k - 1
        beyond = np.minimum(last + 1, len(rows) - 1)
        undecided = (last + 1 < starts[full + 1]) & (scores[beyond] == scores[last])
        for row, place in zip(full[undecided], last[undecided], strict=True):
            # Those equal to the last: of these the ones with the highest ids stay.
            tied = starts[row] + np.flatnonzero(scores[starts[row] : starts[row + 1]] == scores[place])
            names = self._ids(documents[tied])
            ranked = sorted(range(len(tied)), key=names.__getitem__, reverse=True)
            kept[tied] = False
            kept[tied[ranked[: place + 1 - tied[0]]]] = True
        cut = torch.full((self._queries, 1), -torch.inf)
        cut[torch.from_numpy(full), 0] = torch.from_numpy(scores[last])
        self._cut = cut
        self._rows, self._documents, self._scores = rows[kept], documents[kept], scores[kept]

    def hits(self) -> Hits:
        """Return what was found, equal scores by id descending."""
        self._merge()
        starts = np.searchsorted(self._rows, np.arange(self._queries + 1))
        again = np.flatnonzero((np.diff(self._rows) == 0) & (np.diff(self._scores) == 0))
        for row in np.unique(self._rows[again]).tolist():
            part = slice(starts[row], starts[row + 1])
            names, values = self._ids(self._documents[part]), self._scores[part]
            ranked = sorted(range(len(names)), key=lambda one: (values[one], names[one]), reverse=True)
            self._documents[part] = self._documents[part][ranked]
        used, places = np.unique(self._documents, return_inverse=True)
        scores = np.full((self._queries, self._k), -np.inf, dtype=np.float32)
        documents = np.full((self._queries, self._k), -1, dtype=np.int64)
        columns = np.arange(len(self._rows)) - starts[self._rows]
        scores[self._rows, columns] = self._scores
        documents[self._rows, columns] = places
        return Hits(scores, documents, pa.array(self._ids(used), pa.large_string()))


def search_group(queries: SearchQueries, k: int, threads: int, mapped: bool, group: Group) -> Hits:
    """Search some blocks.

    Args:
        queries: What is asked.
        k: Documents of each query.
        threads: To compute with.
        mapped: Whether files on a disk are mapped.
        group: The blocks.

    Raises:
        StoreError: If a block is missing or damaged.
    """
    torch.set_num_threads(threads)
    prepared = plain_queries(queries.function, queries.vectors)
    batches = [range(s, min(s + _QUERIES, len(prepared))) for s in range(0, len(prepared), _QUERIES)]
    # One for all chunks: large tensors that come and go leave holes that small ones settle in.
    scratch = torch.empty(_CHUNK_ROWS, prepared.shape[1])
    named = _Names()
    best = [Best(len(batch), k, named) for batch in batches]
    start = 0
    read = (read_block(group.folder, block, mapped=mapped) for block in group.blocks)
    # What is not mapped is fetched while the block before is searched.
    stays = mapped and group.folder.local is not None
    ahead = read if stays else prefetched(read)
    for block, data in zip(group.blocks, ahead, strict=True):
        named.add(data if stays else _ids_alone(data), block.rows)
        for batch, one in zip(batches, best, strict=True):
            asked = queries.ids[batch.start : batch.stop]
            pairs = ExcludedPairs(queries.excluded, asked, data.ids) if queries.excluded else None
            for first, scores in _scored(
                queries.function, prepared[batch.start : batch.stop], data, block, scratch
            ):
                if pairs is not None:
                    pairs.mask(scores, first)
                one.add(scores, start + first)
        start += block.rows
    return _stacked([one.hits() for one in best])


def _ids_alone(data: BlockData) -> BlockData:
    """Return a block without its vectors, which lie in the same piece of memory."""
    return BlockData({name: data.tensors[name].clone() for name in ("ids", "id_ends")})


class _Names:
    """The ids of a group's documents by their places, taken out of blocks when they are asked for.

    Arrays that were made meanwhile would lie between large ones that come and go, and hold their memory.
    """

    def __init__(self) -> None:
        self._blocks: list[BlockData] = []
        self._starts = [0]

    def add(self, block: BlockData, rows: int) -> None:
        """Take the next block."""
        self._blocks.append(block)
        self._starts.append(self._starts[-1] + rows)

    def __call__(self, places: NDArray[np.int64]) -> list[str]:
        """Return the ids of documents."""
        found = [""] * len(places)
        held = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(held).tolist():
            at = np.flatnonzero(held == number)
            names = self._blocks[number].ids.take(pa.array(places[at] - self._starts[number])).to_pylist()
            for place, name in zip(at.tolist(), names, strict=True):
                found[place] = name
        return found


def _scored(
    function: str, queries: torch.Tensor, data: BlockData, block: BlockFile, scratch: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield scores chunk by chunk, each with the place of its first document in the block."""
    for first in range(0, block.rows, _CHUNK_ROWS):
        part = data.full(first, min(first + _CHUNK_ROWS, block.rows), scratch)
        yield first, plain_scores(function, queries, part)


def _stacked(parts: Sequence[Hits]) -> Hits:
    """Join the hits of several batches of queries."""
    offsets = np.cumsum([0, *(len(one.ids) for one in parts[:-1])])
    documents = [
        np.where(one.documents < 0, -1, one.documents + by) for one, by in zip(parts, offsets, strict=True)
    ]
    scores = np.concatenate([one.scores for one in parts])
    return Hits(scores, np.concatenate(documents), pa.concat_arrays([one.ids for one in parts]))


def merged(parts: Iterable[Hits], queries: int, k: int) -> Hits:
    """Return the best of all parts.

    Args:
        parts: Of different documents, in any order.
        queries: Number of queries.
        k: Documents of each query.
    """
    held = Hits(
        np.full((queries, k), -np.inf, dtype=np.float32),
        np.full((queries, k), -1, dtype=np.int64),
        pa.array([], pa.large_string()),
    )
    for part in parts:
        names = pa.concat_arrays([held.ids, part.ids])
        best = Best(queries, k, lambda places, names=names: names.take(pa.array(places)).to_pylist())  # type: ignore[misc]
        for one, offset in ((held, 0), (part, len(held.ids))):
            rows, columns = np.nonzero(one.documents >= 0)
            best.take(rows, one.documents[rows, columns] + offset, one.scores[rows, columns])
        held = best.hits()
    return held


def search_corpus(
    corpus: StoredCorpus, queries: SearchQueries, k: int, machines: Machines, *, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Search a corpus exactly.

    Args:
        corpus: See `reasonembed_mteb.store.corpora.open_stored`.
        queries: What is asked.
        k: Documents of each query.
        machines: Where.
        progress: Whether a bar is shown.

    Returns:
        Scores by query and document id, best first.

    Raises:
        ReasonEmbedError: If the queries' vectors do not fit the corpus', or a machine fails.
        StoreError: If a block is missing or damaged.
    """
    from tqdm.auto import tqdm

    if queries.vectors.shape[1] != corpus.dimension or not bool(torch.isfinite(queries.vectors).all()):
        msg = (
            f"{corpus.name} holds vectors of {corpus.dimension} dimensions; the queries' have "
            f"{queries.vectors.shape[1]}, or values that are not finite: give the model that encoded it"
        )
        raise ReasonEmbedError(msg)
    every = groups(corpus)
    function = partial(search_group, queries, k, machines.threads, True)
    parts = tqdm(machines.compute(every, function), total=len(every), desc="Searching", disable=not progress)
    found = merged(parts, len(queries.ids), k)
    names = found.ids.to_pylist()
    return {
        query: {names[d]: float(score) for d, score in zip(documents, scores, strict=True) if d >= 0}
        for query, documents, scores in zip(queries.ids, found.documents, found.scores, strict=True)
    }


def chosen_model(
    corpus: StoredCorpus, *, name: str | None = None, task: str | None = None, instruction: str | None = None
) -> ModelChoice:
    """Return the model that a corpus was encoded by, with what its queries are asked with.

    Args:
        corpus: Whose manifest says how it was encoded.
        name: Where the model is now; None for where it was.
        task: An MTEB task whose instruction queries get; None for the one that documents were encoded for.
        instruction: The sentence put before each query.

    Raises:
        ReasonEmbedError: If both a task and an instruction are given, or the instruction is empty.
        StoreError: If the manifest does not say it.
    """
    from reasonembed_mteb.distributed.worker import ModelChoice

    if task and instruction is not None:
        msg = "give --task or --instruction, not both"
        raise ReasonEmbedError(msg)
    if instruction is not None and not instruction.strip():
        msg = "the instruction is empty; give a sentence, or none at all"
        raise ReasonEmbedError(msg)
    try:
        choice = ModelChoice(**corpus.about["model"])
        for key, kind in get_type_hints(ModelChoice).items():
            if not isinstance(value := getattr(choice, key), kind):
                msg = f"its {key} is {value!r}"
                raise TypeError(msg)
    except (KeyError, TypeError) as error:
        msg = f"the manifest of {corpus.name} does not say how it was encoded ({error}); encode it again"
        raise StoreError(msg) from error
    if name is not None:
        choice = replace(choice, name=name)
    if task is None and instruction is None:
        return choice
    # One stands in for the other: a task that documents were encoded for has an instruction of its own.
    return replace(choice, task=task or "", instruction=instruction or "")


def encode_queries(
    corpus: StoredCorpus,
    choice: ModelChoice,
    speed: Speed,
    texts: Mapping[str, str],
    excluded: Mapping[str, Collection[str]],
) -> SearchQueries:
    """Encode queries with the model that encoded a corpus.

    Args:
        corpus: Which.
        choice: Of the model.
        speed: How it computes.
        texts: Queries by id.
        excluded: Ids of documents that do not count, by query id.

    Raises:
        ReasonEmbedError: If it is another model, or its similarity is neither cosine nor a dot product.
    """
    from reasonembed_mteb.distributed.worker import encode_call, load_encoder
    from reasonembed_mteb.retrieval.topk import matrix_function
    from reasonembed_mteb.store.encoder import encode_columns, model_fingerprint

    if not texts:
        msg = "there are no queries; give a file with at least one"
        raise DataError(msg)
    call = encode_call(choice, "query")
    model = load_encoder(choice, speed)
    _check_same(corpus, model_fingerprint(model), choice.name)
    function = matrix_function(model)
    if function is None:
        msg = f"{choice.name} has a similarity of its own; a store is searched by cosine or dot product"
        raise ReasonEmbedError(msg)
    ids, asked = list(texts), list(texts.values())
    vectors, _ = encode_columns(model, {"id": ids, "text": asked, "query": asked}, call)
    return SearchQueries(tuple(ids), vectors.float(), excluded, function)


# What differs where the same model runs on another kind of device.
_OF_THE_DEVICE = {"dtype", "weights"}


def _check_same(corpus: StoredCorpus, now: Mapping[str, Any], name: str) -> None:
    held = {key: value for key, value in corpus.fingerprint.items() if key != "stored_as"}
    differing = sorted(key for key in held.keys() | now.keys() if held.get(key) != now.get(key))
    other_dtype = "dtype" in differing and set(differing) <= _OF_THE_DEVICE
    if other_dtype:
        logger.warning(
            "%s was encoded in %s, and the queries are in %s",
            corpus.name,
            held.get("dtype"),
            now.get("dtype"),
        )
    elif differing:
        msg = (
            f"{corpus.name} was encoded by {held.get('name')} at {held.get('revision')}, and {name} is not "
            f"the same model ({', '.join(differing)} differ); give the one that encoded it by --model"
        )
        raise ReasonEmbedError(msg)
