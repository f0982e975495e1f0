"""A stand-in of `vllm.LLM` that generates: the whole text read anew for each token, by transformers alone."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pytest

VERSION = "0.99"


@dataclass
class SamplingParams:
    """vLLM's, as far as it is used."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    bad_words: list[str] = field(default_factory=list)
    detokenize: bool = True


class StandIn:
    """Generates as `vllm.LLM` does, greedily, whatever the temperature.

    Attributes:
        made: What each was made with.
        asked: Prompts and sampling of each call.
        released: How often vLLM's memory was let go.
        deaf: Whether words that are forbidden are written nevertheless.
        most: Tokens after which it stops by itself.
    """

    made: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[tuple[list[dict[str, Any]], list[SamplingParams]]]] = []
    released = 0
    deaf = False
    most = 1 << 20

    def __init__(self, **arguments: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if arguments["dtype"] == "broken":
            msg = "no such dtype\nmore lines"
            raise ValueError(msg)
        StandIn.made.append(arguments)
        self.model = AutoModelForCausalLM.from_pretrained(arguments["model"], dtype=arguments["dtype"]).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(arguments["tokenizer"])

    def generate(
        self, prompts: list[dict[str, Any]], *, sampling_params: list[SamplingParams], use_tqdm: bool
    ) -> list[Any]:
        """Generate after each prompt."""
        assert use_tqdm is False
        StandIn.asked.append((prompts, sampling_params))
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=self._written(one["prompt_token_ids"], how))])
            for one, how in zip(prompts, sampling_params, strict=True)
        ]

    def _written(self, prompt: list[int], how: SamplingParams) -> list[int]:
        import torch

        words = [self.tokenizer.encode(word, add_special_tokens=False) for word in how.bad_words]
        forbidden = [ids[0] for ids in words if len(ids) == 1 and not self.deaf]
        ends = {*how.stop_token_ids, *(() if how.ignore_eos else (self.tokenizer.eos_token_id,))}
        found: list[int] = []
        with torch.inference_mode():
            while len(found) < min(how.max_tokens, self.most) and not ends & set(found):
                logits = self.model(torch.tensor([[*prompt, *found]])).logits[0, -1]
                logits[forbidden] = -torch.inf
                found.append(int(logits.argmax()))
        return found


def install(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """Put the stand-in where vLLM would be, anew."""
    package, distributed = ModuleType("vllm"), ModuleType("vllm.distributed")
    package.__dict__.update(LLM=StandIn, SamplingParams=SamplingParams, __version__=VERSION)

    def release() -> None:
        StandIn.released += 1

    distributed.__dict__["cleanup_dist_env_and_memory"] = release
    for module in (package, distributed):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    # There is nothing to collect, and much to look through.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    StandIn.made.clear()
    StandIn.asked.clear()
    for name, value in (("released", 0), ("deaf", False), ("most", 1 << 20)):
        monkeypatch.setattr(StandIn, name, value)
    return StandIn
