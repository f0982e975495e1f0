"""Templates of pipelines: each names its source, the user's own go before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pipeline_script import retrieve, stage, write_pipeline

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.pipelines.config import read_pipeline
from reasonembed_mteb.pipelines.templates import packaged_templates, stage_template

if TYPE_CHECKING:
    from pathlib import Path


def template(folder: Path, name: str, top: str = "", kind: str = "rewrite", **keys: str) -> str:
    stages = stage(kind, template=name, **keys)
    whole = stages + retrieve("bm25") if kind == "rewrite" else retrieve("bm25") + stages
    config = read_pipeline(write_pipeline(folder, whole, top=top))
    chosen = next(one for one in config.stages if one.kind == kind)
    return stage_template(chosen, config).user


def test_each_names_its_source() -> None:
    assert packaged_templates().keys() >= {
        "bright",
        "hyde",
        "keypoints",
        "relevant",
        "feedback",
        "grade",
        "sort",
    }
    assert all("arXiv" in table["about"] for table in packaged_templates().values())


def test_own_templates_go_first(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        '[hyde]\nuser = "Write: $query"\n[bad]\nuser = "Write."\n[typo]\nuser = "$qury"\n', encoding="utf-8"
    )
    top = 'templates = "own.toml"'
    assert template(tmp_path, "hyde", top) == "Write: $query"
    assert "Identify the essential problem" in template(tmp_path, "bright", top)
    with pytest.raises(ReasonEmbedError, match=r"own.toml, \[bad\]: the template has no \$query"):
        template(tmp_path, "bad", top)
    with pytest.raises(ReasonEmbedError, match=r"unknown name '\$qury'; did you mean"):
        template(tmp_path, "typo", top)


def test_a_template_must_fit_its_use(tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match=r"unknown template 'hide'; did you mean 'hyde'\?"):
        template(tmp_path, "hide")
    with pytest.raises(ReasonEmbedError, match=r"\[grade\]: unknown name '\$document'"):
        template(tmp_path, "grade")
    with pytest.raises(ReasonEmbedError, match=r"\[hyde\]: the template has no \$document"):
        template(tmp_path, "hyde", kind="rerank", by="pointwise")
