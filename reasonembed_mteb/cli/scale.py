"""Encoding and searching corpora of any size, on this machine or on a Ray cluster."""

from __future__ import annotations

import contextlib
import re
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reasonembed_mteb.cli.common import (
    OUTPUT,
    PROTOCOL,
    SPEED,
    BatchTokens,
    Debug,
    InstructionTemplate,
    NoInstruction,
    app,
    connect,
    say,
    shows_progress,
)
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reasonembed_mteb.distributed.processes import Machines
    from reasonembed_mteb.encoding.fast import TextPool

Cluster = Annotated[
    str | None,
    typer.Option(
        help="Ray: host:port, auto, or local to start it here; without, plain processes of this machine.",
        rich_help_panel=SPEED,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many; 1 without a cluster, else all it has room for.", rich_help_panel=SPEED
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Of a worker; by default the processors are shared out.", rich_help_panel=SPEED),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(min=0, help="On a cluster; by default 1 where it has any, else 0.", rich_help_panel=SPEED),
]
Device = Annotated[
    str | None, typer.Option(help="Such as cuda; by default torch chooses.", rich_help_panel=SPEED)
]
Attn = Annotated[str, typer.Option(help="auto, packed, padded, flash or off.", rich_help_panel=SPEED)]


def machines(
    cluster: str | None, workers: int | None, threads: int | None, gpus_per_worker: float | None
) -> Machines:
    """Return where work is done.

    Args:
        cluster: A Ray cluster; None for processes of this machine.
        workers: How many.
        threads: Of each.
        gpus_per_worker: On a cluster.

    Raises:
        ReasonEmbedError: If there is no such cluster, or too little room on it.
    """
    if cluster is not None:
        from reasonembed_mteb.distributed.cluster import ClusterChoice, RayMachines

        return RayMachines(ClusterChoice(cluster, workers, threads, gpus_per_worker))
    if gpus_per_worker is not None:
        msg = "--gpus-per-worker is for a cluster: give --cluster too, or --device for this machine"
        raise ReasonEmbedError(msg)
    from reasonembed_mteb.distributed.processes import Processes
    from reasonembed_mteb.encoding.plan import usable_cores

    count = workers or 1
    return Processes(count, threads or max(1, usable_cores() // count))


@contextlib.contextmanager
def cluster_pool(
    cluster: str | None, workers: int | None, gpus_per_worker: float | None, device: str | None
) -> Iterator[Callable[[Any], TextPool] | None]:
    """Give what encodes the texts of a run on a cluster, or None without one.

    Args:
        cluster: A Ray cluster.
        workers: How many.
        gpus_per_worker: Of each.
        device: Of a run on this machine, which a cluster excludes.

    Yields:
        What takes a model and sends it to the cluster.

    Raises:
        ReasonEmbedError: If the options do not go together, or there is no such cluster.
    """
    if cluster is None:
        for option, given in (("--workers", workers), ("--gpus-per-worker", gpus_per_worker)):
            if given is not None:
                msg = f"{option} is for a cluster: give --cluster too, or --device for this machine"
                raise ReasonEmbedError(msg)
        yield None
        return
    if device is not None:
        msg = "--device is for this machine: leave it out with --cluster, whose workers have their own"
        raise ReasonEmbedError(msg)
    from reasonembed_mteb.distributed.cluster import ClusterChoice, RayMachines
    from reasonembed_mteb.distributed.pool import ClusterPool

    with RayMachines(ClusterChoice(cluster, workers, None, gpus_per_worker)) as where:
        yield partial(ClusterPool, where)


@app.command()
def encode(
    source: Annotated[
        str,
        typer.Option("--input", help="Parquet or JSON Lines (files, folder, pattern), or a BEIR folder."),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint, MTEB or hub name, or directory.")],
    output: Annotated[str, typer.Option(help="The store: a folder, s3://..., gs://...")],
    name: Annotated[
        str | None,
        typer.Option(help="Of the corpus in the store.", show_default="the input's", rich_help_panel=OUTPUT),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, float16, bfloat16, int8, or auto: the smallest that is exact.",
            rich_help_panel=OUTPUT,
        ),
    ] = "auto",
    task: Annotated[
        str, typer.Option(help="MTEB task whose lengths and prompts hold.", rich_help_panel=PROTOCOL)
    ] = "",
    instruction_template: InstructionTemplate = None,
    no_instruction: NoInstruction = False,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a text.", show_default="the model's", rich_help_panel=PROTOCOL),
    ] = None,
    truncate_dim: Annotated[
        int | None,
        typer.Option(min=1, help="Keep the first dimensions of each vector.", rich_help_panel=OUTPUT),
    ] = None,
    cluster: Cluster = None,
    workers: Workers = None,
    threads: Threads = None,
    gpus_per_worker: GpusPerWorker = None,
    device: Device = None,
    block_tokens: Annotated[
        int,
        typer.Option(min=1, help="Of a block, which is one file; 4 characters each.", rich_help_panel=SPEED),
    ] = 1 << 18,
    batch_tokens: BatchTokens = None,
    attn: Attn = "auto",
    compile_layers: Annotated[
        str | None,
        typer.Option("--compile", help="on or off; by default on for a GPU.", rich_help_panel=SPEED),
    ] = None,
    debug: Debug = False,
) -> None:
    """Encode a corpus of any size into a store; run again, it goes on where it stopped."""
    connect(debug)
    from reasonembed_mteb.distributed.encode import encode_corpus
    from reasonembed_mteb.distributed.worker import EncodeJob, ModelChoice, Speed

    choice = ModelChoice(
        name=_model_name(model),
        template=instruction_template,
        no_instruction=no_instruction,
        truncate_dim=truncate_dim,
        task=task,
        max_length=max_length,
    )
    given: dict[str, Any] = {"device": device, "batch_tokens": batch_tokens, "attn": attn}
    given |= {"compile_layers": compile_layers}
    named = corpus_name(name or absolute(source))
    if name is not None and named != name:
        msg = f"--name {name!r} cannot stand in a file's name as it is: give {named!r}, or another"
        raise ReasonEmbedError(msg)
    started = time.monotonic()
    with machines(cluster, workers, threads, gpus_per_worker) as where:
        job = EncodeJob(choice, Speed(threads=where.threads, **given), absolute(output), dtype, block_tokens)
        job.check()
        say(f"{where.workers} workers of {where.threads} threads")
        done = encode_corpus(
            absolute(source),
            job,
            where,
            name=named,
            progress=shows_progress(debug),
            say=say,
        )
    seconds = time.monotonic() - started
    say(
        f"{done.documents:,} documents of {done.corpus} in {done.store}: {done.computed:,} of "
        f"{done.blocks:,} blocks computed now, {done.tokens:,} tokens in {seconds:,.0f} s"
    )


def absolute(place: str) -> str:
    """Return a path that every process of every machine can find; an address as it is.

    Args:
        place: A path or an address.

    Raises:
        ReasonEmbedError: If it is empty, as a variable of the shell that is not set.
    """
    if not place:
        msg = "an empty name is no place: give a path, or an address such as s3://bucket/folder"
        raise ReasonEmbedError(msg)
    return place if "://" in place else str(Path(place).expanduser().resolve())


def _model_name(name: str) -> str:
    return absolute(name) if Path(name).expanduser().is_dir() else name


def corpus_name(source: str) -> str:
    """Return the name of a corpus as it can stand in a file's name.

    Args:
        source: A name, a path or an address.
    """
    # A pattern names what it chooses from by its folder.
    parts = [part for part in source.split("/") if part and not re.search(r"[*?\[]", part)]
    last = parts[-1] if parts else ""
    stem = re.sub(r"(\.(parquet|jsonl|ndjson|json|gz))+$", "", last)
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "corpus"


@app.command()
def search(
    store: Annotated[str, typer.Argument(help="The store that `reasonembed encode` has filled.")],
    queries: Annotated[str, typer.Option(help="JSON Lines, Parquet, or a BEIR folder.")],
    output: Annotated[
        Path, typer.Option(help="The TREC run to write; gzipped if named .gz.", rich_help_panel=OUTPUT)
    ] = Path("run.trec"),
    top_k: Annotated[int, typer.Option(min=1, help="Documents of each query.")] = 1000,
    corpus: Annotated[str | None, typer.Option(help="Which, where the store holds several.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Where the model that encoded it is now.", show_default="as encoded"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="MTEB task whose instruction queries get.", rich_help_panel=PROTOCOL),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help="The sentence put before each query.", rich_help_panel=PROTOCOL),
    ] = None,
    excluded: Annotated[
        Path | None,
        typer.Option(
            help="Pairs of query and document that do not count.",
            show_default="a BEIR folder's own",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    tag: Annotated[
        str, typer.Option(help="Names the run in its last column.", rich_help_panel=OUTPUT)
    ] = "reasonembed",
    cluster: Cluster = None,
    workers: Workers = None,
    threads: Threads = None,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    attn: Attn = "auto",
    debug: Debug = False,
) -> None:
    """Search a store exactly; excluded documents leave before the cut."""
    connect(debug)
    from reasonembed_mteb.distributed.inputs import read_queries
    from reasonembed_mteb.distributed.search import chosen_model, encode_queries, search_corpus
    from reasonembed_mteb.distributed.worker import Speed
    from reasonembed_mteb.retrieval.trec import write_run
    from reasonembed_mteb.store.corpora import open_stored
    from reasonembed_mteb.store.places import Place

    found = open_stored(Place(absolute(store)), corpus)
    texts, pairs = read_queries(queries, excluded)
    moved = _model_name(model) if model else None
    choice = chosen_model(found, name=moved, task=task, instruction=instruction)
    with machines(cluster, workers, threads, 0 if cluster else None) as where:
        speed = Speed(device, where.threads, batch_tokens, attn, "off")
        asked = encode_queries(found, choice, speed, texts, pairs)
        started = time.monotonic()
        run = search_corpus(found, asked, top_k, where, progress=shows_progress(debug))
    seconds = time.monotonic() - started
    write_run(output, run, tag)
    say(f"{len(texts):,} queries in {found.rows:,} documents: {seconds:,.1f} s of search; run {output}")
