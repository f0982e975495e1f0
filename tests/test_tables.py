"""Tables of results: what belongs together, means, ranks, missing cells, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from reporting_data import (
    BIOLOGY,
    PONY,
    record,
    tables,
    write_all,
    write_result,
    write_run,
)

from reasonembed_mteb.reporting import formats
from reasonembed_mteb.reporting.results import read_results
from reasonembed_mteb.reporting.tables import metric_name, score_tables
from reasonembed_mteb.retrieval.rows import benchmarks

if TYPE_CHECKING:
    from pathlib import Path


def test_means_groups_and_ranks(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).random((3, 12)).round(5)
    for name, scores in zip("abc", drawn, strict=True):
        write_all(tmp_path, f"x/{name}", scores.tolist())
    table = tables(tmp_path)["BRIGHT(ReasonEmbed)"]
    assert table.columns == tuple(row.subset for row in benchmarks()["BRIGHT(ReasonEmbed)"])
    order = np.argsort(-drawn.mean(axis=1))
    assert [row.label for row in table.rows] == [f"x/{'abc'[place]}" for place in order]
    assert [row.rank for row in table.rows] == [1, 2, 3]
    best = drawn[order[0]]
    assert table.rows[0].mean is not None
    assert table.rows[0].mean.value == pytest.approx(best.mean())
    groups = {name: mean.value for name, mean in table.rows[0].groups.items()}
    expected = {"StackExchange": best[:7].mean(), "coding": best[7:9].mean(), "theorem": best[9:].mean()}
    assert groups == pytest.approx(expected)


def test_the_groups_are_every_subset_once() -> None:
    subsets = [row.subset for row in benchmarks()["BRIGHT(ReasonEmbed)"]]
    assert sorted(row.subset for row in benchmarks()["BRIGHT(ReasonEmbed)"] if row.group) == sorted(subsets)


def test_equal_means_share_a_rank(tmp_path: Path) -> None:
    for name, score in (("a", 0.5), ("b", 0.5), ("c", 0.25)):
        write_all(tmp_path, f"x/{name}", [score] * 12)
    rows = tables(tmp_path)["BRIGHT(ReasonEmbed)"].rows
    assert [(row.label, row.rank) for row in rows] == [("x/a", 1), ("x/b", 1), ("x/c", 3)]


def test_a_mean_over_fewer_subsets_is_marked_and_not_ranked(tmp_path: Path) -> None:
    write_all(tmp_path, "x/whole", [0.2] * 12)
    write_all(tmp_path, "x/part", [0.9] * 11)
    table = tables(tmp_path)["BRIGHT(ReasonEmbed)"]
    assert [(row.label, row.rank) for row in table.rows] == [("x/whole", 1), ("x/part", None)]
    grid = formats.score_grid(table)
    part = dict(zip(grid.head, grid.rows[1], strict=True))
    assert part["mean"] == "90.00* (11/12)"
    assert part["theorem"] == "90.00* (2/3)"
    assert (part["rank"], part["TheoT"], part["coding"]) == ("-", "-", "90.00")
    assert any("not ranked" in note for note in grid.notes)


def test_tasks_of_one_unit_count_once_in_the_mean(tmp_path: Path) -> None:
    for row in benchmarks()["MIRB(ReasonEmbed)"]:
        write_result(tmp_path, "a/m", row.name, 0.8 if row.unit else 0.2)
    (table,) = score_tables(read_results([tmp_path]))
    mean = table.rows[0].mean
    assert mean is not None
    assert (mean.count, mean.of) == (15, 15)
    # Eleven tasks and the four premise sets together.
    assert mean.value == pytest.approx((11 * 0.2 + 0.8) / 12)


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
    found = {table.name: table for table in score_tables(results)}
    assert list(found) == [
        "BRIGHT(ReasonEmbed)",
        "BRIGHT(v1.1), MTEB's own",
        "BRIGHT-gpt4_reason(ReasonEmbed)",
        "BRIGHT-long(ReasonEmbed)",
        "BRIGHT(v1.1) long, MTEB's own",
        "R2MED(ReasonEmbed)",
        "R2MED, MTEB's own",
        "ReasonMini",
        "BRIGHT-Pro, MTEB's own",
        "BRIGHT(ReasonEmbed), first 3 queries",
        "Other tasks, ndcg_at_10",
    ]
    assert "rewritten queries (gpt4_reason)" in found["BRIGHT-gpt4_reason(ReasonEmbed)"].about
    assert "long documents" in found["BRIGHT-long(ReasonEmbed)"].about
    assert found["BRIGHT-long(ReasonEmbed)"].metric == "recall_at_1"
    # Ours has another main score.
    assert found["BRIGHT-Pro, MTEB's own"].metric == "ndcg_at_10"
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
    together = tables(tmp_path, together=True)
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
    found = tables(tmp_path)
    assert set(found) == {"BrightRetrieval, standard", "BrightRetrieval, long"}
    assert found["BrightRetrieval, long"].columns == ("biology", "pony")
    assert "exclusions ignored" in found["BrightRetrieval, long"].about


def test_different_data_revisions_are_noted(tmp_path: Path) -> None:
    write_result(tmp_path, "x/a", BIOLOGY, 0.5)
    write_result(tmp_path, "x/b", BIOLOGY, 0.5, content={"dataset_revision": "d2"})
    notes = tables(tmp_path)["BRIGHT(ReasonEmbed)"].notes
    assert any(BIOLOGY in note and "different data revisions" in note for note in notes)


def test_costs_are_summed_and_a_partial_sum_is_none(tmp_path: Path) -> None:
    cost = {"seconds": 3.0, "tokens": 600, "truncated": 1, "dimensions": 384, "device_name": "H200"}
    for task in (BIOLOGY, PONY):
        write_run(tmp_path, "x/a", task, {"q": 0.5}, cost=cost)
        write_run(tmp_path, "x/b", task, {"q": 0.5}, cost=cost | ({"tokens": None} if task == PONY else {}))
    rows = {row.label: row.cost for row in tables(tmp_path)["BRIGHT(ReasonEmbed)"].rows}
    assert (rows["x/a"].seconds, rows["x/a"].tokens, rows["x/a"].truncated) == (6.0, 1200, 2)
    assert (rows["x/a"].dimensions, rows["x/a"].device) == (384, "H200")
    assert (rows["x/b"].seconds, rows["x/b"].tokens) == (6.0, None)
    grid = formats.cost_grid(tables(tmp_path)["BRIGHT(ReasonEmbed)"])
    assert grid is not None
    assert dict(zip(grid.head, grid.rows[0], strict=True))["tokens/s"] == "200"


def test_metrics_are_written_as_people_do() -> None:
    assert [metric_name(name) for name in ("ndcg_at_10", "recall_at_1", "accuracy")] == [
        "nDCG@10",
        "recall@1",
        "accuracy",
    ]
