"""A Ray cluster: what is refused before any work, and (slow) that faults change nothing of the outcome."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_data import Served, serving

from reasonembed_mteb.distributed import probe
from reasonembed_mteb.distributed.cluster import (
    ClusterChoice,
    RayMachines,
    check_versions,
    own_error,
    share_out,
)
from reasonembed_mteb.distributed.encode import encode_corpus
from reasonembed_mteb.distributed.processes import Processes
from reasonembed_mteb.distributed.worker import EncodeJob, ModelChoice, Speed
from reasonembed_mteb.encoding.engines.probing import KNOWN_TEXTS
from reasonembed_mteb.errors import DataError, MissingExtraError, ReasonEmbedError
from reasonembed_mteb.retrieval.trec import read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Command


@pytest.mark.parametrize(
    ("choice", "cores", "gpus", "expected"),
    [
        # A worker a machine, with all its processors.
        (ClusterChoice("x"), [8, 4], [0, 0], (0.0, 2, 4)),
        (ClusterChoice("x", workers=3), [8, 8], [0, 0], (0.0, 3, 4)),
        (ClusterChoice("x", workers=4), [8, 8], [0, 0], (0.0, 4, 4)),
        (ClusterChoice("x", workers=2, threads=1), [2], [0], (0.0, 2, 1)),
        # A worker a GPU.
        (ClusterChoice("x"), [0, 32, 32], [0, 4, 4], (1.0, 8, 8)),
        (ClusterChoice("x", gpus_per_worker=2), [32], [5], (2.0, 2, 16)),
        (ClusterChoice("x", gpus_per_worker=0.5), [32], [1], (0.5, 2, 16)),
        (ClusterChoice("x", gpus_per_worker=0), [4], [2], (0, 1, 4)),
    ],
)
def test_room_is_shared_out(
    choice: ClusterChoice, cores: list[int], gpus: list[float], expected: tuple[float, int, int]
) -> None:
    assert share_out(choice, cores, gpus) == expected


@pytest.mark.parametrize(
    "choice",
    [
        ClusterChoice("x", workers=5),
        ClusterChoice("x", threads=3),
        ClusterChoice("x", gpus_per_worker=1),
        ClusterChoice("x", workers=2, threads=2),
    ],
)
def test_more_than_there_is_is_refused(choice: ClusterChoice) -> None:
    with pytest.raises(ReasonEmbedError, match=r"has 4 processors and 0 GPUs on 2 machines, room for \d"):
        share_out(choice, [2, 2] if choice.threads != 2 else [3, 1], [0, 0])


def test_a_machine_with_another_version_is_named_with_both() -> None:
    here = {"reasonembed-mteb": "0.3.0", "torch": "2.13.0+cpu"}
    check_versions(here, [("a", {"reasonembed-mteb": "0.3.0", "torch": "2.13.0+cu129", "more": "1"})])
    with pytest.raises(ReasonEmbedError, match=r"machine b has reasonembed-mteb 0\.2\.0, .* 0\.3\.0"):
        check_versions(here, [("a", here), ("b", here | {"reasonembed-mteb": "0.2.0"})])
    with pytest.raises(ReasonEmbedError, match=r"machine b has no torch, and this one 2\.13\.0"):
        check_versions(here, [("b", {"reasonembed-mteb": "0.3.0"})])


def test_a_probe_needs_nothing_of_this_package() -> None:
    host, found = probe.installed(("torch", "no-such-package"))
    assert host == socket.gethostname()
    assert found.keys() == {"torch"}
    source = f"import sys; sys.path = [p for p in sys.path if p]; exec(open({probe.__file__!r}).read())"
    done = f"{source}; print(installed(('pip',)), [n for n in sys.modules if 'reasonembed' in n])"
    out = subprocess.run(
        [sys.executable, "-S", "-c", done], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip().endswith("[]")


@pytest.mark.parametrize("address", ["nowhere", "host:", ":6379", "ray://host", "host:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ReasonEmbedError, match="is no address: give host:port"):
        RayMachines(ClusterChoice(address))


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_at_which_nothing_answers_is_named(prefix: str) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ReasonEmbedError, match=rf"no Ray cluster answers at {prefix}127\.0\.0\.1:{port}"):
        RayMachines(ClusterChoice(f"{prefix}127.0.0.1:{port}"))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"mteb\[distributed\]"):
        RayMachines(ClusterChoice("local"))


def test_our_own_error_is_found_within_others() -> None:
    ours = DataError("the row")
    outer = RuntimeError("task failed")
    outer.__cause__ = ValueError("inner")
    outer.__cause__.__context__ = ours
    assert own_error(outer) is ours
    assert own_error(RuntimeError("x")) is None


@pytest.mark.slow
def test_nothing_of_ray_is_imported_without_a_cluster() -> None:
    code = (
        "import sys, reasonembed_mteb.distributed.encode, reasonembed_mteb.distributed.search, "
        "reasonembed_mteb.distributed.cluster, reasonembed_mteb.cli.scale; "
        "print([n for n in ('ray', 's3fs', 'gcsfs') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


# Ray itself; each test takes long because its processes do.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a cluster of two processors on this machine, and return its address."""
    pytest.importorskip("ray", reason="needs the extra distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Its sockets' names must be short.
    folder = tempfile.mkdtemp(prefix="ray")
    command = ["--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    command += [f"--temp-dir={folder}", "--disable-usage-stats"]
    log = tmp_path_factory.mktemp("cluster") / "log"
    # Without a token of its own in the user's folder, which others would be asked for too.
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray = Path(sys.executable).with_name("ray")
    start = [str(ray)] if ray.is_file() else [sys.executable, "-m", "ray.scripts.scripts"]
    with log.open("wb") as out:
        head = subprocess.Popen([*start, "start", *command], stdout=out, stderr=out, start_new_session=True)
    try:
        _wait(lambda: "Ray runtime started" in log.read_text() or head.poll() is not None, 60)
        assert head.poll() is None, log.read_text()
        (found,) = {*re.findall(rf"[\w.]+:{port}", log.read_text())}
        yield found
    finally:
        # Only what was started here: `ray stop` would end every cluster of the machine.
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("RAY_AUTH_MODE")
        if before is not None:
            os.environ["RAY_AUTH_MODE"] = before


def _wait(done: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 2,000 texts in several slices."""
    folder = tmp_path_factory.mktemp("texts")
    for part in range(4):
        rows = [{"_id": f"{part}-{n}", "text": f"plant {n} " * (1 + n % 9)} for n in range(500)]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def blocks_in(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(store.rglob("*")) if file.is_file()}


def further(log: Path, lines: int, running: subprocess.Popen[bytes]) -> bool:
    """Whether more lines are in the log, or none will come."""
    return len(computed(log)) > lines or running.poll() is not None


def computed(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.is_file() else []


@pytest.mark.slow
def test_killed_workers_and_drivers_change_nothing(
    cluster: str, texts: Path, qwen3_dir: Path, tmp_path: Path
) -> None:
    store, log = tmp_path / "ray", tmp_path / "log"
    plain = EncodeJob(
        ModelChoice(str(qwen3_dir)), Speed(device="cpu"), str(tmp_path / "plain"), block_tokens=500
    )
    whole = encode_corpus(str(texts), plain, Processes(1, 1), name="c")
    assert whole.documents == 2000
    driver = [sys.executable, str(Path(__file__).with_name("ray_driver.py")), cluster, str(texts)]
    driver += [str(qwen3_dir), str(store), str(log)]
    kills = 0
    for _ in range(2):
        running = subprocess.Popen(driver, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(5):
            # In the midst of a block, and not the first of a worker's alone.
            _wait(partial(further, log, len(computed(log)) + 1, running), 180)
            assert running.poll() is None, "it ended before it could be killed"
            kills += 1
            os.kill(int(computed(log)[-1][0]) if kills % 5 else running.pid, signal.SIGKILL)
        assert running.wait(60) == -signal.SIGKILL
    last = subprocess.run(driver, capture_output=True, text=True, timeout=300, check=False)
    assert (last.returncode, kills) == (0, 10), last.stderr
    names = {name: content for name, content in blocks_in(store).items() if name.startswith("block-")}
    assert names == {n: c for n, c in blocks_in(tmp_path / "plain").items() if n.startswith("block-")}
    manifest = "manifest-c.json"
    assert json.loads(blocks_in(store)[manifest]) == json.loads(blocks_in(tmp_path / "plain")[manifest])
    # Of each kill, a block a worker.
    assert whole.blocks <= len(computed(log)) <= whole.blocks + 2 * kills
    assert {key for _, key in computed(log)} == {name.split("-")[1] for name in names}


@pytest.mark.slow
def test_a_run_on_a_cluster_scores_as_a_run_here(cluster: str, command: Command, bert: Path) -> None:
    run = ("run", "-m", str(bert), "-b", "ReasonMini", "--no-store", "--run-file", "{task}.trec")
    runs = []
    for where in (("--device", "cpu"), ("--cluster", cluster, "--workers", "2")):
        status, _, err = command(*run, *where, "--overwrite")
        assert status == 0, err
        runs.append({file.name: read_run(file) for file in Path.cwd().glob("*.trec")})
    here, there = runs
    assert here.keys() == there.keys()
    for name, found in here.items():
        for query, scores in found.items():
            assert scores == pytest.approx(there[name][query], abs=1e-6)


@pytest.mark.slow
def test_a_server_is_asked_from_the_workers(
    cluster: str, command: Command, qwen3_dir: Path, tmp_path: Path
) -> None:
    from reasonembed_mteb import ReasonEmbed

    # The server counts the processes that ask for the known texts: this one, and the workers. A small task
    # may be done before the second worker stands.
    served = Served(ReasonEmbed(str(qwen3_dir), device="cpu"))
    run = ("run", "-m", str(qwen3_dir), "-t", "ReasonMiniPony", "--no-store", "--engine", "api")
    runs, probes = [], []
    with serving(served) as server:
        asked = ("--base-url", server.base_url, "--served-model", "small", "--run-file", "{task}.trec")
        for where in ((), ("--cluster", cluster, "--workers", "2")):
            served.sent.clear()
            status, _, err = command(*run, *asked, *where, "--overwrite")
            assert status == 0, err
            runs.append(read_run(tmp_path / "ReasonMiniPony.trec"))
            probes.append(sum(KNOWN_TEXTS[0] in inputs for inputs in served.sent))
    assert probes[0] == 1
    assert probes[1] in (2, 3)
    here, there = runs
    for query, scores in here.items():
        assert scores == pytest.approx(there[query], abs=1e-5)


@pytest.mark.slow
def test_more_than_the_cluster_has_and_a_bad_row_are_one_line(
    cluster: str, command: Command, bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"_id": "a", "text": "x"}\n{"text": "no id"}\n')
    encode = ("encode", "--input", "bad.jsonl", "-m", str(bert), "--output", "store", "--cluster", cluster)
    status, _, err = command(*encode, "--workers", "3")
    assert (status, "the cluster has 2 processors" in err) == (2, True), err
    status, _, err = command(*encode, "--gpus-per-worker", "1")
    assert (status, "0 GPUs on 1 machines" in err) == (2, True), err
    status, _, err = command(*encode)
    assert (status, "bad.jsonl, line 2: '_id' is missing" in err) == (2, True), err


@pytest.mark.slow
def test_a_store_beside_the_caller_is_searched_on_a_cluster(
    cluster: str, command: Command, bert: Path, tmp_path: Path
) -> None:
    # The cluster was started elsewhere: a relative path would mean another folder there.
    (tmp_path / "c.jsonl").write_text('{"_id": "a", "text": "cells"}\n{"_id": "b", "text": "water"}\n')
    encode = ("encode", "--input", "c.jsonl", "-m", str(bert), "--output", "store", "--cluster", cluster)
    status, _, err = command(*encode)
    assert status == 0, err
    for where in ((), ("--cluster", cluster)):
        status, _, err = command("search", "store", "--queries", "c.jsonl", "--output", "run", *where)
        assert status == 0, err
        assert [len(found) for found in read_run(tmp_path / "run").values()] == [2, 2]
