"""Models without their weights, through a whole run: filed apart, recorded, kept apart in the store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from engine_data import Served, serving

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.engines import EngineChoice, engine_choice, with_engine, without_weights

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Command


@pytest.fixture(scope="module")
def model(qwen3_dir: Path) -> Any:
    from reasonembed_mteb import ReasonEmbed

    return ReasonEmbed(str(qwen3_dir), device="cpu")


def test_no_weights_are_read(qwen3_dir: Path, tmp_path: Path) -> None:
    import shutil

    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb import ReasonEmbed

    bare = tmp_path / "bare"
    shutil.copytree(qwen3_dir, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with without_weights():
        loaded = ReasonEmbed(str(bare), device="meta")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"meta"}
    assert loaded.get_embedding_dimension() == 32
    # Outside, everything is as it was.
    assert not next(SentenceTransformer(str(qwen3_dir), device="cpu").parameters()).is_meta


@pytest.mark.slow
def test_a_run_by_a_server_gives_the_scores_of_torch(
    command: Command, qwen3_dir: Path, model: Any, tmp_path: Path
) -> None:
    arguments = ("run", "-m", str(qwen3_dir), "-t", "ReasonMiniBiology", "--no-instruction")
    status, _, err = command(*arguments)
    assert status == 0, err
    served = Served(model)
    with serving(served) as server:
        how = ("--engine", "api", "--base-url", server.base_url, "--served-model", "small")
        status, _, err = command(*arguments, *how)
        assert status == 0, err
        asked = len(served.sent)
        # The second time nothing is asked; with --overwrite, known texts alone: the vectors are stored.
        assert command(*arguments, *how)[0] == 0
        assert len(served.sent) == asked
        assert command(*arguments, *how, "--overwrite")[0] == 0
        assert len(served.sent) == asked + 2
    records = [json.loads(file.read_text()) for file in sorted(tmp_path.rglob("records/**/ReasonMini*.json"))]
    by_engine = {(one["engine"] or {}).get("name", "torch"): one for one in records}
    assert by_engine.keys() == {"torch", "api"}
    assert by_engine["api"]["main_score"] == by_engine["torch"]["main_score"] > 0
    assert by_engine["api"]["engine"]["version"] == "1.2.3"
    assert by_engine["api"]["cost"]["tokens"] is not None
    assert by_engine["api"]["dtype"] is None
    stores = [json.loads(file.read_text()) for file in tmp_path.rglob("vectors/*/model.json")]
    assert sorted("engine" in one for one in stores) == [False, True]
    # No address is kept: the model may move to another server.
    assert not [file for file in tmp_path.rglob("*.json") if str(server.port) in file.read_text()]


def test_another_version_has_other_vectors(qwen3_dir: Path, model: Any) -> None:
    from engine_data import served_encoder

    from reasonembed_mteb.store.encoder import model_fingerprint

    found = []
    for version in ("1", "2"):
        with serving(Served(model), pages={"/info": {"version": version}}) as server:
            found.append(model_fingerprint(served_encoder(qwen3_dir, server)))
    assert found[0] != found[1]
    assert found[0]["engine"].pop("version") == "1"
    found[1]["engine"].pop("version")
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "vlm"), "did you mean 'vllm'"),
        (("--engine", "api"), "needs the server's address"),
        (("--base-url", "http://localhost"), "--base-url goes with --engine api, not torch"),
        (("--engine", "api", "--base-url", "localhost:8000"), "give an address such as"),
        (("--engine", "api", "--base-url", "http://user:secret@host"), "holds a user or password"),
        (("--engine", "vllm", "--attn", "packed"), "--attn packed is for --engine torch"),
        (("--engine", "vllm", "--device", "cuda:0"), "--device cuda:0 is for --engine torch"),
        (
            ("--engine", "api", "--base-url", "http://h", "--api-key-env", "sk-1"),
            "must be the name",
        ),
    ],
)
def test_a_wrong_option_is_said(
    command: Command, qwen3_dir: Path, options: tuple[str, ...], said: str
) -> None:
    status, _, err = command("run", "-m", str(qwen3_dir), "-t", "ReasonMiniBiology", *options)
    assert status == 2
    assert said in err
    assert "secret" not in err


def test_only_dense_models_have_engines(registered: None) -> None:
    import mteb

    choice = EngineChoice("vllm")
    with pytest.raises(ReasonEmbedError, match="for dense models, and mteb/baseline-bm25s is"):
        with_engine(mteb.get_model_meta("mteb/baseline-bm25s"), choice)
    dense = mteb.get_model_meta("sentence-transformers/all-MiniLM-L6-v2")
    assert with_engine(dense, EngineChoice()) is dense
    assert with_engine(dense, choice).experiment_kwargs == {"engine": "vllm"}


def test_an_engine_is_chosen_by_name_or_in_full() -> None:
    assert engine_choice(None) == EngineChoice("torch")
    assert engine_choice("api", "http://host").base_url == "http://host"
    choice = EngineChoice("vllm", batch_tokens=7)
    assert engine_choice(choice) is choice
