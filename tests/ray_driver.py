"""A driver that test_distributed_cluster.py starts and kills: encodes, and writes down each computation."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reasonembed_mteb.distributed.inputs import Block


def main(cluster: str, source: str, model: str, store: str, log: str) -> None:
    from reasonembed_mteb.distributed.cluster import ClusterChoice, RayMachines
    from reasonembed_mteb.distributed.encode import encode_corpus
    from reasonembed_mteb.distributed.worker import BlockEncoder, EncodeJob, ModelChoice, Speed

    class Noting(BlockEncoder):
        """Writes down who computes what, before it does."""

        def _encoded(self, block: Block) -> Any:
            with Path(log).open("a") as stream:
                stream.write(f"{os.getpid()} {block.key}\n")
            # A tiny model would be done before it could be killed.
            time.sleep(0.05)
            return super()._encoded(block)

    job = EncodeJob(ModelChoice(model), Speed(device="cpu"), store, block_tokens=500)
    with RayMachines(ClusterChoice(cluster, workers=2, threads=1)) as machines:
        encode_corpus(source, job, machines, name="c", worker=Noting)


if __name__ == "__main__":
    main(*sys.argv[1:])
