"""Fits of a stitch: in closed form or by quasi-Newton steps from moments, and gradient descent over tokens.

The joint loss is L = MSE(up a, b) + MSE(down b, a) + α MSE(down up a, a) + α MSE(up down b, b), means over tokens and
elements (Chen et al. 2025, arXiv 2506.06609, eq. 3). Tokens enter through means and covariances only. The best biases
send mean to mean, which leaves centered weights, and L is a strictly convex quadratic function of either for a fixed
other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor, nn

from heredity.errors import one_of
from heredity.stitch.affine import Affine, Moments, Pairs, Stitch, map_quality

Method = Literal["ridge", "joint", "procrustes"]
Units = Literal["auto", "raw", "spread"]

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)  # candidates on held-out moments, as shares of the mean variance of a dimension
RIDGE = 1e-6  # default without held-out moments: above the rounding of products in float32
APART = 10.0  # times by which the models' mean variances may differ before the joint loss is taken in their units
ROUNDS, MOST, FEWEST = 500, 4e13, 30  # of the joint fit: rounds, FLOPs, and rounds below which ridge stands in for it
RENEWED = 15  # rounds of the joint fit between two looks at its curvature
_PAIRS, _KEPT = (5, 20), 1 << 30  # previous rounds that L-BFGS keeps, least and most; and bytes of them
_SINGULAR = 1e-12  # least over largest eigenvalue of a covariance that rounding has left singular
_EVALUATIONS = 1.1  # of the loss a round


class Fit(NamedTuple):
    """A stitch and its optimization."""

    stitch: Stitch
    ridge: tuple[float, float]  # of A and B: share of a dimension's mean variance added to each; 0 for procrustes
    losses: np.ndarray  # float64 [rounds + 1]: joint loss with the ridge in it, at the start and after each round
    units: tuple[float, float]  # of squared errors in A and in B, in the joint loss
    converged: bool  # whether the gradient fell below the tolerance; True for methods in closed form, without losses


def fit(
    moments: Moments,
    method: Method = "ridge",
    alpha: float = 1.0,
    ridge: float | None = None,
    held_out: Moments | None = None,
    units: Units = "auto",
) -> Fit:
    """Fit up: A -> B and down: B -> A.

    method: ridge, each map by least squares on its own; joint, both by the joint loss with `alpha` on round trips,
    minimized exactly from the ridge fit; procrustes, up with orthonormal rows times one factor (Schönemann 1966), and
    down its pseudoinverse. ridge: added to each covariance as a share of its mean diagonal; None chooses among `RIDGES`
    by the error of each least-squares map on `held_out`, or takes `RIDGE` without. units: of squared errors in the
    joint loss; raw as published, spread in those of each model's own mean variance; auto takes spread where these
    differ more than `APART` times, since the errors of one model would else be all that counts. Raises ValueError for
    settings out of range, constant activations, procrustes to a narrower model, and covariances singular in spite of
    the ridge.
    """
    one_of("method", method, get_args(Method))
    if alpha < 0 or (ridge is not None and ridge < 0):
        raise ValueError(f"alpha={alpha} and ridge={ridge} must not be negative; give 0 or more")
    for name, square in (("A", moments.aa), ("B", moments.bb)):
        if not np.trace(square) > 0:
            raise ValueError(f"activations of {name} are constant: nothing to fit; check the hook point")
    ridges, losses, converged, (d_a, d_b) = (0.0, 0.0), np.zeros(0), True, moments.ab.shape
    sizes = units_of(moments, units)
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
        aa, bb = (_raised(*each, ridge is None) for each in zip((moments.aa, moments.bb), ridges, strict=True))
        up, down, losses, converged = minimize_joint(
            moments._replace(aa=aa, bb=bb), up, down, alpha, rounds=joint_rounds(d_a, d_b), units=sizes
        )
    return Fit(Stitch(_affine(moments, up), _affine(moments.swapped(), down)), ridges, losses, sizes, converged)


def units_of(moments: Moments, units: Units = "auto") -> tuple[float, float]:
    """Units of squared errors in A and in B (see `fit`)."""
    one_of("units", units, get_args(Units))
    spreads = [float(np.trace(square)) / len(square) for square in (moments.aa, moments.bb)]
    raw = units == "raw" or (units == "auto" and max(spreads) <= APART * min(spreads))
    return (1.0, 1.0) if raw else (spreads[0], spreads[1])


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


def _raised(square: np.ndarray, share: float, chosen: bool) -> np.ndarray:
    """A covariance with its ridge; `RIDGE` at least, if it was chosen, where rounding has left it singular."""
    unit, values = np.trace(square) / len(square) * np.eye(len(square)), np.linalg.eigvalsh(square)
    if chosen and values[0] + share * values.mean() <= _SINGULAR * values[-1]:
        share = max(share, RIDGE, -2 * values[0] / values.mean())
    return square + share * unit


def _affine(moments: Moments, weight: np.ndarray) -> Affine:
    """The map of a centered weight that sends the mean of A to that of B."""
    return Affine.of(weight, moments.mean_b - moments.mean_a @ weight)


def minimize_joint(
    moments: Moments,
    up: np.ndarray,
    down: np.ndarray,
    alpha: float,
    tolerance: float = 1e-6,
    rounds: int = ROUNDS,
    units: tuple[float, float] = (1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Minimize the joint loss with the best biases by L-BFGS, in coordinates in which inputs are white and the loss
    curves alike in all directions, as far as round trips are linear in the maps (Gauss-Newton).

    Those coordinates are found again after every `RENEWED` rounds; between, a round costs products of matrices alone.
    The loss is not convex in both maps together: the end is a stationary point below the start.

    up [d_a, d_b], down [d_b, d_a]: centered weights to start from. tolerance: the fit ends where a step to the minimum
    of the curvature would lower the loss by less than this share of it; the loss then lies within about 1e-4 of where
    it would end. units: of squared errors in A and in B. Returns up, down, the losses at the start and after each
    round, and whether the tolerance was met. Raises ValueError when a covariance is not positive definite.

    Speed: a round is 10 d_a d_b (d_a + d_b) FLOPs in float64. Between real models of 576 and 640 dimensions 47 rounds
    met the tolerance after 12 s of one core; at the 28 GFLOP/s of float64 products there, its FLOPs (`joint_flops`)
    take 10 s. Ridge takes 0.3 s, with a held-out R² of 0.59 and 0.58 for 0.55 and 0.54, but 0.73 and 0.72 for 0.99 and
    0.99 there and back, so that it is no substitute where SAEs are carried.
    """
    problem = _Problem.of(moments, alpha, units)
    ends = problem.roots[0].T @ up, problem.roots[1].T @ down
    losses, converged, moved = [problem.loss_and_slopes(*ends)[0]], False, True
    while moved and not converged and len(losses) <= rounds:
        problem, ends = problem.turned(*ends)
        descent = _Descent(problem, ends, tolerance, losses, min(RENEWED, rounds + 1 - len(losses)))
        ends, converged, moved = descent.run()
    return *problem.raw(*ends), np.array(losses), converged


