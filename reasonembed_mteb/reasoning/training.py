"""Joint training as a kind of recipe: its section, its batches, its loss, and the head that is kept.

Importing this module registers the kind, so that `reasonembed_mteb.training` loads and trains its recipes.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.training.collator import GroupCollator
from reasonembed_mteb.training.registry import RecipeKind, register_kind
from reasonembed_mteb.training.rows import (
    COMPRESSION_QUESTION,
    COMPRESSION_TARGET,
    GENERATION_TARGET,
)
from reasonembed_mteb.training.schema import Positive, Recipe, RecipeSection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sentence_transformers import SentenceTransformer
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from reasonembed_mteb.reasoning.masks import JointRow
    from reasonembed_mteb.training.data import TrainingData
    from reasonembed_mteb.training.losses import RedapterLoss

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LORA, ALL = "lora", "all"
_HEAD = "lm_head"


class LatentPart(RecipeSection):
    """Joint training through latent tokens; see `reasonembed_mteb.reasoning.joint.JointLoss`.

    Attributes:
        train: ``tokens``: the rows of the latent tokens alone; ``lora``: these and adapters; ``all``: every
            weight, the head too.
        generation_weight: Weight of writing ``generation_target`` after the query; 0 leaves the targets out.
        representation_weight: Weight of the retrieval loss of the last latent.
        compression_weight: Weight of reading ``compression_target`` from the latents; 0 leaves these out.
        generation_tokens: Tokens of a generation target.
        compression_tokens: Tokens of a compression target, its question not counted.
        question_tokens: Tokens of the question before it.
    """

    train: Literal["tokens", "lora", "all"] = "lora"
    generation_weight: Weight = 1.0
    representation_weight: Weight = 1.0
    compression_weight: Weight = 1.0
    generation_tokens: Positive = 512
    compression_tokens: Positive = 512
    question_tokens: Positive = 128


class LatentRecipe(Recipe):
    """A training run of a model with latent tokens.

    Attributes:
        latent: What is trained beside the retrieval loss, and how.
    """

    latent: LatentPart = Field(default_factory=LatentPart)


@dataclass
class LatentCollator(GroupCollator):
    """Lays the queries of a batch out as ``[prompt][x][K latents][y]``.

    A row's x is its query, and where the row has a generation target, this too: what the model is to write
    before it embeds. Its y is the compression target after its question. Token ids are joined, never texts.

    Attributes:
        tokenizer: The model's.
        part: Lengths and weights; a target without a weight is left out of the rows.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    part: LatentPart = field(default_factory=LatentPart)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch; see `GroupCollator`.

        Args:
            features: Rows of one subset.

        Returns:
            The batch, its queries laid out where the recipe gives one of their targets a weight.
        """
        from reasonembed_mteb.reasoning.latents import find_latents, text_frame
        from reasonembed_mteb.reasoning.masks import lay_out

        batch = super().__call__(features)
        if not (self.part.generation_weight or self.part.compression_weight):
            return batch
        tokenizer: Any = self.tokenizer
        latents, after = find_latents(tokenizer).ids, text_frame(tokenizer)[1]
        ending = after[: len(after) - len(latents)]
        masks = batch["query_attention_mask"].bool()
        ids = [row[mask].tolist() for row, mask in zip(batch["query_input_ids"], masks, strict=True)]
        rows = [
            self._row(row, tokens[: len(tokens) - len(after)], ending)
            for row, tokens in zip(features, ids, strict=True)
        ]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        made = lay_out(rows, latents, tokenizer.eos_token_id, pad)
        return batch | {f"query_{name}": value for name, value in made.items()}

    def _row(self, row: Mapping[str, Any], source: list[int], ending: list[int]) -> JointRow:
        from reasonembed_mteb.reasoning.masks import JointRow

        part, found = self.part, self._target
        written, whole = found(row, GENERATION_TARGET, part.generation_tokens, part.generation_weight)
        question, _ = found(row, COMPRESSION_QUESTION, part.question_tokens, part.compression_weight)
        answer, ended = found(row, COMPRESSION_TARGET, part.compression_tokens, part.compression_weight)
        return JointRow([*source, *written], len(written), question, answer, whole, ended, ending)

    def _target(self, row: Mapping[str, Any], name: str, most: int, weight: float) -> tuple[list[int], bool]:
        """Return a target's token ids, none without a weight, and whether its length leaves all of them."""
        tokenizer: Any = self.tokenizer
        ids: list[int] = []
        if row.get(name) and weight:
            ids = tokenizer(row[name], add_special_tokens=False, verbose=False)["input_ids"]
        return ids[:most], len(ids) <= most


