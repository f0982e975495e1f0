"""MTEB encoders: ReasonEmbed checkpoints, and local directories of any sentence-transformers kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb.models import SentenceTransformerEncoderWrapper
from mteb.types import PromptType

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.folders import content_revision
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.prompts import QUERY_TEMPLATE, query_prefix, unescape_template
from reasonembed_mteb.retrieval.lengths import capped_length
from reasonembed_mteb.retrieval.rows import max_tokens_for, task_instructions

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import Array, BatchedInput
    from sentence_transformers import SentenceTransformer
    from torch.utils.data import DataLoader

# MTEB's own fallback for retrieval (AbsTaskRetrieval.abstask_prompt), for tasks outside our tables.
_GENERIC_INSTRUCTION = "Retrieve text based on user query."


class ProtocolEncoder(SentenceTransformerEncoderWrapper):
    """MTEB's wrapper of a SentenceTransformer, held to the protocol's length on the tasks we know.

    Prompts are the model's own (its directory's ``prompts``), as in MTEB; a model without any gets none.
    """

    def __init__(self, model: SentenceTransformer, revision: str | None = None) -> None:
        """Wrap a loaded model.

        Args:
            model: The model.
            revision: What the weights were resolved to: a commit, or a content hash.
        """
        super().__init__(model)
        self._resolved_revision = revision

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Metadata; its revision is the one that was loaded."""
        return self._meta

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta) -> None:
        resolved = getattr(self, "_resolved_revision", None)
        if meta.revision is None and resolved is not None:
            meta = meta.model_copy(update={"revision": resolved})
        self._meta = meta

    def encode(
        self, inputs: DataLoader[BatchedInput], *, task_metadata: TaskMetadata, **kwargs: Any
    ) -> Array:
        """Encode as MTEB does, at min(the protocol's length, the model's own).

        Args:
            inputs: Batches of texts.
            task_metadata: The task; its name decides prompt and length.
            **kwargs: ``hf_split``, ``hf_subset``, ``prompt_type`` and encode options.

        Returns:
            Vectors ``(N, dim)``.
        """
        with capped_length(self.model, max_tokens_for(task_metadata.name, default=1 << 30)):
            encoded: Array = super().encode(inputs, task_metadata=task_metadata, **kwargs)
        return encoded


def instruction_of(task_metadata: TaskMetadata) -> str:
    """Return a task's instruction: our tables' where the task is named there, else the task's own.

    Args:
        task_metadata: The task.
    """
    known = task_instructions().get(task_metadata.name)
    prompt = task_metadata.prompt
    own = prompt.get("query") if isinstance(prompt, dict) else prompt
    return known or own or _GENERIC_INSTRUCTION


