"""Fits of a stitch: in closed form or by exact steps from moments, and gradient descent over tokens.

The joint loss is L = MSE(up a, b) + MSE(down b, a) + α MSE(down up a, a) + α MSE(up down b, b), means over tokens and
elements (Chen et al. 2025, arXiv 2506.06609, eq. 3). Tokens enter through means and covariances only. The best biases
send mean to mean, which leaves centered weights, and L is a strictly convex quadratic function of either for a fixed
other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.linalg import cholesky, solve_triangular
from torch import Tensor, nn

from heredity.stitch.affine import Affine, Moments, Pairs, Stitch, map_quality

Method = Literal["ridge", "joint", "procrustes"]

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)  # candidates on held-out moments, as shares of the mean variance of a dimension
RIDGE = 1e-6  # default without held-out moments: above the rounding of products in float32
MEMORY = 8  # previous rounds used by the acceleration of the joint fit


class Fit(NamedTuple):
    """A stitch and its optimization."""

    stitch: Stitch
    ridge: tuple[float, float]  # of A and B: share of a dimension's mean variance added to each; 0 for procrustes
    losses: np.ndarray  # float64 [rounds + 1]: joint loss with the ridge in it, at the start and after each round
    converged: bool  # whether the gradient fell below the tolerance; True for methods in closed form, without losses


def fit(
    moments: Moments,
    method: Method = "ridge",
    alpha: float = 1.0,
    ridge: float | None = None,
    held_out: Moments | None = None,
) -> Fit:
    """Fit up: A -> B and down: B -> A.

    method: ridge, each map by least squares on its own; joint, both by the joint loss with `alpha` on round trips,
    minimized exactly from the ridge fit; procrustes, up with orthonormal rows times one factor (Schönemann 1966), and
    down its pseudoinverse. ridge: added to each covariance as a share of its mean diagonal; None chooses among `RIDGES`
    by the error of each least-squares map on `held_out`, or takes `RIDGE` without. Raises ValueError for settings out
    of range, constant activations, procrustes to a narrower model, and covariances singular in spite of the ridge.
    """
    if method not in ("ridge", "joint", "procrustes"):
        raise ValueError(f"method={method!r} is not known; choose one of ridge, joint, procrustes")
    if alpha < 0 or (ridge is not None and ridge < 0):
        raise ValueError(f"alpha={alpha} and ridge={ridge} must not be negative; give 0 or more")
    for name, square in (("A", moments.aa), ("B", moments.bb)):
        if not np.trace(square) > 0:
            raise ValueError(f"activations of {name} are constant: nothing to fit; check the hook point")
    ridges, losses, converged, (d_a, d_b) = (0.0, 0.0), np.zeros(0), True, moments.ab.shape
    if method == "procrustes":
        if d_a > d_b:
            raise ValueError(f"A is {d_a} wide and B {d_b}; procrustes maps into a wider space: swap the models")
        left, values, right = np.linalg.svd(moments.ab, full_matrices=False)
        turn, factor = left @ right, float(values.sum() / np.trace(moments.aa))
        up, down = factor * turn, turn.T / factor
    else:
        up, ridge_a = _ridge(moments, ridge, held_out)
        down, ridge_b = _ridge(moments.swapped(), ridge, None if held_out is None else held_out.swapped())
        ridges = ridge_a, ridge_b
    if method == "joint":
        aa, bb = (
            square + share * np.trace(square) / len(square) * np.eye(len(square))
            for square, share in zip((moments.aa, moments.bb), ridges, strict=True)
        )
        up, down, losses, converged = minimize_joint(moments._replace(aa=aa, bb=bb), up, down, alpha)
    return Fit(Stitch(_affine(moments, up), _affine(moments.swapped(), down)), ridges, losses, converged)


def _ridge(moments: Moments, ridge: float | None, held_out: Moments | None) -> tuple[np.ndarray, float]:
    """Centered weights [d_a, d_b] and the ridge chosen."""
    values, vectors = np.linalg.eigh(moments.aa)
    values, turned = np.maximum(values, 0), vectors.T @ moments.ab

    def weights(share: float) -> np.ndarray:
        raised = values + share * values.mean()
        # Without a ridge, eigenvalues within rounding of zero are left out: the least-norm solution.
        safe = raised > len(values) * np.finfo(float).eps * values[-1]
        return vectors @ (turned * np.where(safe, 1 / np.where(safe, raised, 1), 0)[:, None])

    if ridge is None and held_out is not None:
        ridge = min(RIDGES, key=lambda share: map_quality(_affine(moments, weights(share)), held_out).mse)
    ridge = RIDGE if ridge is None else ridge
    return weights(ridge), ridge


def _affine(moments: Moments, weight: np.ndarray) -> Affine:
    """The map of a centered weight that sends the mean of A to that of B."""
    return Affine.of(weight, moments.mean_b - moments.mean_a @ weight)


def minimize_joint(
    moments: Moments, up: np.ndarray, down: np.ndarray, alpha: float, tolerance: float = 1e-8, rounds: int = 500
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Minimize the joint loss with the best biases by exact steps in one map and then the other, accelerated.

    In coordinates in which inputs are white each half is a Sylvester equation with symmetric coefficients, solved by
    their eigenvectors. Rounds are extrapolated from the last few (Anderson acceleration: Walker & Ni 2011, SIAM J.
    Numer. Anal. 49), and an extrapolation worse than the plain round is dropped, so that the loss never rises beyond
    rounding. The loss is not convex in both maps together: the end is a stationary point below the start.

    up [d_a, d_b], down [d_b, d_a]: centered weights to start from. tolerance: on the norm of the gradient in white
    coordinates, relative to that at zero maps. Returns up, down, the losses at the start and after each round, and
    whether the tolerance was met. Raises ValueError when a covariance is not positive definite.
    """
    problem, other = _White(moments, alpha), _White(moments.swapped(), alpha)
    up, down = problem.root_a.T @ up, problem.root_b.T @ down
    scale = problem.gradient_norm(np.zeros_like(up), np.zeros_like(down)) or 1.0
    gradient = problem.gradient_norm(up, down) / scale
    losses = [problem.loss(up, down)]
    up = problem.best_up(down)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    while gradient > tolerance and len(losses) <= rounds:
        plain = other.best_up(up)
        loss = problem.loss(up, plain)
        trail = [*trail[-MEMORY:], (down, plain)]
        # The combination of the last rounds' ends with the least step from start to end.
        steps = np.stack([(end - start).ravel() for start, end in trail])
        ends = np.stack([end.ravel() for _, end in trail])
        mix = np.linalg.lstsq(np.diff(steps, axis=0).T, steps[-1], rcond=1e-10)[0]
        far = (ends[-1] - mix @ np.diff(ends, axis=0)).reshape(plain.shape)
        far_up = problem.best_up(far)
        far_loss = problem.loss(far_up, far)
        if far_loss < loss:
            up, down, loss = far_up, far, far_loss
        else:
            up, down, trail = problem.best_up(plain), plain, trail[-1:]
            loss = problem.loss(up, down)
        losses.append(loss)
        gradient = problem.gradient_norm(up, down) / scale
    up, down = problem.inverse_a.T @ up, problem.inverse_b.T @ down
    return up, down, np.array(losses), bool(gradient <= tolerance)


