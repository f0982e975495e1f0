"""What is asked and of whom: requests, answers, the endpoint, and the hash by which an answer is kept."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from reasonembed_mteb.endpoints.keys import is_key_name, read_key, without_key
from reasonembed_mteb.errors import ReasonEmbedError

_VERSION = re.compile(r"/v\d+\w*$")

# Part of every hash: to be raised when the same body would mean another answer.
_HASH_FORMAT = "reasonembed-request-1"
# Long, with small letters and digits: a key, and no name that anybody gives a variable.
_KEY_LIKE = re.compile(r"(?=.*[a-z])(?=.*\d)\w{20,}")
# Tokens of an answer that nothing bounds, for a budget that must not be passed.
UNBOUNDED = 32_768


def versioned_address(address: str, *apis: str) -> str:
    """Return an address up to and with the version, however much of it was given.

    Args:
        address: With ``/v1`` or without, or whole, such as ``http://localhost:8000/v1/embeddings``.
        *apis: What may stand behind the version, such as ``embeddings``.
    """
    parts = urlsplit(address)
    plain = re.sub(rf"/({'|'.join(apis)})$", "", parts.path.rstrip("/"))
    return parts._replace(path=plain if _VERSION.search(plain) else f"{plain}/v1").geturl()


def unversioned_address(address: str, *apis: str) -> str:
    """Return an address up to the version and without it; see `versioned_address`."""
    parts = urlsplit(versioned_address(address, *apis))
    return parts._replace(path=_VERSION.sub("", parts.path)).geturl()


class EndpointValueError(ReasonEmbedError, ValueError):
    """A value of an endpoint that cannot be used; a ValueError too, so that pydantic names its table."""


class EndpointError(ReasonEmbedError):
    """The endpoint cannot be used: down, a wrong key, an unknown model."""


class Ask(Protocol):
    """What every request has, whatever is asked for."""

    @property
    def key(self) -> str:
        """The caller's id of the item, unique in a step."""

    @property
    def n_sample(self) -> int:
        """Number of the sample among repeated samples of the same question."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt.

    Attributes:
        key: The caller's id of the item, unique in a step.
        messages: The chat, each message with ``role`` and ``content``.
        temperature: Sampling temperature.
        top_p: Nucleus sampling.
        max_tokens: Longest answer in tokens; None leaves it to the endpoint.
        seed: Seed of the sampling; ``n_sample`` is added, so that samples differ. None sends no seed.
        n_sample: Number of the sample among repeated samples of the same prompt.
    """

    key: str
    messages: tuple[dict[str, str], ...]
    temperature: float
    top_p: float
    max_tokens: int | None
    seed: int | None
    n_sample: int = 0


