"""What the language model is told: templates by step, definitions by domain."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.llm.templates import ChatTemplate, checked_template, read_templates
from reasonembed_mteb.retrieval.rows import instruction_for
from reasonembed_mteb.synthesis.annotators import known_annotator
from reasonembed_mteb.synthesis.config import DomainSection

if TYPE_CHECKING:
    from pathlib import Path

    from reasonembed_mteb.synthesis.config import Config, SubsetSection

# What each template may fill in, and what it must.
_FIELDS = {
    "clean": {"topic", "document"},
    "generate": {"topic", "asks", "document", "level", "words"},
    "annotate": {"topic", "asks", "wants", "query", "document"},
    "reason": {"topic", "asks", "wants", "query", "limit"},
}
_NEEDED = {
    "clean": {"document"},
    "generate": {"document"},
    "annotate": {"query", "document"},
    "reason": {"query"},
}


@dataclass(frozen=True)
class Prompt(ChatTemplate):
    """A step's template.

    Attributes:
        step: ``clean``, ``generate``, ``annotate`` or ``reason``.
        own: Whether the user wrote it.
    """

    step: str
    own: bool = False


def _packaged(name: str) -> dict[str, Any]:
    text = (files("reasonembed_mteb") / "synthesis" / "templates" / name).read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def bright_domains() -> dict[str, DomainSection]:
    """Return the domains of BRIGHT's twelve subsets, by name."""
    return {
        name: DomainSection(**values, instruction=instruction_for(name))
        for name, values in _packaged("domains.toml").items()
    }


def domain_of(subset: SubsetSection, config: Config) -> DomainSection:
    """Return what the language model is told about a subset's domain.

    Args:
        subset: The subset; without a domain of its own its name is the domain's.
        config: A domain of the file goes before one of the package.

    Raises:
        UnknownNameError: If there is no such domain; the nearest is named.
    """
    name = subset.domain or subset.name
    known = bright_domains() | config.domains
    if name not in known:
        error = unknown_name("domain", name, known)
        error.args = (f"{error} Or write a table [domains.{name}] with topic, asks, wants and instruction.",)
        raise error
    return known[name]


def load_prompts(own: Path | None = None) -> dict[str, Prompt]:
    """Return the templates by step.

    Args:
        own: A TOML file whose tables replace ours.

    Raises:
        ReasonEmbedError: If the file cannot be read, or a template names what it cannot get.
    """
    content = _packaged("prompts.toml")
    written = {} if own is None else read_templates(own)
    ours = {step: _checked(step, values, None) for step, values in content.items()}
    return ours | {step: _checked(step, values, own) for step, values in written.items()}


def prompt_for(prompt: Prompt, model: str) -> Prompt:
    """Return the template for a model: a known annotator gets its own levels, unless the user wrote one.

    Args:
        prompt: A step's template.
        model: As the server calls it.
    """
    known = known_annotator(model) if prompt.step == "annotate" and not prompt.own else None
    return prompt if known is None else _checked("annotate", {"user": known.user}, None)


def _checked(step: str, values: Any, own: Path | None) -> Prompt:  # noqa: ANN401 - any TOML
    where = own or "prompts.toml"
    if step not in _FIELDS:
        raise ReasonEmbedError(f"{where}: {unknown_name('step', step, _FIELDS)}")
    made = checked_template(values, f"{where}, [{step}]", _FIELDS[step], _NEEDED[step])
    return Prompt(made.system, made.user, step, own is not None)
