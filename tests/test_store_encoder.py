"""Runs with an embedding store: what is encoded, what is taken, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import numpy as np
import pytest
import torch
from conftest import save_decoder
from datasets import Dataset
from evaluation_data import WORDS

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation import resolving, runner, scores, variants
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.retrieval import search
from reasonembed_mteb.store import encoder as stored

if TYPE_CHECKING:
    from collections.abc import Iterator

AOPS, THEOREMQA = "ReasonEmbedBrightAops", "ReasonEmbedBrightTheoremQAQuestions"


pytestmark = pytest.mark.usefixtures("registered")


def write_subset(folder: Path, subset: str, documents: int, queries: int = 4, first: int = 0) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=6)) + f" {i}" for i in range(documents)]
    rows = {
        "documents": {"id": [f"d{i}" for i in range(documents)], "content": texts},
        "examples": {
            "id": [f"q{first + i}" for i in range(queries)],
            "query": [f"{WORDS[(first + i) % 16]} and {WORDS[(first + i + 5) % 16]}" for i in range(queries)],
            "excluded_ids": [[f"d{i}"] for i in range(queries)],
            "gold_ids": [[f"d{i + 7}"] for i in range(queries)],
        },
    }
    for config, columns in rows.items():
        file = folder / config / f"{subset}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns).to_parquet(str(file))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a local copy of BRIGHT whose two math subsets share a corpus."""
    folder = tmp_path / "data"
    write_subset(folder, "aops", 50)
    write_subset(folder, "theoremqa_questions", 50, first=4)
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(folder))
    return folder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect every text that any ReasonEmbed encodes."""
    texts: list[str] = []
    encode = ReasonEmbed.encode

    def collect(self: ReasonEmbed, inputs: Any, **kwargs: Any) -> Any:
        texts.extend([inputs] if isinstance(inputs, str) else inputs)
        return encode(self, inputs, **kwargs)

    monkeypatch.setattr(ReasonEmbed, "encode", collect)
    return texts


def score(model: Path, output: Path, *tasks: str, **options: Any) -> list[runner.Outcome]:
    template = options.pop("template", "Instruct: {instruction}\nQuery: ")
    variants = resolving.Variants(ablate_instruction=options.pop("ablate", False))
    metas = resolving.resolve_models(
        [str(model)], filed_as="test/model", template=template, variants=variants
    )
    chosen = runner.RunOptions(output=output, progress=False, overwrite=True, **options)
    outcomes = runner.run(metas, [mteb.get_task(task) for task in tasks], chosen)
    for outcome in outcomes:
        if outcome.error:
            raise ReasonEmbedError(outcome.error)
    return outcomes


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_shared_corpus_is_embedded_once(tmp_path: Path, qwen3_dir: Path, encoded: list[str]) -> None:
    options = {"store": tmp_path / "store"}
    score(qwen3_dir, tmp_path / "one", AOPS, **options)
    assert len(encoded) == 54
    encoded.clear()
    score(qwen3_dir, tmp_path / "one", THEOREMQA, **options)
    assert len(encoded) == 4
    encoded.clear()
    score(qwen3_dir, tmp_path / "two", AOPS, THEOREMQA, **options)
    assert encoded == []
    # Another instruction makes other queries, and the same documents.
    score(qwen3_dir, tmp_path / "three", AOPS, template="{instruction}: ", **options)
    assert len(encoded) == 4


@pytest.mark.usefixtures("data")
def test_without_an_instruction_documents_are_not_encoded_again(
    tmp_path: Path, qwen3_dir: Path, encoded: list[str]
) -> None:
    output = tmp_path / "out"
    first, second = score(qwen3_dir, output, AOPS, store=tmp_path / "store", ablate=True)
    assert len(encoded) == 58
    # The queries come again, and no document.
    assert all(" and " in text for text in encoded[54:])
    assert first.model != second.model
    assert second.model == "test/model (--instruction-template, without instruction)"
    # Two results, one a model, and the record says what was sent.
    prefixes = {
        path.parent.name: json.loads(path.read_text())["query_prefix"]
        for path in (output / "records").rglob(f"{AOPS}.json")
    }
    assert len(prefixes) == 2
    assert sorted(prefixes.values())[0] == ""


@pytest.mark.usefixtures("data")
def test_scores_are_the_same_with_and_without_a_store(tmp_path: Path, qwen3_dir: Path) -> None:
    plain = score(qwen3_dir, tmp_path / "plain", AOPS, THEOREMQA)
    first = score(qwen3_dir, tmp_path / "first", AOPS, THEOREMQA, store=tmp_path / "store")
    again = score(qwen3_dir, tmp_path / "again", AOPS, THEOREMQA, store=tmp_path / "store")
    for others in (first, again):
        assert [one.score for one in others] == [one.score for one in plain]
    kept = [
        scores.read_scores(next((tmp_path / name / "records").rglob(f"{AOPS}.parquet")))
        for name in ("plain", "first", "again")
    ]
    assert kept[1].table.equals(kept[2].table)
    for query in kept[0].query_ids:
        ours, other = dict(kept[0].hits(query)), dict(kept[1].hits(query))
        assert ours.keys() == other.keys()
        assert all(abs(ours[document] - other[document]) < 1e-6 for document in ours)


@pytest.mark.usefixtures("data")
def test_a_model_swapped_in_the_same_folder_never_gets_the_other_ones_vectors(
    tmp_path: Path, qwen3_dir: Path, encoded: list[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(qwen3_dir, folder)
    score(folder, tmp_path / "one", AOPS, store=tmp_path / "store")
    encoded.clear()
    shutil.rmtree(folder)
    save_decoder(folder, "llama")
    score(folder, tmp_path / "two", AOPS, store=tmp_path / "store")
    assert len(encoded) == 54
    assert len(list((tmp_path / "store").iterdir())) == 2


def encoder(folder: Path) -> Any:
    return variants.load_variant(resolving.resolve_model(str(folder)), device="cpu")


def test_the_fingerprint_is_of_what_decides_vectors(qwen3_dir: Path) -> None:
    first, second = encoder(qwen3_dir), encoder(qwen3_dir)
    plain = stored.model_fingerprint(first)
    assert plain == stored.model_fingerprint(second)
    # Encoding leaves it as it is: tokenizers remember the last padding.
    second.model.encode(["some text", "more"])
    second.model.max_seq_length = 64
    assert stored.model_fingerprint(second) == plain
    with torch.no_grad():
        next(second.model.parameters()).view(-1)[0] += 1e-3
    assert stored.model_fingerprint(second)["weights"] != plain["weights"]
    third = encoder(qwen3_dir)
    third.model[1].pooling_mode = "mean"
    fourth = encoder(qwen3_dir)
    fourth.model.truncate_dim = 8
    fifth = encoder(qwen3_dir)
    fifth.model.bfloat16()
    several = [plain, *(stored.model_fingerprint(one) for one in (third, fourth, fifth))]
    assert len({json.dumps(one, sort_keys=True) for one in several}) == 4


@pytest.mark.usefixtures("data")
def test_a_length_that_cuts_is_part_of_the_key(tmp_path: Path, qwen3_dir: Path, encoded: list[str]) -> None:
    model = encoder(qwen3_dir)
    metadata = mteb.get_task(AOPS).metadata
    texts = ["short", "water " * 40]
    front = stored.StoredEncoder(model, tmp_path)

    def encode() -> torch.Tensor:
        loader = search.column_loader({"id": ["a", "b"], "text": texts}, 8)
        return front.encode(
            loader,
            task_metadata=metadata,
            prompt_type=mteb.types.PromptType.document,
            hf_split="s",
            hf_subset="d",
        )

    long = encode()
    encoded.clear()
    model.model.max_seq_length = 20
    cut = encode()
    known = getattr(model.model, "last_token_counts", None) is not None
    assert encoded == (texts[1:] if known else texts)
    assert torch.equal(cut[0], long[0])
    assert not torch.allclose(cut[1], long[1])
    encoded.clear()
    assert torch.equal(encode(), cut)
    model.model.max_seq_length = 8192
    assert torch.equal(encode(), long)
    assert encoded == []


class _Instant:
    """An encoder of fixed vectors, which counts its texts."""

    hands_over_similarity = False

    def __init__(self, broken: str = "", scale: float = 1.0) -> None:
        from mteb.models import ModelMeta

        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"name": "test/instant", "revision": "1", "model_type": ["dense"]}
        )
        self.texts: list[str] = []
        self._broken = broken
        self._scale = scale

    def encode(self, inputs: Any, **_: Any) -> Any:
        texts = [text for batch in inputs for text in batch["text"]]
        self.texts += texts
        vectors = np.array([[len(text), ord(text[-1]), 1.0] for text in texts], dtype=np.float32)
        vectors *= self._scale
        vectors[[text == self._broken for text in texts]] = np.nan
        return vectors

    def similarity(self, a: Any, b: Any) -> Any:
        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        raise NotImplementedError


def encode_documents(front: stored.StoredEncoder, texts: list[str]) -> torch.Tensor:
    loader = search.column_loader({"id": [f"id {text}" for text in texts], "text": texts}, 4)
    metadata = mteb.get_task(AOPS).metadata
    kind = mteb.types.PromptType.document
    return front.encode(loader, task_metadata=metadata, prompt_type=kind, hf_split="s", hf_subset="d")


def test_each_text_is_encoded_once_within_and_across_chunks(tmp_path: Path) -> None:
    model = _Instant()
    front = stored.StoredEncoder(model, tmp_path, chunk_size=4)
    texts = ["b", "a", "b", "cc", "a", "ddd", "ddd", "cc", "e", "b"]
    found = encode_documents(front, texts)
    assert model.texts == ["b", "a", "cc", "ddd", "e"]
    assert found[:, 0].tolist() == [len(text) for text in texts]
    assert found[:, 1].tolist() == [ord(text[-1]) for text in texts]
    assert encode_documents(front, []).shape == (0, 3)


def test_nan_is_an_error_that_names_the_documents_and_nothing_is_stored(tmp_path: Path) -> None:
    front = stored.StoredEncoder(_Instant(broken="bad"), tmp_path)
    with pytest.raises(ReasonEmbedError, match=r"1 vectors with NaN or infinite values \(id bad\)"):
        encode_documents(front, ["good", "bad"])
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_was_never_written_gives_the_vectors_in_order(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    front = stored.StoredEncoder(_Instant(), tmp_path / "file" / "vectors")
    found = encode_documents(front, ["ddd", "a", "cc", "a", "b"])
    assert found[:, 0].tolist() == [3, 1, 2, 1, 1]
    assert found[:, 1].tolist() == [ord(letter) for letter in "dacab"]


def test_without_writing_the_vectors_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["b", "a", "b", "cc", "a", "ddd"]
    expected = encode_documents(stored.StoredEncoder(_Instant(), tmp_path), texts)
    front = stored.StoredEncoder(_Instant(), tmp_path)

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    more = encode_documents(front, ["zz", *texts, "zz"])
    assert torch.equal(more[1:-1], expected.float())
    assert more[0].tolist() == more[-1].tolist() == [2, ord("z"), 1]


def test_vectors_are_rounded_alike_whether_or_not_they_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    thirds = _Instant(scale=1 / 3)
    written = encode_documents(stored.StoredEncoder(thirds, tmp_path / "store", "float16"), ["a", "ccc"])
    front = stored.StoredEncoder(thirds, tmp_path / "file" / "store", "float16")
    assert written.dtype == torch.float16
    assert torch.equal(encode_documents(front, ["a", "ccc"]).float(), written.float())


@pytest.mark.slow
@pytest.mark.usefixtures("data")
@pytest.mark.filterwarnings("ignore:Estimating quantization")
def test_int8_takes_its_range_from_the_whole_corpus(
    tmp_path: Path, qwen3_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = variants.compressed(resolving.resolve_model(str(qwen3_dir)), "int8")
    task = mteb.get_task(AOPS)

    def run(output: str, **options: Any) -> dict[str, float]:
        chosen = runner.RunOptions(output=tmp_path / output, progress=False, **options)
        (outcome,) = runner.run([meta], [task], chosen)
        assert outcome.error is None
        kept = scores.read_scores(next((tmp_path / output).rglob("*.parquet")))
        return {f"{query} {d}": s for query in kept.query_ids for d, s in kept.hits(query)}

    whole = run("whole")
    monkeypatch.setattr(search._DenseSearch, "_own_chunk_size", lambda _: 7)
    assert run("chunks") == pytest.approx(whole, abs=1e-6)
    assert run("stored", store=tmp_path / "store") == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("data")
@pytest.mark.filterwarnings("ignore:Estimating quantization")
def test_truncated_and_fused_runs_leave_excluded_documents_out(tmp_path: Path, qwen3_dir: Path) -> None:
    pytest.importorskip("bm25s")
    dense = resolving.resolve_model(str(qwen3_dir))
    bm25 = resolving.resolve_model("bm25")
    metas = [
        variants.truncated(dense, 8),
        variants.fused([bm25, dense], "rrf"),
        variants.compressed(dense, "binary"),
    ]
    options = runner.RunOptions(output=tmp_path / "out", progress=False, store=tmp_path / "store")
    outcomes = runner.run(metas, [mteb.get_task(AOPS)], options)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    files = list((tmp_path / "out/records").rglob("*.parquet"))
    assert len(files) == 3
    for file in files:
        kept = scores.read_scores(file)
        for i, query in enumerate(kept.query_ids):
            found = [document for document, _ in kept.hits(query)]
            assert len(found) == 49
            assert f"d{i}" not in found


@pytest.mark.usefixtures("data")
def test_scores_of_record_are_mtebs_own(tmp_path: Path, qwen3_dir: Path) -> None:
    score(qwen3_dir, tmp_path, AOPS)
    kept = scores.read_scores(next((tmp_path / "records").rglob("*.parquet")))
    result = json.loads(next((tmp_path / "results").rglob(f"{AOPS}.json")).read_text())
    ((mtebs,),) = result["scores"].values()
    assert {"ndcg_at_10", "recall_at_100", "mrr_at_10", "map_at_1000", "precision_at_1"} < set(kept.metrics)
    for name in kept.metrics:
        values = kept.metric(name)
        assert len(values) == 4
        assert sum(values.values()) / 4 == pytest.approx(mtebs[name], abs=1e-5)
    assert kept.gold("q1") == ["d8"]
    found = [s for _, s in kept.hits("q1")]
    assert found == sorted(found, reverse=True)
    assert kept.info["model"] == "test/model"
    assert kept.info["protocol"] == "ReasonEmbed"
    assert not list((tmp_path / "results").rglob("*.parquet"))
    with pytest.raises(ReasonEmbedError, match="no query 'q9'"):
        kept.hits("q9")
    with pytest.raises(ReasonEmbedError, match="keeps no ndcg@10"):
        kept.metric("ndcg@10")


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "x.parquet"
    file.write_bytes(b"PAR1 half")
    with pytest.raises(ReasonEmbedError, match=r"x.parquet cannot be read"):
        scores.read_scores(file)
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(ReasonEmbedError, match="holds no scores by query"):
        scores.read_scores(file)
    scores.write_scores(file, {"task": "t"}, [])
    assert len(scores.read_scores(file).query_ids) == 0


def without_dates(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield every file a run writes; dates, times and what the clock decides left out."""
    clocked = ("date", "evaluation_time", "kg_co2_emissions", "cost", "result", "evaluation_phases")
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock"):
        content: Any = file.read_bytes()
        if file.suffix == ".json" and "vectors" not in file.parts:
            loaded = json.loads(content)
            content = {key: value for key, value in loaded.items() if key not in clocked}
        if file.suffix != ".jsonl":
            yield str(file.relative_to(folder)), content


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_with_the_same_bytes(
    tmp_path: Path, qwen3_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_subset(tmp_path / "data", "aops", 50_000)
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(tmp_path / "data"))
    torch.set_num_threads(1)

    def work(output: Path) -> None:
        score(qwen3_dir, output, AOPS, store=output / "vectors", batch_size=256)

    def forked(output: Path) -> int:
        child = os.fork()
        if child:
            return child
        try:
            work(output)
        finally:
            os._exit(0)

    mteb.get_task(AOPS).load_data()
    started = time.monotonic()
    os.waitpid(forked(tmp_path / "undisturbed"), 0)
    length = time.monotonic() - started
    expected = dict(without_dates(tmp_path / "undisturbed"))
    assert sum(name.endswith(".safetensors") for name in expected) == 8
    draw = random.Random(0)
    interrupted = 0
    # Four outputs of five kills each, then left to finish.
    for number in range(4):
        output = tmp_path / f"killed{number}"
        for _ in range(5):
            child = forked(output)
            time.sleep(draw.uniform(0.02, 0.35) * length)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            interrupted += os.WIFSIGNALED(status)
        os.waitpid(forked(output), 0)
        for file in (path for path in output.rglob("*.part") if path.is_file()):
            # A killed writer's own file; it was never given a name that is read.
            file.unlink()
        found = dict(without_dates(output))
        found = {name: content for name, content in found.items() if not name.startswith(".part")}
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
        shutil.rmtree(output)
    assert interrupted >= 15
