"""BEIR in and out: the same scores as beir's own evaluation, and as the task that was exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import pytest

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.evaluation import record as records
from reasonembed_mteb.evaluation.resolving import resolve_model
from reasonembed_mteb.evaluation.runner import RunOptions, run
from reasonembed_mteb.models.beir_encoder import BeirEncoder
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.retrieval.beir import read_folder, read_protected, write_folder
from reasonembed_mteb.retrieval.beir_task import beir_task, export_beir
from reasonembed_mteb.retrieval.rows import find
from reasonembed_mteb.retrieval.task import build_tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Command

pytestmark = pytest.mark.usefixtures("registered")

INSTRUCTION = "Given a question, retrieve passages that answer it."
TEXT = "sky blue sun light wave long short cell leaf root water soil salt acid iron gold star moon"
WORDS = TEXT.split()
HEAD = "query-id\tcorpus-id\tscore\n"
EXCLUDED_HEAD = "query-id\tcorpus-id\n"


def words(*indices: int) -> str:
    return " ".join(WORDS[index % len(WORDS)] for index in indices)


def write(folder: Path, **changed: str) -> Path:
    """Write a BEIR folder of 40 documents and 6 queries with graded labels; a text replaces a file."""
    texts = [words(i, i * 3 + 1, i * i, i // 2 + 5, i * 7 + 2) for i in range(40)]
    corpus = [
        {"_id": f"d {i}", "title": words(i + 4) if i % 3 else "", "text": t} for i, t in enumerate(texts)
    ]
    queries = [{"_id": f"q{i}", "text": words(i, i + 3, i * 5)} for i in range(6)]
    labels = [f"q{i}\td {i * k + 1}\t{k - 1}" for i in range(5) for k in (1, 2, 3) if i]
    content = {
        "corpus": "".join(json.dumps(record) + "\n" for record in corpus),
        "queries": "".join(json.dumps(record) + "\n" for record in queries),
        "labels": HEAD + "\n".join(labels) + "\n",
    } | changed
    names = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "labels": "qrels/test.tsv"}
    (folder / "qrels").mkdir(parents=True)
    for key, text in content.items():
        (folder / names.get(key, "excluded.tsv")).write_text(text, encoding="utf-8")
    return folder


def bag_of_words() -> Any:
    """Return a SentenceTransformer that counts words; it has no length and no prompt."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import BoW

    weights = {word: 1 + 0.37 * index for index, word in enumerate(WORDS)}
    return SentenceTransformer(
        modules=[BoW(WORDS, weights, unknown_word_weight=0), Normalize()], device="cpu"
    )


def scores_of(model: Any, task: Any) -> dict[str, float]:
    """Return MTEB's scores; nothing is cached."""
    options = {"cache": None, "co2_tracker": False, "show_progress_bar": False}
    result = mteb.evaluate(model, task, encode_kwargs={"show_progress_bar": False}, **options)
    return dict(next(iter(result.task_results[0].scores.values()))[0])


def beir_scores(encoder: BeirEncoder, folder: Path) -> dict[str, float]:
    """Return what beir's own evaluation says, by MTEB's metric names."""
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    corpus, queries, labels = GenericDataLoader(str(folder)).load("test")
    search = DenseRetrievalExactSearch(encoder, batch_size=4, show_progress_bar=False)
    evaluation = EvaluateRetrieval(search, score_function="cos_sim")
    results = evaluation.retrieve(corpus, queries)
    parts = evaluation.evaluate(labels, results, evaluation.k_values)
    names = {"NDCG": "ndcg", "MAP": "map", "Recall": "recall", "P": "precision"}
    found = {}
    for part in parts:
        for key, value in part.items():
            kind, k = key.split("@")
            found[f"{names[kind]}_at_{k}"] = value
    return found


