"""How sure shares, accuracies and areas under a curve are; none of the intervals is empty at 0 or 1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, rankdata

LEVEL = 0.95
"""Coverage that intervals are made for."""


class Estimate(NamedTuple):
    """A number between 0 and 1 with its interval."""

    value: float
    """What was measured."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def proportion(hits: int, n: int, level: float = LEVEL) -> Estimate:
    """hits / n with the exact interval of Clopper & Pearson (1934). Raises ValueError unless 0 <= hits <= n, n >= 1."""
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"{hits} hits of {n} are no share; give 0 <= hits <= n and at least one case")
    ends = binomtest(hits, n).proportion_ci(level, method="exact")
    return Estimate(hits / n, float(ends.low), float(ends.high))


def balanced_accuracy(guess: np.ndarray, y: np.ndarray, level: float = LEVEL) -> Estimate:
    """Mean over both classes of the share guessed right, for bool guess [n] and truth y [n].

    The interval puts together the Wilson intervals of the two shares by their squared distances (Zou & Donner 2008).
    Raises ValueError when a class has no case.
    """
    guess, y = _both_classes(guess, y)
    values, below, above = [], 0.0, 0.0
    for own in (y, ~y):
        hits, n = int((guess == y)[own].sum()), int(own.sum())
        ends = binomtest(hits, n).proportion_ci(level, method="wilson")
        values.append(hits / n)
        below += ((hits / n - ends.low) / 2) ** 2
        above += ((ends.high - hits / n) / 2) ** 2
    value = sum(values) / 2
    return Estimate(value, max(0.0, value - float(below) ** 0.5), min(1.0, value + float(above) ** 0.5))


def roc_auc(scores: np.ndarray, y: np.ndarray, level: float = LEVEL) -> Estimate:
    """Probability that a case of the class scores higher than one outside it, ties half; scores float [n], y bool [n].

    The interval holds every θ with |AUC − θ| <= z √V(θ), V the variance of Hanley & McNeil (1982) with the mean of both
    class sizes in its correction terms (Newcombe 2006, method 5). Raises ValueError when a class has no case.
    """
    scores, y = _both_classes(scores, y)
    m, n = int(y.sum()), int((~y).sum())
    value = float((rankdata(scores)[y].sum() - m * (m + 1) / 2) / (m * n))
    z, extra = float(norm.ppf((1 + level) / 2)), (m + n) / 2 - 1

    def outside(theta: float) -> float:
        variance = theta * (1 - theta) * (1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m * n)
        return abs(value - theta) - z * variance**0.5

    # The ends themselves are solutions when the value lies there, but not the ones that are sought.
    inner = min(max(value, 1e-9), 1 - 1e-9)
    low = brentq(outside, 0.0, inner) if value > 0 else 0.0
    high = brentq(outside, inner, 1.0) if value < 1 else 1.0
    return Estimate(value, float(low), float(high))  # pyright: ignore[reportArgumentType]


def _both_classes(given: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    given, y = np.asarray(given), np.asarray(y, bool)
    if given.shape != y.shape or y.ndim != 1 or not 0 < y.sum() < len(y):
        raise ValueError(
            f"{len(given)} cases, of which {int(y.sum())} of {y.size} are of the class; give one value a case and "
            "cases of both kinds"
        )
    return given, y
