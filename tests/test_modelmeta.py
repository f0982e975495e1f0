"""The file for mteb's registry: what it says, and that mteb runs it without this package."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from mteb.models import ModelMeta

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.models.checkpoints import CHECKPOINTS
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.models.zoo import model_meta
from reasonembed_mteb.retrieval.rows import instruction_for, training_tasks
from reasonembed_mteb.sharing.modelmeta import MODULE, PROMPTS, REQUEST, export_modelmeta

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command

NAME = "hanhainebula/reason-embed-qwen3-4b-0928"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def load(text: str, tmp_path: Path) -> dict[str, ModelMeta]:
    """Import a module's text; return its entries by model name."""
    file = tmp_path / MODULE
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("exported", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {str(meta.name): meta for meta in vars(module).values() if isinstance(meta, ModelMeta)}


def test_the_file_says_what_this_package_says(tmp_path: Path) -> None:
    contents = export_modelmeta()
    assert "reasonembed_mteb" not in contents[MODULE]
    entries = load(contents[MODULE], tmp_path)
    assert list(entries) == [checkpoint.name for checkpoint in CHECKPOINTS]
    for name, entry in entries.items():
        ours = model_meta(name).model_dump(
            exclude={"loader", "loader_kwargs", "output_dtypes", "training_datasets"}
        )
        assert entry.model_dump(include=set(ours)) == ours
        assert entry.revision is None
        assert entry.training_datasets == {
            task for task in training_tasks() if not task.startswith("ReasonEmbed")
        }
        json.dumps(entry.loader_kwargs)


def test_every_query_gets_the_published_prompt_and_no_document_does(tmp_path: Path) -> None:
    import mteb
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.types import PromptType

    contents = export_modelmeta([NAME])
    (entry,) = load(contents[MODULE], tmp_path).values()
    # mteb's rule, on an instance that holds the options and no weights.
    model: Any = InstructSentenceTransformerModel.__new__(InstructSentenceTransformerModel)
    model.instruction_template = entry.loader_kwargs["instruction_template"]
    model.prompts_dict = entry.loader_kwargs["prompts_dict"]
    assert entry.loader_kwargs["apply_instruction_to_passages"] is False
    assert entry.loader_kwargs["max_seq_length"] == 8192
    prompts = json.loads(contents[PROMPTS])
    assert prompts == model.prompts_dict
    assert len(prompts) == 20 + 7 + 8
    for name in prompts:
        task = mteb.get_task(name).metadata
        prefix = model.get_task_instruction(task, PromptType.query)
        assert prefix == f"Instruct: {instruction_for(name)}\nQuery: "
        # mteb asks for it before it leaves documents bare; a warning here would be one in every run.
        model.get_task_instruction(task, PromptType.document)


def test_a_revision_is_written_and_asked_for_otherwise(tmp_path: Path) -> None:
    contents = export_modelmeta([NAME], revisions={NAME: COMMIT})
    assert load(contents[MODULE], tmp_path)[NAME].revision == COMMIT
    assert "`revision`" not in contents[REQUEST]
    without = export_modelmeta([NAME])[REQUEST]
    assert f"- `revision`, which mteb requires, of {NAME}" in without
    assert f"| {NAME} | 37.1 | 41.16 |" in without
    assert "{" not in without
    with pytest.raises(ReasonEmbedError, match="is no commit"):
        export_modelmeta([NAME], revisions={NAME: "main"})
    with pytest.raises(UnknownNameError, match="did you mean"):
        export_modelmeta([NAME], revisions={NAME + "x": COMMIT})
    with pytest.raises(UnknownNameError, match=f"did you mean '{NAME}'"):
        export_modelmeta(["hanhainebula/reason-embed-qwen3-4b"])


def test_the_file_is_formatted_as_mteb_formats() -> None:
    ruff = pytest.importorskip("ruff")
    del ruff
    text = export_modelmeta()[MODULE]
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--stdin-filename", MODULE, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert done.stdout == text


def test_the_command_prints_or_writes(tmp_path: Path, command: Command) -> None:
    status, out, _ = command("export-modelmeta", NAME)
    assert (status, out) == (0, export_modelmeta([NAME])[MODULE])
    folder = tmp_path / "out"
    arguments = ("export-modelmeta", NAME, "--output", str(folder))
    assert command(*arguments, "--revision", f"{NAME}={COMMIT}")[0] == 0
    written = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert written == export_modelmeta([NAME], revisions={NAME: COMMIT})
    status, _, err = command(*arguments)
    assert (status, "already" in err) == (2, True)
    status, _, err = command("export-modelmeta", NAME, "--revision", "abc")
    assert (status, "NAME=COMMIT" in err) == (2, True)


# What merging the file does: mteb imports every module of that package and gathers its entries.
DRIVER = """
import importlib.util, sys
import mteb
from mteb.models import ModelMeta
from mteb.models.model_implementations import MODEL_REGISTRY

name = "mteb.models.model_implementations.reason_embed_models"
spec = importlib.util.spec_from_file_location(name, sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
entries = {value.name: value for value in vars(module).values() if isinstance(value, ModelMeta)}
assert not entries.keys() & MODEL_REGISTRY.keys(), "this package has registered them"
MODEL_REGISTRY.update(entries)
from mteb.cli import main
sys.argv = ["mteb", "mock-run", "-m", sys.argv[2], "--device", "cpu"]
main()
assert not any(name.startswith("reasonembed_mteb.") and "_startup" not in name for name in sys.modules)
"""


@pytest.mark.slow
def test_mteb_runs_it_without_this_package(tmp_path: Path, qwen3_dir: Path) -> None:
    (tmp_path / MODULE).write_text(export_modelmeta()[MODULE], encoding="utf-8")
    # sentence-transformers takes a folder of the working directory before it asks the hub.
    ReasonEmbed(str(qwen3_dir), device="cpu").save(str(tmp_path / NAME))
    environment = os.environ | {
        "REASONEMBED_MTEB_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "MTEB_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, MODULE, NAME],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "mteb_mock_run_results.md").read_text(encoding="utf-8")
    assert "passed all expected checks" in done.stdout
    assert report.count("| text | ✓ |") >= 20
    assert "✗" not in report
