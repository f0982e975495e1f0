"""Scoring by one protocol: caching by what decided a result, smoke runs, rerankings, failures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import pytest
from mteb.types import PromptType

from reasonembed_mteb import files
from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.evaluation import demo, limits, resolving, runner
from reasonembed_mteb.evaluation import plan as planning
from reasonembed_mteb.evaluation import record as records
from reasonembed_mteb.evaluation import resolving as downloads
from reasonembed_mteb.evaluation.variants import check_devices
from reasonembed_mteb.models import instructions as prefixes

if TYPE_CHECKING:
    from collections.abc import Callable

    from mteb.abstasks.task_metadata import TaskMetadata

    Score = Callable[..., tuple[list[runner.Outcome], list[str]]]

BIOLOGY, ECONOMICS = "ReasonEmbedBrightBiology", "ReasonEmbedBrightEconomics"
WORDS = [
    "cell",
    "leaf",
    "water",
    "light",
    "root",
    "soil",
    "price",
    "market",
    "trade",
    "money",
    "bank",
    "tax",
    "sun",
    "moon",
    "star",
    "salt",
    "acid",
    "iron",
    "gold",
]
TEMPLATE = "Instruct: {instruction}\nQuery: "
BIOLOGY_INSTRUCTION = "Given a Biology post, retrieve relevant passages that help answer the post."
ECONOMICS_INSTRUCTION = "Given an Economics post, retrieve relevant passages that help answer the post."


pytestmark = pytest.mark.usefixtures("registered")


def write_subset(folder: Path, subset: str, queries: int = 6, documents: int = 40, last: str = "") -> None:
    """Write a subset in BRIGHT's layout; document i is the words i, i+1 and i+2."""
    from datasets import Dataset

    texts = [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(3)) for i in range(documents)]
    texts[-1] += last
    corpus = {"id": [f"d{i}" for i in range(documents)], "content": texts}
    examples = {
        "id": [f"q{i}" for i in range(queries)],
        "query": [" ".join(WORDS[i + k] for k in range(3)) for i in range(queries)],
        "excluded_ids": [["N/A"] if i else [f"d{len(WORDS)}"] for i in range(queries)],
        "gold_ids": [[f"d{i}"] for i in range(queries)],
    }
    for config, rows in (("documents", corpus), ("examples", examples)):
        file = folder / config / f"{subset}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows).to_parquet(str(file))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a local copy of BRIGHT with two tiny subsets."""
    folder = tmp_path / "data"
    write_subset(folder, "biology")
    write_subset(folder, "economics")
    monkeypatch.setenv("REASONEMBED_BRIGHT_PATH", str(folder))
    return folder


def save_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        sep_token="[SEP]",
        model_max_length=32,
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def save_bert(folder: Path, *, head: bool = False, **options: Any) -> Path:
    """Save a one-layer random BERT: a sentence-transformers model, or a cross-encoder with `head`."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    bare = folder if head else folder.with_name(f"{folder.name}-bare")
    config = BertConfig(
        vocab_size=save_tokenizer(bare),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=1,
    )
    (BertForSequenceClassification if head else BertModel)(config).save_pretrained(bare)
    if not head:
        SentenceTransformer(str(bare), device="cpu", **options).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small sentence-transformers directory without prompts."""
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with prompts of its own."""
    prompts = {f"{BIOLOGY}-query": "cell ", "query": "leaf ", "document": ""}
    return save_bert(tmp_path_factory.mktemp("models") / "prompted", prompts=prompts)


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small cross-encoder directory."""
    return save_bert(tmp_path_factory.mktemp("models") / "cross", head=True)


