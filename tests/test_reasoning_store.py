"""Reasonings on disk: what goes in comes out, and what is none is told."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from reasonembed_mteb.endpoints.endpoint import Reply
from reasonembed_mteb.errors import DataError
from reasonembed_mteb.llm.cache import AnswerCache
from reasonembed_mteb.reasoning.store import (
    Reasoning,
    ReasoningStore,
    known_models,
    reasoning_key,
    remember_model,
)

if TYPE_CHECKING:
    from pathlib import Path

VECTOR = np.array([0.1, -2.5, 3e-8], dtype=np.float32)
ONE = Reasoning("Because — \u2028 of light", "length", 5, 9, 0.25, (4, 7, 9), VECTOR)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    key, other = reasoning_key({"prompt": [1, 2]}), reasoning_key({"prompt": [1, 3]})
    with ReasoningStore(tmp_path) as store:
        store.add([(key, ONE)])
        assert len(store) == 1
    with ReasoningStore(tmp_path) as store:
        found = store.find([key, other])
    assert list(found) == [key]
    assert found[key].vector is not None
    assert found[key].vector.dtype == np.float32
    np.testing.assert_array_equal(found[key].vector, VECTOR)
    assert dataclasses.replace(found[key], vector=None) == dataclasses.replace(ONE, vector=None)


def test_a_key_is_everything_that_decides() -> None:
    parts = {"model": "m", "prompt": [1, 2], "decoding": {"max_tokens": 4, "seed": 0}}
    keys = {reasoning_key(parts)}
    for changed in ({"model": "n"}, {"prompt": [1]}, {"decoding": {"max_tokens": 4, "seed": 1}}):
        keys.add(reasoning_key(parts | changed))
    assert len(keys) == 4
    assert reasoning_key(dict(reversed(parts.items()))) == reasoning_key(parts)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"text": "x", "stop": "end", "seconds": 1, "ids": []}'])
def test_a_file_of_other_answers(text: str, tmp_path: Path) -> None:
    key = reasoning_key({})
    with AnswerCache(tmp_path) as cache:
        cache.add([(key, Reply(text, None))])
    with ReasoningStore(tmp_path) as store, pytest.raises(DataError, match="holds what is no reasoning"):
        store.find([key])


def test_models_are_known_without_their_weights(tmp_path: Path) -> None:
    assert known_models(tmp_path, "a") == []
    ReasoningStore(tmp_path).close()
    # An earlier version's store says nothing.
    assert known_models(tmp_path, "a") is None
    for name, identity in (("a", "1"), ("a", "2"), ("a", "1"), ("b", "3")):
        remember_model(tmp_path, name, identity)
    assert [known_models(tmp_path, name) for name in "abc"] == [["1", "2"], ["3"], []]
    (tmp_path / "models.json").write_text("[")
    assert known_models(tmp_path, "a") is None
