"""Recipes: everything that decides a training run, as TOML, checked."""

from __future__ import annotations

import tomllib
import types
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.files import toml_value
from reasonembed_mteb.prompts import PLACE, TemplateError, check_template
from reasonembed_mteb.training.combinations import check_sharding
from reasonembed_mteb.training.registry import recipe_class, recipe_kind, registered_kinds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.resources.abc import Traversable

    from reasonembed_mteb.training.schema import Recipe


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(_recipe_files())


def _recipe_files() -> dict[str, Traversable]:
    """Return the recipes of this room and of every registered kind, by name."""
    own = files("reasonembed_mteb") / "training" / "recipes"
    folders = [own, *(kind.recipes for kind in registered_kinds() if kind.recipes is not None)]
    entries = (entry for folder in folders for entry in folder.iterdir())
    return {entry.name.removesuffix(".toml"): entry for entry in entries if entry.name[-5:] == ".toml"}


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Load a recipe and check every value.

    Args:
        name: One of `recipe_names`, or a TOML file.
        changes: ``section.key=value`` lines; values are TOML, and bare words are strings.

    Returns:
        The recipe.

    Raises:
        UnknownNameError: If there is no such recipe; the nearest is named.
        ReasonEmbedError: If a key is unknown or a value is out of range.
    """
    content = _read(name)
    for change in changes:
        _set(content, change)
    return check_recipe(content, name)


def check_recipe(content: dict[str, Any], name: str) -> Recipe:
    """Build a recipe from a TOML table.

    Args:
        content: The table.
        name: Where it comes from, for messages.

    Raises:
        ReasonEmbedError: If a key is unknown or a value is out of range.
    """
    content = {"name": Path(name).stem if name.endswith(".toml") else name} | content
    try:
        recipe = recipe_class(content).model_validate(content)
    except ValidationError as error:
        raise ReasonEmbedError(_explain(error, name, recipe_class(content))) from None
    _check_together(recipe)
    recipe_kind(recipe).check_recipe(recipe)
    return recipe


def _read(name: str) -> dict[str, Any]:
    file = Path(name).expanduser()
    try:
        if file.suffix == ".toml":
            text = file.read_text(encoding="utf-8")
        elif name in (known := _recipe_files()):
            text = known[name].read_text("utf-8")
        else:
            raise unknown_name("recipe", name, recipe_names())
        return tomllib.loads(text)
    except OSError as error:
        msg = f"cannot read the recipe {name}: {error.strerror}; recipes here: {', '.join(recipe_names())}"
        raise ReasonEmbedError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"the recipe {name} is not TOML: {error}"
        raise ReasonEmbedError(msg) from error


def _set(content: dict[str, Any], change: str) -> None:
    key, sign, value = change.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not sign or not all(path):
        msg = f"--set {change!r} must be of the form section.key=value, such as training.epochs=2"
        raise ReasonEmbedError(msg)
    table = content
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            msg = f"--set {change!r}: {part} is a value, not a section"
            raise ReasonEmbedError(msg)
    table[path[-1]] = toml_value(value)


def _section_keys(location: Iterable[str | int], recipe: type[Recipe]) -> list[str]:
    """Return the keys allowed at a place in a recipe."""
    section: Any = recipe
    for part in location:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(part)].annotation
        elif get_origin(section) is dict:
            section = get_args(section)[1]
        if get_origin(section) in (Union, types.UnionType):
            section = next(a for a in get_args(section) if a is not type(None))
    return list(section.model_fields) if hasattr(section, "model_fields") else []


def _explain(error: ValidationError, name: str, recipe: type[Recipe]) -> str:
    """Say in one line what is wrong with a recipe."""
    found = []
    for problem in error.errors():
        *where, key = problem["loc"]
        path = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            hint = str(unknown_name("key", str(key), _section_keys(where, recipe)))
            found.append(f"{hint.rstrip('.')} (in {'.'.join(map(str, where)) or 'the recipe'})")
        else:
            wrong = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
            found.append(f"{path} = {problem['input']!r} {wrong}")
    return f"recipe {name}: {'; '.join(found)}"


def _check_together(recipe: Recipe) -> None:
    if recipe.loss.mini_batch_size and recipe.loss.mini_batch_tokens:
        msg = f"recipe {recipe.name}: give loss.mini_batch_size or loss.mini_batch_tokens, not both"
        raise ReasonEmbedError(msg)
    if recipe.lora.quantize and not recipe.lora.rank:
        msg = (
            f"recipe {recipe.name}: lora.quantize is for weights beneath adapters: set lora.rank, 32 for one"
        )
        raise ReasonEmbedError(msg)
    check_sharding(recipe)
    part = recipe.evaluation
    if part.best and not (part.tasks and part.steps):
        msg = (
            f"recipe {recipe.name}: evaluation.best={part.best} needs evaluation.tasks to score and "
            "evaluation.steps between the scores"
        )
        raise ReasonEmbedError(msg)
    if part.patience and not part.best:
        msg = f"recipe {recipe.name}: evaluation.patience needs evaluation.best, a task's name or mean"
        raise ReasonEmbedError(msg)
    if recipe.model.template:
        try:
            check_template(recipe.model.template)
        except TemplateError as error:
            given = recipe.model.template
            msg = f"recipe {recipe.name}: model.template {given!r} must contain {PLACE}, or be empty for none"
            raise ReasonEmbedError(msg) from error


def model_name(recipe: Recipe) -> str:
    """Return what a recipe starts from.

    Args:
        recipe: One with a name for its model, or a published one without.

    Raises:
        ReasonEmbedError: If it names none, with the way to make it.
    """
    if recipe.model.name:
        return recipe.model.name
    base = recipe.model.base or "the backbone"
    msg = (
        f"recipe {recipe.name} names no model: the published run starts from {base} tuned on MS MARCO, which "
        f"has no known hub name. Train it with `reasonembed train stage-one-msmarco --set model.name={base} "
        "--output STAGE_ONE ...`, then add --set model.name=STAGE_ONE/model here"
    )
    raise ReasonEmbedError(msg)