@pytest.fixture
def score(tmp_path: Path) -> Score:
    """Return a function that runs models on tasks, and returns outcomes and what was said."""

    def run(
        models: list[Any], tasks: list[str], *, resolve: dict[str, Any] | None = None, **options: Any
    ) -> tuple[list[runner.Outcome], list[str]]:
        said: list[str] = []
        chosen = runner.RunOptions(
            **{"output": tmp_path / "results", "device": "cpu", "progress": False} | options
        )
        metas = [
            m if not isinstance(m, (str, Path)) else resolving.resolve_model(str(m), **resolve or {})
            for m in models
        ]
        outcomes = runner.run(metas, resolving.resolve_tasks([], tasks), chosen, said.append)
        return outcomes, said

    return run


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.mark.usefixtures("data")
def test_second_run_takes_the_cached_score_and_the_record_says_how(
    score: Score, bert: Path, tmp_path: Path
) -> None:
    (first,), _ = score([bert], [BIOLOGY])
    (second,), said = score([bert], [BIOLOGY])
    assert not first.cached
    assert second.cached
    assert first.score == second.score > 0
    assert said == [f"{first.model} on {BIOLOGY}: ndcg_at_10 {100 * first.score:.2f} taken from the cache"]
    file = only(tmp_path, f"results/records/local__*/*/{BIOLOGY}.json")
    result = only(tmp_path, f"results/results/local__*/*/{BIOLOGY}.json")
    assert file.relative_to(tmp_path / "results/records") == result.relative_to(tmp_path / "results/results")
    record = json.loads(file.read_text())
    assert record["causes"]["instruction"] == BIOLOGY_INSTRUCTION
    assert record["causes"]["data_revision"].startswith("xxh3:")
    assert record["causes"]["model_revision"] == result.parent.name
    assert record["causes"]["limit"] is None
    assert record["query_prefix"] == ""
    assert record["max_tokens_in_force"] == 32
    assert (record["dtype"], record["device"]) == ("torch.float32", "cpu")
    assert {"mteb", "torch", "transformers", "sentence-transformers", "reasonembed-mteb"} <= record[
        "versions"
    ].keys()
    assert {"date", "seed", "main_score", "model", "task"} <= record.keys()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("task_instructions", lambda: {BIOLOGY: "another"}, "the task's instruction changed"),
        ("max_tokens_for", lambda _: 7, "the protocol's length changed"),
    ],
)
@pytest.mark.usefixtures("data")
def test_another_protocol_runs_again(
    score: Score, bert: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, words: str
) -> None:
    score([bert], [BIOLOGY])
    monkeypatch.setattr(records, name, value)
    (outcome,), said = score([bert], [BIOLOGY])
    assert not outcome.cached
    assert any(line.endswith(f"running again, {words}") for line in said)
    (outcome,), _ = score([bert], [BIOLOGY])
    assert outcome.cached


def test_other_data_run_again(score: Score, bert: Path, data: Path) -> None:
    score([bert], [BIOLOGY, ECONOMICS])
    write_subset(data, "biology", last=" gold")
    outcomes, said = score([bert], [BIOLOGY, ECONOMICS])
    assert [outcome.cached for outcome in outcomes] == [False, True]
    assert sum("running again, the data changed" in line for line in said) == 1


@pytest.mark.usefixtures("data")
def test_a_changed_directory_is_another_model(score: Score, tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "changing")
    score([folder], [BIOLOGY])
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": {"query": "salt "}}))
    (outcome,), _ = score([folder], [BIOLOGY])
    assert not outcome.cached
    assert len(list((tmp_path / "results/results").glob("*/*"))) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda record, _: record.unlink(), "it has no record of how it was made"),
        (lambda record, _: record.write_text("{"), "its record is damaged"),
        (lambda record, _: record.write_text('{"causes": 1}'), "its record is damaged"),
        (
            lambda _, result: result.write_text(result.read_text() + "\n"),
            "it was written by another program since its record was made",
        ),
    ],
)
@pytest.mark.usefixtures("data")
def test_a_result_that_no_record_vouches_for_runs_again(
    score: Score, bert: Path, tmp_path: Path, damage: Callable[[Path, Path], object], words: str
) -> None:
    score([bert], [BIOLOGY])
    record = only(tmp_path, f"results/records/*/*/{BIOLOGY}.json")
    damage(record, only(tmp_path, f"results/results/*/*/{BIOLOGY}.json"))
    (outcome,), said = score([bert], [BIOLOGY])
    assert not outcome.cached
    assert any(line.endswith(f"running again, {words}") for line in said)
    assert json.loads(record.read_text())["causes"]["max_tokens"] == 8192