class ReasonEmbedEncoder(ProtocolEncoder):
    """A ReasonEmbed checkpoint in MTEB: an instruction before each query, documents bare.

    The instruction comes from our tables for every task named there (ours, and MTEB's own BRIGHT,
    BRIGHT-Pro and R2MED tasks, whose own prompts are of another style or missing), else from the task.
    """

    def __init__(
        self,
        model: ReasonEmbed,
        revision: str | None = None,
        *,
        max_tokens: int = 8192,
        instruction_template: str = QUERY_TEMPLATE,
    ) -> None:
        """Wrap a loaded checkpoint.

        Args:
            model: The model.
            revision: What the weights were resolved to.
            max_tokens: Length on tasks outside our tables.
            instruction_template: Where the instruction goes; must hold ``{instruction}``.
        """
        # The directory's own prompts are set aside: they hold the same text, and MTEB warns about each
        # key that it does not know.
        self._directory_prompts, model.prompts = model.prompts, {}
        super().__init__(model, revision)
        self._max_tokens = max_tokens
        self._template = instruction_template

    def prompt_for(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str:
        """Return the text that goes before each input of a task.

        Args:
            task_metadata: The task.
            prompt_type: Query or document; None (tasks that are no retrieval) counts as query.
        """
        if prompt_type == PromptType.document:
            return ""
        return query_prefix(instruction_of(task_metadata), self._template)

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType | None = None,
        hf_split: str = "",
        hf_subset: str = "",
        **kwargs: Any,
    ) -> Array:
        """Encode texts with the task's instruction.

        Args:
            inputs: Batches of texts.
            task_metadata: The task.
            prompt_type: Query or document.
            hf_split: Unused.
            hf_subset: Unused.
            **kwargs: Options of `SentenceTransformer.encode`.

        Returns:
            Unit vectors ``(N, dim)``.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        with capped_length(self.model, max_tokens_for(task_metadata.name, default=self._max_tokens)):
            encoded: Array = self.model.encode(
                texts, prompt=self.prompt_for(task_metadata, prompt_type), **kwargs
            )
        return encoded


def _loaded_revision(model: SentenceTransformer, path: str | None) -> str | None:
    """Return the content hash of a folder, or the commit that the hub resolved."""
    if path is not None:
        return content_revision(Path(path))
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    commit: str | None = getattr(config, "_commit_hash", None)
    return commit


def load_reason_embed(
    model_name: str,
    revision: str | None = None,
    *,
    device: str | None = None,
    path: str | None = None,
    max_tokens: int = 8192,
    instruction_template: str = QUERY_TEMPLATE,
    model_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ReasonEmbedEncoder:
    """Load a ReasonEmbed checkpoint for MTEB.

    Args:
        model_name: Hub name.
        revision: Commit; None takes the newest, and records which that was.
        device: Where to; the weights are bfloat16 on a GPU and float32 on a CPU.
        path: A local folder with the weights, instead of the hub.
        max_tokens: Length on tasks outside our tables.
        instruction_template: Where the instruction goes.
        model_kwargs: Passed to transformers; ``dtype`` overrides the above.
        **kwargs: Passed to `ReasonEmbed`.

    Returns:
        The encoder; its metadata's revision is the commit (or content hash) that was loaded.
    """
    import torch

    on_gpu = torch.cuda.is_available() if device is None else str(device).startswith(("cuda", "xpu"))
    dtype = torch.bfloat16 if on_gpu or isinstance(device, int) else torch.float32
    options = {"dtype": dtype} | (model_kwargs or {})
    truncate_dim = kwargs.pop("embed_dim", None)
    model = ReasonEmbed(
        path or model_name,
        revision=None if path else revision,
        device=device,
        truncate_dim=truncate_dim,
        model_kwargs=options,
        **kwargs,
    )
    loaded = _loaded_revision(model, path)
    return ReasonEmbedEncoder(model, loaded, max_tokens=max_tokens, instruction_template=instruction_template)


def load_other(
    model_name: str,
    revision: str | None = None,
    *,
    kind: str,
    path: str | None = None,
    device: str | None = None,
    instruction_template: str | None = None,
    no_instruction: bool = False,
    **kwargs: Any,
) -> Any:  # noqa: ANN401 - one of mteb's four model protocols
    """Load a local directory of any sentence-transformers kind, or a dense hub model, for MTEB.

    Args:
        model_name: Hub name, or the name under which a directory's results are filed.
        revision: Commit, or content hash of the directory.
        kind: ``dense``, ``cross-encoder``, ``sparse`` or ``late-interaction``.
        path: The directory; None loads from the hub.
        device: Where to.
        instruction_template: Take the task's instruction in this template instead of the model's own
            prompts.
        no_instruction: Take neither instruction nor prompt.
        **kwargs: Passed to the model.

    Returns:
        An MTEB model.

    Raises:
        ReasonEmbedError: If the directory has changed since its metadata was made.
    """
    if path is not None and revision is not None and content_revision(Path(path)) != revision:
        msg = f"{path} changed while it was being loaded; start again"
        raise ReasonEmbedError(msg)
    if kind == "dense":
        # A directory with modules.json loads as it is; a bare decoder gets ReasonEmbed's modules.
        model = ReasonEmbed(
            path or model_name,
            revision=None if path else revision,
            device=device,
            truncate_dim=kwargs.pop("embed_dim", None),
            **kwargs,
        )
        if instruction_template is not None:
            template = unescape_template(instruction_template)
            return ReasonEmbedEncoder(model, revision, instruction_template=template)
        if no_instruction:
            model.prompts = {}
        return ProtocolEncoder(model, revision)
    from mteb.models import CrossEncoderWrapper, MultiVectorWrapper, SparseEncoderWrapper

    wrappers = {
        "cross-encoder": CrossEncoderWrapper,
        "sparse": SparseEncoderWrapper,
        "late-interaction": MultiVectorWrapper,
    }
    return wrappers[kind](path or model_name, device=device, **kwargs)
