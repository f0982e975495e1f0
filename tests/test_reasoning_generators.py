"""Reasoning by vLLM, by a stand-in that generates: torch's tokens, vectors and scores; torch's keys stay."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import make_encoder, save_decoder
from generator_data import VERSION, StandIn, install

from reasonembed_mteb.encoding.engines.engine import EngineError
from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.evaluation import resolving, runner
from reasonembed_mteb.evaluation.chapter_files import chapter_files
from reasonembed_mteb.evaluation.reasoning_record import ENDED, FULL, read_reasoning_run
from reasonembed_mteb.files import fingerprint
from reasonembed_mteb.models.identity import describe_model, weights_hash
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.reasoning.generation import Decoding, Generation
from reasonembed_mteb.reasoning.generators import GeneratorChoice
from reasonembed_mteb.reasoning.heads import load_generator, on_backbone
from reasonembed_mteb.reasoning.latents import add_latents, find_latents
from reasonembed_mteb.reasoning.reasoner import SelfReasoning
from reasonembed_mteb.reasoning.running import ReasoningModel, ReasoningPlan
from reasonembed_mteb.reasoning.sources import ReasoningFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reasonembed_mteb.reasoning.generation import Generated, Writer

TEXTS = ("Why is the sky", "a", "Why do leaves fall in autumn, and not in spring as they do elsewhere?")
SEEDS = (11, 12, 13)
VLLM = GeneratorChoice("vllm")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    return install(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with latents, some of whose reasonings end early."""
    made = tmp_path_factory.mktemp("generators")
    add_latents(str(save_decoder(made / "bare", "qwen2")), 2, made / "model")
    return made / "model"


def writer(folder: Path, choice: GeneratorChoice, length: int = 8192) -> tuple[ReasonEmbed, Writer]:
    model = ReasonEmbed(str(folder), device="cpu")
    ending = find_latents(model.tokenizer).ids
    made = choice.writer(
        model, load_generator(str(folder)), ending, source=str(folder), length=length, revision="r1"
    )
    return model, made


def written(
    folder: Path, choice: GeneratorChoice, decoding: Decoding, texts: Sequence[str] = TEXTS
) -> list[Generated]:
    model, made = writer(folder, choice)
    prompts = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return made.run(prompts, decoding, SEEDS[: len(texts)])


def same(one: Sequence[Generated], other: Sequence[Generated]) -> None:
    assert [(a.ids, a.stop, a.tokens) for a in one] == [(b.ids, b.stop, b.tokens) for b in other]
    for a, b in zip(one, other, strict=True):
        assert (a.vector - b.vector).abs().max() < 1e-6


@pytest.mark.usefixtures("vllm")
def test_the_likeliest_tokens_are_torchs(folder: Path) -> None:
    found = written(folder, VLLM, Decoding(12))
    same(found, written(folder, GeneratorChoice(), Decoding(12)))
    # Both ways of ending.
    assert {one.stop for one in found} == {ENDED, FULL}


@pytest.mark.slow
@pytest.mark.usefixtures("vllm")
def test_a_window_shorter_than_the_text(tmp_path: Path) -> None:
    from transformers import AutoConfig

    bare = save_decoder(tmp_path / "bare", "mistral")
    config = AutoConfig.from_pretrained(bare)
    config.sliding_window = 8
    config.save_pretrained(bare)
    add_latents(str(bare), 2, tmp_path / "made")
    same(*(written(tmp_path / "made", one, Decoding(10)) for one in (VLLM, GeneratorChoice())))


def test_it_is_pinned(vllm: type[StandIn], folder: Path) -> None:
    writer(folder, VLLM, length=512)
    options = {"trust_remote_code": True, "gpu_memory_utilization": 0.3, "max_num_seqs": 8}
    choice = GeneratorChoice("vllm", options)
    writer(folder, choice)
    usual, changed = vllm.made
    assert usual == {
        # A directory by its path, and nothing asked of the hub.
        "model": str(folder.resolve()),
        "tokenizer": str(folder.resolve()),
        "revision": None,
        "runner": "generate",
        "dtype": "float32",
        "max_model_len": 512,
        "gpu_memory_utilization": 0.5,
        "generation_config": "vllm",
        "trust_remote_code": False,
    }
    assert changed["trust_remote_code"] is False
    assert (changed["gpu_memory_utilization"], changed["max_num_seqs"]) == (0.3, 8)
    # Room on a card decides no token; what else is given may.
    assert choice.identity == {"name": "vllm", "version": VERSION, "max_num_seqs": 8}


