"""The compiled loops of `pearson`: from the firings of one parent feature to its r with every child feature."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from heredity.kernels.prefetch import prefetch

_ENTRIES_A_LINE = 16
# Firings between the hint and the use of a child row; the speed is flat between 4 and 32.
_AHEAD = np.uint64(8)
_TWICE_AHEAD = np.uint64(16)
_ONE = np.uint64(1)
# Pairs that are screened together: nearly all blocks hold nothing to keep and nothing unusual to count.
_BLOCK = 128


class Stats(NamedTuple):
    """What turns the products of a feature into its r."""

    mean: np.ndarray
    """float64 [features]: mean over all tokens."""
    scale: np.ndarray
    """float64 [features]: one over the centered norm; 0 for a constant feature."""


class Best(NamedTuple):
    """Lists of best partners, best first, ties to the lower index."""

    r: np.ndarray
    """float64 [features, top]: -inf where the list is not full."""
    match: np.ndarray
    """int32 [features, top]: -1 where the list is not full."""


class Tally(NamedTuple):
    """Counts over all pairs of live features."""

    thresholds: np.ndarray
    """float64 [thresholds], in any order."""
    over: np.ndarray
    """int64 [thresholds]: pairs with r above each of them."""
    histogram: np.ndarray
    """int64 [bins]: pairs by floor((r + 1) * bins / 2), r = 1 in the last bin; no bins, no histogram."""


class Scratch(NamedTuple):
    """What one thread works in."""

    products: np.ndarray
    """float64 [d_child]: first sums of products, then r."""
    worst: np.ndarray
    """float64 [d_child]: r that a child feature's list asks for, +inf for constant ones; the last column of the lists
    in one stretch of memory."""


@numba.njit(nogil=True, cache=True)
def add_products(rows, weights, indptr, columns, values, products):  # noqa: ANN001, ANN201 (typed by numba)
    """products[c] += sum over n of weights[n] * child[rows[n], c]; unsigned indices spare the test for wrapping."""
    products[:] = 0.0
    firings = np.uint64(len(rows))
    for n in range(firings):
        if n + _TWICE_AHEAD < firings:
            prefetch(indptr, np.int64(rows[n + _TWICE_AHEAD]))
        if n + _AHEAD < firings:
            soon = np.uint64(rows[n + _AHEAD])
            line, end = np.int64(indptr[soon]), np.int64(indptr[soon + _ONE])
            while line < end:
                prefetch(columns, line)
                prefetch(values, line)
                line += _ENTRIES_A_LINE
        token, weight = np.uint64(rows[n]), np.float64(weights[n])
        for k in range(np.uint64(indptr[token]), np.uint64(indptr[token + _ONE])):
            products[np.uint64(columns[k])] += weight * values[k]


@numba.njit(nogil=True, cache=True)
def _insert(best_r, best, r, index):  # noqa: ANN001, ANN202 (typed by numba)
    """Put (r, index) into a list sorted by falling r, then rising index, if it belongs there."""
    at = len(best_r) - 1
    if r < best_r[at] or (r == best_r[at] and index > best[at]):
        return
    while at > 0 and (r > best_r[at - 1] or (r == best_r[at - 1] and index < best[at - 1])):
        best_r[at], best[at] = best_r[at - 1], best[at - 1]
        at -= 1
    best_r[at], best[at] = r, index


@numba.njit(nogil=True, cache=True)
def _to_r(products, tokens, mean, scale, child_mean, child_scale, worst, limit):  # noqa: ANN001, ANN202
    """Turn a block of products into r in place; returns how many of them are worth a second look.

    The means are multiplied first, and so are the scales: swapping parent and child then gives the same bits. A
    constant child feature gets r = 0 here; its scale tells it apart.
    """
    near = 0
    for c in range(len(products)):
        r = (products[c] - tokens * (mean * child_mean[c])) * (scale * child_scale[c])
        r = min(1.0, max(-1.0, r))
        products[c] = r
        near += (r >= worst[c]) | (r > limit)
    return near


@numba.njit(nogil=True, cache=True)
def _count_bins(r, histogram):  # noqa: ANN001, ANN202 (typed by numba)
    """Add a block of r to the histogram. Most r lie in the two bins around 0, which are counted without a scatter."""
    bins = len(histogram)
    half, middle = bins / 2.0, bins // 2
    below, above = 0, 0
    for c in range(len(r)):
        at = np.int32((r[c] + 1.0) * half)
        below += at == middle - 1
        above += at == middle
    if below + above == len(r):
        histogram[middle - 1] += below
        histogram[middle] += above
        return
    for c in range(len(r)):
        histogram[min(bins - 1, np.int64((r[c] + 1.0) * half))] += 1


@numba.njit(nogil=True, cache=True)
def _keep(parent, first, r, child_scale, best_r, best, child_best, worst, tally):  # noqa: ANN001, ANN202
    """Offer a block of r, the first of child feature `first`, to the lists of both sides and count what is over."""
    last = len(best_r) - 1
    for c in range(len(r)):
        if child_scale[c] == 0.0:
            continue
        if r[c] > best_r[last]:
            _insert(best_r, best, r[c], first + c)
        if r[c] >= worst[c]:
            _insert(child_best.r[first + c], child_best.match[first + c], r[c], parent)
            worst[c] = child_best.r[first + c, last]
        for n in range(len(tally.thresholds)):
            tally.over[n] += r[c] > tally.thresholds[n]


@numba.njit(nogil=True, cache=True)
def match_features(features, first, columns, child, stats, child_stats, tokens, scratch, best, child_best, tally):  # noqa: ANN001, ANN201
    """Match each of the parent `features` with all child features.

    columns: the firings of the parent features from `first` on, as (indptr, rows, values). child: rows, as (indptr,
    columns, values). `stats` and `best` count from `first` too. The histogram counts constant child features as r = 0.
    """
    starts, rows, weights = columns
    for feature in features:
        p = feature - first
        own = slice(starts[p], starts[p + 1])
        add_products(rows[own], weights[own], child[0], child[1], child[2], scratch.products)
        lowest = np.inf
        for threshold in tally.thresholds:
            lowest = min(lowest, threshold)
        for start in range(0, len(scratch.products), _BLOCK):
            block = slice(start, min(start + _BLOCK, len(scratch.products)))
            r, scale, worst = scratch.products[block], child_stats.scale[block], scratch.worst[block]
            limit = min(lowest, best.r[p, -1])
            near = _to_r(r, tokens, stats.mean[p], stats.scale[p], child_stats.mean[block], scale, worst, limit)
            if near:
                _keep(feature, start, r, scale, best.r[p], best.match[p], child_best, worst, tally)
            if len(tally.histogram):
                _count_bins(r, tally.histogram)
