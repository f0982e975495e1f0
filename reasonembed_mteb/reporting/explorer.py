"""What the page's query explorer holds: every score, and the texts of the queries that differ most."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.reporting.queries import SubsetScores, local_texts, read_frames, read_rankings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.reporting.queries import RankedDocuments
    from reasonembed_mteb.reporting.tables import ScoreTable

    Floats = NDArray[np.float64]

# With more models, fewer queries get texts, and only the best and the worst of each show their documents.
_FEW_MODELS = 4
# Queries of a table that get their texts and documents, with few models and with many.
_QUERIES, _QUERIES_OF_MANY = 300, 40
_DOCUMENTS = 5
_QUERY_CHARACTERS, _DOCUMENT_CHARACTERS = 1500, 500
# Bytes of texts and documents in the page; the page itself must stay under 5 MB.
BUDGET = 2_500_000
# Scores are kept as whole thousandths.
_SCALE = 1000


@dataclass
class _Room:
    """Bytes that are left for texts.

    Attributes:
        left: Bytes.
    """

    left: int = BUDGET

    def take(self, content: Any) -> bool:  # noqa: ANN401 - plain data
        """Take the room that some data needs, if there is enough."""
        size = len(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass
class _Chosen:
    """Queries of one subset that get texts, and whose documents are shown.

    Attributes:
        frame: Scores of the subset.
        places: By place of the query, the rows of the table whose documents are shown.
    """

    frame: SubsetScores
    places: dict[int, list[int]] = field(default_factory=dict)


def explore(
    tables: Sequence[ScoreTable], budget: int = BUDGET
) -> tuple[list[dict[str, Any] | None], list[str]]:
    """Return the explorer's data for each table.

    Args:
        tables: See `score_tables`.
        budget: Bytes for texts and documents, shared by the tables.

    Returns:
        For each table ``{"subsets": [...], "documents": {...}}`` or None where nobody kept scores by query,
        and a line for each file that was left out.
    """
    explored: list[dict[str, Any] | None] = []
    problems: list[str] = []
    for left, table in zip(range(len(tables), 0, -1), tables, strict=True):
        frames, lines = read_frames(table)
        problems += lines
        # What one table leaves over goes to those after it.
        room = _Room(budget // left)
        explored.append(_explored(table, frames, room) if frames else None)
        budget -= budget // left - room.left
    return explored, problems


def _explored(table: ScoreTable, frames: Sequence[SubsetScores], room: _Room) -> dict[str, Any]:
    chosen = _choose(frames)
    documents: dict[str, str] = {}
    subsets = [_subset(table, frame, chosen.get(frame.column), documents, room) for frame in frames]
    return {"subsets": subsets, "documents": documents}


def _subset(
    table: ScoreTable, frame: SubsetScores, chosen: _Chosen | None, documents: dict[str, str], room: _Room
) -> dict[str, Any]:
    """Return one subset: queries, scores, and what is shown of the chosen ones; add texts to `documents`."""
    kept: dict[str, Any] = {}
    missing = ""
    if chosen is not None:
        found = _found(table, chosen)
        ids = {frame.queries[place] for place in chosen.places}
        named = {name for one in found.values() for f in one.values() for name in _named(f)}
        texts = local_texts(frame.task, ids, named)
        missing = texts.missing
        for place in chosen.places:
            query = frame.queries[place]
            shown = _shown(query, place, chosen, found, texts.queries)
            new = {
                _key(frame.column, name): _cut(texts.documents[name], _DOCUMENT_CHARACTERS)
                for name in _names(shown)
                if name in texts.documents and _key(frame.column, name) not in documents
            }
            if room.take([query, shown, new]):
                kept[query] = shown
                documents.update(new)
    return {
        "column": frame.column,
        "task": frame.task,
        "queries": frame.queries,
        "scores": [_thousandths(row) for row in frame.scores],
        "kept": kept,
        "missing": missing,
    }


def _choose(frames: Sequence[SubsetScores]) -> dict[str, _Chosen]:
    """Choose the queries on which models differ most, overall and for each pair of the first few."""
    few = len(frames[0].scores) <= _FEW_MODELS
    count = _QUERIES if few else _QUERIES_OF_MANY
    chosen: dict[str, _Chosen] = {}
    for _, frame, place in _largest(frames, _spread, count):
        _add(chosen, frame, place, _rows_shown(frame.scores[:, place]))
    for pair in combinations(range(min(_FEW_MODELS, len(frames[0].scores))), 2):
        for _, frame, place in _largest(frames, partial(_gap, pair=pair), count // 2):
            _add(chosen, frame, place, [*_rows_shown(frame.scores[:, place]), *pair])
    return chosen


def _largest(
    frames: Sequence[SubsetScores], measure: Callable[[Floats], Floats], count: int
) -> list[tuple[float, SubsetScores, int]]:
    """Return the queries with the largest measure, as ``(measure, frame, place)``."""
    measured = [
        (value, frame, place)
        for frame in frames
        for place, value in enumerate(measure(frame.scores).tolist())
        if np.isfinite(value)
    ]
    return sorted(measured, key=lambda one: -one[0])[:count]


def _add(chosen: dict[str, _Chosen], frame: SubsetScores, place: int, rows: Sequence[int]) -> None:
    places = chosen.setdefault(frame.column, _Chosen(frame)).places
    known = [row for row in rows if np.isfinite(frame.scores[row, place])]
    places[place] = list(dict.fromkeys([*places.get(place, []), *known]))


def _gap(scores: Floats, pair: tuple[int, int]) -> Floats:
    return np.asarray(np.abs(scores[pair[0]] - scores[pair[1]]), dtype=np.float64)


def _spread(scores: Floats) -> Floats:
    # A query that one model alone answered differs by nothing, and NaN only where nobody did.
    return np.asarray(np.fmax.reduce(scores) - np.fmin.reduce(scores), dtype=np.float64)


def _rows_shown(scores: Floats) -> list[int]:
    """Return the rows whose documents are shown: all of a few, else the best and the worst of the query."""
    held = [int(row) for row in np.flatnonzero(np.isfinite(scores))]
    if len(held) <= _FEW_MODELS:
        return held
    return list(
        dict.fromkeys([max(held, key=lambda row: scores[row]), min(held, key=lambda row: scores[row])])
    )


def _found(table: ScoreTable, chosen: _Chosen) -> dict[int, dict[str, RankedDocuments]]:
    """Read what the rows found that are shown, each file once."""
    wanted: dict[int, list[str]] = {}
    for place, rows in chosen.places.items():
        for row in rows:
            wanted.setdefault(row, []).append(chosen.frame.queries[place])
    found = {}
    for row, queries in wanted.items():
        try:
            found[row] = read_rankings(table.rows[row].cells[chosen.frame.column], queries, _DOCUMENTS)
        except DataError:
            # Its scores could be read, and are shown; the explorer says that the documents are not here.
            continue
    return found


def _named(found: RankedDocuments) -> list[str]:
    return [*found.gold, *(name for name, _ in found.hits)]


def _shown(
    query: str,
    place: int,
    chosen: _Chosen,
    found: dict[int, dict[str, RankedDocuments]],
    texts: dict[str, str],
) -> dict[str, Any]:
    held = {row: found[row][query] for row in chosen.places[place] if query in found.get(row, {})}
    gold = next((one.gold for one in held.values()), [])
    hits = {str(row): [[name, round(score, 4)] for name, score in one.hits] for row, one in held.items()}
    text = _cut(texts[query], _QUERY_CHARACTERS) if query in texts else None
    return {"text": text, "gold": gold, "hits": hits}


def _names(shown: dict[str, Any]) -> Iterable[str]:
    return dict.fromkeys([*shown["gold"], *(name for hits in shown["hits"].values() for name, _ in hits)])


def _key(column: str, document: str) -> str:
    # Subsets have corpora of their own, whose ids may coincide.
    return f"{column}\t{document}"


def _cut(text: str, length: int) -> str:
    text = text.strip()
    return text if len(text) <= length else f"{text[:length].rstrip()}…"


def _thousandths(scores: Floats) -> list[int | None] | None:
    if not np.isfinite(scores).any():
        return None
    return [None if np.isnan(score) else round(score * _SCALE) for score in scores.tolist()]
