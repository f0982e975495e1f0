"""Our models in beir's own search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.instructions import PromptRule, rule_of_prompts
from reasonembed_mteb.retrieval.lengths import capped_length
from reasonembed_mteb.retrieval.rows import find

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sentence_transformers import SentenceTransformer


class BeirEncoder:
    """A model for beir's ``DenseRetrievalExactSearch``, with an instruction before queries only.

    Example:
        >>> from beir.retrieval.search.dense import DenseRetrievalExactSearch  # doctest: +SKIP
        >>> from reasonembed_mteb import BeirEncoder  # doctest: +SKIP
        >>> encoder = BeirEncoder("hanhainebula/reason-embed-qwen3-4b-0928", task="biology")  # doctest: +SKIP
        >>> search = DenseRetrievalExactSearch(encoder, batch_size=16)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: SentenceTransformer | str | Path,
        instruction: str | None = None,
        *,
        task: str | None = None,
        template: str | None = None,
        max_tokens: int = 8192,
    ) -> None:
        """Take a model, or load one.

        Args:
            model: A ReasonEmbed or any SentenceTransformer, or the name or directory of one.
            instruction: One sentence; documents then stay bare. Without one (and without a task) the model's
                own prompts are taken, on both sides.
            task: An MTEB task or a subset such as ``"biology"``, for its instruction.
            template: Where the instruction goes; must hold ``{instruction}``. By default as the model's own
                prompts show, as in MTEB, else as ReasonEmbed was trained.
            max_tokens: Longest input in tokens; never above the model's own.

        Raises:
            ReasonEmbedError: If both instruction and task are given.
            UnknownNameError: If the task is not known; the nearest is named.
        """
        if instruction is not None and task is not None:
            msg = "give instruction= or task=, not both"
            raise ReasonEmbedError(msg)
        row = find(task) if task is not None else None
        if isinstance(model, (str, Path)):
            from reasonembed_mteb.models.reason_embed import ReasonEmbed

            model = ReasonEmbed(str(model))
        # SentenceTransformer's overloads do not see through options that are handed on.
        self.model: Any = model
        self._max_tokens = max_tokens
        self._query_options: dict[str, str] = {}
        self._document_options: dict[str, str] = {}
        sentence = row.instruction if row is not None else instruction
        if sentence is not None:
            prompts = getattr(model, "prompts", None) or {}
            rule = rule_of_prompts(prompts) if template is None else PromptRule(template=template)
            prefix = rule.instructed(sentence, row.name if row is not None else None)
            self._query_options = {"prompt": prefix}
            self._document_options = {"prompt": ""}

    def encode_queries(self, queries: list[str], batch_size: int = 16, **kwargs: Any) -> Any:  # noqa: ANN401 - as in `SentenceTransformer.encode`
        """Encode queries, each after the instruction.

        Args:
            queries: The texts.
            batch_size: Rows a batch.
            **kwargs: Options of `SentenceTransformer.encode_query`.

        Returns:
            Vectors ``(N, dim)``.
        """
        with capped_length(self.model, self._max_tokens):
            return self.model.encode_query(queries, batch_size=batch_size, **self._query_options, **kwargs)

    def encode_corpus(
        self,
        corpus: Sequence[Mapping[str, str]] | Mapping[str, Sequence[str]],
        batch_size: int = 16,
        **kwargs: Any,
    ) -> Any:  # noqa: ANN401 - as in `SentenceTransformer.encode`
        """Encode documents, the title before the text.

        Args:
            corpus: Documents with ``text`` and perhaps ``title``, or columns of these names.
            batch_size: Rows a batch.
            **kwargs: Options of `SentenceTransformer.encode_document`.

        Returns:
            Vectors ``(N, dim)``.
        """
        texts = _document_texts(corpus)
        with capped_length(self.model, self._max_tokens):
            return self.model.encode_document(
                texts, batch_size=batch_size, **self._document_options, **kwargs
            )


def _document_texts(corpus: Sequence[Mapping[str, str]] | Mapping[str, Sequence[str]]) -> list[str]:
    """Join title and text as beir and MTEB do."""
    if hasattr(corpus, "keys"):
        columns: Any = corpus
        titles = columns.get("title") or [""] * len(columns["text"])
        pairs = list(zip(titles, columns["text"], strict=True))
    else:
        rows: Any = corpus
        pairs = [(row.get("title"), row["text"]) for row in rows]
    return [(f"{title} {text}" if title else text).strip() for title, text in pairs]
