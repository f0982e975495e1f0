"""The suite: its parts, its score, its groups, and its tables in reports."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import mteb
import numpy as np
import pytest
from reporting_data import write_result

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.reporting.report import ReportOptions, draw_report, write_report
from reasonembed_mteb.reporting.results import read_results
from reasonembed_mteb.reporting.suites import suite_tables
from reasonembed_mteb.retrieval import rows as tables
from reasonembed_mteb.retrieval.suite import group_mean, part_mean, score_suite, suite_groups

if TYPE_CHECKING:
    from pathlib import Path

    from reasonembed_mteb.retrieval.rows import TaskRow

pytestmark = pytest.mark.usefixtures("registered")

NAME, LIGHT = "RIR(ReasonEmbed)", "RIR(ReasonEmbed, light)"
COUNTS = {
    "BRIGHT(ReasonEmbed)": 12,
    "BRIGHT-long(ReasonEmbed)": 8,
    "R2MED(ReasonEmbed)": 8,
    "RAR-b(ReasonEmbed)": 17,
    "CoIR(ReasonEmbed)": 10,
    "BRIGHT-Pro(ReasonEmbed)": 7,
    "BrowseComp-Plus(ReasonEmbed)": 1,
    "MathNet(ReasonEmbed)": 3,
    "MM-BRIGHT(ReasonEmbed)": 29,
    "TEMPO(ReasonEmbed)": 13,
    "MIRB(ReasonEmbed)": 15,
    "ImpliRet(ReasonEmbed)": 6,
    "FreshStack(ReasonEmbed)": 5,
    "CoQuIR(ReasonEmbed)": 7,
    "BarExamQA(ReasonEmbed)": 1,
}


def rows_of(name: str) -> list[TaskRow]:
    return [row for part in tables.suites()[name].rows().values() for row in part]


def draw_scores(seed: int = 0) -> dict[str, float]:
    draw = random.Random(seed)
    return {row.name: round(draw.random(), 5) for row in rows_of(NAME)}


def test_the_suite_has_142_tasks_of_fifteen_benchmarks() -> None:
    held = tables.suites()[NAME].rows()
    assert {part: len(rows) for part, rows in held.items()} == COUNTS
    assert sum(COUNTS.values()) == 142
    names = [row.name for row in rows_of(NAME)]
    assert len(set(names)) == 142
    assert [task.metadata.name for task in mteb.get_benchmark(NAME).tasks] == names


def test_light_leaves_large_corpora_out() -> None:
    left = {row.name for row in rows_of(NAME)} - {row.name for row in rows_of(LIGHT)}
    assert left == {
        "ReasonEmbedBrightLeetcode",
        "RARbCode",
        "RARbMath",
        "CodeSearchNetCCRetrieval",
        "COIRCodeSearchNetRetrieval",
        "ReasonEmbedMMBrightPhysics",
        "ReasonEmbedMMBrightPsychology",
        "ReasonEmbedMIRBMSEDup",
        "ReasonEmbedMIRBIsabellePremise",
        "ReasonEmbedBarExamQAFull",
    }


def test_every_task_has_a_domain_and_a_kind_of_reasoning() -> None:
    for row in rows_of(NAME):
        assert row.domain in tables.DOMAINS, row.name
        assert row.reasoning, row.name
        assert set(row.reasoning) <= set(tables.REASONING), row.name


def test_names_are_mtebs_or_ours_alone() -> None:
    for row in rows_of(NAME):
        assert row.is_mtebs != row.name.startswith("ReasonEmbed"), row.name
        assert mteb.get_task(row.name).metadata.name == row.name


def test_main_scores_lengths_and_instructions_of_new_benchmarks() -> None:
    golden = {
        "ReasonEmbedMathNetHard": (
            "recall_at_1",
            8192,
            "Given a math olympiad problem, retrieve a mathematically equivalent problem",
        ),
        "ReasonEmbedMMBrightGIS": (
            "ndcg_at_10",
            8192,
            "Given a technical question, retrieve passages that provide the reasoning needed to answer it.",
        ),
        "ReasonEmbedTempoLaw": (
            "ndcg_at_10",
            8192,
            "Represent this query for retrieving relevant documents: ",
        ),
        "ReasonEmbedMIRBLeanPremise": (
            "ndcg_at_10",
            4096,
            "Given a Lean 4 proof state, retrieve the declarations that are useful for proving it.",
        ),
        "ReasonEmbedImpliRetTemporalUni": ("ndcg_at_10", 8192, ""),
        "ReasonEmbedFreshStackYolo": (
            "alpha_ndcg_at_10",
            2048,
            "Given a technical question, retrieve relevant code snippets or technical documentation that "
            "best answer the question",
        ),
        "ReasonEmbedCoQuIRSaferCode": ("ndcg_at_10", 8192, "Please retrieve safer code."),
        "ReasonEmbedBarExamQAFull": ("recall_at_10", 8192, ""),
        "CosQA": ("ndcg_at_10", 8192, ""),
        "SIQA": (
            "ndcg_at_10",
            8192,
            "Given the following context and question, retrieve the correct answer.",
        ),
    }
    rows = {row.name: row for row in rows_of(NAME)}
    assert {n: (rows[n].main_score, rows[n].max_tokens, rows[n].instruction) for n in golden} == golden


def test_known_citations_reach_mteb() -> None:
    authors = {
        "ReasonEmbedFreshStackYolo": "Nandan Thakur",
        "ReasonEmbedMIRBModup": "Ju, Haocheng",
        "ReasonEmbedMathNetHard": "Alshammari, Shaden",
        "ReasonEmbedBarExamQAFull": "Zheng, Lucia",
        "ReasonEmbedBrightProBiology": "Yilun Zhao",
    }
    names = {row.name.lower(): row.name for row in rows_of(NAME)}
    for name, author in authors.items():
        assert author in str(mteb.get_task(names[name.lower()]).metadata.bibtex_citation), name


def test_rar_b_has_mtebs_prompts() -> None:
    for row in tables.benchmarks()["RAR-b(ReasonEmbed)"]:
        prompt = mteb.get_task(row.name).metadata.prompt
        assert isinstance(prompt, dict)
        assert prompt["query"] == row.instruction, row.name


def test_the_score_is_the_mean_of_benchmark_means() -> None:
    scores = draw_scores()
    found = score_suite(tables.suites()[NAME], scores)
    assert (found.tasks, found.missing) == (142, {})
    means = []
    for part, rows in tables.suites()[NAME].rows().items():
        values = [scores[row.name] for row in rows]
        if part.startswith("MIRB"):
            premises = [scores[row.name] for row in rows if row.unit]
            assert len(premises) == 4
            values = [scores[row.name] for row in rows if not row.unit] + [float(np.mean(premises))]
            assert len(values) == 12
        means.append(np.mean(values))
    assert found.score == pytest.approx(np.mean(means), abs=1e-12)
    assert found.score != pytest.approx(np.mean(list(scores.values())), abs=1e-4)


def test_a_part_that_was_not_run_leaves_the_score_empty() -> None:
    scores = draw_scores()
    del scores["ReasonEmbedTempoLaw"]
    found = score_suite(tables.suites()[NAME], scores)
    assert (found.score, found.tasks) == (None, 141)
    assert found.missing == {"TEMPO(ReasonEmbed)": ["ReasonEmbedTempoLaw"]}
    assert len(found.parts) == 14


def test_a_group_counts_each_benchmark_once() -> None:
    groups = suite_groups(tables.suites()[NAME])
    assert sum(len(rows) for rows in groups["Domain"].values()) == 142
    assert set(groups["Reasoning"]) == set(tables.REASONING)
    scores = draw_scores()
    rows = groups["Domain"]["mathematics"]
    parts = {row.benchmark: [one for one in rows if one.benchmark == row.benchmark] for row in rows}
    expected = np.mean([part_mean(own, scores) for own in parts.values()])
    assert {len(own) for own in parts.values()} > {1}
    assert group_mean(rows, scores) == pytest.approx(expected)
    del scores[rows[0].name]
    assert group_mean(rows, scores) is None


def test_mteb_groups_the_suites_tasks() -> None:
    benchmark = mteb.get_benchmark(LIGHT)
    groupings = {one.name: one for one in benchmark.aggregations}  # type: ignore[union-attr]
    assert list(groupings) == ["Benchmark", "Domain", "Reasoning"]
    assert len(groupings["Domain"].task_to_label) == len(benchmark.tasks) == 132  # type: ignore[union-attr]


def test_mteb_scores_the_suite(tmp_path: Path) -> None:
    from mteb.cache import ResultCache

    scores = draw_scores()
    for task, score in scores.items():
        metric = tables.find(task).main_score
        splits = mteb.get_task(task).eval_splits
        subsets = mteb.get_task(task).hf_subsets
        write_result(tmp_path, "a/m", task, score, metric=metric, splits=splits, subsets=subsets)
    benchmark = mteb.get_benchmark(NAME)
    results = ResultCache(tmp_path).load_results(tasks=list(benchmark.tasks), validate_and_filter=False)
    (found,) = benchmark.get_score(results).values()
    expected = score_suite(tables.suites()[NAME], scores)
    assert found["Mean(Benchmark)"] == pytest.approx(expected.score)
    assert found["Tasks"] == 142
    assert found["Benchmark::MIRB(ReasonEmbed)"] == pytest.approx(expected.parts["MIRB(ReasonEmbed)"])
    assert found["Reasoning::numerical"] is not None


def test_mteb_means_mirb_over_twelve_scores(tmp_path: Path) -> None:
    from mteb.cache import ResultCache

    name = "MIRB(ReasonEmbed)"
    whole, part = "intfloat/multilingual-e5-small", "intfloat/multilingual-e5-large"
    rows = tables.benchmarks()[name]
    draw = random.Random(3)
    scores = {row.name: round(draw.random(), 5) for row in rows}
    for task, score in scores.items():
        write_result(tmp_path, whole, task, score)
        if task != "ReasonEmbedMIRBStacksPremise":
            write_result(tmp_path, part, task, score)
    premises = [scores[row.name] for row in rows if row.unit]
    expected = np.mean([*(scores[row.name] for row in rows if not row.unit), np.mean(premises)])
    benchmark = mteb.get_benchmark(name)
    results = ResultCache(tmp_path).load_results(tasks=benchmark)
    found = benchmark.get_score(results)
    assert found[whole]["Mean(Task)"] == pytest.approx(expected)
    assert found[whole]["Mean(TaskType)"] == pytest.approx(expected)
    assert found[part].get("Mean(Task)") is None
    table = results.get_benchmark_result()
    # MTEB shows the models that it knows.
    table.index = [str(name).rsplit("/", 1)[-1] for name in table["Model"]]
    assert table.loc["multilingual-e5-small", "Mean (Task)"] == pytest.approx(expected)
    assert np.isnan(table.loc["multilingual-e5-large", "Mean (Task)"])


def write_models(folder: Path, count: int, left_out: str = "") -> list[dict[str, float]]:
    held = []
    for number in range(count):
        scores = draw_scores(number)
        scores.pop(left_out, None)
        held.append(scores)
        for task, score in scores.items():
            row = tables.find(task)
            subsets = mteb.get_task(task).hf_subsets
            write_result(
                folder,
                f"a/m{number}",
                task,
                score,
                metric=row.main_score,
                splits=[row.split],
                subsets=subsets,
            )
    return held


def test_reports_show_the_suite(tmp_path: Path) -> None:
    first, second = write_models(tmp_path, 2)
    whole, by_domain, by_kind = suite_tables(read_results([tmp_path]))
    assert [table.name for table in (whole, by_domain, by_kind)] == [
        f"{NAME}, by benchmark",
        f"{NAME}, by domain",
        f"{NAME}, by reasoning",
    ]
    assert whole.links["MIRB"] == "https://arxiv.org/abs/2505.15585"
    assert set(whole.links) == set(whole.columns)
    found = {row.label: row.mean for row in whole.rows}
    for label, scores in (("a/m0", first), ("a/m1", second)):
        mean = found[label]
        assert mean is not None
        assert mean.whole
        assert mean.value == pytest.approx(score_suite(tables.suites()[NAME], scores).score, abs=1e-9)
    assert all(row.mean is None for table in (by_domain, by_kind) for row in table.rows)
    text, _ = write_report(read_results([tmp_path]), ReportOptions(), "markdown")
    assert "RIR(ReasonEmbed), by reasoning" in text
    assert "numerical" in text


def test_reports_name_what_was_not_run(tmp_path: Path) -> None:
    write_models(tmp_path, 1, left_out="ReasonEmbedTempoLaw")
    whole, *_, light = suite_tables(read_results([tmp_path]))
    assert light.name == f"{LIGHT}, by reasoning"
    assert whole.notes == (
        "not run: TEMPO (1 of 13 tasks)",
        "no score for a/m0: 14 of 15 benchmarks are whole; missing: TEMPO",
    )
    assert len(whole.rows[0].cells) == 14
    assert whole.rows[0].mean is None
    assert whole.rows[0].rank is None


def test_tables_of_groups_that_nobody_ran_are_left_out(tmp_path: Path) -> None:
    """Six benchmarks are whole, and every domain and kind lacks a task of the nine others."""
    lacking = {row.benchmark for row in rows_of(NAME)} - set(list(COUNTS)[:6])
    for row in rows_of(NAME):
        if row.benchmark not in lacking:
            subsets = mteb.get_task(row.name).hf_subsets
            write_result(tmp_path, "a/m", row.name, 0.5, metric=row.main_score, subsets=subsets)
    whole, *others = suite_tables(read_results([tmp_path]))
    assert [table.name for table in others if table.name.startswith(f"{NAME},")] == []
    assert whole.notes[-1] == (
        "not shown: the tables by domain and by reasoning, as no model has run every task of a group"
    )
    text, _ = write_report(read_results([tmp_path]), ReportOptions(), "json")
    (shown,) = [one for one in json.loads(text)["tables"] if one["name"] == f"{NAME}, by benchmark"]
    assert shown["rows"][0]["mean"] is None


def test_a_run_of_bright_alone_is_no_suite(tmp_path: Path) -> None:
    for row in tables.benchmarks()["BRIGHT(ReasonEmbed)"]:
        write_result(tmp_path, "a/m", row.name, 0.5)
    assert suite_tables(read_results([tmp_path])) == []


def test_pools_of_a_task_are_one_result(tmp_path: Path) -> None:
    row = tables.find("ReasonEmbedCoQuIRCVEFixes")
    file = write_result(tmp_path, "a/m", row.name, 0.0, subsets=row.pools)
    text = file.read_text()
    for number in range(len(row.pools)):
        text = text.replace('"main_score": 0.0, "ndcg_at_10": 0.0', f'"main_score": 0.{number}', 1)
    file.write_text(text)
    (found,) = read_results([tmp_path]).found
    assert found.score == pytest.approx(np.mean([0, 0.1, 0.2, 0.3, 0.4]))


def test_a_result_that_lacks_a_pool_is_not_run(tmp_path: Path) -> None:
    """As a run that was stopped leaves it: of our pools, and of the subsets of MTEB's own tasks."""
    stopped = {"ReasonEmbedCoQuIRCVEFixes": ("ruby",), "CodeSearchNetCCRetrieval": ("go", "java")}
    for task, left_out in stopped.items():
        subsets = [name for name in mteb.get_task(task).hf_subsets if name not in left_out]
        write_result(tmp_path, "a/m", task, 0.5, subsets=subsets)
    results = read_results([tmp_path])
    assert results.found == []
    one, other = results.problems
    assert "CodeSearchNetCCRetrieval.json: it lacks 2 of the task's pools (go, java), as a run that" in one
    assert "ReasonEmbedCoQuIRCVEFixes.json: it lacks 1 of the task's pools (ruby), as a run that" in other


