"""What mteb knows after registration, and what happens when it cannot be told."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import mteb
import pytest

from reasonembed_mteb import plugin
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.checkpoints import CHECKPOINTS
from reasonembed_mteb.retrieval.rows import benchmarks, load_rows

if TYPE_CHECKING:
    from pathlib import Path

# The facade `mteb` rebinds `get_tasks` to the function of that name.
GET_TASKS = importlib.import_module("mteb.get_tasks") and sys.modules["mteb.get_tasks"]


# With the start-up hook installed this finds its work done.
pytestmark = pytest.mark.usefixtures("registered")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    import os

    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


def test_mteb_knows_every_task() -> None:
    for row in load_rows():
        task = mteb.get_task(row.name)
        assert task.metadata.main_score == row.main_score
        if row.is_mtebs:
            continue
        assert task.metadata.prompt == ({"query": row.instruction} if row.instruction else None)
        if row.family in ("BRIGHT", "R2MED", "ReasonMini"):
            assert task.metadata.is_filled(), row.name
        # Of the others nobody says when the data were written, nor always under which licence they are.
        assert task.metadata.task_subtypes, row.name
        assert task.metadata.adapted_from == ([row.mteb_name] if row.mteb_name else None)


def test_mteb_knows_every_benchmark() -> None:
    for name, rows in benchmarks().items():
        found = [task.metadata.name for task in mteb.get_benchmark(name).tasks]
        # In any order: `mteb available-benchmarks` sorts the tasks of the benchmark that it shows.
        assert sorted(found) == sorted(row.name for row in rows)


def test_mteb_knows_every_model() -> None:
    for checkpoint in CHECKPOINTS:
        meta = mteb.get_model_meta(checkpoint.name)
        assert (meta.embed_dim, meta.revision, meta.license) == (checkpoint.embed_dim, None, "cc-by-nc-4.0")


def test_registering_twice_changes_nothing() -> None:
    before = (len(GET_TASKS.TASK_LIST), {k: list(v) for k, v in GET_TASKS._SIMILAR_TASKS.items()})
    plugin.register()
    assert before == (len(GET_TASKS.TASK_LIST), {k: list(v) for k, v in GET_TASKS._SIMILAR_TASKS.items()})
    names = [task.metadata.name for task in GET_TASKS.TASK_LIST]
    assert len(names) == len(set(names))


def test_zero_shot_marks_are_honest() -> None:
    meta = mteb.get_model_meta(CHECKPOINTS[0].name)
    for name in (
        "BrightAopsRetrieval",
        "BrightPonyLongRetrieval",
        "ReasonEmbedBrightAopsGritReason",
        "MSMARCO",
        # Other benchmarks over the same data.
        "R2MEDBiologyRetrieval",
        "ReasonEmbedR2MEDBiology",
        "BrightProRoboticsRetrieval",
        "BrightRetrieval",
        "BrightLongRetrieval",
        "NanoMSMARCORetrieval",
        "TRECDL2019",
        "mMARCO-NL",
    ):
        assert meta.is_zero_shot_on([mteb.get_task(name)]) is False, name
    for name in ("R2MEDBioinformaticsRetrieval", "ReasonEmbedR2MEDPMCClinical", "ReasonMiniBiology", "LoTTE"):
        assert meta.is_zero_shot_on([mteb.get_task(name)]) is True, name
    # A model that declares only mteb's own task has seen ours too.
    diver = mteb.get_model_meta("AQ-MedAI/Diver-Retriever-4B")
    assert diver.is_zero_shot_on([mteb.get_task("ReasonEmbedBrightBiology")]) is False


def test_no_task_over_training_data_is_left_out() -> None:
    declared = mteb.get_model_meta(CHECKPOINTS[0].name).get_training_datasets()
    assert declared is not None
    marks = ("msmarco", "ms marco", "mmarco", "xlangai/bright", "mteb/bright")
    over_them = {
        name
        for name, task in GET_TASKS._TASKS_REGISTRY.items()
        if any(
            mark in f"{task.metadata.dataset['path']} {task.metadata.description}".lower() for mark in marks
        )
    }
    # Its description says what it differs from.
    assert over_them - declared == {"LoTTE"}


def test_a_local_directory_has_its_own_name_and_revision(tmp_path: Path) -> None:
    for name, content in (("one", "{}"), ("two", '{"x": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        (tmp_path / name / "modules.json").write_text("[]")
    one, two = (mteb.get_model_meta(str(tmp_path / name), fetch_from_hf=True) for name in ("one", "two"))
    assert one.name == f"local/{tmp_path.name}__one"
    assert (one.name, one.revision) != (two.name, two.revision)
    (tmp_path / "one" / "config.json").write_text('{"y": 2}')
    changed = mteb.get_model_meta(str(tmp_path / "one"), fetch_from_hf=True)
    assert changed.name == one.name
    assert changed.revision != one.revision


@pytest.mark.parametrize("version", ["2.25.9", "3.0.0"])
def test_an_mteb_outside_the_range_is_named(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    with pytest.raises(ReasonEmbedError, match=rf"mteb {version} is not supported; .*>=2.26.24,<3"):
        plugin.register()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("mteb.get_tasks", "_TASKS_REGISTRY"),
        ("mteb.models.model_implementations", "MODEL_REGISTRY"),
        ("mteb.benchmarks.get_benchmark", "_build_registry"),
        ("mteb.benchmarks.get_benchmark", "_build_aliases_registry"),
    ],
)
def test_a_moved_private_name_is_said(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module(module)
    monkeypatch.delattr(sys.modules[module], name)
    with pytest.raises(ReasonEmbedError, match=rf"has no {module}\.{name} any more"):
        plugin.register()


@pytest.mark.parametrize("name", ["TASK_LIST", "_SIMILAR_TASKS"])
def test_a_moved_registry_is_said_when_tasks_are_added(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(GET_TASKS._TASKS_REGISTRY, "ReasonMiniPony")
    monkeypatch.delattr(GET_TASKS, name)
    monkeypatch.setattr(GET_TASKS, "_TASKS_REGISTRY", dict(GET_TASKS._TASKS_REGISTRY))
    with pytest.raises(ReasonEmbedError, match=rf"has no mteb.get_tasks\.{name} any more"):
        plugin.register()


@pytest.mark.slow
def test_a_taken_name_is_left_alone() -> None:
    done = run(
        """
        import mteb, sys, warnings
        from importlib import import_module
        tasks = sys.modules["mteb.get_tasks"]
        other = tasks._TASKS_REGISTRY["STS12"]
        tasks._TASKS_REGISTRY["ReasonMiniPony"] = other
        models = import_module("mteb.models.model_implementations").MODEL_REGISTRY
        models["hanhainebula/reason-embed-qwen3-4b-0928"] = "theirs"
        from reasonembed_mteb import register
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            register()
        for w in caught:
            print(w.message)
        assert tasks._TASKS_REGISTRY["ReasonMiniPony"] is other
        assert models["hanhainebula/reason-embed-qwen3-4b-0928"] == "theirs"
        assert "ReasonMiniAops" in tasks._TASKS_REGISTRY
        """,
        REASONEMBED_MTEB_DISABLE="1",
    )
    assert done.returncode == 0, done.stderr
    assert "mteb already has the tasks ReasonMiniPony" in done.stdout
    assert "mteb already has the models hanhainebula/reason-embed-qwen3-4b-0928" in done.stdout


def test_the_hook_leaves_a_taken_name_alone_too() -> None:
    from types import ModuleType, SimpleNamespace

    module = ModuleType("mteb.tasks")
    theirs = SimpleNamespace(metadata=SimpleNamespace(name="ReasonMiniPony"))
    vars(module).update(ReasonMiniPony=theirs, metadata_free=1)
    with pytest.warns(UserWarning, match="mteb already has the tasks ReasonMiniPony"):
        plugin.register_tasks(module)
    assert module.ReasonMiniPony is theirs
    assert module.ReasonMiniAops.metadata.name == "ReasonMiniAops"


@pytest.mark.slow
def test_our_modules_may_be_imported_before_mteb() -> None:
    done = run(
        """
        import reasonembed_mteb.retrieval.task
        import mteb
        assert mteb.get_task("ReasonMiniPony").metadata.name == "ReasonMiniPony"
        """
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_hook_registers_natively_in_a_spawned_process() -> None:
    done = run(
        """
        import multiprocessing as mp
        from reasonembed_mteb import _startup
        _startup.install()

        def ask(name):
            import mteb
            return mteb.get_task(name).metadata.name

        if __name__ == "__main__":
            import mteb
            import pickle
            task = mteb.get_task("ReasonEmbedBrightAops")
            assert pickle.loads(pickle.dumps(type(task))) is type(task)
            assert len(mteb.get_benchmark("ReasonMini").tasks) == 12
            assert mteb.get_model_meta("hanhainebula/reason-embed-qwen3-8b-0928").embed_dim == 4096
            print("fine")
        """
    )
    assert done.stdout.strip() == "fine", done.stderr
