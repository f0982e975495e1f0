"""Ship the two start-up files beside the package; everything else is in setup.cfg.

A ``.pth`` file runs its import line at every start of Python; from Python 3.18 on its ``.start`` twin
(PEP 829) takes its place. setuptools has no option for either, in wheels or in editable installs.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

STARTUP_FILES = {
    "reasonembed_mteb.pth": "import reasonembed_mteb._startup; reasonembed_mteb._startup.install()\n",
    "reasonembed_mteb.start": "reasonembed_mteb._startup:install\n",
}


def write_startup_files(folder: str) -> None:
    """Write both files into the folder that becomes the top of a wheel."""
    for name, content in STARTUP_FILES.items():
        Path(folder, name).write_text(content, encoding="utf-8")


class BuildWithStartupFiles(build_py):
    """Put the start-up files at the top of the wheel."""

    def run(self) -> None:
        """Build, then write the files; an editable build writes them itself."""
        super().run()
        if not self.editable_mode:
            write_startup_files(self.build_lib)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name the files too, so that they are recorded and can be uninstalled."""
        ours = [] if self.editable_mode else [str(Path(self.build_lib, name)) for name in STARTUP_FILES]
        return [*super().get_outputs(include_bytecode), *ours]


class EditableWithStartupFiles(editable_wheel):
    """Editable installs carry them as well; setuptools keeps Python files alone.

    This is a private step of setuptools, the last one that is given the folder of the wheel.
    tests/test_packaging.py fails where a newer setuptools no longer takes it.
    """

    def _run_build_commands(
        self, dist_name: str, unpacked_wheel: str, build_lib: str, tmp_dir: str
    ) -> tuple[list[str], dict[str, str]]:
        write_startup_files(unpacked_wheel)
        return super()._run_build_commands(dist_name, unpacked_wheel, build_lib, tmp_dir)


setup(cmdclass={"build_py": BuildWithStartupFiles, "editable_wheel": EditableWithStartupFiles})
