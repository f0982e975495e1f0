"""Joint training as a recipe: batches, what moves, what is left, how a run goes on; bad input."""

from __future__ import annotations

import csv
import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import make_tokenizer, save_decoder
from safetensors.torch import load_file
from training_data import checked_rows, make_rows, tiny_recipe, write_rows

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.reasoning.latents import add_latents, find_latents
from reasonembed_mteb.reasoning.masks import COMPRESSION, GENERATION, KINDS, LATENT, NOTHING, TARGET
from reasonembed_mteb.reasoning.training import LatentCollator, LatentKind, LatentPart, LatentRecipe
from reasonembed_mteb.training.building import make_collator
from reasonembed_mteb.training.data import ReadOptions, load_training_data
from reasonembed_mteb.training.recipes import check_recipe, load_recipe, recipe_names
from reasonembed_mteb.training.registry import recipe_kind, register_kind, registered_kinds
from reasonembed_mteb.training.run import train

if TYPE_CHECKING:
    from pathlib import Path

    from reasonembed_mteb.training.run import Trained

COUNT = 2
TEXTS = ["Why is the sky blue?", "short", ""]
MODES = {"tokens": 0, "lora": 4, "all": 0}


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a decoder with latent tokens and an untied head."""
    root = tmp_path_factory.mktemp("latent")
    add_latents(str(save_decoder(root / "plain")), COUNT, root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows(12)
    for number, row in enumerate(rows):
        if number % 2:
            row["generation_target"] = "light waves are short"
        if number % 3:
            row |= {"compression_question": "what?", "compression_target": "the sky is blue"}
    return write_rows(tmp_path_factory.mktemp("rows") / "biology-formatted.jsonl", rows).parent


def content(model: Path, mode: str = "lora", **sections: Any) -> dict[str, Any]:
    given = {"latent": {"train": mode}, "lora": {"rank": MODES[mode], "dropout": 0.0}}
    return tiny_recipe(model, **(given | sections))


def run(
    model: Path, folder: Path, output: Path, mode: str, /, *, resume: bool = False, **sections: Any
) -> Trained:
    recipe = check_recipe(content(model, mode, **sections), "tiny")
    return train(recipe, [folder], output, resume=resume, cache=output.parent / "cache")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(model: Path, base: Path) -> dict[str, torch.Tensor]:
    """Return what training changed, by the weight's name; embeddings by row."""
    after, before = weights(model), weights(base)
    assert after.keys() == before.keys()
    changes = {name: (after[name].float() - one.float()).abs() for name, one in before.items()}
    return {
        name: one.amax(dim=1) if "embed_tokens" in name or "lm_head" in name else one.max()
        for name, one in changes.items()
        if bool(one.max() > 0)
    }


# Whole runs.


