"""Templates: checked, filled in, written on one line and read back."""

from __future__ import annotations

import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.prompts import (
    QUERY_TEMPLATE,
    check_template,
    escape_template,
    query_prefix,
    unescape_template,
)


def test_a_prefix_and_none() -> None:
    assert query_prefix("Find {this}.") == "Instruct: Find {this}.\nQuery: "
    assert query_prefix("") == ""
    assert query_prefix("x", "{instruction}{query}") == "x{query}"


@pytest.mark.parametrize("template", ["", "Query: ", "{instruct}", "{ instruction }"])
def test_a_template_without_a_place_is_refused(template: str) -> None:
    with pytest.raises(ReasonEmbedError, match=r"must contain '\{instruction\}'"):
        check_template(template)
    with pytest.raises(ValueError, match=r"must contain '\{instruction\}'"):
        query_prefix("x", template)


@pytest.mark.parametrize(
    "template", [QUERY_TEMPLATE, "", "a\\n{instruction}", "\\", "\\\\n\n", "C:\\new\n", "\t"]
)
def test_one_line_and_back(template: str) -> None:
    line = escape_template(template)
    assert "\n" not in line
    assert unescape_template(line) == template


def test_what_users_write() -> None:
    assert escape_template(QUERY_TEMPLATE) == r"Instruct: {instruction}\nQuery: "
    assert unescape_template(r"{instruction}\nQ:\t") == "{instruction}\nQ:\\t"
