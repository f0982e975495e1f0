"""A benchmark is one TOML: a fifth table in a folder of its own is seen everywhere, without Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.retrieval import rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLE = """
[defaults]
kind = "newbench"
benchmark = "NewBench"
mteb_benchmark = "NewBench of MTEB"
summary = "Two small subsets"
layout = "bright"
path = "someone/newbench"
main_score = "recall_at_1"
max_tokens = 256

[[task]]
name = "NewBenchAlpha"
subset = "alpha"
short = "Al."
group = "letters"
mteb_name = "NFCorpus"
instruction = "Given an alpha, retrieve what follows."

[[task]]
name = "NewBenchBeta"
subset = "beta"
mteb_name = "SciFact"
instruction = "Given a beta, retrieve what follows."
sources = ["newbench", "BRIGHT"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the table and, in BRIGHT's layout, its data."""
    tables, data = tmp_path / "tables", tmp_path / "data"
    tables.mkdir()
    (tables / "newbench.toml").write_text(TABLE)
    for subset in ("alpha", "beta"):
        documents = [{"id": f"d{n}", "content": f"{subset} text {n}"} for n in range(4)]
        examples = [{"id": "q", "query": "text 1", "gold_ids": ["d1"], "excluded_ids": ["d2"]}]
        for config, lines in (("documents", documents), ("examples", examples)):
            (data / config).mkdir(parents=True, exist_ok=True)
            (data / config / f"{subset}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tables


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the tables as they were."""
    yield
    monkeypatch.undo()
    rows._added.clear()
    rows._forget()


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the folder in the environment."""
    monkeypatch.setenv(rows.TABLES_VARIABLE, str(folder))
    rows._forget()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.slow
def test_mteb_knows_it_through_the_hook_and_scores_its_data(folder: Path) -> None:
    done = run(
        """
        import mteb
        task, = mteb.get_tasks(tasks=["NewBenchAlpha"])
        print([one.metadata.name for one in mteb.get_benchmark("NewBench").tasks])
        task.load_data()
        split = task.dataset["default"]["test"]
        print(split["relevant_docs"], split["excluded_ids"], task.metadata.revision[:5])
        found = mteb.evaluate(mteb.get_model("mteb/baseline-random-encoder"), [task], cache=None,
                              co2_tracker=False, show_progress_bar=False)
        print(found.task_results[0].scores["test"][0]["hf_subset"])
        meta = mteb.get_model_meta("hanhainebula/reason-embed-qwen3-4b-0928")
        print([meta.is_zero_shot_on([mteb.get_task(f"NewBench{n}")]) for n in ("Alpha", "Beta")])
        """,
        REASONEMBED_TASKS=str(folder),
        REASONEMBED_NEWBENCH_PATH=str(folder.parent / "data"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['NewBenchAlpha', 'NewBenchBeta']",
        "{'q': {'d1': 1}} {'q': ['d2']} xxh3:",
        "default",
        "[True, False]",
    ]


@pytest.mark.slow
def test_register_takes_a_folder_after_mteb(folder: Path) -> None:
    done = run(
        f"""
        import mteb, reasonembed_mteb
        reasonembed_mteb.register(tables={str(folder)!r})
        reasonembed_mteb.register(tables={str(folder)!r})
        print(mteb.get_task("NewBenchBeta").metadata.main_score, mteb.get_benchmark("NewBench").name)
        print([task.metadata.name for task in reasonembed_mteb.load_tasks("NewBench")])
        meta = mteb.get_model_meta("hanhainebula/reason-embed-qwen3-4b-0928")
        print(meta.is_zero_shot_on([mteb.get_task("NewBenchBeta")]))
        """
    )
    assert done.returncode == 0, done.stderr
    expected = ["recall_at_1 NewBench", "['NewBenchAlpha', 'NewBenchBeta']", "False"]
    assert done.stdout.splitlines() == expected


def test_instructions_lengths_and_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(folder, monkeypatch)
    assert rows.instruction_for("alpha") == "Given an alpha, retrieve what follows."
    assert rows.task_instructions()["NFCorpus"] == rows.instruction_for("NewBenchAlpha")
    assert rows.max_tokens_for("NewBenchBeta") == 256
    assert rows.find("beta").path_variable == "REASONEMBED_NEWBENCH_PATH"
    assert [row.name for row in rows.benchmarks()["NewBench"]] == ["NewBenchAlpha", "NewBenchBeta"]


def test_reports_and_the_submission_check_know_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reporting_data import write_result

    from reasonembed_mteb.reporting import formats
    from reasonembed_mteb.reporting.results import read_results
    from reasonembed_mteb.reporting.tables import score_tables
    from reasonembed_mteb.sharing.submission import _check_complete

    use(folder, monkeypatch)
    for task, score in (("NewBenchAlpha", 0.5), ("NewBenchBeta", 0.25)):
        write_result(tmp_path / "out", "x/model", task, score)
    (table,) = score_tables(read_results([tmp_path / "out"]))
    grid = formats.score_grid(table)
    assert grid.title == "NewBench: recall@1 in % (original queries; our tasks)"
    assert grid.head == ("rank", "model", "mean", "Al.", "beta")
    assert grid.rows == (("1", "x/model", "37.50", "50.00", "25.00"),)
    (finding,) = _check_complete(tmp_path, {"NFCorpus"})
    assert finding.problem == "1 of NewBench of MTEB's 2 tasks; missing: SciFact"


def test_the_local_copy_is_looked_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reasonembed_mteb.evaluation.doctor import examine

    use(folder, monkeypatch)
    monkeypatch.setenv("REASONEMBED_NEWBENCH_PATH", str(folder.parent / "data"))
    found = {finding.what: finding.found for finding in examine()}
    assert found["REASONEMBED_NEWBENCH_PATH"] == "2 tasks: NewBenchAlpha, NewBenchBeta"


def test_data_may_lie_beside_the_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reasonembed_mteb.retrieval.layouts import load_split
    from reasonembed_mteb.retrieval.sources import data_revision

    text = TABLE.replace('path = "someone/newbench"', 'data = "../data"')
    (folder / "newbench.toml").write_text(text)
    use(folder, monkeypatch)
    assert load_split(rows.find("NewBenchAlpha"))["relevant_docs"] == {"q": {"d1": 1}}
    assert data_revision(rows.find("NewBenchAlpha")).startswith("xxh3:")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"NewBenchAlpha"', '"ReasonMiniPony"', "task ReasonMiniPony is in mini.toml already"),
        ('"NewBench"', '"ReasonMini"', "benchmark ReasonMini is in mini.toml already"),
        ("max_tokens", "max_tokns", "NewBenchAlpha: unknown key 'max_tokns'; did you mean 'max_tokens'"),
        ('"bright"', '"brigt"', "NewBenchAlpha: unknown layout 'brigt'; did you mean 'bright'"),
        ("recall_at_1", "ndcg@10", "unknown main_score 'ndcg@10'; did you mean 'ndcg_at_10'"),
        ("= 256", '= "256"', "max_tokens = '256' must be a whole number"),
        ("= 256", "= 0", "must be 1 or more"),
        ("[defaults]", "[default]", "unknown section 'default'; did you mean 'defaults'"),
        ("[defaults]", "[defaults", "cannot be read as TOML"),
        ('subset = "alpha"', "", "NewBenchAlpha: subset missing; add it"),
        ('"NewBenchAlpha"', '"New/Bench"', "letters, digits"),
        ("[defaults]", '[defaults]\nbase = "brigt.toml"', "did you mean 'bright.toml'"),
    ],
)
def test_a_wrong_table_names_its_file_and_what_is_near(
    old: str, new: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "newbench.toml").write_text(TABLE.replace(old, new, 1))
    use(folder, monkeypatch)
    with pytest.raises(DataError) as caught:
        rows.load_rows()
    assert message in str(caught.value)
    assert "newbench.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_mteb_does_not_take_names_the_nearest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reasonembed_mteb.retrieval.task import make_task

    (folder / "newbench.toml").write_text(TABLE.replace("[defaults]", '[defaults]\nlicense = "cc-by-4"'))
    use(folder, monkeypatch)
    with pytest.raises(DataError, match=r"newbench\.toml, task NewBenchAlpha: .*did you mean 'cc-by-4\.0'"):
        make_task(rows.find("NewBenchAlpha"))


@pytest.mark.slow
def test_a_task_of_mtebs_is_refused_by_name(folder: Path) -> None:
    (folder / "newbench.toml").write_text(TABLE.replace("NewBenchAlpha", "SCIDOCS"))
    done = run(f"import reasonembed_mteb; reasonembed_mteb.register(tables={str(folder)!r})")
    assert "MTEB has a task SCIDOCS already; give it another name" in done.stderr


def test_a_folder_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        rows.add_tables(tmp_path / "nowhere")
    assert rows.find("biology").name == "ReasonEmbedBrightBiology"
    use(tmp_path, monkeypatch)
    with pytest.raises(DataError, match=r"holds no \*\.toml"):
        rows.load_rows()
