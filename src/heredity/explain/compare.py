"""Are features that persist explained better than those that do not? (Horn & Elliott, appendix C, figure 6)"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu

from heredity.explain.scores import effect

BINS = np.round(np.arange(-0.2, 1.0001, 0.05), 2)
"""Edges of the histograms of scores; what lies below the first edge is counted in the first bin."""
_LEAST = 2  # scores of a group, below which it has no interval


class Distribution(NamedTuple):
    """The scores of one group of features."""

    n: int
    """Features with a score."""
    unscored: int
    """Features that were asked about and have none: no answer, or the feature was constant where it was given."""
    rare: int
    """Features too rare to be asked about."""
    median: float
    """nan without a score."""
    low: float
    """Lower end of the median's bootstrap interval; nan for fewer than two scores."""
    high: float
    """Upper end."""
    histogram: np.ndarray
    """int64 [bins]: features by score, in `BINS`."""


class Comparison(NamedTuple):
    """Scores of features that persist, and of others."""

    persisting: Distribution
    """Those with a match above the threshold."""
    others: Distribution
    """Those without one."""
    p: float
    """Mann-Whitney test, two-sided; nan unless both groups have scores."""
    effect: float
    """Chance that one that persists scores above one that does not, ties counted half; nan likewise."""
    low: float
    """Lower end of its bootstrap interval; nan unless both groups have two scores."""
    high: float
    """Upper end."""


def compare(
    persisting: np.ndarray,
    others: np.ndarray,
    rare: tuple[int, int] = (0, 0),
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> Comparison:
    """Compare the scores of two groups of features; bootstrap over features.

    persisting, others: float64 [n], nan for a feature that was asked about and has no score. rare: features of either
    group that were not asked about.
    """
    groups = [np.asarray(scores, np.float64) for scores in (persisting, others)]
    known = [scores[np.isfinite(scores)] for scores in groups]
    rng = np.random.default_rng(seed)
    again = [
        scores[rng.integers(len(scores), size=(resamples, len(scores)))] if len(scores) else None for scores in known
    ]
    told = [
        _distribution(scores, len(scores_all) - len(scores), few, draws, level)
        for scores, scores_all, few, draws in zip(known, groups, rare, again, strict=True)
    ]
    first, second = known
    if not len(first) or not len(second):
        return Comparison(told[0], told[1], *[float("nan")] * 4)
    p = float(mannwhitneyu(first, second, alternative="two-sided").pvalue)
    ends = (float("nan"), float("nan"))
    if min(len(first), len(second)) >= _LEAST and again[0] is not None and again[1] is not None:
        ends = _ends(np.array([effect(*pair) for pair in zip(again[0], again[1], strict=True)]), level)
    return Comparison(told[0], told[1], p, effect(first, second), *ends)


def _distribution(scores: np.ndarray, unscored: int, rare: int, again: np.ndarray | None, level: float) -> Distribution:
    counts = np.histogram(np.maximum(scores, BINS[0]), BINS)[0].astype(np.int64)
    if again is None:
        return Distribution(0, unscored, rare, float("nan"), float("nan"), float("nan"), counts)
    ends = _ends(np.median(again, axis=1), level) if len(scores) >= _LEAST else (float("nan"), float("nan"))
    return Distribution(len(scores), unscored, rare, float(np.median(scores)), *ends, counts)


def _ends(draws: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
