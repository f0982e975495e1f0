"""Reasoning-intensive retrieval for MTEB: models, tasks, exact search and training.

Public names are loaded on first use, so that ``import reasonembed_mteb`` costs next to nothing. docs/api.md
describes each.
"""

from __future__ import annotations

# Not imported from typing, which the start of Python would have to pay for.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from reasonembed_mteb.encoding.fast import accelerate, encode_stream
    from reasonembed_mteb.errors import DataError, ReasonEmbedError, UnknownNameError
    from reasonembed_mteb.evaluation.runner import RunOptions, run
    from reasonembed_mteb.evaluation.score_run import judgements_of_task, score_run
    from reasonembed_mteb.models.beir_encoder import BeirEncoder
    from reasonembed_mteb.models.reason_embed import ReasonEmbed
    from reasonembed_mteb.pipelines.run import Pipeline
    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.reasoning.encoder import ReasoningEncoder
    from reasonembed_mteb.reasoning.latents import add_latents
    from reasonembed_mteb.reporting.results import read_results
    from reasonembed_mteb.retrieval.beir_task import beir_task, export_beir
    from reasonembed_mteb.retrieval.task import load_tasks
    from reasonembed_mteb.sharing.submission import check_submission
    from reasonembed_mteb.synthesis.config import read_config
    from reasonembed_mteb.synthesis.pipeline import synthesize
    from reasonembed_mteb.training.cached import CachedRedapterLoss
    from reasonembed_mteb.training.callback import RedapterCallback
    from reasonembed_mteb.training.losses import RedapterLoss
    from reasonembed_mteb.training.recipes import load_recipe
    from reasonembed_mteb.training.run import train

__version__ = "0.1.0"

_HOMES = {
    "BeirEncoder": "reasonembed_mteb.models.beir_encoder",
    "CachedRedapterLoss": "reasonembed_mteb.training.cached",
    "DataError": "reasonembed_mteb.errors",
    "Pipeline": "reasonembed_mteb.pipelines.run",
    "ReasonEmbed": "reasonembed_mteb.models.reason_embed",
    "ReasonEmbedError": "reasonembed_mteb.errors",
    "ReasoningEncoder": "reasonembed_mteb.reasoning.encoder",
    "RedapterCallback": "reasonembed_mteb.training.callback",
    "RedapterLoss": "reasonembed_mteb.training.losses",
    "RunOptions": "reasonembed_mteb.evaluation.runner",
    "UnknownNameError": "reasonembed_mteb.errors",
    "accelerate": "reasonembed_mteb.encoding.fast",
    "add_latents": "reasonembed_mteb.reasoning.latents",
    "beir_task": "reasonembed_mteb.retrieval.beir_task",
    "check_submission": "reasonembed_mteb.sharing.submission",
    "encode_stream": "reasonembed_mteb.encoding.fast",
    "export_beir": "reasonembed_mteb.retrieval.beir_task",
    "judgements_of_task": "reasonembed_mteb.evaluation.score_run",
    "load_recipe": "reasonembed_mteb.training.recipes",
    "load_tasks": "reasonembed_mteb.retrieval.task",
    "read_config": "reasonembed_mteb.synthesis.config",
    "read_results": "reasonembed_mteb.reporting.results",
    "register": "reasonembed_mteb.plugin",
    "run": "reasonembed_mteb.evaluation.runner",
    "score_run": "reasonembed_mteb.evaluation.score_run",
    "synthesize": "reasonembed_mteb.synthesis.pipeline",
    "train": "reasonembed_mteb.training.run",
}

__all__ = [
    "BeirEncoder",
    "CachedRedapterLoss",
    "DataError",
    "Pipeline",
    "ReasonEmbed",
    "ReasonEmbedError",
    "ReasoningEncoder",
    "RedapterCallback",
    "RedapterLoss",
    "RunOptions",
    "UnknownNameError",
    "__version__",
    "accelerate",
    "add_latents",
    "beir_task",
    "check_submission",
    "encode_stream",
    "export_beir",
    "judgements_of_task",
    "load_recipe",
    "load_tasks",
    "read_config",
    "read_results",
    "register",
    "run",
    "score_run",
    "synthesize",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
