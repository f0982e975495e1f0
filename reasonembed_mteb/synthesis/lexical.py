"""BM25 over a corpus that is never in memory as text: MTEB's bm25s model, streamed.

MTEB's own class holds every document and every token in lists; 100,000 documents of 2 kB pass 1 GB so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reasonembed_mteb.synthesis.corpus import Corpus

# The defaults of mteb 2.26.24's BM25Search.
_OPTIONS = {"k1": 1.5, "b": 0.75, "delta": 0.5, "method": "lucene"}


def _of_language(language: str) -> dict[str, Any]:
    """Return the stop words and the stemmer that MTEB takes."""
    if language == "eng-Latn":
        from Stemmer import Stemmer  # type: ignore[import-not-found]

        # Without mteb, whose import takes a third of a gigabyte.
        return {"stopwords": "en", "stemmer": Stemmer("english")}
    from mteb.models.model_implementations.bm25 import BM25Tokenizer

    of_language = BM25Tokenizer(language.partition("-")[0])
    return {"stopwords": of_language.stopwords_key, "stemmer": of_language.stemmer}


class LexicalSearch:
    """An index of a corpus, with the stop words and the stemmer that MTEB takes for its language.

    A language without a stop list gets none: MTEB would make one of its most frequent words.

    Args:
        corpus: The corpus.
        language: As MTEB spells it, such as ``eng-Latn``.
    """

    def __init__(self, corpus: Corpus, language: str) -> None:
        """Read the corpus once."""
        try:
            import bm25s
        except ImportError:
            raise missing_extra("bm25s", "synthesis") from None
        self._options = _of_language(language)
        self._corpus = corpus
        tokenizer = bm25s.tokenization.Tokenizer(**self._options)
        texts = (text for _, _, text in corpus.documents())
        # Four bytes a token; Python's lists take eight, and more while they grow.
        tokens = [
            np.array(ids, dtype=np.int32) for ids in tokenizer.streaming_tokenize(texts, allow_empty=False)
        ]
        self._index = bm25s.BM25(**_OPTIONS)
        self._index.index((tokens, tokenizer.get_vocab_dict()), show_progress=False)

    def search(self, queries: Sequence[str], top_k: int) -> list[dict[str, float]]:
        """Return the best documents of each query, best first, with their scores.

        Args:
            queries: Texts.
            top_k: At most so many; a document that shares no word is no hit.
        """
        count = min(top_k, len(self._corpus))
        found, scores = self._index.retrieve(self._tokens(queries), k=count, show_progress=False)
        names = {
            position: name
            for position, name, _ in self._corpus.documents(sorted(set(found.flatten().tolist())))
        }
        return [
            {names[place]: score for place, score in zip(*pair, strict=True) if score > 0}
            for pair in zip(found.tolist(), scores.tolist(), strict=True)
        ]

    def score(self, query: str, position: int) -> float:
        """Return the score of one document.

        Args:
            query: The text.
            position: The document's place in the corpus.
        """
        (tokens,) = self._tokens([query])
        return float(self._index.get_scores(tokens)[position]) if tokens else 0.0

    def _tokens(self, queries: Sequence[str]) -> list[list[str]]:
        from bm25s import tokenize

        tokens: list[list[str]] = tokenize(
            list(queries), **self._options, return_ids=False, show_progress=False
        )
        return tokens
