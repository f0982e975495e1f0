"""Vectors of a store: what is found again, what is not, and what happens to damaged files."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.store import vectors as stores
from reasonembed_mteb.store.places import StoreError
from reasonembed_mteb.store.upkeep import list_store, prune_store
from reasonembed_mteb.store.vectors import VectorStore, text_keys

if TYPE_CHECKING:
    from conftest import Command
    from numpy.typing import NDArray

NAME = {"name": "test/model", "revision": "1"}
TEXTS = [f"text {i}" for i in range(20)]
VECTORS = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))


def counted(number: int, count: int = 3) -> NDArray[np.int32]:
    return np.full(number, count, dtype=np.int32)


def fill(store: VectorStore, texts: list[str] = TEXTS, vectors: torch.Tensor = VECTORS) -> None:
    assert store.add(text_keys(texts), counted(len(texts)), vectors)


def find(store: VectorStore, texts: list[str] = TEXTS, limit: int | None = None) -> stores.Found:
    return store.find(text_keys(texts), text_keys(texts, f"limit {limit}"), limit)


def shard_files(store: VectorStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def test_keys_are_the_text_and_nothing_else() -> None:
    assert len(np.unique(text_keys(["a", "b", "a ", "", "a"]), axis=0)) == 4
    assert (text_keys(["a"]) != text_keys(["a"], "salt")).any()
    # The published test vector of the empty input, high half first.
    assert text_keys([""]).tolist() == [[0x99AA06D3014798D8, 0x6001C324468D497F]]


def test_vectors_come_back_exactly_and_in_the_order_asked(tmp_path: Path) -> None:
    fill(VectorStore(tmp_path, NAME), TEXTS[:12], VECTORS[:12])
    fill(VectorStore(tmp_path, NAME), TEXTS[12:], VECTORS[12:])
    again = VectorStore(tmp_path, NAME)
    assert len(again) == 20
    assert torch.equal(again.read(find(again)), VECTORS)
    shuffled = [13, 2, 2, 19, 0]
    assert torch.equal(again.read(find(again, [TEXTS[i] for i in shuffled])), VECTORS[shuffled])
    assert find(again, ["unknown", "text 3"]).missing.tolist() == [0]
    assert again.read(find(again, [])).shape == (0, 8)


def test_half_of_a_key_is_not_enough(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, NAME)
    keys = np.array([[7, 1], [7, 2], [7, 3], [9, 1]], dtype=np.uint64)
    store.add(keys, counted(4), VECTORS[:4])
    asked = np.array([[7, 3], [7, 4], [9, 1], [10, 0], [7, 1]], dtype=np.uint64)
    found = store.find(asked, asked + np.uint64(1000), None)
    assert found.rows.tolist() == [2, -1, 3, -1, 0]


def test_a_truncated_text_is_found_at_its_own_limit_only(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, NAME)
    whole, cut = text_keys(["short"]), text_keys(["long"], "limit 8")
    store.add(np.concatenate([whole, cut]), np.array([5, 30], dtype=np.int32), VECTORS[:2])
    assert len(find(store, ["short", "long"], 8).missing) == 0
    assert find(store, ["short", "long"], 16).missing.tolist() == [1]
    assert find(store, ["short", "long"], 4).missing.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("asked", "vectors", "stored"),
    [
        ("auto", VECTORS, torch.float32),
        ("auto", VECTORS.half().float(), torch.float16),
        ("auto", VECTORS.bfloat16().float(), torch.bfloat16),
        ("float16", VECTORS, torch.float16),
        ("bfloat16", VECTORS, torch.bfloat16),
        ("float32", VECTORS.half().float(), torch.float32),
    ],
)
def test_dtype_is_kept_and_recorded(
    tmp_path: Path, asked: str, vectors: torch.Tensor, stored: torch.dtype
) -> None:
    store = VectorStore(tmp_path, NAME, asked)
    fill(store, TEXTS, vectors)
    again = VectorStore(tmp_path, NAME, asked)
    found = again.read(find(again))
    assert found.dtype == stored
    assert torch.equal(found, vectors.to(stored))
    (listed,) = list_store(tmp_path)
    assert listed.dtypes == (str(stored).removeprefix("torch."),)
    assert listed.fingerprint["stored_as"] == asked


def test_values_too_large_for_a_dtype_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"values up to 7e\+04, too large for float16; keep them as auto"):
        fill(VectorStore(tmp_path, NAME, "float16"), TEXTS, VECTORS.clamp(-1, 1) + 69999)
    fill(VectorStore(tmp_path, NAME), TEXTS, VECTORS + 70000)


def test_another_dtype_and_another_model_have_folders_of_their_own(tmp_path: Path) -> None:
    fill(VectorStore(tmp_path, NAME))
    for other in (
        VectorStore(tmp_path, NAME, "float16"),
        VectorStore(tmp_path, NAME | {"revision": "2"}),
        VectorStore(tmp_path, NAME | {"weights": "other"}),
    ):
        assert len(find(other).missing) == 20
    with pytest.raises(StoreError, match="not 'int8'"):
        VectorStore(tmp_path, NAME, "int8")


@pytest.mark.parametrize("place", ["header", "keys", "middle", "last"])
def test_a_flipped_byte_is_found_said_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    first = VectorStore(tmp_path, NAME)
    fill(first, TEXTS[:10], VECTORS[:10])
    fill(first, TEXTS[10:], VECTORS[10:])
    file = shard_files(first)[0]
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    content[{"header": 20, "keys": 8 + header + 3, "middle": len(content) // 2, "last": -1}[place]] ^= 1
    file.write_bytes(content)
    again = VectorStore(tmp_path, NAME)
    with caplog.at_level(logging.WARNING):
        found = find(again)
    assert found.missing.tolist() == list(range(10))
    assert f"{file} is damaged" in caplog.text
    assert torch.equal(again.read(stores.Found(found.shards[10:], found.rows[10:])), VECTORS[10:])
    fill(again, TEXTS[:10], VECTORS[:10])
    last = VectorStore(tmp_path, NAME)
    assert torch.equal(last.read(find(last)), VECTORS)


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_truncated_or_missing_shard_is_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    store = VectorStore(tmp_path, NAME)
    fill(store)
    (file,) = shard_files(store)
    file.write_bytes(file.read_bytes()[:length])
    again = VectorStore(tmp_path, NAME)
    with caplog.at_level(logging.WARNING):
        assert len(find(again).missing) == 20
    assert "20 vectors are computed again" in caplog.text
    file.unlink()
    assert len(find(VectorStore(tmp_path, NAME)).missing) == 20


def test_verify_and_prune(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, NAME)
    fill(store, TEXTS[:10], VECTORS[:10])
    fill(store, TEXTS[10:], VECTORS[10:])
    fill(VectorStore(tmp_path, {"name": "test/other"}))
    damaged, whole = shard_files(store)
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 16
    damaged.write_bytes(content)
    left_over = store.folder / "000009-0.safetensors"
    left_over.write_bytes(b"half a shard")
    assert [one.problems for one in list_store(tmp_path)].count(()) == 2
    problems = [problem for one in list_store(tmp_path, verify=True) for problem in one.problems]
    assert problems == [f"{damaged} is damaged (its checksum differs)"]
    assert set(prune_store(tmp_path)) == {f"removed {damaged}", f"removed {left_over}"}
    assert shard_files(store) == [whole]
    assert not any(one.problems for one in list_store(tmp_path, verify=True))
    assert find(VectorStore(tmp_path, NAME)).missing.tolist() == list(range(10))
    assert prune_store(tmp_path, ["test/other"])[0].endswith("(test/other, 20 vectors)")
    assert [one.fingerprint["name"] for one in list_store(tmp_path)] == ["test/model"]
    with pytest.raises(StoreError, match="no vectors of 'test/none'; it has test/model"):
        prune_store(tmp_path, ["test/none"])


def test_an_older_layout_is_refused_and_can_be_pruned(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, NAME)
    fill(store)
    for name in ("model.json", "manifest.json"):
        file = store.folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"layout": 0}))
    with pytest.raises(StoreError, match=r"is of layout 0, and this version reads 1: .*prune"):
        VectorStore(tmp_path, NAME)
    assert "layout 0" in list_store(tmp_path)[0].problems[0]
    assert prune_store(tmp_path)
    assert list_store(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"shards": 3}'])
def test_a_damaged_manifest_is_refused_and_can_be_pruned(tmp_path: Path, content: str) -> None:
    store = VectorStore(tmp_path, NAME)
    fill(store)
    (store.folder / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match="prune"):
        VectorStore(tmp_path, NAME)
    prune_store(tmp_path)
    assert len(find(VectorStore(tmp_path, NAME)).missing) == 20


def test_other_dimensions_are_refused(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, NAME)
    fill(store)
    with pytest.raises(StoreError, match="holds vectors of 8 dimensions, and these have 4"):
        store.add(text_keys(["new"]), counted(1), VECTORS[:1, :4])


def test_a_read_only_store_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(VectorStore(tmp_path, NAME))
    store = VectorStore(tmp_path, NAME)

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    with caplog.at_level(logging.WARNING):
        assert not store.add(text_keys(["new"]), counted(1), VECTORS[:1])
        assert not store.add(text_keys(["new"]), counted(1), VECTORS[:1])
    assert caplog.text.count("cannot be written to") == 1
    assert torch.equal(store.read(find(store)), VECTORS)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VectorStore(tmp_path, NAME)
    fill(store, TEXTS[:10], VECTORS[:10])
    before = sorted(store.folder.iterdir())
    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(ReasonEmbedError, match="No space left on device; free space"):
            store.add(text_keys(TEXTS[10:]), counted(10), VECTORS[10:])
    assert sorted(store.folder.iterdir()) == before
    again = VectorStore(tmp_path, NAME)
    fill(again, TEXTS[10:], VECTORS[10:])
    assert torch.equal(again.read(find(again)), VECTORS)


def _fill_half_overlapping(root: Path, start: int) -> None:
    torch.set_num_threads(1)
    store = VectorStore(root, NAME)
    for first in range(start, start + 200, 10):
        places = torch.arange(first, first + 10) % 200
        texts = [f"shared {i}" for i in places.tolist()]
        store.add(text_keys(texts), counted(10), places.float()[:, None].repeat(1, 4))


def test_two_processes_fill_one_store_with_each_text_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill_half_overlapping, args=(tmp_path, start)) for start in (0, 95)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = VectorStore(tmp_path, NAME)
    assert len(store) == 200
    found = find(store, [f"shared {i}" for i in range(200)])
    assert torch.equal(store.read(found)[:, 0].float(), torch.arange(200).float())
    assert not any(one.problems for one in list_store(tmp_path, verify=True))


def test_the_command_shows_checks_and_prunes(tmp_path: Path, command: Command) -> None:
    store = VectorStore(tmp_path / "vectors", NAME)
    fill(store)

    # A run's output folder stands for the store in it.
    status, out, _ = command("store", "info", str(tmp_path))
    assert status == 0
    assert "test/model" in out
    assert " 20 " in out
    assert command("store", "verify", str(tmp_path))[::2] == (0, "20 vectors of 1 models, 0 problems\n")
    (file,) = shard_files(store)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    status, _, err = command("store", "verify", str(tmp_path))
    assert (status, "is damaged" in err) == (1, True)
    assert command("store", "prune", str(tmp_path))[2] == f"removed {file}\n1 removed\n"
    status, _, err = command("store", "info", str(tmp_path / "nothing"))
    assert (status, "there is no store" in err) == (2, True)
