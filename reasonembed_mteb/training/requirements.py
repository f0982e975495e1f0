"""What a run needs beside its data, asked before the data is read, which can take minutes."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import MissingExtraError, ReasonEmbedError, first_names, missing_extra, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reasonembed_mteb.training.schema import Recipe


def check_requirements(recipe: Recipe) -> None:
    """Check that packages, trackers, tasks and devices of a recipe are there.

    Args:
        recipe: What is to be trained.

    Raises:
        MissingExtraError: If a package is not installed.
        ReasonEmbedError: If a tracker, a task or a device is not there; what to do is named.
    """
    needed = ["accelerate", *(["peft"] if recipe.lora.rank else [])]
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "train")
    check_trackers(recipe.training.report_to)
    if recipe.evaluation.tasks:
        from reasonembed_mteb.training.evaluator import evaluation_tasks

        evaluation_tasks(recipe.evaluation.tasks)


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers can be reported to.

    Args:
        names: transformers' names of them, such as ``wandb``.

    Raises:
        MissingExtraError: If a tracker's package is not installed.
        ReasonEmbedError: If there is no tracker of that name.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = first_names(sorted(INTEGRATION_TO_CALLBACK), 20)
            msg = f"training.report_to: no tracker is called {name!r}; there are {known}"
            raise ReasonEmbedError(msg)
        try:
            # They ask for their package when they are made, and do nothing else then.
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            said = one_line(error).partition(": ")[2]
            msg = f"training.report_to names {name}, which is not to be had here: {said} Or leave it out."
            raise MissingExtraError(msg) from error
