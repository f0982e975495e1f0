"""Which documents are asked about, and what the answers mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from remixer_script import document, make_config
from stub_server import StubServer, failure

from reasonembed_mteb.synthesis.clean import cleaned, rank
from reasonembed_mteb.synthesis.pipeline import make_client, synthesize
from reasonembed_mteb.synthesis.step import Run

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Reply, Seen


def rows_after(tmp_path: Path, server: StubServer, more: str = "") -> dict[str, dict[str, object]]:
    config = make_config(tmp_path, server.base_url, more)
    synthesize(config, ["clean"])
    run = Run(config, make_client(config))
    return {row["id"]: row for row in cleaned(run, config.subset[0]).rows(dropped=True)}


def test_every_document_gets_a_row_and_only_candidates_a_request(tmp_path: Path) -> None:
    def script(seen: Seen) -> Reply | str:
        for number, reply in ((3, "<verdict>no</verdict>"), (4, "maybe"), (5, "<verdict>Yes</verdict>")):
            if document(number) in seen.text:
                return reply
        if document(6) in seen.text:
            return failure(
                400, "This model's maximum context length is 100 tokens", code="context_length_exceeded"
            )
        return "<verdict>yes</verdict>"

    with StubServer(script) as server:
        rows = rows_after(tmp_path, server)
        assert server.total == 57
        assert all("about biology?" in seen.text for seen in server.seen)
    assert len(rows) == 60
    dropped = {name: row["dropped"] for name, row in rows.items() if "dropped" in row}
    assert dropped == {
        "d 0": "gold",
        "d 1": "excluded",
        "d 2": "too short",
        "d 3": "another topic",
        "d 4": "unparsable verdict",
        "d 6": "context_length",
    }
    assert rows["d 5"]["tokens"] == [10, 5]
    assert "tokens" not in rows["d 0"]


def test_nothing_is_asked_where_nothing_is_to_be(tmp_path: Path) -> None:
    with StubServer() as server:
        rows = rows_after(tmp_path, server, "[clean]\nskip = true")
        assert server.total == 0
    assert sum("dropped" not in row for row in rows.values()) == 57


@pytest.mark.parametrize("most", [1, 20])
def test_only_so_many_are_asked_about(most: int, tmp_path: Path) -> None:
    with StubServer(lambda seen: "<verdict>yes</verdict>") as server:
        rows = rows_after(tmp_path, server, f"[clean]\nmax_documents = {most}")
        assert server.total == most
    kept = {name for name, row in rows.items() if "dropped" not in row}
    fit = [name for name in rows if name not in ("d 0", "d 1", "d 2")]
    assert kept == set(sorted(fit, key=lambda name: rank(42, name))[:most])
