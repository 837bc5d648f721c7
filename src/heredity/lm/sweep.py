"""Where between two parents is the child equally good at both? Accuracy along t, and the t where the curves cross."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from heredity.lm.merge import MergeError, Method
from heredity.lm.merge_evaluator import Bench, Judged, Place

_REPLICATES = 1000  # bootstrap replicates behind every interval
_CHUNK = 1 << 22  # resampling counts held at a time


class SweepPoint(NamedTuple):
    """Both parents' validation sets at one t."""

    t: float
    """Position between the first (0) and the second parent (1)."""
    accuracy: dict[str, float]
    """Next-token accuracy on each parent's corpora, by the parent's name, pooled over tokens."""
    ce_loss: dict[str, float]
    """Cross-entropy in nats a token, likewise."""
    interval: dict[str, tuple[float, float]]
    """95 % interval of each accuracy, from resampling blocks."""


class Sweep(NamedTuple):
    """The accuracy curves of a merge and their equilibrium."""

    points: list[SweepPoint]
    """Every t that was evaluated (grid, bisection, equilibrium), rising."""
    t: float
    """The equilibrium: accuracies cross here, or, if they never do, the grid point where they differ least."""
    crossed: bool
    """Whether the curves cross."""
    interval: tuple[float, float]
    """95 % interval of the equilibrium t over resampled blocks, the crossing read off the curve between points."""
    first: str
    """Parent at t = 0."""
    second: str
    """Parent at t = 1."""


def sweep(
    model: nn.Module,
    first_state: Mapping[str, Tensor],
    second_state: Mapping[str, Tensor],
    method: Method,
    blocks: Mapping[str, Mapping[str, np.ndarray]],
    points: int = 11,
    tolerance: float = 0.005,
    precision: str = "bf16",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    evaluate: Callable[..., Judged] | None = None,
    batch_size: int = 32,
) -> Sweep:
    """Accuracy of the merge of two parents on both parents' validation sets, for a grid of t and at the equilibrium.

    The merged weights are written into `model` (a model of the parents' architecture) without touching the disk; its
    weights are overwritten, and are those of the equilibrium in the end. `blocks` holds the two parents' names, first
    and second, each with its corpora's validation blocks, int64 [n, ctx]. The grid has `points` positions, 0 and 1
    included. Where the difference of the two accuracies changes sign between two of them, bisection narrows the
    bracket to `tolerance` and the equilibrium is interpolated in it (see `crossing` for the choice among several).

    Intervals resample blocks (seeded by `seed`), each parent's on its own and the same blocks at every t.
    `evaluate(model, blocks, batch_size, precision)` stands in for `heredity.lm.evaluate.evaluate`.
    Source: Horn & Elliott 2024, section 3.3 and appendix A. Raises `MergeError` for a method without t, other than two
    parents, parents without blocks, a grid of fewer than two points, and weights that do not fit each other or `model`.
    """
    bench = Bench(model, first_state, second_state, method, blocks, precision, evaluate, batch_size)
    found = follow(lambda places: map(bench.measure, places), points, tolerance, seed, bench.corpora, progress)
    bench.blend.into(found.t)
    return found


Measure = Callable[[Iterable[Place]], Iterable[Judged]]
"""Measures places, in their order."""


