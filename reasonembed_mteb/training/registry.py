"""Kinds of recipes that rooms above bring: training knows them by what they register, and imports none."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.training.schema import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.training.collator import GroupCollator
    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.losses import RedapterLoss


class RecipeKind:
    """What a kind of recipe changes in a run; each method here is that of a plain recipe.

    Attributes:
        recipe: The recipe's class, with a section that plain recipes do not have.
        recipes: Folder of the recipes that come with it, or None.
    """

    recipe: type[Recipe] = Recipe
    recipes: Traversable | None = None

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse settings that do not fit together.

        Args:
            recipe: Of this kind.
        """

    def check_data(self, recipe: Recipe, data: TrainingData) -> None:
        """Refuse rows that the recipe can do nothing with.

        Args:
            recipe: Of this kind.
            data: The rows.
        """

    def trains_tokens(self, recipe: Recipe) -> bool:
        """Say whether rows of the embeddings are trained beside, or in place of, adapters.

        Args:
            recipe: Of this kind.
        """
        del recipe
        return False

    def tokens(self, model: SentenceTransformer) -> list[int]:
        """Return the ids of these rows.

        Args:
            model: Just loaded.
        """
        del model
        return []

    def prepare(self, model: SentenceTransformer, recipe: Recipe) -> None:
        """Check or change a model before it is trained.

        Args:
            model: Loaded, with its adapters.
            recipe: Of this kind.
        """

    def make_collator(
        self, plain: GroupCollator, model: SentenceTransformer, recipe: Recipe
    ) -> GroupCollator:
        """Return the collator of a run.

        Args:
            plain: That of a plain recipe.
            model: The model, which tokenises.
            recipe: Of this kind.
        """
        del model, recipe
        return plain

    def make_loss(
        self, model: SentenceTransformer, recipe: Recipe, options: Mapping[str, Any], *, cached: bool
    ) -> RedapterLoss:
        """Return the loss of a run.

        Args:
            model: Embeds the batches.
            recipe: Of this kind.
            options: Of Redapter's losses, as the recipe says.
            cached: Whether gradients are cached.
        """
        from reasonembed_mteb.training.distillation import CachedGradedRedapterLoss, GradedRedapterLoss

        del recipe
        return CachedGradedRedapterLoss(model, **options) if cached else GradedRedapterLoss(model, **options)

    @contextmanager
    def restoring(self, model: SentenceTransformer, checkpoint: Path) -> Iterator[None]:
        """Wrap the reading of a checkpoint into a model.

        Args:
            model: The model.
            checkpoint: Its folder.

        Yields:
            Nothing; the library reads its own weights then.
        """
        del model, checkpoint
        yield

    def finish(self, model: SentenceTransformer, recipe: Recipe, folder: Path) -> None:
        """Complete the directory of the trained model.

        Args:
            model: As it was saved there.
            recipe: Of this kind.
            folder: The directory.
        """


_PLAIN = RecipeKind()
_KINDS: list[RecipeKind] = []
# Modules that register kinds, by name: training imports no room above it, these when a recipe is read.
_HOMES = ("reasonembed_mteb.reasoning.training",)


def register_kind(kind: RecipeKind) -> None:
    """Let recipes of a kind be loaded and trained.

    Args:
        kind: A second one of the same class changes nothing.
    """
    if not any(type(one) is type(kind) for one in _KINDS):
        _KINDS.append(kind)


def registered_kinds() -> list[RecipeKind]:
    """Return this package's kinds and those that were registered, in their order."""
    for home in _HOMES:
        importlib.import_module(home)
    return list(_KINDS)


def recipe_kind(recipe: Recipe) -> RecipeKind:
    """Return what trains a recipe.

    Args:
        recipe: Of any kind.
    """
    return next((kind for kind in registered_kinds() if type(recipe) is kind.recipe), _PLAIN)


def recipe_class(content: Mapping[str, Any]) -> type[Recipe]:
    """Return the class of a recipe by the sections that it has.

    Args:
        content: Its TOML table.
    """
    kinds = registered_kinds()
    own = ((kind.recipe, kind.recipe.model_fields.keys() - Recipe.model_fields.keys()) for kind in kinds)
    return next((recipe for recipe, sections in own if sections & content.keys()), Recipe)
