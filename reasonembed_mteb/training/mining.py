"""Negatives mined for queries with positives: search by stored vectors or by BM25, filters, sampling.

The result is that of `sentence_transformers.util.mine_hard_negatives` on the same settings, but for this:

* equal scores go by document id, the higher one first, and after a reranker by the order of the search; the
  library leaves their order open;
* texts that differ in space only are one text, and rows of one query share their positives;
* a model's own similarity is taken, where the library always normalises the vectors;
* a document that is excluded for a query leaves before the cut, and so do the query's own negatives;
* a positive that a reranker gives no score does not count for the margins.

Draws at random are the library's after ``random.seed`` with the same seed.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.files import fingerprint
from reasonembed_mteb.retrieval.lengths import capped_length
from reasonembed_mteb.retrieval.lexical import LexicalModel, LexicalSearch
from reasonembed_mteb.retrieval.nearest import Nearest, PlacedPairs, nearest_documents
from reasonembed_mteb.retrieval.reranker import score_pairs
from reasonembed_mteb.retrieval.search import CHUNK_SIZE, search_metadata
from reasonembed_mteb.store.encoder import StoredEncoder, storable
from reasonembed_mteb.training.negatives import Chosen, MiningRules, choose_negatives
from reasonembed_mteb.training.pairs import text_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mteb.abstasks.task_metadata import TaskMetadata
    from numpy.typing import NDArray

    from reasonembed_mteb.retrieval.reranker import Pair, Reranker, Scores
    from reasonembed_mteb.training.pairs import Pairs


@dataclass(frozen=True)
class Mined:
    """Negatives of each row.

    Attributes:
        negatives: Places in the corpus, best first.
        scores: Their scores, by the reranker where there was one.
        positive_scores: The scores of each text in a row's ``pos`` by the same model.
        counts: Queries, negatives, and candidates removed by reason.
    """

    negatives: list[NDArray[np.int64]]
    scores: list[Scores]
    positive_scores: list[Scores]
    counts: dict[str, int]


@dataclass(frozen=True)
class Queries:
    """The rows' queries, each once with each instruction.

    Positives and exclusions are those of all rows with that query, whatever their instruction.

    Attributes:
        texts: ``(Q,)``.
        instructions: What each is asked with; empty for none.
        of_row: ``(R,)``, the query of each row.
        positives: Places in the corpus, by query.
        excluded: Likewise.
    """

    texts: list[str]
    instructions: list[str]
    of_row: list[int]
    positives: list[list[int]]
    excluded: list[list[int]]


def distinct_queries(pairs: Pairs) -> Queries:
    """Return the queries of rows, in the order of their first appearance.

    Args:
        pairs: The rows.
    """
    places: dict[tuple[str, str], int] = {}
    positives: dict[str, dict[int, None]] = {}
    excluded: dict[str, dict[int, None]] = {}
    of_row = []
    for row, good, out in zip(pairs.rows, pairs.positives, pairs.excluded, strict=True):
        of_row.append(places.setdefault((row["query"], row.get("prompt") or ""), len(places)))
        # What answers a question answers it under another instruction too, and with other spaces.
        key = text_key(row["query"])
        positives.setdefault(key, {}).update(dict.fromkeys(good))
        excluded.setdefault(key, {}).update(dict.fromkeys(out))
    keys = [text_key(query) for query, _ in places]
    good_places = [list(positives[key]) for key in keys]
    left = [[one for one in excluded[key] if one not in positives[key]] for key in keys]
    texts, instructions = ([key[part] for key in places] for part in (0, 1))
    return Queries(texts, instructions, of_row, good_places, left)


def mine_pairs(
    pairs: Pairs,
    model: Any,  # noqa: ANN401 - mteb's EncoderProtocol
    rules: MiningRules,
    *,
    store: Path | None = None,
    reranker: Reranker | None = None,
    scores_folder: Path | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    show_progress: bool = False,
) -> Mined:
    """Mine negatives.

    Args:
        pairs: The rows and their corpus.
        model: A loaded MTEB encoder, whose vectors are kept in the store and taken from it; or a
            `reasonembed_mteb.retrieval.lexical.LexicalModel`, which is asked without instructions.
        rules: Which candidates become negatives.
        store: Folder of the embedding store; None for BM25.
        reranker: Scores candidates and positives anew; the rules then go by its scores.
        scores_folder: Where the reranker's finished parts are kept.
        batch_size: Texts encoded at a time.
        max_length: Tokens of a text; None for the model's own.
        show_progress: Whether bars are shown.

    Raises:
        ReasonEmbedError: If the model gives no dense vectors, an option is not for BM25, or the rules would
            leave the reranker unused.
    """
    _check(model, rules, reranker, store, max_length)
    asked = distinct_queries(pairs)
    most = max(map(len, asked.positives))
    last = rules.last_rank(most, reranked=reranker is not None)
    good = _placed(asked.positives)
    if isinstance(model, LexicalModel) or store is None:
        found = _lexical_search(pairs, asked, model, last + most, show_progress)
    else:
        with nullcontext() if max_length is None else capped_length(model, max_length):
            options = {"batch_size": batch_size, "show_progress_bar": show_progress}
            found = _search(pairs, asked, StoredEncoder(model, store), last + most, good, options)
    candidates = _without_positives(found, asked)
    scores, positive_scores = found.scores, found.chosen
    if reranker is not None:
        scores, positive_scores = _reranked(
            reranker, pairs, asked, good, candidates, folder=scores_folder, show_progress=show_progress
        )
    scores = np.where(candidates < 0, -np.inf, scores).astype(scores.dtype)
    chosen = choose_negatives(rules, scores, _worst(positive_scores, good, len(asked.texts)), last)
    return _by_row(pairs, asked, candidates, scores, chosen, positive_scores)


def _check(
    model: Any,  # noqa: ANN401
    rules: MiningRules,
    reranker: Reranker | None,
    store: Path | None,
    max_length: int | None,
) -> None:
    if isinstance(model, LexicalModel):
        if store is not None or max_length is not None:
            msg = "BM25 has no vectors and reads whole texts: leave out the store and the length"
            raise ReasonEmbedError(msg)
    elif store is None:
        msg = f"name a folder for the vectors of {model.mteb_model_meta.name}"
        raise ReasonEmbedError(msg)
    elif not storable(model):
        kinds = ", ".join(model.mteb_model_meta.model_type or ["unknown"])
        msg = f"{model.mteb_model_meta.name} ({kinds}) gives no dense vector a text: give an embedding model"
        raise ReasonEmbedError(msg)
    if reranker is not None and not rules.removes:
        msg = "the reranker would remove nothing: give a relative or absolute margin, min_score or max_score"
        raise ReasonEmbedError(msg)


def _placed(lists: Sequence[Sequence[int]]) -> PlacedPairs:
    """Return pairs of query and document, query by query."""
    queries = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    return PlacedPairs(queries, np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=len(queries)))


def _ids(pairs: Pairs) -> pa.Array:
    ids = pairs.corpus.with_format("arrow")[:]["id"]
    combined = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return combined.cast(pa.large_string())


def _lexical_search(
    pairs: Pairs, asked: Queries, model: LexicalModel, top_k: int, show_progress: bool
) -> Nearest:
    """Search by BM25; what shares no word with a query is no candidate."""
    from tqdm.auto import tqdm

    texts = chain.from_iterable(
        pairs.corpus[start : start + CHUNK_SIZE]["text"] for start in range(0, len(pairs.corpus), CHUNK_SIZE)
    )
    search = LexicalSearch(texts, _ids(pairs), model.language)
    documents = np.full((len(asked.texts), top_k), -1, dtype=np.int64)
    values = np.full(documents.shape, -np.inf, dtype=np.float32)
    chosen = []
    rows = tqdm(search.scores(asked.texts), "BM25", len(asked.texts), disable=not show_progress)
    for row, scores in enumerate(rows):
        chosen.append(scores[asked.positives[row]])
        scores[asked.excluded[row]] = 0
        hits = search.best(scores, top_k)
        documents[row, : len(hits)], values[row, : len(hits)] = hits, scores[hits]
    return Nearest(documents, values, np.concatenate(chosen))


def _search(
    pairs: Pairs, asked: Queries, model: StoredEncoder, top_k: int, good: PlacedPairs, options: dict[str, Any]
) -> Nearest:
    return nearest_documents(
        model,
        _query_vectors(asked, model, options),
        _document_vectors(pairs, model, options),
        _ids(pairs),
        top_k,
        chosen=good,
        excluded=_placed(asked.excluded),
    )


def _query_vectors(asked: Queries, model: StoredEncoder, options: dict[str, Any]) -> torch.Tensor:
    """Encode the queries, those of one instruction together."""
    places: dict[str, list[int]] = {}
    for place, instruction in enumerate(asked.instructions):
        places.setdefault(instruction, []).append(place)
    parts = []
    for instruction, own in places.items():
        texts = [asked.texts[place] for place in own]
        parts.append(_encode(model, {"text": texts, "query": texts}, "query", instruction, options).float())
    order = np.argsort(list(chain.from_iterable(places.values())), kind="stable")
    return torch.cat(parts)[torch.from_numpy(order)]


def _document_vectors(pairs: Pairs, model: StoredEncoder, options: dict[str, Any]) -> Iterator[torch.Tensor]:
    for start in range(0, len(pairs.corpus), CHUNK_SIZE):
        part = pairs.corpus[start : start + CHUNK_SIZE]
        columns = {"id": part["id"], "text": part["text"], "body": part["text"]}
        yield _encode(model, columns, "document", "", options)


def search_task(instruction: str) -> TaskMetadata:
    """Return the task by which a model finds what to put before a query.

    Args:
        instruction: Empty for none.
    """
    # A model with code of its own may tell tasks apart by name, and the store does so for it.
    name = f"Mining-{fingerprint(instruction)[:8]}" if instruction else "Mining"
    return search_metadata(name, instruction)


def _encode(
    model: StoredEncoder,
    columns: dict[str, list[str]],
    side: str,
    instruction: str,
    options: dict[str, Any],
) -> torch.Tensor:
    from mteb.types import PromptType

    return model.encode(
        # One batch: the store asks for what it lacks in batches of its own.
        [columns],
        task_metadata=search_task(instruction),
        hf_split="train",
        hf_subset="default",
        prompt_type=PromptType(side),
        **options,
    )


def _without_positives(found: Nearest, asked: Queries) -> NDArray[np.int64]:
    """Return the found documents' places, -1 in place of a query's positives."""
    # One number a pair of query and document.
    size = 1 + max(int(found.documents.max(initial=0)), max(map(max, asked.positives)))
    rows = np.arange(len(found.documents))[:, None] * size
    good = _placed(asked.positives)
    positive = np.isin(rows + found.documents, good.queries * size + good.documents)
    return np.where(positive, -1, found.documents)


def _reranked(
    reranker: Reranker,
    pairs: Pairs,
    asked: Queries,
    good: PlacedPairs,
    candidates: NDArray[np.int64],
    **options: Any,
) -> tuple[Scores, Scores]:
    """Score candidates and positives by a reranker; NaN where it has none."""
    rows, columns = np.nonzero(candidates >= 0)
    queries = np.concatenate([good.queries, rows])
    documents = np.concatenate([good.documents, candidates[rows, columns]])
    # Pairs of one query stand together, which a server takes as one request.
    order = np.argsort(queries, kind="stable")
    texts = _Texts(pairs, asked, queries[order], documents[order])
    ordered = score_pairs(reranker, texts, keep_unscored=True, **options)
    scores = np.empty_like(ordered)
    scores[order] = ordered
    matrix = np.full(candidates.shape, -np.inf, dtype=scores.dtype)
    matrix[rows, columns] = scores[len(good.queries) :]
    return matrix, scores[: len(good.queries)]


class _Texts:
    """Pairs of texts, read from the corpus part by part."""

    def __init__(
        self, pairs: Pairs, asked: Queries, queries: NDArray[np.int64], documents: NDArray[np.int64]
    ) -> None:
        self._corpus, self._asked = pairs.corpus, asked
        self._queries, self._documents = queries, documents

    def __len__(self) -> int:
        return len(self._queries)

    def __getitem__(self, part: slice) -> list[Pair]:
        texts = self._corpus[self._documents[part].tolist()]["text"]
        names = (self._asked.texts[place] for place in self._queries[part].tolist())
        return list(zip(names, texts, strict=True))


def _worst(scores: Scores, good: PlacedPairs, queries: int) -> Scores:
    """Return the lowest score of each query's positives, NaN where none has one."""
    worst = np.full(queries, np.nan, dtype=scores.dtype)
    np.fmin.at(worst, good.queries, scores)
    return worst


def _by_row(
    pairs: Pairs,
    asked: Queries,
    candidates: NDArray[np.int64],
    scores: Scores,
    chosen: Chosen,
    positive_scores: Scores,
) -> Mined:
    ends = list(accumulate((len(one) for one in asked.positives), initial=0))
    # Cutting by slices is quicker than np.split, which looks at each part.
    of_positives = [
        dict(zip(places, positive_scores[start:end], strict=True))
        for places, (start, end) in zip(asked.positives, pairwise(ends), strict=True)
    ]
    found = [candidates[row, columns] for row, columns in enumerate(chosen.columns)]
    values = [scores[row, columns] for row, columns in enumerate(chosen.columns)]
    counts = {
        "queries": len(asked.texts),
        "queries without a negative": sum(not len(one) for one in found),
        "negatives": sum(map(len, found)),
        **{f"candidates removed: {name}": count for name, count in chosen.removed.items()},
    }
    return Mined(
        [found[query] for query in asked.of_row],
        [values[query] for query in asked.of_row],
        [
            np.array([of_positives[query][place] for place in good])
            for query, good in zip(asked.of_row, pairs.positives, strict=True)
        ],
        counts,
    )
