"""A local copy of one subset in BRIGHT's layout, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = {"d 1": "one", "d2": "two", "d3": "", "d4": "four"}


def example(**changes: Any) -> dict[str, Any]:
    """Make one row of ``examples`` with every column that BRIGHT has."""
    row: dict[str, Any] = {
        "id": "q1",
        "query": "why?",
        "reasoning": "because",
        "excluded_ids": ["N/A"],
        "gold_ids": ["d2"],
        "gold_ids_long": ["p1"],
        "gold_answer": "so",
    }
    return row | changes


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows as one parquet file."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def set_examples(folder: Path, *examples: dict[str, Any]) -> None:
    """Replace the queries of the local copy."""
    write(folder, "examples/biology-00000-of-00001.parquet", list(examples))
