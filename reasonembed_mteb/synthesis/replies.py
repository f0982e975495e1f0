"""What an endpoint's replies mean: an answer, a final error, or trouble that may pass."""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.synthesis.answers import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

# OpenAI, vLLM, SGLang, llama.cpp and TGI each say it in their own words.
_TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size)|maximum (model|input|sequence) length|too (long|many (input )?tokens)"
    r"|longer than the (maximum|model)|exceeds? [^.]*\btokens|inputs?. tokens \+",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"content[ _-]?(filter|policy|management)|moderation", re.IGNORECASE)
# Most characters of an endpoint's message that are repeated in ours.
_SHOWN = 300


class AttemptError(Exception):
    """One attempt came to nothing.

    Attributes:
        error: What the answer's error is, if no attempt gets further.
        passing: Whether another attempt may do better.
        down: Whether it is the endpoint's state and not this request's.
        wait: Seconds the endpoint asks to wait.
    """

    def __init__(
        self, message: str, error: str, *, passing: bool = True, down: bool = False, wait: float | None = None
    ) -> None:
        super().__init__(message)
        self.error, self.passing, self.down, self.wait = error, passing, down, wait


def read_reply(raw: bytes) -> Outcome:
    """Read the body of a successful reply.

    Args:
        raw: The body.

    Returns:
        The answer or an error that another attempt would meet too.

    Raises:
        AttemptError: If it is no chat completion.
    """
    try:
        body = json.loads(raw)
    except ValueError as error:
        msg = f"the answer is no JSON: {shown(raw.decode('utf-8', 'replace'))!r}"
        raise AttemptError(msg, "bad_answer") from error
    return read_completion(body)


def read_completion(body: Any) -> Outcome:  # noqa: ANN401 (whatever JSON holds)
    """Read a chat completion; see `read_reply`."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        finish = choice.get("finish_reason")
        usage = body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        msg = f"the answer is no chat completion: {shown(json.dumps(body))}"
        raise AttemptError(msg, "bad_answer") from error
    if text is not None and not isinstance(text, str):
        msg = f"the answer's content is no text: {shown(json.dumps(text))}"
        raise AttemptError(msg, "bad_answer")
    if refusal or finish == "content_filter":
        return Outcome(None, "refused", *tokens)
    # Half a character pair cannot be written to any file.
    whole = None if text is None else text.encode("utf-8", "replace").decode("utf-8")
    if finish == "length":
        return Outcome(whole, "length", *tokens)
    return Outcome(whole, None, *tokens) if whole else Outcome(None, "bad_answer", *tokens)


def refused_request(status: int, message: str, code: str = "") -> Outcome | None:
    """Read a 4xx reply as an error that belongs to the request alone, if it is one.

    Args:
        status: HTTP status.
        message: The endpoint's message.
        code: Its error code or type.

    Returns:
        The outcome, None if the reply says something else.
    """
    if status not in (400, 413, 422):
        return None
    if _REFUSED.search(code) or _REFUSED.search(message):
        return Outcome(None, "refused")
    if status == 413 or _TOO_LONG.search(code) or _TOO_LONG.search(message):
        return Outcome(None, "context_length")
    return None


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that ``Retry-After`` asks for: a number or a date.

    Args:
        headers: The reply's headers.

    Returns:
        Seconds, None where nothing readable is asked.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(float(headers.get(name, "")) * unit, 0.0)
        except ValueError:
            continue
    try:
        return max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time(), 0.0)
    except (TypeError, ValueError):
        return None


def shown(message: str) -> str:
    """Return a message of an endpoint as one line of bearable length."""
    line = " ".join(message.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
