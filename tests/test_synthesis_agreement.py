"""Agreement of two annotators."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from remixer_script import answer, make_config, write_lines
from stub_server import StubServer

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.synthesis.agreement import agreements, compare_labels, read_gold_labels
from reasonembed_mteb.synthesis.annotate import labelled
from reasonembed_mteb.synthesis.pipeline import make_client, synthesize
from reasonembed_mteb.synthesis.step import Run

if TYPE_CHECKING:
    from pathlib import Path


def by_hand(first: list[int], second: list[int], power: int) -> float:
    """Weighted kappa from its definition: 1 - observed / expected disagreement."""
    table = np.zeros((5, 5))
    for one, two in zip(first, second, strict=True):
        table[one - 1, two - 1] += 1
    weights = abs(np.subtract.outer(np.arange(5), np.arange(5))) ** power
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    return float(1 - (weights * table).sum() / (weights * expected).sum())


def test_kappa_is_what_its_definition_says() -> None:
    draw = np.random.default_rng(0)
    first = draw.integers(1, 6, 200).tolist()
    second = np.clip(np.array(first) + draw.integers(-1, 2, 200), 1, 5).tolist()
    found = compare_labels(first, second)
    assert found.linear == pytest.approx(by_hand(first, second, 1))
    assert found.quadratic == pytest.approx(by_hand(first, second, 2))
    assert found.within_one == 1.0
    assert found.exact == np.mean(np.array(first) == np.array(second))
    assert sum(map(sum, found.table)) == found.pairs == 200
    assert found.table[0][1] == sum(a == 1 and b == 2 for a, b in zip(first, second, strict=True))


def test_unjudged_pairs_are_left_out() -> None:
    found = compare_labels([1, 3, -1, 5], [1, 2, 3, -1])
    assert (found.pairs, found.unjudged, found.exact, found.same_side) == (2, 2, 0.5, 0.5)
    with pytest.raises(DataError, match="none of 1 pairs"):
        compare_labels([-1], [3])
    with pytest.raises(DataError, match="1 labels against 2"):
        compare_labels([1], [1, 2])


def test_kappa_without_meaning_is_nan() -> None:
    assert math.isnan(compare_labels([3, 3], [3, 3]).linear)
    assert compare_labels([1, 2, 5], [1, 2, 5]).quadratic == 1.0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"query_id": "a", "document_id": "b"}', "needs query_id, document_id and label"),
        ('{"query_id": "a", "document_id": "b", "label": 6}', "label 6 is not one of 1 to 5"),
        ('{"query_id": "a", "document_id": "b", "label": true}', "label True"),
        ("{", "labels.jsonl:1"),
    ],
)
def test_wrong_gold_files(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_gold_labels(tmp_path / "labels.jsonl")


def test_two_labels_for_one_pair(tmp_path: Path) -> None:
    rows = [{"query_id": "a", "document_id": "b", "label": label} for label in (1, 1, 2)]
    with pytest.raises(DataError, match=r"gold.jsonl:3: query a and document b have two labels"):
        read_gold_labels(write_lines(tmp_path / "gold.jsonl", rows))


def test_against_a_second_annotator_and_a_gold_file(tmp_path: Path) -> None:
    steps = ("clean", "generate", "mine", "annotate")
    more = "[clean]\nskip = true\n[sources]\nper_subset = 5\n"
    with StubServer(answer) as server:
        config = make_config(tmp_path, server.base_url, more)
        synthesize(config, steps)
        run = Run(config, make_client(config))
        rows = list(labelled(run, config.subset[0]).rows())
        pairs = [(r["id"], d, lab) for r in rows for d, lab in zip(r["documents"], r["labels"], strict=True)]
        gold = [
            {"query_id": q, "document_id": d, "label": 1 if lab == 5 else lab} for q, d, lab in pairs[:12]
        ]
        write_lines(tmp_path / "gold.jsonl", [*gold, {"query_id": "x", "document_id": "y", "label": 3}])
        # The same model under another name: its seed and so its labels are the same.
        second = "[annotate]\nsecond_endpoint = 'twin'\nsecond_queries = 3\ngold = 'gold.jsonl'\n"
        second += f"[endpoints.twin]\nmodel = 'twin'\nbase_url = '{server.base_url}'"
        config = make_config(tmp_path, server.base_url, more + second)
        synthesize(config, steps)
        found = agreements(Run(config, make_client(config)), config.subset[0])
    assert found["second annotator"].pairs == sum(len(row["documents"]) for row in rows[:3])
    assert found["second annotator"].exact == 1.0
    changed = sum(lab == 5 for *_, lab in pairs[:12])
    assert found["gold file"].pairs == 12
    assert found["gold file"].exact == pytest.approx(1 - changed / 12)
    assert json.dumps(found["gold file"].table)
