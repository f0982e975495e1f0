"""Poisoned corpora: halves that never meet, and how often poisoned documents are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from poisoning_data import write_beir

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.retrieval.beir_task import beir_task
from reasonembed_mteb.robustness.poisoned import (
    check_cutoffs,
    find_target,
    judged,
    other_split,
    poisoned_data,
    poisoned_names,
    with_documents,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "beir")


def ids(data: Any) -> list[str]:
    return list(data["queries"]["id"][:])


def test_halves_hold_every_query_once_by_the_seed(folder: Path) -> None:
    target = find_target(beir_task(folder), 3)
    assert len(ids(target.making)) == len(ids(target.attacked)) == 8
    assert sorted(ids(target.making) + ids(target.attacked)) == sorted(f"q{n}" for n in range(16))
    assert target.attacked["relevant_docs"].keys() == set(ids(target.attacked))
    assert ids(find_target(beir_task(folder), 3).making) == ids(target.making)
    assert ids(find_target(beir_task(folder), 4).making) != ids(target.making)
    assert (target.documents, target.halves, target.split, target.max_tokens) == (30, True, "test", 8192)


def test_queries_of_another_split_make_passages_and_repeated_ones_are_left_out(folder: Path) -> None:
    queries = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    again = queries[0].replace('"q0"', '"same text"')
    (folder / "queries.jsonl").write_text("\n".join([*queries, again]) + "\n", encoding="utf-8")
    labels = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    (folder / "qrels" / "test.tsv").write_text("\n".join(labels[:7]) + "\n", encoding="utf-8")
    train = [labels[0], *labels[5:], "same text\tc0\t1"]
    (folder / "qrels" / "train.tsv").write_text("\n".join(train) + "\n", encoding="utf-8")
    target = find_target(beir_task(folder), 0, beir_task(folder, split="train"))
    assert sorted(ids(target.attacked)) == [f"q{n}" for n in range(6)]
    # q4 and q5 have labels in both, and one query has the text of another that is attacked.
    assert sorted(ids(target.making)) == sorted(f"q{n}" for n in range(6, 16))
    assert not target.halves


class Splits:
    """Stands for MTEB's loader: a data set of two splits over one corpus."""

    def __init__(self, *, split: str, **settings: object) -> None:
        """Keep the split."""
        self.split = split

    def load(self, **settings: object) -> dict[str, Any]:
        """Return the split's data."""
        from datasets import Dataset

        if self.split not in ("train", "test"):
            msg = f"Unknown split {self.split!r}"
            raise ValueError(msg)
        names = [f"{self.split}-{number}" for number in range(4)]
        return {
            "corpus": Dataset.from_dict({"id": ["d"], "text": ["sky"]}),
            "queries": Dataset.from_dict({"id": names, "text": names}),
            "relevant_docs": {name: {"d": 1} for name in names},
            "top_ranked": None,
        }


@pytest.mark.usefixtures("registered")
def test_mtebs_tasks_may_have_another_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import mteb

    monkeypatch.setattr(mteb.abstasks.retrieval, "RetrievalDatasetLoader", Splits)
    task: Any = mteb.get_task("SciFact")
    target = find_target(task, 0, other_split(task, "train"))
    assert ids(target.making) == [f"train-{number}" for number in range(4)]
    assert ids(target.attacked) == [f"test-{number}" for number in range(4)]
    assert (target.split, target.halves) == ("test", False)
    with pytest.raises(DataError, match=r"split dev of SciFact cannot be loaded .*Unknown split 'dev'"):
        find_target(task, 0, other_split(task, "dev"))
    # A task that loads what it loads.
    fixed = other_split(task, "train")
    fixed.dataset, fixed.data_loaded = task.dataset, True
    with pytest.raises(DataError, match="SciFact loads split test whatever is asked for"):
        find_target(task, 0, fixed)
    with pytest.raises(ReasonEmbedError, match="test is the split of SciFact that is attacked"):
        other_split(task, "test")


def test_too_few_queries_are_said(tmp_path: Path) -> None:
    small = write_beir(tmp_path / "small", queries=3)
    with pytest.raises(DataError, match=r"1 would make passages and 2 be attacked, and each side needs 2"):
        find_target(beir_task(small), 0)


@pytest.mark.usefixtures("registered")
def test_other_tasks_are_refused() -> None:
    import mteb

    with pytest.raises(ReasonEmbedError, match="STSBenchmark is a task of type STS: give a retrieval task"):
        find_target(mteb.get_task("STSBenchmark"), 0)


def test_passages_join_the_corpus_and_never_twice(folder: Path) -> None:
    target = find_target(beir_task(folder), 0)
    data = poisoned_data(target.attacked, "copied", ["one", "two"])
    assert data["corpus"]["id"][:][-2:] == ["poisoned-copied-0", "poisoned-copied-1"]
    assert data["corpus"]["text"][:][-2:] == ["one", "two"]
    assert len(data["corpus"]) == target.documents + 2
    assert len(target.attacked["corpus"]) == target.documents
    with pytest.raises(
        DataError, match="holds a document 'poisoned-copied-0' already: give the clean corpus"
    ):
        poisoned_data(data, "copied", ["three"])


def test_depths_lie_within_the_corpus() -> None:
    assert check_cutoffs(None, 40) == (5, 10, 20)
    assert check_cutoffs(None, 41_000) == (5, 10, 20, 50)
    assert check_cutoffs([3, 3, 40], 40) == (3, 40)
    for k in (0, 41):
        with pytest.raises(ReasonEmbedError, match=f"ASR@{k}: the poisoned corpus has 40 documents"):
            check_cutoffs([k], 40)
    with pytest.raises(ReasonEmbedError, match=r"has 5 documents, so that ASR@5 says nothing; give --k"):
        check_cutoffs(None, 5)


def test_success_is_the_share_of_queries_by_pytrec_evals_order() -> None:
    data = {"relevant_docs": {q: {"gold": 1} for q in ("q1", "q2", "q3")}, "excluded_ids": {"q2": ["b"]}}
    names = poisoned_names("x", 2)
    run = {
        # An equal score and a higher id go first.
        "q1": {"gold": 0.9, "a": 0.8, "z": 0.8, names[0]: 0.8, names[1]: 0.1},
        "q2": {"a": 0.9, "c": 0.8, "gold": 0.7, names[1]: 0.6},
        "q3": {"gold": 0.9, "a": 0.5},
    }
    found = judged(run, data, names)
    assert found.first == {"q1": 3, "q2": 4}
    assert [found.success(k) for k in (2, 3, 4)] == [0, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert found.ndcg["q1"] == found.ndcg["q3"] == 1
    assert found.ndcg["q2"] == 0.5
    joined = with_documents(run, {"q3": {names[0]: 1.0}})
    assert judged(joined, data, names).first["q3"] == 1
    assert names[0] not in run["q3"]
