"""Attempts at a request: an answer, a final error, or trouble that may pass."""

from __future__ import annotations

import importlib.util
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.endpoints.endpoint import EndpointError, Reply
from reasonembed_mteb.endpoints.keys import is_secret, keep_out_of_logs, without_key
from reasonembed_mteb.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from openai import APIStatusError, AsyncOpenAI
    from tenacity import RetryCallState

    from reasonembed_mteb.endpoints.endpoint import Ask, Endpoint
    from reasonembed_mteb.endpoints.limits import Counts

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


def refused_request(status: int, message: str, code: str = "") -> Reply | None:
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
        return Reply(None, "refused")
    if status == 413 or _TOO_LONG.search(code) or _TOO_LONG.search(message):
        return Reply(None, "context_length")
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
        return max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def shown(message: str) -> str:
    """Return a message of an endpoint as one line of bearable length."""
    line = " ".join(message.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."


# Requests at a time over one client. httpx searches its whole pool on every request: small pools are a fifth
# faster. aiohttp takes a third less time than these, but openai's client for it stops at 1,000 connections.
_PER_HTTPX_CLIENT, _PER_AIOHTTP_CLIENT = 8, 512
# Most seconds until a connection stands.
_CONNECT_TIMEOUT = 10.0
# A request may go through all its attempts so often while the endpoint is busy with the others.
_ROUNDS = 10
# Not ready, whatever is asked: timeout, conflict, too early, too many requests, gateways, overloaded.
_NOT_READY = (408, 409, 425, 429, 502, 503, 504, 529)
# By name, since openai stands on several HTTP packages: a connection that was lost, or never stood.
_LOST = {"ServerDisconnectedError", "ClientOSError", "ReadError", "RemoteProtocolError"}
_UNREACHED = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}


@dataclass(frozen=True)
class Service:
    """What an endpoint is asked for: chat completions, for one.

    Attributes:
        path: Below the endpoint's address.
        read: Reads the body of a successful reply; raises `AttemptError` where it is none.
        body: Returns what is sent for a request.
        probe: A request that no endpoint in order fails at.
        remedy: What a run that was ended by the endpoint is told: what is kept, and what to do.
        extra: The extra that installs what requests need.
    """

    path: str
    read: Callable[[bytes], Reply]
    body: Callable[[Endpoint, Any], dict[str, Any]]
    probe: Ask
    remedy: str = "What was answered is kept: run again to go on"
    extra: str = "synthesis"


