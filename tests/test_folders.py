"""Local model directories: their kind and what identifies them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.folders import content_revision, local_name, model_kind

if TYPE_CHECKING:
    from pathlib import Path


def make(folder: Path, **files: Any) -> Path:
    """Write JSON files into a folder; a double underscore stands for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content))
    return folder


def test_revision_follows_content_not_place(tmp_path: Path) -> None:
    one, two = (make(tmp_path / name, config__json={"a": 1}) for name in ("one", "two"))
    assert content_revision(one) == content_revision(two)
    assert len(content_revision(one)) == 32
    make(two, config__json={"a": 2})
    assert content_revision(one) != content_revision(two)


def test_revision_ignores_what_changes_no_vector(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", config__json={})
    before = content_revision(folder)
    (folder / "README.md").write_text("words")
    make(folder / ".cache", x__json=1)
    make(folder / "checkpoint-5", model__json=1)
    assert content_revision(folder) == before
    make(folder / "1_Pooling", config__json=1)
    assert content_revision(folder) != before


def test_an_adapters_revision_covers_its_base(tmp_path: Path) -> None:
    base = make(tmp_path / "base", config__json={"a": 1})
    adapter = make(tmp_path / "adapter", adapter_config__json={"base_model_name_or_path": str(base)})
    before = content_revision(adapter)
    assert model_kind(adapter) == "dense"
    make(base, config__json={"a": 2})
    assert content_revision(adapter) != before


def test_moving_bytes_between_files_is_a_change(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    (one / "a").write_text("xy")
    (one / "b").write_text("z")
    (two / "a").write_text("x")
    (two / "b").write_text("yz")
    assert content_revision(one) != content_revision(two)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"config__json": {"architectures": ["Qwen3ForCausalLM"]}}, "dense"),
        ({"config__json": {"architectures": ["BertForSequenceClassification"]}}, "cross-encoder"),
        ({"modules__json": [{"type": "sentence_transformers.models.Transformer"}]}, "dense"),
        ({"modules__json": [{"type": "x.SpladePooling"}]}, "sparse"),
        (
            {"modules__json": [], "config_sentence_transformers__json": {"model_type": "MultiVectorEncoder"}},
            "late-interaction",
        ),
    ],
)
def test_kinds(tmp_path: Path, files: dict[str, Any], kind: str) -> None:
    assert model_kind(make(tmp_path, **files)) == kind


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="holds no model"):
        model_kind(tmp_path)


def test_names_tell_folders_apart(tmp_path: Path) -> None:
    assert local_name(tmp_path / "run" / "final") == "local/run__final"
