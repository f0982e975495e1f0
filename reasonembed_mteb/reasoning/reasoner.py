"""Reasoning by the embedder itself, query by query: its prompt, its batches, and what is kept of it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.encoding.packing import is_causal
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.files import fingerprint
from reasonembed_mteb.models.identity import describe_model, weights_hash
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.reasoning.generators import GeneratorChoice
from reasonembed_mteb.reasoning.heads import load_generator, on_backbone
from reasonembed_mteb.reasoning.latents import text_frame
from reasonembed_mteb.reasoning.sources import PLACE_OF_QUERY, check_prompt
from reasonembed_mteb.reasoning.store import Reasoning, ReasoningStore, reasoning_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.reasoning.generation import Decoding, Generated

# The query with its instruction, and what its reasoning follows. Our own wording.
PROMPT = "{query}\nReasoning: "
# Nothing of it can be changed.
_TORCH = GeneratorChoice()


class SelfReasoning:
    """An embedder that writes the reasoning itself, keeps it, and reads the vector after it."""

    def __init__(
        self,
        model: SentenceTransformer,
        name: str,
        decoding: Decoding,
        store: Path,
        *,
        prompt: str = PROMPT,
        batch_size: int | None = None,
        generator: GeneratorChoice = _TORCH,
        **loading: Any,
    ) -> None:
        """Load the model's head.

        Args:
            model: A decoder that pools its last token.
            name: Hub name or directory from which its head is loaded.
            decoding: How tokens are chosen.
            store: Folder of the reasonings that are kept.
            prompt: With ``{query}``, which stands for the query and its instruction.
            batch_size: Queries generated for at a time; None for the generator's own.
            generator: Which engine generates.
            **loading: Of `load_generator`, such as ``revision``.

        Raises:
            ReasonEmbedError: If the model is no decoder, has no head, or its context is shorter than the
                reasoning, or the generator is not installed or cannot load it.
        """
        decoding.check()
        self._batch_size = generator.batch_size if batch_size is None else batch_size
        if self._batch_size < 1:
            msg = f"{batch_size} queries at a time: give at least 1"
            raise ReasonEmbedError(msg)
        _check_decoder(model, name)
        transformer: Any = model[0]
        self._decoding, self._prompt = decoding, check_prompt(prompt)
        self._tokenizer: Any = model.tokenizer
        self._before, self._ending = text_frame(self._tokenizer)
        self._after = self._bare(prompt.partition(PLACE_OF_QUERY)[2])
        self._length = generator.length(context_length(model))
        self._room(self._length)
        head = load_generator(name, **{"dtype": model.dtype} | loading)
        # One copy of the backbone; its head's weights are part of the keys, whoever generates.
        head = on_backbone(head, transformer.auto_model)
        self._hash = fingerprint(describe_model(model), weights_hash(head))
        self._writer = generator.writer(
            model,
            head,
            self._ending,
            source=name,
            length=self._length,
            revision=loading.get("revision"),
        )
        self._store = ReasoningStore(store)

    def reasonings(self, texts: Sequence[str], limit: int, *, show_progress: bool = False) -> list[Reasoning]:
        """Return what is reasoned about each query: what is kept, and what is generated now.

        Batches are those of all the texts, kept or not, and each is kept as a whole, so that a run that was
        killed goes on with the same batches.

        Args:
            texts: Queries, each with its instruction.
            limit: Most tokens of a query with its prompt.
            show_progress: Whether a bar is shown.
        """
        prompts = [self._prompt_ids(text, self._room(limit)) for text in texts]
        keys = [self._key(prompt) for prompt in prompts]
        found = self._store.find(list(dict.fromkeys(keys)))
        by_key = dict(zip(keys, prompts, strict=True))
        # Longest first: rows of one batch are about as long, and memory runs out at once or never.
        order = sorted(by_key, key=lambda key: (-len(by_key[key]), key))
        batches = [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        with _bar(len(order), show_progress) as bar:
            for batch in batches:
                missing = [key for key in batch if key not in found]
                found |= self._generate(missing, [by_key[key] for key in missing]) if missing else {}
                bar.update(len(batch))
        return [found[key] for key in keys]

    def _generate(self, keys: list[bytes], prompts: list[list[int]]) -> dict[bytes, Reasoning]:
        seeds = [int.from_bytes(key[:7], "little") for key in keys]
        started = time.perf_counter()
        made = self._writer.run(prompts, self._decoding, seeds)
        seconds = (time.perf_counter() - started) / len(keys)
        found = {
            key: self._reasoning(one, len(prompt), seconds)
            for key, prompt, one in zip(keys, prompts, made, strict=True)
        }
        self._store.add(found.items())
        return found

    def _reasoning(self, one: Generated, prompt: int, seconds: float) -> Reasoning:
        text = self._tokenizer.decode(one.ids, skip_special_tokens=True)
        vector = one.vector.numpy()
        return Reasoning(text, one.stop, one.tokens, prompt, seconds, one.ids, vector)

    def _key(self, prompt: Sequence[int]) -> bytes:
        # The tokens are the prompt, the instruction and the query, at the length in force.
        parts = {
            "model": self._hash,
            "prompt": list(prompt),
            "ending": self._ending,
            "decoding": asdict(self._decoding),
        }
        # Another engine may choose other tokens; torch's keys are those of before there was another.
        engine = self._writer.identity
        return reasoning_key(parts | ({"engine": engine} if engine else {}))

    def _prompt_ids(self, text: str, room: int) -> list[int]:
        query = self._bare(self._prompt.partition(PLACE_OF_QUERY)[0] + text)
        return [*self._before, *query[:room], *self._after]

    def _bare(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _room(self, limit: int) -> int:
        """Return how many tokens of a query fit beside the prompt, the reasoning and the ending."""
        around = len(self._before) + len(self._after) + len(self._ending)
        room = min(limit, self._length - self._decoding.max_tokens) - around
        if room < 1:
            msg = (
                f"{self._decoding.max_tokens:,} reasoning tokens and {around} around a query leave no room "
                f"for it in the model's {min(limit, self._length):,}: give fewer, or raise its max_seq_length"
            )
            raise ReasonEmbedError(msg)
        return room

    @property
    def kept(self) -> int:
        """How many reasonings the store holds."""
        return len(self._store)

    def close(self) -> None:
        """Close the reasonings on disk, and let the generator go."""
        self._store.close()
        self._writer.close()


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Any]:
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="Reasoning", unit="query", disable=not shown) as bar:
        yield bar


def _check_decoder(model: SentenceTransformer, name: str) -> None:
    backbone = getattr(model[0], "auto_model", None)
    if backbone is None or not is_causal(backbone):
        msg = f"{name} is no decoder, so that it cannot reason itself: give reasonings by a file or a server"
        raise ReasonEmbedError(msg)
    if getattr(backbone, "peft_config", None):
        msg = (
            f"{name} is an adapter: merge it into its base and save that, so that it has a head to reason by"
        )
        raise ReasonEmbedError(msg)
    if isinstance(model, ReasonEmbed) and not model.pools_last_token:
        msg = f"{name} does not pool the last token, which is what can be read after a reasoning"
        raise ReasonEmbedError(msg)


def context_length(model: SentenceTransformer) -> int:
    """Return how many tokens a model reads: its own length, and no more than it has positions for.

    Args:
        model: Any.
    """
    own = model.max_seq_length
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    most = getattr(config, "max_position_embeddings", None)
    return min(one for one in (own, most, 1 << 30) if one is not None)
