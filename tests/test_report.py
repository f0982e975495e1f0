"""The command ``reasonembed report``: what it prints, writes and refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from reporting_data import (
    BIOLOGY,
    write_all,
    write_result,
)

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command


def test_the_command_prints_names_what_it_left_out_and_fails(tmp_path: Path, command: Command) -> None:
    write_all(tmp_path, "x/a", [0.5] * 12)
    status, out, err = command("report", str(tmp_path))
    assert (status, err) == (0, "")
    assert "x/a" in out
    bad = write_result(tmp_path, "x/b", BIOLOGY, float("nan"))
    status, out, err = command("report", str(tmp_path))
    assert status == 1
    assert f"LEFT OUT {bad}" in err
    assert "x/a" in out


@pytest.mark.parametrize("kind", ["markdown", "html", "svg"])
def test_an_output_that_exists_is_not_replaced(tmp_path: Path, command: Command, kind: str) -> None:
    if kind == "svg":
        pytest.importorskip("matplotlib")
    write_all(tmp_path, "x/a", [0.5] * 12)
    arguments = ["report", str(tmp_path), "--format", kind, "--output", "out"]
    assert command(*arguments)[0] == 0
    status, _, err = command(*arguments)
    assert status == 2
    assert "--overwrite" in err
    assert command(*arguments, "--overwrite")[0] == 0


def test_a_page_and_pictures_need_an_output(tmp_path: Path, command: Command) -> None:
    write_all(tmp_path, "x/a", [0.5] * 12)
    for kind, what in (("html", "FILE.html"), ("png", "FOLDER")):
        status, _, err = command("report", str(tmp_path), "--format", kind)
        assert status == 2
        assert f"--output {what}" in err
