"""Cross-encoders as rerankers: those of sentence-transformers, and whatever MTEB loads as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.folders import content_revision
from reasonembed_mteb.models.identity import object_revision
from reasonembed_mteb.models.mteb_encoder import weights_dtype
from reasonembed_mteb.retrieval.lengths import current_length
from reasonembed_mteb.retrieval.search import column_loader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mteb.abstasks.task_metadata import TaskMetadata
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


class LoadedReranker:
    """Scores pairs by a cross-encoder that MTEB has loaded; see `reasonembed_mteb.retrieval.reranker`."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - mteb's CrossEncoderProtocol
        task: TaskMetadata,
        call: Mapping[str, Any],
        *,
        batch_size: int = 32,
    ) -> None:
        """Keep the model and how MTEB calls it.

        Args:
            model: Loaded, on its device.
            task: Its name and prompt may decide what goes before a query.
            call: ``hf_split`` and ``hf_subset``.
            batch_size: Pairs a batch.
        """
        self._model, self._task, self._batch_size = model, task, batch_size
        self._call = {name: call[name] for name in ("hf_split", "hf_subset")}

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the scores."""
        meta = self._model.mteb_model_meta
        options = {**(meta.loader_kwargs or {}), **(meta.experiment_kwargs or {})}
        return {
            "kind": "mteb cross-encoder",
            "name": meta.name,
            "revision": meta.revision,
            "options": {name: str(value) for name, value in options.items() if name != "path"},
            "task": self._task.name,
            "max_length": current_length(self._model),
        }

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the model's score of each pair, ``(N,)``.

        Args:
            pairs: Query and document.
        """
        queries, documents = map(list, zip(*pairs, strict=True)) if pairs else ([], [])
        ids = list(map(str, range(len(pairs))))
        # MTEB's names of the columns.
        asked = column_loader({"id": ids, "text": queries, "query": queries}, self._batch_size)
        shown = column_loader({"id": ids, "text": documents, "body": documents}, self._batch_size)
        scores = self._model.predict(
            inputs1=asked,
            inputs2=shown,
            task_metadata=self._task,
            **self._call,
            batch_size=self._batch_size,
            show_progress_bar=False,
        )
        return np.asarray(scores, dtype=np.float64).reshape(-1)


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
