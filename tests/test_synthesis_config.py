"""The configuration: every key checked, with the nearest name in the message."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel
from remixer_script import make_config, write_config, write_corpus

from reasonembed_mteb.endpoints.endpoint import Endpoint
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.files import fingerprint
from reasonembed_mteb.synthesis.config import GROUPS, LEVEL_WEIGHTS, WORD_WEIGHTS, read_config

ROOT = Path(__file__).resolve().parents[1]


def test_the_defaults_are_the_protocols(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert list(WORD_WEIGHTS.values()) == [1, 2, 3, 3, 2, 1]
    assert LEVEL_WEIGHTS == {"high school": 1, "college": 2, "PhD": 2}
    assert (config.sources.min_characters, config.sources.max_characters) == (200, 5000)
    assert (config.sources.per_subset, config.seed) == (10_000, 42)
    assert (config.generate.temperature, config.generate.top_p) == (1.0, 0.6)
    assert (config.annotate.temperature, config.annotate.top_p) == (0.7, 0.95)
    assert (config.format.positive_from, config.format.negative_to) == (3, 2)
    assert GROUPS == {"leetcode": [2, 64], "pony": [64, 2]}
    assert config.format.other_group == [16, 8]
    assert config.output_folder == tmp_path / "out"


def test_the_example_is_valid_and_shows_every_key() -> None:
    file = ROOT / "examples" / "remixer.toml"
    config = read_config(file)
    assert {subset.name for subset in config.subset} >= {"biology"}
    text = file.read_text(encoding="utf-8")
    shown = set(tomllib.loads(text))
    assert shown >= set(type(config).model_fields) - {"templates", "folder"}
    # Keys without a default are commented out; tables have headers.
    keys = set(re.findall(r"^(?:# )?(?:(\w+) = |\[\w+\.(\w+)\])", text, flags=re.MULTILINE))
    keys = {name for pair in keys for name in pair}
    sections = [getattr(config, name) for name in type(config).model_fields]
    checked = [one for one in sections if isinstance(one, BaseModel)]
    assert len(checked) > 5
    for section in checked:
        assert set(type(section).model_fields) <= keys, type(section).__name__


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[generate]\ntemprature = 1.0", "unknown key 'temprature'; did you mean 'temperature'?"),
        ("[generte]\ntop_p = 1.0", "unknown key 'generte'; did you mean 'generate'?"),
        ("[endpoints.other]\nbase_ulr = 'x'\nmodel = 'y'", "did you mean 'base_url'?"),
        ("[generate]\ntemperature = 3.0", "generate.temperature"),
        ("[generate]\ntop_p = 0.0", "generate.top_p"),
        ("[generate.word_weights]\n'100-250' = 1.0", "did you mean '100-200'?"),
        ("[generate.level_weights]\nPhD = 0.0", "all weights are 0"),
        ("[sources]\nmin_characters = 300\nmax_characters = 200", "above max_characters"),
        ("[sources]\nper_subset = '10'", "sources.per_subset"),
        ("[annotate]\nsamples = 0", "annotate.samples"),
        ("[format]\nnegative_to = 3", "must be below positive_from"),
        ("[format]\nmax_positives = 1\nmin_positives = 2", "max_positives 1 is below"),
        ("[format.groups]\nbiologie = [2, 2]", "did you mean 'biology'?"),
        ("[format.groups]\nbiology = [1, 2]", "group size of biology is 1"),
        ("[mine]\nretriever = 'dense'", "needs a model"),
        ("[mine]\nretriever = 'bm25'\nfirst_rank = 5\nlast_rank = 3", "ranks 5 to 3"),
        (
            "[mine]\nretriever = 'fused'\nmodel = 'm'\nscore_ceiling = 1.0",
            "score_ceiling needs one retriever",
        ),
        ("[[subset]]\nname = 'biology'", "biology stands there twice"),
        ("[[subset]]\nname = '../x'", "subset.1.name"),
        ("[endpoints.other]\nbase_url = 'localhost:1'\nmodel = 'x'", "base_url"),
        ("[endpoints.other]\nbase_url = 'http://x'", "endpoints.other.model is missing"),
        ("[endpoints.other]\nbase_url = 'http://x'\nmodel = 'm'\nbackof = 1.0", "did you mean 'backoff'?"),
        (
            "[[subset]]\nname = 'pony'\nstart = { path = 'x', splitt = 'a' }",
            "did you mean 'split'? Allowed in",
        ),
        ("[[subset]]\nname = 'pony'\nstart = { path = 'x', at = 'clean' }", "subset.1.start.at"),
        ("[domains.law]\ntopik = 'x'", "did you mean 'topic'?"),
        ("[endpoints.other]\nbase_url = 'http://x'\nmodel = 'm'\nbackoff = '1'", "endpoints.other.backoff"),
        (
            "[endpoints.other]\nbase_url = 'http://x'\nmodel = 'm'\nlongest_wait = nan",
            "endpoints.other: longest_wait is nan: it must not be below 0",
        ),
        ("[endpoints.other]\nbase_url = 'http://x'\nmodel = 'm'\nconcurrency = true", "concurrency"),
    ],
)
def test_what_is_wrong_is_said(more: str, said: str, tmp_path: Path) -> None:
    file = write_config(tmp_path, "http://127.0.0.1:9/v1", more)
    with pytest.raises(ReasonEmbedError) as caught:
        read_config(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ReasonEmbedError, match="cannot read"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("output = ", encoding="utf-8")
    with pytest.raises(ReasonEmbedError, match="is not TOML"):
        read_config(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("folder = 'x'\n[[subset]]\nname = 'a'", encoding="utf-8")
    with pytest.raises(ReasonEmbedError, match="unknown key 'folder'"):
        read_config(tmp_path / "bad.toml")


def test_an_unknown_endpoint_names_the_nearest(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    config = make_config(tmp_path, more="[annotate]\nendpoint = 'defualt'")
    with pytest.raises(ReasonEmbedError, match=r"did you mean 'default'\? Write a table"):
        config.endpoint(config.annotate.endpoint)


def test_a_digest_follows_every_value() -> None:
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    given = [("a", "b"), ("ab",), ("a", ["b"]), ("b", "a")]
    assert len({fingerprint(*values) for values in given}) == 4


def test_an_endpoint_has_the_fields_of_the_client(tmp_path: Path) -> None:
    more = "[endpoints.other]\nbase_url = 'http://x'\nmodel = 'm'\nbackoff = 2\nlongest_wait = 600.0"
    found = make_config(tmp_path, more=more).endpoint("other")
    assert found == Endpoint("http://x", "m", backoff=2.0, longest_wait=600.0)
