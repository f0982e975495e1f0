"""Keys: read from the environment, and taken out of whatever servers and libraries say."""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from functools import cache
from urllib.parse import quote

_HIDDEN = "***"
# Shorter ones are no secrets: servers that want no key are given EMPTY, none or test, words that an answer
# may hold as well.
_SECRET_FROM = 12
# Whose logs and warnings speak of requests; by name, since openai stands on several HTTP packages.
_LIBRARIES = frozenset({"aiohttp", "asyncio", "httpcore", "httpx", "openai", "tenacity"})
# Names under which tools and servers take a key. What merely ends in key or token is none: eos_token,
# prompt_cache_key.
_KEY_NAME = re.compile(
    r"key|token|bearer|(?:.*_)?(?:api_?key|authorization|secret|password)"
    r"|(?:.*_)?(?:access|auth|api|bearer|client|hf|id|private|refresh|secret|session|subscription)_?(?:key|token)"
)


def is_key_name(name: str) -> bool:
    """Return whether a field or a parameter of an address holds a key by its name.

    Args:
        name: Such as ``x-api-key``, ``access_token`` or ``client_secret``; not ``max_tokens``.
    """
    return _KEY_NAME.fullmatch(name.lower().replace("-", "_")) is not None


def read_key(variable: str) -> str:
    """Return what an environment variable holds, without the space around it; empty where it is not set.

    Args:
        variable: Its name.
    """
    return os.environ.get(variable, "").strip()


def is_secret(key: str) -> bool:
    """Return whether a key is more than a word in place of one.

    Args:
        key: As it is sent.
    """
    return len(key) >= _SECRET_FROM


@cache
def _spellings(key: str) -> tuple[str, ...]:
    """Return how a key can stand in a text: as it is, in JSON, in Python's quotes, in an address."""
    found = {key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key, safe=""), quote(key)}
    return tuple(sorted(found, key=len, reverse=True))


def without_key(text: str, key: str) -> str:
    """Return a text in which a key is hidden, however it is written.

    Args:
        text: What a server or a library says.
        key: The key; empty for none.
    """
    if not key:
        return text
    for spelling in _spellings(key):
        text = text.replace(spelling, _HIDDEN)
    return text


class _WithoutKey(logging.Filter):
    """Hide a key in what a logger writes, tracebacks included."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            # A library's own mistake, which may not end a run.
            text = f"{record.msg} {record.args}"
        record.msg, record.args = without_key(text, self.key), None
        if record.exc_info and record.exc_info[0] is not None:
            # Handlers take the text where there is one, and would format the error itself otherwise.
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            record.exc_info = None
        # Another endpoint's key may have been hidden in it before.
        record.exc_text = without_key(record.exc_text, self.key) if record.exc_text else None
        return True


def keep_out_of_logs(key: str) -> None:
    """Hide a key in everything that the libraries of requests log from now on, in this process.

    Some versions of openai write headers or whole errors into their logs.

    Args:
        key: The key; empty for none.
    """
    if not key:
        return
    # A filter holds for its own logger alone, not for those below it.
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _LIBRARIES]
    for name in {*names, *_LIBRARIES}:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _WithoutKey) and one.key == key for one in logger.filters):
            logger.addFilter(_WithoutKey(key))
