"""Models run another way: dimensions, compression, fusion, devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.evaluation import resolving, runner, variants
from reasonembed_mteb.evaluation.variants import check_devices

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Score = Callable[..., tuple[list[runner.Outcome], list[str]]]


pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.parametrize(
    ("wish", "said"), [("cuda:99", "cuda:99"), ("nothing", "'nothing'"), (" , ", "names no device")]
)
def test_a_device_that_is_not_there_is_one_line(wish: str, said: str) -> None:
    with pytest.raises(ReasonEmbedError, match=said) as error:
        check_devices(wish)
    assert "give cpu, cuda" in str(error.value)
    assert "\n" not in str(error.value)


def test_devices_are_read_in_order() -> None:
    assert check_devices(None) == []
    assert check_devices("cpu, cpu") == ["cpu", "cpu"]


def test_variants_refuse_what_does_not_fit(qwen3_dir: Path) -> None:
    dense, bm25 = resolving.resolve_model(str(qwen3_dir)), resolving.resolve_model("bm25")
    with pytest.raises(ReasonEmbedError, match="for dense models"):
        variants.truncated(bm25, 8)
    with pytest.raises(ReasonEmbedError, match="has 32 dimensions; give fewer"):
        variants.load_variant(variants.truncated(dense, 64), device="cpu")
    with pytest.raises(ReasonEmbedError, match="did you mean 'int8'"):
        variants.compressed(dense, "int9")
    with pytest.raises(ReasonEmbedError, match="did you mean 'rrf'"):
        variants.fused([bm25, dense], "rrff")
    with pytest.raises(ReasonEmbedError, match="needs different models"):
        variants.fused([dense, dense], "rrf")
