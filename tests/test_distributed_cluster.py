"""A Ray cluster: what is refused before any work, and (slow) that faults change nothing of the outcome."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from reasonembed_mteb.distributed import probe
from reasonembed_mteb.distributed.cluster import (
    ClusterChoice,
    RayMachines,
    check_versions,
    own_error,
    share_out,
)
from reasonembed_mteb.errors import DataError, MissingExtraError, ReasonEmbedError


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


def test_nothing_of_ray_is_imported_without_a_cluster() -> None:
    code = (
        "import sys, reasonembed_mteb.distributed.encode, reasonembed_mteb.distributed.search, "
        "reasonembed_mteb.distributed.cluster, reasonembed_mteb.cli.scale; "
        "print([n for n in ('ray', 's3fs', 'gcsfs') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
