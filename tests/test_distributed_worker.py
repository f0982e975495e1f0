"""What a worker does: the run's own vectors, what is there left alone, and memory that is too small named."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from reasonembed_mteb.distributed import worker as working
from reasonembed_mteb.distributed.inputs import Block, InputText
from reasonembed_mteb.distributed.worker import (
    BlockEncoder,
    EncodeJob,
    ModelChoice,
    Speed,
    check_memory,
    encode_call,
    load_encoder,
)
from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.store.corpora import read_block
from reasonembed_mteb.store.places import Place

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = Block("0" * 32, (InputText("a", "plants need light"), InputText("b", "cells and water " * 300)))


@pytest.fixture
def job(bert: Path, tmp_path: Path) -> EncodeJob:
    return EncodeJob(ModelChoice(str(bert)), Speed(device="cpu"), str(tmp_path / "store"))


def test_a_blocks_vectors_are_the_models_own(job: EncodeJob, bert: Path) -> None:
    done = BlockEncoder(job)(BLOCK)
    data = read_block(Place(job.store) / done.folder, done.file)
    assert data.ids.to_pylist() == ["a", "b"]
    want = SentenceTransformer(str(bert), device="cpu").encode([one.text for one in BLOCK.documents])
    assert torch.allclose(data.full(0, 2), torch.from_numpy(want), atol=1e-6)
    assert (done.computed, done.dimension) == (True, want.shape[1])
    assert done.tokens == int(data.tensors["tokens"].sum()) > 500


def test_a_block_that_is_there_is_not_computed(job: EncodeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    first = BlockEncoder(job)(BLOCK)
    again = BlockEncoder(job)
    monkeypatch.setattr(again, "_encoded", None)
    second = again(BLOCK)
    assert (second.file, second.computed) == (first.file, False)


def test_length_and_dimensions_are_the_jobs(bert: Path, tmp_path: Path) -> None:
    model = load_encoder(ModelChoice(str(bert), max_length=8, truncate_dim=4), Speed(device="cpu"))
    assert (model.model.max_seq_length, model.model.truncate_dim) == (8, 4)
    # Longer than the model's own it never is.
    own = SentenceTransformer(str(bert), device="cpu").max_seq_length
    assert (
        load_encoder(ModelChoice(str(bert), max_length=99999), Speed(device="cpu")).model.max_seq_length
        == own
    )
    short = EncodeJob(ModelChoice(str(bert), max_length=8), Speed(device="cpu"), str(tmp_path))
    long = EncodeJob(ModelChoice(str(bert)), Speed(device="cpu"), str(tmp_path))
    assert short.model.salt != long.model.salt


def test_what_is_no_embedder_is_refused(cross: Path, tmp_path: Path) -> None:
    job = EncodeJob(ModelChoice(str(cross)), Speed(device="cpu"), str(tmp_path))
    with pytest.raises(ReasonEmbedError, match="no single dense vector a text"):
        BlockEncoder(job)


def test_a_full_disk_names_the_machine(job: EncodeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = BlockEncoder(job)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(working.socket, "gethostname", lambda: "node-7")
    with pytest.raises(ReasonEmbedError, match=r"No space left .*on node-7: the disk is full there"):
        encoder(BLOCK)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_model_that_does_not_fit_is_named_with_both_sizes(
    bert: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    size = sum(file.stat().st_size for file in bert.glob("*.safetensors"))
    free = {"free": size}
    monkeypatch.setattr(working, "_free_bytes", lambda **_: free["free"])
    check_memory(str(bert), on_gpu=on_gpu)
    free["free"] = size - 1
    with pytest.raises(ReasonEmbedError, match=r"does not fit on .* GiB of weights, .* GiB free"):
        check_memory(str(bert), on_gpu=on_gpu)
    check_memory("org/name", on_gpu=on_gpu)


def test_weights_of_16_bits_take_twice_as_much_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    monkeypatch.setattr(working, "_free_bytes", lambda **_: 1500)
    check_memory(str(tmp_path), on_gpu=True)
    with pytest.raises(ReasonEmbedError, match="does not fit"):
        check_memory(str(tmp_path), on_gpu=False)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")])
def test_running_out_of_memory_while_loading_is_named(
    bert: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from reasonembed_mteb.evaluation import variants

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(variants, "load_variant", fail)
    with pytest.raises(ReasonEmbedError, match="does not fit on"):
        load_encoder(ModelChoice(str(bert)), Speed(device="cpu"))


def test_a_jobs_options_are_checked_before_any_worker(bert: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown dtype 'int16'"):
        EncodeJob(ModelChoice(str(bert)), Speed(), "s", dtype="int16").check()
    EncodeJob(ModelChoice(str(bert)), Speed(), "s", dtype="int8").check()
    with pytest.raises(UnknownNameError, match="unknown task 'NFCorpsu'; did you mean 'NFCorpus'"):
        EncodeJob(ModelChoice(str(bert), task="NFCorpsu"), Speed(), "s").check()


@pytest.mark.parametrize("task", ["NFCorpus", "BrightBiologyRetrieval"])
def test_a_task_is_mtebs_own_with_its_prompt(task: str) -> None:
    import mteb

    own = mteb.get_task(task).metadata
    assert encode_call(ModelChoice("m", task=task), "query")["task_metadata"] == own
    told = encode_call(ModelChoice("m", instruction="Find plants."), "query")["task_metadata"]
    assert told.prompt == {"query": "Find plants."}
