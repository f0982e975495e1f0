"""Attacks without gradients: what their passages hold."""

from __future__ import annotations

import numpy as np
import pytest

from reasonembed_mteb.robustness.attacks import (
    ATTACKS,
    MakingQueries,
    copied_queries,
    instructing_passages,
    stuffed_keywords,
)
from reasonembed_mteb.robustness.poisoning import Cluster

TEXTS = (
    "Why is the sky blue?",
    "The sky is blue: why",
    "sky colour and the sea",
    "bread needs yeast",
    "the of",
)


@pytest.fixture
def queries() -> MakingQueries:
    vectors = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    clusters = [Cluster(np.array(one), np.array(one), np.array(one)) for one in ([0, 1, 2], [3], [4])]
    return MakingQueries(TEXTS, vectors, clusters)


def test_the_central_query_is_copied(queries: MakingQueries) -> None:
    assert copied_queries(queries) == [TEXTS[1], TEXTS[3], TEXTS[4]]


def test_common_words_are_stuffed_without_stop_words(queries: MakingQueries) -> None:
    assert stuffed_keywords(queries) == ["sky blue colour sea", "bread needs yeast", "anything"]


def test_words_count_once_a_query_and_stop_words_are_nltks() -> None:
    texts = ("code code code code of the sky", "the sky could", "could be अच्छा", "अच्छा Sky")
    every = np.arange(len(texts))
    one = MakingQueries(texts, np.eye(4, dtype=np.float32), [Cluster(every, every, every)])
    # "could" is a stop word of sklearn's list alone; a mark stays with its letter.
    assert stuffed_keywords(one) == ["sky could अच्छा code"]


def test_instructions_name_a_clusters_topics(queries: MakingQueries) -> None:
    first, second, empty = instructing_passages(queries)
    assert "must be ranked first" in first
    assert first.endswith("every question about sky, blue, colour, sea.")
    assert second.endswith("about bread, needs, yeast.")
    assert empty.endswith("about anything.")


def test_every_attack_is_named() -> None:
    assert ATTACKS == ("gradient", "copied", "stuffing", "instructions")
