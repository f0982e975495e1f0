"""Texts compressed into a memory of K positions, and answers read from it.

A memory is what a decoder keeps of its K latent tokens: the keys and values of every layer, from which
reading is exact (a masked forward pass over text, latents and answer gives the same), or only their last
hidden states, which are read as K input embeddings.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm.auto import trange

from reasonembed_mteb.encoding.tokenizing import check_room
from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.files import json_hash
from reasonembed_mteb.models.special_tokens import latent_in
from reasonembed_mteb.reasoning.heads import load_generator
from reasonembed_mteb.reasoning.joint import row_losses
from reasonembed_mteb.reasoning.latents import find_latents, text_frame
from reasonembed_mteb.reasoning.masks import NOTHING, check_backbone, check_window
from reasonembed_mteb.reasoning.memory import CACHE, HIDDEN, LatentMemory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase


class Reading(NamedTuple):
    """What is predicted of an answer from a memory.

    Attributes:
        losses: Cross entropy ``(N,)`` of each answer, summed over its tokens and EOS, in float32 or wider.
        tokens: ``(N,)``, how many these are.
    """

    losses: Tensor
    tokens: Tensor


class _Context(NamedTuple):
    """What stands before a question: keys and values by layer, which of them count, and what comes next.

    ``mask`` is ``(B, S)``, ``lengths`` ``(B,)`` the next token's position, ``state`` ``(B, D)`` the last
    hidden state before it, or None where nothing stands before.
    """

    cache: DynamicCache
    mask: Tensor
    lengths: Tensor
    state: Tensor | None


class LatentCompressor:
    """Compresses texts by a decoder with latent tokens, and reads answers from what is kept."""

    def __init__(
        self, generator: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> None:
        """Take a loaded model.

        Args:
            generator: The decoder with its head; see `load_generator`.
            tokenizer: Its tokenizer, which ends texts with the latents.
            max_tokens: Tokens of a text with its latents; None takes the tokenizer's.

        Raises:
            ReasonEmbedError: If the model has no latent tokens, or is no decoder, or ``max_tokens`` has no
                room for a text beside them.
        """
        self.generator: Any = generator
        self.tokenizer: Any = tokenizer
        self.latents = find_latents(tokenizer)
        if not self.latents.count:
            msg = (
                "the model has no latent tokens, into which texts are compressed: add some by "
                "`reasonembed latents add MODEL --count 4 --output DIR`, and train them"
            )
            raise ReasonEmbedError(msg)
        self._after = len(text_frame(tokenizer)[1])
        check_backbone(self.generator.base_model)
        limit = getattr(self.generator.config, "max_position_embeddings", None) or 1 << 30
        self.max_tokens = min(tokenizer.model_max_length if max_tokens is None else max_tokens, limit)
        check_room(tokenizer, self.max_tokens, "max_tokens")

    @classmethod
    def from_pretrained(
        cls, name: str, *, device: str | None = None, max_tokens: int | None = None
    ) -> LatentCompressor:
        """Load a model.

        Args:
            name: Hub name or directory, such as one that `reasonembed latents add` wrote.
            device: Such as ``cuda:0``; None takes the fastest there is.
            max_tokens: As in the constructor.

        Raises:
            ReasonEmbedError: If it cannot compress: see the constructor and `load_generator`.
        """
        from sentence_transformers.util import get_device_name
        from transformers import AutoTokenizer

        generator: Any = load_generator(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        return cls(generator.to(device or get_device_name()), tokenizer, max_tokens)

    @cached_property
    def model_hash(self) -> str:
        """Hash of weights and tokenizer, by which a memory knows its model."""
        from reasonembed_mteb.models.identity import tokenizer_hash, weights_hash

        return json_hash([weights_hash(self.generator), tokenizer_hash(self.tokenizer)])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = self.generator.device
        return found

    @torch.no_grad()
    def compress(self, texts: Sequence[str], *, kind: str = CACHE, batch_size: int = 8) -> LatentMemory:
        """Compress texts.

        Args:
            texts: Any; those over ``max_tokens`` are cut, and keep their latents.
            kind: ``cache``: keys and values of the K positions; ``hidden``: their last hidden states.
            batch_size: Texts of a forward pass.

        Returns:
            The memory, on the CPU.

        Raises:
            ReasonEmbedError: If there are no texts, one holds a latent's name, or the kind is unknown.
        """
        if kind not in (CACHE, HIDDEN):
            raise unknown_name("kind of memory", kind, (CACHE, HIDDEN))
        if isinstance(texts, str) or not texts:
            msg = "give a list of at least one text to compress"
            raise ReasonEmbedError(msg)
        (texts,) = _paired(len(texts), texts=texts)
        parts = [self._compress(texts[start:end], kind) for start, end in _batches(len(texts), batch_size)]
        return LatentMemory(
            kind,
            torch.cat([part.keys for part in parts], dim=1),
            torch.cat([part.values for part in parts], dim=1),
            torch.cat([part.states for part in parts]),
            torch.cat([part.lengths for part in parts]),
            self.model_hash,
        )

    def _compress(self, texts: Sequence[str], kind: str) -> LatentMemory:
        made = self.tokenizer(
            list(texts),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        check_window(self.generator.config, made["input_ids"].shape[1])
        output = self.generator.base_model(
            input_ids=made["input_ids"], attention_mask=made["attention_mask"], use_cache=kind == CACHE
        )
        places = self.latents.positions(made["input_ids"])
        rows = torch.arange(len(places), device=places.device)[:, None]
        states = output.last_hidden_state[rows, places]
        lengths = made["attention_mask"].sum(dim=1)
        if kind == HIDDEN:
            nothing = states.new_zeros(0, len(states), 0, 0, 0)
            return LatentMemory(kind, nothing.cpu(), nothing.cpu(), states.cpu(), lengths.cpu())
        layers = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        # (B, heads, T, size) to (B, heads, K, size), layer by layer.
        keys, values = (
            torch.stack([layer[part].transpose(1, 2)[rows, places].transpose(1, 2) for layer in layers])
            for part in (0, 1)
        )
        return LatentMemory(kind, keys.cpu(), values.cpu(), states[:, -1:].cpu(), lengths.cpu())

    def generate(
        self,
        memory: LatentMemory,
        questions: str | Sequence[str],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 8,
    ) -> list[str]:
        """Write an answer to a question about each text, greedily, reading its memory alone.

        Args:
            memory: Of N texts.
            questions: One for all texts, or N; empty for none.
            max_new_tokens: Tokens of an answer at most.
            batch_size: Answers at a time.

        Returns:
            N answers.

        Raises:
            ReasonEmbedError: If another model made the memory, the numbers do not fit, or a text holds a
                latent's name.
        """
        asked = self._questions(memory, questions)
        return [
            answer
            for start, end in _batches(len(memory), batch_size)
            for answer in self._write(
                self._context(memory.rows(start, end)), asked[start:end], max_new_tokens
            )
        ]

    def generate_from_text(
        self,
        texts: Sequence[str],
        questions: Sequence[str],
        *,
        tokens: int | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 8,
    ) -> list[str]:
        """Write an answer as `generate` does, reading the text itself: what a memory is compared with.

        Args:
            texts: N texts.
            questions: N questions.
            tokens: Tokens of each text that are read, from its start; None for all, 0 for no text.
            max_new_tokens: Tokens of an answer at most.
            batch_size: Answers at a time.

        Raises:
            ReasonEmbedError: If the numbers do not fit, or a text holds a latent's name.
        """
        texts, asked = _paired(len(texts), texts=texts, questions=questions)
        return [
            answer
            for start, end in _batches(len(texts), batch_size)
            for answer in self._write(
                self._text_context(texts[start:end], tokens), asked[start:end], max_new_tokens
            )
        ]

    def answer_losses(
        self, memory: LatentMemory, questions: Sequence[str], answers: Sequence[str], *, batch_size: int = 8
    ) -> Reading:
        """Compute the teacher-forced cross entropy of answers, read from a memory.

        Args:
            memory: Of N texts.
            questions: N questions, which are given.
            answers: N answers.
            batch_size: Answers at a time.

        Raises:
            ReasonEmbedError: As of `generate`.
        """
        asked = self._questions(memory, questions)
        (wanted,) = _paired(len(memory), answers=answers)
        return _joined(
            self._losses(self._context(memory.rows(start, end)), asked[start:end], wanted[start:end])
            for start, end in _batches(len(memory), batch_size)
        )

    def answer_losses_from_text(
        self,
        texts: Sequence[str],
        questions: Sequence[str],
        answers: Sequence[str],
        *,
        tokens: int | None = None,
        batch_size: int = 8,
    ) -> Reading:
        """Compute the cross entropy as `answer_losses` does, reading the text itself.

        Args:
            texts: N texts.
            questions: N questions.
            answers: N answers.
            tokens: As of `generate_from_text`.
            batch_size: Answers at a time.

        Raises:
            ReasonEmbedError: As of `generate_from_text`.
        """
        texts, asked, wanted = _paired(len(texts), texts=texts, questions=questions, answers=answers)
        return _joined(
            self._losses(self._text_context(texts[start:end], tokens), asked[start:end], wanted[start:end])
            for start, end in _batches(len(texts), batch_size)
        )

    def text_tokens(self, text: str) -> list[int]:
        """Return a text's tokens without its latents, and without what else would end it.

        Args:
            text: Any.
        """
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        return ids[: len(ids) - self._after]

    def _questions(self, memory: LatentMemory, questions: str | Sequence[str]) -> list[str]:
        if memory.model != self.model_hash:
            msg = "the memory was made by another model, or by other weights of it: compress the texts again"
            raise ReasonEmbedError(msg)
        asked = [questions] * len(memory) if isinstance(questions, str) else questions
        return _paired(len(memory), questions=asked)[0]

    @torch.no_grad()
    def _context(self, memory: LatentMemory) -> _Context:
        states = memory.states.to(self.device)
        mask = torch.ones(len(memory), memory.positions, dtype=torch.long, device=self.device)
        if memory.kind == CACHE:
            layers = zip(memory.keys.to(self.device), memory.values.to(self.device), strict=True)
            return _Context(_cache(layers), mask, memory.lengths.to(self.device), states[:, -1])
        output = self.generator.base_model(inputs_embeds=states, attention_mask=mask, use_cache=True)
        return _Context(output.past_key_values, mask, mask.sum(dim=1), output.last_hidden_state[:, -1])

    @torch.no_grad()
    def _text_context(self, texts: Sequence[str], tokens: int | None) -> _Context:
        ids, mask = self._padded([self.text_tokens(text)[:tokens] for text in texts])
        lengths = mask.sum(dim=1)
        if not ids.shape[1]:
            return _Context(_cache(()), mask, lengths, None)
        output = self._forward(_Context(_cache(()), mask[:, :0], lengths * 0, None), ids, mask)
        return _Context(output.past_key_values, mask, lengths, output.last_hidden_state[:, -1])

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Pad rows of tokens on the left, so that all end together; return them and their mask."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        ids = [[pad] * (width - len(row)) + list(row) for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return (torch.tensor(one, dtype=torch.long, device=self.device) for one in (ids, mask))  # type: ignore[return-value]

    def _forward(self, context: _Context, ids: Tensor, mask: Tensor) -> Any:  # noqa: ANN401 - transformers' output
        """Read tokens padded on the left after a context, at the positions that they have there."""
        positions = context.lengths[:, None] + (mask.cumsum(dim=1) - 1).clamp(min=0)
        check_window(self.generator.config, int(positions.max()) + 1)
        return self.generator.base_model(
            input_ids=ids,
            attention_mask=torch.cat([context.mask, mask], dim=1),
            position_ids=positions,
            past_key_values=context.cache,
            use_cache=True,
        )

    def _read(self, context: _Context, rows: Sequence[Sequence[int]]) -> tuple[_Context, Tensor]:
        """Read tokens; return the context with them, and the states before and at each ``(B, T + 1, D)``."""
        ids, mask = self._padded(rows)
        width = ids.shape[1]
        before = context.state
        if before is None:
            before = torch.zeros(len(ids), self.generator.config.hidden_size, device=self.device)
            before = before.to(self.generator.dtype)
        if not width:
            return context, before[:, None]
        output = self._forward(context, ids, mask)
        states = torch.cat([before[:, None], output.last_hidden_state], dim=1)
        # Before a row's first token stands the context, not padding.
        first = width - mask.sum(dim=1)
        states[torch.arange(len(ids), device=self.device), first] = before
        read = _Context(
            output.past_key_values,
            torch.cat([context.mask, mask], dim=1),
            context.lengths + mask.sum(dim=1),
            states[:, -1],
        )
        return read, states

    @torch.no_grad()
    def _losses(self, context: _Context, questions: Sequence[str], answers: Sequence[str]) -> Reading:
        eos = self.tokenizer.eos_token_id
        asked, wanted = [self._plain(text) for text in questions], [self._plain(text) for text in answers]
        self._check_start(context, asked)
        rows = [[*question, *answer] for question, answer in zip(asked, wanted, strict=True)]
        _, states = self._read(context, rows)
        labels = torch.full(states.shape[:2], NOTHING)
        for number, answer in enumerate(wanted):
            labels[number, labels.shape[1] - len(answer) - 1 :] = torch.tensor([*answer, eos])
        head = self.generator.get_output_embeddings()
        left_out = torch.tensor(self.latents.ids, device=self.device)
        return Reading(*row_losses(states, labels.to(self.device), head, left_out))

    @torch.no_grad()
    def _write(self, context: _Context, questions: Sequence[str], most: int) -> list[str]:
        asked = [self._plain(text) for text in questions]
        self._check_start(context, asked)
        eos, written = self.tokenizer.eos_token_id, torch.zeros(len(asked), 0, dtype=torch.long)
        context, states = self._read(context, asked)
        last, done = states[:, -1], torch.zeros(len(asked), dtype=torch.bool)
        for number in range(most):
            logits = self.generator.get_output_embeddings()(last)
            logits[:, list(self.latents.ids)] = -torch.inf
            token = logits.argmax(dim=1).cpu()
            token[done] = eos
            written = torch.cat([written, token[:, None]], dim=1)
            done |= token == eos
            if bool(done.all()) or number == most - 1:
                break
            context, states = self._read(context, token[:, None].tolist())
            last = states[:, -1]
        return [self.tokenizer.decode(_until(row, eos), skip_special_tokens=True) for row in written.tolist()]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @staticmethod
    def _check_start(context: _Context, asked: Sequence[Sequence[int]]) -> None:
        # A row of a context of several may be empty too: of texts without a token.
        bare = [not ids and not int(size) for ids, size in zip(asked, context.lengths, strict=True)]
        if any(bare):
            msg = "an empty question without a text: there is nothing to predict an answer from; ask one"
            raise ReasonEmbedError(msg)


def _paired(count: int, **columns: Sequence[str]) -> list[list[str]]:
    """Return columns of texts once each has N: none is dropped in silence, none read letter by letter."""
    for name, column in columns.items():
        if isinstance(column, str):
            msg = f"{name} is one text: give a list of {count:,}"
            raise ReasonEmbedError(msg)
        if len(column) != count:
            msg = f"{len(column):,} {name} for {count:,} texts: give one for each text"
            raise ReasonEmbedError(msg)
        for number, text in enumerate(column):
            why = latent_in(text) if isinstance(text, str) else f"is {type(text).__name__}: give text"
            if why:
                msg = f"{name}[{number}] {why}"
                raise ReasonEmbedError(msg)
    return [list(column) for column in columns.values()]


def _until(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos)] if eos in row else row


def _cache(layers: Any) -> DynamicCache:  # noqa: ANN401 - pairs of keys and values
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def _joined(parts: Iterator[Reading]) -> Reading:
    found = list(parts) or [Reading(torch.zeros(0), torch.zeros(0))]
    return Reading(torch.cat([part.losses for part in found]), torch.cat([part.tokens for part in found]))


def _batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of batches, with a bar where there are many."""
    if size < 1:
        msg = f"batch_size is {size}: give 1 or more"
        raise ReasonEmbedError(msg)
    for start in trange(0, count, size, desc="Texts", unit="batch", disable=count <= size, leave=False):
        yield start, min(start + size, count)
