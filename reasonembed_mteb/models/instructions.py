"""What goes before a query: one rule, asked by the dry run, the run, saved directories and the store.

A model has its own prompts, or a template that takes each task's instruction, or both (a directory that
ReasonEmbed saved: a prompt for each task it knew). `PromptRule.prefix` decides; `planned_prefix` makes the
rule from metadata, before a model is loaded, and `loaded_prefix` from the loaded model.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.models.engines import own_loader
from reasonembed_mteb.models.folders import ADAPTER_CONFIG, may_be_decoder, read_adapter
from reasonembed_mteb.prompts import QUERY_TEMPLATE, query_prefix, unescape_template
from reasonembed_mteb.retrieval.rows import task_instructions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta

logger = logging.getLogger(__name__)

# MTEB's own fallback for retrieval (AbsTaskRetrieval.abstask_prompt), for tasks outside our tables.
_GENERIC_INSTRUCTION = "Retrieve text based on user query."
# The experiment option of a model whose queries are left bare, to see what its instruction is worth.
ABLATED = "without_instruction"
# What SentenceTransformer.encode_query and encode_document look for where they are given no prompt.
DOCUMENT_NAMES = ("document", "passage", "corpus")
_LIBRARY_NAMES = {"query": ("query",), "document": DOCUMENT_NAMES}


def instruction_of(task: TaskMetadata) -> str:
    """Return a task's instruction: our tables' where the task is named there, else the task's own.

    Args:
        task: MTEB's metadata of it.

    Returns:
        The sentence; empty for a task whose protocol has none.
    """
    known = task_instructions().get(task.name)
    if known is not None:
        return known
    prompt = task.prompt
    own = prompt.get("query") if isinstance(prompt, dict) else prompt
    return own or _GENERIC_INSTRUCTION


def task_prompts(template: str = QUERY_TEMPLATE) -> dict[str, str]:
    """Return the prompts of an instruction model: every task's full prefix, by MTEB's keys; documents bare.

    Args:
        template: Where the instruction goes; must hold ``{instruction}``.
    """
    named = task_instructions()
    prefixes = {f"{name}-query": query_prefix(text, template) for name, text in named.items() if text}
    return {"document": "", **prefixes}


def template_of(prompts: Mapping[str, str | None]) -> str | None:
    """Return the template that a model's prompts were made with, or None where no task's prompt shows it.

    Args:
        prompts: A model's own prompts, by MTEB's keys.
    """
    for name, text in task_instructions().items():
        prompt = prompts.get(f"{name}-query") or ""
        if text and text in prompt:
            return prompt.replace(text, "{instruction}", 1)
    return None


@dataclass(frozen=True)
class PromptRule:
    """What a model gets before each text.

    Attributes:
        prompts: The model's own, by MTEB's keys.
        template: Takes each task's instruction where the prompts name no such task; None for no instruction
            model.
        library: All prompts that the SentenceTransformer inside holds, among which it looks itself where
            MTEB finds none.
        default: Name of the prompt that it takes where it finds none either.
        bare_queries: Nothing goes before a query, whatever the rest says; documents are as they were.
    """

    prompts: Mapping[str, str | None] = field(default_factory=dict)
    template: str | None = None
    library: Mapping[str, str | None] = field(default_factory=dict)
    default: str | None = None
    bare_queries: bool = False

    def prefix(self, task: TaskMetadata, side: str | None = "query") -> str:
        """Return the text that goes before each query (or document) of a task; empty for none.

        Args:
            task: Its name, type and prompt decide, as in MTEB.
            side: ``query`` or ``document``; None for tasks that have no sides.
        """
        if self.bare_queries and side != "document":
            return ""
        if self.template is not None and side != "document":
            return self.instructed(instruction_of(task), task.name)
        return self._by_name(task, side)

    def instructed(self, instruction: str, task: str | None = None) -> str:
        """Return the text that goes before a query whose instruction is known.

        Args:
            instruction: One sentence; empty for none.
            task: MTEB name of the task that it belongs to, for which the model may have a prompt of its own.

        Returns:
            The prompt of that task, else the instruction in the model's template, else in ReasonEmbed's;
            nothing for no instruction.
        """
        own = (self.prompts.get(f"{task}-query") or self.prompts.get(task)) if task else None
        if own or not instruction:
            return own or ""
        return query_prefix(instruction, self.template or QUERY_TEMPLATE)

    def _by_name(self, task: TaskMetadata, side: str | None) -> str:
        """Return the prompt that MTEB takes of a model's own, else the one that the library takes."""
        from mteb.models.abs_encoder import get_prompt_name
        from mteb.types import PromptType

        kind = PromptType(side) if side is not None else None
        chosen = self.prompts.get(get_prompt_name(dict(self.prompts), task, kind) or "")  # type: ignore[arg-type]
        if chosen is not None:
            return chosen
        for name in _LIBRARY_NAMES.get(side or "", ()):
            if self.library.get(name) is not None:
                return self.library[name] or ""
        return self.library.get(self.default or "") or ""


