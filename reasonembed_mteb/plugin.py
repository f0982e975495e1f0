"""Making mteb know our tasks, benchmarks and models: the one room that touches its private names.

The start-up hook calls `register_tasks`, `register_benchmarks` and `register_models` right after mteb's
own modules have run, so that mteb gathers our names natively. `register` does the same afterwards, by
mteb's private registries. A name that mteb already holds is left alone and warned about: upstream wins.
"""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from reasonembed_mteb.errors import DataError, ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    from reasonembed_mteb.retrieval.task import ReasonTask

MTEB_MIN, MTEB_BELOW = "2.26.24", "3"
_OURS = "_reasonembed_mteb"
_TASK_MODULE = "reasonembed_mteb.retrieval.task"


def check_mteb_version() -> None:
    """Refuse an mteb that this plugin was not made for.

    Raises:
        ReasonEmbedError: If it is too old or too new.
    """
    found = Version(importlib.metadata.version("mteb"))
    if not Version(MTEB_MIN) <= found < Version(MTEB_BELOW):
        msg = (
            f"mteb {found} is not supported; reasonembed-mteb needs mteb>={MTEB_MIN},<{MTEB_BELOW}: "
            f'pip install "mteb>={MTEB_MIN},<{MTEB_BELOW}"'
        )
        raise ReasonEmbedError(msg)


def _private(module: ModuleType, name: str) -> Any:  # noqa: ANN401 - one of mteb's registries
    """Return one of mteb's names, or say clearly that mteb moved it."""
    try:
        return getattr(module, name)
    except AttributeError:
        version = importlib.metadata.version("mteb")
        msg = (
            f"mteb {version} has no {module.__name__}.{name} any more; this version of reasonembed-mteb "
            f"cannot register with it: install an older mteb, or a newer reasonembed-mteb"
        )
        raise ReasonEmbedError(msg) from None


def _warn_taken(kind: str, names: Iterable[str]) -> None:
    taken = sorted(names)
    if taken:
        warnings.warn(
            f"mteb already has the {kind} {', '.join(taken)}; reasonembed_mteb leaves them as they are",
            stacklevel=3,
        )


def _check_taken(tasks: Mapping[str, type[ReasonTask]], names: Iterable[str]) -> None:
    """Refuse a task of a user's table that mteb has already; leave mteb's in place of one of ours."""
    from reasonembed_mteb.retrieval.rows import is_users

    taken = sorted(names)
    for name in taken:
        row = tasks[name].row
        if is_users(row):
            msg = f"{row.table}: MTEB has a task {name} already; give it another name"
            raise DataError(msg)
    _warn_taken("tasks", taken)


def register_tasks(module: ModuleType) -> None:
    """Put our task classes into ``mteb.tasks`` before mteb gathers them.

    Args:
        module: ``mteb.tasks``, just executed.
    """
    check_mteb_version()
    if _is_loading(_TASK_MODULE):
        # Our task module was imported first and is importing mteb just now; it ends with the rest.
        vars(sys.modules[_TASK_MODULE]).setdefault("when_imported", []).append(register)
        return
    from reasonembed_mteb.retrieval.task import build_tasks

    held = {task.metadata.name for task in vars(module).values() if hasattr(task, "metadata")}
    tasks = build_tasks()
    _check_taken(tasks, held & tasks.keys())
    for name, task in tasks.items():
        if name not in held:
            setattr(module, name, task)


