"""Names of models, tasks and benchmarks: what they mean, and what is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mteb
import pytest
from evaluation_data import (
    BIOLOGY,
    TEMPLATE,
)

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.evaluation import resolving, runner
from reasonembed_mteb.evaluation import resolving as downloads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Score = Callable[..., tuple[list[runner.Outcome], list[str]]]


pytestmark = pytest.mark.usefixtures("registered")


def test_experiments_are_filed_apart(prompted: Path) -> None:
    metas = [
        resolving.resolve_model(str(prompted), **options)
        for options in ({}, {"no_instruction": True}, {"template": TEMPLATE}, {"template": "{instruction} "})
    ]
    assert len({meta.experiment_name for meta in metas}) == 4
    assert not any("\n" in str(meta.experiment_name) for meta in metas)
    labels = resolving.model_labels(metas)
    assert labels[1].endswith("(--no-instruction)")
    assert len(set(labels[:3])) == 3


def test_two_directories_of_one_name_have_two_labels(bert: Path, prompted: Path) -> None:
    metas = [resolving.resolve_model(str(folder), filed_as="my/model") for folder in (bert, prompted)]
    first, second = resolving.model_labels(metas)
    assert first != second
    assert first.startswith("my/model @")


def test_names_are_resolved_or_refused_in_one_line(bert: Path, tmp_path: Path) -> None:
    assert resolving.resolve_model("bm25s").name == "mteb/baseline-bm25s"
    assert resolving.resolve_model(str(bert)).name.startswith("local/")
    assert [meta.name for meta in resolving.resolve_models([str(bert)], filed_as="my/bert")] == ["my/bert"]
    assert len(resolving.resolve_models(["bm25s", "bm25s"])) == 1
    (tmp_path / "berty").mkdir()
    refused: dict[str, Any] = {
        "bm26s": "did you mean 'bm25s'",
        str(
            tmp_path / "bertx"
        ): f"no model directory {tmp_path / 'bertx'}; did you mean {tmp_path / 'berty'}",
        "./nowhere-at-all": "no model directory nowhere-at-all",
        str(tmp_path / "berty"): "holds no model",
        "hanhainebula/reason-embed-qwen3-8b-0929": "did you mean 'hanhainebula/reason-embed-qwen3-8b-0928'",
    }
    for name, words in refused.items():
        with pytest.raises(ReasonEmbedError) as caught:
            resolving.resolve_model(name)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="did you mean 'ReasonMiniBiology'"):
        resolving.resolve_tasks([], ["ReasonMiniBiologi"])
    with pytest.raises(UnknownNameError, match="did you mean 'ReasonMini'"):
        resolving.resolve_tasks(["ReasonMinni"], [])
    names = [task.metadata.name for task in resolving.resolve_tasks(["ReasonMini"], ["ReasonMiniBiology"])]
    assert len(names) == len(set(names)) == 12


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["bm25s"], {"no_instruction": True}, "sets its own instructions"),
        (["hanhainebula/reason-embed-qwen3-8b-0928"], {"template": TEMPLATE}, "sets its own instructions"),
        (["bm25s"], {"filed_as": "a/b"}, "one local directory"),
        (["BERT", "bm25s"], {"filed_as": "a/b"}, "one local directory"),
        (["BERT"], {"filed_as": "plain"}, "org/name"),
        (["BERT"], {"template": "no place"}, "must contain '{instruction}'"),
        (["BERT"], {"template": TEMPLATE, "no_instruction": True}, "not both"),
        (["CROSS"], {"no_instruction": True}, "no dense model"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    bert: Path, cross: Path, names: list[str], options: dict[str, Any], words: str
) -> None:
    folders = {"BERT": str(bert), "CROSS": str(cross)}
    with pytest.raises(ReasonEmbedError, match=words):
        resolving.resolve_models([folders.get(name, name) for name in names], **options)


@pytest.mark.usefixtures("data")
def test_download_loads_data_and_says_what_it_cannot_fetch(tmp_path: Path) -> None:
    said: list[str] = []
    downloads.download([mteb.get_task(BIOLOGY)], [], said.append)
    assert said == [f"{BIOLOGY}: data is there"]
    for name in ("org/nothing", "not a name"):
        with pytest.raises(ReasonEmbedError, match=f"cannot fetch {name}: .*go online") as caught:
            downloads.download([], [name], said.append, str(tmp_path))
        assert "\n" not in str(caught.value)
