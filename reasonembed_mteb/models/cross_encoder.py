"""A cross-encoder of sentence-transformers as a reranker, decoders that answer yes or no among them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.folders import content_revision
from reasonembed_mteb.models.identity import object_revision
from reasonembed_mteb.models.mteb_encoder import weights_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sentence_transformers import CrossEncoder

    from reasonembed_mteb.retrieval.reranker import Pair


class CrossEncoderReranker:
    """Scores pairs by `sentence_transformers.CrossEncoder`; see `reasonembed_mteb.retrieval.reranker`.

    Example:
        >>> from reasonembed_mteb.models.cross_encoder import CrossEncoderReranker
        >>> reranker = CrossEncoderReranker("cross-encoder/ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
        >>> reranker.score([("why is the sky blue?", "Short waves are scattered.")])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | CrossEncoder,
        *,
        revision: str | None = None,
        device: str | None = None,
        max_length: int | None = None,
        instruction: str | None = None,
        batch_size: int = 32,
    ) -> None:
        """Load the model.

        Args:
            model: Directory, hub name, or a loaded model.
            revision: Commit of a hub name.
            device: Such as ``cuda:0``.
            max_length: Tokens of query and document together; None for the model's own.
            instruction: Put before each query, or where the model's chat template has its place; None for
                the model's own prompt.
            batch_size: Pairs a batch.

        Raises:
            ReasonEmbedError: If the model cannot be loaded, or gives several numbers a pair.
        """
        from sentence_transformers import CrossEncoder

        if isinstance(model, CrossEncoder):
            self.model, name = model, object_revision(model)
        else:
            name = str(model)
            self.model = _load(name, revision, device)
        if max_length is not None:
            self.model.max_seq_length = max_length
        if self.model.num_labels != 1:
            msg = f"{name} gives {self.model.num_labels} numbers a pair; a reranker gives one: take another"
            raise ReasonEmbedError(msg)
        self._instruction, self._batch_size = instruction, batch_size
        self._name, self._revision = name, _revision(name, self.model)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the scores."""
        return {
            "kind": "cross-encoder",
            "name": self._name,
            "revision": self._revision,
            "max_length": self.model.max_seq_length,
            "instruction": self._instruction,
            "dtype": str(next(self.model.parameters()).dtype),
        }

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return the model's score of each pair, ``(N,)``, after its own activation.

        Args:
            pairs: Query and document.
        """
        if not pairs:
            return np.empty(0, dtype=np.float32)
        scores: NDArray[np.float32] = self.model.predict(
            list(pairs),
            prompt=self._instruction,
            batch_size=self._batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return scores


def _load(name: str, revision: str | None, device: str | None) -> CrossEncoder:
    from sentence_transformers import CrossEncoder

    try:
        options = {"dtype": weights_dtype(device)}
        model: CrossEncoder = CrossEncoder(name, revision=revision, device=device, model_kwargs=options)
    except (OSError, ValueError) as error:
        cause = str(error).strip().partition("\n")[0]
        msg = f"cannot load the cross-encoder {name} ({cause}); give a directory or a hub name"
        raise ReasonEmbedError(msg) from error
    return model


def _revision(name: str, model: CrossEncoder) -> str | None:
    """Return the content hash of a directory, the commit of a hub name, or the hash of an object."""
    if Path(name).is_dir():
        return content_revision(Path(name))
    commit: str | None = getattr(getattr(model.model, "config", None), "_commit_hash", None)
    return commit or name