@pytest.mark.filterwarnings("ignore:.*Missing subsets:UserWarning")
def test_mteb_counts_no_task_that_lacks_a_pool(tmp_path: Path) -> None:
    from mteb.cache import ResultCache

    for row in tables.benchmarks()["CoQuIR(ReasonEmbed)"]:
        subsets = row.pools[1:] if row.subset == "CVEFixes" else row.pools or ("default",)
        write_result(tmp_path, "a/m", row.name, 0.5, subsets=subsets)
    benchmark = mteb.get_benchmark(NAME)
    results = ResultCache(tmp_path).load_results(tasks=list(benchmark.tasks), validate_and_filter=False)
    (found,) = benchmark.get_score(results).values()
    assert found["Tasks"] == 6
    assert found["Benchmark::CoQuIR(ReasonEmbed)"] is None


def test_a_profile_is_drawn_of_kinds_of_reasoning(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the report extra")
    write_models(tmp_path / "results", 2)
    written = draw_report(read_results([tmp_path / "results"]), tmp_path / "out", "png")
    assert [file.name for file in written if "profile" in file.name] == [
        "RIR-ReasonEmbed-by-reasoning-profile.png"
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('domain = "sciense"', "unknown domain 'sciense'; did you mean 'science'"),
        ('reasoning = ["deductiv"]', "unknown reasoning 'deductiv'; did you mean 'deductive'"),
        ('measures = ["alpha_ndgc_at_10"]', "unknown measure 'alpha_ndgc_at_10'; did you mean"),
        ('main_score = "coverage_at_20"', "unknown main_score 'coverage_at_20'"),
    ],
)
def test_wrong_labels_are_named(
    line: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text(
        "[[task]]\n"
        + f'name = "Mine"\nsubset = "s"\ninstruction = ""\nbenchmark = "M"\nlayout = "bright"\n{line}\n'
    )
    with pytest.raises(DataError) as error:
        tables.add_tables(tmp_path)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "give parts, or like = the suite whose parts it has"),
        ('like = "RIR(ReasonEmbd)"', r"unknown suite 'RIR\(ReasonEmbd\)'; did you mean 'RIR"),
        ('like = "RIR(ReasonEmbed)"\nparts = ["ReasonMini"]', "give parts, or like"),
    ],
)
def test_a_suite_has_parts_of_its_own_or_anothers(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'[[suite]]\nname = "Mine"\n{line}\n')
    with pytest.raises(DataError, match=problem):
        tables.add_tables(tmp_path)


def test_a_suite_of_unknown_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[[suite]]\nname = "Mine"\nparts = ["BRIGHT(ReasonEmbd)"]\n')
    with pytest.raises(DataError, match=r"unknown part 'BRIGHT\(ReasonEmbd\)'; did you mean 'BRIGHT"):
        tables.add_tables(tmp_path)
