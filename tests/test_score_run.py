"""Scoring runs: the protocol, MTEB's numbers and the command."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import mteb
import numpy as np
import pytest
import pytrec_eval

from reasonembed_mteb.errors import DataError, UnknownNameError
from reasonembed_mteb.evaluation import score_run as score
from reasonembed_mteb.evaluation.score_run import judge, score_run, strip_prefix
from reasonembed_mteb.retrieval.rows import find
from reasonembed_mteb.retrieval.trec import write_run

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

    Run = dict[str, dict[str, float]]
    Labels = dict[str, dict[str, int]]


def random_case(seed: int, queries: int = 30, documents: int = 1500, depth: int = 1200) -> tuple[Run, Labels]:
    """Draw a run full of ties, with graded labels, some of them on documents it lacks."""
    draw = np.random.default_rng(seed)
    ids = [f"d {i}" for i in range(documents)]
    run, labels = {}, {}
    for query in range(queries):
        found = draw.choice(documents, depth, replace=False)
        scores = np.round(draw.random(depth), 2)
        run[f"q{query}"] = {ids[i]: float(s) for i, s in zip(found, scores, strict=True)}
        gold = draw.choice(documents, 1 + query % 7, replace=False)
        labels[f"q{query}"] = {ids[i]: int(draw.integers(0, 3)) for i in gold}
        labels[f"q{query}"][ids[gold[0]]] = 1
    return run, labels


def test_agrees_with_pytrec_eval() -> None:
    run, labels = random_case(0)
    ours = score_run(run, judge("labels", labels))
    names = {
        "ndcg": "ndcg_cut",
        "map": "map_cut",
        "recall": "recall",
        "precision": "P",
        "hit_rate": "success",
    }
    for name, theirs in names.items():
        for k in (1, 3, 5, 10, 20, 100, 1000):
            evaluator = pytrec_eval.RelevanceEvaluator(labels, {f"{theirs}.{k}"})
            expected = {query: row[f"{theirs}_{k}"] for query, row in evaluator.evaluate(run).items()}
            found = {query: row[f"{name}_at_{k}"] for query, row in ours.per_query.items()}
            assert found == pytest.approx(expected, abs=1e-9)
            assert ours.scores[f"{name}_at_{k}"] == pytest.approx(np.mean(list(expected.values())), abs=1e-9)


@pytest.mark.parametrize("seed", [1, 2])
def test_agrees_with_mteb_in_names_and_numbers(seed: int) -> None:
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores, make_score_dict

    run, labels = random_case(seed)
    found = calculate_retrieval_scores(run, labels, score.CUTS)
    theirs = make_score_dict(
        ndcg=found.ndcg,
        _map=found.map,
        recall=found.recall,
        precision=found.precision,
        mrr=found.mrr,
        naucs={},
        naucs_mrr={},
        hit_rate=found.hit_rate,
        task_scores={},
    )
    ours = score_run(run, judge("labels", labels)).scores
    # MTEB repeats recall@1 under this name for multiple choice, and rounds to five digits.
    del theirs["accuracy"]
    assert list(ours) == list(theirs)
    assert ours == pytest.approx(theirs, abs=5.1e-6)


def test_cuts_are_those_of_mteb() -> None:
    assert mteb.get_task("NFCorpus").k_values == score.CUTS


def test_mrr_is_cut_at_each_depth() -> None:
    for rank in (1, 2, 3, 4, 10, 11, 49, 100, 101, 1000, 1001):
        run = {"q": {f"d{i:04}": -float(i) for i in range(1, 1200)}}
        row = score_run(run, judge("labels", {"q": {f"d{rank:04}": 1}})).per_query["q"]
        for k in score.CUTS:
            assert row[f"mrr_at_{k}"] == pytest.approx(1 / rank if rank <= k else 0.0)


def test_excluded_documents_leave_before_the_cut() -> None:
    run = {"q": {f"d{i:02}": -float(i) for i in range(20)}}
    labels = {"q": {"d10": 1}}
    assert score_run(run, judge("labels", labels)).scores["recall_at_10"] == 0
    judged = judge("labels", labels, {"q": frozenset({"d03", "d05", "unknown"})})
    found = score_run(run, judged)
    assert found.scores["recall_at_10"] == 1
    assert found.scores["mrr_at_10"] == pytest.approx(1 / 9)
    assert (found.removed, found.shortened) == (2, 1)
    assert "2 excluded documents taken out" in found.remarks()[0]


def test_exclusions_are_by_query() -> None:
    run = {"q": {"a": 2.0, "b": 1.0}, "p": {"a": 2.0, "b": 1.0}}
    judged = judge("labels", {"q": {"b": 1}, "p": {"b": 1}}, {"q": ["a"]})
    rows = score_run(run, judged).per_query
    assert (rows["q"]["mrr_at_10"], rows["p"]["mrr_at_10"]) == (1.0, 0.5)


def test_an_excluded_document_never_enters_recall() -> None:
    judged = judge("labels", {"q": {"a": 1, "b": 1}}, {"q": ["a"]})
    assert judged.labels == {"q": {"b": 1}}
    assert judged.suspects == ("1 labelled documents are excluded: they count as excluded",)
    assert score_run({"q": {"a": 2.0, "b": 1.0}}, judged).scores["recall_at_1"] == 1


def test_ties_go_to_the_higher_document_id() -> None:
    for first, second in (("a", "b"), ("b", "a")):
        run = {"q": {first: 1.0, second: 1.0}}
        for gold, rank in (("b", 1), ("a", 2)):
            assert score_run(run, judge("labels", {"q": {gold: 1}})).scores["mrr_at_10"] == 1 / rank


def test_queries_without_rows_score_0_and_without_labels_are_left_out() -> None:
    judged = judge("labels", {"q": {"a": 1}, "r": {"a": 1}, "s": {"a": 1}})
    found = score_run({"q": {"a": 1.0}, "s": {}, "t": {"a": 1.0}}, judged)
    assert found.scores["ndcg_at_10"] == pytest.approx(1 / 3)
    assert (found.without_rows, found.without_labels) == (("r", "s"), ("t",))
    assert found.remarks() == [
        "2 queries ('r', 's') of the labels not in the run: counted with score 0",
        "1 query ('t') of the run without labels: left out",
    ]


def test_negative_labels_and_queries_without_a_relevant_document_count_and_are_said() -> None:
    judged = judge("labels", {"q": {"a": -2, "b": 1}, "r": {"a": 0}, "s": {}})
    found = score_run({"q": {"a": 2.0, "b": 1.0}, "r": {"a": 1.0}, "s": {"a": 1.0}}, judged)
    assert list(found.per_query) == ["q", "r"]
    assert found.per_query["q"]["mrr_at_10"] == 0.5
    assert found.per_query["q"]["ndcg_at_10"] == pytest.approx(1 / np.log2(3))
    assert found.scores["recall_at_10"] == pytest.approx(1 / 2)
    assert judged.suspects == (
        "1 negative labels: they count as not relevant",
        "1 query ('s') without any label: left out, as MTEB does",
        "1 query ('r') without a relevant document: counted with score 0",
    )


def test_exclusions_of_other_queries_are_said() -> None:
    assert "do not belong together" in judge("labels", {"q": {"a": 1}}, {"x": ["a"]}).suspects[0]


def test_nothing_in_common_is_an_error_with_a_hint() -> None:
    judged = judge("labels.txt", {"0": {"a": 1}})
    with pytest.raises(
        DataError, match=r"no query of the run has labels in labels.txt .*--prefix 'biology-' strips"
    ):
        score_run({"biology-0": {"a": 1.0}}, judged)
    with pytest.raises(DataError, match="give the labels that belong"):
        score_run({"x": {"a": 1.0}}, judged)


def test_prefixes() -> None:
    run = {"b-0": {"a": 1.0}, "1": {"a": 1.0}}
    assert list(strip_prefix(run, "b-")) == ["0", "1"]
    assert strip_prefix(run, "") is run
    with pytest.raises(DataError, match=r"no query id begins with 'c-' \(the first is 'b-0'\)"):
        strip_prefix(run, "c-")
    with pytest.raises(DataError, match="share an id"):
        strip_prefix({"b-0": {}, "0": {}}, "b-")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("biology", "ReasonEmbedBrightBiology"),
        ("ReasonEmbedBrightBiologyLong", "ReasonEmbedBrightBiologyLong"),
        ("BrightBiologyRetrieval", "ReasonEmbedBrightBiology"),
        ("BrightBiologyLongRetrieval", "ReasonEmbedBrightBiologyLong"),
        ("PMC-Treatment", "ReasonEmbedR2MEDPMCTreatment"),
        ("ReasonMiniPony", "ReasonMiniPony"),
        ("ReasonEmbedBrightBiologyGpt4Reason", "ReasonEmbedBrightBiologyGpt4Reason"),
    ],
)
def test_task_names(name: str, found: str) -> None:
    assert find(name).name == found


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'leetcode'"):
        find("leetcod")


def test_a_tasks_labels_are_those_it_is_evaluated_with() -> None:
    from reasonembed_mteb.retrieval.layouts import load_split

    for name in ("ReasonMiniLeetcode", "ReasonMiniAops", "ReasonMiniBiology"):
        row = find(name)
        loaded, judged = load_split(row), score.judgements_of_task(name)
        assert judged.labels == loaded["relevant_docs"]
        theirs = {query: set(documents) for query, documents in dict(loaded["excluded_ids"]).items()}
        known = set(loaded["corpus"]["id"][:])
        ours = {query: set(documents) & known for query, documents in judged.excluded.items()}
        assert {query: documents for query, documents in ours.items() if documents} == theirs
        assert judged.main_score == "ndcg_at_10"


def test_r2med_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    rows: dict[str, dict[str, list[Any]]] = {
        "corpus": {"id": ["d0"], "text": ["light"]},
        "query": {"id": ["q0", "q1"], "text": ["sun", "rain"]},
        "qrels": {"q_id": ["q0", "q0"], "p_id": ["d0", "d1"], "score": [1, 0]},
    }
    for config, columns in rows.items():
        file = tmp_path / "Biology" / config / f"{config}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        Dataset.from_dict(columns).to_parquet(str(file))
    monkeypatch.setenv("REASONEMBED_R2MED_PATH", str(tmp_path))
    judged = score.judgements_of_task("Biology")
    assert judged.labels == {"q0": {"d0": 1, "d1": 0}}
    assert judged.suspects == ("1 query ('q1') without any label: left out, as MTEB does",)


@pytest.mark.parametrize("none", [["N/A"], []])
def test_both_spellings_of_no_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, none: list[str]
) -> None:
    from datasets import Dataset

    columns = {"id": ["0", "1"], "gold_ids": [["d"], none], "excluded_ids": [none, ["e"]]}
    (tmp_path / "examples").mkdir()
    file = tmp_path / "examples/biology-00000-of-00001.parquet"
    Dataset.from_dict(columns).to_parquet(str(file))
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(tmp_path))
    # No corpus lies there: it is not needed.
    judged = score.judgements_of_task("biology")
    assert judged.labels == {"0": {"d": 1}}
    assert dict(judged.excluded) == {"1": ["e"]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_run(tmp_path / "one.run", {"x-0": {"a b": 2.0, "c": 1.0}, "x-1": {"c": 1.0}}, "t")
    (tmp_path / "two.json").write_text(json.dumps({"0": {"c": 2.0, "a b": 1.0}, "1": {"c": 1.0}}))
    (tmp_path / "three.gz").write_bytes(gzip.compress((tmp_path / "two.json").read_bytes()))
    (tmp_path / "qrels").write_text("0 0 a b 1\n1 0 c 1\n")
    (tmp_path / "other").write_text("0 0 c 1\n")
    (tmp_path / "out").write_text("0 c\n")
    return tmp_path


@pytest.mark.usefixtures("files")
def test_command_as_json(command: Command) -> None:
    status, out, err = command("score", "two.json", "three.gz", "--qrels", "qrels", "--format", "json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {"runs"}
    for one, name in zip(found["runs"], ("two.json", "three.gz"), strict=True):
        assert (one["run"], one["task"], one["queries"]) == (name, "qrels", 2)
        assert one["scores"]["mrr_at_10"] == 0.75
        assert one["scores"]["main_score"] == one["scores"]["ndcg_at_10"]
        assert set(one["scores"]) == {*score.METRICS, "main_score"}


@pytest.mark.usefixtures("files")
def test_command_with_labels_exclusions_and_prefix_for_each_run(command: Command) -> None:
    pairs = ["--qrels", "qrels", "--exclude", "out", "--qrels", "other", "--exclude", "-"]
    status, out, err = command(
        "score", "one.run", "two.json", *pairs, "--prefix", "x-", "--prefix", "", "--format", "json"
    )
    assert status == 0
    found = json.loads(out)
    assert [one["scores"]["mrr_at_10"] for one in found["runs"]] == [1.0, 1.0]
    assert [one["excluded_documents_removed"] for one in found["runs"]] == [1, 0]
    assert found["runs"][1]["queries_without_labels"] == ["1"]
    assert found["mean"]["mrr_at_10"] == 1.0
    assert "two.json: 1 query ('1') of the run without labels: left out" in err


@pytest.mark.usefixtures("files")
def test_command_as_table(command: Command) -> None:
    status, out, _ = command("score", "two.json", "two.json", "--qrels", "qrels", "--qrels", "other")
    assert status == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["two.json"][1:3] == ["other", "1"]
    assert lines["macro"][:5] == ["macro", "mean", "of", "2", "3"]
    assert lines["macro"][5] == f"{100 * (1 + (1 + 1 / np.log2(3)) / 2) / 2:.2f}"


def test_command_with_a_task(command: Command, tmp_path: Path) -> None:
    judged = score.judgements_of_task("ReasonMiniLeetcode")
    run = {query: dict.fromkeys(gold, 1.0) for query, gold in judged.labels.items()}
    query, documents = next(iter(judged.excluded.items()))
    run[query] |= dict.fromkeys(documents, 2.0)
    write_run(tmp_path / "a.run", run, "t")
    status, out, _ = command("score", "a.run", "-t", "ReasonMiniLeetcode", "--format", "json")
    assert status == 0
    (one,) = json.loads(out)["runs"]
    assert one["scores"]["ndcg_at_10"] == 1.0
    assert one["excluded_documents_removed"] == len(set(documents))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["two.json"], "give --task TASK or --qrels FILE"),
        (["two.json", "-t", "biology", "--qrels", "qrels"], "one of the two"),
        (["two.json", "--qrels", "qrels", "--qrels", "qrels"], "2 --qrels for 1 runs"),
        (
            ["two.json", "--qrels", "qrels", "--exclude", "out", "--exclude", "out"],
            "2 --exclude for 1 --qrels",
        ),
        (["two.json", "-t", "ReasonMiniBiologie"], "did you mean 'ReasonMiniBiology'"),
        (["none.run", "--qrels", "qrels"], "cannot read none.run"),
        (["qrels", "--qrels", "qrels"], "qrels, line 1: expected query id, Q0"),
        (["one.run", "--qrels", "qrels"], "one.run: no query of the run has labels in qrels"),
        (["one.run", "--qrels", "qrels", "--prefix", "y"], "one.run: no query id begins with 'y'"),
    ],
)
def test_command_refuses_in_one_line(command: Command, arguments: list[str], words: str) -> None:
    status, out, err = command("score", *arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert words in line


def write_parts(folder: Path, parts: dict[str, list[dict[str, Any]]]) -> None:
    for file, rows in parts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def bright_pro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a run of two queries of BRIGHT-Pro, whose corpus is not there."""
    monkeypatch.setenv("REASONEMBED_BRIGHT_PRO_PATH", str(tmp_path))
    aspects = [
        {"id": "x-a1", "supporting_docs": ["d1", "d2"], "weight": 3},
        {"id": "x-a2", "supporting_docs": ["d3"], "weight": 1},
        {"id": "y-a1", "supporting_docs": ["d4"], "weight": 2},
    ]
    examples = [
        {"id": "q1", "query": "one", "gold_ids": ["d1", "d2", "d3"]},
        {"id": "q2", "query": "two", "gold_ids": ["d4"]},
    ]
    write_parts(tmp_path, {"examples/robotics.jsonl": examples, "aspects/robotics.jsonl": aspects})
    write_run(tmp_path / "run.trec", {"q1": {"d9": 3.0, "d2": 2.0, "d3": 1.0}, "q2": {"d8": 1.0}}, "x")
    return tmp_path / "run.trec"


