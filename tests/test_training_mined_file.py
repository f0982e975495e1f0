"""A file of mined negatives: its rows, its record, and going on after a kill."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import make_encoder

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.training.data import load_training_data
from reasonembed_mteb.training.mined_file import mine_file
from reasonembed_mteb.training.mining import mine_pairs
from reasonembed_mteb.training.negatives import MiningRules
from reasonembed_mteb.training.pairs import read_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reasonembed_mteb.training.pairs import Pairs

RULES = MiningRules(negatives=2)
LIMITED = MiningRules(negatives=2, max_score=50.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder

    return ProtocolEncoder(make_encoder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    file = tmp_path / "pairs.jsonl"
    words = ("sky", "blue", "light", "wave", "short")
    rows: list[dict[str, Any]] = [{"query": f"why {w}?", "pos": [f"the {w}"], "grade": 4} for w in words]
    rows[0] |= {"neg": ["my own"], "neg_scores": [0.25]}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_pairs(file)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class Fragile:
    """A reranker that dies at a given call."""

    identity = {"kind": "test"}  # noqa: RUF012

    def __init__(self, dies_at: int | None = None) -> None:
        self.calls, self.dies_at = 0, dies_at

    def score(self, pairs: Sequence[tuple[str, str]]) -> Any:
        """Score by length."""
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return np.array([len(document) for _, document in pairs], dtype=np.float32)


def test_rows_that_train(pairs: Pairs, model: Any, tmp_path: Path) -> None:
    output = tmp_path / "mined.jsonl"
    record = mine_file(pairs, output, model, RULES)
    first, *others = lines(output)
    assert first["neg"][0] == "my own"
    assert len(first["neg"]) == 3
    assert "neg_scores" not in first
    assert record["counts"]["rows whose neg_scores was left out"] == 1
    for row in others:
        assert len(set(row["neg"])) == 2
        assert not set(row["neg"]) & set(row["pos"])
        assert row["grade"] == 4
    read = load_training_data([output], cache=tmp_path / "cache")
    assert read.subsets["mined"]["negatives"][0] == first["neg"]
    assert sorted(file.name for file in tmp_path.glob("*mined*")) == [
        "mined.jsonl",
        "mined.jsonl.mining.json",
    ]
    assert record["model"]["revision"] == model.mteb_model_meta.revision
    assert record["rules"]["negatives"] == 2
    assert record["versions"]["torch"]


def test_a_name_that_ends_with_gz_is_gzipped(pairs: Pairs, model: Any, tmp_path: Path) -> None:
    plain, packed = tmp_path / "mined.jsonl", tmp_path / "mined.jsonl.gz"
    records = [mine_file(pairs, output, model, RULES) for output in (plain, packed)]
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    read = load_training_data([packed], cache=tmp_path / "cache")
    assert read.subsets["mined"].num_rows == len(lines(plain))
    # Each has a record of its own.
    notes = [tmp_path / f"{output.name}.mining.json" for output in (plain, packed)]
    assert [json.loads(note.read_text(encoding="utf-8")) for note in notes] == records
    assert records[0]["output"] != records[1]["output"]
    with pytest.raises(DataError, match=r"name it \.jsonl or \.jsonl\.gz"):
        mine_file(pairs, tmp_path / "mined.parquet", model, RULES)


def test_scores_beside_the_texts(pairs: Pairs, model: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="negatives of their own"):
        mine_file(pairs, tmp_path / "m.jsonl", model, RULES, with_scores=True)
    pairs.rows[0]["neg"] = []
    mine_file(pairs, tmp_path / "m.jsonl", model, LIMITED, reranker=Fragile(), with_scores=True)
    for row in lines(tmp_path / "m.jsonl"):
        assert row["pos_scores"] == [len(text) for text in row["pos"]]
        assert row["neg_scores"] == [len(text) for text in row["neg"]]
        assert row["neg_scores"] == sorted(row["neg_scores"], reverse=True)


def test_rows_without_a_negative_are_left_out(pairs: Pairs, model: Any, tmp_path: Path) -> None:
    record = mine_file(pairs, tmp_path / "m.jsonl", model, MiningRules(negatives=1, max_score=-2.0))
    assert [row["neg"] for row in lines(tmp_path / "m.jsonl")] == [["my own"]]
    assert Counter(record["counts"])["rows without a negative, left out"] == 4


def test_a_killed_run_goes_on(
    pairs: Pairs, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reasonembed_mteb.retrieval import reranker

    monkeypatch.setattr(reranker, "PART", 4)
    output, whole = tmp_path / "m.jsonl", tmp_path / "whole.jsonl"
    first = Fragile(dies_at=4)
    with pytest.raises(KeyboardInterrupt):
        mine_file(pairs, output, model, LIMITED, reranker=first)
    assert not output.exists()
    second, alone = Fragile(), Fragile()
    with monkeypatch.context() as patch:
        # Every vector is there.
        patch.setattr(type(model.model), "encode", None)
        mine_file(pairs, output, model, LIMITED, reranker=second)
    mine_file(pairs, whole, model, LIMITED, reranker=alone)
    assert second.calls == alone.calls - 3
    assert output.read_bytes() == whole.read_bytes()
    assert {file.name for file in tmp_path.iterdir() if file.is_dir()} == set()


def test_what_is_there_is_not_made_again(
    pairs: Pairs, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "m.jsonl"
    record = mine_file(pairs, output, model, RULES)
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(type(model.model), "encode", None)
        assert mine_file(pairs, output, model, RULES, say=said.append) == record
    assert said == [f"{output} is there already, made from the same things"]
    # Another setting, or a changed file, makes it again; a file of somebody else's is let alone.
    assert mine_file(pairs, output, model, MiningRules(negatives=1))["counts"]["negatives"] == 5
    output.write_text("changed", encoding="utf-8")
    mine_file(pairs, output, model, MiningRules(negatives=1))
    assert len(lines(output)) == 5
    (tmp_path / "m.jsonl.mining.json").unlink()
    with pytest.raises(DataError, match="is there and was not mined"):
        mine_file(pairs, output, model, RULES)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"prompt": "Find the cause"},
        {"query": " why\u00a0 so?"},
        {"query": "why so? ", "prompt": "Find the cause"},
    ],
)
def test_a_query_asked_twice_shares_its_positives(others: dict[str, str], model: Any, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows: list[dict[str, Any]] = [{"query": "why so?", "pos": [one]} for one in ("a", "b", "c")]
    rows = [rows[0], rows[1] | others, rows[2], {"query": "how?", "pos": ["d"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mined = mine_pairs(read_pairs(file), model, MiningRules(negatives=3), store=tmp_path / "v")
    assert [places.tolist() for places in mined.negatives[:3]] == [[3]] * 3
    assert sorted(mined.negatives[3].tolist()) == [0, 1, 2]
    assert [len(one) for one in mined.positive_scores] == [1] * 4
