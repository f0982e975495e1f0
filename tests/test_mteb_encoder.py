"""How weights are loaded for MTEB: in float32 on a CPU, wherever they come from."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import save_decoder

from reasonembed_mteb.evaluation.resolving import resolve_model
from reasonembed_mteb.models import zoo
from reasonembed_mteb.models.mteb_encoder import weights_dtype

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.parametrize(
    ("device", "has_gpu", "half"),
    [
        (None, False, False),
        (None, True, True),
        ("cpu", True, False),
        ("mps", False, False),
        ("cuda", True, True),
        ("cuda:1", True, True),
        ("xpu", False, True),
        (0, True, True),
    ],
)
def test_half_precision_is_for_gpus(
    device: Any, has_gpu: bool, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert weights_dtype(device) == ("auto" if half else torch.float32)
    assert weights_dtype(device, on_gpu=torch.bfloat16) == (torch.bfloat16 if half else torch.float32)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return directories whose weights were saved in bfloat16, bare and with modules, and a cross-encoder."""
    from evaluation_data import save_bert
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    root = tmp_path_factory.mktemp("halves")
    folders = {"bare": save_decoder(root / "bare", chat=True), "cross": save_bert(root / "cross", head=True)}
    for name, kind in (("bare", AutoModelForCausalLM), ("cross", AutoModelForSequenceClassification)):
        kind.from_pretrained(folders[name], dtype=torch.bfloat16).save_pretrained(folders[name])
    plain = SentenceTransformer(str(save_bert(root / "plain")), device="cpu").bfloat16()
    plain.save_pretrained(str(root / "modules"))
    return folders | {"modules": root / "modules"}


def dtypes(model: Any) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.model.parameters()}


@pytest.mark.parametrize("name", ["bare", "modules", "cross"])
def test_a_directory_in_bfloat16_runs_in_float32_on_a_cpu(
    name: str, halves: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert dtypes(resolve_model(str(halves[name])).load_model(device="cpu")) == {torch.float32}
    if name != "cross":
        assert "was saved in bfloat16 and runs in float32 on a CPU" in caplog.text


def test_a_directory_and_the_zoos_checkpoint_have_the_same_weights(
    halves: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(halves["bare"], tmp_path / "copy")
    published = zoo.model_meta("hanhainebula/reason-embed-qwen3-8b-0928")
    path = {"path": str(halves["bare"])}
    checkpoint = published.model_copy(update={"loader_kwargs": published.loader_kwargs | path})
    one, other = (
        meta.load_model(device="cpu").model.encode(["sky"], prompt="")
        for meta in (checkpoint, resolve_model(str(tmp_path / "copy")))
    )
    assert (one == other).all()


def test_a_dtype_that_was_asked_for_is_taken(halves: dict[str, Path]) -> None:
    meta = resolve_model(str(halves["bare"]))
    options = {"model_kwargs": {"dtype": torch.bfloat16}}
    asked = meta.model_copy(update={"loader_kwargs": (meta.loader_kwargs or {}) | options})
    assert dtypes(asked.load_model(device="cpu")) == {torch.bfloat16}
