"""Latent tokens: one vector whoever reads the directory, in four families; what cannot take them is told."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import make_encoder, make_tokenizer, save_decoder
from sentence_transformers import SentenceTransformer

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.reasoning.latents import (
    LatentTokens,
    add_latents,
    find_latents,
    latent_ids,
)

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 3
# Each family's tokenizer ends or begins a text in another way.
FAMILIES = {
    "qwen2": {},
    "qwen3": {"eos": True},
    "llama": {"bos": True},
    "mistral": {"bos": True, "eos": True},
}
TEXTS = ["Why is the sky blue? " * 20, "", "red", "Why do leaves fall in autumn, and not in spring?"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a bare checkpoint of each family, and one with latents beside it."""
    folder = tmp_path_factory.mktemp("latents")
    for family, tokenizer in FAMILIES.items():
        save_decoder(folder / family, family, **tokenizer)
        add_latents(str(folder / family), COUNT, folder / f"{family}-latents")
    return folder


def by_hand(folder: Path, text: str) -> Any:
    """Read the last latent of one text in double precision, without any of our code."""
    from transformers import AutoModel, AutoTokenizer

    backbone = AutoModel.from_pretrained(folder, dtype=torch.float64)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = backbone(input_ids=ids).last_hidden_state[0, -1]
    return (hidden / hidden.norm()).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_vector_whoever_reads_it(family: str, made: Path) -> None:
    folder = made / f"{family}-latents"
    plain = SentenceTransformer(str(folder), device="cpu")
    ours = ReasonEmbed(str(folder), device="cpu")
    reference = np.stack([by_hand(folder, text) for text in TEXTS])
    assert np.abs(plain.encode(TEXTS) - reference).max() < 1e-6
    for attn in ("packed", "padded", "off"):
        ours.attn = attn
        assert np.abs(ours.encode(TEXTS) - reference).max() < 1e-6, attn
    ours.attn = "auto"
    alone = np.stack([ours.encode(text) for text in TEXTS])
    assert np.abs(alone - reference).max() < 1e-6
    # The latents do change what is read.
    without = SentenceTransformer(str(made / family), device="cpu").encode(TEXTS[:1])
    assert np.abs(without - reference[:1]).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_ends_in_the_latents(family: str, made: Path) -> None:
    tokenizer = SentenceTransformer(str(made / f"{family}-latents"), device="cpu").tokenizer
    before = SentenceTransformer(str(made / family), device="cpu").tokenizer
    latents = find_latents(tokenizer)
    assert latents.count == COUNT
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == [*before(text)["input_ids"], *latents.ids]
    cut = tokenizer(TEXTS[0], truncation=True, max_length=12)["input_ids"]
    short = before(TEXTS[0], truncation=True, max_length=12 - COUNT)["input_ids"]
    assert cut == [*short, *latents.ids]
    pair = tokenizer("red", "sky")["input_ids"]
    assert pair[-COUNT:] == list(latents.ids)
    assert sum(one in latents.ids for one in pair) == COUNT


def test_an_empty_text_has_the_latents_vector(made: Path) -> None:
    from transformers import AutoModel

    folder = made / "qwen2-latents"
    backbone = AutoModel.from_pretrained(folder, dtype=torch.float64)
    ids = torch.tensor([latent_ids(ReasonEmbed(str(folder), device="cpu").tokenizer)])
    with torch.no_grad():
        hidden = backbone(input_ids=ids).last_hidden_state[0, -1]
    vector = SentenceTransformer(str(folder), device="cpu").encode("")
    assert np.abs(vector - (hidden / hidden.norm()).numpy()).max() < 1e-6