def test_a_decoding_is_stated_whole(vllm: type[StandIn], folder: Path) -> None:
    model, made = writer(folder, VLLM)
    prompts = [[5, 6, 7], [8, 9]]
    made.run(prompts, Decoding(4, temperature=0.7, top_p=0.9, seed=3), SEEDS[:2])
    ((asked, chosen),) = vllm.asked
    assert asked == [{"prompt_token_ids": one} for one in prompts]
    assert [(one.max_tokens, one.temperature, one.top_p) for one in chosen] == [(4, 0.7, 0.9)] * 2
    assert [one.seed for one in chosen] == list(SEEDS[:2])
    for one in chosen:
        assert (one.stop_token_ids, one.ignore_eos, one.detokenize) == ([2], True, False)
        assert one.bad_words == ["<|latent_0|>", "<|latent_1|>"]
        assert model.tokenizer.convert_tokens_to_ids(one.bad_words) == list(find_latents(model.tokenizer).ids)


def test_ends_are_the_checkpoints_too(vllm: type[StandIn], folder: Path) -> None:
    model, head = ReasonEmbed(str(folder), device="cpu"), load_generator(str(folder))
    head.generation_config.eos_token_id = [7, 9]  # type: ignore[union-attr]
    VLLM.writer(model, head, (), source=str(folder), length=64, revision=None).run(
        [[5]], Decoding(1), SEEDS[:1]
    )
    assert vllm.asked[0][1][0].stop_token_ids == [7, 9, 2]


def test_a_latent_is_never_written(vllm: type[StandIn], folder: Path, tmp_path: Path) -> None:
    from shutil import copytree

    loud = copytree(folder, tmp_path / "loud")
    model, head = ReasonEmbed(str(loud), device="cpu"), load_generator(str(loud))
    ids = model.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    latents = find_latents(model.tokenizer).ids
    with torch.no_grad():
        last = model[0].auto_model(torch.tensor([ids])).last_hidden_state[0, -1]
        weights: Any = head.get_output_embeddings()  # type: ignore[no-untyped-call]
        weights.weight[latents[0]] = 100 * last
        # More than any clamped bias takes away.
        assert float(weights(last).max() - weights(last)[:40].max()) > 200
    head.save_pretrained(loud)
    (found,) = written(loud, VLLM, Decoding(4), TEXTS[:1])
    assert found.ids
    assert not set(found.ids) & set(latents)
    vllm.deaf = True
    with pytest.raises(EngineError, match=r"vLLM 0\.99 wrote latent tokens"):
        written(loud, VLLM, Decoding(4), TEXTS[:1])


def test_trouble_is_one_line(vllm: type[StandIn], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReasonEmbedError, match=r"0\.99 cannot load .*\(no such dtype\): use --generator"):
        writer(folder, GeneratorChoice("vllm", {"dtype": "broken"}))
    _, made = writer(folder, VLLM)
    vllm.most = 3
    with pytest.raises(EngineError, match="stopped after 3 of 12 reasoning tokens"):
        made.run([[5, 6]], Decoding(12), SEEDS[:1])
    monkeypatch.setattr(StandIn, "generate", None)
    with pytest.raises(ReasonEmbedError, match=r"vLLM 0\.99 cannot generate \(.*NoneType"):
        made.run([[5, 6]], Decoding(12), SEEDS[:1])
    made.close()
    made.close()
    assert vllm.released == 1
    with pytest.raises(EngineError, match="was closed"):
        made.run([[5, 6]], Decoding(12), SEEDS[:1])


def test_vllm_is_missed_before_anything_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    base = resolving.resolve_model(str(folder))
    with pytest.raises(ReasonEmbedError, match=r"vLLM is not installed here .*pip install vllm"):
        ReasoningModel(base, ReasoningPlan(Decoding(4), generator=VLLM), tmp_path)


def test_what_torch_refuses_is_refused(vllm: type[StandIn], folder: Path, tmp_path: Path) -> None:
    def load(folder: Path, tokens: int = 4, **options: Any) -> None:
        model = ReasonEmbed(str(folder), device="cpu")
        SelfReasoning(
            model, str(folder), Decoding(tokens), tmp_path, generator=GeneratorChoice("vllm", options)
        )

    with pytest.raises(ReasonEmbedError, match="bert is no decoder"):
        SelfReasoning(make_encoder(tmp_path / "parts"), "bert", Decoding(4), tmp_path, generator=VLLM)
    with pytest.raises(ReasonEmbedError, match="has no language-model head"):
        load(save_decoder(tmp_path / "headless", headless=True))
    with pytest.raises(ReasonEmbedError, match=r"8,192 reasoning tokens and .* leave no room"):
        load(folder, 8192)
    (tmp_path / "file").write_text("")
    with pytest.raises(ReasonEmbedError, match="choose another folder"):
        SelfReasoning(
            ReasonEmbed(str(folder), device="cpu"),
            str(folder),
            Decoding(4),
            tmp_path / "file",
            generator=VLLM,
        )
    # vLLM's own context counts, where one is given.
    with pytest.raises(ReasonEmbedError, match=r"100 reasoning tokens and .* the model's 90"):
        load(folder, 100, max_model_len=90)
    assert vllm.made == []


