"""A page of samples: some rows of every subset as people read them, and what was dropped on the way."""

from __future__ import annotations

import heapq
from collections import Counter
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import xxhash

from reasonembed_mteb import __version__
from reasonembed_mteb.errors import DataError, missing_extra
from reasonembed_mteb.escaping import html_data
from reasonembed_mteb.files import read_json_lines, read_json_object
from reasonembed_mteb.synthesis.format import FOLDER, SUFFIX
from reasonembed_mteb.synthesis.shards import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reasonembed_mteb.synthesis.shards import Row

# Parts whose rows can be dropped, in the order of the steps; what the drafts dropped is among the queries.
_PARTS = ("clean", "sources", "queries", "mined", "labels", "reasoned")
# What is shown of a row.
_DOCUMENTS, _CHARACTERS, _EXAMPLES, _EXAMPLE_CHARACTERS = 5, 1_200, 3, 240


def sample_files(data: Path) -> dict[str, Path]:
    """Return the files of samples by subset.

    Args:
        data: The output folder of a run, a folder of files, or one file; published data has the same form.

    Raises:
        DataError: If there are none.
    """
    if data.is_file():
        return {_subset_name(data): data}
    folder = data / FOLDER if (data / FOLDER).is_dir() else data
    found = [file for pattern in ("*.jsonl", "*.jsonl.gz") for file in sorted(folder.glob(pattern))]
    if not found:
        msg = f"{data} holds no samples ({FOLDER}/*.jsonl); give the output folder of a run, or a file"
        raise DataError(msg)
    return {_subset_name(file): file for file in found}


def _subset_name(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(SUFFIX)


def samples_page(data: Path, rows: int = 50, seed: int = 42) -> str:
    """Return a page of samples.

    Args:
        data: See `sample_files`.
        rows: At most so many a subset.
        seed: Of the draw.

    Returns:
        HTML that asks for nothing else; every text of the data stays text.

    Raises:
        DataError: If there is nothing to show, or a file is broken.
        MissingExtraError: If jinja2 is not installed.
    """
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise missing_extra("jinja2", "report") from error
    subsets = [_subset(name, file, rows, seed) for name, file in sample_files(data).items()]
    template = files("reasonembed_mteb") / "synthesis" / "templates" / "samples.html.jinja"
    css = (files("reasonembed_mteb") / "reporting" / "page.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    total = sum(subset["total"] for subset in subsets)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        title="Samples of training data",
        summary=f"{total:,} samples in {len(subsets)} subsets; {rows} of each at most, drawn by seed {seed}.",
        version=__version__,
        # Our own file.
        css=markupsafe.Markup(css),
        subsets=html_data(subsets),
    )


def _subset(name: str, file: Path, most: int, seed: int) -> dict[str, Any]:
    """Return what the page says of one subset; the file is read row by row."""
    counts: Counter[str] = Counter()

    def drawn() -> Iterator[tuple[int, int, Row]]:
        for number, row in read_json_lines(file):
            if not isinstance(row, dict):
                msg = f"{file}:{number} is no JSON object; give a file of samples"
                raise DataError(msg)
            counts.update(rows=1, reasoning=bool(row.get("reasoning_query")))
            counts.update(positives=len(_texts(row, "pos")), negatives=len(_texts(row, "neg")))
            yield xxhash.xxh3_64_intdigest(str(number).encode(), seed=seed), number, row

    lowest = heapq.nsmallest(most, drawn(), key=lambda one: one[:2])
    chosen = sorted(((number, row) for _, number, row in lowest), key=lambda one: one[0])
    total = counts["rows"]
    drops = _drops(file, name)
    about = f"{total:,} samples, {counts['reasoning']:,} with a reasoning query"
    if total:
        means = [counts[side] / total for side in ("positives", "negatives")]
        about += f"; {means[0]:.1f} positives and {means[1]:.1f} negatives on average"
    return {
        "name": name,
        "total": total,
        "about": f"{about}. {len(chosen)} are shown.",
        "drops": drops,
        "dropped": f"{sum(drop['total'] for drop in drops):,}",
        "rows": [_row(number, row) for number, row in chosen],
    }


def _texts(row: Row, side: str) -> list[str]:
    given = row.get(side)
    return [str(text) for text in given] if isinstance(given, list) else []


def _row(number: int, row: Row) -> dict[str, Any]:
    query, reasoning = str(row.get("query") or ""), str(row.get("reasoning_query") or "")
    return {
        "number": number,
        "prompt": str(row.get("prompt") or ""),
        "query": query,
        # Ours begins with the query, which stands above it already.
        "reasoning": reasoning.removeprefix(query).strip(),
        "sides": [_side(row, "pos", "positive", "good"), _side(row, "neg", "negative", "bad")],
    }


def _side(row: Row, key: str, kind: str, colour: str) -> dict[str, Any]:
    texts = _texts(row, key)
    left = len(texts) - _DOCUMENTS
    return {
        "kind": kind,
        "colour": colour,
        "title": f"{len(texts)} {kind}{'' if len(texts) == 1 else 's'}",
        "texts": [_clipped(text) for text in texts[:_DOCUMENTS]],
        "more": f"and {left} more" if left > 0 else "",
    }


def _clipped(text: str) -> dict[str, str]:
    left = len(text) - _CHARACTERS
    return {"shown": text[:_CHARACTERS], "more": f"... {left:,} more characters" if left > 0 else ""}


def _drops(file: Path, subset: str) -> list[dict[str, Any]]:
    """Return what the steps dropped, where the file lies in the output of a run."""
    run = file.parent.parent
    if file.parent.name != FOLDER:
        return []
    found = [drop for part in _PARTS for drop in _dropped_rows(run / part / subset, part)]
    note = read_json_object(run / "format" / f"{subset}.json") or {}
    found += [_drop("format", why, count, []) for why, count in note.get("dropped", {}).items()]
    return found


def _dropped_rows(folder: Path, part: str) -> Iterator[dict[str, Any]]:
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for file in sorted(folder.glob("[0-9]*.jsonl")):
        for row in read_rows(file):
            reasons = {str(row["dropped"]): 1} if "dropped" in row else {}
            pairs = {f"pair not judged: {why}": count for why, count in row.get("unjudged", {}).items()}
            for why, count in {**reasons, **pairs}.items():
                counts[why] += count
                if len(shown := examples.setdefault(why, [])) < _EXAMPLES:
                    shown.append(_example(row))
    for why, count in counts.most_common():
        yield _drop(part, why, count, examples[why])


def _example(row: Row) -> str:
    text = str(row.get("query") or row.get("source") or row.get("id") or "")
    return f"{text[:_EXAMPLE_CHARACTERS]} ..." if len(text) > _EXAMPLE_CHARACTERS else text


def _drop(part: str, why: str, count: int, examples: list[str]) -> dict[str, Any]:
    return {"part": part, "reason": why, "total": count, "count": f"{count:,}", "examples": examples}
