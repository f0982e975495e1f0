"""Tables written as text: Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pytest
from reporting_data import (
    BIOLOGY,
    tables,
    write_all,
    write_result,
    write_tested,
)

from reasonembed_mteb.reporting import formats
from reasonembed_mteb.reporting.report import ReportOptions, write_report
from reasonembed_mteb.reporting.results import read_results

if TYPE_CHECKING:
    from pathlib import Path


def test_markdown_and_latex_escape_what_a_name_holds(tmp_path: Path) -> None:
    write_result(tmp_path, "x/a|b_c<i>$&", BIOLOGY, 0.5)
    table = tables(tmp_path)["BRIGHT(ReasonEmbed)"]
    markdown = formats.as_markdown(formats.score_grid(table))
    assert r"x/a\|b\_c&lt;i&gt;\$&amp;" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in rows}) == 1
    latex = formats.as_latex(formats.score_grid(table))
    assert r"x/a|b\_c\textless{}i\textgreater{}\$\&" in latex
    body = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")]
    counts = {line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")}
    assert counts == {len(formats.score_grid(table).head) - 1}


def test_csv_has_every_cell(tmp_path: Path) -> None:
    write_all(tmp_path, "=cmd/x", [0.5] * 11)
    rows = list(csv.DictReader(io.StringIO(formats.as_csv(list(tables(tmp_path).values())))))
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
