"""An OpenAI-compatible server that answers by a script: real sockets, no framework.

In a test, in a thread: ``with StubServer(lambda seen: "an answer") as server: ... server.base_url``.
In its own process, for timing: ``python tests/stub_server.py --delay 0.05`` prints its address on one line,
and answers ``GET /stats`` with what it has counted.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Seen:
    """One request as it came in.

    Attributes:
        body: What was sent, parsed.
        attempt: How often this very body has come in, this time included.
        headers: Its headers, names in lower case.
        path: What was asked for.
    """

    body: dict[str, Any]
    attempt: int
    headers: dict[str, str]
    path: str = CHAT

    @property
    def text(self) -> str:
        """The last message's text."""
        return str(self.body["messages"][-1]["content"])


@dataclass(frozen=True)
class Reply:
    """What is sent back.

    Attributes:
        body: The bytes of the body.
        status: HTTP status.
        headers: More headers.
        delay: Seconds before it is sent.
        cut: Send only so many bytes of the body, then close the connection.
        drop: Close the connection without a reply.
        chunked: Send it in chunks instead of with its length.
    """

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    chunked: bool = False
    drop: bool = False


def chat(
    text: str | None,
    *,
    finish_reason: str = "stop",
    prompt_tokens: int = 10,
    completion_tokens: int = 5,
    usage: bool = True,
    refusal: str | None = None,
    **reply: Any,
) -> Reply:
    """Return a well-formed answer; more keywords are `Reply`'s."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}],
    }
    if usage:
        body["usage"] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
    return Reply(json.dumps(body).encode(), **reply)


def failure(status: int, message: str, *, code: str | None = None, **reply: Any) -> Reply:
    """Return an error as the endpoints send it; more keywords are `Reply`'s."""
    body = {"error": {"message": message, "type": "error", "code": code}}
    return Reply(json.dumps(body).encode(), status=status, **reply)


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as much of it as the clients use."""

    def __init__(self, server: StubServer) -> None:
        self.server = server
        self.transport: asyncio.Transport
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(self.buffer) < end + 4 + length:
            return
        body = bytes(self.buffer[end + 4 : end + 4 + length])
        del self.buffer[: end + 4 + length]
        reply = self.server.answer(first, headers, body)
        if reply.delay:
            asyncio.get_running_loop().call_later(reply.delay, self.send, reply)
        else:
            self.send(reply)

    def send(self, reply: Reply) -> None:
        self.server.at_once -= 1
        if self.transport.is_closing():
            return
        if not reply.drop:
            self.transport.write(_encoded(reply))
        if reply.cut is not None or reply.drop:
            self.transport.close()


def _encoded(reply: Reply) -> bytes:
    """Return status line, headers and as much of the body as is to be sent."""
    head = [f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Error')}", "Content-Type: application/json"]
    head += [f"{name}: {value}" for name, value in reply.headers.items()]
    body = reply.body if reply.cut is None else reply.body[: reply.cut]
    if reply.chunked:
        head.append("Transfer-Encoding: chunked")
        last = b"" if reply.cut is not None else b"0\r\n\r\n"
        body = f"{len(body):x}\r\n".encode() + body + b"\r\n" + last
    else:
        head.append(f"Content-Length: {len(reply.body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class StubServer:
    """The server, in a thread of this process.

    Attributes:
        counts: How often each body came in, by its SHA-256.
        at_once: How many requests are being answered right now; `most_at_once` is the highest seen.
        seen: Every parsed request, where `keep` is set.
    """

    def __init__(
        self,
        script: Callable[[Seen], Reply | str] = lambda seen: "fine",
        *,
        delay: float = 0.0,
        key: str | None = None,
        keep: bool = True,
        paths: tuple[str, ...] = (CHAT,),
        pages: dict[str, object] | None = None,
    ) -> None:
        """Prepare it; the context starts it.

        Args:
            script: The answer to a request: a text, or a whole reply.
            delay: Seconds before a text is sent.
            key: The only key that is let in; None lets in every one.
            keep: Keep what was seen. Without it memory stays flat.
            paths: What is served.
            pages: What else is there to be got, by its path: JSON.
        """
        self.pages = pages or {}
        self.paths = paths
        self.script, self.delay, self.key, self.keep = script, delay, key, keep
        self.counts: Counter[bytes] = Counter()
        self.seen: list[Seen] = []
        self.at_once = self.most_at_once = 0
        self.connections: set[asyncio.Transport] = set()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def base_url(self) -> str:
        """The address for a client."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def total(self) -> int:
        """How many requests came in."""
        return self.counts.total()

    def answer(self, first: str, headers: dict[str, str], raw: bytes) -> Reply:
        """Answer one request and count it."""
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        method, path, _ = first.split(" ")
        if method == "GET" and path == "/stats":
            return Reply(json.dumps(self.stats()).encode())
        if method == "GET" and path in self.pages:
            return Reply(json.dumps(self.pages[path]).encode())
        if method != "POST" or path not in self.paths:
            return failure(404, f"no route {method} {path}")
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return failure(401, f"Incorrect API key provided: {headers.get('authorization')}")
        digest = hashlib.sha256(raw).digest()
        self.counts[digest] += 1
        seen = Seen(json.loads(raw), self.counts[digest], headers, path)
        if self.keep:
            self.seen.append(seen)
        reply = self.script(seen)
        return chat(reply, delay=self.delay) if isinstance(reply, str) else reply

    def stats(self) -> dict[str, int]:
        """What was counted, as ``GET /stats`` returns it."""
        return {
            "requests": self.total,
            "different": len(self.counts),
            "most_times": max(self.counts.values(), default=0),
            "most_at_once": self.most_at_once,
        }

    async def listen(self, port: int = 0) -> asyncio.Server:
        """Listen on a free port, or on the one given."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self.listen())
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for transport in list(self.connections):
            transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def __enter__(self) -> Self:
        """Start it."""
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; open connections are broken off."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


def main() -> None:
    """Serve until killed; print the address first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--answer", type=int, default=200, help="characters of an answer")
    options = parser.parse_args()
    fixed = chat("a" * options.answer, delay=options.delay)

    async def serve() -> None:
        stub = StubServer(lambda seen: fixed, keep=False)
        server = await stub.listen()
        print(stub.base_url, flush=True)
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
