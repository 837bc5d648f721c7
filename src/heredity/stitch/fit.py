"""Fitting both maps of a stitch to the moments of aligned activations; no token is read again."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from heredity.stitch.affine import Affine, Stitch
from heredity.stitch.joint import joint_loss, minimize_joint
from heredity.stitch.map_quality import map_quality
from heredity.stitch.moments import Moments

Method = Literal["ridge", "joint", "procrustes"]

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)
"""Tried on held-out moments, as shares of the mean variance of a dimension."""
RIDGE = 1e-6
"""Without held-out moments: above the rounding of products in float32."""


class Fit(NamedTuple):
    """A stitch, and how it was found."""

    stitch: Stitch
    """The maps, float32."""
    ridge: tuple[float, float]
    """Share of the mean variance of a dimension added to the variance of each: of A, of B; 0 for procrustes."""
    losses: np.ndarray
    """float64 [rounds + 1]: joint loss with the ridge in it, at the start and after each round; one without rounds."""
    gradient: float
    """Relative norm of the joint loss's gradient at the end; nan for other methods."""
    converged: bool
    """Whether it fell below the tolerance; True for methods in closed form."""


def fit(
    moments: Moments,
    method: Method = "ridge",
    alpha: float = 1.0,
    ridge: float | None = None,
    held_out: Moments | None = None,
    scale: bool = True,
    rounds: int = 500,
) -> Fit:
    """Fit up: A -> B and down: B -> A.

    ridge: each map by least squares on its own. joint: both by the loss of Chen et al. 2025 (arXiv 2506.06609, eq. 3),
    which also asks them to invert each other, weighted by `alpha`, minimized exactly from the ridge fit on.
    procrustes: up with orthonormal rows, times one factor if `scale` (Schönemann 1966); down is its pseudoinverse.

    ridge: added to each covariance as a share of its mean diagonal, as if the activations had that much noise in every
    direction; None chooses among `RIDGES` by the error of each least-squares map on `held_out`, or takes `RIDGE`
    without. rounds: of joint, at most.

    Raises ValueError for an unknown method, a negative alpha or ridge, constant activations, procrustes from a wider
    to a narrower model, and covariances that are singular in spite of the ridge.
    """
    if method not in ("ridge", "joint", "procrustes"):
        raise ValueError(f"method={method!r} is not known; choose one of ridge, joint, procrustes")
    if alpha < 0 or (ridge is not None and ridge < 0):
        raise ValueError(f"alpha={alpha} and ridge={ridge} must not be negative; give 0 or more")
    for name, square in (("A", moments.aa), ("B", moments.bb)):
        if not np.trace(square) > 0:
            raise ValueError(f"activations of {name} are constant: nothing to fit; check the hook point")
    if method == "procrustes":
        up, down = _procrustes(moments, scale)
        return Fit(
            _stitch(moments, up, down), (0.0, 0.0), np.array([joint_loss(moments, up, down, alpha)]), np.nan, True
        )
    back = None if held_out is None else held_out.swapped()
    up, ridge_a = _ridge(moments, ridge, held_out)
    down, ridge_b = _ridge(moments.swapped(), ridge, back)
    noisy = moments._replace(aa=_raised(moments.aa, ridge_a), bb=_raised(moments.bb, ridge_b))
    if method == "ridge":
        losses = np.array([joint_loss(noisy, up, down, alpha)])
        return Fit(_stitch(moments, up, down), (ridge_a, ridge_b), losses, np.nan, True)
    found = minimize_joint(noisy, up, down, alpha, rounds=rounds)
    stitch = _stitch(moments, found.up, found.down)
    return Fit(stitch, (ridge_a, ridge_b), found.losses, found.gradient, found.converged)


def _raised(square: np.ndarray, ridge: float) -> np.ndarray:
    return square + ridge * np.trace(square) / len(square) * np.eye(len(square))


def _ridge(moments: Moments, ridge: float | None, held_out: Moments | None) -> tuple[np.ndarray, float]:
    """Centered weights [d_a, d_b] and the ridge taken."""
    values, vectors = np.linalg.eigh(moments.aa)
    values, turned = np.maximum(values, 0), vectors.T @ moments.ab

    def weights(share: float) -> np.ndarray:
        raised = values + share * values.mean()
        # Without a ridge, what is zero but for rounding is left out: the least-norm solution.
        safe = raised > len(values) * np.finfo(float).eps * values[-1]
        return vectors @ (turned * np.where(safe, 1 / np.where(safe, raised, 1), 0)[:, None])

    if ridge is not None or held_out is None:
        chosen = RIDGE if ridge is None else ridge
        return weights(chosen), chosen
    errors = [map_quality(_affine(moments, weights(share)), held_out).mse for share in RIDGES]
    chosen = RIDGES[int(np.argmin(errors))]
    return weights(chosen), chosen


def _procrustes(moments: Moments, scale: bool) -> tuple[np.ndarray, np.ndarray]:
    d_a, d_b = moments.ab.shape
    if d_a > d_b:
        raise ValueError(f"A is {d_a} wide and B {d_b}; procrustes maps into a space at least as wide: swap the models")
    left, values, right = np.linalg.svd(moments.ab, full_matrices=False)
    up = left @ right
    factor = float(values.sum() / np.trace(moments.aa)) if scale else 1.0
    if factor <= 0:
        raise ValueError("the models' activations do not vary together: no rotation fits; check that rows are aligned")
    return factor * up, up.T / factor


def _affine(moments: Moments, weight: np.ndarray) -> Affine:
    """Sends the mean of A to that of B."""
    return Affine.of(weight, moments.mean_b - moments.mean_a @ weight)


def _stitch(moments: Moments, up: np.ndarray, down: np.ndarray) -> Stitch:
    return Stitch(_affine(moments, up), _affine(moments.swapped(), down))
