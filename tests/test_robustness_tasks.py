"""Tasks with varied queries: their own names, the same documents, and what models are told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import pytest
from evaluation_data import BIOLOGY, BIOLOGY_INSTRUCTION, TEMPLATE, save_bert
from variation_texts import PARAPHRASES
from wordnet_data import dictionary

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.limits import asked_as, limit_task, own_copy
from reasonembed_mteb.evaluation.record import find_causes
from reasonembed_mteb.evaluation.resolving import resolve_model
from reasonembed_mteb.evaluation.runner import RunOptions, run
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.retrieval.beir_task import beir_task
from reasonembed_mteb.robustness.tasks import count_varied, query_texts, vary_task
from reasonembed_mteb.robustness.variations import Variation
from reasonembed_mteb.robustness.wordnet import WordNet

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

pytestmark = pytest.mark.usefixtures("registered")
SHUFFLE = Variation("shuffle", 5)


def texts(task: Any) -> list[str]:
    task.load_data()
    return list(query_texts(task))


def write_beir(folder: Path, queries: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "leaf"}\n{"_id": "d2", "text": "x"}\n')
    (folder / "queries.jsonl").write_text(queries)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return folder


def mtebs_own() -> AbsTask:
    """Return one of MTEB's own tasks, its data in MTEB's first format."""
    task: Any = mteb.get_task("NanoSciFactRetrieval")
    split = task.eval_splits[0]
    task.queries = {split: {"q1": "cell leaf water", "q2": "light root soil"}}
    task.corpus = {split: {"d1": {"title": "", "text": "cell"}, "d2": {"title": "t", "text": "light"}}}
    task.relevant_docs = {split: {"q1": {"d1": 1}, "q2": {"d2": 1}}}
    task.data_loaded = True
    return task  # type: ignore[no-any-return]


@pytest.mark.usefixtures("data")
def test_only_the_queries_and_the_name_differ() -> None:
    task: Any = mteb.get_task(BIOLOGY)
    varied: Any = vary_task(task, SHUFFLE)
    assert varied.metadata.name == f"{BIOLOGY}.shuffle-5"
    assert not task.data_loaded
    varied.load_data()
    task.load_data()
    (before,), (after,) = (list(one.dataset["default"].values()) for one in (task, varied))
    assert before["corpus"] is not None
    assert list(after["corpus"]["text"]) == list(before["corpus"]["text"])
    assert after["relevant_docs"] == before["relevant_docs"]
    assert after["excluded_ids"] == before["excluded_ids"]
    assert list(after["queries"]["id"]) == list(before["queries"]["id"])
    assert after["queries"].features == before["queries"].features
    pairs = list(zip(before["queries"]["text"], after["queries"]["text"], strict=True))
    assert all(sorted(a.split()) == sorted(b.split()) for a, b in pairs)
    assert any(a != b for a, b in pairs)
    # Loaded again, it is varied again.
    first = texts(varied)
    varied.unload_data()
    assert varied.metadata.name == f"{BIOLOGY}.shuffle-5"
    assert texts(varied) == first


@pytest.mark.usefixtures("data")
def test_loaded_data_are_not_loaded_again_and_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = mteb.get_task(BIOLOGY)
    before = texts(task)
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", "/nowhere")
    assert texts(vary_task(task, SHUFFLE)) != before
    assert texts(task) == before


@pytest.mark.usefixtures("data")
def test_the_model_is_told_what_the_task_itself_tells(bert: Path) -> None:
    task, varied = mteb.get_task(BIOLOGY), vary_task(mteb.get_task(BIOLOGY), SHUFFLE)
    assert asked_as(varied).name == BIOLOGY
    meta = resolve_model(str(bert), template=TEMPLATE)
    plain, changed = find_causes(meta, task), find_causes(meta, varied)
    assert changed.instruction == plain.instruction == BIOLOGY_INSTRUCTION
    assert changed.max_tokens == plain.max_tokens
    # The varied data are other data: kind, strength, seed and version stand in the revision.
    assert (changed.data_revision or "").startswith(f"{plain.data_revision}+shuffle-5:")
    other = find_causes(meta, vary_task(task, Variation("shuffle", 27)))
    assert other.data_revision != changed.data_revision
    assert find_causes(meta, own_copy(varied)) == changed


@pytest.mark.usefixtures("data")
def test_a_run_files_it_apart_with_the_same_prefix(bert: Path, tmp_path: Path) -> None:
    from reasonembed_mteb.evaluation.record import read_record

    options = RunOptions(
        tmp_path / "out", device="cpu", progress=False, prediction_folder=tmp_path / "predictions"
    )
    tasks = [mteb.get_task(BIOLOGY), vary_task(mteb.get_task(BIOLOGY), SHUFFLE)]
    outcomes = run([resolve_model(str(bert), template=TEMPLATE)], tasks, options)
    assert [one.error for one in outcomes] == [None, None]
    records = [read_record((one.scores_file or Path()).with_suffix(".json")) for one in outcomes]
    assert records[0].query_prefix == records[1].query_prefix
    assert BIOLOGY_INSTRUCTION in (records[1].query_prefix or "")
    assert records[1].task == f"{BIOLOGY}.shuffle-5"
    assert (records[1].dataset_revision or "").endswith((records[1].causes.data_revision or "?")[-8:])
    named = sorted(file.name for file in (tmp_path / "predictions").glob("*.json"))
    assert named == [f"{BIOLOGY}.shuffle-5_predictions.json", f"{BIOLOGY}_predictions.json"]
    again = run([resolve_model(str(bert), template=TEMPLATE)], tasks, options)
    assert [one.cached for one in again] == [True, True]


@pytest.mark.usefixtures("data")
def test_a_prompt_of_the_tasks_name_goes_before_varied_queries(
    prompted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str | None] = []
    encode = ReasonEmbed.encode

    def collect(self: ReasonEmbed, inputs: Any, **kwargs: Any) -> Any:
        prompts.append(kwargs.get("prompt"))
        return encode(self, inputs, **kwargs)

    monkeypatch.setattr(ReasonEmbed, "encode", collect)
    options = RunOptions(tmp_path / "out", device="cpu", progress=False)
    (outcome,) = run([resolve_model(str(prompted))], [vary_task(mteb.get_task(BIOLOGY), SHUFFLE)], options)
    assert outcome.error is None
    # The directory has one for queries of this task, and another for all other tasks.
    assert "cell " in prompts
    assert "leaf " not in prompts


def test_mtebs_own_tasks_and_beir_folders_are_varied(tmp_path: Path) -> None:
    assert sorted(texts(vary_task(mtebs_own(), SHUFFLE))[0].split()) == ["cell", "leaf", "water"]
    folder = write_beir(tmp_path / "beir", '{"_id": "q1", "text": "one two three four five six"}\n')
    (varied,) = texts(vary_task(beir_task(folder), SHUFFLE))
    assert varied != "one two three four five six"
    assert sorted(varied.split()) == sorted(["one", "two", "three", "four", "five", "six"])


@pytest.mark.usefixtures("data")
def test_a_smoke_run_varies_its_queries_alike() -> None:
    whole: Any = vary_task(mteb.get_task(BIOLOGY), SHUFFLE)
    limited: Any = own_copy(vary_task(mteb.get_task(BIOLOGY), SHUFFLE))
    limit_task(limited, 2)
    assert texts(limited) == texts(whole)[:2]
    assert limited.metadata.dataset["revision"].endswith("+limit2")


def test_only_queries_that_are_scored_count(tmp_path: Path) -> None:
    rows = [f'{{"_id": "q{number}", "text": "root {number}"}}\n' for number in (2, 1, 3)]
    task = beir_task(write_beir(tmp_path / "data", "".join(rows)))
    assert texts(task) == ["root 1"]
    # As a smoke run, which cuts first.
    limited: Any = own_copy(task)
    limit_task(limited, 2)
    assert list(query_texts(task, 2)) == texts(limited) == ["root 1"]
    with pytest.raises(DataError, match=r"none of the first 1 queries of \S+ has a label.* --limit"):
        list(query_texts(task, 1))
    task.dataset["default"]["test"]["relevant_docs"] = {"q1": {}}
    with pytest.raises(DataError, match=r"none of the queries of \S+ has a label"):
        list(query_texts(task))


def test_what_cannot_be_varied_is_refused() -> None:
    with pytest.raises(DataError, match="STS12 is no retrieval task: its queries cannot be varied"):
        vary_task(mteb.get_task("STS12"), SHUFFLE)
    task: Any = mtebs_own()
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    split = task.dataset["default"][task.eval_splits[0]]
    split["queries"] = split["queries"].select([])
    varied: Any = vary_task(task, SHUFFLE)
    with pytest.raises(DataError, match="NanoSciFactRetrieval has no queries left"):
        varied.load_data()
    # A failure does not leave the task's own queries behind as if they were varied.
    assert not varied.data_loaded
    split["queries"] = split["queries"].rename_column("text", "image")
    split["queries"] = split["queries"].add_item({"id": "q", "image": "x"})
    with pytest.raises(DataError, match="queries that are no texts but NoneType"):
        vary_task(task, SHUFFLE).load_data()


def test_counts_say_what_was_changed() -> None:
    source = WordNet(dictionary(), Path("tiny"))
    given = ["the mouse", "\u043f\u043e\r\n\u043d\u0435", "box box zebra", "the of"]
    one = Variation("synonyms", 5, 0.5, synonyms=source)
    counts = count_varied(given, [one.vary(text) for text in given])
    assert (counts.queries, counts.changed_queries) == (4, 2)
    assert (counts.words, counts.eligible_words, counts.changed_words) == (9, 3, 2)
    assert counts.kept == {"nothing eligible": 2}
    shown = Variation("paraphrase", paraphrases=PARAPHRASES)
    assert count_varied(["city"], [shown.vary("city")]).kept == {"no paraphrase": 1}


def test_a_bare_model_of_mteb_runs_it(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(save_bert(tmp_path / "model")), device="cpu")
    result = mteb.evaluate(
        model, [vary_task(mtebs_own(), SHUFFLE)], cache=None, co2_tracker=False, show_progress_bar=False
    ).task_results[0]
    assert result.task_name == "NanoSciFactRetrieval.shuffle-5"
    assert "+shuffle-5:" in result.dataset_revision
    assert 0 <= result.scores["train"][0]["ndcg_at_10"] <= 1
