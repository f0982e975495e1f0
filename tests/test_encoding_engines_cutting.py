"""Texts cut where their tokens end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import make_tokenizer

from reasonembed_mteb.encoding.engines.cutting import cut_text
from reasonembed_mteb.encoding.engines.engine import TokenizedText

TEXTS = (
    "Why is the sky blue? Rayleigh scattering sends short waves to all sides.",
    "naïve 短い \U0001f600 text \U0001f600\U0001f600 with letters of many bytes",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
)


def tokenized(tokenizer: Any, text: str, most: int) -> TokenizedText:
    """Read a text, cut at so many tokens."""
    whole = tokenizer(text)["input_ids"]
    kept = tokenizer(text, truncation=True, max_length=most)["input_ids"]
    return TokenizedText(text, np.asarray(kept, dtype=np.int32), len(whole) > most)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [{}, {"bos": True, "eos": True}])
def test_a_cut_text_reads_as_what_was_kept(text: str, special: dict[str, bool]) -> None:
    tokenizer = make_tokenizer(**special)
    for most in range(3, 30):
        row = tokenized(tokenizer, text, most)
        cut = cut_text(tokenizer, row)
        ids = tokenizer(cut)["input_ids"]
        assert text.startswith(cut)
        # Never longer; and whole characters alone can be fewer tokens by those of one.
        assert len(row.ids) - 4 < len(ids) <= len(row.ids)
        if len(ids) == len(row.ids):
            np.testing.assert_array_equal(ids[: len(ids) - 2], row.ids[: len(ids) - 2])


def test_a_short_text_stays_as_it_is() -> None:
    tokenizer = make_tokenizer()
    for text in (*TEXTS, "", "\n "):
        assert cut_text(tokenizer, tokenized(tokenizer, text, 1000)) == text
