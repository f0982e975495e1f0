"""Annotators that are known by their model's name: their settings, and our wording of their levels."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reasonembed_mteb.endpoints.endpoint import Endpoint


@dataclass(frozen=True)
class KnownAnnotator:
    """A released model that judges pairs, and how its authors ask it.

    Attributes:
        name: What its model's name holds, wherever it is served.
        max_tokens: Longest judgement in tokens.
        extra_body: More fields of the request.
        user: Template of the user message; there is no system message.
    """

    name: str
    max_tokens: int
    extra_body: dict[str, Any]
    user: str


@cache
def known_annotators() -> tuple[KnownAnnotator, ...]:
    """Return the annotators of ``templates/annotators.toml``."""
    file = files("reasonembed_mteb") / "synthesis" / "templates" / "annotators.toml"
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    return tuple(KnownAnnotator(name, **values) for name, values in content.items())


def known_annotator(model: str) -> KnownAnnotator | None:
    """Return what is known of a model by its name, or None.

    Args:
        model: As the server calls it: a hub name, a folder, a file of other weights; case does not count.
    """
    name = model.lower().replace("_", "-")
    return next((one for one in known_annotators() if one.name in name), None)


def as_released(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint that asks a known annotator as its authors do; any other one as it is.

    Args:
        endpoint: Its own ``extra_body`` goes before what is known.
    """
    known = known_annotator(endpoint.model)
    if known is None:
        return endpoint
    body = dict(known.extra_body)
    for key, value in (endpoint.extra_body or {}).items():
        both = isinstance(value, dict) and isinstance(body.get(key), dict)
        body[key] = {**body[key], **value} if both else value
    return replace(endpoint, extra_body=body)
