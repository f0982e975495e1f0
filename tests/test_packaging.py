"""What an installation holds, and what it costs to start."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STARTUP = {"reasonembed_mteb.pth", "reasonembed_mteb.start"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with wheel and source distribution: those just built, or build them."""
    built = os.environ.get("REASONEMBED_TEST_DIST")
    if built:
        return Path(built)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def unpacked(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel's content, as an installer would lay it out."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(code: str, *path: Path) -> str:
    """Run code away from the checkout, with these folders in front."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "REASONEMBED_MTEB_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_wheel_installs_one_top_level_name(unpacked: Path) -> None:
    names = {entry.name for entry in unpacked.iterdir() if not entry.name.endswith(".dist-info")}
    assert names == {"reasonembed_mteb", *STARTUP}
    record = next(unpacked.glob("*.dist-info/RECORD")).read_text()
    assert all(name in record for name in STARTUP)
    assert (unpacked / "reasonembed_mteb.start").read_text() == "reasonembed_mteb._startup:install\n"


@pytest.mark.slow
def test_the_wheel_holds_tables_and_data(unpacked: Path) -> None:
    package = unpacked / "reasonembed_mteb"
    assert (package / "py.typed").is_file()
    for table in (ROOT / "tasks").glob("*.toml"):
        assert (package / "tasks" / table.name).read_bytes() == table.read_bytes()
    shipped = {file.name for file in (package / "tasks" / "mini").iterdir()}
    assert shipped == {file.name for file in (ROOT / "tasks" / "mini").iterdir()}
    assert not list((package / "tasks").rglob("*.py"))


@pytest.mark.slow
def test_every_module_is_in_the_wheel(unpacked: Path) -> None:
    wanted = {str(file.relative_to(ROOT)) for file in (ROOT / "reasonembed_mteb").rglob("*.py")}
    found = {str(file.relative_to(unpacked)) for file in (unpacked / "reasonembed_mteb").rglob("*.py")}
    assert found == wanted


@pytest.mark.slow
def test_the_embedded_benchmark_runs_from_the_wheel(unpacked: Path) -> None:
    code = """
import mteb, reasonembed_mteb
reasonembed_mteb.register()
model = mteb.get_model("mteb/baseline-random-encoder")
tasks = reasonembed_mteb.load_tasks("ReasonMini")
done = mteb.evaluate(model, tasks, cache=None, co2_tracker=False, show_progress_bar=False)
print(reasonembed_mteb.__file__, len(done.task_results))
"""
    file, count = python(code, unpacked).splitlines()[-1].split()
    assert file.startswith(str(unpacked))
    assert count == "12"


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(distributions: Path, tmp_path: Path) -> None:
    (source,) = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "d"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (first,), (second,) = distributions.glob("*.whl"), (tmp_path / "d").glob("*.whl")
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        assert sorted(one.namelist()) == sorted(two.namelist())


@pytest.mark.slow
def test_an_editable_install_carries_the_start_up_files(tmp_path: Path) -> None:
    target = tmp_path / "wheel"
    target.mkdir()
    # The hook of PEP 660 is what `pip install -e` calls.
    code = f"import os; os.chdir({str(ROOT)!r})\nfrom setuptools.build_meta import build_editable\nprint(build_editable({str(target)!r}))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) >= STARTUP


def test_the_package_and_the_help_start_fast() -> None:
    for command in ([sys.executable, "-c", "import reasonembed_mteb"], [sys.executable, "-m", "reasonembed_mteb", "--help"]):
        times = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        # Measured: 0.03 s and 0.15 s.
        assert min(times) < 0.5, command


def test_nothing_heavy_is_imported_early() -> None:
    code = "import sys, reasonembed_mteb.cli; print(sorted({'torch','mteb','transformers','datasets','numpy'} & set(sys.modules)))"
    environment = os.environ | {"REASONEMBED_MTEB_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]"
