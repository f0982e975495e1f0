"""What may import what, and which names of other libraries are used that are not public."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import reasonembed_mteb

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "reasonembed_mteb"
# From the bottom up, as in docs/architecture.md. Rooms of one line do not import each other.
LAYERS = (
    ("escaping",),
    ("__init__", "errors"),
    ("files", "prompts"),
    ("endpoints",),
    ("encoding",),
    ("retrieval", "llm"),
    ("models",),
    ("store",),
    ("plugin",),
    ("evaluation", "_startup"),
    ("reporting",),
    ("sharing",),
    ("training", "synthesis", "robustness", "pipelines", "distributed"),
    ("reasoning",),
    ("cli",),
    ("__main__",),
)
LIBRARIES = ("mteb", "sentence_transformers", "transformers", "torch", "datasets")
# Test files whose subject is no single module.
SUBJECTS = {
    "architecture": "the import graph",
    "contract": "whatever sentence-transformers' models take, by `encoding` and `models`",
    "docs": "the documentation",
    "examples": "the examples of README, docs and docstrings",
    "gpu": "the GPU benchmark, and its section of the documentation",
    "hostile": "text that acts, through every command",
    "mini": "the embedded benchmark's data",
    "packaging": "the distribution",
    "training_best": "the best checkpoint and the early stop, through `training.run`",
    "training_processes": "runs of `training.run` on several processes",
    "user_tables": "a benchmark in one table, through every room",
}


@cache
def modules() -> dict[str, ast.Module]:
    """Parse every module of the package, by its dotted name below the package."""
    found = {}
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = file.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs: everything but the imports that are there for the type checker."""
    for node in ast.iter_child_nodes(tree):
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from (() if checking else (node, *runtime_nodes(node)))


def imports(name: str) -> set[str]:
    """Name the modules of the package that one imports, at the top or inside a function."""
    found = set()
    for node in runtime_nodes(modules()[name]):
        if isinstance(node, ast.ImportFrom):
            given = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            given = [alias.name for alias in node.names]
        else:
            continue
        found |= {module for one in given if (module := _module_of(one)) is not None}
    return found - {name}


def _module_of(dotted: str) -> str | None:
    """Return the module that an imported name is, or lies in."""
    package, _, inner = dotted.partition(".")
    if package != PACKAGE:
        return None
    if inner in modules():
        return inner
    return inner.rpartition(".")[0] or "__init__"


def room(module: str) -> str:
    return module.split(".")[0]


def edges() -> set[tuple[str, str]]:
    return {(name, other) for name in modules() for other in imports(name)}


def runs_up(edge: tuple[str, str]) -> bool:
    """Whether an import goes to a room above or beside its own."""
    level = {one: number for number, rooms in enumerate(LAYERS) for one in rooms}
    above, below = map(room, edge)
    return above != below and level[above] <= level[below]


def test_every_room_has_its_layer() -> None:
    rooms = [one for layer in LAYERS for one in layer]
    assert sorted(rooms) == sorted({room(name) for name in modules()})


def test_imports_run_down() -> None:
    # The walk finds imports inside functions too, and there are many.
    assert ("cli.training", "training.run") in edges()
    assert len(edges()) > 200
    assert not {edge for edge in edges() if runs_up(edge)}


def test_no_modules_import_each_other() -> None:
    try:
        TopologicalSorter({name: imports(name) for name in modules()}).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_nothing_imports_the_command() -> None:
    assert {name for name, other in edges() if room(other) == "cli" and room(name) != "cli"} == {"__main__"}


def test_encoding_knows_nothing_of_tasks() -> None:
    reached = {room(other) for name, other in edges() if room(name) == "encoding"}
    assert reached <= {"encoding", "endpoints", "errors", "files", "prompts"}
    outer = {
        line for name, tree in modules().items() if room(name) == "encoding" for line in _libraries(tree)
    }
    assert "mteb" not in outer
    assert "torch" in outer