@pytest.mark.usefixtures("data")
def test_overwrite_runs_again(score: Score, bert: Path) -> None:
    _, said = score([bert], [BIOLOGY], overwrite=True)
    assert not any("again" in line for line in said)
    (outcome,), said = score([bert], [BIOLOGY], overwrite=True)
    assert not outcome.cached
    assert any("running again, --overwrite" in line for line in said)


@pytest.mark.usefixtures("data")
def test_smoke_run_is_kept_apart(score: Score, bert: Path, tmp_path: Path) -> None:
    score([bert, "mteb/baseline-random-encoder"], [BIOLOGY], limit=2)
    assert not (tmp_path / "results/results").exists()
    file = only(tmp_path, f"results/limit-2/results/local__*/*/{BIOLOGY}.json")
    assert json.loads(file.read_text())["dataset_revision"].endswith("+limit2")
    record = only(tmp_path, f"results/limit-2/records/local__*/*/{BIOLOGY}.json")
    assert json.loads(record.read_text())["causes"]["limit"] == 2
    (outcome,), _ = score([bert], [BIOLOGY])
    assert not outcome.cached
    (task,) = resolving.resolve_tasks([], [BIOLOGY])
    options = runner.RunOptions(tmp_path / "results", limit=3, device="cpu", progress=False)
    runner.run([resolving.resolve_model(str(bert))], [task], options)
    assert "limit" not in task.metadata.dataset["revision"]
    full = only(tmp_path, f"results/results/local__*/*/{BIOLOGY}.json")
    assert "limit" not in json.loads(full.read_text())["dataset_revision"]


@pytest.mark.usefixtures("data")
def test_limited_task_keeps_gold_and_leaves_the_original_alone() -> None:
    task = mteb.get_task(BIOLOGY)
    task.load_data()
    own = limits.own_copy(task)
    own.dataset["default"]["standard"]["relevant_docs"] = {"q0": {"d39": 1}, "q1": {"d38": 1}}
    own.dataset["default"]["standard"]["excluded_ids"] = {"q0": ["d19", "d30"], "q1": ["d2"]}
    limits.limit_task(own, 1)
    split = own.dataset["default"]["standard"]
    assert list(split["queries"]["id"]) == ["q0"]
    assert list(split["relevant_docs"]) == ["q0"]
    # Twenty others stay beside the gold document.
    assert list(split["corpus"]["id"]) == [*(f"d{i}" for i in range(20)), "d39"]
    assert split["excluded_ids"] == {"q0": ["d19"]}
    assert len(task.dataset["default"]["standard"]["queries"]) == 6
    with pytest.raises(ReasonEmbedError, match="STS12 is no retrieval task: --limit"):
        limits.limit_task(mteb.get_task("STS12"), 1)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("queries", "gold", "kept"),
    [
        # A gold document among the first takes none of the places of the others.
        (1, {"q0": {"d3": 1}}, range(21)),
        (1, {"q0": {"d3": 1, "d7": 1}}, range(22)),
        # Twenty for each query, not for all together.
        (2, {"q0": {"d3": 1}, "q1": {"d39": 1}}, range(40)),
        (1, {"q0": {}}, range(20)),
    ],
)
def test_a_limited_corpus_has_room_for_twenty_other_documents_a_query(
    queries: int, gold: dict[str, dict[str, int]], kept: range
) -> None:
    own = limits.own_copy(mteb.get_task(BIOLOGY))
    own.load_data()
    own.dataset["default"]["standard"]["relevant_docs"] = gold
    limits.limit_task(own, queries)
    split = own.dataset["default"]["standard"]
    assert list(split["corpus"]["id"]) == [f"d{i}" for i in kept]


