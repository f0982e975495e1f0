"""The command `robustness`: a profile end to end, and options that do not fit."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from evaluation_data import BIOLOGY
from wordnet_data import write_dictionary

from reasonembed_mteb.cli.robustness import _measure
from reasonembed_mteb.evaluation.geometries import Geometry, read_geometries
from reasonembed_mteb.evaluation.profiles import read_profiles
from reasonembed_mteb.evaluation.runner import RunOptions
from reasonembed_mteb.robustness import geometry
from reasonembed_mteb.robustness.geometry import vector_shape

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

pytestmark = pytest.mark.usefixtures("registered")
CALL = ("robustness", "-m", "bm25", "-t", BIOLOGY, "--output-folder", "out")


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_profile_is_printed_and_kept(command: Command, tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path / "wordnet", "npm")
    status, out, err = command(*CALL, "--seed", "5", "--strength", "share=0.5", "--wordnet", str(folder))
    assert status == 0
    assert "Robustness to query variations: ReasonEmbedBrightBiology, 6 queries" in out
    assert "50 % of the words" in out
    assert all(kind in out for kind in ("misspelling", "reordering", "synonyms", "naturalising", "keywords"))
    assert "this WordNet has no exception lists (noun, verb, adj)" in err
    (profile,), _ = read_profiles([tmp_path / "out"])
    assert [(run.variation, run.seed) for run in profile.runs] == [
        ("misspelling", 5), ("reordering", 5), ("synonyms", 5), ("naturalising", None), ("keywords", None)
    ]  # fmt: skip
    # Its results do not pass for those of a benchmark.
    assert not (tmp_path / "out" / "results").exists()
    status, out, err = command("report", "out")
    assert status == 0
    assert "misspelling" in out


@pytest.mark.usefixtures("data")
def test_paraphrases_of_a_file_add_their_variation(command: Command, tmp_path: Path) -> None:
    row = {"query": "cell leaf water", "paraphrase": "leaf in water"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row), encoding="utf-8")
    status, out, _ = command(*CALL, "--variation", "naturalising", "--paraphrases", "p.jsonl")
    assert status == 0
    assert "paraphrase: queries that stayed as they were, over all runs: 5 no paraphrase" in out


@pytest.mark.usefixtures("data")
def test_geometry_leaves_out_a_model_without_vectors_that_is_named_among_others(
    command: Command, bert: Path, tmp_path: Path
) -> None:
    call = ("robustness", "-m", "bm25", "-m", str(bert), "-t", BIOLOGY, "--output-folder", "out")
    options = ("--variation", "naturalising", "--geometry", "--vectors", "30", "--device", "cpu")
    status, out, err = command(*call, *options)
    assert status == 0
    assert "mteb/baseline-bm25s has no dense vectors, so that their geometry is left out" in err
    assert "FAILED" not in err
    profiles, _ = read_profiles([tmp_path / "out"])
    assert len(profiles) == 2
    assert "geometry of the document vectors" in out
    (file,) = (tmp_path / "out" / "chapters" / "geometry").glob("*.json")
    assert json.loads(file.read_text(encoding="utf-8"))["shape"]["vectors"] == 30


def test_a_model_whose_geometry_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a/first", "a/second", "a/third")
    metas: Any = [SimpleNamespace(name=name) for name in names]
    shape = vector_shape(np.eye(4))

    def measured(meta: Any, *args: object, **kwargs: object) -> list[Geometry]:
        if meta.name == names[0]:
            # Not an error of this package: one of a library, say.
            raise RuntimeError("no memory is left")
        return [Geometry(meta.name, "1", "Task", 0, shape)]

    monkeypatch.setattr(geometry, "measure_geometry", measured)
    failures = _measure(metas, [], RunOptions(output=tmp_path, store=tmp_path / "vectors"), 10)
    assert failures == ["geometry of a/first: RuntimeError: no memory is left"]
    found, _ = read_geometries([tmp_path])
    assert sorted(one.model for one in found) == list(names[1:])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--variation", "mispelling"), "unknown variation 'mispelling'; did you mean 'misspelling'"),
        (("--variation", "paraphrase"), "needs --paraphrases FILE, or --paraphrase-url"),
        (("--strength", "much"), "--strength 'much': give study, or share="),
        (("--strength", "share=2"), "share is 2.0: give a share"),
        (("--wordnet", "nowhere"), "no WordNet in nowhere: it holds no data.noun; install"),
        (("--paraphrase-url", "http://localhost:1/v1"), "--paraphrase-model go together"),
        (("--paraphrases", "p", "--paraphrase-url", "http://localhost:1/v1"), "leave one out"),
        (
            ("--geometry",),
            "--geometry is for models with one dense vector a text, and none of mteb/baseline-bm25s",
        ),
        (("--instruction", "Find"), "--instruction goes with --beir"),
        (("--instruction-template", "Query: "), "MTEB's entry of bm25 sets its own instructions"),
    ],
)
def test_options_that_do_not_fit_are_one_line(command: Command, options: tuple[str, ...], said: str) -> None:
    kinds = () if {"--variation", "--wordnet"} & set(options) else ("--variation", "naturalising")
    if options[0] == "--strength":
        kinds = ("--variation", "shuffle")
    status, out, err = command(*CALL, *kinds, *options)
    assert (status, out) == (2, "")
    assert said in " ".join(err.split())
    assert err.count("\n") == 1