def agree(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert len(theirs) == 24
    for metric, value in theirs.items():
        assert ours[metric] == pytest.approx(value, abs=1e-5), metric
    assert 0 < theirs["ndcg_at_10"] < 1


def test_a_decoder_scores_as_in_beir(tmp_path: Path, qwen3_dir: Path) -> None:
    folder = write(tmp_path / "data")
    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    theirs = beir_scores(BeirEncoder(model, INSTRUCTION), folder)
    meta = resolve_model(str(qwen3_dir), template="Instruct: {instruction}\nQuery: ")
    ours = scores_of(meta.load_model(device="cpu"), beir_task(folder, INSTRUCTION))
    agree(ours, theirs)
    bare = beir_scores(BeirEncoder(ReasonEmbed(str(qwen3_dir), device="cpu"), ""), folder)
    assert bare["ndcg_at_10"] != theirs["ndcg_at_10"]


@pytest.mark.parametrize("own_id", [False, True])
def test_counted_words_score_as_in_beir(tmp_path: Path, own_id: bool) -> None:
    queries = [{"_id": f"d {i}" if own_id else f"q{i}", "text": words(i, i + 3, i * 5)} for i in range(6)]
    named = [query["_id"] for query in queries]
    folder = write(
        tmp_path / "data",
        queries="".join(json.dumps(query) + "\n" for query in queries),
        labels=HEAD
        + "".join(f"{name}\td {i + 7}\t1\n{name}\td {i + 20}\t2\n" for i, name in enumerate(named)),
    )
    agree(scores_of(bag_of_words(), beir_task(folder)), beir_scores(BeirEncoder(bag_of_words()), folder))
    assert bool(read_folder(folder)["excluded_ids"]) == own_id


@pytest.mark.parametrize("subset", ["Aops", "TheoremQAQuestions", "Leetcode"])
def test_an_exported_task_scores_as_before(tmp_path: Path, subset: str) -> None:
    name = f"ReasonMini{subset}"
    folder = tmp_path / "out"
    task = build_tasks()[name]()
    counts = export_beir(task, folder)
    assert not task.data_loaded
    assert counts["excluded"] > 0
    again = beir_task(folder, find(name).instruction)
    model = wordy()
    before, after = scores_of(model, build_tasks()[name]()), scores_of(model, again)
    assert {key: value for key, value in before.items() if "nauc" not in key} == {
        key: value for key, value in after.items() if "nauc" not in key
    }
    assert sorted(file.name for file in folder.iterdir()) == [
        "corpus.jsonl",
        "excluded.tsv",
        "qrels",
        "queries.jsonl",
    ]
    (folder / "excluded.tsv").write_text(EXCLUDED_HEAD)
    assert scores_of(model, beir_task(folder))["ndcg_at_10"] != before["ndcg_at_10"]


def wordy() -> Any:
    """Return a SentenceTransformer that counts the words of the mini benchmark."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import BoW

    text = (Path(__file__).parents[1] / "tasks/mini/documents-aops.jsonl").read_text(encoding="utf-8")
    vocabulary = sorted({word.strip('.,"') for word in text.lower().split() if word.isalpha()})
    return SentenceTransformer(modules=[BoW(vocabulary), Normalize()], device="cpu")


def test_awkward_texts_survive(tmp_path: Path) -> None:
    from datasets import Dataset

    data: dict[str, Any] = {
        "corpus": Dataset.from_dict(
            {"id": ['a "b" c', '"x', "ä/é 1"], "text": ["one\ntwo\u2028", "", "\t\\n"]}
        ),
        "queries": Dataset.from_dict({"id": ['q"', "r"], "text": ["é", "two"]}),
        "relevant_docs": {'q"': {'"x': 2, 'a "b" c': 0}, "r": {"ä/é 1": 1}},
        "excluded_ids": {"r": ['"x']},
    }
    write_folder(data, tmp_path / "out", "T")
    again = read_folder(tmp_path / "out")
    assert again["corpus"].to_dict() == data["corpus"].to_dict()
    assert again["queries"].to_dict() == data["queries"].to_dict()
    assert again["relevant_docs"] == data["relevant_docs"]
    assert again["excluded_ids"] == data["excluded_ids"]
    from beir.datasets.data_loader import GenericDataLoader

    corpus, queries, labels = GenericDataLoader(str(tmp_path / "out")).load("test")
    assert labels == data["relevant_docs"]
    assert corpus["ä/é 1"] == {"text": "\t\\n", "title": ""}
    assert list(queries) == ['q"', "r"]


DOCUMENT = json.dumps({"_id": "d 1", "text": "x"}) + "\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corpus": ""}, r"corpus\.jsonl is empty"),
        (
            {"corpus": DOCUMENT + DOCUMENT.replace("x", "y")},
            r"corpus\.jsonl, line 2: _id 'd 1' is also on line 1 with another text",
        ),
        ({"corpus": DOCUMENT + "{oops\n"}, r"corpus\.jsonl, line 2 is not JSON"),
        ({"corpus": DOCUMENT + "[]\n"}, r"corpus\.jsonl, line 2 holds list"),
        ({"corpus": '{"_id": "a", "body": "x"}\n'}, r"corpus\.jsonl: no line has a text"),
        ({"corpus": DOCUMENT + '{"name": "a"}\n'}, r"line 2: '_id' is missing \(keys: name\)"),
        ({"corpus": DOCUMENT + '{"_id": 7.5, "text": ""}\n'}, r"line 2: '_id' is 7\.5, not text"),
        ({"corpus": DOCUMENT + '{"_id": null, "text": ""}\n'}, r"line 2: '_id' is None, not text"),
        ({"corpus": DOCUMENT + '{"_id": "a", "text": ["x"]}\n'}, r"line 2: 'text' is list, not text"),
        ({"corpus": '{"_id": "a\\tb", "text": ""}\n'}, r"corpus\.jsonl, line 1: id 'a\\tb' .* tab"),
        ({"queries": '{"_id": "q1", "text": null}\n'}, r"queries\.jsonl: no line has a text"),
        ({"labels": ""}, r"test\.tsv holds no rows"),
        ({"labels": HEAD}, r"test\.tsv holds no rows"),
        (
            {"labels": HEAD + "q1\td 1\t1\nq1\tnone\t1\n"},
            r"test\.tsv: 1 of 2 relevant documents are not in the corpus \(none\)",
        ),
        ({"labels": HEAD + "q9\td 1\t1\n"}, r"test\.tsv: 1 of 1 labels are for queries .*\(q9; "),
        ({"labels": HEAD + "q1\td 1\t0.5\n"}, r"test\.tsv, line 2: label '0\.5'"),
        ({"labels": HEAD + "q1\td 1\t1\nq1\td 1\t2\n"}, r"test\.tsv, line 3: .* labelled 2 here and 1 above"),
        ({"labels": HEAD + "q1 d1 1\n"}, r"test\.tsv, line 2 has 1 columns instead of 3"),
        ({"labels": HEAD + 'q1\t"d\n1"\t1\n'}, r"test\.tsv, line 2: a quoted id holds a tab or a line break"),
        (
            {"labels": HEAD + "q1\td 1\t1\n", "excluded": "q1\td 1\n"},
            r"test\.tsv has no label that counts",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_folder(write(tmp_path / "data", **changed))


PAGES = [{"_id": i, "title": t, "text": f"text {i}"} for i, t in enumerate(["one", None, "three"])]
ASKED = [{"_id": i, "text": f"ask {i}"} for i in (10, 11)]
PAIRS = [(10, 0, 1), (10, 1, 0), (11, 2, 2)]
AS_READ = {"10": {"0": 1, "1": 0}, "11": {"2": 2}}


def framed(folder: Path, packed: str = "", **options: Any) -> Path:
    """Write a folder as pandas does, with numbers for ids; ``packed`` is the files' last suffix."""
    import pandas as pd

    (folder / "qrels").mkdir(parents=True)
    pd.DataFrame(PAGES).to_json(folder / f"corpus.jsonl{packed}", orient="records", lines=True)
    pd.DataFrame(ASKED).to_json(folder / f"queries.jsonl{packed}", orient="records", lines=True)
    table = pd.DataFrame(PAIRS, columns=["query-id", "corpus-id", "score"])
    options = {"sep": "\t", "index": False} | options
    table.to_csv(folder / f"qrels/test.tsv{packed}", **options)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"index": True},
        {"header": False},
        {"quoting": 1},
        {"lineterminator": "\r\n", "encoding": "utf-8-sig"},
        {"columns": ["score", "corpus-id", "query-id"]},
        {"float_format": "%.1f"},
        {"encoding": "utf-16"},
        {"packed": ".gz"},
    ],
    ids=str,
)
def test_folders_that_pandas_wrote_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    data = read_folder(framed(tmp_path / "data", **options))
    assert data["relevant_docs"] == AS_READ
    assert data["corpus"][:] == {
        "id": ["0", "1", "2"],
        "text": ["text 0", "text 1", "text 2"],
        "title": ["one", "", "three"],
    }
    assert data["queries"]["id"][:] == ["10", "11"]


