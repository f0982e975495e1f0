"""Templates of what a language model is told, and what its answers hold: thoughts, tags."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.files import fingerprint

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_THOUGHT = re.compile(r"^.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class ChatTemplate:
    """A prompt with places to fill in.

    Attributes:
        system: System message; empty for none.
        user: User message, with ``$names``.
    """

    system: str
    user: str

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


def read_templates(file: Path) -> dict[str, Any]:
    """Return the tables of a user's own file of templates, unchecked.

    Args:
        file: TOML.

    Raises:
        ReasonEmbedError: If it cannot be read.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f'cannot read the templates {file}: {error}; give a TOML file of tables with user = "..."'
        raise ReasonEmbedError(msg) from error


def checked_template(
    values: Any,  # noqa: ANN401 - any TOML
    where: str,
    allowed: Collection[str],
    needed: Collection[str],
    *,
    more: Collection[str] = (),
) -> ChatTemplate:
    """Make a template of a table.

    Args:
        values: The table: ``user``, and ``system`` where there is one.
        where: File and table, for the message.
        allowed: Names that the text may hold.
        needed: Names that it must hold.
        more: Further keys that the table may have.

    Raises:
        ReasonEmbedError: If a key or a name is not known, or a name that is needed is not there.
    """
    if not isinstance(values, dict) or not isinstance(values.get("user"), str):
        msg = f'{where}: write user = "..." (and system = "..." if you like)'
        raise ReasonEmbedError(msg)
    keys = ("system", "user", *more)
    for key in values:
        if key not in keys:
            raise ReasonEmbedError(f"{where}: {unknown_name('key', key, keys)}")
    template = Template(values["user"])
    if not template.is_valid():
        msg = f"{where}: a $ that starts no name; write $$ for the sign itself"
        raise ReasonEmbedError(msg)
    named = set(template.get_identifiers())
    for name in sorted(named - set(allowed)):
        raise ReasonEmbedError(f"{where}: {unknown_name('name', '$' + name, allowed)}")
    if missing := sorted(set(needed) - named):
        msg = f"{where}: the template has no ${missing[0]}; put it where the text belongs"
        raise ReasonEmbedError(msg)
    return ChatTemplate(str(values.get("system", "")), values["user"])


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
