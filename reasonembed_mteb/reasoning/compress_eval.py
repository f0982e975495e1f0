"""How well answers are read from K positions: examples, exact match, F1 and cross entropy, with controls."""

from __future__ import annotations

import logging
import re
import string
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.evaluation.chapter_files import chapter_files
from reasonembed_mteb.evaluation.compression_record import (
    COMPRESSION_CHAPTER,
    CUT_TEXT,
    FULL_TEXT,
    MEMORY,
    NO_TEXT,
    AnswerReading,
    CompressionRun,
    compression_file,
    read_compression_run,
    write_compression_run,
)
from reasonembed_mteb.files import content_hash, read_json_lines
from reasonembed_mteb.models.special_tokens import latent_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.reasoning.compression import LatentCompressor, Reading
    from reasonembed_mteb.reasoning.memory import LatentMemory

logger = logging.getLogger(__name__)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class CompressionExample:
    """A text, a question about it, and its right answers.

    Attributes:
        text: What is compressed.
        question: What is asked; the cross entropy is of what follows it.
        answers: Right answers; the first one's cross entropy is taken.
    """

    text: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class CompressionOptions:
    """How compression is measured.

    Attributes:
        max_new_tokens: Tokens of an answer at most.
        reasoning_tokens: Tokens generated before a question is embedded, for the seconds; 0 leaves that out.
        batch_size: Texts and answers at a time.
        note: What tells the numbers from results.
    """

    max_new_tokens: int = 32
    reasoning_tokens: int = 64
    batch_size: int = 8
    note: str = ""


def read_examples(file: Path, limit: int | None = None) -> list[CompressionExample]:
    """Read examples: JSON Lines with ``text``, ``question`` and ``answer`` (or ``answers``, a list).

    Args:
        file: Also gzipped.
        limit: Read the first ones alone.

    Raises:
        DataError: If a line is no example, or there is none.
    """
    found: list[CompressionExample] = []
    for number, line in read_json_lines(file):
        if limit is not None and len(found) == limit:
            break
        found.append(_example(line, f"{file}:{number}"))
    if not found:
        msg = f"{file} has no examples: give lines with text, question and answer"
        raise DataError(msg)
    return found


