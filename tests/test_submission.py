"""What the results repository would refuse: one damage at a time to a folder that it would take."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

import mteb
import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.retrieval import rows as tables
from reasonembed_mteb.sharing.modelmeta import mteb_training_tasks
from reasonembed_mteb.sharing.submission import check_submission, submit_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Command

NAME = "sentence-transformers/all-MiniLM-L6-v2"
TASKS = ("SciFact", "ArguAna")

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output folder as MTEB itself writes it, with two results that would be taken."""
    meta = mteb.get_model_meta(NAME)
    cache = mteb.ResultCache(tmp_path / "out")
    for name in TASKS:
        task = mteb.get_task(name)
        scores: Any = {"test": {"default": {"main_score": 0.5, "ndcg_at_10": 0.5, "nauc": float("nan")}}}
        cache.save_to_cache(mteb.TaskResult.from_task_results(task, scores, evaluation_time=1.0), meta)
    return tmp_path / "out"


def revision_of(output: Path) -> Path:
    (folder,) = (output / "results").glob("*/*")
    return folder


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rename_task(folder: Path, name: str) -> None:
    """Let SciFact's result and settings be those of another task."""
    edit((folder / "SciFact.json").rename(folder / f"{name}.json"), lambda r: r.update(task_name=name))
    settings = folder / "run_settings.jsonl"
    settings.write_text(settings.read_text().replace("SciFact", name))


def kinds(output: Path) -> list[tuple[str, bool]]:
    return [(finding.kind, finding.refused) for finding in check_submission(output)]


def test_a_good_folder_is_taken(output: Path) -> None:
    assert check_submission(output) == []
    assert check_submission(output / "results") == []
    assert submit_command(output) == f"mteb submit-results --output-folder {output}"
    # MTEB's own loader agrees.
    assert len(mteb.ResultCache(output).load_results(models=[NAME], include_remote=False).model_results) == 1


def test_the_date_that_mteb_writes_is_a_date(output: Path) -> None:
    """`mteb run` and ours date a result, and MTEB writes that as seconds since 1970."""
    file = revision_of(output) / "SciFact.json"
    result = mteb.TaskResult.from_disk(file)
    result.date = datetime.datetime.now(datetime.UTC)
    result.to_disk(file)
    assert isinstance(json.loads(file.read_text())["date"], float)
    assert check_submission(output) == []
    edit(file, lambda r: r.update(date=1e300))
    assert any("date is" in finding.problem for finding in check_submission(output))


DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, bool], str]] = {
    "no metadata": (lambda f: (f / "model_meta.json").unlink(), ("metadata", True), "is missing"),
    "broken metadata": (
        lambda f: (f / "model_meta.json").write_text("{"),
        ("metadata", True),
        "cannot be read as JSON",
    ),
    "metadata with an unknown key": (
        lambda f: edit(f / "model_meta.json", lambda m: m.update(colour="red")),
        ("metadata", True),
        "no model metadata of mteb's",
    ),
    "metadata without a name": (
        lambda f: edit(f / "model_meta.json", lambda m: m.update(name=None)),
        ("metadata", True),
        "names no model",
    ),
    "another revision inside": (
        lambda f: edit(f / "model_meta.json", lambda m: m.update(revision="0" * 40)),
        ("revision", True),
        f"has revision '{'0' * 40}'",
    ),
    "unknown training data": (
        lambda f: edit(f / "model_meta.json", lambda m: m.update(training_datasets=None)),
        ("leakage", False),
        "training_datasets is null",
    ),
    "leakage of a model made from a published one": (
        lambda f: edit(
            f / "model_meta.json", lambda m: m.update(adapted_from="hanhainebula/reason-embed-qwen3-4b-0928")
        ),
        ("leakage", True),
        "does not declare BrightAopsRetrieval",
    ),
    "metadata emptied, as of a model that was given as an object": (
        lambda f: edit(f / "model_meta.json", lambda m: m.update(n_parameters=None, loader=None)),
        ("metadata", True),
        'loader differs from MTEB\'s entry: null here, "SentenceTransformerEncoderWrapper" there',
    ),
    "metadata of an older mteb": (
        lambda f: edit(f / "model_meta.json", lambda m: m.pop("output_dtypes")),
        ("metadata", False),
        "output_dtypes is missing; MTEB's entry has null",
    ),
    "a wrong type in the metadata": (
        lambda f: edit(f / "model_meta.json", lambda m: m.update(embed_dim="wide")),
        ("metadata", True),
        r"embed_dim.*\(it is \"wide\"\)",
    ),
    "other training data than MTEB's entry": (
        lambda f: edit(f / "model_meta.json", lambda m: m.update(training_datasets=["SciFact"])),
        ("metadata", True),
        "training_datasets differs from MTEB's entry: it lacks .* and 7 more; it adds SciFact",
    ),
    "half a result": (
        lambda f: (f / "SciFact.json").write_text('{"task_name": "SciF'),
        ("result", True),
        "cannot be read as JSON",
    ),
    "a list": (lambda f: (f / "SciFact.json").write_text("[]"), ("result", True), "holds list"),
    "a result without main score": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"]["test"][0].pop("main_score")),
        ("result", True),
        "no result that mteb reads: main_score of test/default is missing",
    ),
    "a result without a revision of the data": (
        lambda f: edit(f / "SciFact.json", lambda r: r.update(dataset_revision=None)),
        ("result", True),
        r"dataset_revision: .*\(it is null\)",
    ),
    "a result without a time": (
        lambda f: edit(f / "SciFact.json", lambda r: r.pop("evaluation_time")),
        ("result", True),
        "evaluation_time: Field required",
    ),
    "a time of null": (
        lambda f: edit(f / "SciFact.json", lambda r: r.update(evaluation_time=None)),
        ("result", False),
        "evaluation_time is null",
    ),
    "a negative time": (
        lambda f: edit(f / "SciFact.json", lambda r: r.update(evaluation_time=-1.0)),
        ("result", True),
        r"evaluation_time is -1\.0; it must be a number of seconds",
    ),
    "a time as text, which pydantic would take": (
        lambda f: edit(f / "SciFact.json", lambda r: r.update(evaluation_time="10")),
        ("result", True),
        'evaluation_time is "10"',
    ),
    "a date to come": (
        lambda f: edit(f / "SciFact.json", lambda r: r.update(date="2999-01-01T00:00:00")),
        ("result", True),
        "date is .2999",
    ),
    "seconds to come": (
        lambda f: edit(f / "SciFact.json", lambda r: r.update(date=32_503_680_000.0)),
        ("result", True),
        r"date is 32503680000\.0",
    ),
    "negative emissions": (
        lambda f: edit(f / "SciFact.json", lambda r: r.update(kg_co2_emissions=-2)),
        ("result", True),
        "kg_co2_emissions is -2",
    ),
    "a score in per cent": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"]["test"][0].update(main_score=50.0)),
        ("result", True),
        r"main_score of test/default: its main score is 50\.0, and ndcg_at_10 lies in \[0, 1\]",
    ),
    "a main score that is not its metric": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"]["test"][0].update(main_score=0.6)),
        ("result", True),
        r"its main score 0\.6 is not its ndcg_at_10 0\.5",
    ),
    "another metric out of range": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"]["test"][0].update(recall_at_10=1.5)),
        ("result", True),
        r"recall_at_10 of test/default is 1\.5",
    ),
    "another metric that is no number": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"]["test"][0].update(map_at_10=float("nan"))),
        ("nan", True),
        "map_at_10 of test/default is nan",
    ),
    "a subset twice": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"]["test"].append(r["scores"]["test"][0])),
        ("result", True),
        "hf_subset test/default is there 2 times",
    ),
    "other languages": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"]["test"][0].update(languages=["fra-Latn"])),
        ("result", False),
        "languages of test/default: it lacks eng-Latn; it adds fra-Latn",
    ),
    "a result under another name": (
        lambda f: (f / "SciFact.json").rename(f / "Scifact.json"),
        ("result", True),
        "holds the task SciFact",
    ),
    "an unknown task": (lambda f: rename_task(f, "Nowhere"), ("task", True), "has no task Nowhere"),
    "an old mteb": (
        lambda f: edit(
            f / "SciFact.json",
            lambda r: (r.update(mteb_version="1.38.0"), r["scores"]["test"][0].update(mteb_version="1.38.0")),
        ),
        ("version", True),
        "made with mteb 1.38.0",
    ),
    "a range of versions that starts too low": (
        lambda f: edit(f / "SciFact.json", lambda r: r.update(mteb_version="1.39.0-2.1.0")),
        ("version", True),
        "made with mteb 1.39.0-2.1.0",
    ),
    "other data": (
        lambda f: edit(f / "SciFact.json", lambda r: r.update(dataset_revision="x+limit3")),
        ("data", True),
        r"dataset_revision: it was scored on data revision x\+limit3",
    ),
    "a missing subset": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"].update(test=[])),
        ("subsets", True),
        "lacks test/default",
    ),
    "a score that is no number": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"]["test"][0].update(main_score=float("nan"))),
        ("nan", True),
        "main_score of test/default: its main score is NaN",
    ),
    "damaged settings": (
        lambda f: (f / "run_settings.jsonl").open("a").write("{oops\n"),
        ("settings", True),
        r"line \d+ is not one JSON object",
    ),
    "settings without a version": (
        lambda f: (f / "run_settings.jsonl").open("a").write('{"task": "A", "split": "a", "subset": "b"}\n'),
        ("settings", True),
        r"line \d+ names no version\.mteb: version is null",
    ),
    "settings with a text for a list": (
        lambda f: (f / "run_settings.jsonl").open("a").write('{"task": "A", "splits": "test"}\n'),
        ("settings", True),
        r"line \d+ names no splits: it has \"test\"",
    ),
    "a large file": (
        lambda f: edit(f / "SciFact.json", lambda r: r["scores"]["test"][0].update(much="x" * (10 << 20))),
        ("size", True),
        r"has 10\.0 MiB; 10 are allowed",
    ),
    "scores of each query": (
        lambda f: (f / "SciFact.parquet").write_bytes(b"PAR1"),
        ("files", True),
        "not part of a submission",
    ),
    "predictions": (
        lambda f: (f / "SciFact_predictions.json").write_text('{"mteb_model_meta": {}}'),
        ("files", True),
        "is no result",
    ),
    "a folder of something": (
        lambda f: ((f / "extra").mkdir(), (f / "extra" / "x.json").write_text("{}")),
        ("files", True),
        "not part of a submission",
    ),
    "an experiment": (
        lambda f: (f / "experiments" / "no_instruction_True").mkdir(parents=True),
        ("experiment", False),
        "options of their own",
    ),
    "a file beside the models": (
        lambda f: (f.parents[1] / "notes.txt").write_text("x"),
        ("files", True),
        "not part of a submission",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_found(output: Path, damage: str) -> None:
    import re

    apply, expected, message = DAMAGES[damage]
    apply(revision_of(output))
    findings = [one for one in check_submission(output) if (one.kind, one.refused) == expected]
    assert findings
    assert re.search(message, findings[0].problem)
    assert findings[0].remedy
    # Nothing but the damage is found, apart from what follows from it: MTEB's entry is adapted from nothing.
    follows = {"metadata"} if damage.startswith("leakage of") else set()
    assert {one.kind for one in check_submission(output)} == {expected[0]} | follows


def test_settings_must_cover_each_subset(output: Path) -> None:
    file = revision_of(output) / "run_settings.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    only = next(line for line in lines if line["task"] == "ArguAna")
    # As older versions of mteb wrote it.
    old = {key: value for key, value in only.items() if key not in ("splits", "subsets")}
    file.write_text(json.dumps(old | {"split": "test", "subset": "default"}) + "\n\n")
    (finding,) = check_submission(output)
    assert finding.kind == "settings"
    assert finding.problem == "says nothing about SciFact test/default"
    file.unlink()
    assert {one.kind for one in check_submission(output)} == {"settings"}


def test_a_revision_must_be_a_commit_or_mtebs_own(output: Path) -> None:
    folder = revision_of(output)
    local = folder.with_name("7c9c4453a9eaa9a6f4943e6f3d7a3204")
    folder.rename(local)
    edit(local / "model_meta.json", lambda m: m.update(revision=local.name))
    assert kinds(output) == [("revision", True)]
    bm25 = mteb.get_model_meta("mteb/baseline-bm25s")
    assert bm25.revision is not None
    other = local.parent.with_name("mteb__baseline-bm25s") / bm25.revision
    other.parent.mkdir()
    local.rename(other)
    (other / "model_meta.json").write_text(json.dumps(bm25.to_dict(), default=list))
    local.parent.rmdir()
    assert kinds(output) == []


def test_one_task_of_two_revisions_is_refused(output: Path) -> None:
    import shutil

    folder = revision_of(output)
    other = folder.with_name("0" * 40)
    shutil.copytree(folder, other)
    edit(other / "model_meta.json", lambda m: m.update(revision=other.name))
    (other / "ArguAna.json").unlink()
    asked, finding = check_submission(output)
    assert (asked.kind, asked.refused) == ("revision", False)
    assert asked.problem == f"revision is {other.name}, and MTEB's entry of {NAME} has {folder.name}"
    assert (finding.kind, finding.refused) == ("revision", True)
    assert finding.problem.startswith("SciFact is there for 2 revisions")


def test_what_only_this_package_registers_is_not_in_mteb(output: Path) -> None:
    folder = revision_of(output)
    ours = "hanhainebula/reason-embed-qwen3-4b-0928"
    other = folder.parent.with_name(ours.replace("/", "__")) / folder.name
    other.parent.mkdir()
    folder.rename(other)
    folder.parent.rmdir()
    declared = sorted(mteb_training_tasks())
    edit(other / "model_meta.json", lambda m: m.update(name=ours, training_datasets=declared))
    (finding,) = check_submission(output)
    assert (finding.kind, finding.refused) == ("registry", True)
    assert f"reasonembed export-modelmeta {ours}" in finding.remedy
    edit(other / "model_meta.json", lambda m: m.update(training_datasets=declared[1:]))
    assert {one.kind for one in check_submission(output)} == {"registry", "leakage"}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ReasonEmbedBrightAops", "submit BrightAopsRetrieval"),
        ("ReasonEmbedBrightAopsGpt4Reason", "leave it out"),
        ("ReasonMiniAops", "leave it out"),
    ],
)
def test_our_tasks_are_none_of_mtebs(output: Path, name: str, remedy: str) -> None:
    assert tables.find(name).name == name
    rename_task(revision_of(output), name)
    (finding,) = check_submission(output)
    assert (finding.kind, finding.refused) == ("task", True)
    assert finding.remedy.startswith(remedy)


