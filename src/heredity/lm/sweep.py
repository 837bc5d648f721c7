"""Where between two parents is the child equally good at both? Accuracy along t, and the t where the curves cross."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity.lm.evaluate import Quality
from heredity.lm.evaluate import evaluate as next_token_quality
from heredity.lm.merge import MergeError, Method, Mixing, check_states, linear, merge_tensor, slerp
from heredity.study import Precision

_REPLICATES = 1000  # bootstrap replicates behind every interval
_CHUNK = 1 << 22  # resampling counts held at a time

Place = tuple[float, str, str]
"""One measurement of a sweep, independent of all others: t, the parent whose validation set is used, its corpus."""
Evaluate = Callable[[nn.Module, np.ndarray, int, Precision], Quality]
"""Stands in for `heredity.lm.evaluate.evaluate`: model, blocks, batch size, precision."""


class SweepPoint(NamedTuple):
    """Both parents' validation sets at one t; figures by the parent's name, pooled over the tokens of its corpora."""

    t: float
    accuracy: dict[str, float]  # next-token accuracy
    ce_loss: dict[str, float]  # cross-entropy in nats per token
    interval: dict[str, tuple[float, float]]  # 95 % CI of each accuracy, bootstrap over blocks


class Sweep(NamedTuple):
    """The accuracy curves of a merge and their equilibrium."""

    points: list[SweepPoint]  # every evaluated t (grid, bisection, equilibrium), rising
    t: float  # the equilibrium: accuracies cross here, or, if they never do, the grid point where they differ least
    crossed: bool  # whether the curves cross
    interval: tuple[float, float]  # 95 % CI of t, bootstrap over blocks, the crossing interpolated between points
    first: str  # parent at t = 0
    second: str  # parent at t = 1


def sweep(
    model: nn.Module,
    first_state: Mapping[str, Tensor],
    second_state: Mapping[str, Tensor],
    method: Method,
    blocks: Mapping[str, Mapping[str, np.ndarray]],
    points: int = 11,
    tolerance: float = 0.005,
    precision: Precision = "bf16",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    evaluate: Evaluate | None = None,
    adaptive: bool = True,
) -> Sweep:
    """Accuracy of the merge of two parents on both parents' validation sets, for a grid of t and at the equilibrium.

    The merged weights overwrite those of `model` (of the parents' architecture) in memory, in the end with those of
    the equilibrium. `blocks` holds the two parents' names, first and second, each with its corpora's validation
    blocks, int64 [n, ctx]. The grid has `points` positions, 0 and 1 included. Where the difference of the two
    accuracies changes sign between two of them, bisection narrows the bracket to `tolerance` and the equilibrium is
    interpolated in it (see `crossing` for the choice among several). `adaptive` leaves out positions of the grid where
    the curves cannot cross: five are measured, and then only the neighbors of t, of the ends of its interval and of
    positions where the difference is within two standard errors of 0. t and its interval are then those of the whole
    grid, unless two crossings hide between positions whose differences are clear of 0 and alike; where the curves
    never cross, the whole grid is measured.

    Intervals resample blocks (seeded by `seed`), each parent's separately and the same blocks at every t.
    `evaluate(model, blocks, batch_size, precision)` stands in for `heredity.lm.evaluate.evaluate`.
    Source: Horn & Elliott 2024, section 3.3 and appendix A. Raises `MergeError` for a method without t, other than two
    parents, parents without blocks, a grid of fewer than two points, and weights that do not fit each other or `model`.
    """
    bench = Bench(model, first_state, second_state, method, blocks, precision, evaluate)
    corpora = {parent: [name for name, rows in sets.items() if len(rows)] for parent, sets in blocks.items()}
    result = follow(lambda places: map(bench.measure, places), points, tolerance, seed, corpora, progress, adaptive)
    bench.into(result.t)
    return result


class Bench:
    """The merge of two parents at any t, written into a model in memory, and measured there; angles computed once."""

    def __init__(
        self,
        model: nn.Module,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        method: Method,
        blocks: Mapping[str, Mapping[str, np.ndarray]],
        precision: Precision = "bf16",
        evaluate: Evaluate | None = None,
    ) -> None:
        """Check the states against each other and the model; arguments and errors as in `sweep`."""
        if method not in ("slerp", "linear"):
            raise MergeError(f"{method} has no t to sweep; use slerp or linear, or give weights instead of t")
        self._model, self._method, self._blocks = model, method, blocks
        self._precision: Precision = precision
        self._evaluate = evaluate or next_token_quality
        self._t: float | None = None
        pair, mixing, targets = {"parent 1": first, "parent 2": second}, Mixing(method, 2, 0.5), model.state_dict()
        names = sorted(set(first) - set(check_states(pair)))
        tensors = [{label: state[name] for label, state in pair.items()} for name in names]
        none: deque[Tensor] = deque(maxlen=0)  # angles alone are wanted
        reports = [merge_tensor(name, both, mixing, none.append) for name, both in zip(names, tensors, strict=True)]
        if unknown := sorted(set(first) - set(targets)):
            raise MergeError(f"{unknown[0]} is in the parents but not in the model; give a model of their architecture")
        memory = {targets[name].data_ptr() for name in first}
        for name, target in targets.items():
            if target.data_ptr() not in memory:  # a tied tensor is stored once, under either name
                wrong = "in the model but not in the parents"
            elif name in first and target.shape != first[name].shape:
                wrong = f"{list(target.shape)} in the model but {list(first[name].shape)} in the parents"
            else:
                continue
            raise MergeError(f"{name} is {wrong}; give a model of their architecture")
        self._parts = []
        for report in reports:
            target = targets[report.name]
            a, b = (state[report.name].to(target.device) for state in (first, second))
            self._parts.append((target, a, b, report))

    @torch.no_grad()
    def into(self, t: float) -> None:
        """Write the merge at t into the model."""
        for target, a, b, report in self._parts:
            if report.method == "copied":
                target.copy_(a)
            else:
                target.copy_(slerp(a, b, t, report.cosine) if self._method == "slerp" else linear([a, b], [1 - t, t]))
        self._t = t

    def measure(self, place: Place) -> Quality:
        """Evaluate one place; the model stays at its t."""
        t, parent, corpus = place
        if t != self._t:
            self.into(t)
        return self._evaluate(self._model, self._blocks[parent][corpus], 32, self._precision)


class _Pooled(NamedTuple):
    """One parent's corpora at one t."""

    hits: np.ndarray  # correct predictions of each block, float64
    tokens: np.ndarray  # predicted tokens of each block
    ce_loss: float

    @property
    def accuracy(self) -> float:
        return float(self.hits.sum() / self.tokens.sum())


def follow(
    measure: Callable[[Iterable[Place]], Iterable[Quality]],
    points: int,
    tolerance: float,
    seed: int,
    corpora: Mapping[str, Sequence[str]],
    progress: Callable[[int, int], None] | None = None,
    adaptive: bool = True,
) -> Sweep:
    """The sweep of `sweep`; `measure` evaluates places in order. `corpora`: of the first and of the second parent.

    All places of a round are requested at once, so that processes can share them; bisection proceeds one t at a
    time. Raises `MergeError` for other than two parents, parents without corpora, and a grid of fewer than two.
    """
    if len(corpora) != 2:
        names = ", ".join(corpora) or "none"
        raise MergeError(f"an equilibrium lies between two parents, not {len(corpora)} ({names}); give t or weights")
    if empty := [parent for parent, names in corpora.items() if not names]:
        raise MergeError(f"parent {empty[0]} has no validation blocks; give at least one corpus with text")
    if points < 2 or tolerance <= 0:
        raise MergeError(f"points={points} and tolerance={tolerance} must be at least 2 and above 0")
    first, second = corpora
    curves: dict[float, dict[str, _Pooled]] = {}
    total = points + max(0, math.ceil(math.log2(1 / (points - 1) / tolerance))) + 1

    def evaluate_at(positions: Sequence[float]) -> None:
        missing = [t for t in positions if t not in curves]
        places = [(t, parent, corpus) for t in missing for parent, names in corpora.items() for corpus in names]
        qualities = iter(measure(places))
        for t in missing:
            curves[t] = {parent: _pool([next(qualities) for _ in names]) for parent, names in corpora.items()}
            if progress is not None:
                progress(min(len(curves), total), total)

    def difference(t: float) -> float:
        evaluate_at([t])
        return curves[t][first].accuracy - curves[t][second].accuracy

    def resampled(positions: Sequence[float]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {parent: _resample([curves[t][parent] for t in positions], rng) for parent in corpora}

    grid = [i / (points - 1) for i in range(points)]
    wanted = sorted({round(quarter * (points - 1) / 4) for quarter in range(5)}) if adaptive else list(range(points))
    t, crossed = grid[0], False
    while wanted:
        evaluate_at([grid[i] for i in wanted])
        known = [i for i, t in enumerate(grid) if t in curves]
        positions = [grid[i] for i in known]
        differences = list(map(difference, positions))
        t, crossed = crossing(positions, differences)
        replicates = resampled(positions) if len(known) < points else {}
        wanted = _missing(known, grid, replicates[first] - replicates[second], differences) if replicates else []
        if not wanted and not crossed:
            wanted = [i for i in range(points) if i not in known]
    if crossed and t not in grid:
        low, high = max(p for p in grid if p < t), min(p for p in grid if p > t)
        while high - low > tolerance:
            middle = (low + high) / 2
            here = difference(middle)
            if here == 0:
                low = high = middle
            else:
                low, high = (middle, high) if here * difference(low) > 0 else (low, middle)
        t, _ = crossing([low, high], [difference(low), difference(high)])
    difference(t)
    positions = sorted(curves)
    replicates = resampled(positions)
    if progress is not None:
        progress(total, total)
    rows = [
        SweepPoint(
            position,
            {parent: pooled.accuracy for parent, pooled in curves[position].items()},
            {parent: pooled.ce_loss for parent, pooled in curves[position].items()},
            {parent: _interval(replicates[parent][:, i]) for parent in corpora},
        )
        for i, position in enumerate(positions)
    ]
    differences = (replicates[first] - replicates[second]).tolist()
    interval = _interval(np.array([crossing(positions, row)[0] for row in differences]))
    return Sweep(rows, t, crossed, interval, first, second)


def _missing(
    known: Sequence[int], grid: Sequence[float], replicates: np.ndarray, differences: list[float]
) -> list[int]:
    """Places of the grid still to be measured that t or an end of its interval may hang on.

    known: places measured so far, rising; replicates: their differences, float64 [replicates, known]. Wanted are both
    neighbors of t and of each end, and the neighbors of places whose difference is not clear of 0.
    """
    positions = [grid[i] for i in known]
    crossings = np.sort([crossing(positions, row)[0] for row in replicates.tolist()])
    ranks = np.array([0.025, 0.975]) * (len(crossings) - 1)
    ends = crossings[np.concatenate([np.floor(ranks), np.ceil(ranks)]).astype(int)]
    held = np.array([crossing(positions, differences)[0], *ends])
    wanted = {*np.searchsorted(grid, held, "right") - 1, *np.searchsorted(grid, held, "left")}
    unclear = np.flatnonzero(np.abs(differences) < 2 * replicates.std(axis=0)).tolist()
    wanted |= {known[i] + step for i in unclear for step in (-1, 1)}
    return sorted(wanted & set(range(len(grid))) - set(known))


def crossing(positions: Sequence[float], differences: Sequence[float]) -> tuple[float, bool]:
    """(t, True) where a piecewise linear curve is 0, or (t, False) of the point nearest 0 if it never is.

    `positions` rise. Among several crossings, in whichever direction, the one nearest the middle (t = 0.5) is taken,
    because both parents contribute most there; among equally near ones the lower. The same rule breaks ties between
    points that are equally near 0.
    """

    def from_middle(t: float) -> tuple[float, float]:
        return round(abs(t - 0.5), 12), t  # rounded, so that 0.4 and 0.6 are equally near

    points = list(zip(positions, differences, strict=True))
    roots = [t for t, d in points if d == 0]
    roots += [t + (later - t) * d / (d - next_d) for (t, d), (later, next_d) in pairwise(points) if d * next_d < 0]
    if roots:
        return min(roots, key=from_middle), True
    least = min(map(abs, differences))
    return min((t for t, d in points if abs(d) == least), key=from_middle), False


def _pool(qualities: Sequence[Quality]) -> _Pooled:
    tokens = sum(quality.tokens for quality in qualities)
    return _Pooled(
        np.concatenate([np.asarray(quality.hits, np.float64) for quality in qualities]),
        np.concatenate([np.full(len(quality.hits), quality.tokens / len(quality.hits)) for quality in qualities]),
        sum(quality.ce_loss * quality.tokens for quality in qualities) / tokens,
    )


def _resample(curve: Sequence[_Pooled], rng: np.random.Generator) -> np.ndarray:
    """Accuracy of each bootstrap replicate at each t, float64 [replicates, points]."""
    hits, tokens = np.stack([pooled.hits for pooled in curve], axis=1), curve[0].tokens
    n, size = len(tokens), max(1, _CHUNK // len(tokens))
    draws = [min(size, _REPLICATES - start) for start in range(0, _REPLICATES, size)]
    counts = (rng.multinomial(n, np.full(n, 1 / n), size=draw).astype(np.float64) for draw in draws)
    return np.concatenate([drawn @ hits / (drawn @ tokens)[:, None] for drawn in counts])


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
