"""The card of a trained model: what was really done, in Markdown that no name can break."""

from __future__ import annotations

from typing import Any

import pytest
from training_data import tiny_recipe

from reasonembed_mteb.training.modelcard import card, write_toml
from reasonembed_mteb.training.recipes import check_recipe

RECORD = {"counts": {}, "steps": 40, "world_size": 1, "versions": {}, "scores": []}


def made(record: dict[str, Any], prompts: dict[str, str | None] | None = None, /, **sections: Any) -> str:
    return card(check_recipe(tiny_recipe("org/name", **sections), "tiny"), RECORD | record, prompts or {})


@pytest.mark.parametrize(
    ("weighted", "tag", "words"),
    [
        (
            40,
            "loss:redapter",
            "reasoning-intensity weighted InfoNCE (arXiv 2510.08252) in 40 steps on",
        ),
        (10, "loss:redapter", "in 40 steps (10 of them weighted, the others plain InfoNCE) on"),
        (
            0,
            "loss:infonce",
            "with InfoNCE (arXiv 2510.08252) in 40 steps (the recipe asks for Redapter",
        ),
    ],
)
def test_the_loss_is_that_of_the_steps(weighted: int, tag: str, words: str) -> None:
    text = made({"weighted_steps": weighted})
    assert f"- {tag}\n" in text
    assert words in text
    assert "- loss:infonce" in made({"weighted_steps": 0}, loss={"kind": "infonce"})


def test_steps_that_were_left_out_are_said() -> None:
    assert "3 of these steps were left out, the loss or the gradient not being finite." in made(
        {"left_out_steps": 3}
    )
    assert "left out" not in made({"left_out_steps": 0})


def test_the_reasoning_that_was_cut_is_said() -> None:
    assert "cut away by its length, mean of the rows: biology 12.5%." in made(
        {"reasoning_cut": {"biology": 0.125}}
    )
    assert "cut away" not in made({"reasoning_cut": {}}, loss={"kind": "infonce"})


def test_names_from_data_are_text() -> None:
    name = "x | [a](http://b) `c`\n# head"
    text = made({"counts": {name: {"rows kept": 1}}, "reasoning_cut": {name: 0.5}}, {name: "Find. "})
    assert "\n# head" not in text
    # In the code it is a string, on one line.
    code, _, rest = text.partition("```python")[2].partition("```")
    assert 'prompt_name="x | [a](http://b) `c`\\n# head"' in code
    assert "[a](http" not in rest
    (line,) = [line for line in text.splitlines() if line.startswith("| x ")]
    assert line.count(" | ") == 1


def test_what_a_recipe_leaves_open_is_not_written() -> None:
    text = write_toml({"a": None, "b": 1, "c": {"d": None, "e": "x"}})
    assert text.split() == ["b", "=", "1", "[c]", "e", "=", '"x"']
