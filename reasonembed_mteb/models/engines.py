"""Models whose vectors an engine computes: all of the model but its weights, and the engine in their place.

A model is loaded as ever (prompts, instructions, tokenizer, length, modules, metadata), by whoever loads it,
but its weights are never read: `EngineLoader` stands in front of any loader of MTEB's.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.endpoints.endpoint import Endpoint, versioned_address
from reasonembed_mteb.errors import ReasonEmbedError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mteb.models import ModelMeta

    from reasonembed_mteb.encoding.engines.engine import Engine, ModelFacts
    from reasonembed_mteb.encoding.fast import FastSentenceTransformer
    from reasonembed_mteb.encoding.tokenizing import TokenRows

# The experiment option under which results of an engine are filed, apart from those of torch.
ENGINE_OPTION = "engine"
_LOADING = threading.RLock()


@dataclass(frozen=True)
class EngineChoice:
    """Who computes vectors, and how it is reached.

    Attributes:
        name: ``torch`` (the loaded model itself), ``vllm`` (vLLM in this process) or ``api`` (a server).
        base_url: Address of the server, with ``/v1`` or without; for ``api`` alone.
        served_model: The model's name at the server; None for the name or directory that it is given by.
        api_key_env: The environment variable that holds the key, where one is needed.
        concurrency: Most requests at a time.
        batch_tokens: Tokens of a request or of a vLLM batch; None for the engine's own.
        options: More arguments of `vllm.LLM`, or more fields of each request (``extra_body``).
        timeout: Seconds without a byte before an attempt at a request is given up.
        max_attempts: Attempts for one request.
        backoff: Seconds before the second attempt; doubled with each further one.
    """

    name: str = "torch"
    base_url: str | None = None
    served_model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 32
    batch_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    max_attempts: int = 6
    backoff: float = 1.0

    def __post_init__(self) -> None:
        """Check what a command line can get wrong.

        Raises:
            UnknownNameError: If there is no such engine; the nearest is named.
            ReasonEmbedError: If an option does not go with it.
            EndpointValueError: If the server's address or another of its values cannot be used.
        """
        from reasonembed_mteb.encoding.engines.engine import ENGINES

        if self.name not in ENGINES:
            raise unknown_name("engine", self.name, ENGINES)
        if self.name == "api" and self.base_url is None:
            msg = "--engine api needs the server's address: --base-url http://localhost:8000/v1"
            raise ReasonEmbedError(msg)
        for option, given in (("--base-url", self.base_url), ("--served-model", self.served_model)):
            if given is not None and self.name != "api":
                msg = f"{option} goes with --engine api, not {self.name}"
                raise ReasonEmbedError(msg)
        if self.name == "api":
            self.endpoint("a model")

    def check_torch_options(self, *, device: str | None, attn: str, compile_layers: str) -> None:
        """Refuse options of torch for another engine.

        Args:
            device: Where the loaded model would be; None for its own choice.
            attn: How it would attend; ``auto`` for its own choice.
            compile_layers: Whether its layers would be compiled; ``auto`` for its own choice.

        Raises:
            ReasonEmbedError: If one is given, and the engine is not torch.
        """
        given = {"--device": device or "auto", "--attn": attn, "--compile": compile_layers}
        for option, value in given.items():
            if self.name != "torch" and value != "auto":
                msg = f"{option} {value} is for --engine torch: {self.name} decides that itself"
                raise ReasonEmbedError(msg)

    def endpoint(self, model: str) -> Endpoint:
        """Return the server that is asked.

        Args:
            model: The model's name, where the server has no other.
        """
        return Endpoint(
            versioned_address(self.base_url or "", "embeddings"),
            self.served_model or model,
            api_key_env=self.api_key_env,
            concurrency=self.concurrency,
            timeout=self.timeout,
            max_attempts=self.max_attempts,
            backoff=self.backoff,
            extra_body=dict(self.options) or None,
        )


def engine_choice(engine: EngineChoice | str | None, base_url: str | None = None) -> EngineChoice:
    """Return an engine by its name, or as it was chosen in full.

    Args:
        engine: A name, a choice, or None for torch.
        base_url: Address of the server, where the engine is given by name.
    """
    if isinstance(engine, EngineChoice):
        return engine if base_url is None else replace(engine, base_url=base_url)
    return EngineChoice(engine or "torch", base_url)


class EngineLoader:
    """Loads an MTEB model without its weights, and lets an engine compute its vectors.

    Attributes:
        choice: Which engine.
        loads: The model's own loader.
    """

    def __init__(self, choice: EngineChoice, loads: Callable[..., Any]) -> None:
        """Stand in front of a loader.

        Args:
            choice: Which engine.
            loads: The model's own loader.
        """
        self.choice, self.loads = choice, loads
        # MTEB writes it beside results.
        self.__name__ = str(getattr(loads, "__name__", type(loads).__name__))

    def __call__(self, model_name: str, revision: str | None = None, **kwargs: Any) -> Any:  # noqa: ANN401 - any of mteb's model protocols
        """Load a model; see `with_engine`."""
        kwargs.pop(ENGINE_OPTION, None)
        # Weights lie where the engine puts them.
        kwargs["device"] = "meta"
        with without_weights():
            model = self.loads(model_name, revision, **kwargs)
        path = kwargs.get("path")
        attach_engine(model, self.choice, path or model_name, None if path else revision)
        return model


def with_engine(meta: ModelMeta, choice: EngineChoice) -> ModelMeta:
    """Let an engine compute a model's vectors; results are filed apart from those of torch.

    Args:
        meta: MTEB metadata of any dense model that sentence-transformers loads.
        choice: Which engine; torch leaves the metadata as they are.

    Raises:
        ReasonEmbedError: If the model is not dense.
    """
    if choice.name == "torch":
        return meta
    if list(meta.model_type or ()) != ["dense"] or meta.loader is None:
        kind = ", ".join(meta.model_type or ["unknown"])
        msg = f"--engine {choice.name} is for dense models, and {meta.name} is {kind}: leave it out"
        raise ReasonEmbedError(msg)
    return _filed_apart(meta, choice, loader=EngineLoader(choice, meta.loader))


def own_loader(meta: ModelMeta) -> Any:  # noqa: ANN401 - any callable
    """Return what loads a model, whichever engine it is for.

    Args:
        meta: MTEB metadata.
    """
    loader: Any = meta.loader
    return loader.loads if isinstance(loader, EngineLoader) else loader


@contextmanager
def without_weights() -> Iterator[None]:
    """Load SentenceTransformers without their weights while the context lasts: neither read nor asked for.

    Their parameters are on torch's ``meta`` device.
    """
    from sentence_transformers.base.modules import Transformer

    with _LOADING:
        usual: Any = Transformer._load_model  # noqa: SLF001 - the one place that reads weights
        Transformer._load_model = _empty_model  # noqa: SLF001
        try:
            yield
        finally:
            Transformer._load_model = usual  # noqa: SLF001


def _empty_model(
    transformer: Any,  # noqa: ANN401 - a Transformer module
    name: str,
    task: str,
    config: Any,  # noqa: ANN401 - any configuration
    backend: str,
    is_peft_model: bool,
    **_: Any,
) -> Any:  # noqa: ANN401 - any transformers model
    """Build a transformers model of the right classes, and nothing in it."""
    import torch
    from transformers import AutoModel

    del transformer, task
    if is_peft_model or backend != "torch":
        msg = f"{name} is no whole model in PyTorch's format, which an engine needs: merge it and save that"
        raise ReasonEmbedError(msg)
    with torch.device("meta"):
        return AutoModel.from_config(config).eval()  # type: ignore[no-untyped-call]


def attach_engine(
    model: Any,  # noqa: ANN401 - any of mteb's model protocols
    choice: EngineChoice,
    source: str,
    revision: str | None = None,
) -> None:
    """Let an engine compute the vectors of the SentenceTransformer inside a model.

    Args:
        model: Loaded under `without_weights`; changed in place.
        choice: Which engine.
        source: The model's directory, or its hub name.
        revision: Commit of a hub model.

    Raises:
        ReasonEmbedError: If there is no such model inside, or the engine cannot compute its vectors.
    """
    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.encoding import accelerate
    from reasonembed_mteb.retrieval.lengths import sized_models

    inner = [one for one in sized_models(model) if isinstance(one, SentenceTransformer)]
    if len(inner) != 1:
        msg = f"{source} is loaded by code of its own, for which no engine can compute: use --engine torch"
        raise ReasonEmbedError(msg)
    fast: Any = accelerate(inner[0])
    fast.engine = make_engine(model_facts(fast, source, revision), choice)
    meta = getattr(model, "mteb_model_meta", None)
    # Some of MTEB's loaders leave them to `ModelMeta.load_model`, which then gives its own.
    if meta is not None:
        model.mteb_model_meta = _filed_apart(meta, choice)


def _filed_apart(meta: ModelMeta, choice: EngineChoice, **changed: Any) -> ModelMeta:
    chosen = dict(meta.experiment_kwargs or {}) | {ENGINE_OPTION: choice.name}
    return meta.model_copy(update={"experiment_kwargs": chosen, **changed})


def model_facts(model: FastSentenceTransformer, name: str, revision: str | None) -> ModelFacts:
    """Return what an engine must know of a model.

    Args:
        model: Loaded, with weights or without.
        name: Hub name or path.
        revision: Commit.

    Raises:
        ReasonEmbedError: If it reads more than plain text, or texts through a chat template.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling

    from reasonembed_mteb.encoding.engines.engine import ModelFacts
    from reasonembed_mteb.encoding.engines.running import full_dimension, normalizes
    from reasonembed_mteb.encoding.fast import reads_text_only

    if not reads_text_only(model):
        msg = f"{name} reads more than plain text, or reads it through a chat template: use --engine torch"
        raise ReasonEmbedError(msg)
    transformer: Any = model[0]
    modes = [str(one.pooling_mode) for one in model if isinstance(one, Pooling)]
    others = [
        type(one).__name__ for one in list(model)[1:] if type(one).__name__ not in ("Pooling", "Normalize")
    ]
    return ModelFacts(
        name=str(Path(name).resolve()) if Path(name).is_dir() else name,
        revision=revision,
        pooling=" and ".join([*modes, *others]),
        dimension=full_dimension(model),
        normalized=normalizes(model),
        max_tokens=int(model.max_seq_length or transformer.auto_model.config.max_position_embeddings),
        compared_by_dot=str(model.similarity_fn_name) == "dot",
        tokenizer=transformer.tokenizer,
        tokenize=partial(_tokenized, transformer),
    )


