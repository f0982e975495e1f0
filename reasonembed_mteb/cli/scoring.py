"""The command ``score``: TREC runs, scored by the protocol."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from reasonembed_mteb.cli.common import Debug, app, say
from reasonembed_mteb.cli.show import set_up_logging, show_table
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reasonembed_mteb.evaluation.score_run import Judgements, RunScores

# No file of exclusions, and no such measure.
_NO_FILE = "-"
# What a table has room for; JSON has all.
_SHOWN = ("ndcg_at_10", "map_at_10", "mrr_at_10", "recall_at_1", "recall_at_100", "recall_at_1000")


@app.command()
def score(
    run: Annotated[
        list[Path],
        typer.Argument(help="TREC run, JSON {query: {document: score}}, or MTEB's predictions; gz too."),
    ],
    task: Annotated[
        list[str],
        typer.Option(
            "--task", "-t", help="Task or subset; once for all runs, or once a run, in their order."
        ),
    ] = [],  # noqa: B006 - typer reads the default
    qrels: Annotated[
        list[Path], typer.Option(help="TREC or BEIR labels, in place of --task; once, or once a run.")
    ] = [],  # noqa: B006
    exclude: Annotated[
        list[Path],
        typer.Option(help="Lines 'query document' that do not count; as often as --qrels, - for none."),
    ] = [],  # noqa: B006
    prefix: Annotated[
        list[str], typer.Option(help="Strip this from the runs' query ids; once, or once a run.")
    ] = [],  # noqa: B006
    subset: Annotated[
        str | None,
        typer.Option(
            help="Which subset of MTEB's predictions, where there are several; the pool of a task with pools."
        ),
    ] = None,
    measure: Annotated[
        list[str],
        typer.Option(
            help="Show this too: any of MTEB's, or recall_at_50, mrr_at_25 ... at any cut; repeatable."
        ),
    ] = [],  # noqa: B006
    split: Annotated[
        str | None, typer.Option(help="Which split of MTEB's predictions, where there are several.")
    ] = None,
    output_format: Annotated[
        Literal["table", "json"], typer.Option("--format", help="What to print.")
    ] = "table",
    debug: Debug = False,
) -> None:
    """Score run files by the protocol: exclusions before the cut, ties as pytrec_eval."""
    set_up_logging(debug)
    if bool(task) == bool(qrels):
        msg = "give --task TASK or --qrels FILE, one of the two"
        raise ReasonEmbedError(msg)
    if exclude and len(exclude) != len(qrels):
        msg = f"{len(exclude)} --exclude for {len(qrels)} --qrels; give one for each (- for none)"
        raise ReasonEmbedError(msg)
    from reasonembed_mteb.evaluation.score_run import score_run, strip_prefix
    from reasonembed_mteb.retrieval.trec import read_run

    prefixes = _one_each(prefix or [""], len(run), "--prefix")
    judgements = _judgements(task, qrels, exclude, len(run), subset, measure)
    scored = []
    for file, judged, before in zip(run, judgements, prefixes, strict=True):
        try:
            scored.append(score_run(strip_prefix(read_run(file, subset, split), before), judged))
        except ReasonEmbedError as error:
            raise _about(file, error) from error
    _say_remarks(run, judgements, scored)
    if output_format == "json":
        _print_json(run, judgements, scored)
    else:
        _print_table(run, judgements, scored, measure)


def _one_each(given: Sequence[Any], runs: int, option: str) -> list[Any]:
    """Repeat what was given once for all runs."""
    if len(given) not in (1, runs):
        msg = f"{len(given)} {option} for {runs} runs; give one for all, or one a run in the same order"
        raise ReasonEmbedError(msg)
    return list(given) * (runs if len(given) == 1 else 1)


def _judgements(
    tasks: Sequence[str],
    qrels: Sequence[Path],
    exclude: Sequence[Path],
    runs: int,
    pool: str | None,
    measures: Sequence[str],
) -> list[Judgements]:
    """Return each run's labels and exclusions; what several runs share is read once."""
    from reasonembed_mteb.evaluation.score_run import (
        judgements_from_files,
        judgements_of_task,
        with_measures,
    )

    wanted: list[Any]
    if tasks:
        wanted = _one_each(tasks, runs, "--task")
        read = {name: judgements_of_task(name, pool) for name in dict.fromkeys(wanted)}
    else:
        none: list[Path | None] = [None if str(file) == _NO_FILE else file for file in exclude]
        wanted = _one_each(list(zip(qrels, none or [None] * len(qrels), strict=True)), runs, "--qrels")
        read = {pair: judgements_from_files(*pair) for pair in dict.fromkeys(wanted)}
    measured = {key: with_measures(one, measures) for key, one in read.items()}
    return [measured[key] for key in wanted]


