"""Templates, domains and answers in tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from remixer_script import make_config

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.llm.templates import tagged
from reasonembed_mteb.retrieval.rows import instruction_for, load_rows
from reasonembed_mteb.synthesis.config import SubsetSection
from reasonembed_mteb.synthesis.prompts import bright_domains, domain_of, load_prompts

if TYPE_CHECKING:
    from pathlib import Path

LAW = """
[domains.law]
topic = "law"
asks = "a question of a client"
wants = "it states the rule"
instruction = "Given a legal question, retrieve statutes."
"""


def test_every_subset_of_bright_has_a_domain() -> None:
    subsets = {row.subset for row in load_rows() if row.kind == "bright"}
    assert set(bright_domains()) == subsets
    assert len(subsets) == 12
    topics = {name: domain.topic for name, domain in bright_domains().items()}
    assert topics["stackoverflow"] == topics["leetcode"] == topics["pony"] == "coding"
    assert topics["aops"] == topics["theoremqa_questions"] == topics["theoremqa_theorems"] == "math"
    assert all(domain.instruction == instruction_for(name) for name, domain in bright_domains().items())


def test_a_domain_of_ones_own(tmp_path: Path) -> None:
    config = make_config(tmp_path, more=LAW)
    assert domain_of(SubsetSection(name="mine", domain="law"), config).topic == "law"
    # A subset without a domain goes by its name.
    assert domain_of(SubsetSection(name="law"), config).asks == "a question of a client"
    with pytest.raises(
        UnknownNameError, match=r"unknown domain 'lawn'; did you mean 'law'\?.*\[domains.lawn\]"
    ):
        domain_of(SubsetSection(name="lawn"), config)


def test_a_template_is_filled_in_and_hashed() -> None:
    prompts = load_prompts()
    assert set(prompts) == {"clean", "generate", "annotate", "reason"}
    system, user = prompts["clean"].messages(topic="law", document="costs $5 and $topic")
    assert system["role"] == "system"
    assert "costs $5 and $topic" in user["content"]
    assert "about law?" in user["content"]
    assert len({prompt.hash for prompt in prompts.values()}) == 4


def test_own_templates_replace_ours(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[clean]\nuser = 'Keep $document?'\n", encoding="utf-8")
    prompts = load_prompts(own)
    assert prompts["clean"].messages(topic="x", document="D") == ({"role": "user", "content": "Keep D?"},)
    assert prompts["clean"].hash != load_prompts()["clean"].hash
    assert prompts["reason"] == load_prompts()["reason"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[claen]\nuser = '$document'", "did you mean 'clean'"),
        ("[clean]\nuser = 'none'", "has no \\$document"),
        ("[clean]\nuser = '$document $leval'", "unknown name '\\$leval'"),
        ("[clean]\nuser = '$document costs $ 5'", "write \\$\\$"),
        ("[clean]\nsystem = 'x'", "write user ="),
        ("[clean]\nuser = '$document'\nusr = 'x'", "did you mean 'user'"),
        ("[clean", "cannot read the templates"),
    ],
)
def test_wrong_templates(content: str, said: str, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(content, encoding="utf-8")
    with pytest.raises(ReasonEmbedError, match=said):
        load_prompts(own)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so <score>4</score>", "4"),
        ("<score> 4 \n</score>", "4"),
        ("<think><score>1</score></think><score>4</score>", "4"),
        ("<score>4</score> or <score>5</score>", None),
        ("<score>4", None),
        ("</score>4<score>", None),
        ("<score></score>", None),
        ("4", None),
        ("", None),
        (None, None),
    ],
)
def test_exactly_one_pair_of_tags_counts(text: str | None, found: str | None) -> None:
    assert tagged(text, "score") == found