@pytest.mark.parametrize("reader", [SentenceTransformer, ReasonEmbed])
def test_saved_again_it_is_the_same(reader: Any, made: Path, tmp_path: Path) -> None:
    first = reader(str(made / "llama-latents"), device="cpu")
    first.save_pretrained(str(tmp_path / "again"))
    second = reader(str(tmp_path / "again"), device="cpu")
    second.save_pretrained(str(tmp_path / "third"))
    assert np.array_equal(first.encode(TEXTS), second.encode(TEXTS))
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "third" / name).read_bytes(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_stays(family: str, made: Path) -> None:
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(made / family)
    after, info = AutoModelForCausalLM.from_pretrained(made / f"{family}-latents", output_loading_info=True)
    assert not info["missing_keys"]
    size = before.lm_head.weight.shape[0]
    assert torch.equal(after.lm_head.weight[:size], before.lm_head.weight)
    assert torch.equal(after.model.embed_tokens.weight[:size], before.model.embed_tokens.weight)


def test_nobody_generates_a_latent(made: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made / "qwen3-latents")
    ids = latent_ids(ReasonEmbed(str(made / "qwen3-latents"), device="cpu").tokenizer)
    with torch.no_grad():
        # Nothing would be generated but the first latent.
        model.lm_head.weight.zero_()
        model.lm_head.weight[ids[0]] = model.model(torch.tensor([[5]])).last_hidden_state[0, -1] * 100
    written = model.generate(torch.tensor([[5]]), max_new_tokens=4, do_sample=False)
    assert not set(written[0].tolist()) & set(ids)


def test_rows_start_from_that_of_eos(made: Path, tmp_path: Path) -> None:
    model = ReasonEmbed(str(made / "qwen3-latents"), device="cpu")
    table = model[0].auto_model.get_input_embeddings().weight.detach()
    eos = table[model.tokenizer.eos_token_id]
    rows = table[list(find_latents(model.tokenizer).ids)]
    spread = (rows - eos).std() / eos.square().mean().sqrt()
    assert 0.01 < spread < 0.03
    assert len({tuple(row.tolist()) for row in rows}) == COUNT
    for seed, same in ((0, True), (1, False)):
        again = add_latents(str(made / "qwen3"), COUNT, tmp_path / str(seed), seed=seed)
        found = again[0].auto_model.get_input_embeddings().weight.detach()
        assert torch.equal(found, table) == same


def test_a_table_with_room_keeps_its_size(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = Qwen3Config(vocab_size=512, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, **sizes)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    add_latents(str(tmp_path / "bare"), 4, tmp_path / "made")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert model.get_input_embeddings().weight.shape[0] == 512
    # Tied, the head is the table.
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True}], ids=["silent", "set"])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "Qwen2Tokenizer"])
def test_a_class_that_writes_its_post_processor_keeps_them(
    kind: str, flags: dict[str, bool], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    bare = save_decoder(tmp_path / "bare", "llama", bos=True, headless=True)
    file = bare / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": kind, "bos_token": "<|begin|>", **flags}
    file.write_text(json.dumps(config))
    latents = find_latents(add_latents(str(bare), 2, tmp_path / "made").tokenizer)
    again = SentenceTransformer(str(tmp_path / "made"), device="cpu")
    again.save_pretrained(str(tmp_path / "again"))
    for folder in ("made", "again"):
        ids = AutoTokenizer.from_pretrained(tmp_path / folder)("red")["input_ids"]
        assert tuple(ids[-2:]) == latents.ids
        assert ids[0] == 4
        assert (ids[-3] == 2) == (kind == "LlamaTokenizer" and bool(flags))


def test_positions_in_a_batch() -> None:
    latents = LatentTokens((7, 8))
    ids = torch.tensor([[0, 1, 7, 8, 2], [3, 3, 3, 7, 8]])
    assert latents.positions(ids).tolist() == [[2, 3], [3, 4]]
    assert LatentTokens().positions(ids).shape == (2, 0)
    with pytest.raises(ReasonEmbedError, match=r"row 1 .* \[0, 2\] times"):
        latents.positions(torch.tensor([[7, 8, 1], [8, 2, 8]]))


def test_counts_and_identity_know_the_latents(made: Path) -> None:
    from reasonembed_mteb.models.identity import object_revision, tokenizer_hash

    model = ReasonEmbed(str(made / "qwen2-latents"), device="cpu")
    model.encode(["red"])
    assert model.last_token_counts is not None
    assert model.last_token_counts[0] == len(model.tokenizer("red", add_special_tokens=False)[0]) + COUNT
    before, whole = tokenizer_hash(model.tokenizer), object_revision(model)
    # The post-processor alone.
    model.tokenizer.backend_tokenizer.post_processor = None
    assert tokenizer_hash(model.tokenizer) != before
    assert object_revision(model) != whole


def test_a_dry_run_counts_the_latents(made: Path) -> None:
    from reasonembed_mteb.evaluation.plan import load_tokenizer
    from reasonembed_mteb.models.zoo import local_meta

    counts = [
        len(load_tokenizer(local_meta(made / name))("red sky")["input_ids"])
        for name in ("qwen2", "qwen2-latents")
    ]
    assert counts[1] - counts[0] == COUNT


@pytest.mark.parametrize("count", [0, -1, 5000])
def test_a_count_that_is_none(count: int, made: Path, tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match=f"{count} latent tokens: give at least 1"):
        add_latents(str(made / "qwen3"), count, tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range(seed: int, tmp_path: Path) -> None:
    # Before the model is loaded.
    with pytest.raises(
        ReasonEmbedError, match=rf"seed is {seed}: give a whole number from 0 to 4,294,967,295"
    ):
        add_latents("absent", 2, tmp_path / "made", seed=seed)


def test_a_count_that_leaves_no_room_for_a_text(tmp_path: Path) -> None:
    bare = save_decoder(tmp_path / "bare", "llama", bos=True, headless=True)
    config = json.loads((bare / "config.json").read_text()) | {"max_position_embeddings": 6}
    (bare / "config.json").write_text(json.dumps(config))
    # BOS and five latents fill the six positions.
    with pytest.raises(ReasonEmbedError, match=r"5 latent tokens leave no room .* 6 tokens .* fewer than 5"):
        add_latents(str(bare), 5, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    add_latents(str(bare), 4, tmp_path / "made")


def test_latents_that_are_there_already(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="has 3 latent tokens already"):
        add_latents(str(made / "qwen3-latents"), 2, tmp_path / "made")


def test_a_folder_that_is_there_already(made: Path) -> None:
    with pytest.raises(DataError, match="not an empty folder"):
        add_latents(str(made / "qwen3"), 2, made / "qwen2-latents")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ReasonEmbedError, match="give a directory that holds a decoder"):
        add_latents(str(tmp_path), 2, tmp_path / "made")


def test_an_encoder(tmp_path: Path) -> None:
    make_encoder(tmp_path / "parts").save_pretrained(str(tmp_path / "bert"))
    with pytest.raises(ReasonEmbedError, match="is no decoder"):
        add_latents(str(tmp_path / "bert"), 2, tmp_path / "made")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match=r"cannot load \./none \(.*\): give a directory"):
        add_latents("./none", 2, tmp_path / "made")


def test_another_pooling(made: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    model = SentenceTransformer(str(made / "qwen3"), device="cpu")
    model[1] = Pooling(32, "mean")
    model.save_pretrained(str(tmp_path / "mean"))
    with pytest.raises(ReasonEmbedError, match="does not pool the last token"):
        add_latents(str(tmp_path / "mean"), 2, tmp_path / "made")


def test_a_tokenizer_without_a_post_processor() -> None:
    from reasonembed_mteb.reasoning import latents

    class Slow:
        """A tokenizer in Python."""

    with pytest.raises(ReasonEmbedError, match=r"has no fast tokenizer \(Slow\)"):
        latents._check_tokenizer(Slow(), "old")  # type: ignore[arg-type]


def test_a_tokenizer_without_eos(made: Path, tmp_path: Path) -> None:
    bare = save_decoder(tmp_path / "bare", headless=True)
    file = bare / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("eos_token")
    file.write_text(json.dumps(config))
    with pytest.raises(ReasonEmbedError, match="no EOS token"):
        add_latents(str(bare), 2, tmp_path / "made")


def test_latents_that_are_not_appended(made: Path) -> None:
    tokenizer = ReasonEmbed(str(made / "qwen3-latents"), device="cpu").tokenizer
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ReasonEmbedError, match="texts do not end in them"):
        find_latents(tokenizer)


def test_a_model_without_latents_has_none(made: Path) -> None:
    assert find_latents(ReasonEmbed(str(made / "qwen3"), device="cpu").tokenizer).count == 0


def test_names_are_numbered(made: Path) -> None:
    known = ReasonEmbed(str(made / "qwen3-latents"), device="cpu").tokenizer.get_added_vocab()
    names = [one for one in known if re.fullmatch(r"<\|latent_\d+\|>", one)]
    assert sorted(names) == ["<|latent_0|>", "<|latent_1|>", "<|latent_2|>"]


WITHOUT_US = """
import json, sys
from importlib.abc import MetaPathFinder

class Refused(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "reasonembed_mteb":
            raise ImportError(name)

for name in [name for name in sys.modules if name.startswith("reasonembed_mteb")]:
    del sys.modules[name]
sys.meta_path.insert(0, Refused())
import mteb
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer

data, *folders = sys.argv[1:]
held = json.load(open(data))

class Own(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="Own", description="x", dataset={"path": "local", "revision": "1"}, type="Retrieval",
        eval_langs=["eng-Latn"], main_score="ndcg_at_10", prompt=None,
    )
    def load_data(self, **_):
        rows = lambda texts: Dataset.from_dict({"id": list(texts), "text": list(texts.values())})
        self.dataset = {"default": {"test": {
            "corpus": rows(held["corpus"]), "queries": rows(held["queries"]),
            "relevant_docs": held["labels"], "top_ranked": None,
        }}}
        self.data_loaded = True

for folder in folders:
    model = SentenceTransformer(folder, device="cpu")
    result = mteb.evaluate(model, [Own()], cache=None, co2_tracker=False, show_progress_bar=False)
    print(json.dumps(result.task_results[0].scores["test"][0]["ndcg_at_10"]))
print(json.dumps([name for name in sys.modules if name.startswith("reasonembed_mteb")]))
"""


@pytest.mark.slow
def test_mteb_alone_gives_the_same_scores(made: Path, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    draw = np.random.default_rng(0)
    words = np.array(["sky", "blue", "leaf", "autumn", "red", "Rayleigh", "short", "long", "waves", "pass"])
    corpus = {f"d{i}": " ".join(draw.choice(words, 6)) for i in range(40)}
    queries = {f"q{i}": " ".join(draw.choice(words, 2, replace=False)) for i in range(10)}
    labels = {f"q{i}": {f"d{i}": 1, f"d{i + 20}": 1} for i in range(10)}
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"corpus": corpus, "queries": queries, "labels": labels}))
    folders = [str(made / f"{family}-latents") for family in FAMILIES]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_US, str(data), *folders],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env=os.environ | {"REASONEMBED_MTEB_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr
    *scores, ours_loaded = (json.loads(line) for line in done.stdout.splitlines()[-5:])
    assert ours_loaded == []
    for folder, score in zip(folders, scores, strict=True):
        model = ReasonEmbed(folder, device="cpu")
        # The directory's prompts name no such task: bare, as mteb asks them.
        vectors = [model.encode(list(texts.values()), prompt="") for texts in (queries, corpus)]
        found = ndcg(vectors[0] @ vectors[1].T, labels, list(queries), list(corpus))
        assert score == pytest.approx(found, abs=2e-5)
    assert len(set(scores)) == len(scores)


def ndcg(scores: Any, labels: Any, queries: list[str], documents: list[str]) -> float:
    """Return the mean nDCG@10 by its definition; of equal scores the later id first, as MTEB's evaluator."""
    gains = []
    for query, row in zip(queries, scores, strict=True):
        ranked = sorted(zip(row.tolist(), documents, strict=True), reverse=True)[:10]
        gain = sum(labels[query].get(name, 0) / np.log2(place + 2) for place, (_, name) in enumerate(ranked))
        gains.append(gain / sum(1 / np.log2(place + 2) for place in range(len(labels[query]))))
    return float(np.mean(gains))
