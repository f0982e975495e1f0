"""Lengths are lowered to the protocol's, never raised, and given back."""

from __future__ import annotations

import math

import pytest

from reasonembed_mteb.retrieval.lengths import capped_length, current_length


class Sized:
    """Stands for a SentenceTransformer: a class with the attribute, an instance with a value."""

    max_seq_length: float | None = None

    def __init__(self, length: float | None) -> None:
        """Set the length."""
        self.max_seq_length = length


class Wrapper:
    """Stands for one of MTEB's wrappers."""

    def __init__(self, model: object) -> None:
        """Keep the model."""
        self.model = model


@pytest.mark.parametrize(
    ("own", "limit", "inside"),
    [(256, 8192, 256), (32768, 8192, 8192), (None, 512, 512), (math.inf, 512, 512), (512, 512, 512)],
)
def test_never_raised_and_given_back(own: float | None, limit: int, inside: int) -> None:
    sized = Sized(own)
    with capped_length(Wrapper(Wrapper(sized)), limit) as length:
        assert length == inside
        assert sized.max_seq_length == inside
    assert sized.max_seq_length == own


def test_given_back_after_an_error() -> None:
    sized = Sized(1000)
    with pytest.raises(ValueError, match="stop"), capped_length(sized, 10):
        raise ValueError("stop")
    assert sized.max_seq_length == 1000


def test_every_part_of_a_hybrid_is_held() -> None:
    class Hybrid:
        """Stands for MTEB's HybridSearch."""

        def __init__(self) -> None:
            """Keep two models, one without a length."""
            self.wrapped_models = [Wrapper(Sized(900)), object(), Wrapper(Sized(300))]

    hybrid = Hybrid()
    with capped_length(hybrid, 500) as length:
        assert length == 300
        assert hybrid.wrapped_models[0].model.max_seq_length == 500
    assert hybrid.wrapped_models[0].model.max_seq_length == 900


def test_a_model_without_length_has_none() -> None:
    with capped_length(object(), 512) as length:
        assert length is None
    assert current_length(object()) is None
