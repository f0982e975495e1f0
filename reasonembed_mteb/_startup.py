"""The start-up hook: when mteb is imported, it also learns our tasks, models and benchmarks.

Runs at every start of Python in this environment, so it imports `sys` and nothing else until mteb's own
modules come. ``REASONEMBED_MTEB_DISABLE=1`` turns it off. SECURITY.md says how to see and remove it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# After each of these modules has run, the function of `plugin` named here is called with it.
_TARGETS = {
    "mteb.tasks": "register_tasks",
    "mteb.models.model_implementations": "register_models",
    "mteb.benchmarks.benchmarks": "register_benchmarks",
}


class _Finder:
    """A finder that finds nothing itself: it lets the others find mteb's modules and adds a step."""

    def __init__(self) -> None:
        self._waiting = dict(_TARGETS)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the others' spec of a target module, whose execution then ends with our step."""
        if name not in self._waiting:
            return None
        spec = self._from_others(name, path, target)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return spec
        execute = spec.loader.exec_module

        # Finding is not loading (`python -m mteb` and importlib.util.find_spec only look), so everything
        # waits for the execution. Only this loader instance is changed, and it is changed back.
        def exec_module(module: ModuleType) -> None:
            vars(spec.loader).pop("exec_module", None)
            execute(module)
            step = self._waiting.pop(name, None)
            if step is not None:
                _take_step(step, module)
            if not self._waiting and self in sys.meta_path:
                sys.meta_path.remove(self)  # type: ignore[arg-type]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
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


def _take_step(step: str, module: ModuleType) -> None:
    """Run one registration; whatever goes wrong, `import mteb` goes on and one warning says so."""
    try:
        from reasonembed_mteb import plugin

        getattr(plugin, step)(module)
    except Exception as error:  # noqa: BLE001 - a plugin must never break its host
        import warnings

        warnings.warn(
            f"reasonembed_mteb could not register with mteb ({step}): {type(error).__name__}: {error}. "
            "mteb works without it; `reasonembed doctor` says more, REASONEMBED_MTEB_DISABLE=1 turns it off.",
            stacklevel=2,
        )


def install() -> None:
    """Watch for mteb; called by the ``.pth`` and ``.start`` files at the start of Python."""
    import os

    if os.environ.get("REASONEMBED_MTEB_DISABLE", "") not in ("", "0"):
        return
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if "mteb" in sys.modules:
        from reasonembed_mteb import plugin

        plugin.register()
        return
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
