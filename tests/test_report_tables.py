"""Tables of results: what belongs together, means, ranks, missing cells, and every format."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from reporting_data import record, write_result, write_run

from reasonembed_mteb.reporting import formats
from reasonembed_mteb.reporting.comparison import (
    compare_rows,
    published_comparisons,
    published_grids,
    significance_grids,
)
from reasonembed_mteb.reporting.queries import read_frames
from reasonembed_mteb.reporting.report import ReportOptions, draw_report, write_report
from reasonembed_mteb.reporting.results import read_results
from reasonembed_mteb.reporting.tables import metric_name, score_tables
from reasonembed_mteb.retrieval.rows import benchmarks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from conftest import Command

    from reasonembed_mteb.reporting.tables import ScoreTable

BIOLOGY, PONY, AOPS = (f"ReasonEmbedBright{name}" for name in ("Biology", "Pony", "Aops"))
BRIGHT = [row.name for row in benchmarks()["BRIGHT(ReasonEmbed)"]]
PAPER = "hanhainebula/reason-embed-qwen3-8b-0928"


def boards(folder: Path, *, together: bool = False) -> dict[str, ScoreTable]:
    return {board.name: board for board in score_tables(read_results([folder]), together=together)}


def write_all(folder: Path, model: str, scores: Sequence[float]) -> None:
    for task, score in zip(BRIGHT, scores, strict=False):
        write_result(folder, model, task, score)


def test_means_groups_and_ranks(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).random((3, 12)).round(5)
    for name, scores in zip("abc", drawn, strict=True):
        write_all(tmp_path, f"x/{name}", scores.tolist())
    board = boards(tmp_path)["BRIGHT(ReasonEmbed)"]
    assert board.columns == tuple(row.subset for row in benchmarks()["BRIGHT(ReasonEmbed)"])
    order = np.argsort(-drawn.mean(axis=1))
    assert [row.label for row in board.rows] == [f"x/{'abc'[place]}" for place in order]
    assert [row.rank for row in board.rows] == [1, 2, 3]
    best = drawn[order[0]]
    assert board.rows[0].mean is not None
    assert board.rows[0].mean.value == pytest.approx(best.mean())
    groups = {name: mean.value for name, mean in board.rows[0].groups.items()}
    expected = {"StackExchange": best[:7].mean(), "coding": best[7:9].mean(), "theorem": best[9:].mean()}
    assert groups == pytest.approx(expected)


def test_the_groups_are_every_subset_once() -> None:
    subsets = [row.subset for row in benchmarks()["BRIGHT(ReasonEmbed)"]]
    assert sorted(row.subset for row in benchmarks()["BRIGHT(ReasonEmbed)"] if row.group) == sorted(subsets)


def test_equal_means_share_a_rank(tmp_path: Path) -> None:
    for name, score in (("a", 0.5), ("b", 0.5), ("c", 0.25)):
        write_all(tmp_path, f"x/{name}", [score] * 12)
    rows = boards(tmp_path)["BRIGHT(ReasonEmbed)"].rows
    assert [(row.label, row.rank) for row in rows] == [("x/a", 1), ("x/b", 1), ("x/c", 3)]


def test_a_mean_over_fewer_subsets_is_marked_and_not_ranked(tmp_path: Path) -> None:
    write_all(tmp_path, "x/whole", [0.2] * 12)
    write_all(tmp_path, "x/part", [0.9] * 11)
    board = boards(tmp_path)["BRIGHT(ReasonEmbed)"]
    assert [(row.label, row.rank) for row in board.rows] == [("x/whole", 1), ("x/part", None)]
    grid = formats.score_grid(board)
    part = dict(zip(grid.head, grid.rows[1], strict=True))
    assert part["mean"] == "90.00* (11/12)"
    assert part["theorem"] == "90.00* (2/3)"
    assert (part["rank"], part["TheoT"], part["coding"]) == ("-", "-", "90.00")
    assert any("not ranked" in note for note in grid.notes)


def test_kinds_of_results_stay_in_separate_labelled_tables(tmp_path: Path) -> None:
    tasks = [BIOLOGY, f"{BIOLOGY}Gpt4Reason", f"{BIOLOGY}Long", "BrightBiologyRetrieval", "ReasonMiniBiology"]
    tasks += ["BrightBiologyLongRetrieval", "BrightProBiologyRetrieval", "R2MEDBiologyRetrieval"]
    tasks += ["ReasonEmbedR2MEDBiology", "SciFact"]
    for task in tasks:
        metric = "recall_at_1" if "Long" in task else "ndcg_at_10"
        write_result(tmp_path, "a/m", task, 0.5, metric=metric)
    limited = write_result(tmp_path / "limit", "a/m", BIOLOGY, 0.75)
    record(limited, causes={"limit": 3})
    results = read_results([tmp_path, tmp_path / "limit"])
    found = {board.name: board for board in score_tables(results)}
    assert list(found) == [
        "BRIGHT(ReasonEmbed)",
        "BRIGHT(v1.1), MTEB's own",
        "BRIGHT-Pro, MTEB's own",
        "BRIGHT-gpt4_reason(ReasonEmbed)",
        "BRIGHT-long(ReasonEmbed)",
        "BRIGHT(v1.1) long, MTEB's own",
        "R2MED(ReasonEmbed)",
        "R2MED, MTEB's own",
        "ReasonMini",
        "BRIGHT(ReasonEmbed), first 3 queries",
        "Other tasks, ndcg_at_10",
    ]
    assert "rewritten queries (gpt4_reason)" in found["BRIGHT-gpt4_reason(ReasonEmbed)"].about
    assert "long documents" in found["BRIGHT-long(ReasonEmbed)"].about
    assert found["BRIGHT-long(ReasonEmbed)"].metric == "recall_at_1"
    assert "MTEB's own tasks" in found["BRIGHT(v1.1), MTEB's own"].about
    assert "smoke run" in found["BRIGHT(ReasonEmbed), first 3 queries"].about
    assert found["Other tasks, ndcg_at_10"].columns == ("SciFact",)
    # Of a benchmark's columns nothing is left out, whatever was run.
    assert len(found["BRIGHT(v1.1), MTEB's own"].columns) == 12


def test_tables_of_the_same_data_can_be_set_together(tmp_path: Path) -> None:
    write_all(tmp_path, "x/a", [0.2] * 12)
    for row in benchmarks()["BRIGHT-gpt4_reason(ReasonEmbed)"]:
        write_result(tmp_path, "x/a", row.name, 0.6)
    write_result(tmp_path, "x/a", "ReasonMiniPony", 0.5)
    together = boards(tmp_path, together=True)
    assert list(together) == ["BRIGHT, 2 tables together", "ReasonMini"]
    joined = together["BRIGHT, 2 tables together"]
    assert [(row.variant, row.rank) for row in joined.rows] == [
        ("BRIGHT(ReasonEmbed)", 1),
        ("BRIGHT-gpt4_reason(ReasonEmbed)", 1),
    ]
    assert "table" in formats.score_grid(joined).head


def test_an_older_task_of_several_subsets_has_a_table_per_split(tmp_path: Path) -> None:
    write_result(
        tmp_path, "a/m", "BrightRetrieval", 0.2, splits=["standard", "long"], subsets=["biology", "pony"]
    )
    found = boards(tmp_path)
    assert set(found) == {"BrightRetrieval, standard", "BrightRetrieval, long"}
    assert found["BrightRetrieval, long"].columns == ("biology", "pony")
    assert "exclusions ignored" in found["BrightRetrieval, long"].about


def test_different_data_revisions_are_noted(tmp_path: Path) -> None:
    write_result(tmp_path, "x/a", BIOLOGY, 0.5)
    write_result(tmp_path, "x/b", BIOLOGY, 0.5, content={"dataset_revision": "d2"})
    notes = boards(tmp_path)["BRIGHT(ReasonEmbed)"].notes
    assert any(BIOLOGY in note and "different data revisions" in note for note in notes)


def test_costs_are_summed_and_a_partial_sum_is_none(tmp_path: Path) -> None:
    cost = {"seconds": 3.0, "tokens": 600, "truncated": 1, "dimensions": 384, "device_name": "H200"}
    for task in (BIOLOGY, PONY):
        write_run(tmp_path, "x/a", task, {"q": 0.5}, cost=cost)
        write_run(tmp_path, "x/b", task, {"q": 0.5}, cost=cost | ({"tokens": None} if task == PONY else {}))
    rows = {row.label: row.cost for row in boards(tmp_path)["BRIGHT(ReasonEmbed)"].rows}
    assert (rows["x/a"].seconds, rows["x/a"].tokens, rows["x/a"].truncated) == (6.0, 1200, 2)
    assert (rows["x/a"].dimensions, rows["x/a"].device) == (384, "H200")
    assert (rows["x/b"].seconds, rows["x/b"].tokens) == (6.0, None)
    grid = formats.cost_grid(boards(tmp_path)["BRIGHT(ReasonEmbed)"])
    assert grid is not None
    assert dict(zip(grid.head, grid.rows[0], strict=True))["tokens/s"] == "200"


def test_published_scores_stand_beside_ours(tmp_path: Path) -> None:
    write_all(tmp_path, PAPER, [0.5551, 0.60, *([0.3] * 10)])
    write_all(tmp_path, "x/unknown", [0.3] * 12)
    board = boards(tmp_path)["BRIGHT(ReasonEmbed)"]
    paper = next(source for source in published_comparisons(board) if "Table 2" in source.source)
    biology = paper.scores["biology"]
    assert (biology.published.value, biology.within_noise) == (55.5, True)
    assert biology.difference == pytest.approx(0.01)
    assert not paper.scores["earth_science"].within_noise
    assert paper.scores["mean"].published.value == 38.1
    assert {board.rows[source.row].label for source in published_comparisons(board)} == {PAPER}
    rows = {row[0]: row for row in published_grids(board)[0].rows}
    assert rows["Bio."] == ("Bio.", "55.50", "55.51", "+0.01", "yes")
    assert rows["Earth"][-1] == "NO"


def test_a_mean_over_fewer_subsets_is_not_compared(tmp_path: Path) -> None:
    write_all(tmp_path, PAPER, [0.5] * 11)
    for source in published_comparisons(boards(tmp_path)["BRIGHT(ReasonEmbed)"]):
        assert "mean" not in source.scores


def test_rewritten_queries_and_smoke_runs_are_not_compared_with_published(tmp_path: Path) -> None:
    write_result(tmp_path, PAPER, f"{BIOLOGY}Gpt4Reason", 0.5)
    record(write_result(tmp_path, PAPER, BIOLOGY, 0.5), causes={"limit": 3})
    assert all(not published_comparisons(board) for board in boards(tmp_path).values())


def test_a_variant_is_not_compared_with_the_plain_models_published_score(tmp_path: Path) -> None:
    plain = write_result(tmp_path, PAPER, BIOLOGY, 0.5551)
    write_result(tmp_path, PAPER, BIOLOGY, 0.1, revision="r1/experiments/dim_64", meta={"revision": "r1"})
    record(write_result(tmp_path, PAPER, BIOLOGY, 0.2, revision="r2"), causes={"rerank": "0123 top 100"})
    board = boards(tmp_path)["BRIGHT(ReasonEmbed)"]
    assert len(board.rows) == 3
    compared = {board.rows[source.row].cells["biology"].file for source in published_comparisons(board)}
    assert compared == {plain}


def write_tested(folder: Path) -> None:
    draw = np.random.default_rng(1)
    # Of different size: the mean that is tested is that over subsets.
    for task, count in ((BIOLOGY, 60), (PONY, 25)):
        queries = [f"q{i}" for i in range(count)]
        base = draw.uniform(0.2, 0.6, count) if task == BIOLOGY else draw.uniform(0.0, 0.2, count)
        for name, gain in (("x/good", 0.3), ("x/same", 0.0), ("x/base", 0.0)):
            scores = np.clip(base + gain + 0.05 * draw.standard_normal(count), 0, 1)
            write_run(folder, name, task, dict(zip(queries, scores.tolist(), strict=True)))
    write_result(folder, "x/plain", BIOLOGY, 0.3)


def test_significance_marks_the_means(tmp_path: Path) -> None:
    write_tested(tmp_path)
    board = boards(tmp_path)["BRIGHT(ReasonEmbed)"]
    frames, problems = read_frames(board)
    assert not problems
    tested = compare_rows(board, frames)
    assert tested.marks is not None
    letters = tested.marks.letters
    assert not set(letters["x/good"]) & set(letters["x/same"])
    assert set(letters["x/base"]) & set(letters["x/same"])
    assert tested.left_out == ("x/plain",)
    assert set(tested.subsets) == {"biology", "pony"}
    first, pairs = significance_grids(board, tested)
    good = next(row for row in first.rows if row[0] == "x/good")
    assert good[-1] == "all others"
    assert pairs.head == ("model", "other model", "all", "Bio.", "Pony")
    assert any("x/plain" in note for note in first.notes)
    interval = tested.intervals["x/good"]
    assert interval.low < interval.mean < interval.high
    # The interval is that of the mean in the table.
    assert interval.mean == pytest.approx(board.rows[0].mean.value, abs=1e-5)  # type: ignore[union-attr]


def test_scores_by_query_that_are_damaged_are_named(tmp_path: Path) -> None:
    write_tested(tmp_path)
    (damaged, *_) = sorted((tmp_path / "records").rglob("*.parquet"))
    damaged.write_bytes(b"PAR1")
    text, problems = write_report(read_results([tmp_path]), ReportOptions(significance=True), "table")
    assert len(problems) == 1
    assert str(damaged) in problems[0]
    assert "x/good" in text


def test_markdown_and_latex_escape_what_a_name_holds(tmp_path: Path) -> None:
    write_result(tmp_path, "x/a|b_c<i>$&", BIOLOGY, 0.5)
    board = boards(tmp_path)["BRIGHT(ReasonEmbed)"]
    markdown = formats.as_markdown(formats.score_grid(board))
    assert r"x/a\|b\_c&lt;i&gt;\$&amp;" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in rows}) == 1
    latex = formats.as_latex(formats.score_grid(board))
    assert r"x/a|b\_c\textless{}i\textgreater{}\$\&" in latex
    body = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")]
    counts = {line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")}
    assert counts == {len(formats.score_grid(board).head) - 1}


def test_csv_has_every_cell(tmp_path: Path) -> None:
    write_all(tmp_path, "=cmd/x", [0.5] * 11)
    rows = list(csv.DictReader(io.StringIO(formats.as_csv(list(boards(tmp_path).values())))))
    subsets = [row for row in rows if row["kind"] == "subset"]
    assert [row["score"] for row in subsets] == ["0.5"] * 11 + [""]
    (mean,) = (row for row in rows if row["kind"] == "mean")
    assert (mean["score"], mean["count"], mean["of"], mean["rank"]) == ("0.5", "11", "12", "")
    # A spreadsheet must not run a name.
    assert {row["model"] for row in rows} == {"'=cmd/x"}


def test_json_has_everything_and_no_nan(tmp_path: Path) -> None:
    write_tested(tmp_path)
    wanted = ReportOptions(published=True, significance=True)
    text, _ = write_report(read_results([tmp_path]), wanted, "json")
    (table,) = json.loads(text, parse_constant=lambda name: pytest.fail(name))["tables"]
    row = next(one for one in table["rows"] if one["label"] == "x/good")
    assert row["scores"]["aops"] is None
    assert row["mean"]["whole"] is False
    assert row["mteb_versions"] == ["2.26.24"]
    assert table["published"] == []
    assert len(table["significance"]["all"]["pairs"]) == 3


def test_pictures_are_written_and_repeat_to_the_byte(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_all(tmp_path, PAPER, [0.5] * 12)
    write_all(tmp_path, "x/$a_b", [0.4] * 11)
    results = read_results([tmp_path])
    files = draw_report(results, tmp_path / "one", "svg")
    names = ["heatmap", "published", "cost"]
    assert [file.name for file in files] == [f"BRIGHT-ReasonEmbed-{name}.svg" for name in names]
    again = draw_report(results, tmp_path / "two", "svg")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    (first, *_) = draw_report(results, tmp_path / "png", "png")
    assert first.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_cost_shows_each_models_own_seconds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from reasonembed_mteb.reporting.pictures import cost_plot

    for name, seconds in (("x/fast", 3.0), ("x/slow", 70.0)):
        for row in benchmarks()["ReasonMini"]:
            write_run(tmp_path, name, row.name, {"q": 0.5}, cost={"seconds": seconds, "dimensions": 384})
    board = boards(tmp_path)["ReasonMini"]
    figure = cost_plot(board)
    assert figure is not None
    (points,) = figure.axes[0].collections
    drawn = dict(zip([row.label for row in board.rows], points.get_offsets()[:, 0], strict=True))
    subsets = len(benchmarks()["ReasonMini"])
    assert drawn == {"x/fast": 3.0 * subsets, "x/slow": 70.0 * subsets}


def test_metrics_are_written_as_people_do() -> None:
    assert [metric_name(name) for name in ("ndcg_at_10", "recall_at_1", "accuracy")] == [
        "nDCG@10",
        "recall@1",
        "accuracy",
    ]


def test_the_command_prints_names_what_it_left_out_and_fails(tmp_path: Path, command: Command) -> None:
    write_all(tmp_path, "x/a", [0.5] * 12)
    status, out, err = command("report", str(tmp_path))
    assert (status, err) == (0, "")
    assert "x/a" in out
    bad = write_result(tmp_path, "x/b", BIOLOGY, float("nan"))
    status, out, err = command("report", str(tmp_path))
    assert status == 1
    assert f"LEFT OUT {bad}" in err
    assert "x/a" in out


@pytest.mark.parametrize("kind", ["markdown", "html", "svg"])
def test_an_output_that_exists_is_not_replaced(tmp_path: Path, command: Command, kind: str) -> None:
    if kind == "svg":
        pytest.importorskip("matplotlib")
    write_all(tmp_path, "x/a", [0.5] * 12)
    arguments = ["report", str(tmp_path), "--format", kind, "--output", "out"]
    assert command(*arguments)[0] == 0
    status, _, err = command(*arguments)
    assert status == 2
    assert "--overwrite" in err
    assert command(*arguments, "--overwrite")[0] == 0


def test_a_page_and_pictures_need_an_output(tmp_path: Path, command: Command) -> None:
    write_all(tmp_path, "x/a", [0.5] * 12)
    for kind, what in (("html", "FILE.html"), ("png", "FOLDER")):
        status, _, err = command("report", str(tmp_path), "--format", kind)
        assert status == 2
        assert f"--output {what}" in err
