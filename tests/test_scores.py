"""Scores by query, and rankings as TREC runs: what is written is what was scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation import resolving, runner
from reasonembed_mteb.evaluation.scores import check_pattern, read_scores, write_runs, write_scores
from reasonembed_mteb.retrieval.trec import read_run

if TYPE_CHECKING:
    from pathlib import Path

RANDOM, PONY = "mteb/baseline-random-encoder", "ReasonMiniPony"


pytestmark = pytest.mark.usefixtures("registered")


def run(output: Path, pattern: str, *tasks: str) -> list[runner.Outcome]:
    options = runner.RunOptions(output=output, run_file=pattern, progress=False)
    return runner.run(
        resolving.resolve_models([RANDOM]), resolving.resolve_tasks([], list(tasks)), options, print
    )


def test_a_run_scores_as_the_task_did_also_from_the_cache(tmp_path: Path) -> None:
    from pytrec_eval import RelevanceEvaluator

    pattern = str(tmp_path / "{model}-{task}.trec.gz")
    written = tmp_path / f"{RANDOM.replace('/', '__')}-{PONY}.trec.gz"
    (first,) = run(tmp_path / "results", pattern, PONY)
    content = written.read_bytes()
    written.unlink()
    (again,) = run(tmp_path / "results", pattern, PONY)
    assert again.cached
    assert written.read_bytes() == content
    (file,) = (tmp_path / "results").rglob(f"{PONY}.parquet")
    kept, found = read_scores(file), read_run(written)
    gold = {query: dict.fromkeys(kept.gold(query), 1) for query in kept.query_ids}
    by_query = RelevanceEvaluator(gold, {"ndcg_cut.10"}).evaluate(found)
    mean = sum(row["ndcg_cut_10"] for row in by_query.values()) / len(gold)
    assert first.score == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("one.trec", "several rankings would share one.trec"),
        ("{model}.trec", "several rankings would share"),
        ("{tusk}.trec", "did you mean 'task'"),
        ("{task.trec", "double a brace"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused_before_anything_runs(
    pattern: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ReasonEmbedError, match=said):
        run(tmp_path / "results", pattern, PONY, "ReasonMiniAops")
    assert not (tmp_path / "results").exists()


def test_subsets_of_one_task_have_files_of_their_own(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "split": "test",
            "subset": subset,
            "query_id": "0",
            "gold_ids": ["a b"],
            "document_ids": ["a b", "c"],
            "scores": [score, 0.5],
        }
        for subset, score in (("one", 2.0), ("two", 3.0))
    ]
    write_scores(tmp_path / "kept.parquet", {"task": "Two"}, rows)
    files = write_runs(str(tmp_path / "{task}-{subset}.run"), "a/model 1", tmp_path / "kept.parquet")
    assert [file.name for file in files] == ["Two-one.run", "Two-two.run"]
    assert read_run(files[1]) == {"0": {"a b": 3.0, "c": 0.5}}
    assert files[0].read_text(encoding="utf-8").splitlines()[0] == "0\tQ0\ta b\t1\t2.0\ta/model_1"


def test_one_ranking_needs_no_place() -> None:
    check_pattern("run.trec", [RANDOM], resolving.resolve_tasks([], [PONY]))
