"""What a count of persisting features is to be compared with: chance below it, the same model above it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate


def offsets(tokens: int, shifts: int, seed: int) -> np.ndarray:
    """Distinct circular shifts, int64 [shifts], each at least a tenth of the sample away from alignment.

    The distance keeps a shifted text from meeting its own document again. Raises `ValueError` for too few tokens.
    """
    least = max(1, tokens // 10)
    allowed = tokens - 2 * least + 1
    if shifts < 1 or allowed < shifts:
        raise ValueError(f"shifts={shifts} distinct shifts of {tokens} tokens do not exist; use fewer, or more tokens")
    drawn = np.random.default_rng(seed).choice(allowed, shifts, replace=False)
    return (drawn + least).astype(np.int64)


def floor(
    parent: FeatureActs,
    child: FeatureActs,
    shifts: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    device: str = "cpu",
) -> np.ndarray:
    """Best r of each parent feature by chance: the child's tokens are shifted in a circle against the parent's.

    Shifting keeps densities, magnitudes and runs of firings as they are and breaks the alignment only. Returns float64
    [shifts, d_parent], nan for features that are constant. The shifts follow from the seed.
    progress: called with (shifts done, shifts). device: as in `correlate`.
    """
    rows = []
    for offset in offsets(parent.tokens, shifts, seed):
        rows.append(correlate(parent, child.shifted(int(offset)), top=1, device=device).parent_r[:, 0])
        if progress is not None:
            progress(len(rows), shifts)
    return np.stack(rows)


def share_above(best_r: np.ndarray, threshold: float) -> float:
    """Share of features with a defined r whose best r exceeds the threshold; nan when there is none."""
    measured = np.isfinite(best_r)
    return float((best_r > threshold).sum() / measured.sum()) if measured.any() else float("nan")


def ceiling_share(persist: float, ceiling: float) -> float:
    """Persistence along an edge as a share of the persistence into another SAE of the same model (both counts, or both
    shares); nan when nothing persists there."""
    return persist / ceiling if ceiling > 0 else float("nan")


def false_discovery_rate(best_r: np.ndarray, chance: np.ndarray, threshold: float) -> float:
    """Expected share of chance among the features called persisting at a threshold, at most 1; 0 when none is.

    best_r: [d_parent] aligned; chance: [shifts, d_parent] from `floor`.
    """
    called = int((best_r > threshold).sum())
    expected = float((chance > threshold).sum()) / len(chance)
    return min(1.0, expected / called) if called else 0.0


def chance_threshold(best_r: np.ndarray, chance: np.ndarray, rate: float = 0.01) -> float:
    """The lowest threshold from which on the false discovery rate stays at or below `rate`; 1.0 when there is none.

    Arguments as in `false_discovery_rate`. Candidates are the values of r by chance, above the highest of which the
    rate is 0. This bounds the share of pairs that are mere chance; it does not say that a feature is unchanged.
    """
    values = np.unique(chance[np.isfinite(chance)])
    if not len(values) or not (best_r > values[-1]).any():
        return 1.0
    called = np.isfinite(best_r).sum() - np.searchsorted(np.sort(best_r[np.isfinite(best_r)]), values, side="right")
    flat = np.sort(chance[np.isfinite(chance)])
    expected = (len(flat) - np.searchsorted(flat, values, side="right")) / len(chance)
    allowed = expected <= rate * called
    last_refused = np.flatnonzero(~allowed)
    return float(values[last_refused[-1] + 1 if len(last_refused) else 0])


def split_threshold(best_r: np.ndarray) -> float:
    """The cut that best separates two groups of best r: it maximizes the variance between them (Otsu's method).

    Halfway between the two values it separates; nan with fewer than two distinct values. It always finds a cut, so look
    at the distribution before believing in two groups.
    """
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
