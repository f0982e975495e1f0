"""Recipes: the published values, and clear words about wrong ones."""

from __future__ import annotations

import math
import re
import tomllib
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.training.modelcard import write_toml
from reasonembed_mteb.training.recipes import check_recipe, load_recipe, model_name, recipe_names
from reasonembed_mteb.training.schema import BatchShape, Recipe

if TYPE_CHECKING:
    from pathlib import Path

PUBLISHED = ("qwen3-8b", "qwen3-4b", "llama-3.1-8b")


def test_every_recipe_loads() -> None:
    assert set(recipe_names()) >= {*PUBLISHED, *(f"{name}-basic" for name in PUBLISHED)}
    assert set(recipe_names()) >= {"stage-one-msmarco", "minilm-demo"}
    for name in recipe_names():
        assert load_recipe(name).name == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_published_values(name: str) -> None:
    # PROTOCOL section 6.
    recipe = load_recipe(name)
    assert (recipe.lora.rank, recipe.lora.alpha) == (32, 64)
    names = [target.removesuffix("_proj") for target in recipe.lora.targets]
    assert names == ["q", "k", "v", "o", "gate", "up", "down"]
    assert (recipe.loss.temperature, recipe.loss.max_intensity, recipe.loss.start_step) == (0.02, 5.0, 100)
    assert recipe.loss.normalize_weights
    assert recipe.loss.gather_across_devices
    assert (recipe.training.learning_rate, recipe.training.warmup, recipe.training.epochs) == (1e-4, 0.1, 1)
    assert (recipe.training.precision, recipe.training.checkpointing) == ("bf16", True)
    assert (recipe.data.query_tokens, recipe.data.document_tokens, recipe.batch.devices) == (512, 512, 8)
    # What the published script leaves to FlagEmbedding and DeepSpeed, and its clipping at 1.0 of a gradient
    # that is an eighth of ours.
    assert (recipe.lora.dropout, recipe.training.max_grad_norm) == (0.1, 8.0)
    assert recipe.training.schedule == "linear_log_warmup"
    shapes = {s: recipe.batch.shape(s) for s in ("leetcode", "pony", "biology", "aops")}
    assert {s: (shape.group, shape.queries) for s, shape in shapes.items()} == {
        "leetcode": (2, 64),
        "pony": (64, 2),
        "biology": (16, 8),
        "aops": (16, 8),
    }
    twin = load_recipe(f"{name}-basic")
    assert twin.loss.kind == "infonce"
    same = {"name", "about", "loss"}
    assert twin.model_dump(exclude=same) == recipe.model_dump(exclude=same)


def test_every_value_has_its_source() -> None:
    rooms = [files("reasonembed_mteb") / room / "recipes" for room in ("training", "reasoning")]
    found = {entry.name: entry.read_text("utf-8") for folder in rooms for entry in folder.iterdir()}
    assert found.keys() >= {"qwen3-8b.toml", "latent-qwen3-4b.toml"}
    for name, text in found.items():
        for line in text.splitlines():
            if re.match(r"\w+ = ", line) and not line.startswith("about"):
                previous = text.splitlines()[text.splitlines().index(line) - 1]
                sourced = re.search(r"# \[(paper|code|ours|model|mteb|transformers)\]", line + previous)
                assert sourced or "not used" in line, f"{name}: {line}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.learnin_rate=1", "did you mean 'learning_rate'.*in training"),
        ("trainin.epochs=1", "did you mean 'training'.*in the recipe"),
        ("batch.subsets.pony.grup=3", "did you mean 'group'.*in batch.subsets.pony"),
        ("loss.temperature=0", "loss.temperature = 0 must be greater than 0"),
        ("loss.temperature=hot", "loss.temperature = 'hot' must be a valid number"),
        ("training.warmup=1.5", "training.warmup = 1.5 must be less than 1"),
        ("training.epochs=-1", "training.epochs"),
        ("training.seed=4294967296", "training.seed = 4294967296 must be less than or equal to 4294967295"),
        ("lora.rank=-1", "lora.rank"),
        ("batch.group=0", "batch.group"),
        ("loss.kind=triplet", "loss.kind = 'triplet' must be 'redapter' or 'infonce'"),
        ("training.precision=fp8", "'bf16' or 'fp32'"),
        ("data.query_tokens=4", "data.query_tokens"),
        ("lora.targets=[]", "lora.targets"),
        ("loss.start_step=1.5", "loss.start_step = 1.5 must be a step .* or a share of the steps"),
        ("loss.start_step=-0.1", "loss.start_step"),
        ("loss.start_step=nan", "loss.start_step"),
        ("loss.start_step=inf", "loss.start_step"),
        ("model.template=Query: ", "must contain {instruction}"),
        ("lora.quantize=true", "lora.quantize is for weights beneath adapters: set lora.rank"),
        ("training.optimizer=sgd", "'adamw' or 'adamw_8bit'"),
        ("loss.grade_weight=-1", "loss.grade_weight"),
        ("loss.matryoshka=[0]", "loss.matryoshka"),
        ("about.x=1", "about is a value, not a section"),
        ("epochs", "must be of the form section.key=value"),
    ],
)
def test_wrong_values_are_named(change: str, words: str) -> None:
    with pytest.raises(ReasonEmbedError, match=words) as caught:
        load_recipe("minilm-demo", [change])
    assert "\n" not in str(caught.value)


