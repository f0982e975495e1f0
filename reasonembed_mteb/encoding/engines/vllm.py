"""Vectors from vLLM in this process: token ids in, so that neither its tokenizer nor a template has a say."""

from __future__ import annotations

import gc
import os
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.encoding.engines.engine import EngineError
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.encoding.engines.engine import ModelFacts, TokenizedText

# sentence-transformers' names of what vLLM pools too.
POOLINGS = {"lasttoken": "LAST", "mean": "MEAN", "cls": "CLS"}


class LoadedVllm:
    """A `vllm.LLM` in this process: loaded whole, or one line that says why not, and released once."""

    def __init__(self, name: str, instead: str, **arguments: Any) -> None:
        """Load a model's weights into vLLM.

        Args:
            name: Hub name, or path of a directory, of which nothing is asked of the hub.
            instead: What to do where vLLM cannot load it, such as ``use --engine torch``.
            **arguments: Of `vllm.LLM`; `trust_remote_code` stays off whatever they say.

        Raises:
            ReasonEmbedError: If vLLM is not installed, or cannot load the model.
        """
        vllm = import_vllm()
        # A process that has used CUDA cannot be forked.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        self.version = str(vllm.__version__)
        given = {"model": name, "tokenizer": name} | arguments | {"trust_remote_code": False}
        try:
            self._llm: Any = vllm.LLM(**given)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            msg = f"vLLM {self.version} cannot load {name} ({reason}): {instead}"
            raise ReasonEmbedError(msg) from error

    @property
    def llm(self) -> Any:  # noqa: ANN401 - vllm.LLM
        """The loaded `vllm.LLM`.

        Raises:
            EngineError: If it was closed.
        """
        if self._llm is None:
            msg = "this vLLM engine was closed: load the model again"
            raise EngineError(msg)
        return self._llm

    def close(self) -> None:
        """Let vLLM go, and the memory that it holds."""
        if self._llm is None:
            return
        self._llm = None
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def import_vllm() -> Any:  # noqa: ANN401 - the package
    """Return the package `vllm`.

    Raises:
        ReasonEmbedError: If it is not installed, or cannot be imported.
    """
    try:
        import vllm
    except ImportError as error:
        msg = f"vLLM is not installed here ({error}): pip install vllm, on a machine with a GPU"
        raise ReasonEmbedError(msg) from error
    return vllm


class VllmEngine:
    """An engine of vLLM's; see `reasonembed_mteb.encoding.engines.engine.Engine`."""

    def __init__(
        self,
        facts: ModelFacts,
        *,
        dtype: str,
        tokens: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model's weights into vLLM.

        Args:
            facts: The model; a directory is loaded by its path, and nothing of it asked of the hub.
            dtype: Of the weights, such as ``bfloat16``.
            tokens: Tokens of a batch; None leaves it to vLLM.
            options: More of `vllm.LLM`'s arguments, such as ``tensor_parallel_size``. They win over ours,
                except for `trust_remote_code`, which stays off.

        Raises:
            ReasonEmbedError: If vLLM is not installed, or cannot load the model.
            EngineError: If it does not pool as the model does.
        """
        if facts.pooling not in POOLINGS:
            pools = ", ".join(POOLINGS)
            msg = f"vLLM pools by {pools}, and {facts.name} by {facts.pooling}: use --engine torch"
            raise EngineError(msg)
        import_vllm()
        self._again = partial(VllmEngine, facts, dtype=dtype, tokens=tokens, options=options)
        self._chosen = {"dtype": dtype, "pooling": POOLINGS[facts.pooling]} | dict(options or {})
        arguments = {
            "revision": facts.revision,
            "runner": "pooling",
            "convert": "embed",
            "dtype": dtype,
            "max_model_len": facts.max_tokens,
            "pooler_config": _pooler_config(facts),
            **({"max_num_batched_tokens": max(tokens, facts.max_tokens)} if tokens else {}),
            **(options or {}),
        }
        self._loaded = LoadedVllm(facts.name, "use --engine torch, or serve it", **arguments)

    def __reduce__(self) -> tuple[Callable[[], VllmEngine], tuple[()]]:
        """Load the weights anew in another process."""
        return self._again, ()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the vectors beyond the model."""
        return {"name": "vllm", "version": self._loaded.version, **self._chosen}

    def embed(self, rows: Sequence[TokenizedText]) -> NDArray[np.float32]:
        """Return vLLM's vectors ``(N, dim)``; see `Engine`."""
        llm = self._loaded.llm
        prompts = [{"prompt_token_ids": row.ids.tolist()} for row in rows]
        outputs = llm.encode(prompts, pooling_task="embed", use_tqdm=False)
        vectors = [output.outputs.data.float().cpu().numpy() for output in outputs]
        return np.stack(vectors).astype(np.float32, copy=False)

    def close(self) -> None:
        """Let vLLM go, and the memory that it holds."""
        self._loaded.close()


def _pooler_config(facts: ModelFacts) -> Any:  # noqa: ANN401 - vLLM's PoolerConfig
    """Pin pooling and unit length, whatever the model's files make vLLM believe."""
    from vllm.config import PoolerConfig

    known = {one.name for one in fields(PoolerConfig)}
    # vLLM before 0.11.1 calls it `normalize`.
    unit = "use_activation" if "use_activation" in known else "normalize"
    return PoolerConfig(pooling_type=POOLINGS[facts.pooling], **{unit: facts.normalized})
