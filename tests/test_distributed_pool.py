"""A run whose texts are encoded elsewhere: the same vectors, in the same order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from engine_data import Served, served_encoder, serving

from reasonembed_mteb import ReasonEmbed
from reasonembed_mteb.distributed import pool as pooling
from reasonembed_mteb.distributed.pool import ClusterPool
from reasonembed_mteb.encoding import TextsError, accelerate
from reasonembed_mteb.encoding.engines.probing import Probe
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXTS = [f"plants need light {n} " * (1 + n % 4) for n in range(50)]


class Here:
    """A cluster of one machine, this one."""

    gpus, threads, workers = 0.0, 1, 2

    def __init__(self) -> None:
        self.calls = 0

    def actors(self, make: Any, held: Any) -> list[Any]:
        """Copy what is held, as a cluster does."""
        import copy

        return [make(copy.deepcopy(held)) for _ in range(self.workers)]

    def ask(self, actors: list[Any], calls: list[Any]) -> Iterator[Any]:
        """Call one after the other."""
        for number, call in enumerate(calls):
            self.calls += 1
            yield actors[number % len(actors)].encode(*call)


@pytest.fixture
def pooled(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a model that is encoded elsewhere."""
    monkeypatch.setattr(pooling, "PART_TOKENS", 60)
    model = accelerate(encoder)
    here = Here()
    model.use_pool(ClusterPool(here, model))  # type: ignore[arg-type,attr-defined]
    model.here = here  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    "options", [{}, {"prompt": "see: "}, {"truncate_dim": 8}, {"normalize_embeddings": True}]
)
def test_vectors_and_counts_are_the_models_own(pooled: Any, options: dict[str, Any]) -> None:
    away = pooled.encode(TEXTS, **options)
    counts, tokens = pooled.last_token_counts, pooled.encoding_stats.tokens
    assert pooled.here.calls > 5
    pooled.use_pool(None)
    pooled.encoding_stats.reset()
    here = pooled.encode(TEXTS, **options)
    assert np.allclose(away, here, atol=1e-6)
    assert np.array_equal(counts, pooled.last_token_counts)
    assert tokens == pooled.encoding_stats.tokens


def test_the_length_in_force_goes_along(pooled: Any) -> None:
    pooled.max_seq_length = 4
    away = pooled.encode(TEXTS, convert_to_tensor=True)
    pooled.use_pool(None)
    assert torch.allclose(away, pooled.encode(TEXTS, convert_to_tensor=True), atol=1e-6)


def test_one_text_and_none(pooled: Any) -> None:
    assert pooled.encode("one").shape == (32,)
    assert len(pooled.encode([])) == 0


def test_a_named_device_is_encoded_on_here(pooled: Any) -> None:
    pooled.encode(TEXTS[:2], device="cpu")
    assert pooled.here.calls == 0


def test_a_text_that_fails_is_named_by_its_place_among_all(
    pooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = pooling.ModelHolder.encode

    def failing(self: Any, texts: list[str], *rest: Any) -> Any:
        if TEXTS[30] in texts:
            raise TextsError([texts.index(TEXTS[30])], "cannot be encoded")
        return own(self, texts, *rest)

    monkeypatch.setattr(pooling.ModelHolder, "encode", failing)
    with pytest.raises(TextsError, match=r"position\(s\) 30 cannot"):
        pooled.encode(TEXTS)


def test_an_engine_starts_anew_on_every_worker(
    qwen3_dir: Path, pooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    expected = model.encode(TEXTS, show_progress_bar=False)
    served = Served(model)
    started = []
    own = Probe.start
    monkeypatch.setattr(Probe, "start", lambda probe: started.append(probe) or own(probe))
    with serving(served) as server:
        away = served_encoder(qwen3_dir, server).model
        away.use_pool(ClusterPool(pooled.here, away))
        found = away.encode(TEXTS, show_progress_bar=False)
        # The one here, and one on each worker.
        assert len(started) == 1 + pooled.here.workers
        assert pooled.here.calls > 5
        assert away.encoding_stats.tokens == model.encoding_stats.tokens
        for actor in away._elsewhere._actors:
            actor._model.engine.close()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_not_handed_on_is_refused(pooled: Any) -> None:
    with pytest.raises(ReasonEmbedError, match="is not handed on"):
        pooled.encode(TEXTS, output_value="token_embeddings")


def test_a_run_asks_for_it_and_ends_it(encoder: Any) -> None:
    from reasonembed_mteb.evaluation.variants import use_pool

    model = accelerate(encoder)
    made = Here()
    use_pool(model, partial(ClusterPool, made))  # type: ignore[arg-type]
    model.encode(TEXTS[:3])
    assert made.calls == 1
    use_pool(model, None)
    model.encode(TEXTS[:3])
    assert made.calls == 1