def test_command_with_weighted_aspects(command: Command, bright_pro: Path) -> None:
    status, out, _ = command(
        "score", str(bright_pro), "-t", "ReasonEmbedBrightProRobotics", "--format", "json"
    )
    assert status == 0
    (found,) = json.loads(out)["runs"]
    # Shares 3/4 and 1/4; the best ranking has d1, d3, d2 (or d2 first).
    gain = 0.75 / np.log2(3) + 0.25 / np.log2(4)
    best = 0.75 + max(0.25 / np.log2(3) + 0.375 / np.log2(4), 0.375 / np.log2(3) + 0.25 / np.log2(4))
    assert found["scores"]["alpha_ndcg_at_25"] == pytest.approx(gain / best / 2)
    assert found["scores"]["main_score"] == found["scores"]["alpha_ndcg_at_25"]
    assert found["scores"]["coverage_at_25"] == pytest.approx(0.5)
    assert found["scores"]["recall_at_25"] == pytest.approx(1 / 3)
    # By MTEB's name too, and with further measures.
    name = "BrightProRoboticsRetrieval"
    status, out, _ = command(
        "score", str(bright_pro), "-t", name, "--measure", "mrr_at_2", "--measure", "recall_at_2"
    )
    assert status == 0
    assert "alpha_ndcg_at_25" in out
    assert "mrr_at_2" in out
    assert "25.00" in out
    status, _, err = command("score", str(bright_pro), "-t", name, "--measure", "recal_at_2")
    assert status == 2
    assert "unknown measure 'recal_at_2'; did you mean 'recall_at_" in err


