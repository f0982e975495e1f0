"""The specialisation tax: macro means, differences paired by query, suites that do not fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from poisoning_data import write_beir

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.evaluation.resolving import resolve_model, resolve_tasks
from reasonembed_mteb.evaluation.runner import Outcome, RunOptions
from reasonembed_mteb.evaluation.scores import write_scores
from reasonembed_mteb.evaluation.tax_record import read_tax, write_tax
from reasonembed_mteb.retrieval.beir_task import beir_task
from reasonembed_mteb.robustness import tax
from reasonembed_mteb.robustness.tax import specialisation_tax, tax_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from conftest import Command

pytestmark = pytest.mark.usefixtures("registered")
RANDOM = "mteb/baseline-random-encoder"


def outcomes(folder: Path, scores: dict[str, dict[str, list[float]]]) -> Any:
    """Return a stand-in for a run: scores by model, task and query."""

    def run(models: Sequence[Any], tasks: Sequence[Any], *_: Any) -> list[Outcome]:
        found = []
        for meta in models:
            for task in tasks:
                name = task.metadata.name
                file = folder / f"{str(meta.name).replace('/', '-')}-{name}.parquet"
                rows = [
                    {"split": "test", "subset": "default", "query_id": f"q{n}", "ndcg_at_10": value}
                    | {"gold_ids": [], "document_ids": [], "scores": []}
                    for n, value in enumerate(scores[meta.name][name])
                ]
                write_scores(file, {}, rows)
                found.append(Outcome(meta.name, name, "ndcg_at_10", 0.5, scores_file=file))
        return found

    return run


def test_differences_are_macro_means_paired_by_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    names = ("SciFact", "NFCorpus", "ArguAna")
    sizes = dict(zip(names, (40, 10, 25), strict=True))
    scores = {m: {n: draw.random(size).tolist() for n, size in sizes.items()} for m in (RANDOM, "bm25s")}
    scores["mteb/baseline-bm25s"] = scores.pop("bm25s")
    monkeypatch.setattr(tax, "run", outcomes(tmp_path, scores))
    tasks = resolve_tasks([], names)
    base, model = resolve_model("bm25"), resolve_model(RANDOM)
    (record,), _ = specialisation_tax([model], base, tasks[:2], tasks[2:], RunOptions(output=tmp_path))
    ours, theirs = scores[RANDOM], scores[str(base.name)]
    expected = [np.mean(one["SciFact"]) / 2 + np.mean(one["NFCorpus"]) / 2 for one in (ours, theirs)]
    assert [record.reasoning.mean, record.reasoning.baseline_mean] == pytest.approx(expected)
    assert record.reasoning.difference[0] == pytest.approx(expected[0] - expected[1])
    assert record.reasoning.pooled == pytest.approx(np.mean(ours["SciFact"] + ours["NFCorpus"]))
    assert (record.reasoning.queries, record.general.queries) == (50, 25)
    # The interval by a plain bootstrap of the weighted differences.
    weights = np.repeat([50 / (2 * 40), 50 / (2 * 10)], [40, 10])
    gaps = weights * (np.array(ours["SciFact"] + ours["NFCorpus"]) - (theirs["SciFact"] + theirs["NFCorpus"]))
    means = [gaps[draw.integers(0, 50, 50)].mean() for _ in range(4000)]
    assert record.reasoning.difference[1:] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)
    file = tmp_path / "record.json"
    write_tax(file, record)
    assert read_tax(file) == record
    assert tax_name(record).startswith(f"{RANDOM}-over-mteb/baseline-bm25s-")


def test_two_suites_are_run_and_reported(command: Command, bert: Path, tmp_path: Path) -> None:
    folders = [str(write_beir(tmp_path / name, documents=20, queries=6)) for name in ("hard", "plain")]
    given = ["-m", str(bert), "--baseline", RANDOM, "--beir", folders[0], "--general-beir", folders[1]]
    status, out, said = command("tax", *given, "--output-folder", "out")
    assert status == 0, said
    assert "against mteb/baseline-random-encoder, in %" in out
    (file,) = (tmp_path / "out" / "chapters" / "tax").iterdir()
    record = read_tax(file)
    assert (record.reasoning.queries, record.general.queries) == (6, 6)
    assert record.limit is None
    # The second call takes the scores of the first.
    status, again, said = command("tax", *given, "--output-folder", "out")
    assert (status, again) == (0, out)
    assert "taken from the cache" in said
    status, page, _ = command("report", "out", "--format", "json")
    assert status == 0
    chapter = json.loads(page)["chapters"]["tax"]
    assert chapter["data"][0]["model"] == record.model


def test_suites_that_do_not_fit_are_refused(tmp_path: Path, bert: Path) -> None:
    options = RunOptions(output=tmp_path)
    base, model = resolve_model(RANDOM), resolve_model(str(bert))
    one = beir_task(write_beir(tmp_path / "one"))
    other = beir_task(write_beir(tmp_path / "other", queries=5))
    with pytest.raises(ReasonEmbedError, match="the general suite has no task"):
        specialisation_tax([model], base, [one], [], options)
    with pytest.raises(ReasonEmbedError, match="would be in both suites"):
        specialisation_tax([model], base, [one], [one], options)
    with pytest.raises(ReasonEmbedError, match="is compared with other models: give one by --model"):
        specialisation_tax([base], base, [one], [other], options)
    with pytest.raises(ReasonEmbedError, match="no retrieval tasks: STSBenchmark"):
        specialisation_tax([model], base, [one], resolve_tasks([], ["STSBenchmark"]), options)


def test_a_model_that_fails_has_no_record_and_a_baseline_must_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"name": RANDOM}

    def run(models: Sequence[Any], tasks: Sequence[Any], *_: Any) -> list[Outcome]:
        scored = outcomes(tmp_path, {m.name: {t.metadata.name: [0.5, 1.0] for t in tasks} for m in models})
        found: list[Outcome] = scored(models, tasks)
        for outcome in found:
            outcome.error = "no memory" if outcome.model == failing["name"] else None
        return found

    monkeypatch.setattr(tax, "run", run)
    tasks = resolve_tasks([], ["SciFact", "NFCorpus"])
    given = ([resolve_model(RANDOM)], resolve_model("bm25"), tasks[:1], tasks[1:], RunOptions())
    records, found = specialisation_tax(*given)
    assert records == []
    assert sum(one.error is not None for one in found) == 2
    failing["name"] = "mteb/baseline-bm25s"
    with pytest.raises(ReasonEmbedError, match=r"the baseline mteb/baseline-bm25s failed.*no memory"):
        specialisation_tax(*given)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "reasoning": 3}'])
def test_damaged_records_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "record.json"
    file.write_text(content)
    with pytest.raises(DataError, match="run `reasonembed tax` again"):
        read_tax(file)
    with pytest.raises(DataError):
        read_tax(tmp_path / "none.json")


def test_options_of_folders_need_folders(command: Command) -> None:
    for option in ("--beir-split", "--general-instruction"):
        status, _, said = command("tax", "-m", "bm25", option, "x")
        assert status == 2
        assert f"{option} goes with" in said
