"""What an installation lacks, in one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasonembed_mteb.evaluation import doctor

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from conftest import Command


def test_doctor_names_what_is_broken(
    command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, _ = command("doctor")
    assert status == 0
    assert "2 tasks: ReasonEmbedBrightBiology" in out
    assert "BROKEN" not in out
    monkeypatch.setenv("REASONEMBED_R2MED_PATH", str(tmp_path / "gone"))
    status, out, _ = command("doctor")
    assert status == 1
    assert out.count("BROKEN") == 1
    assert "no folder" in out
    del data


def test_doctor_names_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package",))
    broken = [finding for finding in doctor.examine() if not finding.ok]
    assert [finding.found for finding in broken] == ["missing: pip install no-such-package"]
