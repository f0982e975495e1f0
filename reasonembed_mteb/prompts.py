"""Templates of the text before a query: checked, filled in, written into names and read back."""

from __future__ import annotations

import re

from reasonembed_mteb.errors import ReasonEmbedError

# One space after "Query:"; the official evaluation writes it so (PROTOCOL: model card and
# FlagEmbedding 7ed43d67, evaluation/bright).
PLACE = "{instruction}"
QUERY_TEMPLATE = "Instruct: {instruction}\nQuery: "


class TemplateError(ReasonEmbedError, ValueError):
    """A template that cannot be used."""


def query_prefix(instruction: str, template: str = QUERY_TEMPLATE) -> str:
    """Return the text that goes before a query.

    Args:
        instruction: One sentence saying what to retrieve; empty for none.
        template: Where the instruction goes; must hold ``{instruction}``.

    Returns:
        The prefix, or an empty string when there is no instruction.

    Raises:
        TemplateError: If the template has no ``{instruction}`` in it.
    """
    check_template(template)
    # Not str.format: an instruction or template may hold other braces.
    return template.replace(PLACE, instruction) if instruction else ""


def check_template(template: str) -> str:
    """Return a template, which must say where the instruction goes.

    Args:
        template: Such as `QUERY_TEMPLATE`, with real line breaks.

    Raises:
        TemplateError: If it has no ``{instruction}`` in it.
    """
    if PLACE not in template:
        msg = f"the template {template!r} must contain '{PLACE}'; write it where the instruction goes"
        raise TemplateError(msg)
    return template


def escape_template(template: str) -> str:
    r"""Return a template as one line, for names and command lines: a line break becomes ``\n``.

    Args:
        template: With real line breaks; `unescape_template` gives it back.
    """
    return template.replace("\\", "\\\\").replace("\n", "\\n")


def unescape_template(line: str) -> str:
    r"""Return a template from one line: ``\n`` becomes a line break.

    Args:
        line: What `escape_template` made, or a user wrote. A ``\`` before anything else stays one.
    """
    return re.sub(r"\\([\\n])", lambda found: "\n" if found[1] == "n" else "\\", line)
