"""A corpus handed on to other libraries: one array that is mapped into memory, and the ids beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from reasonembed_mteb.errors import unknown_name
from reasonembed_mteb.files import replacing_folder
from reasonembed_mteb.store.corpora import read_block

if TYPE_CHECKING:
    from pathlib import Path

    from reasonembed_mteb.store.corpora import StoredCorpus

VECTORS, IDS = "vectors.npy", "ids.txt"
EXPORT_DTYPES = ("float32", "float16")


def export_corpus(
    corpus: StoredCorpus, folder: Path, dtype: str = "float32", *, normalize: bool = False
) -> None:
    """Write a corpus' vectors as one array of numpy's, and its ids a line each, whole or not at all.

    Args:
        corpus: See `reasonembed_mteb.store.corpora.open_stored`.
        folder: A new or empty folder.
        dtype: ``float32`` or ``float16``.
        normalize: Whether vectors are brought to length one, so that an inner product is the cosine.

    Raises:
        DataError: If the folder is not empty.
        StoreError: If a block is missing or damaged.
        UnknownNameError: If there is no such dtype.
        ReasonEmbedError: If it cannot be written, a full disk for one.
    """
    if dtype not in EXPORT_DTYPES:
        raise unknown_name("dtype", dtype, EXPORT_DTYPES)
    with replacing_folder(folder) as part:
        shape = (corpus.rows, corpus.dimension)
        array = np.lib.format.open_memmap(part / VECTORS, mode="w+", dtype=dtype, shape=shape)
        start = 0
        with (part / IDS).open("w", encoding="utf-8", newline="\n") as ids:
            for block in corpus.blocks:
                data = read_block(corpus.folder, block)
                full = data.full(0, block.rows)
                array[start : start + block.rows] = torch.nn.functional.normalize(full) if normalize else full
                ids.writelines(f"{name}\n" for name in data.ids.to_pylist())
                start += block.rows
        array.flush()
