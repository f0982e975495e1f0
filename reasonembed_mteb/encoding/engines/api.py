"""Vectors from an OpenAI-compatible server: many requests at a time, each text as the model would read it."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.encoding.engines.engine import EngineError
from reasonembed_mteb.encoding.engines.probing import Probe, server_version
from reasonembed_mteb.encoding.engines.requests import EMBEDDINGS, EmbeddingRequest, VectorsReply
from reasonembed_mteb.encoding.output import TextsError
from reasonembed_mteb.endpoints.limits import Counts, Usage
from reasonembed_mteb.endpoints.sending import Sender, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.encoding.engines.engine import ModelFacts, TokenizedText
    from reasonembed_mteb.endpoints.endpoint import Endpoint, Reply

# Texts a request: what TEI takes by default (--max-client-batch-size); the others take more.
TEXTS = 32
# Tokens a request, so that long texts do not wait for each other in one.
TOKENS = 16_384


class ApiEngine:
    """An engine over an endpoint; see `reasonembed_mteb.encoding.engines.engine.Engine`.

    A server that takes token ids gets them, and so reads exactly what the model would; one that takes texts
    alone gets them cut by the model's own tokenizer.
    """

    def __init__(self, endpoint: Endpoint, facts: ModelFacts, *, tokens: int | None = None) -> None:
        """Ask the server for known texts.

        Args:
            endpoint: Whom to ask.
            facts: The model that it is to serve.
            tokens: Tokens a request; None for 16,384.

        Raises:
            EngineError: If the server does not give the model's vectors; its fault is named.
            EndpointError: If it cannot be used.
            MissingExtraError: If openai or tenacity is not installed.
        """
        self._endpoint, self._facts, self._tokens = endpoint, facts, tokens or TOKENS
        self._probe = Probe(endpoint, facts)
        try:
            self._serving = self._probe.start()
        finally:
            self._probe.close()
        self._version = server_version(endpoint)
        self._counts = Counts()
        self._sender: Sender | None = None
        # Called once: by `close`, or with the engine's end.
        self._end: Callable[[], object] | None = None

    def __reduce__(self) -> tuple[Callable[[], ApiEngine], tuple[()]]:
        """Start anew in another process, from which the server is asked then, its known texts first."""
        return partial(ApiEngine, self._endpoint, self._facts, tokens=self._tokens), ()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the vectors; not the address, since a model may move to another server."""
        return {
            "name": "api",
            "version": self._version,
            "model": self._endpoint.model,
            "extra_body": self._endpoint.extra_body,
            "input": "tokens" if self._serving.takes_tokens else "text",
        }

    @property
    def usage(self) -> Usage:
        """What has been used so far, as the server counts it."""
        counts = self._counts
        return Usage(counts.requests, 0, counts.prompt_tokens, 0, None, counts.retries)

    def embed(self, rows: Sequence[TokenizedText]) -> NDArray[np.float32]:
        """Return the server's vectors ``(N, dim)``; see `Engine`."""
        longest = max(len(row.ids) for row in rows)
        try:
            self._probe.read_whole(longest, max(longest, int(self._facts.tokenizer.model_max_length)))
        finally:
            self._probe.close()
        out = np.zeros((len(rows), self._facts.dimension), dtype=np.float32)
        failed = self._ask(rows, list(self._groups(rows)), out)
        # A group that failed as a whole may hold one text that the server does not take.
        alone = [[place] for group, _ in failed for place in group]
        if alone and (left := self._ask(rows, alone, out)):
            positions = [place for group, _ in left for place in group]
            why = ", ".join(sorted({error for _, error in left}))
            msg = f"get no vector from {self._endpoint.shown_url} ({why})"
            raise TextsError(sorted(positions), msg)
        return out

    def _groups(self, rows: Sequence[TokenizedText]) -> list[list[int]]:
        """Put texts of about one length into requests."""
        groups: list[list[int]] = []
        held = 0
        for place in sorted(range(len(rows)), key=lambda one: -len(rows[one].ids)):
            tokens = len(rows[place].ids)
            if not groups or len(groups[-1]) == TEXTS or held + tokens > self._tokens:
                groups.append([])
                held = 0
            groups[-1].append(place)
            held += tokens
        return groups

    def _ask(
        self, rows: Sequence[TokenizedText], groups: Sequence[list[int]], out: NDArray[np.float32]
    ) -> list[tuple[list[int], str]]:
        """Fill in the vectors of groups; return the groups that have none, and why."""
        slots = [Slot(self._request(rows, group), b"") for group in groups]
        sender = self._started()
        failed = []
        try:
            sender.submit(slots)
            for group, slot in zip(groups, slots, strict=True):
                reply = sender.wait(slot)
                if isinstance(reply, VectorsReply):
                    out[group] = self._checked(reply, len(group))
                else:
                    failed.append((group, reply.error or "no answer"))
        except BaseException:
            # What is still on its way belongs to nobody.
            self.close()
            raise
        return failed

    def _request(self, rows: Sequence[TokenizedText], group: Sequence[int]) -> EmbeddingRequest:
        inputs = tuple(self._probe.input_of(rows[place]) for place in group)
        key = f"text {group[0]}" if len(group) == 1 else f"{len(group)} texts from {group[0]}"
        return EmbeddingRequest(key, inputs, self._serving.encoding_format)

    def _checked(self, reply: VectorsReply, count: int) -> NDArray[np.float32]:
        if reply.vectors.shape != (count, self._facts.dimension):
            given, dimension = reply.vectors.shape
            msg = (
                f"{self._endpoint.shown_url} gives {given} vectors of {dimension} dimensions for {count} "
                f"texts, and those of {self._facts.name} have {self._facts.dimension}: it served the model "
                "at first, so look at its log, and run again"
            )
            raise EngineError(msg)
        return reply.vectors

    def _started(self) -> Sender:
        if self._sender is None:
            self._sender = Sender(
                self._endpoint, EMBEDDINGS, _keep_nothing, None, self._counts, known=lambda: True
            )
            self._end = weakref.finalize(self, self._sender.close)
        return self._sender

    def close(self) -> None:
        """Break off what is on its way, and close the connections; what is asked later opens them again."""
        if self._end is not None:
            end, self._end, self._sender = self._end, None, None
            end()


def _keep_nothing(rows: list[tuple[bytes, Reply]]) -> None:
    """Keep no answers: the embedding store keeps vectors."""
