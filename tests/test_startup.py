"""The start-up hook, in an environment of its own with a small stand-in for mteb and for our plugin."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import textwrap
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import reasonembed_mteb

if TYPE_CHECKING:
    from collections.abc import Iterator

# Like mteb: names are gathered from `mteb.tasks` while `mteb` is imported, benchmarks are left for later.
MTEB = {
    "__init__.py": "import mteb.tasks, mteb.models.model_implementations\nNAMES = sorted(vars(mteb.tasks))\n",
    "__main__.py": "import mteb\nprint('OURS' in mteb.NAMES)\n",
    "tasks/__init__.py": "READY = True\n",
    "models/__init__.py": "",
    "models/model_implementations/__init__.py": "READY = True\n",
    "benchmarks/__init__.py": "",
    "benchmarks/benchmarks/__init__.py": "READY = True\n",
}
PLUGIN = """
import os
if "BREAK_IMPORT" in os.environ:
    raise ImportError("no plugin today")
calls = []
def note(step, module=None):
    if "BREAK_STEP" in os.environ:
        raise RuntimeError("no step today")
    if module is not None:
        assert module.READY
        module.OURS = True
    calls.append((step, module and module.__name__))
def register():
    note("register")
def register_tasks(module):
    note("tasks", module)
def register_models(module):
    note("models", module)
def register_benchmarks(module):
    note("benchmarks", module)
"""
EAGER = [["tasks", "mteb.tasks"], ["models", "mteb.models.model_implementations"]]
LATER = ["benchmarks", "mteb.benchmarks.benchmarks"]
SHOW = "\nimport json\nfrom reasonembed_mteb import plugin\nprint(json.dumps(plugin.calls))\n"


def startup_file(name: str) -> str:
    """Read a start-up file as the installation under test has it."""
    # The checkout may hold an *.egg-info of the same name.
    for installed in importlib.metadata.distributions(name="reasonembed-mteb"):
        for file in installed.files or ():
            if str(file) == name:
                return file.read_text()
    pytest.fail(f"{name} is not installed: run `pip install -e .` again")


@dataclass(frozen=True)
class Sandbox:
    """An environment with the real hook, a stand-in mteb, and nothing else."""

    python: str
    site: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python in it."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "REASONEMBED", "COV"))}
        return subprocess.run(
            [self.python, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=kept | environment,
            cwd=self.site.parent,
            check=False,
        )

    def calls(self, code: str, *flags: str, **environment: str) -> Any:
        """Run code, then return what the stand-in plugin was asked."""
        done = self.run(*flags, "-c", textwrap.dedent(code) + SHOW, **environment)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout.splitlines()[-1])


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def copy_hook(folder: Path) -> None:
    """Copy the two modules that every start of Python loads."""
    source = Path(reasonembed_mteb.__file__).parent
    (folder / "reasonembed_mteb").mkdir(parents=True)
    for name in ("__init__.py", "_startup.py"):
        shutil.copy(source / name, folder / "reasonembed_mteb")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    root = tmp_path_factory.mktemp("sandbox")
    builder = venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt")
    builder.create(root)
    context = builder.ensure_directories(root)
    python = context.env_exe
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(
        subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    )
    copy_hook(site)
    write(site / "reasonembed_mteb", {"plugin.py": PLUGIN})
    write(site / "mteb", MTEB)
    write(site, {"reasonembed_mteb.pth": startup_file("reasonembed_mteb.pth")})
    return Sandbox(python, site)


def test_each_step_follows_its_module(sandbox: Sandbox) -> None:
    assert sandbox.calls("import mteb; assert 'OURS' in mteb.NAMES") == EAGER
    assert sandbox.calls("import mteb, mteb.benchmarks.benchmarks") == [*EAGER, LATER]


def test_a_submodule_may_come_first(sandbox: Sandbox) -> None:
    assert sandbox.calls("from mteb.benchmarks.benchmarks import OURS") == [*EAGER, LATER]


def test_looking_is_not_loading(sandbox: Sandbox) -> None:
    code = """
    import sys, importlib.util
    for _ in range(3):
        assert importlib.util.find_spec("mteb").name == "mteb"
        assert importlib.util.find_spec("mteb.benchmarks.benchmarks").name == "mteb.benchmarks.benchmarks"
    assert "mteb.benchmarks.benchmarks" not in sys.modules
    from reasonembed_mteb import plugin
    assert len(plugin.calls) == 2
    import mteb.benchmarks.benchmarks
    """
    assert sandbox.calls(code) == [*EAGER, LATER]


@pytest.mark.parametrize("flags", [[], ["-I"], ["-E"], ["-O"]])
def test_python_m(flags: list[str], sandbox: Sandbox) -> None:
    done = sandbox.run(*flags, "-m", "mteb")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_without_site_there_is_no_hook(sandbox: Sandbox) -> None:
    done = sandbox.run("-S", "-c", "import sys; print(any('reasonembed' in name for name in sys.modules))")
    assert done.stdout == "False\n"


def test_threads_that_import_at_once(sandbox: Sandbox) -> None:
    code = """
    import importlib, threading
    names = ["mteb", "mteb.tasks", "mteb.benchmarks.benchmarks", "mteb.models.model_implementations"] * 4
    barrier, failed = threading.Barrier(len(names)), []
    def load(name):
        barrier.wait()
        try:
            importlib.import_module(name)
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=load, args=(name,)) for name in names]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failed, failed
    """
    assert sorted(sandbox.calls(code)) == sorted([*EAGER, LATER])


def test_spawned_processes(sandbox: Sandbox, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing

            def ask(_):
                import mteb
                return "OURS" in mteb.NAMES

            if __name__ == "__main__":
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    print(pool.map(ask, range(2)))
            """
        )
    )
    assert sandbox.run(str(script)).stdout == "[True, True]\n"