def joint_flops(rounds: int, d_a: int, d_b: int) -> float:
    """Approximate FLOPs of `minimize_joint`: products, and 22 n³ per decomposition (Golub & Van Loan, 8.6)."""
    products, turned = d_a * d_b * (d_a + d_b), d_a**3 + d_b**3
    turns = -(-rounds // RENEWED) * (22.0 * (turned + products) / 2 + 8 * turned + 10 * products)
    return turns + 10 * rounds * _EVALUATIONS * products


def joint_rounds(d_a: int, d_b: int) -> int:
    """Rounds that the joint fit may take: `ROUNDS`, or what `MOST` FLOPs are good for. Below `FEWEST`, which is at
    widths of about 4,000, it would end far from the minimum, and a study takes ridge in its place."""
    return min(ROUNDS, int(MOST / (joint_flops(RENEWED, d_a, d_b) / RENEWED)))


def joint_gib(d_a: int, d_b: int) -> float:
    """Memory of `minimize_joint`: of L-BFGS, and about thirty matrices."""
    return 8 * (2 * d_a * d_b * (2 * _pairs(2 * d_a * d_b) + 12) + 15 * (d_a**2 + d_b**2)) / 2**30


def _pairs(size: int) -> int:
    """Previous rounds that L-BFGS keeps, two vectors each."""
    return int(np.clip(_KEPT // (16 * size), _PAIRS[0], _PAIRS[1]))


class _Problem(NamedTuple):
    """The problem in white coordinates: up = root_a⁻ᵀ X and down = root_b⁻ᵀ Y, where aa = root_a root_aᵀ."""

    roots: tuple[np.ndarray, np.ndarray]
    inverses: tuple[np.ndarray, np.ndarray]
    targets: tuple[np.ndarray, np.ndarray]  # of X and of Y: least squares
    bases: tuple[np.ndarray, np.ndarray]  # of the activations of A and of B: orthonormal columns
    sizes: tuple[float, float]  # d_a and d_b in the units of squared errors
    rest: float
    alpha: float

    @staticmethod
    def of(moments: Moments, alpha: float, units: tuple[float, float]) -> _Problem:
        """From the moments, in their own bases."""
        squares, (d_a, d_b) = (moments.aa, moments.bb), moments.ab.shape
        sizes = d_a * units[0], d_b * units[1]
        try:
            roots = cholesky(moments.aa, lower=True), cholesky(moments.bb, lower=True)
        except np.linalg.LinAlgError:
            raise ValueError("a covariance is not positive definite; raise ridge, or take more tokens") from None
        of_a, of_b = (solve_triangular(root, np.eye(len(root)), lower=True) for root in roots)
        targets = of_a @ moments.ab, of_b @ moments.ab.T
        spreads = [np.trace(square) - np.sum(back**2) for square, back in zip(squares, targets[::-1], strict=True)]
        rest = float(sum(spread / size for spread, size in zip(spreads, sizes, strict=True)))
        return _Problem(roots, (of_a, of_b), targets, (np.eye(d_a), np.eye(d_b)), sizes, rest, alpha)

    def raw(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The maps of X and Y."""
        (of_a, of_b), (a, b) = self.inverses, self.bases
        return a @ (of_a.T @ x) @ b.T, b @ (of_b.T @ y) @ a.T

    def loss_and_slopes(self, x: np.ndarray, y: np.ndarray) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        """The loss at X and Y, and half its slopes there."""
        (d_a, d_b), (of_a, of_b), (wanted_x, wanted_y) = self.sizes, self.inverses, self.targets
        up, down = of_a.T @ x, of_b.T @ y
        there, back = x @ down - self.roots[0].T, y @ up - self.roots[1].T  # of the round trips, less 1
        loss_a = np.sum((y - wanted_y) ** 2) + self.alpha * np.sum(there**2)
        loss_b = np.sum((x - wanted_x) ** 2) + self.alpha * np.sum(back**2)
        through = there @ down.T / d_a + of_a @ (y.T @ back) / d_b
        through_back = back @ up.T / d_b + of_b @ (x.T @ there) / d_a
        slopes = (x - wanted_x) / d_b + self.alpha * through, (y - wanted_y) / d_a + self.alpha * through_back
        return float(self.rest + loss_a / d_a + loss_b / d_b), slopes

    def turned(self, x: np.ndarray, y: np.ndarray) -> tuple[_Problem, tuple[np.ndarray, np.ndarray]]:
        """The problem and its X and Y in bases that couple each entry of X with one of Y alone.

        The round trip of a changes by dX D + P dY, with P = X root_b⁻ᵀ and D = root_b⁻ᵀ Y. In the singular bases of P,
        for the white a and b, and of D, for b and a as they are, that is a sum entry by entry. The round trip of b
        changes by dY U + Q dX; as far as Q and U invert P and D, the same bases part it too.
        """
        (of_a, of_b), (root_a, root_b) = self.inverses, self.roots
        white_a, _, white_b = np.linalg.svd(x @ of_b.T)
        plain_b, _, plain_a = np.linalg.svd(of_b.T @ y)
        white_b, plain_a = white_b.T, plain_a.T
        made = _Problem(
            (plain_a.T @ root_a @ white_a, plain_b.T @ root_b @ white_b),
            (white_a.T @ of_a @ plain_a, white_b.T @ of_b @ plain_b),
            (white_a.T @ self.targets[0] @ plain_b, white_b.T @ self.targets[1] @ plain_a),
            (self.bases[0] @ plain_a, self.bases[1] @ plain_b),
            *self[4:],
        )
        return made, (white_a.T @ x @ plain_b, white_b.T @ y @ plain_a)


class _Curvature(NamedTuple):
    """Of a turned problem at X and Y: a quadratic form that couples entry i, j of dX with entry i, j of dY, as Cholesky
    factors of 2 x 2 matrices."""

    first: np.ndarray  # [d_a, d_b]: entry 1, 1
    across: np.ndarray  # entry 2, 1, of the rows and columns that both have
    second: np.ndarray  # [d_b, d_a]: entry 2, 2

    @staticmethod
    def of(problem: _Problem, x: np.ndarray, y: np.ndarray) -> _Curvature:
        (d_a, d_b), (of_a, of_b), alpha = problem.sizes, problem.inverses, problem.alpha
        p, d, q, u = x @ of_b.T, of_b.T @ y, y @ of_a.T, of_a.T @ x
        first = np.sqrt(1 / d_b + alpha * (np.sum(d**2, 1) / d_a + np.sum(q**2, 0)[:, None] / d_b))
        second = 1 / d_a + alpha * (np.sum(p**2, 0)[:, None] / d_a + np.sum(u**2, 1) / d_b)
        m = min(x.shape)
        coupled = np.outer(np.diag(p), np.diag(d)) / d_a + np.outer(np.diag(q), np.diag(u)) / d_b
        across = alpha * coupled / first[:m, :m]
        second[:m, :m] -= across**2
        return _Curvature(first, across, np.sqrt(second))

    def out(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """dX and dY, from coordinates in which the form is the identity."""
        m, cut = len(self.across), self.first.size
        x, y = flat[:cut].reshape(self.first.shape).copy(), flat[cut:].reshape(self.second.shape) / self.second
        x[:m, :m] -= self.across * y[:m, :m]
        return x / self.first, y

    def into(self, slope_x: np.ndarray, slope_y: np.ndarray) -> np.ndarray:
        """Slopes in these coordinates."""
        m, x, y = len(self.across), slope_x / self.first, slope_y.copy()
        y[:m, :m] -= self.across * x[:m, :m]
        return np.concatenate([x.ravel(), (y / self.second).ravel()])


class _Descent:
    """Rounds of L-BFGS from X and Y on, in the coordinates of their curvature; losses are added as they come."""

    def __init__(
        self, problem: _Problem, ends: tuple[np.ndarray, np.ndarray], tolerance: float, losses: list[float], rounds: int
    ) -> None:
        self.problem, self.ends, self.tolerance, self.losses, self.rounds = problem, ends, tolerance, losses, rounds
        self.way, self.met, self.slope = _Curvature.of(problem, *ends), False, np.zeros(0)

    def run(self) -> tuple[tuple[np.ndarray, np.ndarray], bool, bool]:
        """X and Y at the end, whether the tolerance was met, and whether the loss fell at all."""
        count, start = len(self.losses), np.zeros(2 * self.ends[0].size)
        how = {"maxiter": self.rounds, "maxcor": _pairs(start.size), "ftol": 0.0, "gtol": 0.0}
        how |= {"maxfun": 20 * self.rounds}
        found = minimize(self.value, start, jac=True, method="L-BFGS-B", callback=self.watch, options=how)
        return self.at(found.x), self.met, len(self.losses) > count

    def at(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = self.way.out(flat)
        return self.ends[0] + steps[0], self.ends[1] + steps[1]

    def value(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slopes = self.problem.loss_and_slopes(*self.at(flat))
        self.slope = self.way.into(*slopes)
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
