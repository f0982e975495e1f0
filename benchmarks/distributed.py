"""Ray on this machine against plain processes: the same blocks, the same bytes, and their speed, in turn.

    python benchmarks/distributed.py [--texts 50000] [--workers 2] [--rounds 2] [--model DIR]

Without `--model` a random two-layer decoder with a small vocabulary encodes. Time is taken from the first
block that is done to the last, so that neither pays for its start; processor time is that of the workers, as
they say it themselves, for a machine that others use too. Whole wall times are shown as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.distributed.cluster import ClusterChoice, RayMachines
from reasonembed_mteb.distributed.encode import encode_corpus
from reasonembed_mteb.distributed.processes import Processes
from reasonembed_mteb.distributed.worker import BlockEncoder, EncodeJob, ModelChoice, Speed

if TYPE_CHECKING:
    from reasonembed_mteb.distributed.inputs import Block
    from reasonembed_mteb.distributed.processes import Machines
    from reasonembed_mteb.distributed.worker import BlockDone

WORDS = ("cells", "leaves", "water", "light", "heat", "salt", "plants", "stone", "growth", "rivers", "roots")


class Timed(BlockEncoder):
    """Writes down when each block was done, and the processor time that it took."""

    def __init__(self, job: EncodeJob, log: str) -> None:
        super().__init__(job)
        self._log = log

    def __call__(self, block: Block) -> BlockDone:
        """Encode a block."""
        used = time.process_time()
        done = super().__call__(block)
        line = json.dumps([time.time(), time.process_time() - used, len(block.documents)])
        with Path(self._log).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        return done


def write_texts(file: Path, count: int) -> None:
    """Write short texts."""
    chosen = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            text = " ".join(chosen.choices(WORDS, k=chosen.randint(4, 24)))
            stream.write(json.dumps({"_id": f"d{number}", "text": text}) + "\n")


def digest(folder: Path) -> str:
    """Return a hash of every file's name and bytes."""
    found = hashlib.sha256()
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        found.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return found.hexdigest()


def measure(machines: Machines, texts: Path, model: str, work: Path, block_tokens: int) -> dict[str, Any]:
    """Encode once; return rates and a hash of what was written."""
    store, log = work / "store", work / "log"
    shutil.rmtree(store, ignore_errors=True)
    log.unlink(missing_ok=True)
    job = EncodeJob(ModelChoice(model), Speed(device="cpu", threads=1), str(store), block_tokens=block_tokens)
    started = time.perf_counter()
    done = encode_corpus(str(texts), job, machines, name="texts", worker=partial(Timed, log=str(log)))
    wall = time.perf_counter() - started
    rows = sorted(json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    documents = sum(count for _, _, count in rows)
    return {
        "texts_a_second": (documents - rows[0][2]) / (rows[-1][0] - rows[0][0]),
        "texts_a_processor_second": documents / sum(used for _, used, _ in rows),
        "wall": wall,
        "blocks": done.blocks,
        "boundaries": done.boundaries[:3],
        "bytes": digest(store),
    }


def make_model(folder: Path) -> str:
    """Save a random decoder, as the tests do."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from conftest import save_decoder

    return str(save_decoder(folder / "decoder"))


def main() -> None:
    """Measure both in turn."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--block-tokens", type=int, default=1 << 15)
    parser.add_argument("--model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_texts(work / "texts.jsonl", given.texts)
        model = given.model or make_model(work)
        found: dict[str, list[dict[str, Any]]] = {"processes": [], "ray": []}
        for _ in range(given.rounds):
            for name in found:
                choice = ClusterChoice("local", given.workers, 1)
                machines = RayMachines(choice) if name == "ray" else Processes(given.workers, 1)
                with machines:
                    found[name].append(
                        measure(machines, work / "texts.jsonl", model, work, given.block_tokens)
                    )
                print(name, json.dumps(found[name][-1]), flush=True)
    best = {
        key: {name: max(one[key] for one in runs) for name, runs in found.items()}
        for key in ("texts_a_second", "texts_a_processor_second")
    }
    for key, rates in best.items():
        print(f"{key}: Ray has {rates['ray'] / rates['processes']:.2f} of the processes' rate")
    print("bytes equal:", len({one["bytes"] for runs in found.values() for one in runs}) == 1)


if __name__ == "__main__":
    main()