def _example(line: Any, place: str) -> CompressionExample:  # noqa: ANN401 - whatever a file holds
    if not isinstance(line, dict):
        msg = f"{place}: an example must be an object with text, question and answer"
        raise DataError(msg)
    answers = line.get("answers", line.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    texts = {"text": line.get("text"), "question": line.get("question")}
    for name, value in texts.items():
        if not isinstance(value, str) or not value.strip():
            msg = f"{place}: {name} must be text that is not empty, not {value!r:.40}"
            raise DataError(msg)
    whole = isinstance(answers, list) and answers and all(isinstance(one, str) and one for one in answers)
    if not whole:
        msg = f"{place}: answer must be text, or answers a list of texts, not {answers!r:.40}"
        raise DataError(msg)
    named = [*texts.items(), *(("answer", one) for one in answers or ())]
    for name, value in named:
        if why := latent_in(str(value)):
            msg = f"{place}: {name} {why}"
            raise DataError(msg)
    return CompressionExample(str(texts["text"]), str(texts["question"]), tuple(answers or ()))


def normal_answer(text: str) -> str:
    """Return an answer as SQuAD's evaluation compares it: no case, articles, punctuation, further spaces.

    Args:
        text: Any.
    """
    # The order of SQuAD's own script: lower, punctuation, articles, spaces.
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(found: str, right: Sequence[str]) -> float:
    """Return 1 if an answer equals a right one, else 0.

    Args:
        found: The answer.
        right: Right answers.
    """
    return float(normal_answer(found) in {normal_answer(one) for one in right})


def answer_f1(found: str, right: Sequence[str]) -> float:
    """Return the F1 of an answer's words and the nearest right answer's, ``[0, 1]``.

    Args:
        found: The answer.
        right: Right answers.
    """
    return max(_overlap(normal_answer(found).split(), normal_answer(one).split()) for one in right)


def _overlap(found: list[str], right: list[str]) -> float:
    if not found or not right:
        # Two answers without a word are equal, one is not.
        return float(found == right)
    shared = sum((Counter(found) & Counter(right)).values())
    return 2 * shared / (len(found) + len(right))


def evaluate_compression(
    name: str,
    examples: Sequence[CompressionExample],
    file: Path,
    options: CompressionOptions,
    device: str | None = None,
) -> CompressionRun:
    """Measure what a model's latents keep of texts, and what the ways to a vector and to an answer cost.

    Answers are read from all K positions and from the last one alone (K = 1 is in every table), from the
    whole text, from as many of its first tokens, and from none.

    Args:
        name: Hub name or directory of a model with latent tokens.
        examples: At least one.
        file: Where they come from.
        options: How.
        device: Such as ``cuda:0``; None takes the fastest there is.

    Raises:
        ReasonEmbedError: If the model cannot compress.
    """
    from reasonembed_mteb.reasoning.compression import LatentCompressor

    _check_options(options)
    compressor = LatentCompressor.from_pretrained(name, device=device)
    texts = [one.text for one in examples]
    tokens = [len(compressor.text_tokens(text)) for text in texts]
    # Once unmeasured: a first pass pays for what later ones find ready.
    compressor.generate(compressor.compress(texts[:1]), examples[0].question, max_new_tokens=2)
    started = time.perf_counter()
    memory = compressor.compress(texts, batch_size=options.batch_size)
    encode_seconds = (time.perf_counter() - started) / len(texts)
    readings = _Readings(compressor, examples, sum(tokens) / len(tokens), options)
    return CompressionRun(
        model=_name(name),
        revision=compressor.model_hash,
        latents=memory.positions,
        data=file.name,
        data_hash=content_hash([file]),
        examples=len(examples),
        text_tokens=readings.text_tokens,
        max_new_tokens=options.max_new_tokens,
        encode_seconds=encode_seconds,
        vector_bytes=memory.states.shape[-1] * 4,
        reasoning_tokens=options.reasoning_tokens,
        reasoning_seconds=_reasoning_seconds(name, examples, options, device),
        note=options.note,
        readings=readings.all(memory),
    )


def measured_runs(
    models: Sequence[str],
    examples: Sequence[CompressionExample],
    file: Path,
    options: CompressionOptions,
    output: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = logger.info,
) -> list[CompressionRun]:
    """Measure models and keep each record; one that is there already is read.

    Args:
        models: Hub names or directories.
        examples: At least one.
        file: Where they come from.
        options: How.
        output: Output folder.
        device: As of `evaluate_compression`.
        overwrite: Measure again whatever is there.
        say: Takes a line for people now and then.

    Raises:
        ReasonEmbedError: If a model cannot compress.
    """
    runs = []
    for name in models:
        run = None if overwrite else _held(name, len(examples), file, options, output)
        if run is None:
            say(f"{name}: {len(examples):,} examples")
            run = evaluate_compression(name, examples, file, options, device)
            write_compression_run(_file(run, output), run)
        else:
            say(f"{name}: measured before; --overwrite measures again")
        runs.append(run)
    return runs


def _file(run: CompressionRun, output: Path) -> Path:
    decides = {"revision": run.revision, "data": run.data_hash, "examples": run.examples}
    return compression_file(output, run.model, answer=run.max_new_tokens, note=run.note, **decides)


def _held(
    name: str, examples: int, file: Path, options: CompressionOptions, output: Path
) -> CompressionRun | None:
    """Return what was measured before of the same model, examples and lengths."""
    from reasonembed_mteb.reasoning.compression import LatentCompressor

    wanted = (_name(name), content_hash([file]), examples, options.max_new_tokens, options.note)
    for held in chapter_files(output, COMPRESSION_CHAPTER):
        try:
            run = read_compression_run(held)
        except DataError as error:
            logger.warning("%s", error)
            continue
        same = (run.model, run.data_hash, run.examples, run.max_new_tokens, run.note) == wanted
        if same and run.reasoning_tokens == options.reasoning_tokens:
            # The weights last: they have to be loaded for it.
            revision = LatentCompressor.from_pretrained(name, device="cpu").model_hash
            return run if run.revision == revision else None
    return None


def _check_options(options: CompressionOptions) -> None:
    for what, value, least in (
        ("max_new_tokens", options.max_new_tokens, 1),
        ("reasoning_tokens", options.reasoning_tokens, 0),
        ("batch_size", options.batch_size, 1),
    ):
        if value < least:
            msg = f"{what} is {value}: give {least} or more"
            raise ReasonEmbedError(msg)


def _name(name: str) -> str:
    """Return the name of a hub model, or that under which results of a directory are filed."""
    from reasonembed_mteb.models.folders import local_name

    return local_name(Path(name)) if Path(name).exists() else name


class _Readings:
    """Answers of one model to one set of examples, from any context."""

    def __init__(
        self,
        compressor: LatentCompressor,
        examples: Sequence[CompressionExample],
        text_tokens: float,
        options: CompressionOptions,
    ) -> None:
        self._compressor, self._examples, self._options = compressor, examples, options
        self.text_tokens = text_tokens
        self._texts = [one.text for one in examples]
        self._questions = [one.question for one in examples]
        self._answers = [one.answers[0] for one in examples]
        config = compressor.generator.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        element = compressor.generator.dtype.itemsize
        self._bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * size * element

    def all(self, memory: LatentMemory) -> tuple[AnswerReading, ...]:
        """Return every reading, from the least context to the whole text."""
        found = [self._from_text(NO_TEXT, 0)]
        for count in sorted({1, memory.positions}):
            found += [self._from_memory(memory.last(count)), self._from_text(CUT_TEXT, count)]
        return (*found, self._from_text(FULL_TEXT, None))

    def _from_memory(self, memory: LatentMemory) -> AnswerReading:
        batch = self._options.batch_size
        reading = self._compressor.answer_losses(memory, self._questions, self._answers, batch_size=batch)

        def write() -> list[str]:
            most = self._options.max_new_tokens
            return self._compressor.generate(memory, self._questions, max_new_tokens=most, batch_size=batch)

        return self._reading(MEMORY, memory.positions, memory.bytes_per_text, reading, write)

    def _from_text(self, context: str, tokens: int | None) -> AnswerReading:
        batch = self._options.batch_size
        reading = self._compressor.answer_losses_from_text(
            self._texts, self._questions, self._answers, tokens=tokens, batch_size=batch
        )

        def write() -> list[str]:
            most = self._options.max_new_tokens
            return self._compressor.generate_from_text(
                self._texts, self._questions, tokens=tokens, max_new_tokens=most, batch_size=batch
            )

        positions = self._kept(tokens)
        return self._reading(context, positions, positions * self._bytes, reading, write)

    def _kept(self, tokens: int | None) -> float:
        lengths = [len(self._compressor.text_tokens(text)[:tokens]) for text in self._texts]
        return sum(lengths) / len(lengths)

    def _reading(
        self, context: str, positions: float, size: float, reading: Reading, write: Callable[[], list[str]]
    ) -> AnswerReading:
        started = time.perf_counter()
        written = write()
        seconds = (time.perf_counter() - started) / len(written)
        right = [one.answers for one in self._examples]
        pairs = list(zip(written, right, strict=True))
        return AnswerReading(
            context=context,
            positions=float(positions),
            rate=self.text_tokens / positions if positions else 0.0,
            exact_match=sum(exact_match(*pair) for pair in pairs) / len(pairs),
            f1=sum(answer_f1(*pair) for pair in pairs) / len(pairs),
            cross_entropy=float(reading.losses.double().sum() / reading.tokens.double().sum()),
            bytes_per_text=float(size),
            seconds=seconds,
        )


def _reasoning_seconds(
    name: str, examples: Sequence[CompressionExample], options: CompressionOptions, device: str | None
) -> float:
    """Time a question that is reasoned about before it is embedded; 0 where that is not asked for."""
    if not options.reasoning_tokens:
        return 0.0
    from reasonembed_mteb.models.reason_embed import ReasonEmbed
    from reasonembed_mteb.reasoning.generation import Decoding
    from reasonembed_mteb.reasoning.reasoner import SelfReasoning

    model: SentenceTransformer = ReasonEmbed(name, device=device)
    questions = list(dict.fromkeys(one.question for one in examples))
    # A store of its own: what was kept before would take no time.
    with TemporaryDirectory() as folder:
        decoding = Decoding(options.reasoning_tokens)
        reasoner = SelfReasoning(model, name, decoding, Path(folder), batch_size=options.batch_size)
        try:
            found = reasoner.reasonings(questions, model.max_seq_length or 1 << 30)
        finally:
            reasoner.close()
    return sum(one.seconds for one in found) / len(found)
