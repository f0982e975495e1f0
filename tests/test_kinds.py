"""Kinds of systems, and that no table of scores mixes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from reporting_data import BIOLOGY, BRIGHT, write_result

from reasonembed_mteb.evaluation.kinds import kind_of
from reasonembed_mteb.reporting.results import read_results
from reasonembed_mteb.reporting.suites import suite_tables
from reasonembed_mteb.reporting.tables import score_tables
from reasonembed_mteb.retrieval.rows import suites

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("reasoning/x-itself-8", "models that reason before they embed"),
        ("org/reasoning", ""),
        ("reasoning", ""),
        ("local/a__b", ""),
    ],
)
def test_a_name_says_its_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("together", [False, True])
def test_models_that_reason_have_tables_of_their_own(together: bool, tmp_path: Path) -> None:
    for task in BRIGHT:
        write_result(tmp_path, "org/plain", task, 0.3)
        write_result(tmp_path, "reasoning/plain-itself-64", task, 0.4)
    write_result(tmp_path, "org/plain", f"{BIOLOGY}Gpt4Reason", 0.5)
    tables = score_tables(read_results([tmp_path]), together=together)
    held = [{row.model.name.partition("/")[0] for row in table.rows} for table in tables]
    assert {"reasoning"} in held
    assert all(len(names) == 1 for names in held)
    (own,) = [table for table in tables if "models that reason" in table.name]
    assert own.published == own.name
    assert own.rows[0].rank == 1


def test_a_suite_counts_single_models_alone(tmp_path: Path) -> None:
    suite = min(suites().values(), key=lambda one: sum(map(len, one.rows().values())))
    for row in [row for rows in suite.rows().values() for row in rows]:
        write_result(tmp_path, "reasoning/plain-itself-64", row.name, 0.4, metric=row.main_score)
        write_result(tmp_path, "org/plain", row.name, 0.3, metric=row.main_score)
    tables = suite_tables(read_results([tmp_path]))
    assert tables
    for table in tables:
        assert [row.model.name for row in table.rows] == ["org/plain"]
