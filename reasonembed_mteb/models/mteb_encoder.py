"""MTEB encoders: ReasonEmbed checkpoints, and local directories of any sentence-transformers kind."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb.models import SentenceTransformerEncoderWrapper

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.engines import EngineLoader, engine_choice
from reasonembed_mteb.models.folders import content_revision, is_bare_adapter
from reasonembed_mteb.models.identity import identified, named_elsewhere
from reasonembed_mteb.models.instructions import PromptRule, rule_of_prompts
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.prompts import QUERY_TEMPLATE, unescape_template
from reasonembed_mteb.retrieval.lengths import capped_length
from reasonembed_mteb.retrieval.rows import max_tokens_for

if TYPE_CHECKING:
    import torch
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import Array, BatchedInput, PromptType
    from sentence_transformers import SentenceTransformer
    from torch.utils.data import DataLoader

    from reasonembed_mteb.models.engines import EngineChoice

logger = logging.getLogger(__name__)


def weights_dtype(device: str | int | None, on_gpu: torch.dtype | str = "auto") -> torch.dtype | str:
    """Return the dtype that weights are loaded in: float32 on a CPU, however they were saved.

    Half precision on a CPU is slower and gives other scores than the published ones.

    Args:
        device: Where to; None lets torch choose.
        on_gpu: The dtype on a GPU; ``auto`` for the one that was saved.
    """
    import torch

    if device is None:
        return on_gpu if torch.cuda.is_available() else torch.float32
    return on_gpu if str(device).startswith(("cuda", "xpu")) or isinstance(device, int) else torch.float32


def _say_dtype(model: Any, folder: str | None) -> None:  # noqa: ANN401 - a SentenceTransformer
    """Say that a directory's weights run in another dtype than they were saved in."""
    config = Path(folder or "") / "config.json"
    saved = json.loads(config.read_text(encoding="utf-8")) if folder and config.is_file() else {}
    named = saved.get("dtype") or saved.get("torch_dtype")
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.is_meta:
        return
    loaded = str(parameter.dtype).removeprefix("torch.") if parameter is not None else None
    if named in ("bfloat16", "float16") and loaded == "float32":
        logger.warning("%s was saved in %s and runs in float32 on a CPU", folder, named)