def test_command_with_pools(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONEMBED_COQUIR_PATH", str(tmp_path))
    labels = [
        {"qid": "q1", "pos-docids": ["x-c-1", "x-go-1"], "neg-docids": ["x-c-2", "x-go-2"]},
        {"qid": "q2", "pos-docids": ["x-go-3"], "neg-docids": ["x-go-4"]},
    ]
    write_parts(
        tmp_path / "CVEFixes",
        {"default/test.jsonl": labels, "query/query.jsonl": [{"id": q, "text": q} for q in ("q1", "q2")]},
    )
    write_run(tmp_path / "c.trec", {"q1": {"x-c-2": 2.0, "x-c-1": 1.0}}, "x")
    task = ("-t", "ReasonEmbedCoQuIRCVEFixes")
    status, out, _ = command("score", str(tmp_path / "c.trec"), *task, "--subset", "c", "--format", "json")
    assert status == 0
    (found,) = json.loads(out)["runs"]
    # The other pool's answers are no misses here, and the second query has none in this one.
    assert found["queries"] == 1
    assert found["scores"]["ppa"] == 0
    assert found["scores"]["mrs"] == pytest.approx(0.5 - 1)
    assert found["scores"]["recall_at_10"] == 1
    status, _, err = command("score", str(tmp_path / "c.trec"), *task)
    assert status == 2
    assert "--subset: c, go, java, python, ruby" in err
    status, _, err = command("score", str(tmp_path / "c.trec"), *task, "--subset", "jva")
    assert status == 2
    assert "did you mean 'java'" in err


def test_measures_of_another_task_leave_a_gap(command: Command, bright_pro: Path) -> None:
    qrels = bright_pro.with_name("qrels.txt")
    qrels.write_text("q1 0 d2 1\n")
    status, out, _ = command("score", str(bright_pro), "--qrels", str(qrels), "--measure", "alpha_ndcg_at_10")
    assert status == 0
    # Without nuggets there is no such value.
    assert " - " in out


def test_labels_from_a_file_do_not_wait_for_datasets(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("1 0 2 1\n")
    code = (
        "import sys; from pathlib import Path; from reasonembed_mteb.evaluation import score_run as s; "
        "s.score_run({'1': {'2': 1.0}}, s.judgements_from_files(Path(sys.argv[1]), None)); "
        "sys.exit('datasets' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
