"""Affine maps between the activations of two models, y = x weight + bias in rows, and their quality."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from heredity.stitch.moments import Moments


class Affine(NamedTuple):
    """x [..., d_in] -> x weight + bias [..., d_out] (Chen et al. 2025, arXiv 2506.06609, eq. 1-2)."""

    weight: Tensor  # float32 [d_in, d_out]
    bias: Tensor  # float32 [d_out]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias

    def then(self, after: Affine) -> Affine:
        """This map followed by another: x -> after(self(x))."""
        return Affine(self.weight @ after.weight, after(self.bias))

    def to(self, device: torch.device | str) -> Affine:
        """The same map on another device."""
        return Affine(self.weight.to(device), self.bias.to(device))

    @staticmethod
    def of(weight: np.ndarray, bias: np.ndarray) -> Affine:
        """From arrays [d_in, d_out] and [d_out], as float32. Raises ValueError for NaN or infinity."""
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("the map holds NaN or infinity; look for huge or constant activations, or raise ridge")
        return Affine(*(torch.from_numpy(np.array(part, np.float32)) for part in (weight, bias)))


class Stitch(NamedTuple):
    """Maps between a model A, the source, and a model B, the target."""

    up: Affine  # A -> B
    down: Affine  # B -> A

    def to(self, device: torch.device | str) -> Stitch:
        """The same maps on another device."""
        return Stitch(self.up.to(device), self.down.to(device))

    def save(self, folder: str | Path) -> None:
        """Write `up.safetensors` and `down.safetensors`, of `weight` and `bias` each, into a folder made if missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, affine in self._asdict().items():
            tensors = {key: part.detach().cpu().contiguous() for key, part in affine._asdict().items()}
            save_file(tensors, Path(folder) / f"{name}.safetensors")

    @staticmethod
    def load(folder: str | Path) -> Stitch:
        """Read a folder of `save`, to the CPU. Raises ValueError for missing, damaged, unrelated or unpaired files."""
        inner, maps = sorted(path.parent.name for path in Path(folder).glob("*/up.safetensors")), []
        for path in (Path(folder) / f"{name}.safetensors" for name in Stitch._fields):
            if not path.is_file():
                way_out = f"give one of its folders: {', '.join(inner)}" if inner else "give a folder of Stitch.save"
                raise ValueError(f"there is no map {path}; {way_out}")
            try:
                tensors = load_file(path)
                maps.append(Affine.of(tensors["weight"].numpy(), tensors["bias"].numpy()))
            except (SafetensorError, KeyError) as error:
                raise ValueError(f"{path} is damaged, or no affine map ({error}); make it again") from error
        up, down = maps
        if up.weight.shape != down.weight.T.shape:
            shapes = f"{list(up.weight.shape)} and {list(down.weight.shape)}"
            raise ValueError(f"{folder}: up and down are {shapes}, which do not lead back; make them again")
        return Stitch(up, down)


class MapQuality(NamedTuple):
    """How well a map predicts y from x."""

    r2: float  # 1 - Σ ‖y - ŷ‖² / Σ ‖y - mean y‖², pooled over dimensions and tokens; nan where y is constant
    r2_by_dim: np.ndarray  # float64 [d_out]: the same of each dimension; nan for a constant one
    mse: float  # mean squared error over tokens and elements, in the units of y


class StitchQuality(NamedTuple):
    """Figures of both maps and both round trips."""

    up: MapQuality  # b from up(a)
    down: MapQuality  # a from down(b)
    there_and_back: MapQuality  # a from down(up(a)): through the target
    back_and_there: MapQuality  # b from up(down(b)): through the source
    loss: float  # joint loss: MSE of both maps plus alpha times that of both round trips (Chen et al. 2025, eq. 3)
    condition: tuple[float, float]  # of up and down: largest over least singular value; inf where a direction is lost
    effective_rank: tuple[float, float]
    """Of up and down: exp of the entropy of the singular values as shares of their sum (Roy & Vetterli 2007)."""
    tokens: int  # tokens behind the moments


def stitch_quality(stitch: Stitch, moments: Moments, alpha: float = 1.0) -> StitchQuality:
    """Quality on the tokens of some moments; equal, up to rounding, to an evaluation token by token."""
    back = moments.swapped()
    of_a = moments._replace(mean_b=moments.mean_a, ab=moments.aa, bb=moments.aa)
    of_b = back._replace(mean_b=back.mean_a, ab=back.aa, bb=back.aa)
    up, down = (Affine(part.weight.double().cpu(), part.bias.double().cpu()) for part in stitch)
    there, here = map_quality(up, moments), map_quality(down, back)
    round_a, round_b = map_quality(up.then(down), of_a), map_quality(down.then(up), of_b)
    loss = there.mse + here.mse + alpha * (round_a.mse + round_b.mse)
    condition, rank = [], []
    for part in (up, down):
        values = np.linalg.svd(part.weight.numpy(), compute_uv=False)
        condition.append(float(values[0] / values[-1]) if values[-1] > 0 else float("inf"))
        shares = values[values > 0] / max(values.sum(), np.finfo(float).tiny)
        rank.append(float(np.exp(-np.sum(shares * np.log(shares)))))
    figures = loss, (condition[0], condition[1]), (rank[0], rank[1]), moments.tokens
    return StitchQuality(there, here, round_a, round_b, *figures)


def map_quality(to: Affine, moments: Moments) -> MapQuality:
    """Quality of a map from a to b [d_a, d_b] on the tokens of some moments."""
    weight, bias = (part.double().cpu().numpy() for part in to)
    spread = np.diag(moments.bb)
    off = moments.mean_b - moments.mean_a @ weight - bias
    error = spread - 2 * np.sum(weight * moments.ab, 0) + np.sum(weight * (moments.aa @ weight), 0)
    error = np.maximum(error, 0) + off**2  # rounding may take the error of an exact map below 0
    by_dim, total = 1 - error / np.where(spread > 0, spread, np.nan), float(spread.sum())
    return MapQuality(1 - float(error.sum()) / total if total > 0 else float("nan"), by_dim, float(error.mean()))
