"""The start-up hook: when mteb is imported, it also learns our tasks, models and benchmarks.

Runs at every start of Python in this environment, so it imports nothing that Python has not loaded by
itself until mteb's own modules come. ``REASONEMBED_MTEB_DISABLE=1`` turns it off. SECURITY.md says how to
see and remove it.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident  # built in; `threading` would have to be loaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# After each of these modules has run, the function of `plugin` named here is called with it.
_TARGETS = {
    "mteb.tasks": "register_tasks",
    "mteb.models.model_implementations": "register_models",
    "mteb.benchmarks.benchmarks": "register_benchmarks",
}


class _Finder:
    """A finder that finds nothing itself: it lets the others find mteb's modules and adds a step.

    It stays where it is when all steps are taken: an import in another thread may be walking through
    `sys.meta_path`, and would skip a finder if this one went away.
    """

    def __init__(self) -> None:
        self._waiting = dict(_TARGETS)
        self._asking: set[tuple[int, str]] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the others' spec of a target module, whose execution then ends with our step."""
        if name not in self._waiting:
            return None
        # Another hook of this kind asks all finders as well, this one among them.
        question = (get_ident(), name)
        if question in self._asking:
            return None
        self._asking.add(question)
        try:
            spec = self._from_others(name, path, target)
        finally:
            self._asking.discard(question)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._add_step(spec)
        return spec

    def _from_others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is not self and find is not None:
                spec: ModuleSpec | None = find(name, path, target)
                if spec is not None:
                    return spec
        return None

    def _add_step(self, spec: ModuleSpec) -> None:
        """Let the loader of a target module call the plugin when the module has run.

        Finding is not loading (`python -m mteb` and `importlib.util.find_spec` only look), so everything
        waits for the execution. Only this loader instance is changed, and it is changed back.
        """
        loader = spec.loader
        execute: Callable[[ModuleType], None] = loader.exec_module  # type: ignore[union-attr]

        def exec_module(module: ModuleType) -> None:
            if module.__name__ != spec.name:
                # A zip archive has one loader for all modules of a folder.
                execute(module)
                return
            vars(loader).pop("exec_module", None)
            execute(module)
            step = self._waiting.pop(spec.name, None)
            if step is not None:
                _take(step, module)

        loader.exec_module = exec_module  # type: ignore[union-attr,method-assign]


_said: set[str] = set()


def _take(step: str, *arguments: ModuleType) -> None:
    """Run one registration; whatever goes wrong, `import mteb` continues and one warning says so."""
    try:
        from reasonembed_mteb import plugin

        getattr(plugin, step)(*arguments)
    except Exception as error:
        _say_once(
            f"reasonembed_mteb could not register with mteb ({step}): {type(error).__name__}: {error}. "
            "mteb works without it; `reasonembed doctor` says more, REASONEMBED_MTEB_DISABLE=1 turns it off."
        )


def _say_once(message: str) -> None:
    """Warn about the first failure; the steps after it mostly fail for the same reason."""
    if _said:
        return
    _said.add(message)
    import warnings

    try:
        warnings.warn(message, stacklevel=2)
    except Warning:
        # Warnings are errors here (`python -W error`), and this one would stop `import mteb`.
        sys.stderr.write(f"{message}\n")


def install() -> None:
    """Watch for mteb; called by the ``.pth`` and ``.start`` files at the start of Python."""
    if os.environ.get("REASONEMBED_MTEB_DISABLE", "") not in ("", "0"):
        return
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    if "mteb" in sys.modules:
        _take("register")
