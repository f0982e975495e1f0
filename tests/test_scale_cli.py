"""``reasonembed encode`` and ``search``: the run's own vectors and ranking, and one line where not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from reasonembed_mteb.cli.scale import corpus_name
from reasonembed_mteb.retrieval.trec import read_run
from reasonembed_mteb.store.corpora import open_stored, read_block
from reasonembed_mteb.store.places import Place

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

WORDS = ("cells", "leaves", "water", "light", "grow", "heat", "salt", "why", "plants", "stone")
# No two alike: equal scores would be ordered by their last digit.
ROWS = [
    {"_id": f"d{n}", "text": " ".join(WORDS[(n * k + n // 10) % 10] for k in range(1, 5 + n % 3 + n // 10))}
    for n in range(30)
]
QUERIES = [{"_id": f"q{n}", "text": " ".join(WORDS[(n + k) % 10] for k in range(4))} for n in range(4)]


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """Return a BEIR folder in which a query's best document does not count."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("corpus", ROWS), ("queries", QUERIES)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "excluded.tsv").write_text("query-id\tcorpus-id\nq0\td1\nq0\td4\n")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td3\t1\nq1\td2\t1\n")
    return folder


def encode(command: Command, source: Path | str, model: Path, *more: str) -> tuple[int, str, str]:
    arguments = ("--input", str(source), "--model", str(model), "--output", "store", "--block-tokens", "60")
    return command("encode", *arguments, "--threads", "1", *more)


def test_the_ranking_is_the_runs_own(command: Command, beir: Path, bert: Path) -> None:
    status, _, err = encode(command, beir, bert)
    assert status == 0, err
    assert "30 documents in " in err
    status, _, err = command("search", "store", "--queries", str(beir), "--top-k", "9", "--threads", "1")
    assert (status, "4 queries in 30 documents" in err) == (0, True), err
    run = ("run", "-m", str(bert), "--beir", str(beir), "--run-file", "ours.trec", "--device", "cpu")
    status, _, err = command(*run, "--store", "store")
    assert status == 0, err
    found, ours = read_run(beir.parent / "run.trec"), read_run(beir.parent / "ours.trec")
    assert found.keys() == {row["_id"] for row in QUERIES}
    assert not {"d1", "d4"} & found["q0"].keys()
    for query, scores in ours.items():
        assert list(scores)[:9] == list(found[query])
        assert list(scores.values())[:9] == pytest.approx(list(found[query].values()), abs=1e-6)


def test_a_run_takes_the_vectors_that_encode_has_stored(command: Command, beir: Path, bert: Path) -> None:
    encode(command, beir, bert)
    (folder,) = [one for one in (beir.parent / "store").iterdir() if one.is_dir()]
    blocks = sorted(file.name for file in folder.glob("block-*"))
    assert command("run", "-m", str(bert), "--beir", str(beir), "--store", "store")[0] == 0
    # The run has added its queries, and nothing else.
    (added,) = [file for file in folder.glob("*.safetensors") if file.name not in blocks]
    from safetensors import safe_open

    with safe_open(added, framework="pt") as opened:
        assert opened.get_slice("vectors").get_shape()[0] == 2


def test_a_second_call_computes_nothing(command: Command, beir: Path, bert: Path) -> None:
    first = encode(command, beir, bert)[2]
    assert " 0 of " not in first
    assert ": 0 of " in encode(command, beir, bert)[2]


def test_a_models_own_prompt_stays_when_it_is_asked_for(command: Command, beir: Path, prompted: Path) -> None:
    # What goes before a document decides its vector, whatever else is the same.
    assert ": 0 of " not in encode(command, beir, prompted)[2]
    for more in ((), ("--no-instruction",), ("--instruction-template", "{instruction} {query}")):
        said = encode(command, beir, prompted, *more)[2]
        assert (": 0 of " in said) == (not more), said


def test_a_corpus_that_is_replaced_is_said(command: Command, beir: Path, bert: Path) -> None:
    (beir.parent / "other").mkdir()
    beir.rename(beir.parent / "other" / "data")
    moved = beir.parent / "other" / "data"
    assert "is replaced" not in encode(command, moved, bert)[2] + encode(command, moved, bert)[2]
    moved.rename(beir)
    assert f"data of {moved} in the store is replaced; --name" in encode(command, beir, bert)[2]


@pytest.mark.slow
def test_decoders_are_asked_with_their_instruction(command: Command, beir: Path, qwen3_dir: Path) -> None:
    assert encode(command, beir, qwen3_dir, "--dtype", "float16")[0] == 0
    search = ("search", "store", "--queries", str(beir), "--top-k", "5", "--threads", "1")
    assert command(*search, "--instruction", "Find plants.", "--output", "told.trec")[0] == 0
    assert command(*search, "--task", "BrightBiologyRetrieval", "--output", "task.trec")[0] == 0
    told, task = (read_run(beir.parent / name) for name in ("told.trec", "task.trec"))
    assert told != task
    corpus = open_stored(Place(beir.parent / "store"))
    assert read_block(corpus.folder, corpus.blocks[0]).vectors.dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dtype", "int7"), "unknown dtype 'int7'; did you mean 'int8'?"),
        (("--gpus-per-worker", "1"), "--gpus-per-worker is for a cluster"),
        (("--attn", "pakced"), "'pakced'"),
        (("--cluster", "nowhere"), "is no address"),
        (("--task", "BrightBiolgyRetrieval"), "did you mean 'BrightBiologyRetrieval'?"),
        (("--output", ""), "an empty name is no place"),
        (("--name", "my corpus"), "'my-corpus'"),
        (("--name", "../x"), "'x'"),
    ],
)
def test_wrong_options_are_one_line(
    command: Command, beir: Path, bert: Path, arguments: tuple[str, ...], said: str
) -> None:
    if "--cluster" in arguments:
        pytest.importorskip("ray")
    status, _, err = encode(command, beir, bert, *arguments)
    assert (status, err.count("\n")) == (2, 1 + err.count(" threads\n")), err
    assert said in err
    assert not (beir.parent / "store").exists()


def test_a_search_by_another_model_is_refused(
    command: Command, beir: Path, bert: Path, prompted: Path
) -> None:
    encode(command, beir, bert)
    status, _, err = command("search", "store", "--queries", str(beir), "--model", str(prompted))
    assert status == 2
    assert "is not the same model" in err.replace("\n", " ")


def test_a_store_that_holds_no_corpus_is_named(command: Command, beir: Path) -> None:
    status, _, err = command("search", "nothing", "--queries", str(beir))
    # By a name that every machine understands.
    assert status == 2
    assert f"there is no corpus in {beir.parent / 'nothing'};" in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/corpus.jsonl.gz", "corpus"),
        ("s3://b/part one/", "part-one"),
        ("x/*.parquet", "x"),
        ("s3://b/my part/2024-*/*.jsonl", "my-part"),
        ("*.parquet", "corpus"),
        ("my.data", "my.data"),
    ],
)
def test_a_corpus_is_named_after_its_input(source: str, name: str) -> None:
    assert corpus_name(source) == name
