"""What an installation holds, what it needs, and what it costs to start."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
STARTUP = {"reasonembed_mteb.pth", "reasonembed_mteb.start"}
HEAVY = {"torch", "mteb", "sentence_transformers", "transformers", "datasets", "numpy", "pyarrow", "beir"}


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def files_under(folder: Path, pattern: str = "*") -> set[str]:
    """Name the files below a folder, without what Python and the system leave there."""
    found = (file.relative_to(folder) for file in folder.rglob(pattern) if file.is_file())
    return {
        file.as_posix() for file in found if not any(p[0] in "._" and p != "__init__.py" for p in file.parts)
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a clone holds: a build leaves files beside its sources, and old ones can creep in."""
    folder = tmp_path_factory.mktemp("source")
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, folder)
    for name in ("reasonembed_mteb", "tasks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return folder


def build(*arguments: str) -> None:
    """Build with the setuptools at hand: no network."""
    command = [sys.executable, "-W", "ignore", "-m", "build", "--no-isolation", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def distributions(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with wheel and source distribution: those just built, or build them."""
    if built := os.environ.get("REASONEMBED_TEST_DIST"):
        return Path(built)
    folder = tmp_path_factory.mktemp("dist")
    build("--outdir", str(folder), str(source))
    return folder


@pytest.fixture(scope="module")
def site(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel's content, as an installer lays it out."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_every_package_is_named() -> None:
    initials = (ROOT / "reasonembed_mteb").rglob("__init__.py")
    folders = {file.parent.relative_to(ROOT).as_posix().replace("/", ".") for file in initials}
    assert set(setup_cfg()["options"]["packages"].split()) == folders | {"reasonembed_mteb.tasks"}


def test_metadata_is_in_one_place() -> None:
    # Both together would make setuptools ignore setup.cfg, or fail.
    assert "project" not in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_versions_tested_together_fit_the_requirements() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines if line and line[0] != "#")  # type: ignore[union-attr]
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    config = setup_cfg()
    extras = config["options.extras_require"]
    texts = [config["options"]["install_requires"], *extras.values()]
    for line in "\n".join(texts).splitlines():
        if line and line[0] != "#":
            requirement = Requirement(line)
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line


def test_every_dependency_has_a_lower_bound_that_can_be_installed() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "lowest.py")], capture_output=True, text=True, check=True
    )
    lowest = dict(line.split("==") for line in done.stdout.splitlines())
    # An extra may raise the bound of the package itself.
    assert lowest["jinja2"] == "3.1.6"
    assert {"mteb", "transformers", "peft", "openai", "mkdocs-material", "ruff"} <= lowest.keys()


def test_transformers_takes_the_adapters_that_are_installed() -> None:
    # transformers 5.24.0 asked for a peft that was not out: every recipe with adapters stopped.
    from transformers.integrations import peft

    assert Version(importlib.metadata.version("peft")) >= Version(peft.MIN_PEFT_VERSION)


@pytest.mark.slow
def test_the_wheel_installs_one_top_level_name(site: Path) -> None:
    (info,) = site.glob("*.dist-info")
    assert {entry.name for entry in site.iterdir()} - {info.name} == {"reasonembed_mteb", *STARTUP}
    assert (info / "top_level.txt").read_text().split() == ["reasonembed_mteb"]
    # What is recorded is what `pip uninstall` removes.
    recorded = {line.split(",")[0] for line in (info / "RECORD").read_text().splitlines()}
    assert recorded >= STARTUP
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_all_data(site: Path) -> None:
    package = site / "reasonembed_mteb"
    tasks = files_under(ROOT / "tasks")
    assert {"bright.toml", "bright_long.toml", "r2med.toml", "mini.toml", "mini/README.md"} <= tasks
    assert not [name for name in tasks if name.endswith(".py")]
    assert files_under(package / "tasks") == tasks
    modules = {
        file.relative_to(ROOT / "reasonembed_mteb") for file in (ROOT / "reasonembed_mteb").rglob("*.py")
    }
    assert {file.relative_to(package) for file in package.rglob("*.py")} == modules
    assert (package / "py.typed").is_file()


@pytest.mark.slow
def test_python_installs_the_hook_of_the_wheel(site: Path) -> None:
    code = f"""
import site, sys
site.addsitedir({str(site)!r})
print([type(finder).__module__ for finder in sys.meta_path].count("reasonembed_mteb._startup"))
"""
    # The interpreter beneath the environment, where nothing of ours is installed.
    python = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([python, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.slow
def test_the_embedded_benchmark_runs_from_the_wheel(site: Path, tmp_path: Path) -> None:
    code = """
import mteb, reasonembed_mteb
reasonembed_mteb.register()
model = mteb.get_model("mteb/baseline-random-encoder")
tasks = reasonembed_mteb.load_tasks("ReasonMini")
done = mteb.evaluate(model, tasks, cache=None, co2_tracker=False, show_progress_bar=False)
print(reasonembed_mteb.__file__)
print(len(done.task_results), [name for name, _ in done.exceptions or ()])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, finished = done.stdout.splitlines()[-2:]
    assert Path(file).is_relative_to(site)
    assert finished == "12 []"


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(distributions: Path, tmp_path: Path) -> None:
    (archive_file,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive_file) as archive:
        archive.extractall(tmp_path / "s", filter="data")
    (folder,) = (tmp_path / "s").iterdir()
    assert (folder / "constraints.txt").is_file()
    assert (folder / "tests" / "conftest.py").is_file()
    build("--wheel", "--outdir", str(tmp_path / "d"), str(folder))
    (first,), (second,) = distributions.glob("*.whl"), (tmp_path / "d").glob("*.whl")
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        assert sorted(one.namelist()) == sorted(two.namelist())


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "strict", "compat"])
def test_an_editable_install_carries_the_start_up_files(
    mode: str | None, source: Path, tmp_path: Path
) -> None:
    # The function that `pip install -e` calls (PEP 660).
    settings = {"editable_mode": mode} if mode else None
    code = (
        f"from setuptools.build_meta import build_editable\nbuild_editable({str(tmp_path)!r}, {settings!r})"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) >= STARTUP
        for name in STARTUP:
            assert b"reasonembed_mteb._startup" in archive.read(name)


@pytest.mark.parametrize(
    "module", ["reasonembed_mteb", "reasonembed_mteb.cli", "reasonembed_mteb.retrieval.rows"]
)
def test_nothing_heavy_is_imported(module: str) -> None:
    code = f"import sys, {module}; print(*({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
