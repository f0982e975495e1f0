"""What goes before a query: as metadata tell before a model is loaded, and as the loaded model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta


def planned_prefix(meta: ModelMeta, task: TaskMetadata) -> str | None:
    """Return what goes before each query, as far as metadata alone tell.

    Args:
        meta: The model.
        task: The task.

    Returns:
        The prefix; empty for none; None where only the loaded model knows.
    """
    from reasonembed_mteb.models.zoo import CHECKPOINTS
    from reasonembed_mteb.prompts import QUERY_TEMPLATE, query_prefix, unescape_template

    chosen = meta.experiment_kwargs or {}
    options = meta.loader_kwargs or {}
    if chosen.get("no_instruction"):
        return ""
    template = chosen.get("instruction_template")
    if template is None and meta.name in {checkpoint.name for checkpoint in CHECKPOINTS}:
        template = options.get("instruction_template", QUERY_TEMPLATE)
        chosen = {"instruction_template": template}
    if "instruction_template" in chosen:
        from reasonembed_mteb.models.mteb_encoder import instruction_of

        return query_prefix(instruction_of(task), unescape_template(str(template)))
    if "path" in options:
        return _directory_prefix(Path(options["path"]), task)
    return _registered_prefix(meta, task)


def _directory_prefix(folder: Path, task: TaskMetadata) -> str:
    file = folder / "config_sentence_transformers.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return _prefix_by_name(config.get("prompts") or {}, task)


def _prefix_by_name(prompts: dict[str, str], task: TaskMetadata, side: str = "query") -> str:
    """Return the prompt that MTEB takes of a model's own."""
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    return prompts.get(get_prompt_name(prompts, task, PromptType(side)) or "") or ""


def _registered_prefix(meta: ModelMeta, task: TaskMetadata) -> str | None:
    """Return the prefix of a model of MTEB's registry, by its loader's own rule."""
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.types import PromptType

    options = meta.loader_kwargs or {}
    loader: Any = meta.loader
    if loader is InstructSentenceTransformerModel:
        # MTEB's rule, on an instance that holds the options and no weights.
        unloaded = InstructSentenceTransformerModel.__new__(InstructSentenceTransformerModel)
        unloaded.instruction_template = options.get("instruction_template")
        unloaded.prompts_dict = options.get("prompts_dict")
        if options.get("prompt_priority"):
            unloaded.prompt_priority = options["prompt_priority"]
        return unloaded.get_task_instruction(task, PromptType.query)
    if loader is SentenceTransformerEncoderWrapper and options.get("model_prompts"):
        return _prefix_by_name(options["model_prompts"], task)
    return None if meta.use_instructions or loader is SentenceTransformerEncoderWrapper else ""


def loaded_prefix(
    model: Any,  # noqa: ANN401 - any of mteb's model protocols
    task: TaskMetadata,
    side: str = "query",
) -> str | None:
    """Return the text that a loaded model gets before each query (or document) of a task.

    Args:
        model: A loaded MTEB model.
        task: The task.
        side: ``query`` or ``document``.

    Returns:
        The prefix; empty for none; None where it cannot be known (a model with code of its own, an API).
    """
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.types import PromptType

    from reasonembed_mteb.models.mteb_encoder import ReasonEmbedEncoder

    if isinstance(model, ReasonEmbedEncoder):
        return model.prompt_for(task, PromptType(side))
    if isinstance(model, InstructSentenceTransformerModel):
        return model.get_task_instruction(task, PromptType(side))
    if isinstance(model, SentenceTransformerEncoderWrapper):
        return _prefix_by_name(model.model_prompts or {}, task, side)
    return None if getattr(model.mteb_model_meta, "use_instructions", None) else ""


def describe_prefix(prefix: str | None) -> str:
    """Say in a few words what goes before each query."""
    if prefix is None:
        return "as the model's own code or files say"
    # The line break shows as \n, as in Python.
    return repr(prefix)[1:-1] if prefix else "none"
