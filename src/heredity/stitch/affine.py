"""Affine maps between the activations of two models, in rows: y = x weight + bias."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class Affine(NamedTuple):
    """x [..., d_in] -> x weight + bias [..., d_out] (Chen et al. 2025, arXiv 2506.06609, eq. 1-2)."""

    weight: Tensor
    """float32 [d_in, d_out]."""
    bias: Tensor
    """float32 [d_out]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Images of vectors [..., d_in], which must be of the map's type and on its device."""
        return x @ self.weight + self.bias

    def then(self, after: Affine) -> Affine:
        """This map followed by another: x -> after(self(x)). Raises ValueError when the widths do not meet."""
        if self.weight.shape[1] != after.weight.shape[0]:
            raise ValueError(
                f"a map to width {self.weight.shape[1]} cannot be followed by one from width {after.weight.shape[0]}; "
                "check which one comes first"
            )
        return Affine(self.weight @ after.weight, after(self.bias))

    def to(self, device: torch.device | str) -> Affine:
        """The same map on another device."""
        return Affine(self.weight.to(device), self.bias.to(device))

    @staticmethod
    def of(weight: np.ndarray, bias: np.ndarray) -> Affine:
        """From arrays [d_in, d_out] and [d_out], as float32. Raises ValueError for NaN, infinity or a misfit."""
        if weight.ndim != 2 or bias.shape != weight.shape[1:]:
            raise ValueError(f"weight {weight.shape} and bias {bias.shape} do not fit; give [d_in, d_out] and [d_out]")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("the map holds NaN or infinity; look for huge or constant activations, or raise ridge")
        return Affine(*(torch.from_numpy(np.array(part, np.float32)) for part in (weight, bias)))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file of `weight` and `bias`, float32."""
        save_file({name: part.detach().cpu().contiguous() for name, part in self._asdict().items()}, path)

    @staticmethod
    def load(path: str | Path) -> Affine:
        """What `save` wrote, on the CPU. Raises ValueError for no such file, one that is damaged or holds else."""
        if not Path(path).is_file():
            raise ValueError(f"there is no map {path}; give what Affine.save wrote")
        try:
            found = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); make it again") from error
        if found.keys() != {"weight", "bias"}:
            raise ValueError(f"{path} holds {sorted(found)}, no affine map; make it again")
        return Affine.of(found["weight"].numpy(), found["bias"].numpy())


class Stitch(NamedTuple):
    """Maps between a model A, the source, and a model B, the target, both ways."""

    up: Affine
    """A -> B."""
    down: Affine
    """B -> A."""

    def to(self, device: torch.device | str) -> Stitch:
        """The same maps on another device."""
        return Stitch(self.up.to(device), self.down.to(device))

    def save(self, folder: str | Path) -> None:
        """Write `up.safetensors` and `down.safetensors` into a folder, which is made if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, part in self._asdict().items():
            part.save(Path(folder) / f"{name}.safetensors")

    @staticmethod
    def load(folder: str | Path) -> Stitch:
        """What `save` wrote, on the CPU. Raises ValueError as `Affine.load` does, and for maps that are no pair."""
        folder = Path(folder)
        inner = sorted(path.parent.name for path in folder.glob("*/up.safetensors"))
        if inner and not (folder / "up.safetensors").exists():
            raise ValueError(f"{folder} holds the maps of several fits; give one of its folders: {', '.join(inner)}")
        found = Stitch(*(Affine.load(folder / f"{name}.safetensors") for name in Stitch._fields))
        if found.up.weight.shape != found.down.weight.T.shape:
            shapes = " and ".join(str(list(part.weight.shape)) for part in found)
            raise ValueError(f"{folder}: up and down are {shapes}, which do not lead back; make them again")
        return found
