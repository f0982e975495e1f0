"""Rank a task's documents by BM25 with bm25s' defaults and English stop words, as a TREC run to be scored.

MTEB's own BM25 stems besides, and so scores a little otherwise. ImpliRet's published BM25:

    export REASONEMBED_IMPLIRET_PATH=folder/with/the/CSV/files
    python benchmarks/bm25_run.py ReasonEmbedImpliRetWorldKnowledgeMulti w.trec
    python benchmarks/bm25_run.py ReasonEmbedImpliRetTemporalMulti t.trec
    reasonembed score w.trec t.trec --measure recall_at_10 \
        -t ReasonEmbedImpliRetWorldKnowledgeMulti -t ReasonEmbedImpliRetTemporalMulti
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Write the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", help="a task of ours, from a local copy or the hub")
    parser.add_argument("run", type=Path, help="TREC run to write")
    parser.add_argument("--depth", type=int, help="documents a query, all by default: it orders ties")
    options = parser.parse_args()

    import bm25s

    from reasonembed_mteb.retrieval.layouts import load_split
    from reasonembed_mteb.retrieval.rows import find
    from reasonembed_mteb.retrieval.trec import write_run

    data = load_split(find(options.task))
    documents, queries = data["corpus"], data["queries"]
    index = bm25s.BM25()
    words = bm25s.tokenize(documents["text"][:], stopwords="en", show_progress=False)
    index.index(words, show_progress=False)
    asked = bm25s.tokenize(queries["text"][:], stopwords="en", show_progress=False)
    names = documents["id"][:]
    depth = min(options.depth or len(names), len(names))
    found, _ = index.retrieve(asked, k=depth, show_progress=False, n_threads=1)
    # By rank: documents of one score stay in bm25s' own order, where scorers would go by their ids.
    run = {
        query: {names[place]: float(depth - rank) for rank, place in enumerate(places)}
        for query, places in zip(queries["id"][:], found.tolist(), strict=True)
    }
    write_run(options.run, run, "bm25s")


if __name__ == "__main__":
    main()
