"""Reasonings kept on disk by model, prompt, query and decoding, so that none is generated twice."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.endpoints.endpoint import Reply
from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import json_text, read_json_object, write_whole
from reasonembed_mteb.llm.cache import FILE, AnswerCache, KeepsAnswers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_MODELS = "models.json"
# Part of every key: to be raised when the same parts would mean another reasoning.
_FORMAT = "reasonembed-reasoning-1"


@dataclass(frozen=True)
class Reasoning:
    """What was reasoned about one query before it is embedded.

    Attributes:
        text: As a person reads it.
        stop: Why it ended: ``end``, ``length``, or ``given`` for one that was written elsewhere.
        tokens: How many were generated; 0 for one that was given.
        prompt_tokens: What they were generated after.
        seconds: Time it took, a batch's shared among its queries.
        ids: Its tokens, where the embedder itself generated them.
        vector: ``(dim,)`` float32, read where the tokens were generated; None for a text.
    """

    text: str
    stop: str
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    ids: tuple[int, ...] = ()
    vector: NDArray[np.float32] | None = None


def reasoning_key(parts: Mapping[str, Any]) -> bytes:
    """Return the hash by which a reasoning is kept.

    Args:
        parts: Everything that decides it: model, prompt, query, decoding.

    Returns:
        32 bytes.
    """
    text = json.dumps([_FORMAT, dict(parts)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).digest()


def known_models(folder: Path, name: str) -> list[str] | None:
    """Return the identities under which reasonings of a model may be kept, without loading its weights.

    Args:
        folder: Of a store, which may not be there.
        name: See `remember_model`.

    Returns:
        Empty where there are none; None where a store of an earlier version does not say.
    """
    if not (folder / FILE).is_file():
        return []
    held = read_json_object(folder / _MODELS)
    return None if held is None else [str(one) for one in held.get(name, [])]


def remember_model(folder: Path, name: str, identity: str) -> None:
    """Note which weights a model had, so that what is kept of it is known before they are loaded again.

    Args:
        folder: Of a store.
        name: The model, and its revision as far as it was given.
        identity: See `reasonembed_mteb.reasoning.reasoner.SelfReasoning.identity`.
    """
    held = read_json_object(folder / _MODELS) or {}
    if identity not in held.get(name, []):
        held[name] = [*held.get(name, []), identity]
        write_whole(folder / _MODELS, json_text(held))


class ReasoningStore(KeepsAnswers):
    """Reasonings in the file that holds language models' answers; see `AnswerCache` for what it survives."""

    def __init__(self, folder: Path) -> None:
        """Open the file or make it.

        Args:
            folder: Where it is.

        Raises:
            DataError: If it is damaged.
            ReasonEmbedError: If it cannot be made.
        """
        self._cache = AnswerCache(folder)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Reasoning]:
        """Look up many reasonings at once.

        Args:
            keys: See `reasoning_key`.

        Returns:
            Those that are there.

        Raises:
            DataError: If one of them is damaged.
        """
        return {key: self._read(reply) for key, reply in self._cache.find(keys).items()}

    def add(self, found: Iterable[tuple[bytes, Reasoning]]) -> None:
        """Keep reasonings in one transaction; they are safe once this returns.

        Args:
            found: Keys and reasonings.
        """
        self._cache.add((key, _written(one)) for key, one in found)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._cache)

    def _read(self, reply: Reply) -> Reasoning:
        try:
            held = json.loads(reply.text or "")
            vector = np.frombuffer(base64.b64decode(held["vector"]), dtype="<f4").astype(np.float32)
            return Reasoning(
                text=held["text"],
                stop=held["stop"],
                tokens=reply.completion_tokens,
                prompt_tokens=reply.prompt_tokens,
                seconds=float(held["seconds"]),
                ids=tuple(held["ids"]),
                vector=vector,
            )
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{self._cache.file} holds what is no reasoning ({error}): give another folder"
            raise DataError(msg) from error


def _written(one: Reasoning) -> Reply:
    vector = np.asarray(one.vector, dtype="<f4").tobytes()
    held = {
        "text": one.text,
        "stop": one.stop,
        "seconds": one.seconds,
        "ids": list(one.ids),
        "vector": base64.b64encode(vector).decode("ascii"),
    }
    return Reply(json.dumps(held), None, one.prompt_tokens, one.tokens)