def joint_flops(rounds: int, d_a: int, d_b: int) -> float:
    """Approximate FLOPs of `minimize_joint`: products, and 9 n³ per eigendecomposition (Golub & Van Loan, 8.3)."""
    products = d_a * d_b * (d_a + d_b)
    return rounds * (2 * (9.0 * (d_a**3 + d_b**3) + 10 * products) + 18 * products)


class _White:
    """The problem in white coordinates: up = root_a⁻ᵀ X and down = root_b⁻ᵀ Y, where aa = root_a root_aᵀ."""

    def __init__(self, moments: Moments, alpha: float) -> None:
        try:
            roots = cholesky(moments.aa, lower=True), cholesky(moments.bb, lower=True)
        except np.linalg.LinAlgError:
            raise ValueError("a covariance is not positive definite; raise ridge, or take more tokens") from None
        self.root_a, self.root_b = roots
        self.inverse_a, self.inverse_b = (solve_triangular(root, np.eye(len(root)), lower=True) for root in roots)
        self.target, self.target_back = self.inverse_a @ moments.ab, self.inverse_b @ moments.ab.T
        explained_a, explained_b = np.sum(self.target_back**2), np.sum(self.target**2)
        d_a, d_b = moments.ab.shape
        self.rest = float((np.trace(moments.aa) - explained_a) / d_a + (np.trace(moments.bb) - explained_b) / d_b)
        self.alpha = alpha

    def loss(self, up: np.ndarray, down: np.ndarray) -> float:
        d_a, d_b = up.shape
        there, back = self._round_trips(up, down)
        of_a = np.sum((down - self.target_back) ** 2) + self.alpha * np.sum(there**2)
        of_b = np.sum((up - self.target) ** 2) + self.alpha * np.sum(back**2)
        return float(self.rest + of_a / d_a + of_b / d_b)

    def gradient_norm(self, up: np.ndarray, down: np.ndarray) -> float:
        d_a, d_b = up.shape
        there, back = self._round_trips(up, down)
        raw_down, raw_up = self.inverse_b.T @ down, self.inverse_a.T @ up
        through = there @ raw_down.T / d_a + (down @ self.inverse_a.T).T @ back / d_b
        through_back = back @ raw_up.T / d_b + (up @ self.inverse_b.T).T @ there / d_a
        of_up = (up - self.target) / d_b + self.alpha * through
        of_down = (down - self.target_back) / d_a + self.alpha * through_back
        return float(np.sqrt(np.sum(of_up**2) + np.sum(of_down**2)))

    def best_up(self, down: np.ndarray) -> np.ndarray:
        """The X that minimizes the loss for a Y: N X + X M = R, with N and M symmetric."""
        d_b, d_a = down.shape
        raw, there = self.inverse_b.T @ down, down @ self.inverse_a.T
        left, turn_left = np.linalg.eigh(there.T @ there)
        right, turn_right = np.linalg.eigh(raw @ raw.T)
        wanted = self.target / d_b + self.alpha * (self.root_a.T @ raw.T / d_a + there.T @ self.root_b.T / d_b)
        turned = turn_left.T @ wanted @ turn_right
        turned /= 1 / d_b + self.alpha * (left[:, None] / d_b + right / d_a)
        return turn_left @ turned @ turn_right.T

    def _round_trips(self, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """root_aᵀ (up down - 1) and root_bᵀ (down up - 1) of the raw maps."""
        return up @ (self.inverse_b.T @ down) - self.root_a.T, down @ (self.inverse_a.T @ up) - self.root_b.T


def fit_by_adam(
    batches: Callable[[int], tuple[Tensor, Tensor]],
    count: int,
    epochs: int = 2,
    alpha: float = 1.0,
    lr: float = 1e-4,
    seed: int = 0,
) -> tuple[Stitch, np.ndarray, int]:
    """Train both maps on the joint loss: Adam, gradient norm clipped to 1, cosine learning rate, several epochs.

    The recipe of Chen et al. 2025 (appendix A); weights start as those of `nn.Linear`, biases at 0. batches: batches(i)
    for 0 <= i < count, aligned float32 rows a [n, d_a] and b [n, d_b]; called anew each epoch. Returns the maps, the
    loss of each batch before its step, and the rows seen. Raises ValueError when a loss is not finite.
    """
    a, b = batches(0)
    generator, parameters = torch.Generator().manual_seed(seed), []
    for d_in, d_out in ((a.shape[1], b.shape[1]), (b.shape[1], a.shape[1])):
        weight = torch.empty(d_in, d_out).uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator)
        parameters += [weight.to(a.device).requires_grad_(), torch.zeros(d_out, device=a.device, requires_grad=True)]
    stitch = Stitch(Affine(*parameters[:2]), Affine(*parameters[2:]))
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count * epochs)
    losses, tokens = [], 0
    for step in range(count * epochs):
        a, b = batches(step % count)
        loss = batch_loss(stitch, a, b, alpha)
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            raise ValueError(f"the loss of step {step + 1} is {losses[-1]}; lower lr={lr} or look for huge activations")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        tokens += len(a)
    return Stitch(*(Affine(*(part.detach() for part in each)) for each in stitch)), np.array(losses), tokens