def _libraries(tree: ast.Module) -> set[str]:
    nodes = list(ast.walk(tree))
    froms = {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    return froms | {
        a.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for a in node.names
    }


def test_training_and_synthesis_meet_in_a_data_file() -> None:
    pairs = {(room(name), room(other)) for name, other in edges()}
    assert not pairs & {("training", "synthesis"), ("synthesis", "training")}


def test_test_files_are_named_after_modules() -> None:
    known = {name.rpartition(".")[2].strip("_") for name in modules()}
    known |= {name.replace(".", "_") for name in modules()}
    # `cli.mining` is tested in test_mining_cli.py.
    known |= {f"{name.removeprefix('cli.')}_cli" for name in modules() if name.startswith("cli.")}
    named = {file.stem.removeprefix("test_") for file in (ROOT / "tests").glob("test_*.py")}
    assert named - known == SUBJECTS.keys()


def test_no_public_name_is_in_two_modules() -> None:
    homes = defaultdict(list)
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                homes[node.name].append(name)
    # A command is named after what it calls.
    twice = {name: found for name, found in homes.items() if len([f for f in found if room(f) != "cli"]) > 1}
    assert not twice, twice


@pytest.mark.parametrize("name", ["", "encoding", "reporting", "training"])
def test_what_a_package_promises_is_there(name: str) -> None:
    package = importlib.import_module(f"{PACKAGE}.{name}".rstrip("."))
    for public in package.__all__:
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_public_names_are_loaded_on_first_use() -> None:
    assert dir(reasonembed_mteb) == sorted(reasonembed_mteb.__all__)
    assert set(reasonembed_mteb.__all__) == {*reasonembed_mteb._HOMES, "__version__"}
    # What a type checker sees is what is there.
    tree = modules()["__init__"]
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
        for alias in node.names
    }
    assert seen == reasonembed_mteb._HOMES


def test_the_page_of_public_names_lists_them_all() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    homes = {f"{home}.{name}" for name, home in reasonembed_mteb._HOMES.items()}
    described = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(described) == sorted(homes)
    assert sorted(listed) == sorted(reasonembed_mteb._HOMES)


# Private names of other libraries.


def listed_names() -> dict[str, str]:
    """Return the table of docs/architecture.md: dotted name to the module that uses it."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([\w.]+\._\w+)` \| `([\w.]+)` \|", page, re.MULTILINE))


@pytest.mark.parametrize("dotted", sorted(listed_names()))
def test_private_names_are_where_they_were(dotted: str) -> None:
    owner, _, name = dotted.rpartition(".")
    held = resolve(owner)
    if hasattr(held, name):
        return
    # An attribute of instances: its class writes it, in itself or in what it is made from.
    sources = [inspect.getsource(one) for one in inspect.getmro(held) if one.__module__ != "builtins"]
    assert any(re.search(rf"self\.{name}\b|[\"']{name}[\"']", source) for source in sources)


def resolve(dotted: str) -> Any:
    """Import what a dotted name means; a module may be hidden behind a function of its name."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        held: Any = sys.modules[module]
        for part in parts[end:]:
            held = getattr(held, part)
        return held
    raise ModuleNotFoundError(dotted)


def test_every_private_name_in_use_is_listed() -> None:
    used = {(attribute, name) for name, tree in modules().items() for attribute in foreign(tree)}
    used |= {(attribute, name) for name, attribute in overridden()}
    listed = {(dotted.rpartition(".")[2], module) for dotted, module in listed_names().items()}
    # setup.py is no part of the package; the others stand in texts that say which name is meant.
    beside = {pair for pair in listed if pair[1] == "setup.py" or mentions(*pair)}
    assert used - listed == set()
    assert listed - used - beside == set()


def foreign(tree: ast.Module) -> set[str]:
    """Return the private attributes and imports in a module that nothing in the package defines."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            found.add(node.attr)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            found |= {name for name in (*(node.module or "").split("."), *_names(node)) if is_private(name)}
    # A named tuple's own way to change a copy; documented.
    return found - defined() - {"_replace"}


def _names(node: ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def defined() -> frozenset[str]:
    """Return every name that the package itself defines or sets."""
    found: set[str] = set()
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return frozenset(found)


def overridden() -> set[tuple[str, str]]:
    """Return the private methods of the libraries' classes that classes of ours replace."""
    found = set()
    for name in modules():
        if name == "__main__" or room(name) == "cli":
            continue
        module = importlib.import_module(PACKAGE if name == "__init__" else f"{PACKAGE}.{name}")
        for one in vars(module).values():
            if inspect.isclass(one) and one.__module__ == module.__name__:
                bases = [base for base in one.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
                replaced = {
                    key for key in vars(one) if is_private(key) for base in bases if key in vars(base)
                }
                found |= {(name, key) for key in replaced if not key.startswith("_abc")}
    return found


def mentions(attribute: str, module: str) -> bool:
    """Whether a module names an attribute: in a text for `getattr`, or where ours has one of that name."""
    nodes = list(ast.walk(modules()[module]))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    return attribute in texts | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_only_the_plugin_uses_private_names_of_mteb() -> None:
    mteb = {dotted: module for dotted, module in listed_names().items() if dotted.startswith("mteb.")}
    # A method to override and an attribute of a wrapper are no names of a module.
    users = {
        module for dotted, module in mteb.items() if inspect.ismodule(resolve(dotted.rpartition(".")[0]))
    }
    assert users == {"plugin"}
