"""The file of a pipeline: every key checked, the nearest name in the message, no key in a file."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from pipeline_script import retrieve, stage, write_pipeline

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.llm.templates import read_templates
from reasonembed_mteb.pipelines.config import ListwiseStage, read_pipeline, stage_causes
from reasonembed_mteb.pipelines.run import Pipeline

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BM25 = retrieve("bm25")


def test_defaults_and_names(tmp_path: Path) -> None:
    config = read_pipeline(
        write_pipeline(tmp_path, BM25 + stage("rerank", by="listwise") + stage("rerank", by="pointwise"))
    )
    assert [one.name for one in config.stages] == ["retrieve", "rerank", "rerank-2"]
    listwise = config.stages[1]
    assert isinstance(listwise, ListwiseStage)
    assert (listwise.window, listwise.step, listwise.depth, listwise.words) == (20, 10, 100, 300)
    assert config.endpoint(listwise).model == "stub"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (stage("retreive"), r"stage 1: unknown stage 'retreive'; did you mean 'retrieve'\?"),
        ("[[stage]]\nname = 'x'\n", "stage 1 says no kind"),
        (BM25 + stage("rerank"), "stage 2 does not say what reranks"),
        (BM25 + stage("rerank", by="listwize"), r"unknown reranker 'listwize'; did you mean 'listwise'\?"),
        (BM25 + stage("rerank", by="listwise", windw=3), r"unknown key 'windw'; did you mean 'window'\?"),
        (BM25 + stage("rerank", by="pointwise", window=3), "unknown key 'window'"),
        (BM25 + stage("rerank", by="cross-encoder", model="x", endpoint="default"), "unknown key 'endpoint'"),
        (retrieve("bm25", more="topk = 3"), r"unknown key 'topk'; did you mean 'top_k'\?"),
        (BM25 + stage("rerank", by="listwise", window=4, step=5), "step 5 is above window 4"),
        (
            BM25 + stage("rerank", by="endpoint", api="rank"),
            r"unknown rerank API 'rank'; did you mean 'rerank'",
        ),
        (
            BM25 + stage("rerank", by="pointwise", endpoint="defalt"),
            r"did you mean 'default'\?.*base_url and",
        ),
        (BM25 + stage("rerank", by="pointwise", queries="think"), "unknown queries 'think'"),
        (BM25 + stage("iterate", retrievers=["bm52"]), r"unknown retriever 'bm52'; did you mean 'bm25'\?"),
        (stage("fuse") + BM25, "there is nothing to fuse yet"),
        (stage("rewrite"), "retrieves nothing"),
        (retrieve("bm25", "other"), r"ends with 2 rankings \(bm25, other\)"),
        (retrieve("bm25", "other") + stage("iterate"), "takes one ranking and gets 2"),
        (retrieve("bm25", "bm25"), "two rankings are called 'bm25'"),
        (
            BM25 + stage("rerank", by="listwise", name="x") + BM25.replace('"bm25"', '"x"') + stage("fuse"),
            "two rankings are called 'x'",
        ),
        (BM25 + 'name = "original queries: bm25"\n', "is how measurements are called"),
        (BM25 + "queries = 'again'\n" + stage("iterate", name="again"), "unknown queries 'again'"),
        (
            retrieve("bm25", "other") + stage("fuse", weights=[1.0]),
            r"1 weights for 2 rankings \(bm25, other\)",
        ),
        (retrieve("bm25", "other") + stage("fuse", weights=[0.0, 0.0]), "all weights are 0"),
        (retrieve("bm25", "o") + '[[stage]]\nkind = "fuse"\nweights = [1.0, inf]\n', "finite number"),
        (retrieve("bm25", "o") + stage("fuse", weights=[1e308, 1e308]), "less than or equal to 1000000"),
        (retrieve("bm25", "o") + stage("fuse", weights=[1.0, 1.0], grid=0.1), "leave one out"),
        (retrieve(*"abcdefg") + stage("fuse", grid=0.05), "tries 230,230 weights of 7 rankings"),
        (stage("rewrite", name="a") + stage("rewrite", name="a") + BM25, "two stages are called 'a'"),
        (stage("rewrite", name="original") + BM25, "'original'"),
        (stage("rewrite", queries="x.jsonl", samples=2) + BM25, "samples: nobody is asked"),
        (stage("rewrite", queries="x.jsonl", bright="gpt4_reason") + BM25, "two sources"),
        (stage("rewrite", repeat=3) + BM25, 'repeat = 3 goes with mode = "repeat"'),
        (stage("rewrite", mode="prepend") + BM25, "stage 1.mode"),
    ],
)
def test_what_is_not_allowed_is_named(tmp_path: Path, stages: str, said: str) -> None:
    with pytest.raises(ReasonEmbedError, match=said) as caught:
        read_pipeline(write_pipeline(tmp_path, stages))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        'api_key = "abc"',
        'extra_body = { Authorization = "abc" }',
        'api_key_env = "sk-abcdefghijklmnopqrstuv"',
        'api_key_env = "abcdEFGH12345678901234567890"',
        'extra_body = { note = "hf_abcdefghijklmnopqrstuv" }',
        'extra_body = { note = "Bearer sk-proj-a1_abcDEFGHIJKLMNOPQRSTU-x" }',
        'extra_body = { note = "pplx-abcdefghijklmnopqrstuv" }',
        'extra_body = { access_token = "abc" }',
        'extra_body = { headers = { X-Api-Key = "abc" } }',
        'extra_body = { client_secret = "abc" }',
        'extra_body = { accessToken = "abc" }',
        'base_url = "http://localhost/v1?version=1&api-key=abc"',
        'base_url = "http://localhost/v1?subscription%2Dkey=abc"',
    ],
)
def test_a_key_in_the_file_is_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    address = "" if line.startswith("base_url") else 'base_url = "http://localhost/v1"\n'
    table = f'[endpoints.keyed]\n{address}model = "m"\n{line}\n'
    with pytest.raises(ReasonEmbedError, match="environment variable") as caught:
        read_pipeline(write_pipeline(tmp_path, table + BM25))
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "jinaai/jina-reranker-v2-base-multilingual",
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "perplexity-ai/pplx-embed-context-v1-0.6b",
    ],
)
def test_a_model_s_name_is_no_key(tmp_path: Path, name: str) -> None:
    table = f'[endpoints.named]\nbase_url = "http://localhost/v1"\nmodel = "{name}"\n'
    assert read_pipeline(write_pipeline(tmp_path, table + BM25)).endpoints["named"].model == name


def test_fields_may_be_left_out_and_documents_left_whole(tmp_path: Path) -> None:
    table = (
        '[endpoints.new]\nbase_url = "http://localhost/v1"\nmodel = "m"\nleave_out = ["max_tokens", "seed"]\n'
    )
    table += "extra_body = { max_completion_tokens = 4096 }\n"
    stages = BM25 + stage("iterate", endpoint="new", words=0) + stage("rerank", by="listwise", words=0)
    config = read_pipeline(write_pipeline(tmp_path, table + stages))
    _, again, ordered = config.stages
    assert (again.words, ordered.words) == (None, None)
    chat = ({"role": "user", "content": "why?"},)
    body = config.endpoint(again).body(Request("k", chat, 0.0, 1.0, 512, 42))
    assert body.keys() == {"model", "messages", "temperature", "top_p", "max_completion_tokens"}
    # It decides the answer.
    kept = read_pipeline(write_pipeline(tmp_path, table.replace('"seed"', '"n"') + stages))
    assert stage_causes(again, config) != stage_causes(again, kept)
    both = table.replace("max_completion_tokens", "seed")
    with pytest.raises(ReasonEmbedError, match="extra_body gives seed, and leave_out takes it out"):
        read_pipeline(write_pipeline(tmp_path, both + stages))
    with pytest.raises(ReasonEmbedError, match="words"):
        read_pipeline(write_pipeline(tmp_path, BM25 + stage("rerank", by="listwise", words=-1)))


def test_fields_of_requests_are_no_keys(tmp_path: Path) -> None:
    fields = {"max_tokens": 5, "eos_token": "</s>", "prompt_cache_key": "mine", "token": 3}
    body = ", ".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
    table = '[endpoints.fine]\nbase_url = "http://localhost/v1?api-version=2"\nmodel = "m"\n'
    table += f"extra_body = {{ {body} }}\n"
    assert read_pipeline(write_pipeline(tmp_path, table + BM25)).endpoints["fine"].extra_body == fields


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    file = write_pipeline(tmp_path, BM25)
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert read_pipeline(file).name == "test"
    mine = tmp_path / "mine.toml"
    mine.write_bytes(codecs.BOM_UTF8 + b'[mine]\nuser = "$query"\n')
    assert read_templates(mine).keys() == {"mine"}


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match=r"give a TOML file such as examples/pipeline"):
        read_pipeline(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name =", encoding="utf-8")
    with pytest.raises(ReasonEmbedError, match="is not TOML"):
        read_pipeline(tmp_path / "bad.toml")
    with pytest.raises(ReasonEmbedError, match=r"no file .*none.jsonl"):
        Pipeline.from_toml(write_pipeline(tmp_path, stage("rewrite", queries="none.jsonl") + BM25))


def test_later_stages_may_ask_for_what_an_iteration_wrote(tmp_path: Path) -> None:
    later = stage("iterate", name="again") + stage("rerank", by="listwise", queries="again")
    assert read_pipeline(write_pipeline(tmp_path, BM25 + later)).stages[2].queries == "again"


def test_rewritten_sets_are_looked_up_before_anything_runs(tmp_path: Path) -> None:
    file = write_pipeline(tmp_path, stage("rewrite", bright="gpt4") + BM25)
    with pytest.raises(ReasonEmbedError, match=r"did you mean 'gpt4_reason'\?"):
        Pipeline.from_toml(file)


def test_the_address_decides_nothing(tmp_path: Path) -> None:
    stages = BM25 + stage("rerank", by="pointwise")
    causes = []
    for url in ("http://one/v1", "http://two/v1"):
        config = read_pipeline(write_pipeline(tmp_path, stages, url))
        causes.append(stage_causes(config.stages[1], config))
    assert causes[0] == causes[1]
    assert causes[0]["asked"] == ["stub", None]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("pipeline-*.toml")), ids=lambda file: file.name)
def test_the_examples_hold(file: Path) -> None:
    assert Pipeline.from_toml(file).config.stages