def test_tasks_of_mtebs_that_our_tables_name_are_taken(output: Path) -> None:
    cache, meta = mteb.ResultCache(output), mteb.get_model_meta(NAME)
    for name in ("BrightProRoboticsRetrieval", "CosQA", "BrowseCompPlusRetrieval"):
        task = mteb.get_task(name)
        entry = {"main_score": 0.5, "ndcg_at_10": 0.5}
        scores: Any = {split: dict.fromkeys(task.hf_subsets, entry) for split in task.eval_splits}
        cache.save_to_cache(mteb.TaskResult.from_task_results(task, scores, evaluation_time=1.0), meta)
    found = check_submission(output)
    assert {(finding.kind, finding.refused) for finding in found} == {("subsets", False)}
    problems = [finding.problem for finding in found]
    assert [text.partition(";")[0] for text in problems] == [
        "1 of CoIR's 10 tasks",
        "1 of BRIGHT-Pro's 7 tasks",
    ]


def test_a_part_of_a_benchmark_is_asked_about(output: Path) -> None:
    cache, meta = mteb.ResultCache(output), mteb.get_model_meta(NAME)
    for name in ("BrightAopsRetrieval", "BrightPonyRetrieval"):
        task = mteb.get_task(name)
        scores: Any = {split: {"default": {"main_score": 0.5}} for split in task.eval_splits}
        cache.save_to_cache(mteb.TaskResult.from_task_results(task, scores, evaluation_time=1.0), meta)
    (finding,) = check_submission(output)
    assert (finding.kind, finding.refused) == ("subsets", False)
    assert finding.problem.startswith("2 of BRIGHT(v1.1)'s 12 tasks; missing: BrightBiologyRetrieval")
    assert finding.problem.endswith("and 7 more")