@pytest.mark.parametrize(
    ("name", "options", "kind", "said"),
    [
        ("vlm", {}, UnknownNameError, "did you mean 'vllm'"),
        ("torch", {"max_num_seqs": 4}, ReasonEmbedError, "torch takes none"),
    ],
)
def test_choices_that_cannot_be(name: str, options: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        GeneratorChoice(name, options)


def test_engines_do_not_share_reasonings(
    vllm: type[StandIn], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ReasonEmbed(str(folder), device="cpu")

    def load(choice: GeneratorChoice) -> SelfReasoning:
        return SelfReasoning(model, str(folder), Decoding(2), tmp_path, generator=choice)

    queries = [*TEXTS, TEXTS[0]]
    own = load(GeneratorChoice()).reasonings(queries, 8192)
    first = load(VLLM)
    found = first.reasonings(queries, 8192)
    assert [one.ids for one in found] == [one.ids for one in own]
    # All in one call, and equal queries once.
    ((asked, _),) = vllm.asked
    assert len(asked) == 3
    first.close()
    assert vllm.released == 1
    load(GeneratorChoice("vllm", {"gpu_memory_utilization": 0.2})).reasonings(TEXTS[:1], 8192)
    assert len(vllm.asked) == 1
    load(GeneratorChoice("vllm", {"max_num_seqs": 2})).reasonings(TEXTS[:1], 8192)
    assert len(vllm.asked) == 2
    monkeypatch.setattr(sys.modules["vllm"], "__version__", "1.0")
    load(VLLM).reasonings(TEXTS[:1], 8192)
    assert len(vllm.asked) == 3


def test_torchs_keys_and_revisions_stay(folder: Path, tmp_path: Path) -> None:
    """Hashes as they were written before any other engine generated: what is kept is found."""
    model = ReasonEmbed(str(folder), device="cpu")
    kept = SelfReasoning(model, str(folder), Decoding(6), tmp_path)
    head = on_backbone(load_generator(str(folder)), model[0].auto_model)
    assert kept.identity == fingerprint(describe_model(model), weights_hash(head))
    assert isinstance(kept._writer, Generation)
    kept.identity, kept._frame.ending = "h" * 32, [371, 372]
    assert kept._key([1, 2, 3]).hex() == "fb1f4a189b41f93099c87123608d1f9749e0bde56148bdf494f3e01ea4d77b40"
    base = resolving.resolve_model("sentence-transformers/all-MiniLM-L6-v2")
    base = base.model_copy(update={"revision": "r1"})
    drawn = Decoding(6, temperature=1.0, top_p=0.9, seed=2)
    for plan, revision in (
        (ReasoningPlan(Decoding(6)), "a4ac48c1d787d31ff6a3cd22001f7b37"),
        (ReasoningPlan(drawn, prompt="{query}: "), "df21fe58a2963b821ca847aaefe812c2"),
    ):
        meta = ReasoningModel(base, plan, tmp_path).meta
        assert (meta.name, meta.revision) == ("reasoning/all-MiniLM-L6-v2-itself-6", revision)


@pytest.mark.usefixtures("vllm")
def test_a_run_says_who_generated(folder: Path, tmp_path: Path) -> None:
    base = resolving.resolve_model(str(folder))
    models = [
        ReasoningModel(base, ReasoningPlan(Decoding(3), generator=one), tmp_path)
        for one in (GeneratorChoice(), VLLM)
    ]
    assert models[0].meta.revision != models[1].meta.revision
    own, other = (model._record("") for model in models)
    assert (own.engine, other.engine) == ("", f"vllm {VERSION}")
    assert other.system == own.system + "-vllm"
    assert other.decides == own.decides | {"engine": {"name": "vllm", "version": VERSION}}


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_scores_are_torchs(vllm: type[StandIn], folder: Path, tmp_path: Path) -> None:
    base = resolving.resolve_model(str(folder))
    options = runner.RunOptions(tmp_path, device="cpu", progress=False, store=tmp_path / "vectors")
    found = []
    for choice in (GeneratorChoice(), VLLM):
        model = ReasoningModel(base, ReasoningPlan(Decoding(3), generator=choice), tmp_path / "kept")
        tasks = resolving.resolve_tasks([], ["ReasonMiniBiology"])
        found += model.run(tasks, options, print)
        model.close()
    own, other = found
    assert own.score is not None
    assert other.score == own.score
    assert vllm.released == 1
    runs = {run.system: run for run in map(read_reasoning_run, chapter_files(tmp_path, "reasoning"))}
    assert (runs[own.model].engine, runs[other.model].engine) == ("", f"vllm {VERSION}")
    assert (runs[own.model].source, runs[other.model].source) == ("itself", "itself")


@pytest.mark.usefixtures("vllm")
def test_vllm_has_nothing_to_do_where_a_file_reasons(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "thoughts.jsonl"
    file.write_text('{"query": "a", "reasoning": "b"}')
    plan = ReasoningPlan(source=ReasoningFile(file), generator=VLLM)
    with pytest.raises(ReasonEmbedError, match="and here thoughts does: leave it out"):
        ReasoningModel(resolving.resolve_model(str(folder)), plan, tmp_path)
