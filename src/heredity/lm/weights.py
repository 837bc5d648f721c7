"""Tensors in safetensors files: read a stretch at a time and written as they come, so that no model is held whole.

Files are read, not mapped into memory: pages of a map count as memory of the process until it is closed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from heredity.lm.checkpoint import tensors_of

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
STRETCH = 1 << 20  # elements of a stretch, all that is held of a tensor in a file
_CODES = {dtype: code for code, dtype in _TYPES.items()}


class FileTensor(NamedTuple):
    """A tensor that lies in a file."""

    file: Path
    start: int  # byte of the file where its numbers begin
    dtype: torch.dtype
    shape: tuple[int, ...]

    def numel(self) -> int:
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point


def stretch(tensor: Tensor | FileTensor, first: int = 0, last: int | None = None) -> Tensor:
    """Elements first to last (default: the end) of a flattened tensor."""
    last = tensor.numel() if last is None else last
    if isinstance(tensor, Tensor):
        return tensor.reshape(-1)[first:last]
    data = bytearray((last - first) * tensor.dtype.itemsize)
    with tensor.file.open("rb") as opened:
        opened.seek(tensor.start + first * tensor.dtype.itemsize)
        opened.readinto(data)
    return torch.frombuffer(data, dtype=tensor.dtype) if data else torch.empty(0, dtype=tensor.dtype)


def same(a: Tensor | FileTensor, b: Tensor | FileTensor) -> bool:
    """Whether two tensors have the same shape and values."""
    pieces = range(0, a.numel(), STRETCH)
    return a.shape == b.shape and all(
        torch.equal(stretch(a, i, min(i + STRETCH, a.numel())), stretch(b, i, min(i + STRETCH, a.numel())))
        for i in pieces
    )


def not_finite(tensors: Mapping[str, Tensor | FileTensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity; None where all are finite."""
    for name, tensor in tensors.items():
        for i in range(0, tensor.numel() if tensor.is_floating_point() else 0, STRETCH):
            piece = stretch(tensor, i, min(i + STRETCH, tensor.numel()))
            # A sum costs a third of a look at every number, and is finite only where all of them are.
            if not piece.sum(dtype=torch.float32).isfinite() and not bool(piece.isfinite().all()):
                return name
    return None


def tensors_in(folder: Path, name: str) -> dict[str, FileTensor]:
    """The tensors of a folder's safetensors files, by name; `ModelError`, after the model's name, for damaged files,
    and for types that hold codes instead of weights."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for tensor, stored in tensors_of(file, name).items():
            if stored.dtype not in _TYPES:
                raise ValueError(f"{name}: tensor {tensor} is of type {stored.dtype}; merge the unquantized model")
            found[tensor] = FileTensor(file, stored.start, _TYPES[stored.dtype], stored.shape)
    return found


@contextmanager
def written(
    file: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> Iterator[Callable[[Tensor], int]]:
    """A safetensors file of tensors of these types and shapes; all their elements are to be put in, in that order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        yield lambda piece: opened.write(piece.contiguous().view(torch.uint8).numpy().data)
