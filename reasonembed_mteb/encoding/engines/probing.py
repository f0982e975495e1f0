"""What a server does with known texts, before it is trusted with others: its faults, each by name."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import string
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.encoding.engines.cutting import cut_text
from reasonembed_mteb.encoding.engines.engine import EngineError, TokenizedText
from reasonembed_mteb.encoding.engines.requests import EMBEDDINGS, EmbeddingRequest, VectorsReply
from reasonembed_mteb.endpoints.endpoint import unversioned_address
from reasonembed_mteb.endpoints.limits import Counts
from reasonembed_mteb.endpoints.retries import Asker, AttemptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.encoding.engines.engine import ModelFacts
    from reasonembed_mteb.encoding.engines.requests import Input
    from reasonembed_mteb.endpoints.endpoint import Endpoint, Reply

logger = logging.getLogger(__name__)

KNOWN_TEXTS = (
    "Rayleigh scattering makes the sky blue.",
    "A second text, with 12 numbers: 3.14, 2.72 and more; what follows from them?",
    "Enzymes lower the activation energy of reactions, and are not used up by them.",
)
# Equal tokens give vectors that are this close in any precision; other tokens hardly ever do.
_SAME = 0.995
# Of a vector's length, from unit length.
_UNIT = 1e-2
# Tokens of the shortest text that is looked at for being cut.
_SHORTEST = 128
# What float32 leaves of a difference between equal texts in two requests.
_NOISE = 1e-6
# Where servers say their version: vLLM, TEI, Ollama, llama.cpp, infinity, and whatever is built on FastAPI.
_VERSIONS = (
    ("/version", ("version",)),
    ("/info", ("version",)),
    ("/api/version", ("version",)),
    ("/props", ("build_info",)),
    ("/v1/openapi.json", ("info", "version")),
    ("/openapi.json", ("info", "version")),
)
_VERSION_TIMEOUT = 5.0


@dataclass
class Serving:
    """What a server was found to do.

    Attributes:
        encoding_format: How it writes vectors.
        takes_tokens: Whether it takes token ids, and reads them as the texts.
        counts_tokens: Whether the tokens that it counts are the model's own.
        checked: The longest text in tokens that it was seen to read whole.
    """

    encoding_format: str = "base64"
    takes_tokens: bool = False
    counts_tokens: bool = False
    checked: int = 0


@dataclass
class Probe:
    """Asks a server for vectors of known texts.

    Attributes:
        endpoint: Whom to ask.
        facts: The model that it is to serve.
        found: What was found so far.
    """

    endpoint: Endpoint
    facts: ModelFacts
    found: Serving = field(default_factory=Serving)

    def __post_init__(self) -> None:
        """Keep one connection for all that is asked."""
        self._line = _Line(self.endpoint)

    def start(self) -> Serving:
        """Ask for known texts.

        Raises:
            EngineError: If the server does not give the model's vectors; its fault is named.
            EndpointError: If it cannot be used.
        """
        rows = self.facts.rows(KNOWN_TEXTS)
        by_text = self._first([row.text for row in rows])
        self._check_vectors(by_text, len(rows))
        self._check_length_of_vectors(by_text.vectors)
        other = not np.array_equal(rows[0].ids, rows[1].ids)
        if other and _distance(by_text.vectors[:1], by_text.vectors[1:]) <= _NOISE:
            self._refuse("gives different texts the same vector")
        ours = sum(len(row.ids) for row in rows)
        self.found.counts_tokens = by_text.counted and by_text.prompt_tokens == ours
        self.found.takes_tokens = self._takes_tokens(rows, by_text)
        return self.found

    def read_whole(self, tokens: int, limit: int) -> None:
        """Make sure that texts of so many tokens are read from end to end.

        Args:
            tokens: Of the longest text to come.
            limit: The length in force, in tokens; no longer text will come.

        Raises:
            EngineError: If the server cuts them, or takes none of that length.
        """
        if tokens <= self.found.checked:
            return
        # The next power of two, so that few lengths are asked about.
        length = min(limit, max(1 << (tokens - 1).bit_length(), _SHORTEST))
        rows = self._long_rows(length)
        alone, together = self._ask_long(rows[:1], length), self._ask_long(rows, length)
        if self.found.counts_tokens and alone.prompt_tokens < len(rows[0].ids):
            self._refuse_cut(length, f"it counts {alone.prompt_tokens:,} tokens")
        # In half precision a text's vector depends a little on what it is sent with.
        noise = 0.0 if self.found.counts_tokens else _distance(alone.vectors, together.vectors)
        for place, side in ((1, "end"), (2, "beginning")):
            # A small vocabulary may read both as the same tokens.
            other = not np.array_equal(rows[0].ids, rows[place].ids)
            apart = _distance(together.vectors, together.vectors[place : place + 1])
            if other and apart <= max(noise, _NOISE):
                self._refuse_cut(length, f"another {side} leaves the vector as it is")
        self.found.checked = length

    def _refuse_cut(self, length: int, why: str) -> None:
        msg = (
            f"{self.endpoint.shown_url} silently cuts a text of {length:,} tokens ({why}): start the server "
            f"with a context of at least {length:,} tokens, or give the model a shorter max_seq_length"
        )
        raise EngineError(msg)

    def _first(self, texts: Sequence[str]) -> VectorsReply:
        """Ask for texts for the first time; a server that writes no base64 writes lists."""
        try:
            return self._ask(texts)
        except AttemptError:
            self.found.encoding_format = "float"
        try:
            return self._ask(texts)
        except AttemptError as error:
            msg = f"{self.endpoint.shown_url} {error}: is it an OpenAI-compatible server of embeddings?"
            raise EngineError(self.endpoint.without_key(msg)) from None

    def _check_vectors(self, reply: VectorsReply, count: int) -> None:
        given, dimension = reply.vectors.shape
        if given != count:
            self._refuse(f"gives {given} vectors for {count} texts")
        if dimension != self.facts.dimension:
            self._refuse(
                f"gives vectors of {dimension} dimensions, and those of {self.facts.name} have "
                f"{self.facts.dimension}"
            )
        if not np.isfinite(reply.vectors).all():
            self._refuse("gives vectors with NaN or infinite values")
        if not reply.vectors.any(axis=1).all():
            self._refuse("gives vectors that are zero")

    def _check_length_of_vectors(self, vectors: NDArray[np.float32]) -> None:
        lengths = np.linalg.norm(vectors, axis=1)
        unit = bool(np.abs(lengths - 1).max() <= _UNIT)
        if self.facts.normalized and not unit:
            logger.warning(
                "%s gives vectors that are not normalised (their length is %.3g); they are normalised here",
                self.endpoint.shown_url,
                lengths.mean(),
            )
        if not self.facts.normalized and unit and self.facts.compared_by_dot:
            self._refuse(f"normalises its vectors, and those of {self.facts.name} are compared as they are")

    def _refuse(self, what: str) -> None:
        msg = (
            f"{self.endpoint.shown_url} {what}: it does not serve {self.facts.name} as it is; check its "
            "model and its pooling"
        )
        raise EngineError(msg)

    def _takes_tokens(self, rows: Sequence[TokenizedText], by_text: VectorsReply) -> bool:
        """Find out whether the server takes token ids, and whether it reads texts as these tokens."""
        try:
            by_ids = self._ask([tuple(row.ids.tolist()) for row in rows])
        except AttemptError as error:
            logger.info("%s takes no token ids (%s): it gets texts", self.endpoint.shown_url, error)
            return False
        alike = by_ids.vectors.shape == by_text.vectors.shape and bool(
            (_cosines(by_ids.vectors, by_text.vectors) >= _SAME).all()
        )
        if not alike:
            logger.warning(
                "%s reads a text as other tokens than the tokenizer of %s (of three known texts it counts "
                "%s, the tokenizer %d): compare the special tokens of both; it gets texts",
                self.endpoint.shown_url,
                self.facts.name,
                by_text.prompt_tokens if by_text.counted else "none",
                sum(len(row.ids) for row in rows),
            )
        return alike

    def _long_rows(self, length: int) -> list[TokenizedText]:
        """Return a text of so many tokens, and the same with another end and another beginning."""
        known = " ".join(KNOWN_TEXTS).split()
        # Numbered, so that no part of the text is like another.
        words = [f"{word} {place}" for place, word in enumerate(known * (length // len(known) + 1))]
        fits, above = 1, len(words)
        while above - fits > 1:
            middle = (fits + above) // 2
            fits, above = (middle, above) if self._fits(words[:middle], length) else (fits, middle)
        text = words[:fits]
        many = max(len(text) // 8, 2)
        # The same words in another order, so that no text is longer than the other.
        last = [*text[:-many], *text[: -many - 1 : -1]]
        if self.facts.pooling == "lasttoken":
            # The last token decides alone: then none less than all may be read.
            text, last = self._with_other_ends(text, length)
        first = [*text[many - 1 :: -1], *text[many:]]
        # What a server that cuts would not read may go: the parts that it reads stay as they are.
        for variant, place in ((last, -1), (first, 0)):
            while not self._fits(variant, length) and len(variant) > 1:
                del variant[place]
        return [self._row(one) for one in (text, last, first)]

    def _with_other_ends(self, words: list[str], length: int) -> tuple[list[str], list[str]]:
        """Return a text that is as long as may be, and one that differs from it in its last token alone."""
        text = list(words)
        while self._fits([*text, "a"], length):
            text.append("a")
        whole = self._row(text).ids
        for letter in string.ascii_letters:
            other = [*text[:-1], letter]
            ids = self._row(other).ids
            if len(ids) == len(whole) and (ids != whole).any():
                return text, other
        return text, text[:-1]

    def _fits(self, words: Sequence[str], length: int) -> bool:
        row = self._row(words)
        return not row.cut and len(row.ids) <= length

    def _row(self, words: Sequence[str]) -> TokenizedText:
        return self.facts.rows([" ".join(words)])[0]

    def _ask_long(self, rows: Sequence[TokenizedText], length: int) -> VectorsReply:
        try:
            reply = self._ask([self.input_of(row) for row in rows])
        except AttemptError as error:
            msg = (
                f"{self.endpoint.shown_url} takes no text of {length:,} tokens ({error}): start the server "
                "with a context of that length, or give the model a shorter max_seq_length"
            )
            raise EngineError(self.endpoint.without_key(msg)) from None
        self._check_vectors_of_long(reply, len(rows))
        return reply

    def _check_vectors_of_long(self, reply: VectorsReply, count: int) -> None:
        usable = np.isfinite(reply.vectors).all() and reply.vectors.any(axis=1).all()
        if reply.vectors.shape != (count, self.facts.dimension) or not usable:
            self._refuse("gives no usable vectors for long texts")

    def input_of(self, row: TokenizedText) -> Input:
        """Return what is sent for a text."""
        if self.found.takes_tokens:
            return tuple(row.ids.tolist())
        return cut_text(self.facts.tokenizer, row)

    def _ask(self, inputs: Sequence[Input]) -> VectorsReply:
        """Send one request, with the attempts of any other.

        Raises:
            AttemptError: If the server refuses it; the message says why.
        """
        reply = self._line.ask(EmbeddingRequest("probe", tuple(inputs), self.found.encoding_format))
        if not isinstance(reply, VectorsReply):
            msg = f"refuses a request ({reply.error})"
            raise AttemptError(msg, reply.error or "rejected", passing=False)
        return reply

    def close(self) -> None:
        """Close the connection; another request opens it again."""
        self._line.close()


class _Line:
    """One connection, over which one request goes at a time.

    In a thread of its own, as the caller's may have an event loop already (in a notebook).
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = replace(endpoint, concurrency=1)
        self._open: tuple[ThreadPoolExecutor, asyncio.AbstractEventLoop, Asker] | None = None

    def ask(self, request: EmbeddingRequest) -> Reply:
        if self._open is None:
            pool, loop = ThreadPoolExecutor(1, "probe"), asyncio.new_event_loop()
            self._open = pool, loop, Asker(self._endpoint, EMBEDDINGS, Counts())
        pool, loop, asker = self._open
        asked = asker.ask(asker.clients[0], EMBEDDINGS.body(self._endpoint, request))
        return pool.submit(loop.run_until_complete, asked).result()

    def close(self) -> None:
        if self._open is None:
            return
        (pool, loop, asker), self._open = self._open, None
        for client in asker.clients:
            pool.submit(loop.run_until_complete, client.close()).result()
        pool.submit(loop.run_until_complete, loop.shutdown_asyncgens()).result()
        pool.shutdown()
        loop.close()


def _cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosines of pairs of rows, two ``(N, dim)``, as ``(N,)``."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(lengths, 1e-30))


def _distance(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Return how far the first rows of two ``(N, dim)`` lie apart, of unit length."""
    return float(np.sqrt(max(2 - 2 * _cosines(left[:1], right[:1])[0], 0.0)))


def server_version(endpoint: Endpoint) -> str:
    """Return what a server says of its version, as far as it says anything.

    No key is sent: what is public is enough.

    Args:
        endpoint: Whom to ask.

    Returns:
        Such as ``0.11.0``; ``unknown`` where none of the known places says it.
    """
    root = unversioned_address(endpoint.shown_url, EMBEDDINGS.path.strip("/"))
    for path, names in _VERSIONS:
        try:
            with urllib.request.urlopen(f"{root}{path}", timeout=_VERSION_TIMEOUT) as reply:
                content: Any = json.loads(reply.read())
            for name in names:
                content = content[name]
        except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError, http.client.HTTPException):
            continue
        if isinstance(content, str) and content:
            return content
    return "unknown"
