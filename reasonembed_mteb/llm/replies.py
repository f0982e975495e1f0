"""What a chat completion says: an answer, or why there is none."""

from __future__ import annotations

import json
from typing import Any

from reasonembed_mteb.endpoints.endpoint import Endpoint, Reply, Request
from reasonembed_mteb.endpoints.retries import AttemptError, Service, shown


def read_reply(raw: bytes) -> Reply:
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


def read_completion(body: Any) -> Reply:  # noqa: ANN401 (whatever JSON holds)
    """Read a chat completion; see `read_reply`."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        finish = choice.get("finish_reason")
        usage = body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        msg = f"the answer is no chat completion: {shown(json.dumps(body))}"
        raise AttemptError(msg, "bad_answer") from error
    if text is not None and not isinstance(text, str):
        msg = f"the answer's content is no text: {shown(json.dumps(text))}"
        raise AttemptError(msg, "bad_answer")
    if refusal or finish == "content_filter":
        return Reply(None, "refused", *tokens)
    # Half a character pair cannot be written to any file.
    whole = None if text is None else text.encode("utf-8", "replace").decode("utf-8")
    if finish == "length":
        return Reply(whole, "length", *tokens)
    return Reply(whole, None, *tokens) if whole else Reply(None, "bad_answer", *tokens)


_PROBE = Request("probe", ({"role": "user", "content": "Say yes."},), 0.0, 1.0, 16, None)
CHAT = Service("/chat/completions", read_reply, Endpoint.body, _PROBE)