@dataclass(frozen=True)
class Reply:
    """What one request came to, whoever asked; the fields are those of `Answer`."""

    text: str | None
    error: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def uncounted(self) -> bool:
        """Whether it is an answer whose tokens the endpoint did not count, as TEI and some servers do not."""
        return self.text is not None and not (self.prompt_tokens or self.completion_tokens)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request.

    Attributes:
        key: The request's key.
        text: The answer. With the error ``"length"`` it is the part that fitted into ``max_tokens``.
        error: None when fine, otherwise why there is no whole answer: ``"context_length"`` (the prompt is too
            long), ``"length"`` (the answer is), ``"refused"``, ``"rejected"`` (the endpoint calls the request
            bad), ``"bad_answer"`` (nothing readable came back), ``"server_error"`` or ``"timeout"`` (on every
            attempt, while other requests were answered).
        prompt_tokens: As the endpoint counts them.
        completion_tokens: As the endpoint counts them.
        cached: Whether it came from disk or from an equal request, and so cost nothing.
    """

    key: str
    text: str | None
    error: str | None
    prompt_tokens: int
    completion_tokens: int
    cached: bool


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint and how it is to be used.

    Attributes:
        base_url: Address up to and with the version, such as ``http://localhost:8000/v1``.
        model: The model's name there.
        api_key_env: The environment variable that holds the key. Without it no key is needed.
        concurrency: Most requests at a time.
        timeout: Seconds without a byte from the endpoint before an attempt is given up.
        max_attempts: Attempts for one request.
        price_in: Price of a million prompt tokens.
        price_out: Price of a million completion tokens.
        extra_body: More fields of the request; None as a value removes a field, as in
            ``{"max_tokens": None, "max_completion_tokens": 4096}``.
        leave_out: Fields of the request that are not sent, for files, which cannot write None: they are put
            into ``extra_body``.
        backoff: Seconds before the second attempt; doubled with each further one.
        longest_wait: Most seconds between two attempts. A longer ``Retry-After`` ends the run.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 64
    timeout: float = 120.0
    max_attempts: int = 6
    price_in: float | None = None
    price_out: float | None = None
    extra_body: dict[str, Any] | None = None
    backoff: float = 1.0
    longest_wait: float = 60.0
    leave_out: list[str] | None = None

    def __post_init__(self) -> None:
        """Check what a configuration file can get wrong.

        Raises:
            EndpointValueError: If a value cannot be used.
        """
        parts = urlsplit(self.base_url)
        # A password may hold a slash, and the rest of it then stands in the path.
        if "@" in self.base_url.partition("?")[0]:
            msg = "base_url holds a user or password: keys come from the environment (api_key_env) only"
            raise EndpointValueError(msg)
        if named := [name for name, _ in parse_qsl(parts.query) if is_key_name(name)]:
            msg = (
                f"base_url holds a key in its query ({named[0]}): set it in an environment variable and name "
                'that, api_key_env = "MY_KEY"'
            )
            raise EndpointValueError(msg)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"base_url is {self.base_url!r}: give an address such as http://localhost:8000/v1"
            raise EndpointValueError(msg)
        if not self.model:
            msg = "model is empty: give the model's name at the endpoint"
            raise EndpointValueError(msg)
        variable = re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env, flags=re.ASCII)
        if not variable or _KEY_LIKE.fullmatch(self.api_key_env):
            # Not repeated: it may well be the key itself.
            msg = "api_key_env must be the name of an environment variable that holds the key, not the key"
            raise EndpointValueError(msg)
        for name in ("concurrency", "timeout", "max_attempts"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                msg = f"{name} is {value}: it must be above 0, and finite"
                raise EndpointValueError(msg)
        for name in ("price_in", "price_out", "backoff", "longest_wait"):
            value = getattr(self, name) or 0.0
            if not (math.isfinite(value) and value >= 0):
                msg = f"{name} is {value}: it must not be below 0, and finite"
                raise EndpointValueError(msg)
        self._leave_out()

    def _leave_out(self) -> None:
        """Put the fields that are left out into ``extra_body``, the one place that says what is sent."""
        body = dict(self.extra_body or {})
        for name in self.leave_out or ():
            if name == "messages":
                msg = "leave_out names messages, and nothing would be asked: take it out"
                raise EndpointValueError(msg)
            if body.get(name) is not None:
                msg = f"extra_body gives {name}, and leave_out takes it out: keep one of the two"
                raise EndpointValueError(msg)
            body[name] = None
        if self.leave_out:
            object.__setattr__(self, "extra_body", body)

    @property
    def shown_url(self) -> str:
        """The address without its query, which can hold a key, for messages."""
        return urlsplit(self.base_url)._replace(query="").geturl()

    def key(self) -> str | None:
        """Read the key from the environment.

        Raises:
            EndpointError: If it holds what no key can hold.
        """
        key = read_key(self.api_key_env)
        if not key.isascii() or not key.isprintable() or " " in key:
            msg = f"{self.api_key_env} holds characters that no key has; set it again"
            raise EndpointError(msg)
        return key or None

    def without_key(self, text: str) -> str:
        """Return text of a server or a library without the key, which must reach no message, log or file."""
        return without_key(text, read_key(self.api_key_env))

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return the price of so many tokens, None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6

    def most_cost(self, body: dict[str, Any]) -> float:
        """Return the most that a request can cost: no text has more tokens than bytes.

        Args:
            body: What is sent. An answer whose length it does not bound counts as `UNBOUNDED` tokens.
        """
        longest = body.get("max_tokens") or body.get("max_completion_tokens")
        answer = longest if isinstance(longest, int) else UNBOUNDED if "messages" in body else 0
        prompt = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
        return self.cost(prompt, answer) or 0.0

    def body(self, request: Request) -> dict[str, Any]:
        """Return what is sent for a request."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_tokens": request.max_tokens,
            "seed": None if request.seed is None else request.seed + request.n_sample,
            **(self.extra_body or {}),
        }
        return {name: value for name, value in body.items() if value is not None}


def request_hash(body: dict[str, Any], n_sample: int) -> bytes:
    """Return the hash by which an answer is kept: the whole body and the sample's number.

    The address and the key are not in it: the same model may move to another server.

    Args:
        body: What is sent; see `Endpoint.body`.
        n_sample: Number of the sample.

    Returns:
        32 bytes.
    """
    text = json.dumps([_HASH_FORMAT, n_sample, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).digest()
