"""What the language model is told: templates by step, definitions by domain."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.files import fingerprint
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
_THOUGHT = re.compile(r"^.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """A step's template.

    Attributes:
        step: ``clean``, ``generate``, ``annotate`` or ``reason``.
        system: System message; empty for none.
        user: User message, with ``$names``.
        own: Whether the user wrote it.
    """

    step: str
    system: str
    user: str
    own: bool = False

    @property
    def hash(self) -> str:
        """Return what identifies the wording."""
        return fingerprint(self.system, self.user)

    def messages(self, **values: str) -> tuple[dict[str, str], ...]:
        """Fill the template in.

        Args:
            **values: What each ``$name`` stands for; a ``$`` in a value stays one.
        """
        system = ({"role": "system", "content": self.system},) if self.system else ()
        filled = Template(self.user).substitute(values).strip()
        return (*system, {"role": "user", "content": filled})


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
    written: dict[str, Any] = {}
    if own is not None:
        try:
            written = tomllib.loads(own.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            msg = f"cannot read the templates {own}: {error}; give a TOML file with [generate] and the like"
            raise ReasonEmbedError(msg) from error
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
    if not isinstance(values, dict) or not isinstance(values.get("user"), str):
        msg = f'{where}, [{step}]: write user = "..." (and system = "..." if you like)'
        raise ReasonEmbedError(msg)
    for key in values:
        if key not in ("system", "user"):
            raise ReasonEmbedError(f"{where}, [{step}]: {unknown_name('key', key, ('system', 'user'))}")
    template = Template(values["user"])
    if not template.is_valid():
        msg = f"{where}, [{step}]: a $ that starts no name; write $$ for the sign itself"
        raise ReasonEmbedError(msg)
    named = set(template.get_identifiers())
    for name in sorted(named - _FIELDS[step]):
        raise ReasonEmbedError(f"{where}, [{step}]: {unknown_name('name', '$' + name, _FIELDS[step])}")
    if missing := sorted(_NEEDED[step] - named):
        msg = f"{where}, [{step}]: the template has no ${missing[0]}; put it where the text belongs"
        raise ReasonEmbedError(msg)
    return Prompt(step, str(values.get("system", "")), values["user"], own is not None)


def without_thought(text: str) -> str:
    """Return an answer without what a thinking model wrote before ``</think>``.

    Args:
        text: The answer.
    """
    return _THOUGHT.sub("", text, count=1).strip()


def tagged(text: str | None, tag: str) -> str | None:
    """Return what stands between a pair of tags of an answer.

    Args:
        text: The answer; what a thinking model wrote before ``</think>`` does not count.
        tag: The tag's name.

    Returns:
        The content without space around it; None unless there is exactly one such pair with something
        in it.
    """
    said = without_thought(text or "")
    if said.count(f"<{tag}>") != 1 or said.count(f"</{tag}>") != 1:
        return None
    inner = said.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0].strip()
    return inner or None