@pytest.mark.usefixtures("data")
def test_a_failing_model_does_not_stop_the_others_and_loads_once(
    score: Score, bert: Path, tmp_path: Path
) -> None:
    broken = save_bert(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    meta = resolving.resolve_model(str(broken))
    loads = []
    loader = meta.loader

    def counted(*args: Any, **kwargs: Any) -> Any:
        loads.append(args)
        return loader(*args, **kwargs)

    outcomes, said = score([meta.model_copy(update={"loader": counted}), bert], [BIOLOGY, ECONOMICS])
    assert [outcome.score is None for outcome in outcomes] == [True, True, False, False]
    assert outcomes[0].error
    assert "\n" not in outcomes[0].error
    assert len(loads) == 1
    assert sum("failed" in line for line in said) == 1


def test_a_missing_subset_fails_alone(score: Score, bert: Path, data: Path) -> None:
    (data / "documents/biology-00000-of-00001.parquet").unlink()
    outcomes, _ = score([bert], [BIOLOGY, ECONOMICS])
    assert "documents/biology-*.parquet" in str(outcomes[0].error)
    assert outcomes[1].score is not None


@pytest.mark.usefixtures("data")
def test_an_interrupted_run_goes_on_where_it_stopped(
    score: Score, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = mteb.evaluate

    def interrupted(model: Any, tasks: Any, **kwargs: Any) -> Any:
        if tasks[0].metadata.name == ECONOMICS:
            raise KeyboardInterrupt
        return evaluate(model, tasks, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(mteb, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            score([bert], [BIOLOGY, ECONOMICS])
    outcomes, _ = score([bert], [BIOLOGY, ECONOMICS])
    assert [outcome.cached for outcome in outcomes] == [True, False]


@pytest.mark.usefixtures("data")
def test_cross_encoder_reranks_saved_predictions(
    score: Score, bert: Path, cross: Path, tmp_path: Path
) -> None:
    (alone,), _ = score([cross], [BIOLOGY])
    assert "give --rerank-from FOLDER" in str(alone.error)
    first, second = tmp_path / "first", tmp_path / "second"
    score([bert], [BIOLOGY], prediction_folder=first)
    reranking = {"rerank_from": first, "rerank_top_k": 3}
    (outcome,), _ = score([cross], [BIOLOGY], prediction_folder=second, **reranking)
    assert outcome.error is None
    candidates = json.loads((first / f"{BIOLOGY}_predictions.json").read_text())["default"]["standard"]
    reranked = json.loads(only(second, "rerank-first-top3/*.json").read_text())["default"]["standard"]
    best = {query: sorted(found, key=found.get, reverse=True)[:3] for query, found in candidates.items()}
    assert {query: set(found) for query, found in reranked.items()} == {q: set(d) for q, d in best.items()}
    assert not any(f"d{len(WORDS)}" in found for found in (candidates["q0"], reranked["q0"]))
    assert only(tmp_path, f"results/rerank-first-top3/results/local__*__cross/*/{BIOLOGY}.json")
    assert not list(tmp_path.glob(f"results/results/*__cross/*/{BIOLOGY}.json"))
    (again,), _ = score([cross], [BIOLOGY], **reranking)
    assert again.cached
    # Another first stage is another result.
    write = first / f"{BIOLOGY}_predictions.json"
    write.write_text(write.read_text() + " ")
    (again,), said = score([cross], [BIOLOGY], **reranking)
    assert not again.cached
    assert any("the first stage changed" in line for line in said)
    (missing,), _ = score([cross], [ECONOMICS], **reranking)
    assert "no first-stage predictions" in str(missing.error)


@pytest.mark.usefixtures("data")
def test_limited_reranking_keeps_the_candidates(
    score: Score, bert: Path, cross: Path, tmp_path: Path
) -> None:
    score([bert], [BIOLOGY], prediction_folder=tmp_path / "first")
    options = {"rerank_from": tmp_path / "first", "rerank_top_k": 40, "limit": 1}
    (outcome,), _ = score([cross], [BIOLOGY], prediction_folder=tmp_path / "second", **options)
    assert outcome.error is None
    found = json.loads(only(tmp_path, "second/*/*/*.json").read_text())["default"]["standard"]
    assert list(found) == ["q0"]
    assert len(found["q0"]) == 39


@pytest.mark.usefixtures("data")
def test_predictions_of_several_models_do_not_mix(
    score: Score, bert: Path, prompted: Path, tmp_path: Path
) -> None:
    score([bert], [BIOLOGY])
    folder = tmp_path / "predictions"
    outcomes, said = score([bert, prompted], [BIOLOGY], prediction_folder=folder)
    # The first was cached, but without predictions.
    assert [outcome.cached for outcome in outcomes] == [False, False]
    assert any("its predictions are not in" in line for line in said)
    names = {
        json.loads(file.read_text())["mteb_model_meta"]["model_name"] for file in folder.glob("*/*.json")
    }
    assert len(names) == 2
    assert not list(folder.rglob(".part-*"))
    outcomes, _ = score([bert, prompted], [BIOLOGY], prediction_folder=folder)
    assert [outcome.cached for outcome in outcomes] == [True, True]
    # Those of another model in the same place are not this one's.
    score([prompted], [BIOLOGY], prediction_folder=tmp_path / "one")
    (outcome,), _ = score([bert], [BIOLOGY], prediction_folder=tmp_path / "one")
    assert not outcome.cached
    written = json.loads(only(tmp_path, "one/*.json").read_text())
    assert written["mteb_model_meta"]["model_name"].endswith("__bert")


@pytest.mark.parametrize(
    ("resolve", "expected"),
    [
        ({}, {BIOLOGY: "cell ", ECONOMICS: "leaf "}),
        ({"no_instruction": True}, {BIOLOGY: "", ECONOMICS: ""}),
        (
            {"template": TEMPLATE},
            {
                BIOLOGY: f"Instruct: {BIOLOGY_INSTRUCTION}\nQuery: ",
                ECONOMICS: f"Instruct: {ECONOMICS_INSTRUCTION}\nQuery: ",
            },
        ),
    ],
)
def test_the_prefix_told_before_a_run_is_the_one_that_the_model_gets(
    prompted: Path, resolve: dict[str, Any], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = resolving.resolve_model(str(prompted), **resolve)
    model = meta.load_model(device="cpu")
    for name, prefix in expected.items():
        task = mteb.get_task(name)
        assert prefixes.planned_prefix(meta, task.metadata) == prefix
        assert prefixes.loaded_prefix(model, task.metadata) == prefix
        assert given_prefix(model, task, monkeypatch) == prefix


def given_prefix(model: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what sentence-transformers is told to put before a query."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    seen = []
    inner = model.model._inference

    def spy(texts: list[str], *, prompt: str | None, **kwargs: Any) -> Any:
        assert texts == ["salt"]
        seen.append(prompt or "")
        return inner(texts, prompt=prompt, **kwargs)

    loader = DataLoader(Dataset.from_dict({"text": ["salt"]}))
    kind = PromptType.query
    with monkeypatch.context() as patched:
        patched.setattr(model.model, "_inference", spy)
        model.encode(loader, task_metadata=task.metadata, prompt_type=kind, hf_split="", hf_subset="")
    (prefix,) = seen
    return prefix


def test_prefixes_of_registered_models_are_told_without_loading() -> None:
    biology = mteb.get_task(BIOLOGY).metadata
    native = mteb.get_task("BrightBiologyRetrieval").metadata

    def planned(name: str, task: TaskMetadata = biology) -> str | None:
        return prefixes.planned_prefix(resolving.resolve_model(name), task)

    instructed = f"Instruct: {BIOLOGY_INSTRUCTION}\nQuery: "
    assert planned("hanhainebula/reason-embed-qwen3-8b-0928") == instructed
    assert planned("hanhainebula/reason-embed-qwen3-8b-0928", native) == instructed
    assert planned("intfloat/multilingual-e5-large-instruct") == instructed
    assert planned("intfloat/e5-small-v2") == "query: "
    assert planned("bm25s") == ""
    # Its loader builds the prompt in code of its own.
    assert planned("Qwen/Qwen3-Embedding-0.6B") is None
    assert prefixes.describe_prefix(instructed).endswith(r"post.\nQuery: ")
    assert prefixes.describe_prefix("") == "none"


def test_causes_are_the_same_in_every_process() -> None:
    """A function among a loader's options is known by its name, not by where it lies in memory."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    task = mteb.get_task("ReasonMiniBiology")
    texts = [json.dumps(asdict(records.find_causes(meta, task))) for meta in MODEL_REGISTRY.values()]
    assert len(texts) > 300
    assert not [text for text in texts if " at 0x" in text]


def test_experiments_are_filed_apart(prompted: Path) -> None:
    metas = [
        resolving.resolve_model(str(prompted), **options)
        for options in ({}, {"no_instruction": True}, {"template": TEMPLATE}, {"template": "{instruction} "})
    ]
    assert len({meta.experiment_name for meta in metas}) == 4
    assert not any("\n" in str(meta.experiment_name) for meta in metas)
    labels = resolving.model_labels(metas)
    assert labels[1].endswith("(--no-instruction)")
    assert len(set(labels[:3])) == 3


def test_two_directories_of_one_name_have_two_labels(bert: Path, prompted: Path) -> None:
    metas = [resolving.resolve_model(str(folder), filed_as="my/model") for folder in (bert, prompted)]
    first, second = resolving.model_labels(metas)
    assert first != second
    assert first.startswith("my/model @")


def test_names_are_resolved_or_refused_in_one_line(bert: Path, tmp_path: Path) -> None:
    assert resolving.resolve_model("bm25s").name == "mteb/baseline-bm25s"
    assert resolving.resolve_model(str(bert)).name.startswith("local/")
    assert [meta.name for meta in resolving.resolve_models([str(bert)], filed_as="my/bert")] == ["my/bert"]
    assert len(resolving.resolve_models(["bm25s", "bm25s"])) == 1
    (tmp_path / "berty").mkdir()
    refused: dict[str, Any] = {
        "bm26s": "did you mean 'bm25s'",
        str(
            tmp_path / "bertx"
        ): f"no model directory {tmp_path / 'bertx'}; did you mean {tmp_path / 'berty'}",
        "./nowhere-at-all": "no model directory nowhere-at-all",
        str(tmp_path / "berty"): "holds no model",
        "hanhainebula/reason-embed-qwen3-8b-0929": "did you mean 'hanhainebula/reason-embed-qwen3-8b-0928'",
    }
    for name, words in refused.items():
        with pytest.raises(ReasonEmbedError) as caught:
            resolving.resolve_model(name)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="did you mean 'ReasonMiniBiology'"):
        resolving.resolve_tasks([], ["ReasonMiniBiologi"])
    with pytest.raises(UnknownNameError, match="did you mean 'ReasonMini'"):
        resolving.resolve_tasks(["ReasonMinni"], [])
    names = [task.metadata.name for task in resolving.resolve_tasks(["ReasonMini"], ["ReasonMiniBiology"])]
    assert len(names) == len(set(names)) == 12


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["bm25s"], {"no_instruction": True}, "sets its own instructions"),
        (["hanhainebula/reason-embed-qwen3-8b-0928"], {"template": TEMPLATE}, "sets its own instructions"),
        (["bm25s"], {"filed_as": "a/b"}, "one local directory"),
        (["BERT", "bm25s"], {"filed_as": "a/b"}, "one local directory"),
        (["BERT"], {"filed_as": "plain"}, "org/name"),
        (["BERT"], {"template": "no place"}, "must contain '{instruction}'"),
        (["BERT"], {"template": TEMPLATE, "no_instruction": True}, "not both"),
        (["CROSS"], {"no_instruction": True}, "no dense model"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    bert: Path, cross: Path, names: list[str], options: dict[str, Any], words: str
) -> None:
    folders = {"BERT": str(bert), "CROSS": str(cross)}
    with pytest.raises(ReasonEmbedError, match=words):
        resolving.resolve_models([folders.get(name, name) for name in names], **options)


def test_plan_counts_what_would_be_encoded(bert: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_subset(data, "biology", last=" salt" * 60)
    meta = resolving.resolve_model(str(bert), template="cell {instruction} ")
    tokens = len(BIOLOGY_INSTRUCTION.replace(".", " .").replace(",", " ,").split()) + 1
    plan = planning.plan_task(meta, mteb.get_task(BIOLOGY))
    assert (plan.queries, plan.documents, plan.length) == (6, 40, 32)
    assert plan.query_tokens == 6 * (3 + tokens)
    assert plan.document_tokens == 39 * 3 + 32
    assert plan.truncated == pytest.approx(1 / 40)
    assert not plan.sampled
    assert planning.plan_task(meta, mteb.get_task(BIOLOGY), limit=1).queries == 1
    monkeypatch.setattr(planning, "SAMPLE", 13)
    sampled = planning.plan_task(meta, mteb.get_task(BIOLOGY))
    # Every fourth document, without the long one at the end.
    assert (sampled.sampled, sampled.document_tokens) == (True, 40 * 3)


def test_plan_of_a_model_without_tokenizer_and_of_broken_data(data: Path) -> None:
    (data / "examples/economics-00000-of-00001.parquet").unlink()
    tasks = [mteb.get_task(name) for name in (ECONOMICS, BIOLOGY, "STS12")]
    (plan,), errors = planning.plan_tasks(resolving.resolve_model("bm25s"), tasks)
    assert (plan.task, plan.queries, plan.length, plan.query_tokens) == (BIOLOGY, 6, None, None)
    assert len(errors) == 2
    assert "examples/economics-*.parquet" in errors[0]
    assert "no retrieval task" in errors[1]


@pytest.mark.usefixtures("data")
def test_download_loads_data_and_says_what_it_cannot_fetch(tmp_path: Path) -> None:
    said: list[str] = []
    downloads.download([mteb.get_task(BIOLOGY)], [], said.append)
    assert said == [f"{BIOLOGY}: data is there"]
    for name in ("org/nothing", "not a name"):
        with pytest.raises(ReasonEmbedError, match=f"cannot fetch {name}: .*go online") as caught:
            downloads.download([], [name], said.append, str(tmp_path))
        assert "\n" not in str(caught.value)


def test_demo_says_what_to_install_and_runs_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    assert [meta.name for meta in demo.demo_models(said.append)] == [demo.RANDOM]
    assert len(said) == 2
    assert all('pip install "reasonembed-mteb[demo]"' in line for line in said)


def test_records_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep/record.json"
    files.write_whole(file, "old")

    def full(self: Path, _: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ReasonEmbedError, match=r"record.json: No space left on device; free space"):
        files.write_whole(file, "new")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_errors_become_one_line() -> None:
    assert runner.one_line(ReasonEmbedError("a; b")) == "a; b"
    assert runner.one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert runner.one_line(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(
    ("wish", "said"), [("cuda:99", "cuda:99"), ("nothing", "'nothing'"), (" , ", "names no device")]
)
def test_a_device_that_is_not_there_is_one_line(wish: str, said: str) -> None:
    with pytest.raises(ReasonEmbedError, match=said) as error:
        check_devices(wish)
    assert "give cpu, cuda" in str(error.value)
    assert "\n" not in str(error.value)


def test_devices_are_read_in_order() -> None:
    assert check_devices(None) == []
    assert check_devices("cpu, cpu") == ["cpu", "cpu"]
