"""Scoring by one protocol: caching by what decided a result, smoke runs, rerankings, failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import pytest
from evaluation_data import (
    BIOLOGY,
    BIOLOGY_INSTRUCTION,
    ECONOMICS,
    WORDS,
    save_bert,
    write_subset,
)

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation import record as records
from reasonembed_mteb.evaluation import resolving, runner

if TYPE_CHECKING:
    from collections.abc import Callable

    Score = Callable[..., tuple[list[runner.Outcome], list[str]]]


pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def score(tmp_path: Path) -> Score:
    """Return a function that runs models on tasks, and returns outcomes and what was said."""

    def run(
        models: list[Any], tasks: list[str], *, resolve: dict[str, Any] | None = None, **options: Any
    ) -> tuple[list[runner.Outcome], list[str]]:
        said: list[str] = []
        chosen = runner.RunOptions(
            **{"output": tmp_path / "results", "device": "cpu", "progress": False} | options
        )
        metas = [
            m if not isinstance(m, (str, Path)) else resolving.resolve_model(str(m), **resolve or {})
            for m in models
        ]
        outcomes = runner.run(metas, resolving.resolve_tasks([], tasks), chosen, said.append)
        return outcomes, said

    return run


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.mark.usefixtures("data")
def test_second_run_takes_the_cached_score_and_the_record_says_how(
    score: Score, bert: Path, tmp_path: Path
) -> None:
    (first,), _ = score([bert], [BIOLOGY])
    (second,), said = score([bert], [BIOLOGY])
    assert not first.cached
    assert second.cached
    assert first.score == second.score > 0
    assert said == [f"{first.model} on {BIOLOGY}: ndcg_at_10 {100 * first.score:.2f} taken from the cache"]
    file = only(tmp_path, f"results/records/local__*/*/{BIOLOGY}.json")
    result = only(tmp_path, f"results/results/local__*/*/{BIOLOGY}.json")
    assert file.relative_to(tmp_path / "results/records") == result.relative_to(tmp_path / "results/results")
    record = json.loads(file.read_text())
    assert record["causes"]["instruction"] == BIOLOGY_INSTRUCTION
    assert record["causes"]["data_revision"].startswith("xxh3:")
    assert record["causes"]["model_revision"] == result.parent.name
    assert record["causes"]["limit"] is None
    assert record["query_prefix"] == ""
    assert record["max_tokens_in_force"] == 32
    assert (record["dtype"], record["device"]) == ("torch.float32", "cpu")
    assert {"mteb", "torch", "transformers", "sentence-transformers", "reasonembed-mteb"} <= record[
        "versions"
    ].keys()
    assert {"date", "seed", "main_score", "model", "task"} <= record.keys()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("task_instructions", lambda: {BIOLOGY: "another"}, "the task's instruction changed"),
        ("max_tokens_for", lambda _: 7, "the protocol's length changed"),
    ],
)
@pytest.mark.usefixtures("data")
def test_another_protocol_runs_again(
    score: Score, bert: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, words: str
) -> None:
    score([bert], [BIOLOGY])
    monkeypatch.setattr(records, name, value)
    (outcome,), said = score([bert], [BIOLOGY])
    assert not outcome.cached
    assert any(line.endswith(f"running again, {words}") for line in said)
    (outcome,), _ = score([bert], [BIOLOGY])
    assert outcome.cached


def test_other_data_run_again(score: Score, bert: Path, data: Path) -> None:
    score([bert], [BIOLOGY, ECONOMICS])
    write_subset(data, "biology", last=" gold")
    outcomes, said = score([bert], [BIOLOGY, ECONOMICS])
    assert [outcome.cached for outcome in outcomes] == [False, True]
    assert sum("running again, the data changed" in line for line in said) == 1


@pytest.mark.usefixtures("data")
def test_a_changed_directory_is_another_model(score: Score, tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "changing")
    score([folder], [BIOLOGY])
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": {"query": "salt "}}))
    (outcome,), _ = score([folder], [BIOLOGY])
    assert not outcome.cached
    assert len(list((tmp_path / "results/results").glob("*/*"))) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda record, _: record.unlink(), "it has no record of how it was made"),
        (lambda record, _: record.write_text("{"), "its record is damaged"),
        (lambda record, _: record.write_text('{"causes": 1}'), "its record is damaged"),
        (
            lambda _, result: result.write_text(result.read_text() + "\n"),
            "it was written by another program since its record was made",
        ),
    ],
)
@pytest.mark.usefixtures("data")
def test_a_result_that_no_record_vouches_for_runs_again(
    score: Score, bert: Path, tmp_path: Path, damage: Callable[[Path, Path], object], words: str
) -> None:
    score([bert], [BIOLOGY])
    record = only(tmp_path, f"results/records/*/*/{BIOLOGY}.json")
    damage(record, only(tmp_path, f"results/results/*/*/{BIOLOGY}.json"))
    (outcome,), said = score([bert], [BIOLOGY])
    assert not outcome.cached
    assert any(line.endswith(f"running again, {words}") for line in said)
    assert json.loads(record.read_text())["causes"]["max_tokens"] == 8192


@pytest.mark.usefixtures("data")
def test_overwrite_runs_again(score: Score, bert: Path) -> None:
    _, said = score([bert], [BIOLOGY], overwrite=True)
    assert not any("again" in line for line in said)
    (outcome,), said = score([bert], [BIOLOGY], overwrite=True)
    assert not outcome.cached
    assert any("running again, --overwrite" in line for line in said)


@pytest.mark.usefixtures("data")
def test_smoke_run_is_kept_apart(score: Score, bert: Path, tmp_path: Path) -> None:
    score([bert, "mteb/baseline-random-encoder"], [BIOLOGY], limit=2)
    assert not (tmp_path / "results/results").exists()
    file = only(tmp_path, f"results/limit-2/results/local__*/*/{BIOLOGY}.json")
    assert json.loads(file.read_text())["dataset_revision"].endswith("+limit2")
    record = only(tmp_path, f"results/limit-2/records/local__*/*/{BIOLOGY}.json")
    assert json.loads(record.read_text())["causes"]["limit"] == 2
    (outcome,), _ = score([bert], [BIOLOGY])
    assert not outcome.cached
    (task,) = resolving.resolve_tasks([], [BIOLOGY])
    options = runner.RunOptions(tmp_path / "results", limit=3, device="cpu", progress=False)
    runner.run([resolving.resolve_model(str(bert))], [task], options)
    assert "limit" not in task.metadata.dataset["revision"]
    full = only(tmp_path, f"results/results/local__*/*/{BIOLOGY}.json")
    assert "limit" not in json.loads(full.read_text())["dataset_revision"]


@pytest.mark.usefixtures("data")
def test_a_failing_model_does_not_stop_the_others_and_loads_once(
    score: Score, bert: Path, tmp_path: Path
) -> None:
    broken = save_bert(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    meta = resolving.resolve_model(str(broken))
    loads = []
    loader = meta.loader

    def counted(*args: Any, **kwargs: Any) -> Any:
        loads.append(args)
        return loader(*args, **kwargs)

    outcomes, said = score([meta.model_copy(update={"loader": counted}), bert], [BIOLOGY, ECONOMICS])
    assert [outcome.score is None for outcome in outcomes] == [True, True, False, False]
    assert outcomes[0].error
    assert "\n" not in outcomes[0].error
    assert len(loads) == 1
    assert sum("failed" in line for line in said) == 1


def test_a_missing_subset_fails_alone(score: Score, bert: Path, data: Path) -> None:
    (data / "documents/biology-00000-of-00001.parquet").unlink()
    outcomes, _ = score([bert], [BIOLOGY, ECONOMICS])
    assert "documents/biology-*.parquet" in str(outcomes[0].error)
    assert outcomes[1].score is not None


@pytest.mark.usefixtures("data")
def test_an_interrupted_run_goes_on_where_it_stopped(
    score: Score, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = mteb.evaluate

    def interrupted(model: Any, tasks: Any, **kwargs: Any) -> Any:
        if tasks[0].metadata.name == ECONOMICS:
            raise KeyboardInterrupt
        return evaluate(model, tasks, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(mteb, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            score([bert], [BIOLOGY, ECONOMICS])
    outcomes, _ = score([bert], [BIOLOGY, ECONOMICS])
    assert [outcome.cached for outcome in outcomes] == [True, False]


@pytest.mark.usefixtures("data")
def test_cross_encoder_reranks_saved_predictions(
    score: Score, bert: Path, cross: Path, tmp_path: Path
) -> None:
    (alone,), _ = score([cross], [BIOLOGY])
    assert "give --rerank-from FOLDER" in str(alone.error)
    first, second = tmp_path / "first", tmp_path / "second"
    score([bert], [BIOLOGY], prediction_folder=first)
    reranking = {"rerank_from": first, "rerank_top_k": 3}
    (outcome,), _ = score([cross], [BIOLOGY], prediction_folder=second, **reranking)
    assert outcome.error is None
    candidates = json.loads((first / f"{BIOLOGY}_predictions.json").read_text())["default"]["standard"]
    reranked = json.loads(only(second, "rerank-first-top3/*.json").read_text())["default"]["standard"]
    best = {query: sorted(found, key=found.get, reverse=True)[:3] for query, found in candidates.items()}
    assert {query: set(found) for query, found in reranked.items()} == {q: set(d) for q, d in best.items()}
    assert not any(f"d{len(WORDS)}" in found for found in (candidates["q0"], reranked["q0"]))
    assert only(tmp_path, f"results/rerank-first-top3/results/local__*__cross/*/{BIOLOGY}.json")
    assert not list(tmp_path.glob(f"results/results/*__cross/*/{BIOLOGY}.json"))
    (again,), _ = score([cross], [BIOLOGY], **reranking)
    assert again.cached
    # Another first stage is another result.
    write = first / f"{BIOLOGY}_predictions.json"
    write.write_text(write.read_text() + " ")
    (again,), said = score([cross], [BIOLOGY], **reranking)
    assert not again.cached
    assert any("the first stage changed" in line for line in said)
    (missing,), _ = score([cross], [ECONOMICS], **reranking)
    assert "no first-stage predictions" in str(missing.error)


@pytest.mark.usefixtures("data")
def test_limited_reranking_keeps_the_candidates(
    score: Score, bert: Path, cross: Path, tmp_path: Path
) -> None:
    score([bert], [BIOLOGY], prediction_folder=tmp_path / "first")
    options = {"rerank_from": tmp_path / "first", "rerank_top_k": 40, "limit": 1}
    (outcome,), _ = score([cross], [BIOLOGY], prediction_folder=tmp_path / "second", **options)
    assert outcome.error is None
    found = json.loads(only(tmp_path, "second/*/*/*.json").read_text())["default"]["standard"]
    assert list(found) == ["q0"]
    assert len(found["q0"]) == 39


@pytest.mark.usefixtures("data")
def test_predictions_of_several_models_do_not_mix(
    score: Score, bert: Path, prompted: Path, tmp_path: Path
) -> None:
    score([bert], [BIOLOGY])
    folder = tmp_path / "predictions"
    outcomes, said = score([bert, prompted], [BIOLOGY], prediction_folder=folder)
    # The first was cached, but without predictions.
    assert [outcome.cached for outcome in outcomes] == [False, False]
    assert any("its predictions are not in" in line for line in said)
    names = {
        json.loads(file.read_text())["mteb_model_meta"]["model_name"] for file in folder.glob("*/*.json")
    }
    assert len(names) == 2
    assert not list(folder.rglob(".part-*"))
    outcomes, _ = score([bert, prompted], [BIOLOGY], prediction_folder=folder)
    assert [outcome.cached for outcome in outcomes] == [True, True]
    # Those of another model in the same place are not this one's.
    score([prompted], [BIOLOGY], prediction_folder=tmp_path / "one")
    (outcome,), _ = score([bert], [BIOLOGY], prediction_folder=tmp_path / "one")
    assert not outcome.cached
    written = json.loads(only(tmp_path, "one/*.json").read_text())
    assert written["mteb_model_meta"]["model_name"].endswith("__bert")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"rerank_from": Path("gone")},
            "--rerank-from gone does not exist; make it",
        ),
        ({"attn": "flesh"}, "unknown attention 'flesh'; did you mean 'flash'"),
    ],
)
def test_options_that_do_not_hold_are_refused_before_anything_is_loaded(
    options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    metas = resolving.resolve_models(["mteb/baseline-random-encoder"])
    with pytest.raises(ReasonEmbedError, match=problem):
        runner.run(metas, resolving.resolve_tasks([], [BIOLOGY]), runner.RunOptions(tmp_path, **options))
