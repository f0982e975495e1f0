"""Requests for vectors to an OpenAI-compatible server: what is sent, and how an answer is read."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.endpoints.endpoint import Endpoint, Reply
from reasonembed_mteb.endpoints.retries import AttemptError, Service, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # A text, or its token ids.
    Input = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Some inputs whose vectors are asked for.

    Attributes:
        key: The caller's id of them, unique in a call.
        inputs: Texts, or token ids of texts; one kind a request.
        encoding_format: ``base64`` or ``float``: how vectors are to be written.
        n_sample: Nothing is sampled.
    """

    key: str
    inputs: tuple[Input, ...]
    encoding_format: str = "base64"
    n_sample: int = 0


@dataclass(frozen=True)
class VectorsReply(Reply):
    """An answer.

    Attributes:
        vectors: ``(N, dim)`` in the order of the inputs; rows that are not as long as the first are an error.
        counted: Whether the server says how many tokens it read; ``prompt_tokens`` are they.
    """

    vectors: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    counted: bool = False


def _body(endpoint: Endpoint, request: EmbeddingRequest) -> dict[str, Any]:
    inputs = [one if isinstance(one, str) else list(one) for one in request.inputs]
    body = {"model": endpoint.model, "input": inputs, "encoding_format": request.encoding_format}
    filled = body | (endpoint.extra_body or {})
    return {name: value for name, value in filled.items() if value is not None}


def read_vectors(raw: bytes) -> VectorsReply:
    """Read the body of a successful reply.

    Args:
        raw: ``{"data": [{"index", "embedding"}], "usage": {...}}``; a vector as a list or as base64, and the
            places in every entry or in none.

    Raises:
        AttemptError: If it holds no vectors of one length.
    """
    try:
        body = json.loads(raw)
        data = _in_order(body["data"])
        vectors = [_vector(one["embedding"]) for one in data]
        usage = body.get("usage") or {}
        count = usage.get("prompt_tokens") or usage.get("total_tokens")
        stacked = np.stack(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)
        return VectorsReply(None, None, int(count or 0), vectors=stacked, counted=bool(count))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = f"the answer holds no vectors of one length: {shown(raw.decode('utf-8', 'replace'))}"
        raise AttemptError(msg, "bad_answer") from error


def _in_order(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return entries by their places; those of a server that names none are in their order already."""
    if all("index" not in one for one in data):
        return data
    if sorted(one["index"] for one in data) != list(range(len(data))):
        msg = "its entries do not have each index once"
        raise ValueError(msg)
    return sorted(data, key=lambda one: int(one["index"]))


def _vector(given: Any) -> NDArray[np.float32]:  # noqa: ANN401 - any JSON
    """Read one vector; null, as some servers write NaN, is NaN."""
    if isinstance(given, str):
        return np.frombuffer(base64.b64decode(given, validate=True), dtype="<f4").astype(np.float32)
    vector = np.asarray(given, dtype=np.float32)
    if vector.ndim != 1:
        raise TypeError
    return vector


EMBEDDINGS = Service(
    "/embeddings",
    read_vectors,
    _body,
    EmbeddingRequest("probe", ("A known text.",), "float"),
    remedy="Vectors that are in the store stay there: run again to go on",
    extra="api",
)