class LatentKind(RecipeKind):
    """Recipes with a section ``latent``."""

    recipe = LatentRecipe

    def __init__(self) -> None:
        """Find the recipes that come with the package."""
        self.recipes = files("reasonembed_mteb") / "reasoning" / "recipes"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse settings that do not fit together; see `RecipeKind`."""
        part = _part(recipe)
        weights = (part.generation_weight, part.representation_weight, part.compression_weight)
        if not any(weights):
            msg = f"recipe {recipe.name}: all three weights of latent are 0: give one of them a number above"
            raise ReasonEmbedError(msg)
        if (part.train == LORA) != bool(recipe.lora.rank):
            msg = (
                f"recipe {recipe.name}: latent.train={part.train} does not fit "
                f"lora.rank={recipe.lora.rank}: lora needs a rank, such as 32, tokens and all need 0"
            )
            raise ReasonEmbedError(msg)
        if recipe.loss.matryoshka or recipe.training.packed:
            what = "loss.matryoshka" if recipe.loss.matryoshka else "training.packed"
            msg = (
                f"recipe {recipe.name}: {what} is not for latent recipes, whose rows have sums and masks of "
            )
            raise ReasonEmbedError(msg + "their own: leave it out")

    def check_data(self, recipe: Recipe, data: TrainingData) -> None:
        """Refuse rows without any target that the recipe gives a weight; see `RecipeKind`."""
        part = _part(recipe)
        for weight, name, key in (
            (part.generation_weight, GENERATION_TARGET, "latent.generation_weight"),
            (part.compression_weight, COMPRESSION_TARGET, "latent.compression_weight"),
        ):
            if weight and not any(counts.get(f"rows with {name}") for counts in data.counts.values()):
                msg = f"no row has a {name}, which {key} asks for: give some rows one, or set {key}=0"
                raise DataError(msg)

    def trains_tokens(self, recipe: Recipe) -> bool:
        """Say whether the latents' rows are trained apart from their table; see `RecipeKind`."""
        return _part(recipe).train != ALL

    def tokens(self, model: SentenceTransformer) -> list[int]:
        """Return the latents' ids; see `RecipeKind`."""
        return list(_latents(model))

    def prepare(self, model: SentenceTransformer, recipe: Recipe) -> None:
        """Check the model, and train an untied head with every weight; see `RecipeKind`."""
        from reasonembed_mteb.reasoning.joint import language_head
        from reasonembed_mteb.reasoning.masks import check_backbone

        backbone: Any = model.transformers_model
        check_backbone(backbone)
        _latents(model)
        if _part(recipe).train == ALL and not _is_tied(backbone):
            # A part of the backbone: clipped, counted, averaged over devices and in every checkpoint.
            setattr(backbone, _HEAD, language_head(model).requires_grad_(True))

    def make_collator(
        self, plain: GroupCollator, model: SentenceTransformer, recipe: Recipe
    ) -> GroupCollator:
        """Return a `LatentCollator`; see `RecipeKind`."""
        own = {one.name: getattr(plain, one.name) for one in fields(plain) if one.init}
        return LatentCollator(**own, tokenizer=model.tokenizer, part=_part(recipe))

    def make_loss(
        self, model: SentenceTransformer, recipe: Recipe, options: Mapping[str, Any], *, cached: bool
    ) -> RedapterLoss:
        """Return the joint loss; see `RecipeKind`."""
        from reasonembed_mteb.reasoning.joint import CachedJointLoss, JointLoss

        part = _part(recipe)
        weights = part.model_dump(
            include={"generation_weight", "representation_weight", "compression_weight"}
        )
        kind = CachedJointLoss if cached else JointLoss
        return kind(model, **options, **weights)

    @contextmanager
    def restoring(self, model: SentenceTransformer, checkpoint: Path) -> Iterator[None]:
        """Read the head that is trained, which the library leaves out; see `RecipeKind`."""
        import torch

        from reasonembed_mteb.reasoning.heads import load_generator

        with _without_head(model.transformers_model) as head:
            yield
        if head is None:
            return
        generator: Any = load_generator(str(checkpoint), dtype=head.weight.dtype)
        with torch.no_grad():
            head.weight.copy_(generator.get_output_embeddings().weight)

    def finish(self, model: SentenceTransformer, recipe: Recipe, folder: Path) -> None:
        """Put the head into the model's directory; see `RecipeKind`."""
        from reasonembed_mteb.reasoning.heads import keep_head, load_generator, on_backbone

        backbone: Any = model.transformers_model
        generator = load_generator(recipe.model.name, dtype=backbone.dtype)
        with _without_head(backbone) as head:
            keep_head(folder, on_backbone(generator, backbone, head))


@contextmanager
def _without_head(backbone: Any) -> Iterator[nn.Linear | None]:  # noqa: ANN401 - a transformers model
    """Take a head that is trained out of its backbone while the context lasts, and hand it over."""
    head = getattr(backbone, _HEAD, None)
    if head is None:
        yield None
        return
    delattr(backbone, _HEAD)
    try:
        yield head
    finally:
        setattr(backbone, _HEAD, head)


def _part(recipe: Recipe) -> LatentPart:
    return cast("LatentRecipe", recipe).latent


def _is_tied(backbone: Any) -> bool:  # noqa: ANN401 - a transformers model
    return bool(getattr(backbone.config, "tie_word_embeddings", False))


def _latents(model: SentenceTransformer) -> tuple[int, ...]:
    """Return the latents' ids; refuse a model without."""
    from reasonembed_mteb.reasoning.latents import find_latents

    found = find_latents(model.tokenizer).ids
    if not found:
        name = model.transformers_model.name_or_path if model.transformers_model is not None else "the model"
        msg = (
            f"{name} has no latent tokens: write a model with some by `reasonembed latents add {name} "
            "--count 4 --output DIR`, then train with --set model.name=DIR"
        )
        raise ReasonEmbedError(msg)
    return found


register_kind(LatentKind())
