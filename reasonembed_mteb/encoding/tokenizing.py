"""Texts to token ids, once: what the model reads, and how long each text is before it is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sentence_transformers.base.modules import Transformer

# No limit: tokenizers without one report a very large number.
_NO_LIMIT = 1 << 30
# No tokenizer that was met ends a text with more special tokens (latent tokens among them).
_MOST_ENDING_TOKENS = 128
# Characters of a prompt that a message shows.
_SHOWN = 40
KEPT_KEYS = frozenset({"input_ids", "token_type_ids", "attention_mask"})


class TokenRows(NamedTuple):
    """Token ids of some texts, at the model's length.

    Attributes:
        ids: One int32 array a text.
        types: ``token_type_ids`` likewise, or None where the tokenizer gives none.
        full: Token count of each text before it was cut.
        extra: What else the modules read: ``modality`` and, with a prompt, ``prompt_length``.
    """

    ids: list[NDArray[np.int32]]
    types: list[NDArray[np.int32]] | None
    full: NDArray[np.int32]
    extra: dict[str, Any]


class Tokenizing:
    """A Transformer module's own preprocessing, without padding and with true lengths."""

    def __init__(self, transformer: Transformer, prompt: str | None, **kwargs: Any) -> None:
        """Prepare for one call of encode.

        Args:
            transformer: The module; its tokenizer may lack a pad token.
            prompt: Put before each text.
            **kwargs: What encode hands on, such as ``task``.
        """
        self._transformer = transformer
        self._prompt = prompt
        self._kwargs = kwargs
        self.limit = length_limit(transformer, kwargs.get("task"))

    def __call__(self, texts: Sequence[str]) -> TokenRows:
        """Tokenise texts.

        Args:
            texts: At least one.

        Returns:
            Their ids, cut at the model's length exactly as the tokenizer does.
        """
        features = self._features(texts, truncation=False)
        ids = [np.asarray(row, dtype=np.int32) for row in features["input_ids"]]
        full = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
        long = np.flatnonzero(full > self.limit)
        if len(long):
            self._cut(texts, ids, long)
        types = None
        if "token_type_ids" in features:
            # Only the rows' lengths change: one text alone has one type, except for its first or last token.
            rows = zip(features["token_type_ids"], ids, strict=True)
            types = [np.asarray(row[: len(kept)], dtype=np.int32) for row, kept in rows]
        extra = {name: features[name] for name in ("modality", "prompt_length") if name in features}
        return TokenRows(ids, types, full, extra)

    def _features(self, texts: Sequence[str], *, truncation: bool | str) -> Any:  # noqa: ANN401
        options = {
            "text": {"truncation": truncation, "padding": False, "verbose": False},
            "common": {"return_tensors": None},
        }
        return self._transformer.preprocess(
            list(texts),
            prompt=self._prompt,
            processing_kwargs=options,  # type: ignore[arg-type]
            **self._kwargs,
        )

    def _cut(self, texts: Sequence[str], ids: list[NDArray[np.int32]], long: NDArray[np.int64]) -> None:
        """Cut long rows in place; the tokenizer shows how on the first."""
        first = int(long[0])
        shown = np.asarray(
            self._features([texts[first]], truncation="longest_first")["input_ids"][0], dtype=np.int32
        )
        ending = _tokens_after_the_cut(ids[first], shown)
        if ending is None:
            cut = self._features([texts[i] for i in long], truncation="longest_first")["input_ids"]
            for i, row in zip(long, cut, strict=True):
                ids[i] = np.asarray(row, dtype=np.int32)
            return
        for i in long:
            row = ids[i]
            ids[i] = np.concatenate([row[: len(shown) - ending], row[len(row) - ending :]])


def _tokens_after_the_cut(whole: NDArray[np.int32], cut: NDArray[np.int32]) -> int | None:
    """Return how many special tokens close a row, or None if the row was not cut at its end."""
    for ending in range(min(_MOST_ENDING_TOKENS, len(cut)) + 1):
        kept = np.concatenate([whole[: len(cut) - ending], whole[len(whole) - ending :]])
        if np.array_equal(kept, cut):
            return ending
    return None


def check_room(
    tokenizer: Any,  # noqa: ANN401 - a transformers tokenizer
    tokens: int,
    what: str,
    prompt: str = "",
) -> None:
    """Refuse a length at which nothing of a text would be read: all texts would have one vector.

    Below the special tokens' own number a tokenizer cuts nothing at all.

    Args:
        tokenizer: Puts special tokens around each text.
        tokens: The length, special tokens and prompt included.
        what: Whose length it is, for the message.
        prompt: Put before each text.

    Raises:
        ReasonEmbedError: If the length has no room for one token of a text.
    """
    around = special_tokens(tokenizer)
    before = len(tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]) if prompt else 0
    if tokens <= around + before:
        told = f" and the {before:,} of the prompt {prompt[:_SHOWN]!r}" if before else ""
        msg = (
            f"{what} is {tokens:,}, which leaves no room for a text beside the {around:,} special tokens "
            f"(BOS, EOS, latent tokens) that the tokenizer puts around each{told}: "
            f"give {around + before + 1:,} or more"
        )
        raise ReasonEmbedError(msg)


def special_tokens(tokenizer: Any) -> int:  # noqa: ANN401 - a transformers tokenizer
    """Return how many special tokens a tokenizer puts around each text.

    Args:
        tokenizer: Any.
    """
    return int(tokenizer.num_special_tokens_to_add(pair=False))


def length_limit(transformer: Transformer, task: str | None) -> int:
    """Return the tokens at which a module cuts, special ones included.

    Args:
        transformer: The module.
        task: ``query``, ``document`` or none, which may have lengths of their own.
    """
    text = (getattr(transformer, "processing_kwargs", None) or {}).get("text") or {}
    if text.get("truncation", True) in (False, "do_not_truncate"):
        return _NO_LIMIT
    by_task = {"query": "query_length", "document": "document_length"}.get(task or "")
    given = text.get("max_length") or (getattr(transformer, by_task, None) if by_task else None)
    own = given or transformer.max_seq_length
    return _NO_LIMIT if own is None or own > _NO_LIMIT else int(own)
