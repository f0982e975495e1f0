"""Paraphrases of queries: from a file, or asked of an OpenAI-compatible endpoint once and kept."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import read_json_lines
from reasonembed_mteb.llm.client import Request
from reasonembed_mteb.robustness.words import plain_breaks

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from reasonembed_mteb.llm.client import LLMClient

logger = logging.getLogger(__name__)

PROMPT = (
    "Rewrite the following search query in other words. Keep its meaning, its language and about its length. "
    "Copy code, formulas, LaTeX, numbers, names and addresses exactly. Answer with the rewritten query "
    "alone.\n\n"
)
# Longest paraphrase in tokens; a BRIGHT query with code has up to some thousands.
_MOST_TOKENS = 4096


def read_paraphrases(file: Path) -> dict[str, str]:
    """Read paraphrases by query.

    Args:
        file: JSON Lines, each with ``query`` and ``paraphrase``; gzipped where its name ends with ``.gz``.

    Returns:
        New text by old; line breaks are line feeds.

    Raises:
        DataError: If a line cannot be read, or two give one query different paraphrases.
    """
    found: dict[str, str] = {}
    for number, row in read_json_lines(file):
        values = [row.get(name) for name in ("query", "paraphrase")] if isinstance(row, dict) else []
        if len(values) != 2 or not all(isinstance(value, str) and value.strip() for value in values):
            msg = f'{file}:{number} must hold texts "query" and "paraphrase"; correct that line'
            raise DataError(msg)
        query, paraphrase = (plain_breaks(str(value)) for value in values)
        if found.setdefault(query, paraphrase) != paraphrase:
            msg = f"{file}:{number} gives a query another paraphrase than an earlier line; keep one of them"
            raise DataError(msg)
    if not found:
        msg = f'{file} holds no paraphrase; give lines with "query" and "paraphrase"'
        raise DataError(msg)
    return found


def ask_paraphrases(texts: Iterable[str], client: LLMClient) -> dict[str, str]:
    """Ask an endpoint for a paraphrase of each query; answers are kept, and none is paid for twice.

    Args:
        texts: The queries; equal ones are asked once.
        client: Whom to ask.

    Returns:
        New text by old, without those that the endpoint did not answer; how many is said in a warning.

    Raises:
        EndpointError: If the endpoint cannot be used.
    """
    unique = list(dict.fromkeys(map(plain_breaks, texts)))
    requests = (
        Request(str(number), ({"role": "user", "content": PROMPT + text},), 0.0, 1.0, _MOST_TOKENS, 0)
        for number, text in enumerate(unique)
    )
    answers = client.run(requests, total=len(unique), description="Paraphrasing")
    found = {
        text: plain_breaks(answer.text).strip()
        for text, answer in zip(unique, answers, strict=True)
        if answer.error is None and answer.text and answer.text.strip()
    }
    if len(found) < len(unique):
        logger.warning(
            "%d of %d queries got no paraphrase from %s and stay as they are",
            *(len(unique) - len(found), len(unique), client.endpoint.model),
        )
    return found