def _tokenized(transformer: Any, texts: Sequence[str]) -> TokenRows:  # noqa: ANN401 - a Transformer module
    """Read texts at the length that is in force now."""
    from reasonembed_mteb.encoding.tokenizing import Tokenizing

    return Tokenizing(transformer, None)(texts)


def make_engine(facts: ModelFacts, choice: EngineChoice) -> Engine:
    """Start an engine.

    Args:
        facts: The model that it computes for.
        choice: ``vllm`` or ``api``, and its options.

    Raises:
        ReasonEmbedError: If it cannot be used, or does not give the model's vectors.
    """
    if choice.name == "api":
        from reasonembed_mteb.encoding.engines.api import ApiEngine

        return ApiEngine(choice.endpoint(facts.name), facts, tokens=choice.batch_tokens)
    import torch

    from reasonembed_mteb.encoding.engines.vllm import VllmEngine

    # As the loaded model would be: half precision on a CPU gives other scores than the published ones.
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return VllmEngine(facts, dtype=dtype, tokens=choice.batch_tokens, options=choice.options)


def engines_of(model: Any) -> list[Engine]:  # noqa: ANN401 - any of mteb's model protocols
    """Return the engines that compute for a model.

    Args:
        model: A loaded MTEB model, wrapped however often.
    """
    from reasonembed_mteb.retrieval.lengths import sized_models

    return [engine for one in sized_models(model) if (engine := getattr(one, "engine", None)) is not None]
