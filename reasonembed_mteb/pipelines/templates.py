"""What the stages tell a language model: templates as data, the package's and the user's own."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.llm.templates import checked_template, read_templates

if TYPE_CHECKING:
    from reasonembed_mteb.llm.templates import ChatTemplate
    from reasonembed_mteb.pipelines.config import AskingStageSection, PipelineConfig

# What each use may fill in; all of it is needed.
_FIELDS = {
    "rewrite": {"query"},
    "iterate": {"query", "documents"},
    "pointwise": {"query", "document"},
    "listwise": {"query", "documents", "count"},
}
_NEEDED = {**_FIELDS, "listwise": {"query", "documents"}}


@cache
def packaged_templates() -> dict[str, Any]:
    """Return the package's tables by name, each with ``about``, ``user`` and perhaps ``system``."""
    text = (files("reasonembed_mteb") / "pipelines" / "templates" / "templates.toml").read_text("utf-8")
    return tomllib.loads(text)


def stage_template(stage: AskingStageSection, config: PipelineConfig) -> ChatTemplate:
    """Return the template of a stage.

    Args:
        stage: One that asks in words.
        config: The user's own templates go before the package's.

    Raises:
        ReasonEmbedError: If there is no such template, or it does not fill in what the stage gives.
    """
    own = {} if config.templates is None else read_templates(config.path(config.templates))
    known = packaged_templates() | own
    if stage.template not in known:
        raise ReasonEmbedError(
            f"{config.file}: stage {stage.name}: {unknown_name('template', stage.template, known)}"
        )
    where = f"{config.templates if stage.template in own else 'templates.toml'}, [{stage.template}]"
    use = getattr(stage, "by", stage.kind)
    return checked_template(known[stage.template], where, _FIELDS[use], _NEEDED[use], more=("about",))
