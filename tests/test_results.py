"""Reading result folders: what holds is read, what does not is named."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mteb.models import ModelMeta
from reporting_data import record, write_result, write_run

from reasonembed_mteb.errors import DataError, ReasonEmbedError, UnknownNameError
from reasonembed_mteb.evaluation.record import Causes, Record, RunCost, read_record, write_record
from reasonembed_mteb.files import file_hash
from reasonembed_mteb.reporting.queries import read_columns, read_rankings, read_scores_by_query
from reasonembed_mteb.reporting.results import read_results

if TYPE_CHECKING:
    from pathlib import Path

BIOLOGY, PONY = "ReasonEmbedBrightBiology", "ReasonEmbedBrightPony"


@pytest.mark.parametrize("part", [".", "results", "results/a__m", "results/a__m/r1"])
def test_results_are_found_from_any_folder(tmp_path: Path, part: str) -> None:
    record(write_result(tmp_path, "a/m", BIOLOGY, 0.25), cost={"seconds": 7.0})
    results = read_results([tmp_path / part])
    assert not results.problems
    (found,) = results.found
    assert (found.model.name, found.model.revision, found.task) == ("a/m", "r1", BIOLOGY)
    assert (found.score, found.metric, found.split, found.seconds) == (0.25, "ndcg_at_10", "standard", 7.0)
    assert found.meta["embed_dim"] == 384


def test_others_results_need_no_record_or_metadata(tmp_path: Path) -> None:
    file = write_result(tmp_path, "org/model", "BrightBiologyRetrieval", 0.5)
    (file.parent / "model_meta.json").unlink()
    (found,) = read_results([tmp_path]).found
    assert (found.model.name, found.model.revision) == ("org/model", "r1")
    assert (found.record, found.scores_file, found.seconds) == (None, None, 2.0)


def test_a_folder_of_the_first_version_is_read(tmp_path: Path) -> None:
    """Records and scores by query as 0.1.0 wrote them, key by key."""
    file = write_result(tmp_path, "a/m", BIOLOGY, 0.25)
    causes = {
        "protocol": "ReasonEmbed",
        "instruction": "Given a Biology post, retrieve relevant passages that help answer the post",
        "max_tokens": 32768,
        "data_revision": "d1",
        "model_revision": "r1",
        "loader": {"no_instruction": True},
        "rerank": "0123abcd top 50",
        "limit": 7,
    }
    old = {
        "model": "a/m",
        "task": BIOLOGY,
        "query_prefix": "Instruct: ",
        "max_tokens_in_force": 512,
        "main_score": 0.25,
        "dataset_revision": "d1",
        "dtype": "torch.float32",
        "device": "cpu",
        "seed": None,
        "cost": {
            "seconds": 7.5,
            "texts": 3,
            "tokens": 90,
            "truncated": 1,
            "dimensions": 8,
            "device_name": None,
        },
        "versions": {"mteb": "2.26.24"},
        "date": "2026-10-01T00:00:00+00:00",
        "predictions": None,
        "scores": "ab",
    }
    beside = record(file, causes=causes, **old)
    columns = {"split": ["standard"], "subset": ["default"], "query_id": ["q1"], "ndcg_at_10": [0.25]}
    columns |= {"gold_ids": [["d1"]], "document_ids": [["d1", "d2"]], "scores": [[0.5, 0.25]]}
    metadata = {b"reasonembed": json.dumps({"format": 1, "task": BIOLOGY}).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), beside.with_suffix(".parquet"))
    (found,) = read_results([tmp_path]).found
    assert found.record is not None
    assert asdict(found.record) == old | {"causes": causes, "result": found.record.result, "engine": None}
    assert (found.seconds, found.limit, found.model.options) == (7.5, 7, "reranks the top 50")
    assert read_scores_by_query(found) == {"q1": 0.25}
    assert read_rankings(found, ["q1"])["q1"].hits == [("d1", 0.5), ("d2", 0.25)]


def test_a_record_of_a_later_version_is_read(tmp_path: Path) -> None:
    file = write_result(tmp_path, "a/m", BIOLOGY, 0.25)
    record(file, causes={"limit": 3, "weather": "fine"}, cost={"seconds": 1.0, "watts": 3}, new=[1])
    (found,) = read_results([tmp_path]).found
    assert (found.limit, found.seconds) == (3, 1.0)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text("{}")
    made = Record(
        Causes("p", "i", 5, loader={"a": [1]}), "a/m", "t", cost=RunCost(1.5, 2), versions={"mteb": "2"}
    )
    write_record(tmp_path / "r.json", made, result)
    assert read_record(tmp_path / "r.json") == replace(made, result=file_hash(result))
    for damaged in ("", "[]", "{}", '{"result": 3}', '{"result": "a", "causes": 5}'):
        (tmp_path / "r.json").write_text(damaged)
        with pytest.raises(DataError, match="damaged; run the task again"):
            read_record(tmp_path / "r.json")


def test_a_folder_without_revisions_is_read(tmp_path: Path) -> None:
    file = write_result(tmp_path, "org/model", BIOLOGY, 0.5)
    (file.parent / "model_meta.json").unlink()
    (tmp_path / "old" / "org__model").mkdir(parents=True)
    file.rename(tmp_path / "old" / "org__model" / file.name)
    (found,) = read_results([tmp_path / "old"]).found
    assert (found.model.name, found.model.revision) == ("org/model", "no_revision_available")


def test_a_result_of_an_old_mteb_is_read_by_mteb(tmp_path: Path) -> None:
    file = write_result(tmp_path, "a/m", "SciFact", 0.5)
    old = {
        "mteb_dataset_name": "SciFact",
        "mteb_version": "1.1.0",
        "dataset_revision": "d0",
        "test": {"ndcg_at_10": 0.61, "evaluation_time": 4.0},
    }
    file.write_text(json.dumps(old))
    (found,) = read_results([tmp_path]).found
    assert (found.score, found.mteb_version, found.seconds) == (0.61, "1.1.0", 4.0)


def test_a_task_of_several_subsets_gives_one_result_each(tmp_path: Path) -> None:
    write_result(
        tmp_path, "a/m", "BrightRetrieval", 0.2, splits=["standard", "long"], subsets=["biology", "pony"]
    )
    found = {(one.split, one.subset) for one in read_results([tmp_path]).found}
    assert found == {(split, subset) for split in ("standard", "long") for subset in ("biology", "pony")}


def test_only_the_split_of_the_table_counts(tmp_path: Path) -> None:
    write_result(tmp_path, "a/m", BIOLOGY, 0.2, splits=["dev", "standard"])
    assert [one.split for one in read_results([tmp_path]).found] == ["standard"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"task_name": "Reas', "half-written"),
        ("[1, 2]", "names no task"),
        ('{"name": "x"}', "names no task"),
        ('{"task_name": "ReasonEmbedBrightPony", "mteb_version": "2.26.24"}', "cannot read it"),
        ('{"mteb_dataset_name": "NoSuchTask", "test": {"ndcg_at_10": 0.5}}', "cannot read it"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path, content: str, said: str) -> None:
    write_result(tmp_path, "a/m", BIOLOGY, 0.25)
    bad = write_result(tmp_path, "a/m", PONY, 0.5)
    bad.write_text(content)
    results = read_results([tmp_path])
    assert [one.task for one in results.found] == [BIOLOGY]
    (problem,) = results.problems
    assert problem.startswith(f"{bad}: ")
    assert said in problem


@pytest.mark.parametrize(
    ("score", "entry", "said"),
    [
        (float("nan"), {}, "NaN"),
        (float("inf"), {}, "infinite"),
        (None, {"ndcg_at_10": 0.5}, "not a number"),
        (True, {}, "not a number"),
        (38.1, {}, "lies in [0, 1]"),
        (-0.1, {}, "lies in [0, 1]"),
        (0.5, {"ndcg_at_10": 0.4}, "is not its ndcg_at_10"),
    ],
)
def test_a_score_that_cannot_be_is_refused(
    tmp_path: Path, score: object, entry: dict[str, float], said: str
) -> None:
    write_result(tmp_path, "a/m", BIOLOGY, score, entry=entry)
    results = read_results([tmp_path])
    assert not results.found
    assert said in results.problems[0]


def test_no_scores_at_all_are_a_problem(tmp_path: Path) -> None:
    write_result(tmp_path, "a/m", BIOLOGY, 0.5, content={"scores": {}})
    assert "holds no scores" in read_results([tmp_path]).problems[0]


def test_a_file_edited_after_its_record_is_left_out(tmp_path: Path) -> None:
    file = write_result(tmp_path, "a/m", BIOLOGY, 0.25)
    beside = record(file)
    assert len(read_results([tmp_path]).found) == 1
    file.write_text(file.read_text().replace("0.25", "0.35"))
    results = read_results([tmp_path])
    assert not results.found
    assert "changed since it was recorded" in results.problems[0]
    beside.unlink()
    assert read_results([tmp_path]).found[0].score == 0.35


def test_another_split_than_the_tasks_is_refused(tmp_path: Path) -> None:
    write_result(tmp_path, "a/m", BIOLOGY, 0.2, splits=["dev"])
    assert "it has split dev, and the task's is standard" in read_results([tmp_path]).problems[0]


@pytest.mark.parametrize("damage", [{"causes": "none"}, {"cost": [1]}, {"cost": {"seconds": "3 s"}}])
def test_a_damaged_record_is_named(tmp_path: Path, damage: dict[str, object]) -> None:
    beside = record(write_result(tmp_path, "a/m", BIOLOGY, 0.2), **damage)
    results = read_results([tmp_path])
    assert not results.found
    assert f"its record {beside} is damaged" in results.problems[0]


def test_two_revisions_of_a_model_stay_apart(tmp_path: Path) -> None:
    for revision, score in (("1234567890", 0.2), ("abcdefghij", 0.3)):
        write_result(tmp_path, "a/m", BIOLOGY, score, revision=revision)
    write_result(tmp_path, "a/other", BIOLOGY, 0.1)
    results = read_results([tmp_path])
    assert sorted(results.labels.values()) == ["a/m @12345678", "a/m @abcdefgh", "a/other"]
    assert results.model("a/m @abcdefgh").revision == "abcdefghij"
    with pytest.raises(ReasonEmbedError, match="names 2 models"):
        results.model("a/m")


def test_a_model_is_found_by_the_last_part_of_its_name(tmp_path: Path) -> None:
    write_result(tmp_path, "org/some-model", BIOLOGY, 0.2)
    results = read_results([tmp_path])
    assert results.model("some-model") == results.model("org/some-model")
    with pytest.raises(UnknownNameError, match="did you mean 'org/some-model'"):
        results.model("org/some-modle")


def test_folders_that_agree_are_one_and_those_that_differ_are_two(tmp_path: Path) -> None:
    for folder, score in (("one", 0.2), ("two", 0.2)):
        write_result(tmp_path / folder, "a/m", BIOLOGY, score)
    folders = [tmp_path / "one", tmp_path / "two"]
    assert len(read_results(folders).found) == 1
    write_result(tmp_path / "two", "a/m", BIOLOGY, 0.3)
    results = read_results(folders)
    assert sorted(one.score for one in results.found) == [0.2, 0.3]
    assert {label.rpartition(" in ")[2] for label in results.labels.values()} == set(map(str, folders))


def test_experiments_and_rerankings_are_models_of_their_own(tmp_path: Path) -> None:
    write_result(tmp_path, "a/m", BIOLOGY, 0.2)
    write_result(tmp_path, "a/m", BIOLOGY, 0.3, revision="r1/experiments/dim_64", meta={"revision": "r1"})
    again = write_result(tmp_path, "a/ranker", BIOLOGY, 0.4)
    record(again, causes={"rerank": "0123abcd top 100"})
    labels = set(read_results([tmp_path]).labels.values())
    assert labels == {"a/m", "a/m (dim_64)", "a/ranker (reranks the top 100)"}


@pytest.mark.parametrize("recorded", [True, False])
def test_a_smoke_run_is_marked(tmp_path: Path, recorded: bool) -> None:
    revision = {} if recorded else {"dataset_revision": "d1+limit5"}
    file = write_result(tmp_path, "a/m", BIOLOGY, 0.2, content=revision)
    record(file, causes={"limit": 5} if recorded else {})
    assert read_results([tmp_path]).found[0].limit == 5


def test_records_and_remote_results_are_not_results(tmp_path: Path) -> None:
    record(write_result(tmp_path, "a/m", BIOLOGY, 0.2))
    (tmp_path / "remote" / "results" / "b__n" / "r").mkdir(parents=True)
    (tmp_path / "remote" / "results" / "b__n" / "r" / "x.json").write_text("{")
    (tmp_path / "results").rename(tmp_path / "tree")
    # Without a `results` folder the whole of it is searched.
    results = read_results([tmp_path])
    assert [one.model.name for one in results.found] == ["a/m"]
    assert not results.problems


def test_an_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="holds no MTEB results"):
        read_results([tmp_path])
    with pytest.raises(ReasonEmbedError, match="no folder"):
        read_results([tmp_path / "nowhere"])


def test_scores_by_query_are_read(tmp_path: Path) -> None:
    scores = {"q1": 0.5, "q 2": 0.25}
    found = {"q1": [("d 9", 0.75), ("d1", 0.5), ("d3", 0.25)]}
    write_run(tmp_path, "a/m", BIOLOGY, scores, found=found, gold={"q1": ["d1", "d7"]})
    (result,) = read_results([tmp_path]).found
    assert read_scores_by_query(result) == scores
    one = read_rankings(result, ["q1", "nobody"], top=2)
    assert list(one) == ["q1"]
    assert one["q1"].hits == [("d 9", 0.75), ("d1", 0.5)]
    assert one["q1"].gold == ["d1", "d7"]
    with pytest.raises(DataError, match="keeps no nonsense"):
        read_columns(result, ["nonsense"])


def test_scores_by_query_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "a/m", BIOLOGY, {"q1": 0.5, "q2": 0.25})
    (result,) = read_results([tmp_path]).found
    assert result.scores_file is not None
    kept = result.scores_file.read_bytes()
    write_run(tmp_path, "b/m", BIOLOGY, {"q1": 0.5, "q2": 0.5})
    other = next(one for one in read_results([tmp_path]).found if one.model.name == "b/m")
    assert other.scores_file is not None
    result.scores_file.write_bytes(other.scores_file.read_bytes())
    with pytest.raises(DataError, match="do not belong together"):
        read_scores_by_query(result)
    result.scores_file.write_bytes(kept[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read_scores_by_query(result)


def test_nan_by_query_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "a/m", BIOLOGY, {"q1": 0.5, "q2": 0.25})
    (result,) = read_results([tmp_path]).found
    write_run(tmp_path / "x", "a/m", BIOLOGY, {"q1": 0.5})
    assert result.scores_file is not None
    import pyarrow.parquet as pq

    table = pq.read_table(result.scores_file)
    place = table.column_names.index("ndcg_at_10")
    broken = table.set_column(place, "ndcg_at_10", [np.array([0.5, np.nan])])
    pq.write_table(broken, result.scores_file)
    with pytest.raises(DataError, match="NaN"):
        read_scores_by_query(result)


def test_labels_say_in_words_how_the_instruction_was_given(tmp_path: Path) -> None:
    """As `reasonembed run` prints them; templates in full where two would share a label."""

    def write(model: str, **chosen: object) -> None:
        meta = ModelMeta.create_empty(overwrites={"name": model, "experiment_kwargs": chosen or None})
        file = write_result(tmp_path, model, BIOLOGY, 0.5)
        if not chosen:
            return
        folder = file.parent / "experiments" / str(meta.experiment_name)
        folder.mkdir(parents=True)
        file.rename(folder / file.name)
        about = {"name": model, "revision": "r1", "experiment_kwargs": chosen}
        (folder / "model_meta.json").write_text(json.dumps(about))

    write("a/m", instruction_template="Instruct: {instruction}\\nQuery: ", without_instruction=True)
    write("a/n", without_instruction=True)
    write("a/o", embed_dim=64)
    write("a/p", instruction_template="A {instruction}")
    write("a/p", instruction_template="B {instruction}")
    results = read_results([tmp_path])
    labels = {model.name: label for model, label in results.labels.items()}
    assert labels["a/m"] == "a/m (--instruction-template, without instruction)"
    assert labels["a/n"] == "a/n (without instruction)"
    assert labels["a/o"] == "a/o (embed_dim_64)"
    long = [label for label in results.labels.values() if label.startswith("a/p")]
    assert len(set(long)) == 2
    assert all("instruction_template_" in label for label in long)
    assert {results.model(label) for label in long} == {m for m in results.models if m.name == "a/p"}