def rule_of_prompts(
    prompts: Mapping[str, str | None], *, default: str | None = None, instructed: bool = True
) -> PromptRule:
    """Return the rule of a model that brings prompts.

    Args:
        prompts: The model's own, by MTEB's keys.
        default: Name of the prompt that the library takes where none fits.
        instructed: Whether prompts that show an instruction's template stand for all tasks; MTEB's own
            wrapper of a SentenceTransformer knows no templates.
    """
    return PromptRule(prompts, template_of(prompts) if instructed else None, prompts, default)


def planned_prefix(meta: ModelMeta, task: TaskMetadata) -> str | None:
    """Return what goes before each query, as far as metadata and files alone tell.

    Args:
        meta: As `reasonembed_mteb.evaluation.resolving` or MTEB's registry gives it.
        task: MTEB's metadata of it.

    Returns:
        The prefix; empty for none; None where only the loaded model knows.
    """
    if (meta.experiment_kwargs or {}).get(ABLATED):
        return ""
    rule = _planned_rule(meta)
    return rule.prefix(task) if rule is not None else _registered_prefix(meta, task)


def _planned_rule(meta: ModelMeta) -> PromptRule | None:
    from reasonembed_mteb.models.checkpoints import CHECKPOINTS

    chosen = meta.experiment_kwargs or {}
    options = meta.loader_kwargs or {}
    if chosen.get("no_instruction"):
        return PromptRule()
    if "instruction_template" in chosen:
        return PromptRule(template=unescape_template(str(chosen["instruction_template"])))
    if meta.name in {checkpoint.name for checkpoint in CHECKPOINTS} and "path" not in options:
        return PromptRule(template=options.get("instruction_template", QUERY_TEMPLATE))
    if "path" in options:
        return _directory_rule(Path(options["path"]), str(options.get("kind", "dense")))
    return None


def _directory_rule(folder: Path, kind: str) -> PromptRule:
    if kind == "dense" and (folder / ADAPTER_CONFIG).is_file() and not (folder / "modules.json").is_file():
        # An adapter is loaded with its base's modules and prompts.
        base = read_adapter(folder / ADAPTER_CONFIG).base
        return _directory_rule(Path(base), kind) if Path(base).is_dir() else rule_of_prompts(task_prompts())
    file = folder / "config_sentence_transformers.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    bare = kind == "dense" and not (folder / "modules.json").is_file()
    # As ReasonEmbed does when it builds the modules of a bare checkpoint.
    if bare and may_be_decoder(str(folder), {}, None):
        return rule_of_prompts(task_prompts())
    return rule_of_prompts(config.get("prompts") or {}, default=config.get("default_prompt_name"))


def _registered_prefix(meta: ModelMeta, task: TaskMetadata) -> str | None:
    """Return the prefix of a model of MTEB's registry, by its loader's own rule."""
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.types import PromptType

    options = meta.loader_kwargs or {}
    loader: Any = own_loader(meta)
    if loader is InstructSentenceTransformerModel:
        # MTEB's rule, on an instance that holds the options and no weights.
        unloaded = InstructSentenceTransformerModel.__new__(InstructSentenceTransformerModel)
        unloaded.instruction_template = options.get("instruction_template")
        unloaded.prompts_dict = options.get("prompts_dict")
        if options.get("prompt_priority"):
            unloaded.prompt_priority = options["prompt_priority"]
        return unloaded.get_task_instruction(task, PromptType.query)
    if loader is SentenceTransformerEncoderWrapper and options.get("model_prompts"):
        return rule_of_prompts(options["model_prompts"], instructed=False).prefix(task)
    return None if meta.use_instructions or loader is SentenceTransformerEncoderWrapper else ""


def loaded_prefix(
    model: Any,  # noqa: ANN401 - any of mteb's model protocols
    task: TaskMetadata,
    side: str = "query",
) -> str | None:
    """Return the text that a loaded model gets before each query (or document) of a task.

    Args:
        model: A loaded MTEB model.
        task: MTEB's metadata of it.
        side: ``query`` or ``document``.

    Returns:
        The prefix; empty for none; None where it cannot be known (a model with its own code, an API).
    """
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
    from mteb.types import PromptType

    own = getattr(model, "prompt_rule", None)
    if isinstance(own, PromptRule):
        return own.prefix(task, side)
    if isinstance(model, InstructSentenceTransformerModel):
        return model.get_task_instruction(task, PromptType(side))
    if isinstance(model, SentenceTransformerEncoderWrapper):
        inner: Any = model.model
        library = getattr(inner, "prompts", None) or {}
        default = getattr(inner, "default_prompt_name", None)
        return PromptRule(model.model_prompts or {}, None, library, default).prefix(task, side)
    return None if getattr(model.mteb_model_meta, "use_instructions", None) else ""


def warn_without_instruction(model: Any) -> None:  # noqa: ANN401 - a SentenceTransformer
    """Say, once a model, that texts are encoded without the instruction that its queries need.

    Args:
        model: An instruction model that is about to encode bare texts which may be queries.
    """
    if vars(model).get("_warned_bare", False):
        return
    vars(model)["_warned_bare"] = True
    logger.warning(
        "queries are encoded without an instruction: give encode_query task= (an MTEB task or a subset) or "
        "instruction=; documents go to encode_document"
    )


def describe_prefix(prefix: str | None) -> str:
    """Say in a few words what goes before each query."""
    if prefix is None:
        return "as the model's own code or files say"
    # The line break shows as \n, as in Python.
    return repr(prefix)[1:-1] if prefix else "none"
