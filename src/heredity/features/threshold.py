"""The threshold between kept and lost, from the r of chance and the r of another SAE of the same model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PAPER = 0.8
"""The threshold on r of Horn & Elliott, section 3.4."""
_RANGE = (0.2, 0.95)  # of a chosen threshold: below it chance rules, above it a count means nothing


class Evidence(NamedTuple):
    """A threshold, and the two ends between which it is chosen."""

    threshold: float  # in hundredths
    chance: float  # r that 99 % of live parent features stay below where nothing matches
    same: float
    """Median best r of live parent features in another SAE of the same model; without one, the 95th percentile of best
    r along the edge."""


def choose_threshold(best_r: np.ndarray, by_chance: np.ndarray, ceilings: Sequence[np.ndarray] = ()) -> Evidence:
    """The threshold of an edge: where best r falls apart into two groups, but no lower than a quarter of the way from
    the r of chance to the r of an unchanged model, and no higher than half of it.

    Both ends of an edge carry the noise of their SAE: a kept feature's r stays below 1 by an amount that depends on the
    SAEs, a lost one's above 0 by one that depends on sample and dictionary, so a fixed threshold is right for one pair
    of SAEs at most. `split_threshold` finds the gap between both groups, but cuts through a single group as well, where
    everything was kept or nothing was; the two bounds keep that from doing harm. Of the rules compared in planted
    worlds (docs/planted.md) this one calls most kept features and fewest lost ones.

    best_r [d_parent], by_chance [passes, d_parent] and each of ceilings [d_parent]: best r along the edge, under
    shifted alignment, and in other SAEs of the parent; nan for features without one.
    """
    chance = _quantile(by_chance, 0.99)
    same = _quantile(np.concatenate(ceilings), 0.5) if len(ceilings) else _quantile(best_r, 0.95)
    cut = split_threshold(best_r)
    if not np.isfinite(chance + same + cut):
        return Evidence(PAPER, chance, same)
    low, high = sorted((chance + (same - chance) / 4, (chance + same) / 2))
    return Evidence(float(np.clip(round(float(np.clip(cut, low, high)), 2), *_RANGE)), chance, same)


def _quantile(r: np.ndarray, share: float) -> float:
    known = r[np.isfinite(r)]
    return float(np.quantile(known, share)) if len(known) else float("nan")


def split_threshold(best_r: np.ndarray) -> float:
    """The cut that maximizes the variance between two groups of best r (Otsu's method), halfway between the two values
    it separates; nan with fewer than two distinct values. A single group is cut, too."""
    r = np.sort(best_r[np.isfinite(best_r)])
    if not len(r) or r[0] == r[-1]:
        return float("nan")
    below = np.arange(1, len(r))
    total = np.cumsum(r)
    mean_below = total[:-1] / below
    mean_above = (total[-1] - total[:-1]) / (len(r) - below)
    between = below * (len(r) - below) * np.square(mean_above - mean_below)
    between[r[1:] == r[:-1]] = -1.0
    cut = int(np.argmax(between))
    return float((r[cut] + r[cut + 1]) / 2)


def corrected(
    r: np.ndarray, parent_reliability: np.ndarray | float, child_reliability: np.ndarray | float
) -> np.ndarray:
    """r freed from the noise of both SAEs: r / sqrt(reliability x reliability), at most 1 (Spearman 1904).

    A feature's reliability is the r of two noisy measurements of the same thing, such as its best r with another SAE
    of the same model. nan where a reliability is not positive. Shown beside the raw r, never instead of it.
    """
    product = np.asarray(parent_reliability, np.float64) * np.asarray(child_reliability, np.float64)
    positive = (np.asarray(parent_reliability) > 0) & (np.asarray(child_reliability) > 0)
    return np.minimum(1.0, r / np.sqrt(np.where(positive, product, np.nan)))