class ProtocolEncoder(SentenceTransformerEncoderWrapper):
    """MTEB's wrapper of a SentenceTransformer, held to the protocol's length on the tasks we know.

    What goes before a text is `PromptRule`'s: the model's own prompts, as in MTEB; where these show the
    template of an instruction model, every other task's instruction too.
    """

    _meta: ModelMeta
    _loaded: str | None = None
    # What decides the scores of an object; None once it has its name.
    _decides: dict[str, object] | None = None

    def __init__(
        self,
        model: SentenceTransformer,
        revision: str | None = None,
        *,
        prompt_rule: PromptRule | None = None,
        **decides: object,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: On the device that it is to encode on.
            revision: What the weights were resolved to: a commit, or a content hash.
            prompt_rule: What goes before a text; by default what the model's own prompts say.
            **decides: What else decides its scores; see `object_revision`.
        """
        with named_elsewhere():
            super().__init__(model)
        default = getattr(model, "default_prompt_name", None)
        self.prompt_rule = prompt_rule or rule_of_prompts(self.model_prompts or {}, default=default)
        if prompt_rule is None:
            self.prompt_rule = replace(self.prompt_rule, library=getattr(model, "prompts", None) or {})
        self._loaded = revision
        self._decides = decides | ({} if revision is None else {"loaded": revision})

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Metadata: what MTEB gave when it loaded the model; else an object's, named by its content."""
        if self._decides is not None:
            # Hashing large weights takes seconds, and where MTEB loads the model it is not needed.
            self._meta = identified(self._meta, self.model, **self._decides)
            self._decides = None
        return self._meta

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta) -> None:
        if meta.revision is None and hasattr(self, "_meta"):
            meta = meta.model_copy(update={"revision": self._loaded or self.mteb_model_meta.revision})
        self._meta, self._decides = meta, None

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
        side = kwargs.get("prompt_type")
        prefix = self.prompt_for(task_metadata, side)
        # MTEB looks the task's own key up first.
        self.model_prompts = {f"{task_metadata.name}-{side.value}" if side else task_metadata.name: prefix}
        with capped_length(self.model, max_tokens_for(task_metadata.name, default=1 << 30)):
            encoded: Array = super().encode(inputs, task_metadata=task_metadata, **kwargs)
        return encoded

    def prompt_for(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str:
        """Return the text that goes before each input of a task.

        Args:
            task_metadata: Its name and instruction decide.
            prompt_type: Query or document; None for tasks that are no retrieval.
        """
        return self.prompt_rule.prefix(task_metadata, prompt_type.value if prompt_type is not None else None)


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
            model: On the device that it is to encode on; its own prompts are put aside.
            revision: What the weights were resolved to: a commit, or a content hash.
            max_tokens: Length on tasks outside our tables.
            instruction_template: Where the instruction goes; must hold ``{instruction}``.
        """
        # The directory's own prompts are set aside: they hold the same text, and MTEB warns about each
        # key that it does not know.
        self._directory_prompts, model.prompts = model.prompts, {}
        super().__init__(
            model,
            revision,
            prompt_rule=PromptRule(template=instruction_template),
            template=instruction_template,
            max_tokens=max_tokens,
        )
        self._max_tokens = max_tokens

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
            task_metadata: Its name decides instruction and length.
            prompt_type: Query or document; documents are encoded bare.
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
    engine: EngineChoice | str | None = None,
    base_url: str | None = None,
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
        engine: Who computes the vectors: ``torch``, ``vllm``, ``api``, or an `EngineChoice`. Only torch loads
            weights here.
        base_url: Address of the server, for ``api``.
        **kwargs: Passed to `ReasonEmbed`.

    Returns:
        The encoder. Where MTEB's metadata load it, their revision is the commit (or content hash) that was
        loaded; called by itself, it is an object, whose revision is a hash of all that decides its scores.

    Raises:
        ReasonEmbedError: If the engine cannot be used, or does not give the model's vectors.
    """
    import torch

    choice = engine_choice(engine, base_url)
    if choice.name != "torch":
        given = {"path": path, "max_tokens": max_tokens, "instruction_template": instruction_template}
        loader = EngineLoader(choice, load_reason_embed)
        found: ReasonEmbedEncoder = loader(model_name, revision, **given, **kwargs)
        return found

    options = {"dtype": weights_dtype(device, on_gpu=torch.bfloat16)} | (model_kwargs or {})
    truncate_dim = kwargs.pop("embed_dim", None)
    model = ReasonEmbed(
        path or model_name,
        revision=None if path else revision,
        device=device,
        truncate_dim=truncate_dim,
        model_kwargs=options,
        **kwargs,
    )
    _say_dtype(model, path)
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
        ReasonEmbedError: If the directory has changed since its metadata was made, or holds a cross-encoder's
            adapter alone.
    """
    if path is not None and revision is not None and content_revision(Path(path)) != revision:
        msg = f"{path} changed while it was being loaded; start again"
        raise ReasonEmbedError(msg)
    kwargs["model_kwargs"] = {"dtype": weights_dtype(device)} | (kwargs.get("model_kwargs") or {})
    if kind == "dense":
        # A directory with modules.json loads as it is; a bare decoder gets ReasonEmbed's modules.
        model = ReasonEmbed(
            path or model_name,
            revision=None if path else revision,
            device=device,
            truncate_dim=kwargs.pop("embed_dim", None),
            **kwargs,
        )
        _say_dtype(model, path)
        if instruction_template is not None:
            template = unescape_template(instruction_template)
            return ReasonEmbedEncoder(model, revision, instruction_template=template)
        if no_instruction:
            model.prompts = {}
        return ProtocolEncoder(model, revision)
    if path is not None and is_bare_adapter(Path(path)):
        msg = (
            f"{path} is an adapter of a cross-encoder, which sentence-transformers does not load: merge it "
            "into its base, save that, and give the folder"
        )
        raise ReasonEmbedError(msg)
    from mteb.models import CrossEncoderWrapper, MultiVectorWrapper, SparseEncoderWrapper

    wrappers = {
        "cross-encoder": CrossEncoderWrapper,
        "sparse": SparseEncoderWrapper,
        "late-interaction": MultiVectorWrapper,
    }
    return wrappers[kind](path or model_name, device=device, **kwargs)
