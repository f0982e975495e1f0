"""Tensors of safetensors files, read and written piece by piece: a model need not fit into memory."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from reasonembed_mteb.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
# safetensors' names of the dtypes that can be added up.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Numbers of a piece at most: 16 MiB in float64.
_PIECE = 1 << 21
# A piece is at most this part of its shard, since it is held in float64 and several times.
_PART_OF_SHARD = 96


@dataclass(frozen=True)
class TensorPlace:
    """A tensor within a file.

    Attributes:
        file: The file.
        name: Its name there.
        dtype: safetensors' name of its dtype.
        shape: Its shape.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether its numbers can be added up."""
        return self.dtype in FLOATS

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield the bounds of its pieces, in rows of its first dimension (of one row where it has none)."""
        rows = self.shape[0] if self.shape else 1
        numbers = min(_PIECE, self.file.stat().st_size // _PART_OF_SHARD)
        step = max(1, numbers // max(1, math.prod(self.shape[1:])))
        for start in range(0, rows, step):
            yield start, min(rows, start + step)

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows as they are stored.

        Args:
            start: First row.
            stop: The row behind the last.

        Returns:
            ``(stop - start, ...)``; ``(1,)`` of a tensor without dimensions.
        """
        from safetensors import safe_open

        # Opened for each piece: what was read of a mapped file counts as memory until it is closed.
        with safe_open(self.file, framework="pt") as held:
            if not self.shape:
                found: Tensor = held.get_tensor(self.name).reshape(1).clone()
            else:
                found = held.get_slice(self.name)[start:stop].clone()
        return found


def tensor_places(folder: Path) -> dict[str, TensorPlace]:
    """Return where each tensor of a model folder lies, in the order of its files.

    Args:
        folder: With ``model.safetensors``, or an index and its shards, or other safetensors files.

    Raises:
        DataError: If there is none, or one is missing or damaged.
    """
    found = {}
    for file in _files(folder):
        for place in file_places(file):
            found[place.name] = place
    return found


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError) as error:
            msg = f"{folder / INDEX} is damaged ({error}); save the model again"
            raise DataError(msg) from error
        return [folder / name for name in sorted(set(listed))]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    # An adapter's factors are no weights of a model.
    found = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_"))
    if not found:
        msg = f"{folder} holds no safetensors weights; save the model again as safetensors"
        raise DataError(msg)
    return found


def file_places(file: Path) -> list[TensorPlace]:
    """Return the tensors of a file, in its order.

    Args:
        file: Safetensors.

    Raises:
        DataError: If it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as held:
            # In the order of the data, so that the disk is read from front to back.
            names = held.offset_keys()
            slices = [(name, held.get_slice(name)) for name in names]
            return [TensorPlace(file, name, one.get_dtype(), tuple(one.get_shape())) for name, one in slices]
    except (OSError, SafetensorError) as error:
        msg = f"cannot read the weights {file}: {str(error).splitlines()[0]}; fetch or save the model again"
        raise DataError(msg) from error


def write_tensors(
    file: Path, layout: Mapping[str, TensorPlace], pieces: Callable[[str], Iterator[Tensor]]
) -> int:
    """Write a safetensors file piece by piece; safetensors' own writer wants all tensors at once.

    Args:
        file: Replaced if it is there.
        layout: Dtype and shape of each tensor by the name that it is to have.
        pieces: Gives a tensor's rows, one piece after the other.

    Returns:
        Bytes of the tensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, place in layout.items():
        size = math.prod(place.shape) * _bytes(place.dtype)
        header[name] = {
            "dtype": place.dtype,
            "shape": list(place.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    # The format's description: 8 bytes with the header's length, the header padded to 8, then the data.
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in layout:
            for piece in pieces(name):
                out.write(piece.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return end


def _bytes(dtype: str) -> int:
    """Return the bytes of a number; the name of each dtype that is no part of a byte ends with its bits."""
    if dtype in FLOATS:
        return FLOATS[dtype].itemsize
    return 1 if dtype == "BOOL" or dtype.startswith("F8") else int(dtype[1:]) // 8
