"""The demonstration, on what is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.evaluation import demo, runner

if TYPE_CHECKING:
    from collections.abc import Callable

    Score = Callable[..., tuple[list[runner.Outcome], list[str]]]


pytestmark = pytest.mark.usefixtures("registered")


def test_demo_says_what_to_install_and_runs_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    assert [meta.name for meta in demo.demo_models(said.append)] == [demo.RANDOM]
    assert len(said) == 2
    assert all('pip install "reasonembed-mteb[demo]"' in line for line in said)
