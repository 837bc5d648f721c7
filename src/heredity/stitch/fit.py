"""Fits of a stitch: in closed form or by quasi-Newton steps from moments, and gradient descent over tokens.

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
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor, nn

from heredity.stitch.affine import Affine, Moments, Pairs, Stitch, map_quality

Method = Literal["ridge", "joint", "procrustes"]

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)  # candidates on held-out moments, as shares of the mean variance of a dimension
RIDGE = 1e-6  # default without held-out moments: above the rounding of products in float32
RENEWED = 30  # rounds of the joint fit between two looks at its curvature
_PAIRS = 20  # previous rounds that L-BFGS keeps
_EVALUATIONS = 1.1  # of the loss a round


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
    """Minimize the joint loss with the best biases by L-BFGS, in coordinates in which inputs are white and each map's
    own curvature is that of a sphere.

    While the other map stands still the loss is quadratic in a map, its curvature a Kronecker sum of two matrices,
    whose eigenvectors are found again after every `RENEWED` rounds; a round costs products of matrices alone. The loss
    is not convex in both maps together: the end is a stationary point below the start.

    up [d_a, d_b], down [d_b, d_a]: centered weights to start from. tolerance: the fit ends where a step to the minimum
    of the curvature would lower the loss by less than this share of it. Returns up, down, the losses at the start and
    after each round, and whether the tolerance was met. Raises ValueError when a covariance is not positive definite.
    """
    problem = _White(moments, alpha)
    ends = problem.root_a.T @ up, problem.root_b.T @ down
    losses, converged, moved = [problem.loss_and_slopes(*ends)[0]], False, True
    while moved and not converged and len(losses) <= rounds:
        descent = _Descent(problem, ends, tolerance, losses, min(RENEWED, rounds + 1 - len(losses)))
        ends, converged, moved = descent.run()
    return problem.inverse_a.T @ ends[0], problem.inverse_b.T @ ends[1], np.array(losses), converged


def joint_flops(rounds: int, d_a: int, d_b: int) -> float:
    """Approximate FLOPs of `minimize_joint`: products, and 9 n³ per eigendecomposition (Golub & Van Loan, 8.3)."""
    products = d_a * d_b * (d_a + d_b)
    bases = -(-rounds // RENEWED) * (2 * 9.0 * (d_a**3 + d_b**3) + 8 * products)
    return bases + 2 * rounds * _EVALUATIONS * 14 * products


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

    def loss_and_slopes(self, up: np.ndarray, down: np.ndarray) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        """The loss at X and Y, and half its slopes there."""
        d_a, d_b = up.shape
        raw_up, raw_down = self.inverse_a.T @ up, self.inverse_b.T @ down
        there, back = up @ raw_down - self.root_a.T, down @ raw_up - self.root_b.T  # of the round trips, less 1
        of_a = np.sum((down - self.target_back) ** 2) + self.alpha * np.sum(there**2)
        of_b = np.sum((up - self.target) ** 2) + self.alpha * np.sum(back**2)
        through = there @ raw_down.T / d_a + self.inverse_a @ (down.T @ back) / d_b
        through_back = back @ raw_up.T / d_b + self.inverse_b @ (up.T @ there) / d_a
        slopes = (
            (up - self.target) / d_b + self.alpha * through,
            (down - self.target_back) / d_a + self.alpha * through_back,
        )
        return float(self.rest + of_a / d_a + of_b / d_b), slopes

    def curvatures(self, up: np.ndarray, down: np.ndarray) -> tuple[_Curvature, _Curvature]:
        """Of X while Y stands still, and of Y while X does."""
        d_a, d_b = up.shape
        raw_up, raw_down = self.inverse_a.T @ up, self.inverse_b.T @ down
        of_up = _curvature(
            self.inverse_a @ (down.T @ down) @ self.inverse_a.T / d_b, raw_down @ raw_down.T / d_a, self.alpha, d_b
        )
        of_down = _curvature(
            self.inverse_b @ (up.T @ up) @ self.inverse_b.T / d_a, raw_up @ raw_up.T / d_b, self.alpha, d_a
        )
        return of_up, of_down


class _Curvature(NamedTuple):
    """Z ↦ N Z + Z M + Z / d for symmetric N and M, by its eigenvectors."""

    left: np.ndarray
    right: np.ndarray
    root: np.ndarray  # square roots of the eigenvalues, of the shape of Z

    def out(self, z: np.ndarray) -> np.ndarray:
        """From coordinates in which it is the identity."""
        return self.left @ (z.reshape(self.root.shape) / self.root) @ self.right.T

    def into(self, slope: np.ndarray) -> np.ndarray:
        """A slope in these coordinates."""
        return (self.left.T @ slope @ self.right / self.root).ravel()


def _curvature(left: np.ndarray, right: np.ndarray, alpha: float, d: int) -> _Curvature:
    (values_left, turn_left), (values_right, turn_right) = np.linalg.eigh(left), np.linalg.eigh(right)
    values = 1 / d + alpha * (np.maximum(values_left, 0)[:, None] + np.maximum(values_right, 0))
    return _Curvature(turn_left, turn_right, np.sqrt(values))


class _Descent:
    """Rounds of L-BFGS from X and Y on, in the coordinates of their curvatures; losses are added as they come."""

    def __init__(
        self, problem: _White, ends: tuple[np.ndarray, np.ndarray], tolerance: float, losses: list[float], rounds: int
    ) -> None:
        self.problem, self.ends, self.tolerance, self.losses, self.rounds = problem, ends, tolerance, losses, rounds
        self.ways, self.met, self.slope = problem.curvatures(*ends), False, np.zeros(0)

    def run(self) -> tuple[tuple[np.ndarray, np.ndarray], bool, bool]:
        """The maps at the end, whether the tolerance was met, and whether the loss fell at all."""
        count = len(self.losses)
        how = {"maxiter": self.rounds, "maxcor": _PAIRS, "ftol": 0.0, "gtol": 0.0, "maxfun": 20 * self.rounds}
        start = np.zeros(sum(end.size for end in self.ends))
        found = minimize(self.value, start, jac=True, method="L-BFGS-B", callback=self.watch, options=how)
        return self.at(found.x), self.met, len(self.losses) > count

    def at(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = self.ends[0].size
        return self.ends[0] + self.ways[0].out(flat[:cut]), self.ends[1] + self.ways[1].out(flat[cut:])

    def value(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slopes = self.problem.loss_and_slopes(*self.at(flat))
        self.slope = np.concatenate([way.into(slope) for way, slope in zip(self.ways, slopes, strict=True)])
        return loss, 2 * self.slope

    def watch(self, intermediate_result: OptimizeResult) -> None:
        """After each round, which ends at the point that was tried last."""
        self.losses.append(float(intermediate_result.fun))
        self.met = float(self.slope @ self.slope) <= self.tolerance * self.losses[-1]
        if self.met:
            raise StopIteration


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
