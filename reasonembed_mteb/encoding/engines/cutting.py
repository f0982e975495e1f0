"""Cutting a text where its tokens end, for servers that take no token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reasonembed_mteb.encoding.engines.engine import TokenizedText

# Tokens by which a text is made shorter, one after the other, until it fits.
_MOST_STEPS = 64


def cut_text(tokenizer: PreTrainedTokenizerBase, row: TokenizedText) -> str:
    """Return the text that a tokenizer reads as the tokens that were kept of it, or as a few fewer.

    A cut within a word may read as other tokens at the very end: the text ends where the kept tokens end, and
    earlier while it still reads as more of them than were kept.

    Args:
        tokenizer: The model's own; one with offsets (all of transformers 5).
        row: What was kept; a text that was not cut is returned whole.
    """
    if not row.cut:
        return row.text
    reader: Any = tokenizer
    whole = {"truncation": False, "verbose": False}
    read = reader(row.text, return_offsets_mapping=True, return_special_tokens_mask=True, **whole)
    marks = zip(read["offset_mapping"], read["special_tokens_mask"], strict=True)
    ends = [end for (_, end), special in marks if not special]
    kept = max(len(row.ids) - sum(read["special_tokens_mask"]), 0)
    for last in range(kept - 1, max(kept - 1 - _MOST_STEPS, -1), -1):
        text = row.text[: ends[last]]
        if len(reader(text, **whole)["input_ids"]) <= len(row.ids):
            return text
    return ""
