"""`reasonembed latents`: what it writes, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import save_decoder

from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.reasoning.latents import find_latents

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command


def test_latents_are_added(command: Command, tmp_path: Path) -> None:
    save_decoder(tmp_path / "bare")
    status, out, error = command("latents", "add", "bare", "--count", "3", "--output", "made")
    assert (status, out) == (0, "")
    assert "3 latent tokens (ids 371 to 373): made" in error
    assert find_latents(ReasonEmbed(str(tmp_path / "made"), device="cpu").tokenizer).count == 3
    status, _, error = command("latents", "add", "bare", "--count", "3", "--output", "made")
    assert status == 2
    assert "not an empty folder" in error


def test_a_count_of_none(command: Command, tmp_path: Path) -> None:
    save_decoder(tmp_path / "bare")
    for count in ("0", "-2"):
        status, _, error = command("latents", "add", "bare", f"--count={count}", "--output", "made")
        assert status == 2
        assert f"{count} latent tokens: give at least 1" in error
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("latents", "add", "absent", "--count", "3", "--output", "made"),
        ("reason-run", "-m", "absent", "-b", "ReasonMini", "--tokens", "4"),
        ("train-reranker", "absent", "--data", "rows", "--output", "made"),
        ("mine", "absent", "--output", "made"),
        ("samples", "absent", "--output", "made"),
    ],
    ids=lambda given: given[0],
)
def test_a_seed_that_no_generator_takes(arguments: tuple[str, ...], command: Command) -> None:
    for seed in (-1, 10**23):
        status, out, error = command(*arguments, f"--seed={seed}")
        assert (status, out) == (2, "")
        # Before anything is loaded: nothing here is there.
        assert error.startswith("reasonembed: Invalid value for '--seed':")