def _is_loading(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


def register_models(module: ModuleType) -> None:
    """Put our models into MTEB's registry, and let it take local directories.

    Args:
        module: ``mteb.models.model_implementations``, just executed.
    """
    check_mteb_version()
    from reasonembed_mteb.models.zoo import model_metas

    registry: dict[str, Any] = _private(module, "MODEL_REGISTRY")
    metas = model_metas()
    theirs = {name: registry[name] for name in metas if name in registry}
    _warn_taken("models", (n for n, m in theirs.items() if getattr(m, "loader", None) is not metas[n].loader))
    for name, meta in metas.items():
        held = registry.setdefault(name, meta)
        if getattr(held, "loader", None) is meta.loader:
            # Tables that came later may hold more tasks over the same data.
            registry[name] = meta
    _take_local_folders()
    _identify_objects()


def _take_local_folders() -> None:
    """Let ``ModelMeta.from_hub`` answer for existing directories; mteb has no loader for them."""
    from mteb.models.model_meta import ModelMeta

    original: Callable[..., ModelMeta] = _private(ModelMeta, "from_hub")  # type: ignore[arg-type]
    if hasattr(original, _OURS):
        return

    @wraps(original)
    def from_hub(cls: type[ModelMeta], model: str, *args: Any, **kwargs: Any) -> ModelMeta:
        if not Path(str(model)).expanduser().is_dir():
            return original(model, *args, **kwargs)
        from reasonembed_mteb.models.zoo import local_meta

        return local_meta(model, revision=args[0] if args else kwargs.get("revision"))

    setattr(from_hub, _OURS, True)
    ModelMeta.from_hub = classmethod(from_hub)  # type: ignore[assignment,method-assign]


def _identify_objects() -> None:
    """Let objects of ours have a name and a content revision; MTEB gives an object neither.

    Two of them given to ``mteb.evaluate`` one after the other would share a cached score.
    """
    from mteb.models.model_meta import ModelMeta

    original: Callable[..., ModelMeta] = _private(ModelMeta, "from_sentence_transformer_model")  # type: ignore[arg-type]
    if hasattr(original, _OURS):
        return

    @wraps(original)
    def from_object(cls: type[ModelMeta], model: Any, *args: Any, **kwargs: Any) -> ModelMeta:  # noqa: ANN401
        if len(args) < 2:
            # MTEB warns about its own default, which is deprecated.
            kwargs.setdefault("fill_missing", None)
        meta = original(model, *args, **kwargs)
        # An object of ours cannot exist before its module does; other users of MTEB load nothing here.
        if "reasonembed_mteb.encoding.fast" not in sys.modules:
            return meta
        from reasonembed_mteb.models.identity import identified, needs_identity

        return identified(meta, model) if needs_identity(model) else meta

    setattr(from_object, _OURS, True)
    ModelMeta.from_sentence_transformer_model = classmethod(from_object)  # type: ignore[assignment,method-assign]


def register_benchmarks(module: ModuleType) -> None:
    """Put our benchmarks into ``mteb.benchmarks.benchmarks``.

    Args:
        module: That package, executed.
    """
    check_mteb_version()
    from mteb.benchmarks.benchmark import Benchmark

    from reasonembed_mteb.retrieval.task import build_benchmarks

    held = {b.name: b for b in vars(module).values() if isinstance(b, Benchmark)}
    ours = {name for name in held if hasattr(module, _attribute(name))}
    benchmarks = build_benchmarks()
    _warn_taken("benchmarks", (held.keys() & benchmarks.keys()) - ours)
    for name, benchmark in benchmarks.items():
        if name not in held:
            setattr(module, _attribute(name), benchmark)


def _attribute(benchmark: str) -> str:
    return "REASONEMBED_" + "".join(c if c.isalnum() else "_" for c in benchmark).strip("_").upper()


def register(tables: str | Path | Iterable[str | Path] = ()) -> None:
    """Make mteb know our tasks, benchmarks and models; may be called any number of times.

    With the start-up hook in place, and no further tables, this has nothing left to do.

    Args:
        tables: A folder of task tables of your own, or several; see ``docs/adding-a-benchmark.md``. The
            folders in ``REASONEMBED_TASKS`` are read without being named here.

    Raises:
        ReasonEmbedError: If the installed mteb is too old or too new, or has moved a name we need.
        DataError: If a table cannot be read, or holds a task that exists already.
    """
    check_mteb_version()
    if tables:
        from reasonembed_mteb.models.zoo import model_metas
        from reasonembed_mteb.retrieval.rows import add_tables

        add_tables(tables)
        model_metas.cache_clear()
    import_module("mteb")
    if _is_loading("mteb"):
        # Called in the middle of `import mteb`: the hook does it at the right moments.
        return
    _add_tasks_afterwards()
    register_models(import_module("mteb.models.model_implementations"))
    register_benchmarks(import_module("mteb.benchmarks.benchmarks"))
    _forget_benchmark_caches()


def _add_tasks_afterwards() -> None:
    """Add our tasks to the registries that mteb built without them."""
    from reasonembed_mteb.retrieval.task import build_tasks

    # `import mteb.get_tasks as m` would give the function of that name.
    import_module("mteb.get_tasks")
    module = sys.modules["mteb.get_tasks"]
    registry: dict[str, Any] = _private(module, "_TASKS_REGISTRY")
    tasks = build_tasks()
    _check_taken(tasks, (name for name in tasks if registry.get(name, tasks[name]) is not tasks[name]))
    new = {name: task for name, task in tasks.items() if name not in registry}
    if not new:
        return
    namespace = import_module("mteb.tasks")
    for name, task in new.items():
        setattr(namespace, name, task)
    registry.update(new)
    module.TASK_LIST = (*_private(module, "TASK_LIST"), *new.values())  # type: ignore[attr-defined]
    _add_similar(_private(module, "_SIMILAR_TASKS"), new)


def _add_similar(similar: dict[str, list[str]], tasks: Mapping[str, Any]) -> None:
    """Tell the zero-shot marks which of MTEB's tasks ours come from."""
    for name, task in tasks.items():
        for original in task.metadata.adapted_from or ():
            similar[original].append(name)


def _forget_benchmark_caches() -> None:
    """Let mteb look its benchmarks up again, where it has done so without ours."""
    import_module("mteb.benchmarks.get_benchmark")
    module = sys.modules["mteb.benchmarks.get_benchmark"]
    for name in ("_build_registry", "_build_aliases_registry"):
        _private(module, name).cache_clear()


def registration_state() -> dict[str, bool]:
    """Say which of our names mteb knows right now, for ``reasonembed doctor``."""
    from reasonembed_mteb.models.checkpoints import CHECKPOINTS
    from reasonembed_mteb.retrieval.rows import benchmarks, load_rows, suites

    import_module("mteb")
    registry = sys.modules["mteb.get_tasks"]._TASKS_REGISTRY  # noqa: SLF001
    models = import_module("mteb.models.model_implementations").MODEL_REGISTRY
    held = vars(import_module("mteb.benchmarks.benchmarks"))
    return {
        "tasks": all(row.name in registry for row in load_rows()),
        "models": all(checkpoint.name in models for checkpoint in CHECKPOINTS),
        "benchmarks": all(_attribute(name) in held for name in (*benchmarks(), *suites())),
    }
