"""What an engine is: token ids in, vectors out; names, facts about the model, and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from reasonembed_mteb.encoding.tokenizing import TokenRows

# torch is the loaded model itself, by `reasonembed_mteb.encoding.loop`.
ENGINES = ("torch", "vllm", "api")


class EngineError(ReasonEmbedError):
    """An engine that does not give the vectors that the model would."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text as the model reads it.

    Attributes:
        text: Whole, its prompt included.
        ids: ``(T,)`` token ids, special ones included, cut at the length in force.
        cut: Whether the text was longer.
    """

    text: str
    ids: NDArray[np.int32]
    cut: bool


@dataclass(frozen=True)
class ModelFacts:
    """What an engine must know of the model that it computes for.

    Attributes:
        name: Hub name, or the path of a directory.
        revision: Commit of the hub; None for a directory and for the newest.
        pooling: sentence-transformers' name of the pooling, such as ``lasttoken``.
        dimension: Of a vector before `truncate_dim`.
        normalized: Whether vectors have unit length.
        max_tokens: The model's own length.
        compared_by_dot: Whether vectors are compared by their dot product, so that their length counts.
        tokenizer: The model's own.
        tokenize: Reads texts as the model does.
    """

    name: str
    revision: str | None
    pooling: str
    dimension: int
    normalized: bool
    max_tokens: int
    compared_by_dot: bool
    tokenizer: PreTrainedTokenizerBase
    tokenize: Callable[[Sequence[str]], TokenRows]

    def rows(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Return texts as the model reads them.

        Args:
            texts: At least one; prompts included.
        """
        return to_rows(texts, self.tokenize(texts))


class Engine(Protocol):
    """Computes the vectors of texts that the model's own tokenizer has read and cut.

    A copy, in another process too, is an engine that starts anew with the same settings.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its vectors beyond the model: its name, its version, its options; JSON."""

    def embed(self, rows: Sequence[TokenizedText]) -> NDArray[np.float32]:
        """Return the vectors ``(N, dim)`` of texts, as the engine gives them.

        Args:
            rows: At least one, each with at least one token.

        Raises:
            TextsError: If it gives no vector for some of them.
            ReasonEmbedError: If it cannot be used.
        """

    def close(self) -> None:
        """Release what it holds."""


def to_rows(texts: Sequence[str], read: TokenRows) -> list[TokenizedText]:
    """Join texts and their token ids.

    Args:
        texts: As they were read, prompts included.
        read: Of the same texts.
    """
    return [
        TokenizedText(text, ids, int(full) > len(ids))
        for text, ids, full in zip(texts, read.ids, read.full, strict=True)
    ]