def test_a_gzipped_folder_has_a_revision_and_a_task(tmp_path: Path) -> None:
    task = beir_task(framed(tmp_path / "data", packed=".gz"))
    task.load_data()
    assert task.dataset["default"]["test"]["relevant_docs"] == AS_READ


def test_texts_that_are_missing_or_twice_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        '{"_id": "d 1", "text": "x", "title": NaN}',
        '{"_id": "d 2", "text": NaN}',
        "",
        '{"_id": "d 3"}',
        '{"_id": "d 1", "text": "x"}',
        '{"_id": "d 4", "text": 1984, "title": null, "metadata": {}}',
        '{"_id": "d 5", "text": "half \\ud83d"}',
    ]
    folder = write(tmp_path / "data", corpus="\r\n".join(lines), labels=HEAD + "q1\td 1\t1\n")
    corpus = read_folder(folder)["corpus"]
    assert corpus.to_dict() == {
        "id": ["d 1", "d 2", "d 3", "d 4", "d 5"],
        "text": ["x", "", "", "1984", "half \ufffd"],
    }
    assert "2 lines have no text" in caplog.text
    assert "1 lines are there twice" in caplog.text


def many(*extra: str) -> str:
    """Return 40 labels of the folder that `write` writes, and further ones."""
    return HEAD + "".join(f"q{i % 5}\td {i}\t1\n" for i in range(40)) + "".join(extra)


