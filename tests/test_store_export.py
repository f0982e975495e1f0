"""What other libraries read of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from test_store_corpora import block, fill

from reasonembed_mteb.errors import DataError, UnknownNameError
from reasonembed_mteb.store.corpora import open_stored
from reasonembed_mteb.store.export import export_corpus
from reasonembed_mteb.store.places import Place

if TYPE_CHECKING:
    from conftest import Command


def test_the_array_and_the_ids_are_the_corpus(tmp_path: Path) -> None:
    fill(Place(tmp_path / "store"))
    export_corpus(open_stored(Place(tmp_path / "store")), tmp_path / "out")
    array = np.load(tmp_path / "out" / "vectors.npy", mmap_mode="r")
    assert np.array_equal(array, torch.cat([block(n).vectors for n in range(3)]).numpy())
    names = (tmp_path / "out" / "ids.txt").read_text(encoding="utf-8").splitlines()
    assert names == [name for n in range(3) for name in block(n).ids]
    with pytest.raises(DataError, match="is not an empty folder"):
        export_corpus(open_stored(Place(tmp_path / "store")), tmp_path / "out")


def test_by_the_command_of_length_one_in_half_precision(command: Command) -> None:
    fill(Place("store"))
    arguments = ("store", "export", "store", "--output", "out", "--dtype", "float16", "--normalize")
    status, _, err = command(*arguments)
    assert (status, "12 vectors of 8 dimensions" in err) == (0, True), err
    array = np.load(Path("out") / "vectors.npy", mmap_mode="r")
    assert array.dtype == np.float16
    assert np.linalg.norm(array.astype(np.float64), axis=1) == pytest.approx(1, abs=1e-3)


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    fill(Place(tmp_path / "store"))
    with pytest.raises(UnknownNameError, match="did you mean 'float16'"):
        export_corpus(open_stored(Place(tmp_path / "store")), tmp_path / "out", "float61")
    assert not (tmp_path / "out").exists()
