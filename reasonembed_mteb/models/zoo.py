"""MTEB metadata of the published checkpoints, and of local model directories.

Nothing here imports mteb until a function is called, so that the start-up hook can import this module
while mteb itself is being imported.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.models.checkpoints import CHECKPOINTS, Checkpoint
from reasonembed_mteb.models.folders import content_revision, local_name, model_kind
from reasonembed_mteb.prompts import check_template, escape_template
from reasonembed_mteb.retrieval.rows import training_tasks

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta


CITATION = """@article{chen2025reasonembed,
  title = {ReasonEmbed: Enhanced Text Embeddings for Reasoning-Intensive Document Retrieval},
  author = {Chen, Jianlyu and Lan, Junwei and Li, Chaofan and Lian, Defu and Liu, Zheng},
  journal = {arXiv preprint arXiv:2510.08252},
  year = {2025},
}"""


def _meta(checkpoint: Checkpoint) -> ModelMeta:
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    return ModelMeta(
        loader=_load_reason_embed,
        name=checkpoint.name,
        # Not known here; the commit is resolved when the weights are loaded.
        revision=None,
        release_date="2025-10-11",
        languages=["eng-Latn"],
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=8192,
        embed_dim=checkpoint.embed_dim,
        license="cc-by-nc-4.0",
        open_weights=True,
        public_training_code="https://github.com/VectorSpaceLab/agentic-search",
        public_training_data="https://huggingface.co/datasets/hanhainebula/reason-embed-data",
        framework=["Sentence Transformers", "PyTorch", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=training_tasks(),
        adapted_from=checkpoint.backbone,
        reference=f"https://huggingface.co/{checkpoint.name}",
        citation=CITATION,
        loader_kwargs={"max_tokens": 8192},
    )


def _load_reason_embed(model_name: str, revision: str | None = None, **kwargs: Any) -> Any:  # noqa: ANN401
    from reasonembed_mteb.models.mteb_encoder import load_reason_embed

    return load_reason_embed(model_name, revision, **kwargs)


def _load_other(model_name: str, revision: str | None = None, **kwargs: Any) -> Any:  # noqa: ANN401
    from reasonembed_mteb.models.mteb_encoder import load_other

    return load_other(model_name, revision, **kwargs)


@cache
def model_metas() -> dict[str, ModelMeta]:
    """Return MTEB's metadata of the six published checkpoints, by name."""
    import_module("mteb")
    return {checkpoint.name: _meta(checkpoint) for checkpoint in CHECKPOINTS}


def model_meta(name: str) -> ModelMeta:
    """Return the metadata of one published checkpoint.

    Args:
        name: Hub name.

    Raises:
        UnknownNameError: If it is not one of the six, with the nearest.
    """
    if name not in model_metas():
        raise unknown_name("model", name, model_metas())
    return model_metas()[name]


def local_meta(path: str | Path, name: str | None = None, revision: str | None = None) -> ModelMeta:
    """Return MTEB metadata of a local model directory.

    Args:
        path: A directory that sentence-transformers saved, of any kind, or a bare decoder checkpoint.
        name: The name under which results are filed; by default ``local/<parent>__<dir>``.
        revision: What the directory's content must be; None takes it as it is.

    Returns:
        Metadata whose revision is a hash of the directory's content, so that two directories never share
        a cached result and a changed directory is a new revision.

    Raises:
        ReasonEmbedError: If the directory holds no model, or another content than the revision says.
    """
    import_module("mteb")
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    folder = Path(path).expanduser().resolve()
    kind = model_kind(folder)
    content = content_revision(folder)
    if revision is not None and revision != content:
        msg = (
            f"a directory has no revision but its content; that of {folder} is {content}, not {revision!r}: "
            "leave the revision out, or give the hub name for a revision of the hub"
        )
        raise ReasonEmbedError(msg)
    return ModelMeta.create_empty(
        overwrites={
            "loader": _load_other,
            "loader_kwargs": {"path": str(folder), "kind": kind},
            "name": name or local_name(folder),
            "revision": content,
            "model_type": [kind],
            "framework": ["Sentence Transformers", "PyTorch"],
            # A dense directory says itself which one it takes; mteb asks the model where this is None.
            "similarity_fn_name": ScoringFunction.MAX_SIM if kind == "late-interaction" else None,
        }
    )


def with_instruction(meta: ModelMeta, template: str | None, *, none: bool = False) -> ModelMeta:
    """Decide the instruction of a model that brings none of its own.

    Args:
        meta: Metadata of a local directory or of a hub model that MTEB does not know.
        template: Give each task's instruction in this template, instead of the model's own prompts.
        none: Give no instruction and no prompt.

    Returns:
        Metadata whose results are filed as an experiment, apart from those of the plain model.

    Raises:
        ReasonEmbedError: If both are given, the template has no ``{instruction}``, or the model is not
            dense.
    """
    if template is None and not none:
        return meta
    if template is not None and none:
        msg = "give --instruction-template or --no-instruction, not both"
        raise ReasonEmbedError(msg)
    if template is not None:
        check_template(template)
    if "dense" not in (meta.model_type or ()):
        msg = f"{meta.name} is no dense model: it takes no instruction"
        raise ReasonEmbedError(msg)
    # Part of a folder's name, where no line break belongs; the loader puts it back.
    escaped = escape_template(template or "")
    chosen = {"instruction_template": escaped} if template is not None else {"no_instruction": True}
    loader_kwargs = {"kind": "dense"} | (meta.loader_kwargs or {})
    return meta.model_copy(
        update={"loader": _load_other, "loader_kwargs": loader_kwargs, "experiment_kwargs": chosen}
    )