@pytest.mark.parametrize(("value", "expected"), [("1", []), ("yes", []), ("0", EAGER), ("", EAGER)])
def test_opting_out(value: str, expected: list[Any], sandbox: Sandbox) -> None:
    assert sandbox.calls("import mteb", REASONEMBED_MTEB_DISABLE=value) == expected


@pytest.mark.parametrize("broken", ["BREAK_IMPORT", "BREAK_STEP"])
@pytest.mark.parametrize("flags", [[], ["-W", "error"]])
def test_a_failure_is_one_warning(flags: list[str], broken: str, sandbox: Sandbox) -> None:
    code = "import mteb, mteb.benchmarks.benchmarks; print(mteb.benchmarks.benchmarks.READY)"
    done = sandbox.run(*flags, "-c", code, **{broken: "1"})
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert done.stderr.count("reasonembed_mteb could not register with mteb") == 1
    assert "today" in done.stderr
    assert "REASONEMBED_MTEB_DISABLE=1" in done.stderr
    assert "Traceback" not in done.stderr


def test_mteb_is_already_there(sandbox: Sandbox) -> None:
    code = """
    import os
    del os.environ["REASONEMBED_MTEB_DISABLE"]
    import mteb
    from reasonembed_mteb import _startup
    _startup.install()
    _startup.install()
    """
    assert sandbox.calls(code, REASONEMBED_MTEB_DISABLE="1") == [["register", None]]


def test_a_failure_when_mteb_is_already_there(sandbox: Sandbox) -> None:
    code = """
    import os
    del os.environ["REASONEMBED_MTEB_DISABLE"]
    import mteb
    from reasonembed_mteb import _startup
    _startup.install()
    """
    done = sandbox.run("-c", textwrap.dedent(code), REASONEMBED_MTEB_DISABLE="1", BREAK_IMPORT="1")
    assert done.returncode == 0
    assert "could not register with mteb (register): ImportError: no plugin today" in done.stderr


def test_installing_twice_adds_one_finder(sandbox: Sandbox) -> None:
    code = """
    import sys
    from reasonembed_mteb import _startup
    _startup.install()
    assert [type(f).__name__ for f in sys.meta_path].count("_Finder") == 1
    import mteb
    """
    assert sandbox.calls(code) == EAGER