def test_a_few_labels_that_name_nothing_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "data", labels=many("q0\tgone\t1\n", "nobody\td 1\t1\n"))
    labels = read_folder(folder)["relevant_docs"]
    # It stays in the ideal ranking, as on BRIGHT.
    assert labels["q0"]["gone"] == 1
    assert "nobody" not in labels
    assert "1 relevant documents are not in the corpus and cannot be found: gone" in caplog.text
    assert "1 labels of queries that are not among the queries are left out: nobody" in caplog.text
    # What is read can be exported again.
    write_folder(read_folder(folder), tmp_path / "again", "T")
    assert read_folder(tmp_path / "again")["relevant_docs"] == labels


def test_negative_labels_are_not_relevant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "data", labels=HEAD + "q1\td 1\t1\nq1\td 2\t-2\nq2\td 2\t-1\n")
    assert read_folder(folder)["relevant_docs"] == {"q1": {"d 1": 1, "d 2": 0}, "q2": {"d 2": 0}}
    assert "2 negative labels count as not relevant" in caplog.text


def test_exclusions_of_what_is_not_there_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "data", excluded="q1\td 7\nq1\tnone\nnobody\td 1\n")
    assert read_folder(folder)["excluded_ids"] == {"q1": ["d 7"]}
    assert "2 excluded document ids are not in the corpus" in caplog.text


@pytest.mark.parametrize(("gold", "off"), [("0", True), ("3", False)])
def test_the_own_id_rule_is_off_where_an_own_id_is_relevant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gold: str, off: bool
) -> None:
    def lines(count: int) -> str:
        return "".join(json.dumps({"_id": str(i), "text": words(i)}) + "\n" for i in range(count))

    labels = HEAD + f"0\t{gold}\t1\n1\t5\t1\n"
    data = read_folder(write(tmp_path / "data", corpus=lines(9), queries=lines(2), labels=labels))
    assert data["relevant_docs"]["0"] == {gold: 1}
    assert data["excluded_ids"] == ({} if off else {"0": ["0"], "1": ["1"]})
    said = (
        "1 queries have the id of a document that is relevant"
        if off
        else "2 queries have the id of a document"
    )
    assert said in caplog.text


