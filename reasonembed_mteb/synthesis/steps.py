"""The six steps in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasonembed_mteb.synthesis import annotate, clean, generate, mine, reason
from reasonembed_mteb.synthesis import format as formatting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reasonembed_mteb.synthesis.step import Step

STEPS: Mapping[str, Step] = {
    module.STEP.name: module.STEP for module in (clean, generate, mine, annotate, reason, formatting)
}
