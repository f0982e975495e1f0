"""The chapter on reasoning: one column for each amount, means over shared tasks, costs, a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reasonembed_mteb.evaluation.reasoning_record import ReasonedTask, ReasoningRun, write_reasoning_run
from reasonembed_mteb.reporting.chapters import FINDERS, find_chapters
from reasonembed_mteb.reporting.reasoning import reasoning_chapters

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = ReasoningRun("local/m", "r1", "local/m", 4, "none", 0)


def run(tokens: int, **scores: float) -> ReasoningRun:
    stops = {"end": 1, "length": 3} if tokens else {}
    tasks = {
        name: ReasonedTask(score, "ndcg_at_10", 4 if tokens else 0, 4 * tokens, stops, 0.5, 0)
        for name, score in scores.items()
    }
    if not tokens:
        return replace(PLAIN, tasks=tasks)
    decides = {"itself": {"max_tokens": tokens}}
    return replace(
        PLAIN,
        system=f"reasoning/m-itself-{tokens}",
        source="itself",
        max_tokens=tokens,
        decides=decides,
        tasks=tasks,
    )


def test_another_engine_is_another_column(tmp_path: Path) -> None:
    other = replace(run(64, a=0.3), system="reasoning/m-itself-64-vllm", engine="vllm 0.99")
    write(tmp_path, run(64, a=0.2), replace(other, decides={"engine": {"name": "vllm"}}))
    (chapter,), _ = reasoning_chapters([tmp_path])
    assert chapter.grids[0].head == ("model", "tasks", "N = 64", "N = 64, vllm 0.99")
    assert chapter.grids[0].rows[0][2:] == ("20.00", "30.00")


def write(folder: Path, *runs: ReasoningRun) -> None:
    for one in runs:
        write_reasoning_run(folder, one)


def test_a_column_is_one_amount_and_a_mean_is_over_shared_tasks(tmp_path: Path) -> None:
    write(tmp_path, run(0, a=0.1, b=0.3), run(256, a=0.5), run(64, a=0.2, b=0.4))
    (chapter,), problems = reasoning_chapters([tmp_path])
    assert problems == []
    quality, tasks, costs = chapter.grids
    assert quality.head == ("model", "tasks", "N = 0", "N = 64", "N = 256")
    # Over task a alone, which all have.
    assert quality.rows == (("local/m, 4 latent tokens", "1", "10.00", "20.00", "50.00"),)
    assert tasks.head == ("task", "metric", "N = 0", "N = 64", "N = 256")
    assert tasks.rows == (
        ("a", "nDCG@10", "10.00", "20.00", "50.00"),
        ("b", "nDCG@10", "30.00", "40.00", "-"),
    )
    by_system = {row[0]: row for row in costs.rows}
    assert by_system["local/m"][2:] == ("0", "-", "-", "-", "-", "-")
    assert by_system["reasoning/m-itself-64"][2:] == ("8", "64.0", "25", "75", "0.125", "0")


def test_given_reasonings_and_two_prompts_have_columns_of_their_own(tmp_path: Path) -> None:
    given = replace(run(64, a=0.7), source="gpt4_reason", max_tokens=None, decides={"rewritten": "x"})
    write(tmp_path, run(64, a=0.2), replace(run(64, a=0.3), decides={"prompt": "y"}), given)
    (chapter,), _ = reasoning_chapters([tmp_path])
    head = chapter.grids[0].head[2:]
    assert set(head) == {"N = 64 (1)", "N = 64 (2)", "given: gpt4_reason"}
    assert head[-1] == "given: gpt4_reason"


def test_latents_and_revisions_are_rows(tmp_path: Path) -> None:
    write(tmp_path, run(0, a=0.1), replace(run(0, a=0.2), base_revision="r2", latents=1))
    (chapter,), _ = reasoning_chapters([tmp_path])
    labels = [row[0] for row in chapter.grids[0].rows]
    assert sorted(labels) == ["local/m @r1, 4 latent tokens", "local/m @r2, 1 latent tokens"]


def test_notes_say_what_is_no_result(tmp_path: Path) -> None:
    write(tmp_path, replace(run(64, a=0.1), note="a check of the mechanism"))
    (chapter,), _ = reasoning_chapters([tmp_path])
    assert "reasoning/m-itself-64: a check of the mechanism" in chapter.notes


def test_a_picture_of_at_least_two_amounts(tmp_path: Path) -> None:
    write(tmp_path, run(64, a=0.2))
    (chapter,), _ = reasoning_chapters([tmp_path])
    assert chapter.pictures == {}
    write(tmp_path, run(0, a=0.1), run(1024, a=0.4))
    (chapter,), _ = reasoning_chapters([tmp_path])
    (axes,) = chapter.pictures["tokens"]().axes
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [0, 1, 2]
    assert [round(value, 6) for value in line.get_ydata()] == [10.0, 20.0, 40.0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "64", "1,024"]


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    write(tmp_path, run(64, a=0.2))
    (file,) = (tmp_path / "chapters" / "reasoning").glob("*.json")
    file.write_text("{}")
    chapters, problems = reasoning_chapters([tmp_path])
    assert chapters == []
    assert "is no record of reasoning" in problems[0]


def test_a_report_finds_it(tmp_path: Path) -> None:
    assert "reasonembed_mteb.reporting.reasoning:reasoning_chapters" in FINDERS
    write(tmp_path, run(64, a=0.2))
    assert [one.name for one in find_chapters([tmp_path])[0]] == ["reasoning"]
    assert find_chapters([tmp_path / "none"])[0] == []