def test_changes_are_toml_or_words() -> None:
    changes = ["training.epochs=2", "model.name=a/b", "training.report_to=['x']", "loss.max_intensity=inf"]
    recipe = load_recipe(
        "minilm-demo", [*changes, "data.instructions.math=Find it.", "training.checkpointing=true"]
    )
    assert recipe.training.epochs == 2
    assert recipe.model.name == "a/b"
    assert recipe.training.report_to == ["x"]
    assert math.isinf(recipe.loss.max_intensity)
    assert recipe.data.instructions == {"math": "Find it."}
    assert recipe.training.checkpointing


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'qwen3-8b'"):
        load_recipe("qwen3-8")


def test_a_file_is_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nname = "x"\n', encoding="utf-8")
    assert load_recipe(str(file)).name == "mine"
    file.write_text("[model\n", encoding="utf-8")
    with pytest.raises(ReasonEmbedError, match="is not TOML"):
        load_recipe(str(file))
    with pytest.raises(ReasonEmbedError, match="cannot read the recipe"):
        load_recipe(str(tmp_path / "none.toml"))


def test_both_mini_batches_are_too_many() -> None:
    with pytest.raises(ReasonEmbedError, match="not both"):
        load_recipe("minilm-demo", ["loss.mini_batch_size=4", "loss.mini_batch_tokens=99"])


def test_a_recipe_without_a_model_says_how_to_make_it() -> None:
    with pytest.raises(ReasonEmbedError, match=r"stage-one-msmarco --set model.name=Qwen/Qwen3-4B"):
        model_name(load_recipe("qwen3-4b"))


@pytest.mark.parametrize(("world", "queries"), [(1, 64), (2, 32), (8, 8), (16, 4)])
def test_the_global_batch_does_not_depend_on_the_devices(world: int, queries: int) -> None:
    batch = load_recipe("qwen3-8b").batch
    assert batch.queries_per_process("biology", world) == queries
    assert batch.queries_per_process("leetcode", world) == 512 // world


def test_a_global_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ReasonEmbedError, match="16 queries, which 3 processes cannot share"):
        load_recipe("qwen3-8b").batch.queries_per_process("pony", 3)


def test_a_recipe_survives_toml() -> None:
    content: dict[str, Any] = load_recipe("qwen3-8b", ["loss.max_intensity=inf"]).model_dump()
    content["data"]["instructions"] = {"a b": 'say "x"\nand y'}
    again = tomllib.loads(write_toml(content))
    assert Recipe.model_validate(again) == check_recipe(content, "qwen3-8b")


@pytest.mark.parametrize(
    ("given", "steps", "first"),
    [
        ("0", 50, 0),
        ("0.1", 50, 5),
        ("0.1", 55, 6),
        ("0.5", 1, 1),
        ("1", 50, 1),
        ("1.0", 50, 1),
        ("100", 50, 100),
    ],
)
def test_weighting_begins_at_a_step_or_after_a_share(given: str, steps: int, first: int) -> None:
    loss = load_recipe("minilm-demo", [f"loss.start_step={given}"]).loss
    assert loss.first_weighted_step(steps) == first
    # A record of the run, and its recipe.toml, say the same.
    assert type(loss)(**loss.model_dump()).first_weighted_step(steps) == first
    assert type(loss)(**tomllib.loads(write_toml(loss.model_dump()))).first_weighted_step(steps) == first


def test_the_subset_comes_before_the_recipe_and_the_recipe_before_the_rows() -> None:
    rows = BatchShape(group=4, queries=5)
    assert load_recipe("qwen3-8b").batch.shape("biology", rows) == (4, 5)
    assert load_recipe("qwen3-8b").batch.shape("biology", BatchShape(group=4)) == (4, 8)
    assert load_recipe("qwen3-8b").batch.shape("pony", rows) == (64, 2)
    assert load_recipe("qwen3-8b", ["batch.group=7"]).batch.shape("biology", rows) == (7, 5)
    one = ["batch.group=7", "batch.subsets.biology.queries=3"]
    assert load_recipe("qwen3-8b", one).batch.shape("biology", rows) == (7, 3)
    assert [load_recipe("qwen3-8b").batch.needs_negatives(name) for name in ("pony", "x")] == [True, None]
    assert load_recipe("qwen3-8b", ["batch.group=1"]).batch.needs_negatives("x") is False
