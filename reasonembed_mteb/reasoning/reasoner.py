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
from reasonembed_mteb.reasoning.latents import context_length, text_frame
from reasonembed_mteb.reasoning.sources import PLACE_OF_QUERY, check_prompt
from reasonembed_mteb.reasoning.store import Reasoning, ReasoningStore, reasoning_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.reasoning.generation import Decoding, Generated

# The query with its instruction, and what its reasoning follows. Our own wording.
PROMPT = "{query}\nReasoning: "
# Characters of an instruction that a message shows.
_SHOWN = 40
# Nothing of it can be changed.
_TORCH = GeneratorChoice()


class PromptFrame:
    """What stands around a query whose reasoning is generated, as token ids, and the room that it leaves.

    Attributes:
        ending: Ids after which the vector is read: latents, EOS, or none.
    """

    def __init__(self, tokenizer: Any, prompt: str, length: int, max_tokens: int) -> None:  # noqa: ANN401
        """Read what stands around a query.

        Args:
            tokenizer: The model's.
            prompt: With ``{query}``, which stands for the query and its instruction.
            length: Most tokens of a query and its reasoning.
            max_tokens: Most tokens of the reasoning.

        Raises:
            ReasonEmbedError: If the prompt has no place for the query, or there is no room for one.
        """
        self._tokenizer, self._length, self._max_tokens = tokenizer, length, max_tokens
        self._first, _, last = check_prompt(prompt).partition(PLACE_OF_QUERY)
        self._before, self.ending = text_frame(tokenizer)
        self._after = self._bare(last)
        self._room(length)

    def ids(self, text: str, limit: int) -> list[int]:
        """Return a query as it is read, cut where it is too long.

        Args:
            text: With its instruction.
            limit: Most tokens of a query with its prompt.

        Raises:
            ReasonEmbedError: If there is no room for one.
        """
        query = self._bare(self._first + text)
        return [*self._before, *query[: self._room(limit)], *self._after]

    def check_prefix(self, prefix: str, limit: int) -> None:
        """Refuse an instruction that leaves no room for its query: all would have one reasoning.

        Args:
            prefix: The instruction, as it stands before each query.
            limit: As of `ids`.

        Raises:
            ReasonEmbedError: If there is none.
        """
        room, taken = self._room(limit), len(self._bare(self._first + prefix))
        if room <= taken:
            msg = (
                f"the instruction {prefix[:_SHOWN]!r} has {taken:,} tokens, and {room:,} are left for it and "
                "its query: give fewer reasoning tokens or a shorter instruction, or raise the model's "
                "max_seq_length"
            )
            raise ReasonEmbedError(msg)

    def _bare(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _room(self, limit: int) -> int:
        """Return how many tokens of a query fit beside the prompt, the reasoning and the ending."""
        around = len(self._before) + len(self._after) + len(self.ending)
        room = min(limit, self._length - self._max_tokens) - around
        if room < 1:
            msg = (
                f"{self._max_tokens:,} reasoning tokens and {around} around a query leave no room "
                f"for it in the model's {min(limit, self._length):,}: give fewer, or raise its max_seq_length"
            )
            raise ReasonEmbedError(msg)
        return room


class SelfReasoning:
    """An embedder that writes the reasoning itself, keeps it, and reads the vector after it.

    Attributes:
        identity: Hash of everything of the model that decides its reasonings, its weights among it.
    """

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
        self._decoding = decoding
        self._tokenizer: Any = model.tokenizer
        length = generator.length(context_length(model))
        self._frame = PromptFrame(self._tokenizer, prompt, length, decoding.max_tokens)
        head = load_generator(name, **{"dtype": model.dtype} | loading)
        # One copy of the backbone; its head's weights are part of the keys, whoever generates.
        head = on_backbone(head, transformer.auto_model)
        self.identity = fingerprint(describe_model(model), weights_hash(head))
        # Before an engine takes its memory: a folder that cannot be used is said first.
        self._store = ReasoningStore(store)
        self._writer = generator.writer(
            model,
            head,
            self._frame.ending,
            source=name,
            length=length,
            revision=loading.get("revision"),
        )

    def reasonings(
        self, texts: Sequence[str], limit: int, *, prefix: str = "", show_progress: bool = False
    ) -> list[Reasoning]:
        """Return what is reasoned about each query: what is kept, and what is generated now.

        Batches are those of all the texts, kept or not, and each is kept as a whole, so that a run that was
        killed goes on with the same batches.

        Args:
            texts: Queries, each with its instruction.
            limit: Most tokens of a query with its prompt.
            prefix: The instruction with which each text begins.
            show_progress: Whether a bar is shown.

        Raises:
            ReasonEmbedError: If there is no room for a query.
        """
        self._frame.check_prefix(prefix, limit)
        prompts = [self._frame.ids(text, limit) for text in texts]
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
        return own_key(self.identity, prompt, self._frame.ending, self._decoding, self._writer.identity)

    @property
    def kept(self) -> int:
        """How many reasonings the store holds."""
        return len(self._store)

    def close(self) -> None:
        """Close the reasonings on disk, and let the generator go."""
        self._store.close()
        self._writer.close()


def own_key(
    model: str, prompt: Sequence[int], ending: Sequence[int], decoding: Decoding, engine: Mapping[str, Any]
) -> bytes:
    """Return the hash by which a model's own reasoning is kept.

    Args:
        model: `SelfReasoning.identity`.
        prompt: Ids of the prompt, the instruction and the query, at the length in force.
        ending: Ids after which the vector is read.
        decoding: How tokens are chosen.
        engine: See `reasonembed_mteb.reasoning.generation.Writer.identity`.

    Returns:
        32 bytes.
    """
    parts = {"model": model, "prompt": list(prompt), "ending": list(ending), "decoding": asdict(decoding)}
    # Another engine may choose other tokens; torch's keys are those of before there was another.
    return reasoning_key(parts | ({"engine": dict(engine)} if engine else {}))


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
