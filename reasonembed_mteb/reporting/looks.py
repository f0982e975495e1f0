"""Single queries as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasonembed_mteb.reporting.formats import MISSING, Grid, as_table, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reasonembed_mteb.reporting.inspecting import Document, Listed, Look

# Characters of a text that a list and a look show; --json has all.
_LISTED, _SHOWN = 90, 300


def listed_grid(listed: Sequence[Listed], models: Sequence[str]) -> Grid:
    """Return queries as a table: scores in per cent, and the beginning of the text.

    Args:
        listed: Queries.
        models: Labels, one for each score.
    """
    gap = len(models) == 2
    rows = tuple(
        (
            one.task,
            one.query,
            _beginning(one.text, _LISTED),
            *(percent(score) for score in one.scores),
            *((f"{100 * (one.scores[0] - one.scores[1]):+.2f}",) if gap else ()),
        )
        for one in listed
    )
    title = f"Where {models[0]} and {models[1]} differ most" if gap else f"Where {models[0]} is worst"
    head = ("task", "query", "text", *models, *(("difference",) if gap else ()))
    return Grid(f"{title}, in %", head, rows, words=3)


def as_look(look: Look, width: int | None = None) -> str:
    """Return one query with what models found, for a terminal.

    Args:
        look: The query.
        width: Columns of the terminal; None for a file.
    """
    lines = [f"{look.task}, query {look.query}", look.text or look.missing or "(its text is not at hand)", ""]
    for answer in look.answers:
        head = ("rank", "document", "score", "relevant", "text")
        top = tuple(_document_row(document) for document in answer.top)
        title = f"{answer.model}: {look.metric} {percent(answer.score)} %"
        lines.append(as_table(Grid(title, head, top, words=5), width))
        gold = tuple(_document_row(document) for document in answer.gold)
        lines.append(as_table(Grid("relevant documents", head, gold, words=5), width))
    return "\n".join(lines)


def _document_row(document: Document) -> tuple[str, ...]:
    return (
        MISSING if document.rank is None else str(document.rank),
        document.id,
        MISSING if document.score is None else f"{document.score:.4f}",
        "yes" if document.relevant else "",
        _beginning(document.text, _SHOWN),
    )


def _beginning(text: str | None, length: int) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
