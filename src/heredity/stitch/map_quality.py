"""How good a stitch is on tokens it was not fitted to, from their moments alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heredity.stitch.affine import Affine, Stitch
from heredity.stitch.moments import Moments


class MapQuality(NamedTuple):
    """How well a map gives what it should."""

    r2: float
    """1 - Σ ‖y - ŷ‖² / Σ ‖y - mean y‖², pooled over dimensions and tokens; nan where y is constant."""
    r2_by_dim: np.ndarray
    """float64 [d_out]: the same of each dimension; nan for a constant one."""
    mse: float
    """Mean squared error over tokens and elements, in the units of y."""


class StitchQuality(NamedTuple):
    """Figures of both maps and both round trips."""

    up: MapQuality
    """b from up(a)."""
    down: MapQuality
    """a from down(b)."""
    there_and_back: MapQuality
    """a from down(up(a)): through the target."""
    back_and_there: MapQuality
    """b from up(down(b)): through the source."""
    loss: float
    """The joint loss: MSE of both maps plus alpha times that of both round trips (Chen et al. 2025, eq. 3)."""
    condition: tuple[float, float]
    """Largest over least singular value of the weights, of up and of down; inf for a map that loses a direction."""
    effective_rank: tuple[float, float]
    """exp of the entropy of the singular values as shares of their sum (Roy & Vetterli 2007), of up and of down."""
    tokens: int
    """Tokens behind the moments."""


def stitch_quality(stitch: Stitch, moments: Moments, alpha: float = 1.0) -> StitchQuality:
    """Quality on the tokens whose moments are given; what the maps would give token by token, but for rounding.

    Raises ValueError when the widths do not fit.
    """
    d_a, d_b = moments.ab.shape
    if stitch.up.weight.shape != (d_a, d_b) or stitch.down.weight.shape != (d_b, d_a):
        shapes = f"{list(stitch.up.weight.shape)} and {list(stitch.down.weight.shape)}"
        raise ValueError(
            f"maps are {shapes}, activations {d_a} and {d_b} wide; take the moments of the same hook points"
        )
    back = moments.swapped()
    of_a = moments._replace(mean_b=moments.mean_a, ab=moments.aa, bb=moments.aa)
    of_b = back._replace(mean_b=back.mean_a, ab=back.aa, bb=back.aa)
    up, down = (Affine(part.weight.double().cpu(), part.bias.double().cpu()) for part in stitch)
    parts = (
        map_quality(up, moments),
        map_quality(down, back),
        map_quality(up.then(down), of_a),
        map_quality(down.then(up), of_b),
    )
    loss = parts[0].mse + parts[1].mse + alpha * (parts[2].mse + parts[3].mse)
    of_up, of_down = (np.linalg.svd(part.weight.numpy(), compute_uv=False) for part in (up, down))
    condition = _condition(of_up), _condition(of_down)
    return StitchQuality(*parts, loss, condition, (_effective_rank(of_up), _effective_rank(of_down)), moments.tokens)


def map_quality(to: Affine, moments: Moments) -> MapQuality:
    """Quality of a map from a to b [d_a, d_b] on the tokens whose moments are given."""
    weight, bias = (part.double().cpu().numpy() for part in to)
    spread = np.diag(moments.bb)
    off = moments.mean_b - moments.mean_a @ weight - bias
    error = spread - 2 * np.sum(weight * moments.ab, 0) + np.sum(weight * (moments.aa @ weight), 0)
    error = np.maximum(error, 0) + off**2  # rounding may take the error of an exact map below 0
    by_dim = 1 - error / np.where(spread > 0, spread, np.nan)
    total = float(spread.sum())
    return MapQuality(1 - float(error.sum()) / total if total > 0 else float("nan"), by_dim, float(error.mean()))


def _condition(values: np.ndarray) -> float:
    return float(values[0] / values[-1]) if values[-1] > 0 else float("inf")


def _effective_rank(values: np.ndarray) -> float:
    shares = values[values > 0] / max(values.sum(), np.finfo(float).tiny)
    return float(np.exp(-np.sum(shares * np.log(shares))))