def _about(file: Path, error: ReasonEmbedError) -> ReasonEmbedError:
    """Name the run in an error that does not."""
    message = str(error)
    return error if message.startswith((str(file), "cannot")) else ReasonEmbedError(f"{file}: {message}")


def _say_remarks(runs: Sequence[Path], judgements: Sequence[Judgements], scored: Sequence[RunScores]) -> None:
    for judged in {id(one): one for one in judgements}.values():
        for line in judged.suspects:
            say(f"{judged.name}: {line}")
    for file, one in zip(runs, scored, strict=True):
        for line in one.remarks():
            say(f"{file}: {line}")


def _mean(judgements: Sequence[Judgements], scored: Sequence[RunScores]) -> dict[str, float] | None:
    """Return the macro mean over runs, if each is of another task."""
    if len(scored) < 2 or len({id(one) for one in judgements}) != len(scored):
        return None
    common = [name for name in scored[0].scores if all(name in one.scores for one in scored)]
    return {name: sum(one.scores[name] for one in scored) / len(scored) for name in common}


def _print_json(runs: Sequence[Path], judgements: Sequence[Judgements], scored: Sequence[RunScores]) -> None:
    import json

    found = [
        {
            "run": str(file),
            "task": judged.name,
            "queries": len(one.per_query),
            "scores": one.scores | {"main_score": one.scores[one.main_score]},
            "queries_without_rows": list(one.without_rows),
            "queries_without_labels": list(one.without_labels),
            "excluded_documents_removed": one.removed,
        }
        for file, judged, one in zip(runs, judgements, scored, strict=True)
    ]
    mean = _mean(judgements, scored)
    typer.echo(json.dumps({"runs": found} | ({"mean": mean} if mean else {}), indent=2))


def _print_table(
    runs: Sequence[Path],
    judgements: Sequence[Judgements],
    scored: Sequence[RunScores],
    wanted: Sequence[str],
) -> None:
    # A task's own measures first: its main score may be one of them.
    own = [name for judged in judgements for name in (judged.main_score, *judged.measures)]
    first = list(dict.fromkeys((*own, *wanted)))
    shown = [*first, *(name for name in _SHOWN if name not in first)][: max(len(first), len(_SHOWN))]
    rows = [
        [
            file.name,
            judged.name,
            f"{len(one.per_query):,}",
            *(_cell(one.scores, name) for name in shown),
        ]
        for file, judged, one in zip(runs, judgements, scored, strict=True)
    ]
    sections = []
    mean = _mean(judgements, scored)
    if mean is not None:
        sections = [len(rows) - 1]
        queries = sum(len(one.per_query) for one in scored)
        label = f"macro mean of {len(scored)}"
        rows.append([label, "", f"{queries:,}", *(_cell(mean, name) for name in shown)])
    title = "Scores in %, excluded documents out before the cut"
    show_table(["run", "labels", "queries", *shown], rows, title, sections=sections)


def _cell(scores: Mapping[str, float], name: str) -> str:
    return f"{100 * scores[name]:.2f}" if name in scores else _NO_FILE
