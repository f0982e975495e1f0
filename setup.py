"""Ship the two start-up files beside the package; everything else is in setup.cfg.

A ``.pth`` file runs its import line at every start of Python; from Python 3.18 on its ``.start`` twin
(PEP 829) takes its place. setuptools has no option for either, in wheels or in editable installs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

STARTUP_FILES = {
    "reasonembed_mteb.pth": "import reasonembed_mteb._startup; reasonembed_mteb._startup.install()\n",
    "reasonembed_mteb.start": "reasonembed_mteb._startup:install\n",
}


class BuildWithStartupFiles(build_py):
    """Put the start-up files at the top of the wheel."""

    def run(self) -> None:
        """Build, then write the files; an editable build writes them itself."""
        super().run()
        if not self.editable_mode:
            for name, content in STARTUP_FILES.items():
                (Path(self.build_lib) / name).write_text(content, encoding="utf-8")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name the files too, so that they are recorded and can be uninstalled."""
        ours = [] if self.editable_mode else [str(Path(self.build_lib) / name) for name in STARTUP_FILES]
        return [*super().get_outputs(include_bytecode), *ours]


class _Strategy:
    """An editable strategy that writes the start-up files after its own."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __enter__(self) -> Any:
        return _Strategy(self._inner.__enter__())

    def __exit__(self, *exception: object) -> Any:
        return self._inner.__exit__(*exception)

    def __call__(self, wheel: Any, files: list[str], mapping: dict[str, str]) -> None:
        self._inner(wheel, files, mapping)
        for name, content in STARTUP_FILES.items():
            wheel.writestr(name, content)


class EditableWithStartupFiles(editable_wheel):
    """Editable installs carry them as well; setuptools' strategies drop what is not Python."""

    def _select_strategy(self, *args: Any, **kwargs: Any) -> _Strategy:
        return _Strategy(super()._select_strategy(*args, **kwargs))


setup(cmdclass={"build_py": BuildWithStartupFiles, "editable_wheel": EditableWithStartupFiles})