def test_a_folder_without_results_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="holds no results"):
        check_submission(tmp_path)


def test_every_wrong_field_is_named_at_once(output: Path) -> None:
    folder = revision_of(output)
    edit(folder / "SciFact.json", lambda r: (r.update(dataset_revision=None), r.pop("evaluation_time")))
    edit(folder / "model_meta.json", lambda m: (m.pop("languages"), m.update(n_parameters="many")))
    said = " | ".join(one.problem for one in check_submission(output))
    for field in ("dataset_revision", "evaluation_time", "languages", "n_parameters"):
        assert field in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_parameters", -5),
        ("n_embedding_parameters", 0),
        ("memory_usage_mb", -1.5),
        ("max_tokens", 0),
        ("embed_dim", -384),
        ("embed_dim", []),
        ("release_date", "2999-01-01"),
        ("release_date", "1999-01-01"),
    ],
)
def test_metadata_of_a_model_that_mteb_does_not_know_is_plausible(
    output: Path, field: str, value: object
) -> None:
    folder = revision_of(output)
    other = folder.parent.with_name("someone__new") / folder.name
    other.parent.mkdir()
    folder.rename(other)
    folder.parent.rmdir()
    edit(other / "model_meta.json", lambda m: m.update(name="someone/new"))
    assert kinds(output) == [("registry", True)]
    edit(other / "model_meta.json", lambda m: m.update({field: value}))
    problems = [one.problem for one in check_submission(output) if one.kind == "metadata"]
    assert len(problems) == 1
    assert field in problems[0]


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"name": 5}', '{"name": "a/b", "adapted_from": [1]}', "\ufeff{}"]
)
def test_broken_metadata_is_a_finding(output: Path, content: str) -> None:
    (revision_of(output) / "model_meta.json").write_text(content, encoding="utf-8")
    assert ("metadata", True) in kinds(output)


def test_the_command_says_it_and_sends_nothing(output: Path, command: Command) -> None:
    status, _, err = command("submit", "--check", str(output))
    assert (status, "is now `reasonembed check-submission`" in err) == (0, True)
    status, _, err = command("check-submission", str(output))
    assert status == 0
    assert f"mteb submit-results --output-folder {output}" in err
    status, _, err = command("submit", str(output))
    assert (status, "use `reasonembed check-submission` first" in err) == (2, True)
    for name in TASKS:
        edit(revision_of(output) / f"{name}.json", lambda r: r.update(dataset_revision="x"))
        (revision_of(output) / f"{name}.parquet").touch()
    status, out, err = command("check-submission", str(output))
    assert status == 1
    assert "ArguAna.parquet and 1 more" in " ".join(out.split())
    assert "Nothing would be refused" not in err
