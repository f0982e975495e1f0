"""The commands of ``store``: looking into the embedding store, checking it, removing from it, handing on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reasonembed_mteb.cli.common import FAILED, Debug, app, say
from reasonembed_mteb.cli.show import set_up_logging, show_table

group = typer.Typer(
    help="Look into the embedding store, check it, remove from it, hand it on.", no_args_is_help=True
)
app.add_typer(group, name="store")

Folder = Annotated[Path, typer.Argument(help="The store's folder, or a run's output folder.")]


def _root(folder: Path) -> Path:
    """Take a run's output folder for the store in it."""
    return folder / "vectors" if (folder / "vectors").is_dir() else folder


@group.command()
def info(folder: Folder = Path("results"), debug: Debug = False) -> None:
    """List the models whose vectors are stored."""
    set_up_logging(debug)
    from reasonembed_mteb.store.upkeep import list_store

    rows = [
        [
            str(one.fingerprint.get("name", "?")),
            str(one.fingerprint.get("revision", "?"))[:12],
            f"{one.rows:,}",
            str(one.dimension),
            ", ".join(one.dtypes),
            f"{one.size / 2**20:,.1f}",
            one.folder.name,
        ]
        for one in list_store(_root(folder))
    ]
    head = ["model", "revision", "vectors", "dim", "dtype", "MiB", "folder"]
    show_table(head, rows, f"Embedding store {_root(folder)}")


@group.command()
def verify(folder: Folder = Path("results"), debug: Debug = False) -> None:
    """Read every shard and compare its checksum; exit with 1 if something is damaged."""
    set_up_logging(debug)
    from reasonembed_mteb.store.upkeep import list_store

    held = list_store(_root(folder), verify=True)
    problems = [problem for one in held for problem in one.problems]
    for problem in problems:
        say(problem)
    say(f"{sum(one.rows for one in held):,} vectors of {len(held)} models, {len(problems)} problems")
    if problems:
        say(
            "damaged vectors are never used: the next run computes them again, "
            "and `reasonembed store prune` removes them"
        )
        raise typer.Exit(FAILED)


@group.command()
def prune(
    folder: Folder = Path("results"),
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Remove this model's vectors; repeatable.")
    ] = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Remove what cannot be used (damaged, left over, of an older layout), and whole models if named."""
    set_up_logging(debug)
    from reasonembed_mteb.store.upkeep import prune_store

    removed = prune_store(_root(folder), model)
    for line in removed:
        say(line)
    say(f"{len(removed)} removed")


@group.command()
def export(
    store: Annotated[str, typer.Argument(help="The store that `reasonembed encode` has filled.")],
    output: Annotated[Path, typer.Option(help="A new folder for vectors.npy and ids.txt.")],
    corpus: Annotated[str | None, typer.Option(help="Which, where the store holds several.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Length one, so that an inner product is the cosine.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a corpus as one array that can be mapped into memory, for FAISS and others."""
    set_up_logging(debug)
    from reasonembed_mteb.store.corpora import open_stored
    from reasonembed_mteb.store.export import export_corpus
    from reasonembed_mteb.store.places import Place

    found = open_stored(Place(store), corpus)
    export_corpus(found, output, dtype, normalize=normalize)
    say(f"{found.rows:,} vectors of {found.dimension} dimensions in {output}")