def test_every_reader_takes_the_same_id(tmp_path: Path) -> None:
    from reasonembed_mteb.evaluation.score_run import judgements_from_files

    names = ['5" pipe', '"x"', "x"]
    corpus = "".join(json.dumps({"_id": name, "text": f"t {name}"}) + "\n" for name in names)
    rows = {
        "bare": HEAD + 'q1\t"x"\t1\n',
        "bare too": HEAD + 'q1\t5" pipe\t1\nq1\t"x"\t1\n',
        "quoted": HEAD + 'q1\t"5"" pipe"\t1\nq1\t"""x"""\t1\n',
    }
    for kind, labels in rows.items():
        folder = write(tmp_path / kind, corpus=corpus.replace('"_id": "x"', '"_id": "y"'), labels=labels)
        gold = read_folder(folder)["relevant_docs"]
        assert gold["q1"].keys() == set(names[1:2] if kind == "bare" else names[:2])
        assert judgements_from_files(folder / "qrels/test.tsv").labels == gold
        assert read_protected(folder, {*names[:2], "y"}).gold == gold["q1"].keys()


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "data")
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"has no {name}"):
        beir_task(folder)
    with pytest.raises(DataError, match="no folder"):
        beir_task(tmp_path / "none")


def test_other_labels_are_suggested(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    (folder / "qrels/test.tsv").rename(folder / "qrels/dev.tsv")
    with pytest.raises(
        DataError, match=r"has no qrels/test\.tsv \(there: dev\.tsv; --beir-split dev takes one\)"
    ):
        beir_task(folder)
    assert beir_task(folder, split="dev").metadata.eval_splits == ["dev"]


def test_excluded_gold_counts_as_excluded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "data", excluded=EXCLUDED_HEAD + "q1\td 2\n")
    data = read_folder(folder)
    assert "d 2" not in data["relevant_docs"]["q1"]
    assert "1 documents are both relevant and excluded" in caplog.text


def test_two_folders_never_share_a_name_or_a_revision(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name / "data") for name in ("a", "b"))
    assert beir_task(one).metadata.name == beir_task(other).metadata.name
    (other / "excluded.tsv").write_text(EXCLUDED_HEAD + "q1\td 3\n")
    first, second = beir_task(one).metadata, beir_task(other).metadata
    assert first.name.startswith("BEIR-data-")
    assert first.name != second.name
    assert first.revision != second.revision


def test_a_folder_that_changes_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    task = beir_task(folder)
    (folder / "corpus.jsonl").write_text((folder / "corpus.jsonl").read_text() + "\n")
    with pytest.raises(DataError, match="has changed since its task was made"):
        task.load_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instruction": " "}, "instruction is empty"),
        ({"name": "SciFact"}, "name of an MTEB task"),
        ({"name": "ReasonMiniAops"}, "name of an MTEB task"),
        ({"name": "a/b"}, "may hold letters"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ReasonEmbedError, match=message):
        beir_task(write(tmp_path / "data"), **options)  # type: ignore[arg-type]


