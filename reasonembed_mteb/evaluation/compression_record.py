"""How well answers are read from compressed texts, and what that costs: one record a model, for a report."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.evaluation.chapter_files import chapter_file, read_chapter, write_chapter
from reasonembed_mteb.files import fingerprint, is_number

if TYPE_CHECKING:
    from pathlib import Path

COMPRESSION_CHAPTER = "compression"
# What an answer is read from.
NO_TEXT, MEMORY, CUT_TEXT, FULL_TEXT = "no text", "memory", "text cut", "full text"


@dataclass(frozen=True)
class AnswerReading:
    """Answers read from one kind of context.

    Attributes:
        context: `NO_TEXT`, `MEMORY`, `CUT_TEXT` or `FULL_TEXT`.
        positions: Positions that stand for a text, mean over the texts.
        rate: Tokens of the texts over these positions; 0 without any position.
        exact_match: Share of answers that equal a right one, ``[0, 1]``.
        f1: Mean overlap of words with the nearest right answer, ``[0, 1]``.
        cross_entropy: Of the right answers, teacher-forced, in nats a token.
        bytes_per_text: What is kept of a text to read from.
        seconds: An answer takes, written greedily; reading the text again is part of it, a memory is there.
    """

    context: str
    positions: float
    rate: float
    exact_match: float
    f1: float
    cross_entropy: float
    bytes_per_text: float
    seconds: float


@dataclass(frozen=True)
class CompressionRun:
    """One model's readings of one set of examples.

    Attributes:
        model: Its name.
        revision: Hash of its weights and tokenizer.
        latents: How many latent tokens it has, K.
        data: Name of the examples' file.
        data_hash: Of its content.
        examples: How many were read.
        text_tokens: Mean tokens of a text.
        max_new_tokens: Tokens of an answer at most.
        encode_seconds: A text takes to become a memory and a vector.
        vector_bytes: Bytes of that vector.
        reasoning_tokens: Tokens generated before a question is embedded, at most; 0 where that was not timed.
        reasoning_seconds: A question takes then.
        note: What tells these numbers from results; empty for results.
        readings: By context and positions.
    """

    model: str
    revision: str
    latents: int
    data: str
    data_hash: str
    examples: int
    text_tokens: float
    max_new_tokens: int
    encode_seconds: float
    vector_bytes: int
    reasoning_tokens: int
    reasoning_seconds: float
    note: str
    readings: tuple[AnswerReading, ...]


def compression_file(output: Path, model: str, **decides: object) -> Path:
    """Return the file of a model's record.

    Args:
        output: Output folder.
        model: Its name.
        **decides: All else that decides the numbers.
    """
    return chapter_file(output, COMPRESSION_CHAPTER, f"{model}-{fingerprint(model, decides)[:8]}")


def write_compression_run(file: Path, run: CompressionRun) -> None:
    """Write a record.

    Args:
        file: Of `compression_file`.
        run: The record.
    """
    write_chapter(file, run)


def read_compression_run(file: Path) -> CompressionRun:
    """Read a record.

    Args:
        file: Written by `write_compression_run`.

    Raises:
        DataError: If it is damaged.
    """
    return read_chapter(file, _run, "compression", "reasonembed compress-eval")


def _run(content: dict[str, Any]) -> CompressionRun:
    readings = tuple(_reading(held) for held in content.pop("readings"))
    run = CompressionRun(**content, readings=readings)
    texts = (run.model, run.revision, run.data, run.data_hash, run.note)
    numbers = [getattr(run, one.name) for one in fields(run) if one.type in ("int", "float")]
    # A report compares each with the others.
    whole = {one.context for one in readings} == {NO_TEXT, MEMORY, CUT_TEXT, FULL_TEXT}
    if not whole or not all(isinstance(one, str) for one in texts) or not all(map(is_number, numbers)):
        raise TypeError
    return run


def _reading(held: dict[str, Any]) -> AnswerReading:
    reading = AnswerReading(**held)
    numbers = [getattr(reading, one.name) for one in fields(reading) if one.type == "float"]
    if reading.context not in (NO_TEXT, MEMORY, CUT_TEXT, FULL_TEXT) or not all(map(is_number, numbers)):
        raise TypeError
    return reading
