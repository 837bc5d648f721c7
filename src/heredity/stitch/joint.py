"""The joint loss of both maps, from moments alone: its value, its gradient, and its minimum.

L = MSE(up a, b) + MSE(down b, a) + α MSE(down up a, a) + α MSE(up down b, b), means over tokens and elements (Chen et
al. 2025, arXiv 2506.06609, eq. 3). Every term is quadratic in the activations, so tokens enter through means and
covariances only. The best biases send mean to mean; what is left is in the centered weights U [d_a, d_b] and
D [d_b, d_a]. For a fixed D it is a strictly convex quadratic function of U, and the reverse.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from heredity.stitch.moments import Moments

MEMORY = 8
"""Rounds that the acceleration looks back on."""


class Joint(NamedTuple):
    """Where the minimization ended, and how it went."""

    up: np.ndarray
    """float64 [d_a, d_b]: centered weights A -> B."""
    down: np.ndarray
    """float64 [d_b, d_a]: B -> A."""
    losses: np.ndarray
    """float64 [rounds + 1]: the loss at the start and after each round; it never rises."""
    gradient: float
    """Norm of the gradient at the end, relative to that at zero maps, in coordinates in which inputs are white."""
    converged: bool
    """Whether the gradient fell below the tolerance."""


def joint_loss(moments: Moments, up: np.ndarray, down: np.ndarray, alpha: float) -> float:
    """L of centered weights up [d_a, d_b] and down [d_b, d_a] with their best biases."""
    aa, ab, bb = moments.aa, moments.ab, moments.bb
    d_a, d_b = ab.shape
    there, back = up @ down - np.eye(d_a), down @ up - np.eye(d_b)
    of_b = np.trace(bb) - 2 * np.sum(up * ab) + np.sum(up * (aa @ up)) + alpha * np.sum(back * (bb @ back))
    of_a = np.trace(aa) - 2 * np.sum(down * ab.T) + np.sum(down * (bb @ down)) + alpha * np.sum(there * (aa @ there))
    return float(of_a / d_a + of_b / d_b)


def joint_gradient(moments: Moments, up: np.ndarray, down: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """dL/d up [d_a, d_b] and dL/d down [d_b, d_a] of `joint_loss`."""
    aa, ab, bb = moments.aa, moments.ab, moments.bb
    d_a, d_b = ab.shape
    there, back = aa @ (up @ down - np.eye(d_a)) / d_a, bb @ (down @ up - np.eye(d_b)) / d_b
    of_up = (aa @ up - ab) / d_b + alpha * (there @ down.T + down.T @ back)
    of_down = (bb @ down - ab.T) / d_a + alpha * (up.T @ there + back @ up.T)
    return 2 * of_up, 2 * of_down


def minimize_joint(
    moments: Moments,
    up: np.ndarray,
    down: np.ndarray,
    alpha: float,
    tolerance: float = 1e-8,
    rounds: int = 500,
) -> Joint:
    """Minimize `joint_loss` from a start, by exact minimization over one map and then the other, accelerated.

    In coordinates in which inputs are white each half is a Sylvester equation with symmetric coefficients, solved by
    their eigenvectors. Rounds are extrapolated from the last few (Anderson acceleration: Walker & Ni 2011, SIAM J.
    Numer. Anal. 49), and an extrapolation that is worse than the plain round is dropped, so that the loss never rises
    but by rounding. The loss is not convex in both maps together: the end is a stationary point below the start.

    up [d_a, d_b], down [d_b, d_a]: centered weights to start from; only `down` matters beyond the first loss.
    tolerance: on `Joint.gradient`. rounds: at most. Raises ValueError when a covariance is not positive definite.
    """
    problem = _White.of(moments, alpha)
    white_up, white_down = problem.root_a.T @ up, problem.root_b.T @ down
    scale = problem.gradient_norm(np.zeros_like(white_up), np.zeros_like(white_down)) or 1.0
    gradient = problem.gradient_norm(white_up, white_down) / scale
    losses = [problem.loss(white_up, white_down)]
    white_up = problem.best_up(white_down)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    while gradient > tolerance and len(losses) <= rounds:
        plain = problem.best_down(white_up)
        loss = problem.loss(white_up, plain)
        trail = [*trail[-MEMORY:], (white_down, plain)]
        far = _extrapolated(trail)
        far_up = problem.best_up(far)
        far_loss = problem.loss(far_up, far)
        if far_loss < loss:
            white_up, white_down, loss = far_up, far, far_loss
        else:
            white_up, white_down, trail = problem.best_up(plain), plain, trail[-1:]
            loss = problem.loss(white_up, white_down)
        losses.append(loss)
        gradient = problem.gradient_norm(white_up, white_down) / scale
    raw_up, raw_down = problem.inverse_a.T @ white_up, problem.inverse_b.T @ white_down
    return Joint(raw_up, raw_down, np.array(losses), float(gradient), bool(gradient <= tolerance))


def joint_flops(rounds: int, d_a: int, d_b: int) -> float:
    """About how many floating-point operations `minimize_joint` takes.

    Eigenvectors of a symmetric matrix are counted as 9 n³ (Golub & Van Loan, Matrix Computations, section 8.3), the
    three evaluations of the loss and the one of the gradient by their products.
    """
    products = d_a * d_b * (d_a + d_b)
    return rounds * (2 * (9.0 * (d_a**3 + d_b**3) + 10 * products) + 18 * products)


class _White(NamedTuple):
    """The problem in white coordinates: up = root_a⁻ᵀ X and down = root_b⁻ᵀ Y, where aa = root_a root_aᵀ."""

    root_a: np.ndarray
    root_b: np.ndarray
    inverse_a: np.ndarray
    inverse_b: np.ndarray
    target: np.ndarray
    """root_a⁻¹ ab."""
    target_back: np.ndarray
    """root_b⁻¹ abᵀ."""
    rest: float
    """What no map explains."""
    alpha: float

    @staticmethod
    def of(moments: Moments, alpha: float) -> _White:
        try:
            root_a, root_b = cholesky(moments.aa, lower=True), cholesky(moments.bb, lower=True)
        except np.linalg.LinAlgError:
            raise ValueError("a covariance is not positive definite; raise ridge, or take more tokens") from None
        inverse_a, inverse_b = (solve_triangular(root, np.eye(len(root)), lower=True) for root in (root_a, root_b))
        target, back = inverse_a @ moments.ab, inverse_b @ moments.ab.T
        d_a, d_b = moments.ab.shape
        rest = (np.trace(moments.aa) - np.sum(back**2)) / d_a + (np.trace(moments.bb) - np.sum(target**2)) / d_b
        return _White(root_a, root_b, inverse_a, inverse_b, target, back, float(rest), alpha)

    def swapped(self) -> _White:
        return _White(
            self.root_b, self.root_a, self.inverse_b, self.inverse_a, self.target_back, self.target, self.rest,
            self.alpha,
        )  # fmt: skip

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
        of_up = (up - self.target) / d_b + self.alpha * (
            there @ raw_down.T / d_a + (down @ self.inverse_a.T).T @ back / d_b
        )
        of_down = (down - self.target_back) / d_a + self.alpha * (
            back @ raw_up.T / d_b + (up @ self.inverse_b.T).T @ there / d_a
        )
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

    def best_down(self, up: np.ndarray) -> np.ndarray:
        return self.swapped().best_up(up)

    def _round_trips(self, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """root_aᵀ (up down - 1) and root_bᵀ (down up - 1) of the raw maps."""
        return up @ (self.inverse_b.T @ down) - self.root_a.T, down @ (self.inverse_a.T @ up) - self.root_b.T


def _extrapolated(trail: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The combination of the last rounds' ends whose step from start to end is least."""
    steps = np.stack([(end - start).ravel() for start, end in trail])
    ends = np.stack([end.ravel() for _, end in trail])
    mix = np.linalg.lstsq(np.diff(steps, axis=0).T, steps[-1], rcond=1e-10)[0]
    return (ends[-1] - mix @ np.diff(ends, axis=0)).reshape(trail[-1][1].shape)
