"""Encoding a corpus of any size into a store: the same bytes from one process and from many machines."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

from reasonembed_mteb.distributed.inputs import Block, Scan, Slice, blocks, check_ids, find_slices, read_slice
from reasonembed_mteb.distributed.inputs import scan_slice as scan_one
from reasonembed_mteb.distributed.worker import BlockDone, BlockEncoder
from reasonembed_mteb.errors import DataError, ReasonEmbedError, first_names
from reasonembed_mteb.store.corpora import write_corpus, written_input
from reasonembed_mteb.store.places import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from reasonembed_mteb.distributed.processes import Machines
    from reasonembed_mteb.distributed.worker import EncodeJob

Item = TypeVar("Item")

# Seconds between two manifests while blocks are being written.
_WRITTEN_EVERY = 60.0


@dataclass(frozen=True)
class Encoded:
    """What an encoding did.

    Attributes:
        store: Path or address of the store.
        folder: Name of the model's folder in it.
        corpus: Name of the corpus.
        documents: In the corpus.
        blocks: Of the corpus.
        computed: Blocks that were computed now; the others were there.
        tokens: That the model read for these.
        hosts: Blocks computed by each machine.
        boundaries: First document of each block, counted from 0.
    """

    store: str
    folder: str
    corpus: str
    documents: int
    blocks: int
    computed: int
    tokens: int
    hosts: dict[str, int]
    boundaries: tuple[int, ...]


def encode_corpus(
    source: str,
    job: EncodeJob,
    machines: Machines,
    *,
    name: str,
    worker: Callable[[EncodeJob], Callable[[Block], BlockDone]] = BlockEncoder,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Encoded:
    """Encode the documents of an input, but for the blocks that the store holds already.

    Args:
        source: See `reasonembed_mteb.distributed.inputs.find_slices`.
        job: Which model, into which store.
        machines: Where; a cluster or the processes of this machine.
        name: Of the corpus in the store.
        worker: Makes what encodes blocks, once on each worker.
        progress: Whether a bar is shown.
        say: Takes one line at a time about what happens.

    Raises:
        DataError: If a row has no id or no text, or an id comes twice; nothing is computed then.
        ReasonEmbedError: If a worker fails, or wrote to a disk of its own.
    """
    slices = find_slices(source)
    scans = scan(slices, job, machines, progress=progress)
    check_ids(slices, scans)
    total = sum(map(len, (one.keys for one in scans)))
    say(f"{source}: {sum(map(sum, (one.rows for one in scans))):,} documents in {total:,} blocks")
    written = _Written(job, name, source, scans, say)
    made = machines.work(slices, partial(_blocks_of, job=job), partial(worker, job))
    for done in _shown(made, total, "Encoding", progress):
        written.add(done)
    return written.finish()


def scan(slices: Sequence[Slice], job: EncodeJob, machines: Machines, *, progress: bool) -> list[Scan]:
    """Read an input once without encoding it.

    Args:
        slices: Of the input.
        job: Which decides the blocks.
        machines: Where.
        progress: Whether a bar is shown.

    Returns:
        One of each slice, in order.

    Raises:
        DataError: If a row has no id or no text, or there is no document at all.
    """
    numbered = list(enumerate(slices))
    found = machines.read(numbered, partial(_scan, job))
    scans = sorted(_shown(found, len(slices), "Reading", progress), key=lambda one: one.place)
    if not any(one.keys for one in scans):
        msg = f"{slices[0].url if slices else 'the input'} holds no document; there is nothing to encode"
        raise DataError(msg)
    return scans


def _scan(job: EncodeJob, numbered: tuple[int, Slice]) -> Scan:
    return scan_one(*numbered, job.block_tokens, job.model.salt)


def _blocks_of(one: Slice, job: EncodeJob) -> Iterator[Block]:
    return blocks(read_slice(one), job.block_tokens, job.model.salt)


def _shown(items: Iterable[Item], total: int, what: str, progress: bool) -> Iterator[Item]:
    from tqdm.auto import tqdm

    return iter(tqdm(items, total=total, desc=what, disable=not progress))


class _Written:
    """What is written so far, and the corpus' manifest, which this process alone writes."""

    def __init__(
        self, job: EncodeJob, name: str, source: str, scans: Sequence[Scan], say: Callable[[str], None]
    ) -> None:
        self._job, self._name, self._say = job, name, say
        self._about = job.about | {"input": source}
        self._keys = [key for one in scans for key in one.keys]
        self._rows = [rows for one in scans for rows in one.rows]
        self._done: dict[str, BlockDone] = {}
        self._at = time.monotonic()

    def add(self, done: BlockDone) -> None:
        first = next(iter(self._done.values()), done)
        if done.folder != first.folder:
            msg = (
                f"the model {self._job.model.name} is not the same on {first.host} and on {done.host}: their "
                "vectors would not fit together; give both the same weights, versions and kind of device"
            )
            raise ReasonEmbedError(msg)
        begun = not self._done
        self._done[done.key] = done
        if begun:
            self._say_replaced()
        if begun or time.monotonic() - self._at > _WRITTEN_EVERY:
            self._write(complete=False)
            self._at = time.monotonic()

    def _say_replaced(self) -> None:
        before = written_input(self._folder, self._name)
        if before not in (None, self._about["input"]):
            self._say(f"{self._name} of {before} in the store is replaced; --name would keep both")

    @property
    def _folder(self) -> Place:
        return Place(self._job.store) / next(iter(self._done.values())).folder

    def _write(self, *, complete: bool) -> None:
        # In the order of the corpus, whatever came first.
        files = [self._done[key].file for key in self._keys if key in self._done]
        dimension = next(iter(self._done.values())).dimension
        write_corpus(self._folder, self._name, files, dimension, self._about, complete=complete)

    def finish(self) -> Encoded:
        missing = [key for key in self._keys if key not in self._done]
        if missing:
            msg = f"{len(missing)} blocks were not encoded though nothing failed; run the same command again"
            raise ReasonEmbedError(msg)
        self._check_visible()
        self._write(complete=True)
        computed = [one for one in self._done.values() if one.computed]
        return Encoded(
            store=self._job.store,
            folder=self._folder.url.rsplit("/", 1)[-1],
            corpus=self._name,
            documents=sum(self._rows),
            blocks=len(self._keys),
            computed=len(computed),
            tokens=sum(one.tokens for one in computed),
            hosts=dict(Counter(one.host for one in computed)),
            boundaries=tuple(accumulate(self._rows[:-1], initial=0)),
        )

    def _check_visible(self) -> None:
        """Notice a machine that has written to a disk of its own."""
        there = self._folder.sizes()
        lost = [one for one in self._done.values() if there.get(one.file.file) != one.file.bytes]
        if lost:
            hosts = first_names(sorted({one.host for one in lost}))
            msg = (
                f"{len(lost)} blocks written by {hosts} are not in {self._job.store} as seen from here: "
                "give storage that all machines share, such as s3://bucket/folder"
            )
            raise ReasonEmbedError(msg)