def block_batches(
    pairs: Callable[[np.ndarray], Pairs], blocks: np.ndarray, each: int, keep: bool
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches for `fit_by_adam`: number -> activations of `each` token blocks, kept in memory or read anew.

    pairs: gives chunks of aligned activations of token blocks [n, context], one point per model.
    """

    def batch(number: int) -> tuple[Tensor, Tensor]:
        chunks = list(pairs(blocks[number * each : (number + 1) * each]))
        return torch.cat([of_a for (of_a,), _ in chunks]), torch.cat([of_b for _, (of_b,) in chunks])

    return cache(batch) if keep else batch


def batch_loss(stitch: Stitch, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """The joint loss of a batch a [n, d_a], b [n, d_b], mean over rows and elements (Chen et al. 2025, eq. 3)."""
    mse, above, below = nn.functional.mse_loss, stitch.up(a), stitch.down(b)
    trips = mse(stitch.down(above), a) + mse(stitch.up(below), b)
    return mse(above, b) + mse(below, a) + alpha * trips


def adam_flops(tokens: int, d_a: int, d_b: int) -> float:
    """FLOPs of the products of `fit_by_adam`, ten per row: 4 forward, 4 for weights, 2 for the round trips' inputs."""
    return 20.0 * tokens * d_a * d_b
