"""Vectors from vLLM in this process: token ids in, so that neither its tokenizer nor a template has a say."""

from __future__ import annotations

import gc
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.encoding.engines.engine import EngineError
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.encoding.engines.engine import ModelFacts, TokenizedText

# sentence-transformers' names of what vLLM pools too.
POOLINGS = {"lasttoken": "LAST", "mean": "MEAN", "cls": "CLS"}


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
        try:
            import vllm
        except ImportError as error:
            msg = f"vLLM is not installed here ({error}): pip install vllm, on a machine with a GPU"
            raise ReasonEmbedError(msg) from error
        # A process that has used CUDA cannot be forked.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        self._chosen = {"dtype": dtype, "pooling": POOLINGS[facts.pooling]} | dict(options or {})
        self._version = str(vllm.__version__)
        arguments = {
            "model": facts.name,
            "tokenizer": facts.name,
            "revision": facts.revision,
            "runner": "pooling",
            "convert": "embed",
            "dtype": dtype,
            "max_model_len": facts.max_tokens,
            "pooler_config": _pooler_config(facts),
            **({"max_num_batched_tokens": max(tokens, facts.max_tokens)} if tokens else {}),
            **(options or {}),
            "trust_remote_code": False,
        }
        try:
            self._llm: Any = vllm.LLM(**arguments)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            msg = f"vLLM {self._version} cannot load {facts.name} ({reason}): use --engine torch, or serve it"
            raise ReasonEmbedError(msg) from error

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the vectors beyond the model."""
        return {"name": "vllm", "version": self._version, **self._chosen}

    def embed(self, rows: Sequence[TokenizedText]) -> NDArray[np.float32]:
        """Return vLLM's vectors ``(N, dim)``; see `Engine`."""
        if self._llm is None:
            msg = "this vLLM engine was closed: load the model again"
            raise EngineError(msg)
        prompts = [{"prompt_token_ids": row.ids.tolist()} for row in rows]
        outputs = self._llm.encode(prompts, pooling_task="embed", use_tqdm=False)
        vectors = [output.outputs.data.float().cpu().numpy() for output in outputs]
        return np.stack(vectors).astype(np.float32, copy=False)

    def close(self) -> None:
        """Let vLLM go, and the memory that it holds."""
        if self._llm is None:
            return
        self._llm = None
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def _pooler_config(facts: ModelFacts) -> Any:  # noqa: ANN401 - vLLM's PoolerConfig
    """Pin pooling and unit length, whatever the model's files make vLLM believe."""
    from vllm.config import PoolerConfig

    known = {one.name for one in fields(PoolerConfig)}
    # vLLM before 0.11.1 calls it `normalize`.
    unit = "use_activation" if "use_activation" in known else "normalize"
    return PoolerConfig(pooling_type=POOLINGS[facts.pooling], **{unit: facts.normalized})
