"""Best matches by chance alone, p-values from them, and the threshold between kept and lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import false_discovery_control

from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches, correlate

PAPER = 0.8  # the threshold on r of Horn & Elliott, section 3.4
_RANGE = (0.2, 0.95)  # of a chosen threshold: below it chance rules, above it a count means nothing
SHIFTS = 64  # distinct circular shifts that one pass deals out among the features


class Floor(NamedTuple):
    """Best r of every feature where there is nothing to find; nan for features that are constant."""

    parent_r: np.ndarray  # float64 [passes, d_parent]: of each parent feature among all child features
    child_r: np.ndarray  # float64 [passes, d_child]: of each child feature among all parent features


def offsets(tokens: int, shifts: int, seed: int) -> np.ndarray:
    """Distinct circular shifts, int64 [shifts], each at least a tenth of the sample away from alignment, so that a
    shifted text does not meet its own document again. Raises `ValueError` for too few tokens."""
    least = max(1, tokens // 10)
    allowed = tokens - 2 * least + 1
    if shifts < 1 or allowed < shifts:
        raise ValueError(f"shifts={shifts} distinct shifts of {tokens} tokens do not exist; use fewer, or more tokens")
    drawn = np.random.default_rng(seed).choice(allowed, shifts, replace=False)
    return (drawn + least).astype(np.int64)


def floor(
    parent: FeatureActs,
    child: FeatureActs,
    passes: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    device: str = "cpu",
    match: Callable[..., Matches] | None = None,
) -> Floor:
    """Best r of the features of both ends by chance.

    In each pass every feature of the parent is moved in a circle by one of `SHIFTS` shifts and all pairs are compared
    once, so one pass shows many shifts. Shifting keeps densities, magnitudes and runs of firings as they are and breaks
    the alignment only. Shifts follow from the seed.
    progress: called with (passes done, passes). device: as in `correlate`. match: what is called in its place.
    Raises `ValueError` for too few tokens.
    """
    drawn = offsets(parent.tokens, min(SHIFTS, max(1, parent.tokens // 2)), seed)
    best = []
    for number in range(passes):
        dealt = np.random.default_rng((seed, number)).integers(len(drawn), size=parent.d_sae)
        matches = (match or correlate)(parent.scattered(drawn[dealt]), child, top=1, device=device)
        best.append((matches.parent_r[:, 0], matches.child_r[:, 0]))
        if progress is not None:
            progress(number + 1, passes)
    return Floor(*(np.stack(r) for r in zip(*best, strict=True)))


def p_values(best_r: np.ndarray, by_chance: np.ndarray, density: np.ndarray, stratum: int = 256) -> np.ndarray:
    """p-value of each feature's best r where nothing matches, float64 [features]; nan where best_r is.

    best_r [features] is the best of all candidates, and so is each entry of by_chance [passes, features]: the search
    is corrected for by construction. What chance reaches depends on how rare a feature is, so it is compared with the
    chance matches of the `stratum` features nearest to it in density [features]. p = (1 + matches by chance at least as
    good) / (1 + matches by chance), which is valid and never 0.
    """
    p = np.full(len(best_r), np.nan)
    live = np.flatnonzero(np.isfinite(best_r) & np.isfinite(by_chance).all(0))
    order = live[np.argsort(density[live], kind="stable")]
    # The last features, too few for a stratum, go with the one before.
    for members in np.split(order, range(stratum, len(order) - stratum + 1, stratum)):
        pool = np.sort(by_chance[:, members], axis=None)
        at_least = len(pool) - np.searchsorted(pool, best_r[members], side="left")
        p[members] = (1 + at_least) / (1 + len(pool))
    return p


def q_values(p: np.ndarray) -> np.ndarray:
    """The lowest false discovery rate at which each feature is still called a match (Benjamini and Hochberg 1995),
    float64 [features]; nan where p is."""
    q, known = np.full(len(p), np.nan), np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def chance_threshold(best_r: np.ndarray, by_chance: np.ndarray, rate: float = 0.01) -> float:
    """The lowest threshold from which on the false discovery rate stays at or below `rate`; 1.0 when there is none.

    best_r: [features] aligned; by_chance: [passes, features]. The rate at a threshold is the mean number of matches by
    chance above it per pass, over the features that are called persisting. Candidates are the values of r by chance,
    above the highest of which the rate is 0. This bounds the share of pairs that are mere chance; it does not say that
    a feature is unchanged.
    """
    flat, best = np.sort(by_chance[np.isfinite(by_chance)]), np.sort(best_r[np.isfinite(best_r)])
    values = np.unique(flat)
    if not len(values) or not (best > values[-1]).any():
        return 1.0
    called = len(best) - np.searchsorted(best, values, side="right")
    expected = (len(flat) - np.searchsorted(flat, values, side="right")) / len(by_chance)
    refused = np.flatnonzero(~(expected <= rate * called))
    return float(values[refused[-1] + 1 if len(refused) else 0])


class Evidence(NamedTuple):
    """A threshold, and the two ends between which it is chosen."""

    threshold: float  # in hundredths
    chance: float  # r that 99 % of live parent features stay below where nothing matches
    same: float  # median best r in another SAE of the parent; without one, 95th percentile of best r along the edge


def choose_threshold(best_r: np.ndarray, by_chance: np.ndarray, ceilings: Sequence[np.ndarray] = ()) -> Evidence:
    """The threshold of an edge: where best r falls apart into two groups, but no lower than a quarter of the way from
    the r of chance to the r of an unchanged model, and no higher than half of it.

    How far a kept feature's r stays below 1 depends on the noise of both SAEs, how far a lost one's stays above 0 on
    sample and dictionary, so a fixed threshold is right for one pair of SAEs at most. The bounds keep `split_threshold`
    from cutting through a single group, where everything was kept or nothing was. Of the rules compared in planted
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
    of the same model. nan where a reliability is not positive.
    """
    parent, child = np.asarray(parent_reliability, np.float64), np.asarray(child_reliability, np.float64)
    product, positive = parent * child, (parent > 0) & (child > 0)
    return np.minimum(1.0, r / np.sqrt(np.where(positive, product, np.nan)))
