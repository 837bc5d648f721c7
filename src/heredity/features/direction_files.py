"""Directions of users' own, from files: a probe, a steering vector, a difference of means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from heredity.errors import reading, short


def read_direction(path: Path | str, d: int | None = None, tensor: str | None = None) -> np.ndarray:
    """The vector in a file, float32 [d], as it is (not normalized).

    path: `.safetensors`, `.npy`, or `.pt`, `.pth`, `.bin` (tensors alone, nothing that is executed). d: width that it
    must have. tensor: its name in a file that holds several; `a.b` leads into nested ones.
    Raises ValueError, by file, for one that cannot be read, that holds several tensors or none of this name, and for a
    vector of another width, with values that are not finite, or zero.
    """
    path = Path(path)
    with reading(path, "give a .safetensors, .npy or .pt file with one vector"):
        named = _tensors(path)
    choices = ", ".join(sorted(named)[:10])
    if tensor is None and len(named) != 1:
        raise ValueError(f"{path}: holds {len(named)} tensors ({short(choices)}); name one of them")
    name = next(iter(named)) if tensor is None else tensor
    if name not in named:
        raise ValueError(f"{path}: has no tensor {short(name, 80)!r}; it has {short(choices)}")
    value = named[name]
    vector = value.reshape(-1)
    if max(value.shape, default=0) != vector.size:
        raise ValueError(f"{path}: {name} has shape {list(value.shape)}, and a direction is one vector; save that")
    if d is not None and vector.size != d:
        raise ValueError(f"{path}: {name} is {vector.size} wide, and vectors there are {d}; give one of that width")
    if not np.isfinite(vector).all() or not vector.any():
        what = "is zero" if np.isfinite(vector).all() else "has values that are not finite"
        raise ValueError(f"{path}: {name} {what}; give a direction")
    return vector


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a file by name, float32; one without a name is called `direction`."""
    if path.suffix == ".npy":
        return {"direction": np.load(path, allow_pickle=False).astype(np.float32)}
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        found: Any = load_file(path)
    elif path.suffix in (".pt", ".pth", ".bin"):
        found = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise ValueError(f"its name ends in {path.suffix or 'nothing'}")
    made, waiting = dict[str, np.ndarray](), [("direction", found)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            made[name] = value.detach().float().numpy()
        elif isinstance(value, dict | list | tuple):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name}.{key}" if value is not found else str(key), part) for key, part in parts]
    return made
