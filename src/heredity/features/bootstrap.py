"""CIs of r and of counts of persisting features, over documents of the same kind.

Tokens of a document depend on each other, so documents are what is resampled: dealt into groups, of which each is left
out once (the delete-a-group jackknife: Shao & Tu, The Jackknife and Bootstrap, 1995, section 2.3). r gets its interval
on Fisher's scale z = atanh r. A count of features above a threshold needs more care, see `bootstrap_counts`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from heredity.features.acts import FeatureActs
from heredity.kernels.grouped import count_above
from heredity.kernels.pairs import PairMoments, pair_moments
from heredity.kernels.sparse import in_ranges

GROUPS = 100  # groups of documents; more cost memory and time and hardly sharpen a CI
LEAST_GROUPS = 10  # with fewer the spread between groups is itself too uncertain to support a CI
_CHUNK = 1 << 20  # numbers in a temporary array, that is made by a few large products
_CACHED = 1 << 16  # numbers in one of many that are made of each other
_LARGEST = 1 - 1e-9  # |r| beyond it is a copy: atanh would blow its rounding up
_ROUNDING = 1e-12  # share of the sum of squares below which a variance is rounding

# A count at noise level v adds v times the variance of the sampling noise to each z. These levels and weights
# extrapolate it to level -1, where no noise is left (simulation extrapolation, Cook & Stefanski 1994).
_LEVELS = np.array([0.5, 2.0])
_WEIGHTS = np.array([2.0, -1.0])
_DOUBT = 1 / 3  # variance of the extrapolation's own bias, as a share of the squared correction
# Mean squared error of the extrapolated count over the variance of the plain one, minus 1, for features that err
# independently and whose z are spread evenly around the threshold. A count at level v thresholds z + noise of variance
# 1 + v: by E|difference| of two normal thresholds the error goes as 2 Σ w sqrt(1 + v) - Σ Σ w w' sqrt(v + v'), the
# plain count's variance as sqrt(2).
_EXTRA_VARIANCE = (
    2 * _WEIGHTS @ np.sqrt(1 + _LEVELS) - _WEIGHTS @ np.sqrt(_LEVELS[:, None] + _LEVELS) @ _WEIGHTS
) / np.sqrt(2) - 1


class Jackknife(NamedTuple):
    """z = atanh r of each pair, and what it becomes when a group is left out. nan where a pair has no r."""

    z: np.ndarray  # float64 [d_parent, top]: on all groups; |r| is taken as 1 - 1e-9 at most
    bias: np.ndarray  # float64 [d_parent, top]: of z, to be subtracted; 0 where it is unknown
    deviation: np.ndarray
    """float64 [groups, d_parent, top]: mean of all z without a group minus z without this one; their sum of squares is
    the variance of z but for (groups - 1) / groups. 0 where it is unknown."""
    effective: np.ndarray
    """float64 [d_parent, top]: groups that carry the variance, (Σ dev²)² / Σ dev⁴; 0 where r vanishes without one."""
    candidates: np.ndarray  # int32 [d_parent, top]: child features; -1 where there is none


class Intervals(NamedTuple):
    """Best r of each parent feature among its candidates, and its CI; float64 [d_parent], nan where there is none."""

    match: np.ndarray  # int32 [d_parent]: the child feature of the best r; -1 where there is none
    r: np.ndarray
    low: np.ndarray  # nan where there is no evidence
    high: np.ndarray
    effective: np.ndarray  # groups of documents that carry the variance, to be shown as a warning where they are few


class Counts(NamedTuple):
    """Features whose best r exceeds each threshold, with CIs of the number in the population."""

    seen: np.ndarray  # int64 [thresholds]: the plain count on the sample
    corrected: np.ndarray  # float64 [thresholds]: freed from the bias that noise of r gives a count
    low: np.ndarray  # int64 [thresholds]: at most `seen`
    high: np.ndarray  # int64 [thresholds]: at least `seen`
    draws: np.ndarray
    """float64 [resamples, thresholds]: corrected counts on resampled documents. Draw b of two calls with the same
    groups and seed rests on the same documents."""
    groups: int  # groups of documents
    level: float  # of the CIs


def document_groups(documents: np.ndarray, groups: int = GROUPS, seed: int = 0) -> np.ndarray:
    """Deal documents into groups of about the same number of tokens: the group of each token, int32 [tokens].

    documents: int [tokens], the document of each token, any numbers; `LEAST_GROUPS` different ones or more. In random
    order each document goes to the group with the fewest tokens so far. No group is empty: fewer documents than groups
    make one group each.
    """
    _, number, sizes = np.unique(documents, return_inverse=True, return_counts=True)
    heap = [(0, g) for g in range(min(groups, len(sizes)))]
    dealt = np.empty(len(sizes), np.int32)
    for document in np.random.default_rng(seed).permutation(len(sizes)):
        size, g = heap[0]
        dealt[document] = g
        heapq.heapreplace(heap, (size + int(sizes[document]), g))
    return dealt[number]


def group_moments(parent: FeatureActs, child: FeatureActs, candidates: np.ndarray, group: np.ndarray) -> PairMoments:
    """Sums over each group of documents, in one walk through the activations.

    candidates: int [d_parent, top], child features such as `Matches.parent_match`, -1 for none. group: int [tokens],
    from `document_groups`. Memory: 8 bytes x groups x (2 d_parent + 2 d_child + top d_parent). Raises `ValueError` for
    samples or candidates that do not fit each other.
    """
    if not parent.tokens == child.tokens == len(group):
        sizes = f"the parent has {parent.tokens} tokens, the child {child.tokens} and group {len(group)}"
        raise ValueError(f"{sizes}; encode the same tokens with both SAEs and give the group of each")
    if len(candidates) != parent.d_sae or candidates.max(initial=-1) >= child.d_sae:
        shape = f"candidates {list(candidates.shape)} run to {candidates.max(initial=-1)}"
        raise ValueError(f"{shape}; give each of {parent.d_sae} features some of {child.d_sae} features, -1 for none")
    return pair_moments(parent.sparse, child.sparse, candidates, group, int(group.max()) + 1)


def leave_one_out(moments: PairMoments) -> Jackknife:
    """z = atanh r on all groups and without each of them."""
    groups, shape = len(moments.tokens), moments.candidates.shape
    z, bias, effective = np.full(shape, np.nan), np.zeros(shape), np.zeros(shape)
    deviation = np.zeros((groups, *shape))
    paired = np.flatnonzero((moments.candidates >= 0).any(1))
    parts = [paired[part] for part in _chunks(len(paired), groups * shape[1], _CACHED)]

    def leave_out(first: int, last: int) -> None:
        for part in parts[first:last]:
            candidates = moments.candidates[part]
            y, yy = (np.where(candidates < 0, 0.0, sums.take(candidates, 1)) for sums in (moments.y, moments.yy))
            x, xx, xy = (sums.take(part, 1) for sums in (moments.x[..., None], moments.xx[..., None], moments.xy))
            pairs = [moments.tokens[:, None, None], x, xx, y, yy, xy]  # [groups, features, top or 1]
            everything = [sums.sum(0, keepdims=True) for sums in pairs]
            z[part] = _fisher(*everything)[0]
            without = _fisher(*(total - sums for total, sums in zip(everything, pairs, strict=True)))
            known = np.isfinite(without).all(0)
            mean = np.where(known, without, 0.0).mean(0)
            dev = np.where(known, mean - without, 0.0)
            deviation[:, part] = dev
            bias[part] = np.where(known, (groups - 1) * (mean - z[part]), 0.0)
            squared = np.square(dev)
            second, fourth = squared.sum(0), np.square(squared).sum(0)
            varies, firing = fourth > 0, (xx > 0).sum(0)
            carrying = np.where(varies, second**2, firing) / np.where(varies, fourth, 1.0)
            effective[part] = np.where(known, carrying, 0.0)

    in_ranges(leave_out, len(parts), deviation.size, len(parts))
    return Jackknife(z, bias, deviation, effective, moments.candidates)


def _chunks(features: int, each: int, most: int = _CHUNK) -> Iterator[slice]:
    """Ranges of features, `each` numbers per feature."""
    step = max(1, most // max(1, each))
    return (slice(start, min(start + step, features)) for start in range(0, features, step))


def _fisher(n: np.ndarray, x: np.ndarray, xx: np.ndarray, y: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """atanh r from sums; nan where a side is constant."""
    variances = [n * square - total * total for total, square in ((x, xx), (y, yy))]
    certain = (variances[0] > _ROUNDING * n * xx) & (variances[1] > _ROUNDING * n * yy)
    r = (n * xy - x * y) / np.sqrt(np.where(certain, variances[0] * variances[1], np.nan))
    return np.arctanh(np.clip(r, -_LARGEST, _LARGEST))


def r_intervals(jackknife: Jackknife, level: float = 0.95) -> Intervals:
    """Interval of the best r of each parent feature: z ± t x standard error, on Fisher's scale.

    The standard error is the jackknife's over groups of documents; t is Student's quantile with as many degrees of
    freedom as groups carry the variance, because a feature that fires in few documents knows its own error badly.
    Selection of the best among close candidates is not accounted for.
    """
    z, groups = jackknife.z, len(jackknife.deviation)
    best = np.argmax(np.where(np.isnan(z), -np.inf, z), axis=1)
    rows = np.arange(len(z))
    effective, center = jackknife.effective[rows, best], z[rows, best]
    variance = np.square(jackknife.deviation[:, rows, best]).sum(0) * ((groups - 1) / groups)
    t = stdtrit(np.where(effective > 0, effective, np.nan), (1 + level) / 2)
    half = np.where(variance > 0, t * np.sqrt(variance), 0 * t)
    match = np.where(np.isnan(center), -1, jackknife.candidates[rows, best]).astype(np.int32)
    return Intervals(match, np.tanh(center), np.tanh(center - half), np.tanh(center + half), effective)


def bootstrap_counts(
    jackknife: Jackknife, thresholds: Sequence[float], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Counts:
    """Features whose best r among their candidates exceeds each threshold, in (-1, 1), with CIs.

    The estimand is the number of these features whose r on infinitely many documents of this kind exceeds the
    threshold. Groups are drawn with replacement, and z moves by the jackknife's deviations of the groups drawn, which
    is the bootstrap to first order and exists for every feature. A resample adds noise to the noise z already has: its
    count is biased twice as much as the plain one, so percentiles of resampled counts miss, and reflecting them doubles
    their variance. Therefore counts with half and with twice the noise added are extrapolated to none. The variance is
    that of the resampled count, raised for what extrapolation adds for features that err independently, plus a third
    of the squared correction, for what it leaves; so the interval contains the plain count. Where most features fire
    on fewer than 30 documents, intervals are too narrow all the same: their noise is larger than they can show.
    """
    groups, live = len(jackknife.deviation), np.isfinite(jackknife.z).any(1).sum()
    plain, counts, noisy, independent = _resampled(jackknife, np.arctanh(thresholds), resamples, seed)
    corrected = _WEIGHTS @ noisy
    spread = counts - counts.mean(0)
    variance = np.square(spread).sum(0) / (resamples - 1)
    total = variance + _EXTRA_VARIANCE * independent + _DOUBT * np.square(corrected - plain)
    draws = corrected + spread * np.sqrt(np.divide(total, variance, out=np.zeros_like(total), where=variance > 0))
    half = stdtrit(groups - 1, (1 + level) / 2) * np.sqrt(total)
    # Whole numbers inside the interval; rounding inwards loses none of them.
    low = np.clip(np.ceil(corrected - half), 0, plain).astype(np.int64)
    high = np.clip(np.floor(corrected + half), plain, live).astype(np.int64)
    return Counts(plain, np.clip(corrected, 0, live), low, high, draws, groups, level)


def _resampled(
    jackknife: Jackknife, cuts: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts above thresholds (cuts): plain, int64 [thresholds]; with the noise of each resample, float64 [resamples,
    thresholds]; mean over resamples at each noise level of `_LEVELS`, float64 [levels, thresholds]; and the variance of
    the second if features erred independently, float64 [thresholds]."""
    groups, _, top = jackknife.deviation.shape
    weights = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples) - 1.0
    plain, counts = np.zeros(len(cuts), np.int64), np.zeros((resamples, len(cuts)))
    noisy, independent = np.zeros((len(_LEVELS), len(cuts))), np.zeros(len(cuts))
    known = np.flatnonzero(np.isfinite(jackknife.z).any(1))
    for some in _chunks(len(known), resamples * top):
        part = known[some]
        z, bias = np.where(np.isfinite(jackknife.z[part]), jackknife.z[part], -np.inf), jackknife.bias[part]
        moved = np.stack([weights @ jackknife.deviation[:, part, c] for c in range(top)])
        plain += (z.max(1)[:, None] > cuts).sum(0)
        for at, noise in enumerate((1.0, *_LEVELS)):
            center = np.ascontiguousarray((z + noise * bias).T)
            above = np.empty((resamples, len(cuts)), np.int64)
            count = partial(count_above, center, moved, np.sqrt(noise), cuts, above)
            of_features = np.sum(in_ranges(count, resamples, moved.size), axis=0)
            if at:
                noisy[at - 1] += above.sum(0) / resamples
            else:
                counts += above
                share = of_features / resamples
                independent += (share * (1 - share)).sum(1)
    return plain, counts, noisy, independent


def ratio_intervals(numerator: Counts, denominator: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ratio, low, high), float64 [thresholds], of two counts with the same thresholds, documents, seed and resamples:
    the ratio as seen, within its CI; nan where the denominator is 0. The variance is that of the linearized ratio over
    the draws that both share, so what documents do to both cancels."""
    known = (denominator.seen > 0) & (denominator.corrected > 0)
    below, plain = (np.where(known, counts, np.nan) for counts in (denominator.corrected, denominator.seen))
    center, ratio = numerator.corrected / below, numerator.seen / plain
    spreads = [counts.draws - counts.draws.mean(0) for counts in (numerator, denominator)]
    deviation = np.sqrt(np.square(spreads[0] - center * spreads[1]).sum(0) / (len(spreads[0]) - 1)) / below
    half = stdtrit(numerator.groups - 1, (1 + numerator.level) / 2) * deviation
    return ratio, np.clip(center - half, 0, ratio), np.maximum(center + half, ratio)
