"""BM25 over documents that are never in memory as text, with the words that MTEB's BM25 takes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from reasonembed_mteb.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

# The defaults of mteb 2.26.24's BM25Search.
_OPTIONS = {"k1": 1.5, "b": 0.75, "delta": 0.5, "method": "lucene"}


def language_options(language: str) -> dict[str, Any]:
    """Return the stop words and the stemmer that MTEB takes.

    Args:
        language: As MTEB spells it, such as ``eng-Latn``.
    """
    if language == "eng-Latn":
        from Stemmer import Stemmer  # type: ignore[import-not-found]

        # Without mteb, whose import takes a third of a gigabyte.
        return {"stopwords": "en", "stemmer": Stemmer("english")}
    from mteb.models.model_implementations.bm25 import BM25Tokenizer

    of_language = BM25Tokenizer(language.partition("-")[0])
    return {"stopwords": of_language.stopwords_key, "stemmer": of_language.stemmer}


@dataclass(frozen=True)
class LexicalModel:
    """BM25 where an embedding model may stand.

    Attributes:
        language: As MTEB spells it.
    """

    language: str = "eng-Latn"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its scores, texts apart."""
        return {"name": "BM25 (bm25s)", "revision": version("bm25s"), "language": self.language, **_OPTIONS}


class LexicalSearch:
    """BM25 over a corpus that is never in memory as text: MTEB's bm25s model, streamed.

    MTEB's own class holds every document and every token in lists; 100,000 documents of 2 kB pass 1 GB so.
    This is an index of a corpus, with the stop words and the stemmer that MTEB takes for its language.

    A language without a stop list gets none: MTEB would make one of its most frequent words.

    Args:
        texts: The documents, read once.
        ids: Their ids, by which equal scores go.
        language: As MTEB spells it, such as ``eng-Latn``.

    Raises:
        MissingExtraError: If bm25s is not installed.
    """

    def __init__(self, texts: Iterable[str], ids: pa.Array, language: str = "eng-Latn") -> None:
        """Read the documents once."""
        try:
            import bm25s
        except ImportError:
            raise missing_extra("bm25s", "synthesis") from None
        self._options = language_options(language)
        self._ids = ids
        tokenizer = bm25s.tokenization.Tokenizer(**self._options)
        # Four bytes a token; Python's lists take eight, and more while they grow.
        tokens = [
            np.array(ids, dtype=np.int32) for ids in tokenizer.streaming_tokenize(texts, allow_empty=False)
        ]
        self._index = bm25s.BM25(**_OPTIONS)
        self._index.index((tokens, tokenizer.get_vocab_dict()), show_progress=False)
        # As `retrieval.topk.id_ranks`, without torch's 200 MB beside the index.
        order = pc.sort_indices(ids, sort_keys=[("", "descending")]).to_numpy()
        self._ranks = np.empty(len(order), dtype=np.int64)
        self._ranks[order] = np.arange(len(order))

    def search(self, queries: Sequence[str], top_k: int) -> list[dict[str, float]]:
        """Return the best documents of each query, best first, with their scores.

        Equal scores go by id descending.

        Args:
            queries: Texts.
            top_k: At most so many; a document that shares no word is no hit.
        """
        found = []
        for scores in self.scores(queries):
            hits = self.best(scores, top_k)
            found.append(dict(zip(self._ids.take(hits).to_pylist(), scores[hits].tolist(), strict=True)))
        return found

    def best(self, scores: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
        """Return the places of the best documents of a query, best first; those that score 0 are no hits.

        Args:
            scores: ``(N,)``, of every document.
            top_k: At most so many.
        """
        # Not bm25s' own choice of the best, whose way with equal scores depends on the processor.
        count = min(top_k, len(scores))
        if not count:
            return np.empty(0, dtype=np.int64)
        cut = np.partition(scores, len(scores) - count)[len(scores) - count]
        hits = np.flatnonzero((scores >= cut) & (scores > 0))
        return hits[np.lexsort((self._ranks[hits], -scores[hits]))][:count]

    def score(self, query: str, position: int) -> float:
        """Return the score of one document.

        Args:
            query: The text.
            position: The document's place in the corpus.
        """
        (tokens,) = self._tokens([query])
        return float(self._scores(tokens)[position])

    def scores(self, queries: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Yield each query's scores of every document, ``(N,)``.

        Args:
            queries: Texts.
        """
        return map(self._scores, self._tokens(queries))

    def _scores(self, tokens: list[str]) -> NDArray[np.float32]:
        """Return the score of every document, ``(N,)``."""
        scores: NDArray[np.float32] = np.zeros(len(self._ids), dtype=np.float32)
        return self._index.get_scores(tokens) if tokens else scores

    def _tokens(self, queries: Sequence[str]) -> list[list[str]]:
        from bm25s import tokenize

        tokens: list[list[str]] = tokenize(
            list(queries), **self._options, return_ids=False, show_progress=False
        )
        return tokens
