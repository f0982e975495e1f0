"""Which engine generates the reasoning of a model that reasons itself, and what that changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.encoding.engines.vllm import import_vllm
from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.reasoning.generation import Generation
from reasonembed_mteb.reasoning.vllm_generation import VllmGeneration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel

    from reasonembed_mteb.reasoning.generation import Writer

TORCH, VLLM = "torch", "vllm"
GENERATORS = (TORCH, VLLM)
# Queries generated for at a time, each batch kept as a whole. vLLM fills its own batches from what it gets.
BATCH_SIZES = {TORCH: 16, VLLM: 256}
# Of vLLM's options, those that do not decide tokens: room on a card, and what stays off in any case.
_NOT_OF_TOKENS = ("gpu_memory_utilization", "kv_cache_memory_bytes", "trust_remote_code")


@dataclass(frozen=True)
class GeneratorChoice:
    """Who generates, where the model reasons itself; its vectors are read by the loaded model anyway.

    Attributes:
        name: ``torch`` (the loaded model) or ``vllm`` (vLLM in this process, with the weights once more).
        options: More arguments of `vllm.LLM`. They win over ours, except for `trust_remote_code`, which stays
            off. ``gpu_memory_utilization`` is 0.5 unless they say otherwise: the loaded model needs room too.
    """

    name: str = TORCH
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what a command line can get wrong.

        Raises:
            UnknownNameError: If there is no such generator; the nearest is named.
            ReasonEmbedError: If options are given for torch, which takes none.
        """
        if self.name not in GENERATORS:
            raise unknown_name("generator", self.name, GENERATORS)
        if self.options and self.name != VLLM:
            msg = f"generator options are vLLM's, and {self.name} takes none: give --generator vllm too"
            raise ReasonEmbedError(msg)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the tokens beyond the model, as JSON; empty for torch, whose keys stay what they were.

        Raises:
            ReasonEmbedError: If vLLM, whose version is part of it, is not installed.
        """
        if self.name == TORCH:
            return {}
        chosen = {name: value for name, value in self.options.items() if name not in _NOT_OF_TOKENS}
        return {"name": VLLM, "version": str(import_vllm().__version__), **chosen}

    @property
    def batch_size(self) -> int:
        """Queries generated for at a time, where nobody says."""
        return BATCH_SIZES[self.name]

    def length(self, own: int) -> int:
        """Return how many tokens a query and its reasoning may have.

        Args:
            own: The model's own length.
        """
        return min(own, int(self.options.get("max_model_len") or own))

    def writer(
        self,
        model: SentenceTransformer,
        generator: PreTrainedModel,
        ending: Sequence[int],
        *,
        source: str,
        length: int,
        revision: str | None,
    ) -> Writer:
        """Start whoever generates.

        Args:
            model: The embedder, which reads the vectors.
            generator: The same decoder with its head.
            ending: Ids with which a text ends.
            source: Hub name or directory of both.
            length: Most tokens of a query and its reasoning; see `length`.
            revision: Commit of a hub model.

        Raises:
            ReasonEmbedError: If vLLM is not installed, or cannot load the model.
        """
        if self.name == TORCH:
            return Generation(model, generator, ending)
        return VllmGeneration(model, generator, ending, self, source=source, length=length, revision=revision)
