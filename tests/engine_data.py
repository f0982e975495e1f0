"""An embedding server made of a small model: what it answers, and the ways in which it may go wrong."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from stub_server import Reply, StubServer, failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from stub_server import Seen

EMBEDDINGS = "/v1/embeddings"


def vector_of(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """Compute one text's vector by the modules alone."""
    import torch

    features = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
    }
    with torch.inference_mode():
        return model(features)["sentence_embedding"][0].float().numpy()


class Served:
    """Answers requests for vectors by a model's own modules.

    Attributes:
        takes_tokens: Whether token ids are taken.
        takes_base64: Whether vectors can be asked for in base64.
        most_tokens: Where texts are cut without a word; None for nowhere.
        most_texts: Texts that one request may hold.
        counts: Whether the tokens that were read are said.
        change: Changes the vectors ``(N, dim)`` before they are sent.
        sent: What came in, request after request.
    """

    def __init__(self, model: Any, **chosen: Any) -> None:
        self.model = model
        self.takes_tokens: bool = chosen.pop("takes_tokens", True)
        self.takes_base64: bool = chosen.pop("takes_base64", True)
        self.most_tokens: int | None = chosen.pop("most_tokens", None)
        self.most_texts: int = chosen.pop("most_texts", 1000)
        self.counts: bool = chosen.pop("counts", True)
        self.change: Callable[[NDArray[np.float32]], NDArray[np.float32]] = chosen.pop("change", lambda v: v)
        self.sent: list[list[Any]] = []
        assert not chosen, chosen

    def __call__(self, seen: Seen) -> Reply:
        """Answer one request."""
        inputs = seen.body["input"]
        self.sent.append(inputs)
        if len(inputs) > self.most_texts:
            return failure(413, f"batch size {len(inputs)} > maximum allowed batch size {self.most_texts}")
        if not self.takes_tokens and not isinstance(inputs[0], str):
            return failure(422, "input must be a text or a list of texts")
        as_text = seen.body.get("encoding_format") == "base64"
        if as_text and not self.takes_base64:
            return failure(400, "encoding_format base64 is not known")
        ids = [one if isinstance(one, list) else self.model.tokenizer(one)["input_ids"] for one in inputs]
        ids = [one[: self.most_tokens] for one in ids]
        vectors = self.change(np.stack([vector_of(self.model, one) for one in ids]))
        return vectors_reply(vectors, sum(map(len, ids)) if self.counts else None, as_text=as_text)


def vectors_reply(vectors: NDArray[np.float32], tokens: int | None, *, as_text: bool) -> Reply:
    """Write vectors as the servers do, the last first: their places are said."""
    data = [
        {"object": "embedding", "index": place, "embedding": _written(vector, as_text)}
        for place, vector in enumerate(vectors)
    ]
    body: dict[str, Any] = {"object": "list", "model": "stub", "data": data[::-1]}
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Reply(json.dumps(body).encode())


def _written(vector: NDArray[np.float32], as_text: bool) -> Any:
    if as_text:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [None if value != value else value for value in vector.tolist()]


def serving(script: Any, **options: Any) -> StubServer:
    """Return a server that answers at the address of embeddings."""
    pages = {"/version": {"version": "1.2.3"}, "/v1/models": {"data": [{"id": "small"}]}}
    return StubServer(script, paths=(EMBEDDINGS,), pages=options.pop("pages", pages), **options)


def served_encoder(folder: Path, server: StubServer, **choice: Any) -> Any:
    """Load a checkpoint without weights, its vectors computed by a server."""
    from reasonembed_mteb.models.engines import EngineChoice
    from reasonembed_mteb.models.mteb_encoder import load_reason_embed

    options = {
        "base_url": server.base_url,
        "served_model": "small",
        "backoff": 0.01,
        "timeout": 10.0,
    } | choice
    return load_reason_embed("small", path=str(folder), engine=EngineChoice("api", **options))