def test_what_decides_a_score_is_recorded(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    meta = resolve_model("mteb/baseline-random-encoder")
    plain = records.find_causes(meta, beir_task(folder))
    assert str(plain.data_revision).startswith("xxh3:")
    assert plain.max_tokens == 8192
    assert records.find_causes(meta, beir_task(folder, INSTRUCTION)).instruction != plain.instruction
    assert records.find_causes(meta, beir_task(folder, max_tokens=512)).max_tokens == 512


def test_a_run_is_cached_until_the_folder_changes(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    model = resolve_model("mteb/baseline-random-encoder")
    options = RunOptions(output=tmp_path / "results", progress=False)

    def cached() -> bool:
        (outcome,) = run([model], [beir_task(folder, INSTRUCTION, name="Mine")], options)
        assert outcome.error is None
        assert outcome.score is not None
        return outcome.cached

    assert not cached()
    assert cached()
    (folder / "qrels/test.tsv").write_text(HEAD + "q1\td 5\t1\n")
    assert not cached()


def test_export_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="is not an empty folder"):
        export_beir(build_tasks()["ReasonMiniAops"](), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def split_of(**changed: Any) -> dict[str, Any]:
    from datasets import Dataset

    data: dict[str, Any] = {
        "corpus": Dataset.from_dict({"id": ["a", "b"], "text": ["x", "y"]}),
        "queries": Dataset.from_dict({"id": ["q"], "text": ["x"]}),
        "relevant_docs": {"q": {"a": 1}},
    }
    return data | changed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: {"corpus": d({"id": ["a\tb"], "text": ["x"]})}, "tab or line break"),
        (lambda d: {"corpus": d({"id": ["a", "a"], "text": ["x", "y"]})}, "'a' occurs twice"),
        (
            lambda d: {"corpus": d({"id": ["b"], "text": ["x"]})},
            "1 of 1 relevant documents are not in the corpus",
        ),
        (lambda d: {"corpus": d({"id": [], "text": []})}, "nothing to export"),
    ],
)
def test_nothing_is_left_of_an_export_that_failed(
    tmp_path: Path, make: Callable[[Any], Any], message: str
) -> None:
    from datasets import Dataset

    with pytest.raises(DataError, match=message):
        write_folder(split_of(**make(Dataset.from_dict)), tmp_path / "out", "T")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ReasonEmbedError, match=r"cannot write .*No space left"):
        write_folder(split_of(), tmp_path / "out", "T")
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_beir_cannot_hold_is_refused(tmp_path: Path) -> None:
    task = build_tasks()["ReasonMiniAops"]()
    task.load_data()
    split = task.dataset["default"]["test"]
    split["top_ranked"] = {"q": ["d"]}
    with pytest.raises(DataError, match="comes with candidates"):
        export_beir(task, tmp_path / "out")
    split["top_ranked"] = None
    task.dataset["other"] = task.dataset["default"]
    with pytest.raises(DataError, match=r"has 2 splits \(default/test, other/test\)"):
        export_beir(task, tmp_path / "out")
    with pytest.raises(DataError, match="only retrieval tasks"):
        export_beir(mteb.get_task("STS12"), tmp_path / "out")


def test_the_commands_go_there_and_back(command: Command, tmp_path: Path) -> None:
    status, out, err = command("export-beir", "ReasonMiniAops", "out")
    assert (status, out) == (0, "out: 43 documents, 8 queries, 16 labels, 11 excluded\n")
    assert f"--beir out --instruction '{find('ReasonMiniAops').instruction}'" in err
    bag_of_words().save(str(tmp_path / "bow"))
    options = ("-m", "mteb/baseline-random-encoder", "-m", "./bow", "--beir", "out", "-t", "ReasonMiniAops")
    status, out, err = command("run", *options, "--instruction", INSTRUCTION)
    assert status == 0
    lines = [line.split() for line in out.splitlines() if "ndcg_at_10" in line]
    assert [line[0] for line in lines] == ["ReasonMiniAops", f"BEIR-out-{digits('out')}"]
    # The random encoder draws anew for each task.
    assert lines[0][3] == lines[1][3] != "0.00"
    assert "bow does not take --instruction" in err
    again = command("run", *options, "--instruction", INSTRUCTION)[2]
    assert again.count("taken from the cache") == 4


def digits(folder: str) -> str:
    return beir_task(folder).metadata.revision.removeprefix("xxh3:")[:8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export-beir", "ReasonMiniAop", "out"), "did you mean 'ReasonMiniAops'"),
        (("export-beir", "ReasonMiniAops", "."), "is not an empty folder"),
        (
            ("run", "-m", "bm25", "-t", "ReasonMiniAops", "--instruction", "x"),
            "--instruction goes with --beir",
        ),
        (
            ("run", "-m", "bm25", "-t", "ReasonMiniAops", "--beir-split", "dev"),
            "--beir-split goes with --beir",
        ),
        (("run", "-m", "bm25", "--beir", "nowhere"), "no folder"),
        (("run", "-m", "bm25"), "nothing to run"),
    ],
)
def test_a_wrong_command_is_one_line(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    status, _, err = command(*arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
