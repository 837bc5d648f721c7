"""Directions in files: probes, steering vectors and differences of means, as others save them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from heredity.errors import reading, short

_PICKLES = (".pt", ".pth", ".bin")
_BIASES, _THRESHOLDS = ("bias", "b", "intercept"), ("threshold",)


class Direction(NamedTuple):
    """A readout x · vector + bias of activations x."""

    vector: np.ndarray
    """float64 [d], of any length but 0."""
    bias: float | None = None
    """Added to the readout, which says yes above 0; None where nothing says from where on it does."""


def read_direction(
    path: str | Path, d: int | None = None, tensor: str | None = None, row: int | None = None
) -> Direction:
    """The direction of a file: safetensors, npy, npz, or a pickle of torch (pt, pth, bin), read with `weights_only`.

    d: width of the activations; a vector of another width is refused. tensor: its name, by default the only tensor of
    d numbers ([d], [1, d] or [d, 1]). row: of a tensor [rows, d]. Beside the vector, a number called bias, b or
    intercept is its bias, and one called threshold the negative of it, also under the tensor's own prefix (`probe.bias`
    of `probe.weight`). Raises ValueError by file and tensor.
    """
    path = Path(path)
    named = _tensors(path)
    shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in named.items())
    if tensor is not None and tensor not in named:
        raise ValueError(f"{path} has no tensor {tensor}; it has {short(shapes)}")
    vectors = {name: _vector(one, row) for name, one in named.items() if tensor in (None, name)}
    fitting = {n: v for n, v in vectors.items() if v is not None and (len(v) == d if d else len(v) > 1)}
    if len(fitting) != 1:
        of = (f"directions of {d} numbers" if d else "directions") + (f" in row {row}" if row is not None else "")
        way = "name one as tensor" if fitting else _way_out({n: named[n] for n in vectors}, d, row)
        raise ValueError(f"{path}: {len(fitting)} {of} among {short(shapes)}; {way}")
    ((name, vector),) = fitting.items()
    vector = vector.double().cpu().numpy()
    if not np.isfinite(vector).all() or not vector.any():
        raise ValueError(
            f"{path}: {name} holds {'zeros only' if not vector.any() else 'NaN or infinity'}; make it anew"
        )
    return Direction(vector, _bias(named, name))


def _tensors(path: Path) -> Mapping[str, Tensor]:
    with reading(path, "give a safetensors, npy, npz or pt file of a vector"):
        if path.suffix in (".npy", ".npz"):
            loaded: Any = np.load(path, allow_pickle=False)
            arrays = {"array": loaded} if path.suffix == ".npy" else {name: loaded[name] for name in loaded.files}
            return {name: torch.from_numpy(np.asarray(one, np.float64)) for name, one in arrays.items()}
        if path.suffix not in _PICKLES:
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return _flat(loaded)


def _flat(loaded: Any) -> dict[str, Tensor]:
    """Tensors and numbers of what torch saved, by name; `a.b` of nested ones."""
    found, waiting = dict[str, Tensor](), [("", loaded)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor | float):
            found[name or "tensor"] = torch.as_tensor(value).detach()
        elif isinstance(value, dict | list | tuple):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name}.{key}" if name else str(key), part) for key, part in parts]
    return found


def _vector(tensor: Tensor, row: int | None) -> Tensor | None:
    """What may be a direction of a tensor, or of its row; None where there is none."""
    if row is not None:
        return (
            tensor[row].flatten() if tensor.ndim > 1 and row < len(tensor) and tensor[row].squeeze().ndim == 1 else None
        )
    return tensor.flatten() if tensor.squeeze().ndim <= 1 else None


def _way_out(named: Mapping[str, Tensor], d: int | None, row: int | None) -> str:
    """What to do where no tensor is a direction of d numbers."""
    fits = [one for one in named.values() if d in (None, one.shape[-1])] if row is None else [*named.values()]
    if matrices := [len(one) for one in fits if one.ndim == 2 and len(one) > 1]:
        return f"set row to one of 0 to {max(matrices) - 1}, as [direction.NAME] has it"
    if row is not None and any(one.ndim and one.numel() == one.shape[-1] for one in named.values()):
        return "that is one vector, which has no rows: leave row out"
    return "give one of the hook point's width, or a row of a matrix of several"


def _bias(named: Mapping[str, Tensor], name: str) -> float | None:
    prefix = name.rpartition(".")[0]
    for sign, words in ((1.0, _BIASES), (-1.0, _THRESHOLDS)):
        for word in words:
            one = named.get(f"{prefix}.{word}" if prefix else word, named.get(word))
            if one is not None and one.numel() == 1:
                return sign * float(one)
    return None
