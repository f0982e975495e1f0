"""Instruction formatting: pure strings."""

from __future__ import annotations

# One space after "Query:"; the official evaluation writes it so (PROTOCOL: model card and
# FlagEmbedding 7ed43d67, evaluation/bright).
QUERY_TEMPLATE = "Instruct: {instruction}\nQuery: "


def query_prefix(instruction: str, template: str = QUERY_TEMPLATE) -> str:
    """Return the text that goes before a query.

    Args:
        instruction: One sentence saying what to retrieve; empty for none.
        template: Where the instruction goes; must hold ``{instruction}``.

    Returns:
        The prefix, or an empty string when there is no instruction.

    Raises:
        ValueError: If the template has no ``{instruction}`` in it.
    """
    if "{instruction}" not in template:
        msg = f"the template {template!r} must contain '{{instruction}}'"
        raise ValueError(msg)
    # Not str.format: an instruction or template may hold other braces.
    return template.replace("{instruction}", instruction) if instruction else ""
