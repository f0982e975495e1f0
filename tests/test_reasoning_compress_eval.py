"""What latents keep of texts, measured: examples, SQuAD's measures, the record, the chapter, the command."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import save_decoder

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
from reasonembed_mteb.reasoning import compress_eval as module
from reasonembed_mteb.reasoning.compress_eval import (
    CompressionExample,
    CompressionOptions,
    answer_f1,
    evaluate_compression,
    exact_match,
    measured_runs,
    normal_answer,
    read_examples,
)
from reasonembed_mteb.reasoning.compression import LatentCompressor
from reasonembed_mteb.reasoning.latents import add_latents
from reasonembed_mteb.reporting.chapters import drawn_pictures, find_chapters
from reasonembed_mteb.reporting.compression import compression_chapter, compression_chapters

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 3
EXAMPLES = [
    CompressionExample(
        "Rayleigh scattering sends short waves to all sides.", "Which waves?", ("short waves",)
    ),
    CompressionExample("The sky is blue.", "Which colour?", ("blue", "light blue")),
]


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compress")
    add_latents(str(save_decoder(root / "plain")), COUNT, root / "latent")
    return root / "latent"


@pytest.fixture
def examples_file(tmp_path: Path) -> Path:
    file = tmp_path / "qa.jsonl"
    lines = [{"text": one.text, "question": one.question, "answers": list(one.answers)} for one in EXAMPLES]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


# Measures.


@pytest.mark.parametrize(
    ("found", "right", "exact", "f1"),
    [
        ("The short waves.", ["short waves"], 1.0, 1.0),
        ("short", ["short waves"], 0.0, 2 / 3),
        ("a long wave", ["short waves", "long waves"], 0.0, 0.5),
        ("waves waves", ["waves"], 0.0, 2 / 3),
        ("", ["waves"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("isn't", ["isnt"], 1.0, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(found: str, right: list[str], exact: float, f1: float) -> None:
    assert exact_match(found, right) == exact
    assert answer_f1(found, right) == pytest.approx(f1)


def test_articles_are_words_not_letters() -> None:
    assert normal_answer("A theatre,  an  Atom and the end") == "theatre atom and end"


# Examples.


def test_examples_are_read(examples_file: Path) -> None:
    assert read_examples(examples_file) == EXAMPLES
    assert read_examples(examples_file, 1) == EXAMPLES[:1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([1], "an example must be an object"),
        ({"question": "q", "answer": "a"}, r"qa.jsonl:1: text must be text that is not empty, not None"),
        ({"text": "t", "question": " ", "answer": "a"}, r"question must be text that is not empty, not ' '"),
        ({"text": "t", "question": "q"}, r"answer must be text, or answers a list of texts, not None"),
        ({"text": "t", "question": "q", "answers": []}, r"a list of texts, not \[\]"),
        ({"text": "t", "question": "q", "answers": ["a", 1]}, r"not \['a', 1\]"),
        ({"text": "t", "question": "q", "answer": ""}, r"not \[''\]"),
        (
            {"text": "a <|latent_0|>", "question": "q", "answer": "a"},
            r":1: text holds <\|latent_0\|>, the na",
        ),
        ({"text": "t", "question": "<|latent_7|>", "answer": "a"}, r":1: question holds <\|latent_7\|>"),
        ({"text": "t", "question": "q", "answers": ["a", "<|latent_0|>"]}, r":1: answer holds"),
    ],
)
def test_lines_that_are_no_examples_are_refused(line: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_examples(file)


def test_a_file_without_examples_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no examples"):
        read_examples(file)
    with pytest.raises(DataError, match="cannot read"):
        read_examples(tmp_path / "absent.jsonl")


# Measuring.


@pytest.fixture(scope="module")
def measured(latent: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressionRun:
    file = tmp_path_factory.mktemp("file") / "qa.jsonl"
    file.write_text("{}\n", encoding="utf-8")
    options = CompressionOptions(max_new_tokens=4, reasoning_tokens=2, note="a check")
    return evaluate_compression(str(latent), EXAMPLES, file, options, "cpu")


def test_every_context_is_read_and_one_position_is_among_them(measured: CompressionRun) -> None:
    contexts = [(one.context, one.positions) for one in measured.readings]
    tokens = measured.text_tokens
    assert contexts == [
        (NO_TEXT, 0),
        *((context, count) for count in (1, COUNT) for context in (MEMORY, CUT_TEXT)),
        (FULL_TEXT, tokens),
    ]
    for one in measured.readings:
        assert one.rate == (pytest.approx(tokens / one.positions) if one.positions else 0)
        assert one.cross_entropy > 0
        assert one.seconds > 0
    assert measured.latents == COUNT
    assert measured.model.endswith("__latent")
    assert measured.encode_seconds > 0
    assert measured.reasoning_seconds > 0
    assert measured.vector_bytes == 32 * 4


def test_bytes_are_those_of_keys_and_values(measured: CompressionRun) -> None:
    by_context = {(one.context, one.positions): one.bytes_per_text for one in measured.readings}
    # Two layers, keys and values, two heads of eight numbers in float32.
    a_position = 2 * 2 * 2 * 8 * 4
    assert by_context[NO_TEXT, 0] == 0
    assert by_context[CUT_TEXT, COUNT] == COUNT * a_position
    # The last state and the length come on top.
    assert by_context[MEMORY, COUNT] == COUNT * a_position + 32 * 4 + 8
    assert by_context[FULL_TEXT, measured.text_tokens] == measured.text_tokens * a_position


def test_numbers_are_those_of_the_compressor(measured: CompressionRun, latent: Path) -> None:
    compressor = LatentCompressor.from_pretrained(str(latent), device="cpu")
    texts, questions = [one.text for one in EXAMPLES], [one.question for one in EXAMPLES]
    answers = [one.answers[0] for one in EXAMPLES]
    memory = compressor.compress(texts)
    losses = compressor.answer_losses(memory, questions, answers)
    by_context = {(one.context, one.positions): one for one in measured.readings}
    wanted = float(losses.losses.sum() / losses.tokens.sum())
    assert by_context[MEMORY, COUNT].cross_entropy == pytest.approx(wanted, rel=1e-6)
    full = compressor.answer_losses_from_text(texts, questions, answers)
    wanted = float(full.losses.sum() / full.tokens.sum())
    assert by_context[FULL_TEXT, measured.text_tokens].cross_entropy == pytest.approx(wanted, rel=1e-6)
    # A right answer is seen as one.
    written = compressor.generate(memory, questions, max_new_tokens=4)
    right = [replace(one, answers=(text or "-",)) for one, text in zip(EXAMPLES, written, strict=True)]
    readings = module._Readings(compressor, right, 10.0, CompressionOptions(max_new_tokens=4))
    assert readings._from_memory(memory).exact_match == sum(map(bool, written)) / 2


def test_what_was_measured_is_read_not_measured_again(
    latent: Path, examples_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CompressionOptions(max_new_tokens=2, reasoning_tokens=0)
    given: Any = ([str(latent)], EXAMPLES, examples_file, options, tmp_path / "out")
    said: list[str] = []
    first = measured_runs(*given, device="cpu", say=said.append)
    with monkeypatch.context() as patched:
        patched.setattr(module, "evaluate_compression", lambda *_: pytest.fail("measured again"))
        assert measured_runs(*given, device="cpu", say=said.append) == first
    assert ["examples" in line for line in said] == [True, False]
    # Other examples, lengths or notes are other numbers, and a damaged record is none.
    again = measured_runs(*given[:3], replace(options, note="b"), given[4], device="cpu", say=said.append)
    assert len(chapter_files(tmp_path / "out", COMPRESSION_CHAPTER)) == 2
    assert again[0].note == "b"
    assert len(measured_runs(*given, device="cpu", overwrite=True, say=said.append)) == 1
    assert said[-1].endswith("2 examples")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CompressionOptions(max_new_tokens=0), "max_new_tokens is 0: give 1 or more"),
        (CompressionOptions(reasoning_tokens=-1), "reasoning_tokens is -1: give 0 or more"),
        (CompressionOptions(batch_size=0), "batch_size is 0: give 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: CompressionOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match=message):
        evaluate_compression("model", EXAMPLES, tmp_path / "qa.jsonl", options)


# Record and chapter.


def record(model: str = "m", **changes: Any) -> CompressionRun:
    readings = (
        AnswerReading(NO_TEXT, 0.0, 0.0, 0.0, 0.1, 5.0, 0.0, 0.1),
        AnswerReading(MEMORY, 1.0, 12.5, 0.25, 0.5, 2.0, 100.0, 0.1),
        AnswerReading(CUT_TEXT, 1.0, 12.5, 0.0, 0.2, 4.0, 90.0, 0.1),
        AnswerReading(FULL_TEXT, 12.5, 1.0, 0.5, 0.75, 1.0, 1125.0, 0.2),
    )
    run = CompressionRun(
        model, "abc", 1, "qa.jsonl", "hash", 2, 12.5, 8, 0.01, 128, 64, 0.5, "a check", readings
    )
    return replace(run, **changes)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = compression_file(tmp_path, "org/m", answer=8)
    write_compression_run(file, record())
    assert read_compression_run(file) == record()
    assert file != compression_file(tmp_path, "org/m", answer=9)
    assert chapter_files(tmp_path, COMPRESSION_CHAPTER) == [file]


@pytest.mark.parametrize(
    "change",
    [
        {"readings": []},
        {"readings": [{"context": "x"}]},
        {"readings": [asdict(one) for one in record().readings if one.context != FULL_TEXT]},
        {"model": 1},
        {"latents": "one"},
        {"text_tokens": None},
        {"further": 1},
    ],
)
def test_a_damaged_record_is_left_out_and_named(change: dict[str, Any], tmp_path: Path) -> None:
    file = compression_file(tmp_path, "m")
    write_compression_run(file, record())
    file.write_text(json.dumps(json.loads(file.read_text()) | change), encoding="utf-8")
    with pytest.raises(DataError, match="is no record of compression"):
        read_compression_run(file)
    chapters, problems = compression_chapters([tmp_path])
    assert chapters == []
    assert len(problems) == 1


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_record_that_nobody_could_read_is_not_written(number: float, tmp_path: Path) -> None:
    file = compression_file(tmp_path, "m")
    readings = (replace(record().readings[0], cross_entropy=number), *record().readings[1:])
    with pytest.raises(DataError, match=rf"not written: readings\.0\.cross_entropy is {number}"):
        write_compression_run(file, record(readings=readings))
    assert not file.exists()


def test_the_chapter_has_one_table_and_one_picture(tmp_path: Path) -> None:
    write_compression_run(compression_file(tmp_path, "m"), record())
    write_compression_run(compression_file(tmp_path, "n"), record("<n>$x$", reasoning_tokens=0))
    chapters, problems = find_chapters([tmp_path])
    assert problems == []
    (chapter,) = (one for one in chapters if one.name == COMPRESSION_CHAPTER)
    (grid,) = chapter.grids
    rows = {row[1]: row for row in grid.rows if row[0] == "m, K = 1"}
    assert rows[MEMORY] == ("m, K = 1", MEMORY, "1", "12.5", "25.0", "50.0", "2.000", "100", "0.1000")
    assert rows[NO_TEXT][3] == "-"
    assert rows["reason (64), then embed, a question"][-2:] == ("128", "0.5000")
    assert not any("reason" in row[1] for row in grid.rows if row[0] != "m, K = 1")
    assert "m: a check" in chapter.notes
    pytest.importorskip("matplotlib")
    (figure,) = drawn_pictures(chapter).values()
    lines = [line for axes in figure.axes for line in axes.lines]
    assert len(lines) == 2 * 2 * 4
    assert any(list(line.get_xdata()) == [12.5] and list(line.get_ydata()) == [0.5] for line in lines)


def test_chapters_of_other_runs_are_not_ours(tmp_path: Path) -> None:
    assert compression_chapters([tmp_path]) == ([], [])
    assert compression_chapter([record()]).data[0]["model"] == "m"