@pytest.fixture(scope="module")
def straight(latent: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Return one run of each mode: two epochs of three steps, a checkpoint after each."""
    root = tmp_path_factory.mktemp("straight")
    options = {"training": {"epochs": 2, "keep": 9, "save_steps": 2, "learning_rate": 1e-2}}
    return {mode: run(latent, folder, root / mode / "run", mode, **options) for mode in MODES}


@pytest.mark.slow
def test_only_what_is_to_be_trained_moves(straight: dict[str, Trained], latent: Path) -> None:
    ids = find_latents(_loaded(latent).tokenizer).ids
    for mode, done in straight.items():
        changed = moved(done.model, latent)
        table = changed["model.embed_tokens.weight"]
        if mode == "all":
            assert changed.keys() == weights(latent).keys()
            assert int((table > 0).sum()) > COUNT
            continue
        assert tuple(table.nonzero()[:, 0].tolist()) == ids
        rest = changed.keys() - {"model.embed_tokens.weight"}
        assert all("proj" in name for name in rest)
        assert bool(rest) == (mode == "lora")


def _loaded(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.slow
def test_the_model_is_a_plain_directory_with_its_head(straight: dict[str, Trained], latent: Path) -> None:
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(latent).lm_head.weight
    for mode, done in straight.items():
        model = _loaded(done.model)
        assert find_latents(model.tokenizer).count == COUNT
        vectors = model.encode(TEXTS, convert_to_tensor=True)
        assert bool(vectors.isfinite().all())
        generator, info = AutoModelForCausalLM.from_pretrained(done.model, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        # The head's backbone is the embedder's.
        for name, one in generator.model.state_dict().items():
            assert torch.equal(one, model.transformers_model.state_dict()[name])
        assert torch.equal(generator.lm_head.weight, before) == (mode != "all")


@pytest.mark.slow
def test_metrics_have_the_terms_and_count_the_rows(straight: dict[str, Trained]) -> None:
    for done in straight.values():
        with (done.model.parent / "metrics.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 6
        assert sum(int(float(row["rows_with_generation"])) for row in rows) == 12
        assert sum(int(float(row["rows_with_compression"])) for row in rows) == 16
        for row in rows:
            terms = [
                float(row[f"loss_{one}"] or 0) for one in ("generation", "representation", "compression")
            ]
            assert float(row["loss"]) == pytest.approx(sum(terms), rel=1e-5)
        # They learn.
        assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
        record = json.loads((done.model.parent / "run.json").read_text(encoding="utf-8"))
        assert record["counts"]["biology"]["rows with generation_target"] == 6
        assert record["counts"]["biology"]["rows with compression_target"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(MODES))
def test_resuming_is_exact(
    mode: str, straight: dict[str, Trained], latent: Path, folder: Path, tmp_path: Path
) -> None:
    output, done = tmp_path / "run", straight[mode]
    shutil.copytree(done.model.parent, output)
    for name in ("model", "adapter", "checkpoints/checkpoint-4", "checkpoints/checkpoint-6"):
        shutil.rmtree(output / name, ignore_errors=True)
    options = {"training": {"epochs": 2, "keep": 9, "save_steps": 2, "learning_rate": 1e-2}}
    again = run(latent, folder, output, mode, resume=True, **options)
    assert (again.resumed, again.steps) == (2, 6)
    one, other = weights(again.model), weights(done.model)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], value) for name, value in other.items())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"mini_batch_size": 3}, {"mini_batch_tokens": 40}])
def test_cached_gradients_train_the_same(
    options: dict[str, int], straight: dict[str, Trained], latent: Path, folder: Path, tmp_path: Path
) -> None:
    settings = {"epochs": 2, "keep": 9, "save_steps": 2, "learning_rate": 1e-2}
    sections = {"training": settings, "loss": {"start_step": 3} | options}
    done = run(latent, folder, tmp_path / "run", "lora", **sections)
    one, other = weights(done.model), weights(straight["lora"].model)
    assert max(float((one[name] - value).abs().max()) for name, value in other.items()) < 1e-4


@pytest.mark.slow
def test_without_the_two_weights_training_equals_redapters(
    latent: Path, folder: Path, tmp_path: Path
) -> None:
    weightless = {"train": "all", "generation_weight": 0.0, "compression_weight": 0.0}
    joint = run(latent, folder, tmp_path / "joint" / "run", "all", latent=weightless)
    recipe = check_recipe(tiny_recipe(latent, lora={"rank": 0, "dropout": 0.0}), "tiny")
    plain = train(recipe, [folder], tmp_path / "plain" / "run", cache=tmp_path / "cache")
    one, other = weights(joint.model), weights(plain.model)
    # Redapter's directory has no head.
    assert {name.removeprefix("model.") for name in one} == {*other, "lm_head.weight"}
    for name, value in other.items():
        assert torch.equal(one[f"model.{name}"], value), name


# Batches.


def collator(latent: Path, **options: Any) -> LatentCollator:
    model = _loaded(latent)
    return LatentCollator(
        preprocess_fn=model.preprocess,
        groups={"biology": 3},
        template="Instruct: {instruction}\nQuery: ",
        query_tokens=32,
        tokenizer=model.tokenizer,
        part=LatentPart(**options),
    )


def test_queries_are_laid_out(latent: Path) -> None:
    made = collator(latent)
    tokenizer: Any = made.tokenizer
    rows = checked_rows(3)
    rows[0] |= {"generation_target": "waves", "compression_question": "what?", "compression_target": "sky"}
    rows[1] |= {"generation_target": None, "compression_target": "light"}
    batch = made(rows)
    plain = collator(latent, generation_weight=0.0, compression_weight=0.0)(rows)
    assert "query_token_kinds" not in plain
    latents = list(find_latents(tokenizer).ids)
    ids = {
        name: tokenizer(name, add_special_tokens=False)["input_ids"]
        for name in ("waves", "what?", "sky", "light")
    }
    eos = tokenizer.eos_token_id
    for number in range(3):
        before = plain["query_input_ids"][number][plain["query_attention_mask"][number].bool()].tolist()[
            :-COUNT
        ]
        whole = batch["query_input_ids"][number][batch["query_attention_mask"][number].bool()].tolist()
        written = ids["waves"] if number == 0 else []
        after = [[*ids["what?"], *ids["sky"]], ids["light"], []][number]
        assert whole == [*before, *written, *latents, *after]
        labels = batch[f"query_{GENERATION}"][number]
        assert labels[labels != NOTHING].tolist() == ([*written, eos] if written else [])
        labels = batch[f"query_{COMPRESSION}"][number]
        wanted = [[*ids["sky"], eos], [*ids["light"], eos], []][number]
        assert labels[labels != NOTHING].tolist() == wanted
        kinds = batch[f"query_{KINDS}"][number]
        assert int((kinds == LATENT).sum()) == COUNT
        assert int((kinds == TARGET).sum()) == len(after)
    # All else is as ever.
    for name in plain.keys() - {"query_input_ids", "query_attention_mask"}:
        same = (
            torch.equal(batch[name], plain[name])
            if torch.is_tensor(plain[name])
            else batch[name] == plain[name]
        )
        assert same, name


def test_targets_are_cut_and_do_not_end_then(latent: Path) -> None:
    made = collator(latent, generation_tokens=2, compression_tokens=1, question_tokens=1)
    row = checked_rows(1)[0]
    row |= dict.fromkeys(
        ("generation_target", "compression_question", "compression_target"), "sky is blue sky"
    )
    batch = made([row])
    ids = made.tokenizer("sky is blue sky", add_special_tokens=False)["input_ids"]  # type: ignore[misc]
    for name, length in ((GENERATION, 2), (COMPRESSION, 1)):
        labels = batch[f"query_{name}"][0]
        assert labels[labels != NOTHING].tolist() == ids[:length]
    assert int((batch[f"query_{KINDS}"] == TARGET).sum()) == 2


def test_a_tokenizer_that_ends_texts_keeps_its_order(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "plain")
    tokenizer = make_tokenizer(eos=True)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    add_latents(str(folder), COUNT, tmp_path / "latent")
    made = collator(tmp_path / "latent")
    row = checked_rows(1)[0] | {"generation_target": "waves"}
    whole = made([row])["query_input_ids"][0].tolist()
    words = made.tokenizer("waves", add_special_tokens=False)["input_ids"]  # type: ignore[misc]
    ending = [made.tokenizer.eos_token_id, *find_latents(made.tokenizer).ids]  # type: ignore[union-attr,arg-type]
    assert whole[-len(ending) - len(words) :] == [*words, *ending]
    assert whole.count(ending[0]) == 1


# Recipes and bad input.


def test_the_recipes_are_known_once_the_room_is(latent: Path) -> None:
    assert "latent-qwen3-4b" in recipe_names()
    recipe = load_recipe("latent-qwen3-4b", ["latent.compression_weight=0.5"])
    assert isinstance(recipe, LatentRecipe)
    assert recipe.latent.compression_weight == 0.5
    assert isinstance(recipe_kind(recipe), LatentKind)
    assert type(recipe_kind(check_recipe(tiny_recipe(latent), "tiny"))) is not LatentKind
    before = len(registered_kinds())
    register_kind(LatentKind())
    assert len(registered_kinds()) == before


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"latent": {"train": "lora"}, "lora": {"rank": 0}}, r"latent.train=lora does not fit lora.rank=0"),
        ({"latent": {"train": "all"}, "lora": {"rank": 4}}, r"latent.train=all does not fit lora.rank=4"),
        ({"latent": {"train": "rows"}}, r"latent.train = 'rows' must be"),
        ({"latent": {"wieght": 1}}, r"unknown key 'wieght'.*in latent"),
        ({"latent": {"generation_weigth": 1}}, r"did you mean 'generation_weight'"),
        ({"latent": {"generation_weight": -1}}, r"greater than or equal to 0"),
        (
            {
                "latent": {
                    "generation_weight": 0,
                    "representation_weight": 0,
                    "compression_weight": 0,
                    "train": "lora",
                }
            },
            r"all three weights of latent are 0",
        ),
        ({"latent": {}, "loss": {"matryoshka": [8]}}, r"loss.matryoshka is not for latent recipes"),
        ({"latent": {}, "training": {"packed": True}}, r"training.packed is not for latent recipes"),
    ],
)
def test_recipes_that_cannot_be_trained_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ReasonEmbedError, match=message):
        check_recipe(tiny_recipe("model", **sections), "tiny")


def test_rows_without_any_target_are_refused(latent: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows" / "biology-formatted.jsonl", make_rows(8)).parent
    with pytest.raises(DataError, match=r"no row has a generation_target.*latent.generation_weight=0"):
        run(latent, data, tmp_path / "run", "lora")
    with pytest.raises(DataError, match="no row has a compression_target"):
        run(latent, data, tmp_path / "other", "lora", latent={"generation_weight": 0.0})


def test_a_model_without_latents_is_refused(folder: Path, tmp_path: Path) -> None:
    plain = save_decoder(tmp_path / "plain")
    with pytest.raises(ReasonEmbedError, match=r"no latent tokens: .*latents add .*--set model.name=DIR"):
        run(plain, folder, tmp_path / "run", "lora")


@pytest.mark.parametrize("name", ["generation_target", "compression_question", "compression_target"])
def test_a_target_that_names_a_latent_is_refused(name: str, tmp_path: Path) -> None:
    rows = make_rows(8)
    rows[2][name] = "the sky <|latent_1|> is blue"
    file = write_rows(tmp_path / "rows" / "biology-formatted.jsonl", rows)
    with pytest.raises(DataError, match=rf"line 3: {name} holds <\|latent_1\|>, the name of a latent token"):
        load_training_data([file], cache=tmp_path / "cache")
    dropped = load_training_data([file], cache=tmp_path / "cache", options=ReadOptions(invalid="drop"))
    assert dropped.rows == 7


@pytest.mark.parametrize("name", ["query_tokens", "document_tokens"])
def test_lengths_without_room_beside_the_latents_are_refused(name: str, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "plain", headless=True)
    add_latents(str(folder), 8, tmp_path / "latent")
    model, plan = _loaded(tmp_path / "latent"), SimpleNamespace(groups={"biology": 3})
    recipe = check_recipe(content(tmp_path / "latent", data={name: 8}), "tiny")
    with pytest.raises(ReasonEmbedError, match=rf"data.{name} is 8, .* give 9 or more"):
        make_collator(model, recipe, plan)  # type: ignore[arg-type]
    wider = check_recipe(content(tmp_path / "latent", data={name: 9}), "tiny")
    make_collator(model, wider, plan)  # type: ignore[arg-type]
    prefixed = wider.model_copy(
        update={"model": wider.model.model_copy(update={"document_prefix": "the sky is blue: "})}
    )
    if name == "document_tokens":
        with pytest.raises(ReasonEmbedError, match="of the prompt 'the sky is blue: '"):
            make_collator(model, prefixed, plan)  # type: ignore[arg-type]


def test_a_target_that_is_no_text_is_refused(tmp_path: Path, latent: Path) -> None:
    rows = make_rows(8)
    rows[2]["generation_target"] = ["a"]
    data = write_rows(tmp_path / "rows" / "biology-formatted.jsonl", rows).parent
    with pytest.raises(DataError, match=r"line 3: generation_target must be text or null, not a list"):
        run(latent, data, tmp_path / "run", "lora")
