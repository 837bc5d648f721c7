"""Loss as a power of training compute, L(C) = A C^-beta (Chen et al. 2025, arXiv 2506.06609, appendix D.2, table 4).

A straight line in logarithms, by least squares, without an irreducible loss, as there. L is the fraction of variance
unexplained on held-out vectors, which needs no smoothing, C the FLOPs of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

START = 0.05
"""Share of a training's steps before which its curve is left out: the first steps follow no power."""
LEAST = 4  # points that a line is fitted to


class Scaling(NamedTuple):
    """A fit, with 95 % intervals of its coefficients (low, high)."""

    a: float
    beta: float
    a_interval: tuple[float, float]
    beta_interval: tuple[float, float]
    r2: float  # of log L
    points: int
    costs: tuple[float, float]  # least and largest


def frontier(curves: Sequence[tuple[np.ndarray, np.ndarray]], start: float = START) -> tuple[np.ndarray, np.ndarray]:
    """The points of several trainings than which none has a lower loss at the same cost; costs [n] and losses [n].

    curves: costs, ascending, and losses [points] of each training; of one alone all points are on it. start: points
    below this share of a training's last cost are left out. Between its points a curve is linear in logarithms, and
    after its end it keeps its loss.
    """
    kept = []
    for costs, losses in curves:
        sound = np.isfinite(losses) & (losses > 0) & (costs > 0) & (costs >= start * costs[-1])
        if sound.any():
            kept.append((costs[sound], losses[sound]))
    logs, found = [(np.log(costs), np.log(losses)) for costs, losses in kept], list[tuple[float, float]]()
    for own, (x, y) in enumerate(logs):
        others = [np.interp(x, *curve, left=np.inf) for place, curve in enumerate(logs) if place != own]
        best = np.all([y <= other for other in others], axis=0) if others else np.ones(len(x), bool)
        found += zip(*(values[best] for values in kept[own]), strict=True)
    costs, losses = np.array(sorted(found)).reshape(-1, 2).T
    return costs, losses


def fit_scaling(costs: np.ndarray, losses: np.ndarray, seed: int, draws: int = 2000) -> Scaling | None:
    """Least squares of log L on log C, both above 0, [n]; None for fewer than four points.

    Intervals are percentiles of a bootstrap of the residuals: the scatter about the line, not that between trainings.
    """
    if len(costs) < LEAST:
        return None
    x, y = np.log(costs), np.log(losses)
    center = x.mean()
    x = x - center

    def line(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log A and beta of values [..., n]."""
        slope = y @ x / (x @ x)
        return y.mean(-1) - slope * center, -slope

    log_a, beta = line(y)
    fitted = log_a - beta * (x + center)
    off = (y - fitted) * np.sqrt(len(y) / (len(y) - 2))  # residuals are smaller than errors by two degrees of freedom
    drawn = line(fitted + np.random.default_rng(seed).choice(off, (draws, len(y))))
    (a_low, a_high), (low, high) = (np.quantile(values, (0.025, 0.975)).tolist() for values in drawn)
    spread = float(np.square(y - y.mean()).sum())
    r2 = 1 - float(np.square(y - fitted).sum()) / spread if spread > 0 else float("nan")
    a = float(np.exp(log_a)), (float(np.exp(a_low)), float(np.exp(a_high)))
    return Scaling(a[0], float(beta), a[1], (low, high), r2, len(y), (float(costs.min()), float(costs.max())))
