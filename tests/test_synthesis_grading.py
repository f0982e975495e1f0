"""The annotator as a reranker: grades, medians of samples, and pairs without a grade."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from stub_server import Seen, StubServer

from reasonembed_mteb.endpoints.endpoint import Endpoint
from reasonembed_mteb.llm.client import LLMClient
from reasonembed_mteb.synthesis.config import AnnotateSection
from reasonembed_mteb.synthesis.grading import GradingReranker
from reasonembed_mteb.synthesis.prompts import bright_domains, load_prompts

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("openai")
pytest.importorskip("tenacity")

PAIRS = [("why?", "<1>"), ("why?", "<4>"), ("how?", "prose"), ("how?", "x" * 100), ("how?", "<5>")]


def grade(seen: Seen) -> str:
    document = seen.text.partition("<document>")[2]
    grades = [n for n in range(1, 6) if f"<{n}>" in document]
    return f"Because. <score>{grades[0]}</score>" if grades else "It helps a lot."


def test_grades_and_pairs_without_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    section = AnnotateSection(samples=3, max_characters=50)
    with StubServer(grade) as server, LLMClient(Endpoint(server.base_url, "stub"), tmp_path) as client:
        prompt, domain = load_prompts()["annotate"], bright_domains()["biology"]
        reranker = GradingReranker(client, prompt, domain, section)
        scores = reranker.score(PAIRS)
        assert [None if np.isnan(one) else one for one in scores] == [1, 4, None, None, 5]
        # The long pair was not asked for; the others three times each.
        assert server.total == 12
        assert reranker.score(PAIRS[:2]).tolist() == [1, 4]
        assert server.total == 12
        assert reranker.score([]).shape == (0,)
    assert "{'unparsable': 1, 'too long': 1}" in caplog.text
    other = GradingReranker(client, prompt, bright_domains()["economics"], section)
    assert reranker.identity != other.identity