def follow(
    measure: Measure,
    points: int,
    tolerance: float,
    seed: int,
    corpora: Mapping[str, Sequence[str]],
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """The sweep of `sweep`, measured by whoever `measure` asks. `corpora`: of the first and of the second parent.

    All places of the grid are asked for at once, so that they can be shared among processes; bisection goes on one t
    at a time. Raises `MergeError` for other than two parents, parents without corpora, and a grid of fewer than two.
    """
    if len(corpora) != 2:
        names = ", ".join(corpora) or "none"
        raise MergeError(f"an equilibrium lies between two parents, not {len(corpora)} ({names}); give t or weights")
    for parent, names in corpora.items():
        if not names:
            raise MergeError(f"parent {parent} has no validation blocks; give at least one corpus with text")
    if points < 2 or tolerance <= 0:
        raise MergeError(f"points={points} and tolerance={tolerance} must be at least 2 and above 0")
    first, second = corpora
    curve = _Curve(measure, corpora)
    total = points + max(0, math.ceil(math.log2(1 / (points - 1) / tolerance))) + 1

    def evaluated(count: int) -> None:
        if progress is not None:
            progress(min(count, total), total)

    def difference(t: float) -> float:
        curve.evaluate([t], evaluated)
        return curve.difference(t)

    grid = [i / (points - 1) for i in range(points)]
    curve.evaluate(grid, evaluated)
    t, crossed = _equilibrium(grid, difference, tolerance)
    difference(t)
    resampled = curve.resample(np.random.default_rng(seed))
    if progress is not None:
        progress(total, total)
    return Sweep(curve.points(resampled), t, crossed, _equilibrium_interval(curve.positions, resampled), first, second)


def crossing(positions: Sequence[float], differences: Sequence[float]) -> tuple[float, bool]:
    """(t, True) where a piecewise linear curve is 0, or (t, False) of the point nearest 0 if it never is.

    `positions` rise. Among several crossings, in whichever direction, the one nearest the middle (t = 0.5) is taken,
    because both parents contribute most there; among equally near ones the lower. The same rule breaks ties between
    points that are equally near 0.
    """
    found = []
    for i, (t, d) in enumerate(zip(positions, differences, strict=True)):
        if d == 0:
            found.append(t)
        elif i and d * differences[i - 1] < 0:
            before, change = positions[i - 1], differences[i - 1]
            found.append(before + (t - before) * change / (change - d))
    if found:
        return min(found, key=_from_middle), True
    least = min(map(abs, differences))
    return min((t for t, d in zip(positions, differences, strict=True) if abs(d) == least), key=_from_middle), False


class _Row(NamedTuple):
    """One evaluated t: for each parent, right predictions of every block, and the pooled cross-entropy."""

    hits: dict[str, np.ndarray]
    ce_loss: dict[str, float]


class _Curve:
    """The points evaluated so far; each t is evaluated once."""

    def __init__(self, measure: Measure, corpora: Mapping[str, Sequence[str]]) -> None:
        self._measure, self._corpora = measure, corpora
        self._tokens: dict[str, np.ndarray] = {}
        self.rows: dict[float, _Row] = {}

    @property
    def positions(self) -> list[float]:
        return sorted(self.rows)

    def evaluate(self, positions: Sequence[float], evaluated: Callable[[int], None]) -> None:
        """Measure what is missing of these t; `evaluated` gets the number of t known after each."""
        missing = [t for t in positions if t not in self.rows]
        places = [Place(t, parent, c) for t in missing for parent, own in self._corpora.items() for c in own]
        judged = iter(self._measure(places))
        for t in missing:
            self.rows[t] = _Row({}, {})
            for parent, own in self._corpora.items():
                self._take_in(t, parent, [next(judged) for _ in own])
            evaluated(len(self.rows))

    def difference(self, t: float) -> float:
        """Accuracy on the first parent's blocks less that on the second's, at a t that was evaluated."""
        first, second = (self._accuracy(t, parent) for parent in self._corpora)
        return first - second

    def _take_in(self, t: float, parent: str, judged: Sequence[Judged]) -> None:
        self._tokens[parent] = np.concatenate([np.full(len(j.hits), j.tokens / len(j.hits)) for j in judged])
        self.rows[t].hits[parent] = np.concatenate([np.asarray(j.hits, np.float64) for j in judged])
        self.rows[t].ce_loss[parent] = sum(j.ce_loss * j.tokens for j in judged) / sum(j.tokens for j in judged)

    def _accuracy(self, t: float, parent: str) -> float:
        return float(self.rows[t].hits[parent].sum() / self._tokens[parent].sum())

    def resample(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Accuracy of each bootstrap replicate at each t, float64 [replicates, points], for each parent."""
        accuracies = {}
        for parent, tokens in self._tokens.items():
            hits = np.stack([self.rows[t].hits[parent] for t in self.positions], axis=1)
            n, parts = len(tokens), []
            size = max(1, _CHUNK // n)
            for start in range(0, _REPLICATES, size):
                counts = rng.multinomial(n, np.full(n, 1 / n), size=min(size, _REPLICATES - start)).astype(np.float64)
                parts.append(counts @ hits / (counts @ tokens)[:, None])
            accuracies[parent] = np.concatenate(parts)
        return accuracies

    def points(self, resampled: Mapping[str, np.ndarray]) -> list[SweepPoint]:
        """The finished points, with intervals from the replicates."""
        parents = list(self._corpora)
        return [
            SweepPoint(
                t,
                {parent: self._accuracy(t, parent) for parent in parents},
                self.rows[t].ce_loss,
                {parent: _interval(resampled[parent][:, i]) for parent in parents},
            )
            for i, t in enumerate(self.positions)
        ]


def _equilibrium(grid: Sequence[float], difference: Callable[[float], float], tolerance: float) -> tuple[float, bool]:
    t, crossed = crossing(grid, [difference(position) for position in grid])
    if not crossed or t in grid:
        return t, crossed
    low = max(position for position in grid if position < t)
    high = min(position for position in grid if position > t)
    while high - low > tolerance:
        middle = (low + high) / 2
        here = difference(middle)
        if here == 0:
            return middle, True
        low, high = (middle, high) if here * difference(low) > 0 else (low, middle)
    return crossing([low, high], [difference(low), difference(high)])


def _equilibrium_interval(positions: Sequence[float], resampled: Mapping[str, np.ndarray]) -> tuple[float, float]:
    first, second = resampled.values()
    return _interval(np.array([crossing(positions, row)[0] for row in (first - second).tolist()]))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _from_middle(t: float) -> tuple[float, float]:
    return round(abs(t - 0.5), 12), t  # rounded, so that 0.4 and 0.6 are equally near