class Asker:
    """Asks one endpoint, attempt after attempt.

    Attributes:
        clients: The connections; each request goes over one of them.
        on_their_way: Attempts that wait for a reply.
        last_answer: When a request was last answered, on the monotonic clock.
        stopping: Whether to make no further attempt.
    """

    def __init__(self, endpoint: Endpoint, service: Service, counts: Counts) -> None:
        """Read the key and make the clients.

        Args:
            endpoint: Whom to ask.
            service: What is asked for.
            counts: Where attempts are counted.

        Raises:
            MissingExtraError: If openai or tenacity is not installed.
            EndpointError: If the key cannot be one.
        """
        self._endpoint, self._service, self._counts = endpoint, service, counts
        self._key = endpoint.key()
        self.on_their_way = 0
        self.last_answer = float("-inf")
        self.stopping = False
        self.clients = self._make_clients()

    def _make_clients(self) -> list[AsyncOpenAI]:
        try:
            import openai
            import tenacity
        except ImportError as error:
            raise missing_extra((error.name or "openai").partition(".")[0], self._service.extra) from error
        self._openai, self._tenacity = openai, tenacity
        keep_out_of_logs(self._key or "")
        self._breaks: tuple[type[Exception], ...] = (openai.APIConnectionError,)
        per_client, backend = _PER_HTTPX_CLIENT, openai.DefaultAsyncHttpxClient
        if _has_aiohttp():
            import aiohttp

            # openai lets some of its errors through as they are.
            self._breaks += (aiohttp.ClientError,)
            per_client, backend = _PER_AIOHTTP_CLIENT, openai.DefaultAioHttpClient
        connect = min(self._endpoint.timeout, _CONNECT_TIMEOUT)
        timeout = openai.Timeout(self._endpoint.timeout, connect=connect)
        try:
            return [
                openai.AsyncOpenAI(
                    base_url=self._endpoint.base_url,
                    # A local server wants no key, the library wants one.
                    api_key=self._key or "none",
                    max_retries=0,
                    timeout=timeout,
                    http_client=backend(),
                )
                for _ in range(-(-self._endpoint.concurrency // per_client))
            ]
        except Exception as error:
            raise self._unexpected(error) from None

    async def ask(self, client: AsyncOpenAI, body: dict[str, Any]) -> Reply:
        """Send a request until it is answered or its attempts are used up.

        Args:
            client: Which of `clients` it goes over.
            body: What to send.

        Returns:
            The answer, or an error that belongs to the request.

        Raises:
            AttemptError: What the last attempt met.
            EndpointError: If the endpoint cannot be used.
        """
        try:
            outcome = await self._attempt(client, body)
        except AttemptError as first:
            # The first attempt stands alone, since tenacity's machinery costs a tenth of a request's time.
            outcome = await self._ask_again(first, client, body)
        self.last_answer = time.monotonic()
        return outcome

    async def _ask_again(self, first: AttemptError, client: AsyncOpenAI, body: dict[str, Any]) -> Reply:
        """Go on after a failed attempt, with the waits asked for or longer and longer ones."""
        met: AttemptError | None = first

        async def attempt() -> Reply:
            nonlocal met
            if met is not None:
                error, met = met, None
                raise error
            self._counts.retries += 1
            return await self._attempt(client, body)

        retrying = self._tenacity.AsyncRetrying(
            retry=self._tenacity.retry_if_exception(lambda e: isinstance(e, AttemptError) and e.passing),
            stop=_Stop(self, self._endpoint.max_attempts),
            wait=self._pause,
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except AttemptError as last:
            if last.down:
                msg = f"{last}, on {self._endpoint.max_attempts} attempts"
                raise EndpointError(self.told(msg)) from None
            raise

    def _pause(self, state: RetryCallState) -> float:
        """Return the seconds until the next attempt."""
        asked = _met(state).wait
        if asked is not None:
            return asked
        first, most = self._endpoint.backoff, self._endpoint.longest_wait
        growing = self._tenacity.wait_exponential(multiplier=first, max=most)
        return growing(state) + self._tenacity.wait_random(0, first / 2)(state)

    async def _attempt(self, client: AsyncOpenAI, body: dict[str, Any]) -> Reply:
        """Send a request once; see `ask`."""
        self.on_their_way += 1
        try:
            # Bytes, since the library's own parsing into models takes as long again.
            raw = await client.post(self._service.path, cast_to=bytes, body=body)
        except self._openai.APIStatusError as error:
            return self._read_status(error)
        except self._breaks as error:
            raise self._read_break(error) from None
        except UnicodeEncodeError as error:
            msg = f"cannot be sent what is no text ({error.reason})"
            raise AttemptError(msg, "rejected", passing=False) from None
        except Exception as error:
            raise self._unexpected(error) from None
        finally:
            self.on_their_way -= 1
        return self._read(raw)

    def _read(self, raw: bytes) -> Reply:
        """Read a reply; some servers send headers back, and with them the key."""
        hidden = self._without_key(raw.decode("latin-1")).encode("latin-1")
        try:
            return self._service.read(hidden if is_secret(self._key or "") else raw)
        except AttemptError:
            # What is no answer is shown.
            return self._service.read(hidden)

    def _read_status(self, error: APIStatusError) -> Reply:
        """Read a reply that is no success; see `ask`."""
        # The key goes first: cut in its middle, it would not be found. Nor may the error itself be shown with
        # ours: its text is the library's.
        status, message = error.status_code, shown(self._without_key(_message(error)))
        code = f"{error.code or ''} {error.type or ''}"
        if outcome := refused_request(status, message, code):
            return outcome
        if status in (401, 403):
            raise EndpointError(self.told(f"refuses the key ({status}): {self._advice()}")) from None
        if status in (404, 405) or "insufficient_quota" in code:
            msg = f"cannot serve {self._endpoint.model!r}: {message}; check model and base_url"
            raise EndpointError(self.told(msg)) from None
        if status in _NOT_READY:
            raise self._not_ready(error, message) from None
        if status >= 500:
            msg = f"fails ({status}: {message})"
            raise AttemptError(msg, "server_error") from None
        msg = f"rejects a request ({status}: {message})"
        raise AttemptError(msg, "rejected", passing=False) from None

    def _not_ready(self, error: APIStatusError, message: str) -> Exception:
        wait, most = asked_wait(error.response.headers), self._endpoint.longest_wait
        if wait is not None and wait > most:
            msg = f"asks to wait {wait:,.0f} s, above longest_wait ({most:g} s): {message}"
            return EndpointError(self.told(msg))
        msg = f"is not ready ({error.status_code}: {message})"
        return AttemptError(msg, "server_error", down=True, wait=wait)

    def _read_break(self, error: Exception) -> AttemptError:
        """Read an attempt that got no whole reply."""
        causes = list(_causes(error))
        names = {type(cause).__name__ for cause in causes}
        reason = shown(self._without_key(str(causes[-1]))) or type(causes[-1]).__name__
        lost = bool(names & _LOST)
        if names & _UNREACHED and not lost:
            return AttemptError(f"cannot be reached ({reason})", "server_error", down=True)
        if isinstance(error, self._openai.APITimeoutError) and not lost:
            return AttemptError(f"gave no answer within {self._endpoint.timeout:g} s", "timeout")
        return AttemptError(f"breaks off its answer ({reason})", "bad_answer")

    def _advice(self) -> str:
        name = self._endpoint.api_key_env
        return f"{name} holds another's" if self._key else f"{name} is not set"

    def _without_key(self, message: str) -> str:
        return without_key(message, self._key or "")

    def _unexpected(self, error: Exception) -> EndpointError:
        """Return an error of the libraries that nobody foresaw, without the key that its text may hold."""
        said = shown(self._without_key(str(error)))
        msg = f"cannot be asked ({type(error).__name__}{f': {said}' if said else ''})"
        return EndpointError(self.told(msg))

    def told(self, what: str) -> str:
        """Return a message to the user: the endpoint, what it does, what to do."""
        told = f"{self._endpoint.shown_url} {what}. {self._service.remedy}"
        return self._without_key(told)


class _Stop:
    """Says when a request has had its attempts.

    While the endpoint is busy but answers others, a request goes through its attempts again.
    """

    def __init__(self, asker: Asker, attempts: int) -> None:
        self._asker, self._attempts = asker, attempts
        self._since = time.monotonic()

    def __call__(self, state: RetryCallState) -> bool:
        """Return whether the attempt that has just failed was the last."""
        rounds, rest = divmod(state.attempt_number, self._attempts)
        if self._asker.stopping or rest:
            return self._asker.stopping
        if not _met(state).down or self._asker.last_answer < self._since or rounds >= _ROUNDS:
            return True
        self._since = time.monotonic()
        return False


def _message(error: APIStatusError) -> str:
    """Return what the endpoint said, without what openai puts before it."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return str(said or error.message).removeprefix(f"Error code: {error.status_code} - ")


def _has_aiohttp() -> bool:
    return importlib.util.find_spec("aiohttp") is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what lies below it, as far as it has been said on purpose."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _met(state: RetryCallState) -> AttemptError:
    """Return what the attempt that has just failed met."""
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, AttemptError)
    return error
