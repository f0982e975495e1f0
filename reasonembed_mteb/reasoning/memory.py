"""The memory of compressed texts: K positions of each, saved as safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CACHE, HIDDEN = "cache", "hidden"
_FORMAT, _ABOUT = "reasonembed-latent-memory-1", "memory"


@dataclass(frozen=True)
class LatentMemory:
    """What is kept of N texts.

    Attributes:
        kind: ``cache`` or ``hidden``.
        keys: ``(layers, N, key-value heads, K, head dimensions)``, rotated to their own positions; no layers
            where ``kind`` is ``hidden``.
        values: Likewise.
        states: Last hidden states ``(N, K, D)`` of the latents; of a cache only the last one's ``(N, 1, D)``,
            which predicts the first token where no question stands before it.
        lengths: ``(N,)`` int64, tokens of each text with its latents: the position of what is read next.
        model: Hash of the model that made it.
    """

    kind: str
    keys: Tensor
    values: Tensor
    states: Tensor
    lengths: Tensor
    model: str = ""

    def __len__(self) -> int:
        """Return how many texts there are."""
        return len(self.lengths)

    @property
    def positions(self) -> int:
        """How many positions are kept of each text, K."""
        return self.keys.shape[3] if self.kind == CACHE else self.states.shape[1]

    @property
    def bytes_per_text(self) -> int:
        """Bytes that one text takes."""
        tensors = (self.keys, self.values, self.states, self.lengths)
        return sum(one.numel() * one.element_size() for one in tensors) // max(1, len(self))

    def describe(self) -> str:
        """Return the size in one line: texts, positions, numbers and bytes of each."""
        numbers = (self.keys.numel() + self.values.numel() + self.states.numel()) // max(1, len(self))
        layers, _, heads, _, size = self.keys.shape
        made = f"{layers} layers x 2 x {heads} heads x {size}" if self.kind == CACHE else "hidden states"
        return (
            f"{len(self):,} texts x {self.positions} positions ({made}): {numbers:,} numbers, "
            f"{self.bytes_per_text:,} bytes a text"
        )

    def rows(self, begin: int, end: int) -> LatentMemory:
        """Return the memory of some texts.

        Args:
            begin: First text.
            end: One past the last.
        """
        return replace(
            self,
            keys=self.keys[:, begin:end],
            values=self.values[:, begin:end],
            states=self.states[begin:end],
            lengths=self.lengths[begin:end],
        )

    def last(self, count: int) -> LatentMemory:
        """Return the memory with the last positions alone.

        Args:
            count: How many are kept of each text.

        Raises:
            ReasonEmbedError: If there are not so many.
        """
        if not 1 <= count <= self.positions:
            msg = f"{count} positions asked for; the memory has {self.positions}: ask for 1 to that many"
            raise ReasonEmbedError(msg)
        states = self.states[:, -count:] if self.kind == HIDDEN else self.states
        return replace(
            self, keys=self.keys[:, :, :, -count:], values=self.values[:, :, :, -count:], states=states
        )

    def save(self, file: Path) -> None:
        """Write the memory as safetensors.

        Args:
            file: Where to.

        Raises:
            ReasonEmbedError: If it cannot be written.
        """
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        about = {"format": _FORMAT, "kind": self.kind, "model": self.model, "size": self.describe()}
        with replacing(file) as part:
            # Under one key: safetensors writes several in an order that differs from time to time.
            save_file(tensors, part, metadata={_ABOUT: json.dumps(about)})

    @classmethod
    def load(cls, file: Path) -> LatentMemory:
        """Read a memory.

        Args:
            file: What `save` wrote.

        Raises:
            DataError: If it is none.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as held:
                about = json.loads((held.metadata() or {}).get(_ABOUT, "{}"))
                tensors = {name: held.get_tensor(name) for name in held.keys() if name in _TENSORS}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            msg = f"cannot read the memory {file} ({error}): give a file that LatentMemory.save wrote"
            raise DataError(msg) from error
        if not isinstance(about, dict) or about.get("format") != _FORMAT or len(tensors) != len(_TENSORS):
            msg = f"{file} is no memory of ours ({_FORMAT}): give a file that LatentMemory.save wrote"
            raise DataError(msg)
        return cls(about["kind"], **tensors, model=about["model"])


_TENSORS = tuple(field.name for field in fields(LatentMemory) if field.name not in ("kind", "model"))
