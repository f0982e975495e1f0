"""A cluster that encodes the texts of a run, whose other parts stay where they are."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reasonembed_mteb.distributed.inputs import InputText, blocks
from reasonembed_mteb.encoding.output import EncodingStats, TextsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from reasonembed_mteb.distributed.cluster import RayMachines
    from reasonembed_mteb.encoding.fast import FastSentenceTransformer

logger = logging.getLogger(__name__)

# Estimated tokens that a worker encodes at a time.
PART_TOKENS = 1 << 16

Part = tuple[torch.Tensor, "NDArray[np.int32] | None", EncodingStats]


class ModelHolder:
    """An actor: a copy of a model that encodes."""

    def __init__(self, model: FastSentenceTransformer, device: str, threads: int) -> None:
        """Take the model onto a device.

        Args:
            model: On the CPU, or computed for by an engine.
            device: Where it encodes, where its own weights do.
            threads: To compute with, on the CPU.
        """
        torch.set_num_threads(threads)
        # An engine's model has no weights to put anywhere.
        self._model = model if model.engine is not None else model.to(device)

    def encode(self, texts: list[str], length: int | None, options: dict[str, Any]) -> Part:
        """See `reasonembed_mteb.encoding.fast.TextPool.encode`."""
        self._model.max_seq_length = length
        self._model.encoding_stats.reset()
        found = self._model.encode(texts, convert_to_tensor=True, show_progress_bar=False, **options)
        done = EncodingStats()
        done.add(self._model.encoding_stats)
        return torch.as_tensor(found).cpu(), self._model.last_token_counts, done


class ClusterPool:
    """A model's copies on the workers of a cluster.

    Args:
        machines: The cluster.
        model: Its weights are sent to every worker, so that these are the ones that the run records; an
            engine starts anew on every worker.
    """

    def __init__(self, machines: RayMachines, model: FastSentenceTransformer) -> None:
        """Send the model to the workers."""
        self._machines = machines
        device = "cuda" if machines.gpus else "cpu"
        holder = partial(ModelHolder, device=device, threads=machines.threads)
        if model.engine is not None:
            # Each worker has an engine of its own, for which this one makes room.
            model.engine.close()
            self._actors = machines.actors(holder, model)
            return
        if machines.gpus and not torch.cuda.is_available():
            logger.warning(
                "there is no GPU here, so the weights are in float32, on the workers' GPUs too: start the "
                "run on a machine with one, or encode by `reasonembed encode`"
            )
        where = model.device
        # What lies on a GPU here could be read on no machine without one.
        model.to("cpu")
        try:
            self._actors = machines.actors(holder, model)
        finally:
            model.to(where)

    def encode(self, texts: list[str], length: int | None, options: dict[str, Any]) -> Part:
        """See `reasonembed_mteb.encoding.fast.TextPool.encode`.

        Raises:
            TextsError: As encode does, with the places among all texts.
            ReasonEmbedError: If the cluster gives up.
        """
        # Equal parts whatever the number of workers, so that vectors do not depend on it.
        rows = (InputText("", text) for text in texts)
        parts = [[row.text for row in block.documents] for block in blocks(rows, PART_TOKENS, "")]
        found: list[Part] = []
        start = 0
        try:
            for part in self._machines.ask(self._actors, [(one, length, options) for one in parts]):
                found.append(part)
                start += len(part[0])
        except TextsError as error:
            raise error.moved(start) from error
        vectors, counts, stats = zip(*found, strict=True)
        done = EncodingStats()
        for one in stats:
            done.add(one)
        known = [one for one in counts if one is not None]
        complete = np.concatenate(known) if len(known) == len(counts) else None
        return torch.cat(vectors), complete, done