def test_the_loader_is_as_it_was(sandbox: Sandbox) -> None:
    code = """
    import importlib.machinery, importlib.resources, inspect, mteb
    loader = mteb.tasks.__spec__.loader
    assert type(loader) is importlib.machinery.SourceFileLoader
    assert "exec_module" not in vars(loader)
    assert importlib.resources.files("mteb.tasks").joinpath("__init__.py").is_file()
    assert "READY" in inspect.getsource(mteb.tasks)
    """
    assert sandbox.calls(code) == EAGER


@pytest.mark.parametrize("position", [0, 1])
def test_another_hook_of_the_same_kind(position: int, sandbox: Sandbox) -> None:
    code = f"""
    import sys
    class Other:
        seen = []
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name == "mteb.tasks":
                cls.seen.append(name)
                for finder in sys.meta_path:
                    if finder is not cls and (spec := finder.find_spec(name, path, target)):
                        return spec
    sys.meta_path.insert({position}, Other)
    import mteb
    assert Other.seen
    """
    assert sandbox.calls(code) == EAGER


def test_an_import_that_fails_first(sandbox: Sandbox) -> None:
    code = """
    import builtins, sys
    sys.modules["mteb.models"] = None
    try:
        import mteb
    except ImportError:
        pass
    for name in [n for n in sys.modules if n.startswith("mteb")]:
        del sys.modules[name]
    import mteb, mteb.benchmarks.benchmarks
    """
    # `mteb.tasks` itself had run, and been told, before the failure.
    assert sandbox.calls(code) == [*EAGER, LATER]


def test_mteb_in_a_zip_archive(sandbox: Sandbox, tmp_path: Path) -> None:
    archive = tmp_path / "mteb.zip"
    files = MTEB | {"__init__.py": "import mteb.other\n" + MTEB["__init__.py"], "other.py": ""}
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in files.items():
            packed.writestr(f"mteb/{name}", content)
    # A folder of an archive has one loader: another module may run between looking and loading.
    code = f"""
    import sys, importlib.machinery
    sys.path.insert(0, {str(archive)!r})
    finder = sys.meta_path[0]
    folder = [{str(archive / "mteb")!r}]
    assert finder.find_spec("mteb.tasks", folder).name == "mteb.tasks"
    assert finder.find_spec("mteb.tasks", folder).name == "mteb.tasks"
    import mteb
    assert ".zip" in mteb.__file__
    """
    assert sandbox.calls(code) == EAGER


@pytest.fixture
def unhooked(sandbox: Sandbox) -> Iterator[Sandbox]:
    """The sandbox without its start-up file."""
    file = sandbox.site / "reasonembed_mteb.pth"
    file.rename(sandbox.site / "off")
    yield sandbox
    (sandbox.site / "off").rename(file)


def loaded(sandbox: Sandbox) -> set[str]:
    return set(sandbox.run("-c", "import sys; print(*sys.modules)").stdout.split())


@pytest.fixture(scope="module")
def loaded_with_hook(sandbox: Sandbox) -> set[str]:
    return loaded(sandbox)


def test_a_start_of_python_loads_two_small_modules(loaded_with_hook: set[str], unhooked: Sandbox) -> None:
    added = loaded_with_hook - loaded(unhooked)
    assert added - {"__future__"} == {"reasonembed_mteb", "reasonembed_mteb._startup"}


def test_the_start_file_names_the_function() -> None:
    module, _, function = startup_file("reasonembed_mteb.start").strip().partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert startup_file("reasonembed_mteb.pth").strip() == f"import {module}; {module}.{function}()"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["available-benchmarks"], ["BRIGHT(ReasonEmbed)", "R2MED(ReasonEmbed)", "ReasonMini"]),
        (["available-tasks", "-t", "ReasonEmbedBrightBiology"], ["ReasonEmbedBrightBiology"]),
    ],
)
def test_mteb_itself_knows_our_names(arguments: list[str], expected: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mteb")), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in expected:
        assert name in done.stdout + done.stderr
